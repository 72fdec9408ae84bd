"""What a point is a loss against, what can be chosen, and what a chart says that it leaves out."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import ggplan
from ggplan.charts import draw_context, draw_quality, draw_types
from ggplan.charts.points import panels
from ggplan.charts.tensors import typed
from ggplan.cli import cli
from ggplan.errors import ChartError
from ggplan.measure import Measurement, Metric, Quantization, Record, save_record
from ggplan.measure.record import FileFacts, ModelFacts, Speed, Text
from ggplan.planning import assign

TEXT = Text("wiki.test.raw")


def q(name: str, *ppl: float, contexts: tuple[int, ...] = (512,), text: Text = TEXT) -> Quantization:
    measured = tuple(
        Measurement(text, n_ctx, 3, 765, "llama-perplexity", {"ppl": Metric(p, 0.01, "unpaired tokens")})
        for p, n_ctx in zip(ppl, contexts, strict=True)
    )
    return Quantization(name, FileFacts(n_bytes=10**9), 4.0, measurements=measured)


def losses(*records: Record, **options: object) -> tuple[str, list[tuple[str, float]]]:
    (panel,) = panels(list(records), mixed=True, **options)  # type: ignore[arg-type]
    return panel.quality, [(p.name, round(p.y, 4)) for p in panel.points]


A = Record(ModelFacts("A"), (q("A-bf16", 5.0), q("A-Q4", 5.1)))
B = Record(ModelFacts("B"), (q("B-bf16", 9.0), q("B-Q4", 10.0)))


def test_each_model_has_its_own_base() -> None:
    assert losses(A, B) == ("dppl", [("A-Q4", 2.0), ("B-Q4", 11.1111)])
    assert losses(B, A)[1] == [("B-Q4", 11.1111), ("A-Q4", 2.0)]


def test_a_model_without_a_base_has_no_loss() -> None:
    alone = replace(B, quantizations=B.quantizations[1:])
    quality, found = losses(A, alone)
    assert (quality, ("B-Q4", 10.0) in found) == ("ppl", True)
    assert losses(A, alone, quality="dppl")[1] == [("A-Q4", 2.0)]


def test_a_loss_is_against_the_base_with_the_same_context_on_the_same_text() -> None:
    base = q("A-Q8_0", 5.0, 4.5, contexts=(512, 2048))
    record = Record(ModelFacts("A"), (base, q("A-Q4", 5.5, 5.0, contexts=(512, 2048))))
    assert losses(record)[1] == [("A-Q4", 10.0), ("A-Q4", round(100 * (5 / 4.5 - 1), 4))]
    other = replace(record, quantizations=(base, q("A-Q4", 5.5, text=Text("other.raw"))))
    assert losses(other)[0] == "ppl"
    unknown = replace(record, quantizations=(base, q("A-Q4", 5.5, contexts=(0,))))
    assert losses(unknown)[1] == [("A-Q4", 10.0)]


def test_a_context_can_be_chosen(tmp_path: Path) -> None:
    pair = q("A-Q8_0", 5.0, 4.5, contexts=(512, 2048)), q("A-Q4", 5.5, 5.0, contexts=(512, 2048))
    record = Record(ModelFacts("A"), pair)
    with pytest.raises(ChartError, match="context 512 / 2048") as caught:
        draw_quality(record)
    assert caught.value.hint == "choose with --ctx, or draw them all the same with --mixed"
    drawn = draw_quality(record, n_ctx=2048)
    assert any("11.1" in title for title in drawn.titles.values())
    with pytest.raises(ChartError, match="nothing was measured with a context of 77") as caught:
        draw_quality(record, n_ctx=77)
    assert caught.value.hint == "there is 512, 2048"
    save_record(record, tmp_path / "a.json")
    done = CliRunner().invoke(
        cli, ["chart", str(tmp_path / "a.json"), "-o", str(tmp_path / "a.svg"), "-c", "512"]
    )
    assert done.exit_code == 0, done.output
    texts = Record(
        ModelFacts("A"), (q("A-Q8_0", 5.0), q("A-Q4", 5.5, text=Text("x")), q("A-Q2", 6.0, contexts=(1024,)))
    )
    with pytest.raises(ChartError) as caught:
        draw_quality(texts)
    assert str(caught.value.hint).startswith("choose with --text and --ctx, or")


def test_speeds_at_one_context_are_told(tmp_path: Path) -> None:
    curve = Quantization("curve", speeds=(Speed(0, 5.0, 2.0), Speed(512, 4.0, 1.0)))
    record = Record(
        ModelFacts("A"), (curve, Quantization("point", speeds=(Speed(0, None, 2.0),)), q("none", 5.0))
    )
    assert "Not drawn, without speeds at two contexts: point, none." in draw_context(record).description
    assert "Not drawn" not in draw_context(replace(record, quantizations=(curve,))).description
    save_record(record, tmp_path / "a.json")
    for kind, names in (("context", ("point", "none")), ("quality", ("curve", "point"))):
        command = ["chart", str(tmp_path / "a.json"), "-o", str(tmp_path / "a.svg"), "--kind", kind]
        said = CliRunner().invoke(cli, command).output
        assert [f"note: {name} is not drawn" in said for name in names] == [True, True]
        assert "note" not in CliRunner().invoke(cli, [*command, "-q"]).output


def test_what_a_log_leaves_out_is_told_by_the_chart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("quant,size,ppl\nQ8_0,8 GiB,5.0\nQ4_K,4 GiB,5.1\nQ2_K,2 GiB,404\n")
    said = CliRunner().invoke(cli, ["chart", str(tmp_path / "a.csv"), "-o", str(tmp_path / "a.svg")]).output
    assert "a.csv: line 4: Q2_K" in said


def test_a_picture_of_types_names_its_model() -> None:
    model = ggplan.open_model("GLM-4.5-Air")
    drawn = draw_types(typed(model, assign(model, ggplan.parse_recipe("@default q4_K", "four"))))
    assert drawn.title == "GLM-4.5-Air, four: types by layer"
    assert draw_types(model).title == "GLM-4.5-Air: types by layer"


def test_a_chart_of_a_pipe_reads_it_whole(tmp_path: Path) -> None:
    rows = "".join(f"Q{i}_K,{i} GiB,{6 - i / 10},{'long ' * 200}\n" for i in range(1, 9))
    os.mkfifo(tmp_path / "pipe")
    text = f"quant,size,ppl,note\n{rows}"
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,), daemon=True)
    writer.start()
    done = CliRunner().invoke(cli, ["chart", str(tmp_path / "pipe"), "-o", str(tmp_path / "a.html")])
    assert done.exit_code == 0, done.output
    assert "<td>Q8_K</td>" in (tmp_path / "a.html").read_text("utf-8")
