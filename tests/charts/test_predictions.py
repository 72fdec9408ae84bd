"""`chart --kind frontier` and `--kind damage`: what is predicted and what measured can be told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import run

from ggplan.allocation.forecast import Forecast
from ggplan.allocation.pareto import Curve, CurvePoint
from ggplan.charts import FileDamage, Published, TensorDamage, draw_damage, draw_frontier
from ggplan.errors import ChartError

CREDIT = ("Fitted to measurements of Thireus, the GGUF Tool Suite and its contributors",)


def point(name: str, gib: float, kld: float) -> CurvePoint:
    forecast = Forecast(kld, kld / 1.2, kld * 1.2)
    return CurvePoint(name, int(gib * (1 << 30)), gib, kld, None if name else 0.001, forecast)


CURVE = Curve(
    "some-model", 8 << 30, (point("", 2, 0.4), point("", 4, 0.04), point("", 8, 0.001)),
    (point("Q4_K_M", 4.8, 0.05),), "prior by role and depth", CREDIT, ("blocks that draft",), (),
)  # fmt: skip
LOSS = FileDamage(
    "some-model, Q4_K_M",
    (
        TensorDamage("token_embd.weight", "q4_K", 100, 0.01),
        TensorDamage("blk.0.attn_q.weight", "q4_K", 10, 0.02),
        TensorDamage("blk.1.attn_q.weight", "q6_K", 20, 0.001),
        TensorDamage("blk.1.attn_norm.weight", "f32", 1, 0.0),
    ),
    0.05, 0.04, 0.06, "prior by role and depth", CREDIT,
)  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_the_curve_says_what_is_predicted_and_whose_numbers_these_are(theme: str, tmp_path: Path) -> None:
    drawing = draw_frontier(CURVE, published=[Published("q4_K", 4.5, 0.06, "measured by somebody")])
    path = tmp_path / "a.svg"
    drawing.save(path, theme)  # type: ignore[arg-type]
    text = path.read_text()
    for words in (
        "best of its size, predicted", "stock mix, predicted", "published, measured by others", "Thireus",
        "Line and hollow: predicted", "measured by somebody", "Q4_K_M: 4.80 GiB", "0.05 predicted",
        "q4_K: 4.500 bpw, KL divergence 0.06 published", "blocks that draft",
    ):  # fmt: skip
        assert words in text.replace("\n", " "), words


def test_published_points_lie_at_their_size() -> None:
    drawing = draw_frontier(CURVE, published=[Published("q4_K", 4.0, 0.06)])
    (ax, *_) = drawing.figure.axes
    places = [tuple(map(float, (line.get_xdata()[0], line.get_ydata()[0])))  # type: ignore[index]
              for line in ax.lines if line.get_marker() == "^"]  # fmt: skip
    assert places == [(pytest.approx(4.0), pytest.approx(0.06))]


def test_a_curve_without_weights_has_no_sizes_for_bits() -> None:
    from dataclasses import replace

    with pytest.raises(ChartError, match="does not say how many weights"):
        draw_frontier(replace(CURVE, n_weights=0), published=[Published("q4_K", 4.0, 0.06)])
    with pytest.raises(ChartError, match="no point of the curve"):
        draw_frontier(replace(CURVE, points=(point("", 2, 0.0),)))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_where_the_loss_is(theme: str, tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    draw_damage(LOSS).save(path, theme)  # type: ignore[arg-type]
    text = path.read_text().replace("\n", " ")
    assert "blk.0.attn_q.weight: q4_K, 0.02 nats, 65 % of the loss" in text
    assert "Predicted, not measured" in text
    assert "Thireus" in text
    assert "attn_norm" not in text
    assert "68 %" in text  # of attn_q
    with pytest.raises(ChartError, match="nothing is lost"):
        draw_damage(FileDamage("none", LOSS.tensors[3:], 0, 0, 0, ""))


def test_charts_of_what_optimize_writes(tmp_path: Path) -> None:
    curve, answer, table = (tmp_path / name for name in ("curve.csv", "answer.json", "kld_results.csv"))
    done = run("optimize", "gpt-oss-20b", "--pareto", "--points", "3", "-o", curve, "-q")
    assert done.returncode == 0, done.stderr
    table.write_text("# by somebody else\nQTYPE,bpw,group0\nq8_0,8.6,0.004\niq1_bn,404,404\n")
    done = run("chart", curve, table, "-o", tmp_path / "a.svg", "--x", "bpw")
    assert done.returncode == 0, done.stderr
    assert "by somebody else" in (tmp_path / "a.svg").read_text()
    answer.write_text(run("optimize", "gpt-oss-20b", "--bpw", "5", "--json", "-q").stdout)
    assert run("chart", answer, "--kind", "damage", "-o", tmp_path / "b.svg").returncode == 0
    assert "gpt-oss-20b-5bpw" in (tmp_path / "b.svg").read_text()
    assert json.loads(answer.read_text())["name"] == "gpt-oss-20b-5bpw"
    done = run("chart", "gpt-oss-20b", "-r", "Q4_K_M", "--kind", "damage", "-o", tmp_path / "c.png")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (["gpt-oss-20b", "--kind", "damage"], "-r is missing", 2),
        (["gpt-oss-20b", "Qwen3-8B", "--kind", "frontier"], "draws one model", 2),
        (["gpt-oss-20b", "--kind", "frontier", "-r", "Q4_K_M"], "-r belongs to", 2),
        (["not.json", "--kind", "damage"], "is no answer of `ggplan optimize --json`", 1),
        (["missing.json", "--kind", "damage"], "missing.json", 1),
    ],
)
def test_what_is_refused(arguments: list[str], told: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "not.json").write_text('{"schema": "ggplan.plan/1"}')
    given = [str(tmp_path / a) if a.endswith(".json") else a for a in arguments]
    done = run("chart", *given, "-o", tmp_path / "a.svg")
    assert done.returncode == code
    assert told in done.stderr
    assert not (tmp_path / "a.svg").exists()
