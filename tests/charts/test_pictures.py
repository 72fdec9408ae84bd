"""What a reader sees in the charts: colours that can be told apart, room for all, one look for one thing."""

import dataclasses
import importlib.util
import re
import xml.etree.ElementTree as ET
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_mixes import MIXES, quantization, record
from matplotlib.colors import to_hex

import ggplan
from ggplan.charts import Drawing, draw_context, draw_parts, draw_quality, draw_types
from ggplan.charts.style import BACKGROUND, MUTED, SERIES, TEXT, contrast, ink_of_bits, ink_on, marks_of
from ggplan.ggml_types import TYPES
from ggplan.inventories import inventory
from ggplan.measure import Metric, Quantization, Record
from ggplan.measure.record import FileFacts, ModelFacts, Part, Speed
from ggplan.planning import Plan, assign

SVG = "{http://www.w3.org/2000/svg}"
THEMES = ("light", "dark")


def texts_of(drawing: Drawing) -> list[str]:
    return ["".join(t.itertext()).strip() for t in ET.fromstring(drawing.to_svg("light")).iter(f"{SVG}text")]


def boxes_of(labels: list[Any]) -> list[Any]:
    return [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]


@cache
def plan_of(recipe: str) -> Plan:
    return ggplan.make_plan(inventory("GLM-4.5-Air"), f"glm4moe/{recipe}")


@cache
def types_of_plan() -> Drawing:
    return draw_types(plan_of("hq4_k"))


@cache
def one_of_each() -> tuple[Drawing, ...]:
    plan = ggplan.make_plan(inventory("Llama-3.1-8B"), "Q4_K_M")
    return (draw_quality(MIXES), draw_parts(MIXES), draw_context(MIXES), draw_types(plan))


def authored(q: Quantization, author: str) -> Quantization:
    return dataclasses.replace(q, author=author)


@pytest.mark.parametrize("theme", THEMES)
def test_every_type_can_be_seen_on_the_background_and_its_name_on_it(theme: str) -> None:
    for type_ in TYPES:
        fill = ink_of_bits(type_.bits_per_weight)
        assert contrast(getattr(fill, theme), getattr(BACKGROUND, theme)) >= 3, type_.name
        assert contrast(getattr(ink_on(fill), theme), getattr(fill, theme)) >= 4.5, type_.name


@pytest.mark.parametrize("theme", THEMES)
def test_more_bits_stand_out_more(theme: str) -> None:
    contrasts = [
        contrast(getattr(ink_of_bits(bits), theme), getattr(BACKGROUND, theme))
        for bits in np.geomspace(1.5, 32, 60)
    ]
    assert all(b > a for a, b in pairwise(contrasts))


@pytest.mark.parametrize("theme", THEMES)
def test_all_text_can_be_read(theme: str) -> None:
    for ink in (TEXT, MUTED, *SERIES):
        assert contrast(getattr(ink, theme), getattr(BACKGROUND, theme)) >= 4.5, ink


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES)
def test_what_is_drawn_of_types_has_contrast(theme: str) -> None:
    """In the file itself, not only in the table of colours."""
    drawing = types_of_plan()
    root = ET.fromstring(drawing.to_svg(theme))  # type: ignore[arg-type]
    cells = [g for g in root.iter(f"{SVG}g") if g.get("id", "").startswith("cell-")]
    assert len(cells) > 300
    fills = set()
    for cell in cells:
        (path,) = cell.iter(f"{SVG}path")
        fills.add(re.search(r"fill: (#[0-9a-f]{6})", path.get("style", ""))[1])  # type: ignore[index]
    assert len(fills) == 4
    assert all(contrast(fill, getattr(BACKGROUND, theme)) >= 3 for fill in fills)


def test_types_with_equal_bits_have_different_letters() -> None:
    recipe = ggplan.parse_recipe(
        "blk\\.\\d*[02468]\\.ffn_up = q4_K\nffn_up = iq4_nl\n@default q8_0", "alternating"
    )
    model = inventory("Qwen3-32B")
    drawing = draw_types(model, assign(model, recipe))
    assert ink_of_bits(4.5) in drawing.inks
    written = texts_of(drawing)
    assert {"q4_K", "iq4_nl", "q8_0"} <= set(written)
    assert written.count("A") == 33  # one of the legend
    assert written.count("B") == 33


def test_embeddings_and_output_are_drawn() -> None:
    drawing = types_of_plan()
    said = list(drawing.titles.values())
    assert any(t.startswith("token_embd.weight: bf16") for t in said)
    assert any(t.startswith("output.weight: bf16") for t in said)
    assert any(t.startswith("blk.46.nextn.eh_proj: bf16") for t in said)
    assert {"token_embd", "output"} <= set(texts_of(drawing))
    assert "<td>token_embd.weight</td><td></td><td>bf16</td>" in drawing.table


def test_a_model_is_drawn_as_it_is_stored() -> None:
    said = draw_types(inventory("GLM-4.5-Air")).titles.values()
    assert all("bf16" in t or "f32" in t for t in said)


def test_small_parts_are_named_below_the_bar() -> None:
    drawing = draw_parts(plan_of("hq4_k"))
    written = texts_of(drawing)
    assert {"q4_K", "q8_0"} <= set(written)
    assert any(t.startswith("shared experts bf16 1.45 GiB") for t in written)
    assert any(t.startswith("norms and small f32") for t in written)
    assert any("81.3 GiB, 6.32 bpw" in t for t in written)
    assert "too narrow" in drawing.description
    wide = Quantization("q", parts=(Part("attention", "q8_0", 10, 10), Part("output", "q4_K", 10, 20)))
    assert "too narrow" not in draw_parts(Record(ModelFacts("m"), (wide,))).description


def test_notes_below_a_bar_keep_apart() -> None:
    plans = [plan_of(recipe) for recipe in ("hq4_k", "small")]
    drawing = draw_parts([*plans, MIXES])
    boxes = boxes_of(drawing.figure.axes[0].texts)
    assert len(boxes) > 15
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    right = drawing.figure.get_window_extent().x1
    assert all(box.x1 <= right for box in boxes)


def test_a_role_has_one_colour_in_all_charts() -> None:
    def colour_of(role: str, *parts: Part) -> str:
        q = Quantization("q", parts=parts)
        drawing = draw_parts(Record(ModelFacts("m"), (q,)))
        (gid,) = [g for g, title in drawing.titles.items() if title.startswith(role)]
        (patch,) = [p for p in drawing.figure.axes[0].patches if p.get_gid() == gid]
        return to_hex(patch.get_facecolor())

    small, large = Part("attention", "q8_0", 10, 10), Part("output", "q4_K", 100, 200)
    assert colour_of("attention", small) == colour_of("attention", small, large)


def test_the_base_and_its_perplexity_stand_in_the_caption() -> None:
    assert "Base: bf16, perplexity 20 ± 0.5." in draw_quality(MIXES).description
    alone = record(quantization("q4_K", 4.5, 0.03))
    assert "Base: bf16." in draw_quality(alone).description


@pytest.mark.parametrize(("x", "words"), [("size", "size"), ("bpw", "bits per weight"), ("speed", "speed")])
def test_the_heading_follows_the_axis(x: Any, words: str) -> None:
    assert draw_quality(MIXES, x=x).title.startswith(f"Air: KL divergence against {words}")


def test_long_headings_and_names_stay_inside() -> None:
    names = [f"GLM-4.5-Air-of-somebody-{'x' * 40}-Q{i}_K-and-a-long-{'y' * 40}-end" for i in range(2, 8)]
    long = record(*(quantization(n, 2 + i, 0.3 / 2**i) for i, n in enumerate(names)))
    title = "a heading " * 30 + "w" * 300
    for drawing in (draw_quality(long, title=title), draw_parts(long, title=title), draw_context(long)):
        frame = drawing.figure.get_window_extent()
        artists = [*drawing.figure.texts, *(t for ax in drawing.figure.axes for t in ax.texts)]
        for box in boxes_of(artists):
            assert frame.x0 - 1 <= box.x0 <= box.x1 <= frame.x1 + 1
            assert frame.y0 - 1 <= box.y0 <= box.y1 <= frame.y1 + 1
    written = " ".join(texts_of(draw_quality(long)))
    assert all(f"Q{i}_K" in written for i in range(2, 8))


@pytest.mark.parametrize("metric", ["kld", "dppl", "ppl"])
def test_error_bars_are_inside_the_axes(metric: Any) -> None:
    wide = [
        dataclasses.replace(
            q,
            measurements=tuple(
                dataclasses.replace(m, metrics=with_errors(m.metrics)) for m in q.measurements
            ),
        )
        for q in MIXES.quantizations
    ]
    drawing = draw_quality(record(*wide), metric=metric)
    low, high = drawing.figure.axes[0].get_ylim()
    ends = [
        float(y)
        for collection in drawing.figure.axes[0].collections
        for path in collection.get_paths()
        for y in path.vertices[:, 1]
    ]
    assert len(ends) >= 12
    assert high >= max(ends)
    assert low <= min(e for e in ends if e > 0 or drawing.figure.axes[0].get_yscale() != "log")


def with_errors(metrics: Any) -> dict[str, Metric]:
    return {
        name: dataclasses.replace(m, error=0.6 * abs(m.value), method="paired chunks")
        for name, m in metrics.items()
    }


def test_both_panels_have_one_scale() -> None:
    def both(name: str, gib: float, chosen: float, held: float) -> Quantization:
        a, b = quantization(name, gib, chosen, "choose"), quantization(name, gib, held, "held out")
        return dataclasses.replace(a, measurements=(*a.measurements, *b.measurements))

    two = record(both("A", 4, 0.01, 0.3), both("B", 5, 0.02, 0.2), both("C", 40, 0.001, 0.19))
    left, right = (ax for ax in draw_quality(two).figure.axes if ax.get_title(loc="left"))
    assert left.get_ylim() == right.get_ylim()
    assert left.get_xlim() == right.get_xlim()
    assert (
        (left.get_xscale(), left.get_yscale()) == (right.get_xscale(), right.get_yscale()) == ("log", "log")
    )


@pytest.mark.parametrize("largest", [2.7, 3.3, 11, 90, 900, 40000])
def test_ticks_keep_apart(largest: float) -> None:
    mixes = record(*(quantization(f"m{i}", s, 1 / s) for i, s in enumerate((2.6, largest / 2, largest))))
    for x in ("size", "bpw", "speed"):
        for ax in draw_quality(mixes, x=x).figure.axes:  # type: ignore[arg-type]
            for axis in (ax.xaxis, ax.yaxis):
                boxes = boxes_of(axis.get_ticklabels())
                assert len(boxes) != 1
                assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_sizes_have_one_unit() -> None:
    small = record(*(quantization(q.name, q.bpw / 100, 0.1) for q in MIXES.quantizations))
    written = texts_of(draw_quality(small, x="bpw"))
    assert "size (MiB)" in written
    assert not any("GiB" in t for t in written)
    tooltips = draw_quality(small).titles.values()
    assert all("MiB" in t for t in tooltips)


def test_an_author_has_one_colour_in_all_charts() -> None:
    def colour_of(author: str, *others: str) -> str:
        mixes = [
            authored(quantization(f"mix of {a}", 3 + i, 0.1 / (i + 1)), a)
            for i, a in enumerate((author, *others))
        ]
        drawing = draw_quality(record(*mixes))
        (gid,) = [g for g, title in drawing.titles.items() if f"by {author}:" in title]
        (line,) = [item for item in drawing.figure.axes[0].lines if item.get_gid() == gid]
        return to_hex(line.get_color())

    alone = colour_of("ubergarm")
    assert alone == colour_of("ubergarm", "bartowski", "Aaron", "zoe", "unsloth")
    assert alone != colour_of("bartowski")
    assert marks_of(["UberGarm"])["UberGarm"].ink.light == alone


def test_authors_of_one_colour_have_different_shapes() -> None:
    marks = marks_of([f"author {i}" for i in range(40)])
    assert len({(mark.ink, mark.marker) for mark in marks.values()}) == 40


def test_every_author_is_in_the_legend() -> None:
    names = ["_hidden", "$\\frac{1}$", "", *(f"author {i}" for i in range(9))]
    mixes = [authored(quantization(f"m{i}", 3 + i, 0.1 / (i + 1)), a) for i, a in enumerate(names)]
    assert {"_hidden", "$\\frac{1}$", "no author", "author 8"} <= set(texts_of(draw_quality(record(*mixes))))


def test_a_context_chart_has_one_colour_for_an_author_too() -> None:
    slow = dataclasses.replace(
        authored(quantization("b", 6, 0.1), "ubergarm"),
        speeds=(Speed(0, 500.0, 8.0), Speed(8192, 300.0, 6.0)),
    )
    fast = authored(quantization("a", 4, 0.1), "bartowski")
    drawing = draw_context(record(fast, slow))
    colours = {line.get_gid(): to_hex(line.get_color()) for line in drawing.figure.axes[0].lines}
    assert colours["pp-1"] == marks_of(["ubergarm"])["ubergarm"].ink.light
    assert colours["pp-0"] == marks_of(["bartowski"])["bartowski"].ink.light
    assert {"a by bartowski", "b by ubergarm"} <= set(texts_of(drawing))


def test_one_point_and_ties_draw() -> None:
    assert draw_quality(record(quantization("only", 4.2, 0.01))).titles.keys() == {"p0-0"}
    same = record(quantization("a", 4, 0.01), quantization("b", 4, 0.01))
    assert {"a", "b"} <= set(texts_of(draw_quality(same)))
    low, high = draw_quality(record(quantization("only", 4.2, 0.01))).figure.axes[0].get_ylim()
    assert 0 < low < 0.01 < high < 0.03


def test_hundreds_of_layers_and_tensors_draw(tmp_path: Path) -> None:
    shape = (64, 256)
    lines = [
        f"a.gguf:{'0' * 64}:blk.{layer}.kind_{kind}.weight:shape=(256, 64)"
        ":dtype=bf16:elements=16384:bytes=32768"
        for layer in range(130)
        for kind in range(4)
    ]
    (tmp_path / "big.map").write_text("\n".join(lines) + "\n")
    model = ggplan.open_model(tmp_path / "big.map")
    assert model.tensors[0].shape == shape
    drawing = draw_types(model)
    assert len(drawing.titles) == 520
    ticks = boxes_of(drawing.figure.axes[0].get_xticklabels())
    assert not any(a.overlaps(b) for i, a in enumerate(ticks) for b in ticks[:i])


def test_a_drawing_shows_itself_and_is_not_changed_by_saving(tmp_path: Path) -> None:
    drawing = draw_quality(MIXES)
    assert isinstance(drawing, Drawing)
    shown = drawing._repr_svg_()
    drawing.save(tmp_path / "dark.png", "dark")
    assert drawing._repr_svg_() == shown
    drawing.save(tmp_path / "x.svg", "light")
    assert (tmp_path / "x.svg").read_text(encoding="utf-8") == shown
    assert repr(drawing) == "Drawing(title='Air: KL divergence against size')"


@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_every_svg_has_title_and_description(theme: Any) -> None:
    for drawing in one_of_each():
        root = ET.fromstring(drawing.to_svg(theme))
        assert root.get("role") == "img"
        assert root.findtext(f"{SVG}title") == drawing.title
        assert root.findtext(f"{SVG}desc") == drawing.description


def test_a_name_that_is_a_colour_stays_in_the_dark() -> None:
    named = record(quantization("#ffffff", 4, 0.01))
    assert "#ffffff" in "".join(ET.fromstring(draw_quality(named).to_svg("dark")).itertext())


def test_names_are_no_formulas() -> None:
    drawing = draw_quality(record(quantization("$\\undefined{", 4, 0.01), quantization("$a$ $b$", 5, 0.005)))
    assert {"$\\undefined{", "$a$ $b$"} <= set(texts_of(drawing))


def test_a_plan_shows_itself() -> None:
    plan = plan_of("hq4_k")
    assert repr(plan) == "<Plan: HQ4_K of GLM-4.5-Air, 803 tensors, at least 81.3 GiB, 6.323 bpw>"
    table = ET.fromstring(plan._repr_html_())
    rows = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    assert rows[0] == ["", "tensors", "weights", "size", "share", "bpw", "types"]
    assert ["shared experts", "135", "778,567,680", "1.45 GiB", "1.8%", "16.000", "bf16"] in rows
    hostile = dataclasses.replace(plan, assignment=dataclasses.replace(plan.assignment, name="<b>&"))
    assert "<b>" not in hostile._repr_html_()


def test_a_file_name_does_not_hide_a_size() -> None:
    """A file that is known by its name only has no size; the chart says how to give it one."""
    bare = [dataclasses.replace(q, file=FileFacts(q.file.name), bpw=0.0) for q in MIXES.quantizations]
    with pytest.raises(ggplan.Error, match="no point has a size") as caught:
        draw_quality(record(*bare))
    assert "--size NAME=24.6MiB" in str(caught.value.hint)


def test_the_picture_of_a_plan_is_what_is_printed_today(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "tools"))
    spec = importlib.util.spec_from_file_location("make_docs", root / "tools" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    shown = (root / "docs" / "plan.svg").read_text(encoding="utf-8")
    assert tool.plan_picture() == shown, "run tools/make_docs.py"


def test_the_picture_of_a_plan_fetches_nothing_and_fits_both_themes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "plan.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert not re.search(r"url\(|@import|@font-face|href", text)
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    assert "prefers-color-scheme: dark" in text
    assert "rect{fill:#ffffff" in text
