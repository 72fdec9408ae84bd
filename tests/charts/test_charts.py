"""Charts as files: the same bytes every time, text as text, what may stand on one axis and what may not."""

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_mixes import MIXES, quantization, record

import ggplan
from ggplan.charts import Drawing, draw_context, draw_parts, draw_quality, draw_types
from ggplan.charts.points import panels
from ggplan.charts.quality import draw_panels
from ggplan.cli import cli
from ggplan.errors import ChartError
from ggplan.measure import Base, Measurement, Metric, Quantization, Record, save_record
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import FileFacts, ModelFacts, Text
from ggplan.planning import decide

LOGS = Path(__file__).parent.parent / "data" / "logs"
SVG = "{http://www.w3.org/2000/svg}"


def texts_of(path: Path) -> list[str]:
    return ["".join(t.itertext()).strip() for t in ET.parse(path).iter(f"{SVG}text")]


def titles_of(path: Path) -> list[str]:
    return [t.text or "" for t in ET.parse(path).iter(f"{SVG}title")]


@pytest.fixture(scope="module")
def twice() -> tuple[Drawing, Drawing]:
    """One record, drawn two times."""
    return draw_quality(MIXES), draw_quality(MIXES)


@pytest.mark.parametrize("ending", [".svg", ".png", ".html"])
@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_the_same_record_gives_the_same_bytes(
    twice: tuple[Drawing, Drawing], tmp_path: Path, ending: str, theme: str
) -> None:
    for name, drawing in zip(("one", "two"), twice, strict=True):
        drawing.save(tmp_path / f"{name}{ending}", theme)
    one = (tmp_path / f"one{ending}").read_bytes()
    assert one == (tmp_path / f"two{ending}").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"one{ending}", f"two{ending}"]


def test_text_stays_text_and_points_carry_titles(twice: tuple[Drawing, Drawing], tmp_path: Path) -> None:
    twice[0].save(tmp_path / "x.svg")
    texts, titles = texts_of(tmp_path / "x.svg"), titles_of(tmp_path / "x.svg")
    assert {"q8_0", "q6_K", "hq4_k", "q4_K", "q4_0", "q2_K"} <= set(texts)
    assert "bits per weight" in texts
    assert "Air: KL divergence against size" in texts
    assert any("10 chunks of 512 tokens" in t and "2026-01-02" in t for t in texts)
    assert sum(t.startswith("q4_0: kld 0.05 ± 0.0025, 4.6 GiB") for t in titles) == 1


def test_the_theme_follows_the_reader_or_not(twice: tuple[Drawing, Drawing], tmp_path: Path) -> None:
    drawing, _ = twice
    for theme in ("auto", "light", "dark"):
        drawing.save(tmp_path / f"{theme}.svg", theme)
    auto, light, dark = ((tmp_path / f"{t}.svg").read_text() for t in ("auto", "light", "dark"))
    assert "prefers-color-scheme: dark" in auto
    assert "prefers-color-scheme" not in light
    assert "#0d1117" in dark
    assert "#0d1117" not in light
    # Every colour that is drawn with has a dark twin, or it would be lost on the dark background.
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", light))
    assert used
    assert used <= set(re.findall(r": (#[0-9a-f]{6})\"\]", auto)) | {"#ffffff"}


def test_a_dark_png_is_dark(twice: tuple[Drawing, Drawing], tmp_path: Path) -> None:
    from matplotlib.image import imread

    twice[0].save(tmp_path / "light.png", "light")
    twice[0].save(tmp_path / "dark.png", "dark")
    assert np.median(imread(tmp_path / "light.png")[..., :3]) > 0.9
    assert np.median(imread(tmp_path / "dark.png")[..., :3]) < 0.1


@pytest.mark.parametrize(
    "change",
    [{"n_ctx": 2048}, {"n_chunks": 11}, {"engine": "other"}, {"build": "b2"}, {"text": Text("b.txt")}],
)
def test_other_conditions_do_not_share_an_axis(change: dict) -> None:
    odd = quantization("odd", 5, 0.01)
    other = Measurement(**({f: getattr(odd.measurements[0], f) for f in Measurement.__slots__} | change))
    mixed = record(*MIXES.quantizations, Quantization("odd", odd.file, 5, measurements=(other,)))
    with pytest.raises(ChartError, match="under 2 conditions"):
        panels([mixed])
    assert "MIXED" in draw_panels(panels([mixed], mixed=True)).description


def test_two_texts_are_two_panels_and_a_turned_ranking_is_told(tmp_path: Path) -> None:
    def both(name: str, gib: float, chosen: float, held: float) -> Quantization:
        a, b = quantization(name, gib, chosen, "choose"), quantization(name, gib, held, "held out")
        return Quantization(name, a.file, a.bpw, measurements=(*a.measurements, *b.measurements))

    two = record(both("A", 4, 0.010, 0.030), both("B", 4.2, 0.020, 0.020))
    assert [p.use for p in panels([two])] == ["choose", "held out"]
    save_record(two, tmp_path / "r.json")
    done = CliRunner().invoke(cli, ["chart", str(tmp_path / "r.json"), "-o", str(tmp_path / "x.svg")])
    assert done.exit_code == 0
    assert "A wins on the text of choice, B on the held-out one" in done.output
    assert {"choose.txt (choose)", "held out.txt (held out)"} <= set(texts_of(tmp_path / "x.svg"))


def test_perplexity_without_divergence_is_drawn_as_its_loss() -> None:
    plain = record(*(quantization(q.name, q.bpw, None) for q in MIXES.quantizations))
    (panel,) = panels([plain])
    assert panel.quality == "dppl"
    assert not any(p.paired for p in panel.points)
    assert "Pale bars: unpaired" in draw_panels([panel]).description


def test_a_file_that_was_compared_is_no_base_whatever_its_name() -> None:
    """Neither in logs, which state no base, nor beside a base of the same name that has no digest."""
    for base in (Base(), Base("q8_0")):
        logs = record(quantization("q8_0", 8.5, 0.001, base=base), quantization("q4_K", 4.5, 0.03, base=base))
        (panel,) = panels([logs])
        assert panel.quality == "kld"
        assert [p.name for p in panel.points] == ["q8_0", "q4_K"]


def test_each_loss_of_perplexity_is_from_its_own_base() -> None:
    def only_ppl(name: str, ppl: float, base: str) -> Quantization:
        q = quantization(name, 5, None, base=Base(base, base))
        m = q.measurements[0]
        m = dataclasses.replace(m, metrics={"ppl": Metric(ppl)})
        return dataclasses.replace(q, measurements=(m,))

    two = record(
        only_ppl("A", 10, "A"), only_ppl("B", 20, "B"), only_ppl("a", 11, "A"), only_ppl("b", 21, "B")
    )
    (panel,) = panels([two], mixed=True)
    assert {p.name: p.y for p in panel.points} == {"a": pytest.approx(10), "b": pytest.approx(5)}
    assert panel.base == "A and B"


def test_what_is_not_drawn_is_counted() -> None:
    some = record(*MIXES.quantizations, quantization("odd", 3, None))
    assert (
        "Without this quality or cost, not drawn: 1."
        in draw_panels(panels([some], quality="kld")).description
    )
    assert "not drawn" not in draw_quality(MIXES).description


@pytest.mark.parametrize("metric", ["kld", "dppl", "ppl"])
@pytest.mark.parametrize("cost", ["size", "bpw", "speed"])
def test_every_axis_draws(metric: str, cost: str) -> None:
    drawing = draw_panels(panels([MIXES], quality=metric), cost=cost)
    assert len(drawing.titles) >= 6


def test_what_is_not_there_is_said() -> None:
    bare = Record(ModelFacts("m"), (Quantization("q"),))
    with pytest.raises(ChartError, match="no measurement"):
        panels([bare])
    with pytest.raises(ChartError, match="nothing was measured on b"):
        panels([MIXES], text="b")
    with pytest.raises(ChartError, match="kld99"):
        panels([MIXES], quality="kld99")
    with pytest.raises(ChartError, match="several contexts"):
        draw_context([bare])
    with pytest.raises(ChartError, match="where its bytes are"):
        draw_parts([bare])
    with pytest.raises(ChartError, match="different models"):
        panels([MIXES, Record(ModelFacts("Other"), MIXES.quantizations)])


def test_sixty_points_have_names_that_keep_apart(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sizes = random.uniform(2, 9, 60)
    many = record(*(quantization(f"mix-{i}", s, 2**-s * random.uniform(1, 2)) for i, s in enumerate(sizes)))
    drawing = draw_panels(panels([many]))
    named = [t for t in drawing.figure.axes[0].texts if t.get_text().startswith("mix-")]
    assert len(named) > 40
    boxes = [t.get_window_extent() for t in named]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_names_from_strangers_are_harmless(tmp_path: Path) -> None:
    hostile = record(quantization("<script>\x1b[31m$x_1$&\"'", 5, 0.1), quantization("b", 6, 0.01))
    for ending in (".svg", ".html"):
        draw_panels(panels([hostile])).save(tmp_path / f"x{ending}")
        text = (tmp_path / f"x{ending}").read_text()
        assert "<script>" not in text
        assert "\x1b" not in text
    ET.parse(tmp_path / "x.svg")


def test_speed_against_context(tmp_path: Path) -> None:
    records = parse_files([LOGS / "sweep-bench.GLM-4.5-Air_16384_4096.txt"])
    draw_context(records).save(tmp_path / "x.svg")
    assert "GLM 4.5 Air: speed against context" in texts_of(tmp_path / "x.svg")
    assert any("3203 t/s at 0" in t for t in titles_of(tmp_path / "x.svg"))


def test_where_the_bytes_are(tmp_path: Path) -> None:
    draw_parts([MIXES]).save(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert "where the GiB are" in page
    assert "routed experts as q4_K: 8.00 GiB" in page


def test_types_by_layer(tmp_path: Path) -> None:
    import importlib.resources

    model = ggplan.open_model(str(importlib.resources.files("ggplan") / "demo_model"), pre="glm4")
    assignment = decide(model, ggplan.load_recipe("glm4moe/hq4_k"))
    draw_types(model, assignment).save(tmp_path / "x.svg")
    titles = titles_of(tmp_path / "x.svg")
    assert any(t.startswith("blk.1.ffn_gate_exps: q4_K, 4.5 bits") for t in titles)
    assert "q4_K" in texts_of(tmp_path / "x.svg")


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    save_record(MIXES, path)
    run = CliRunner()
    assert run.invoke(cli, ["chart", str(path), "-o", "x.bmp"]).exit_code == 2
    with pytest.raises(ChartError, match="cannot write"):
        run.invoke(cli, ["chart", str(path), "-o", str(tmp_path / "no" / "x.svg")], catch_exceptions=False)


def on_text(name: str, engine: str, use: str, metrics: dict, text: str = "a.txt") -> Quantization:
    m = Measurement(Text(text, text), 512, 8, 2040, engine, metrics, use=use)  # type: ignore[arg-type]
    return Quantization(name, FileFacts(n_bytes=1 << 30), 4.0, measurements=(m,))


def test_a_text_is_one_panel_whether_or_not_its_use_is_said() -> None:
    one = on_text("q4", "llama-perplexity", "choose", {"kld": Metric(0.1), "ppl": Metric(5.0)})
    other = on_text("q5", "llama-cpp-python", "", {"kld": Metric(0.05), "ppl": Metric(4.9)})
    joined = Record(ModelFacts("m"), (one, other))
    with pytest.raises(ChartError, match="engine llama-perplexity / llama-cpp-python"):
        draw_quality(joined)
    mixed = draw_quality(joined, mixed=True).description
    assert "by llama-perplexity and by llama-cpp-python. " in mixed
    elsewhere = on_text("q5", "llama-cpp-python", "", {"ppl": Metric(4.9)}, "b.txt")
    drawing = draw_quality(Record(ModelFacts("m"), (one, elsewhere)))
    assert (
        "Measured on a.txt (choose), 8 chunks of 512 tokens, 2,040 of them scored, by llama-perplexity."
        in (drawing.description)
    )
    assert "Measured on b.txt, 8 chunks of 512 tokens, 2,040 of them scored, by llama-cpp-python." in (
        drawing.description
    )
    assert drawing.title == "m: perplexity against size"  # all panels share an axis


def test_one_perplexity_is_drawn_as_it_is(tmp_path: Path) -> None:
    table = tmp_path / "one.csv"
    table.write_text("quant,size,ppl\nQ8_0,24 GiB,6.1\n")
    assert draw_quality(table).title.endswith("perplexity against size")
    with pytest.raises(ChartError, match="no point has the metric dppl") as caught:
        draw_quality(table, metric="dppl")
    assert caught.value.hint == "there is ppl (--metric)"


def test_a_point_among_error_bars_has_its_name(tmp_path: Path) -> None:
    names = ["demo-Q2_K", "demo-Q3_K_M", "demo-Q4_K_M", "demo-Q8_0"]
    points = [quantization(name, size, 0.1) for name, size in zip(names, (2.32, 2.7, 3.1, 4.96), strict=True)]
    values = (44.1, 40.8, 40.1, 40.0)
    points = [
        dataclasses.replace(
            q,
            measurements=(
                dataclasses.replace(
                    q.measurements[0], base=Base(), metrics={"ppl": Metric(v, 6.5, "unpaired tokens")}
                ),
            ),
        )
        for q, v in zip(points, values, strict=True)
    ]
    draw_quality(Record(ModelFacts("m"), tuple(points)), metric="ppl").save(tmp_path / "x.svg")
    assert set(names) <= set(texts_of(tmp_path / "x.svg"))


def test_a_long_name_is_shortened_before_it_is_left_out(tmp_path: Path) -> None:
    long = "a-very-long-name-of-a-quantization-" + "with-many-words-" * 3
    rows = "".join(f"{long}{k},{1 + 0.02 * k:.2f} GiB,{0.1 - 0.0005 * k:.4f}\n" for k in range(12))
    (tmp_path / "x.csv").write_text(f"quant,size,kld\n{rows}")
    drawing = draw_quality(tmp_path / "x.csv")
    assert "no room for a name" not in drawing.description


def test_a_png_tells_of_characters_that_its_font_lacks(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("quant,size,kld\n模型-Q8_0 🦙,24 GiB,0.01\nQ4_K é,12 GiB,0.1\n", encoding="utf-8")
    done = CliRunner().invoke(cli, ["chart", str(table), "-o", str(tmp_path / "x.png")])
    assert done.exit_code == 0
    assert done.stderr.startswith("note: ")
    assert "模" in done.stderr
    assert "型" in done.stderr
    assert "🦙" in done.stderr
    assert "é" not in done.stderr
    assert done.stderr.count("note") == 1
    for name in ("x.svg", "x.html"):
        done = CliRunner().invoke(cli, ["chart", str(table), "-o", str(tmp_path / name)])
        assert done.stderr == ""
    with pytest.warns(UserWarning, match="模型🦙"):
        draw_quality(table).save(tmp_path / "y.png")
