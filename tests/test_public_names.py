"""What a notebook and a type checker see of the library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ggplan
from ggplan.inventories import inventory

SOURCE = Path(ggplan.__file__)


def test_every_public_name_is_known_to_type_checkers() -> None:
    """The names that are imported at first use are those in the TYPE_CHECKING block, and no other."""
    (block,) = (
        node
        for node in ast.parse(SOURCE.read_text()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.asname: node.module for node in imports for alias in node.names}
    assert homes == {**ggplan._HOME, **dict.fromkeys(ggplan._PACKAGES, "ggplan")}
    assert set(ggplan.__all__) == {"__version__", *homes}
    for name in homes:
        assert getattr(ggplan, name) is not None


def test_type_checkers_catch_a_misspelt_name(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text("import ggplan\nggplan.open_model('a')\nggplan.open_modle('a')\n")
    # Of ggplan only the module that has the names is looked at.
    options = ["--follow-imports=skip", "--no-incremental"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(program), str(SOURCE)],
        capture_output=True,
        text=True,
        check=False,
        cwd=SOURCE.parent.parent,
    )
    assert 'program.py:3: error: Module has no attribute "open_modle"' in done.stdout
    assert "program.py:2" not in done.stdout


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_modle'; the nearest is open_model"):
        ggplan.open_modle  # type: ignore[attr-defined]  # noqa: B018


def test_a_misspelt_path_gets_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "GLM-4.5-Air.gguf").write_bytes(b"")
    with pytest.raises(ggplan.Error, match="does not exist") as caught:
        ggplan.open_model(tmp_path / "GLM-4.5-Aire.gguf")
    assert caught.value.hint == f"the nearest is {tmp_path / 'GLM-4.5-Air.gguf'}"
    assert caught.value.hint in str(caught.value)


def test_tensors_by_name() -> None:
    model = inventory("GLM-4.5-Air")
    assert model["token_embd.weight"].name == "token_embd.weight"
    assert "token_embd.weight" in model
    assert "token_embd" not in model
    assert tuple(model) == model.tensors
    with pytest.raises(KeyError, match=r"no tensor 'token_emb\.weight'; the nearest is 'token_embd\.weight'"):
        model["token_emb.weight"]


def test_a_model_in_one_line_and_as_a_table() -> None:
    model = inventory("GLM-4.5-Air")
    assert repr(model).startswith("<Model GLM-4.5-Air")
    assert "glm4moe, " in repr(model)
    assert "\n" not in repr(model)
    table = model._repr_html_()
    assert table.count("<tr>") == len({tensor.type for tensor in model.tensors}) + 1
    assert f"{len(model.tensors):,} tensors" in table


def test_names_in_a_notebook_are_text() -> None:
    import dataclasses

    model = dataclasses.replace(inventory("GLM-4.5-Air"), architecture="<b>x</b>", path=Path("<i>.gguf"))
    assert "<b>x" not in model._repr_html_()
    assert "<i>" not in model._repr_html_()


def test_a_name_where_a_model_belongs_says_how_to_open_it() -> None:
    for call in (ggplan.make_plan, ggplan.decide, ggplan.lay_out, ggplan.charts.draw_types):
        with pytest.raises(TypeError, match=r"'GLM-4\.5-Air' is not a model; ggplan\.open_model"):
            call("GLM-4.5-Air", "Q4_K_M")  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"'GLM-4\.5-Air' is not a plan; ggplan\.make_plan"):
        ggplan.convert("GLM-4.5-Air", "x.gguf")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is not a recipe; ggplan\.load_recipe"):
        ggplan.decide(ggplan.open_model("GLM-4.5-Air"), "glm4moe/hq4_k")  # type: ignore[arg-type]


def test_tensors_have_no_numbers() -> None:
    with pytest.raises(TypeError, match=r"by name, not by int; model\.tensors\[0\]"):
        ggplan.open_model("GLM-4.5-Air")[0]  # type: ignore[index]


def test_records_and_logs_are_taken_by_path(tmp_path: Path) -> None:
    table = tmp_path / "air.csv"
    table.write_text("quant,size,kld\nQ8_0,24 GiB,0.01\nQ4_K,12 GiB,0.1\n")
    (record,) = ggplan.measure.parse_files(str(table))
    drawn = ggplan.charts.draw_quality(record).to_svg()
    assert ggplan.charts.draw_quality(table).to_svg() == drawn
    assert ggplan.charts.draw_quality([str(table)]).to_svg() == drawn
    with pytest.raises(TypeError, match="3 is neither a record nor the path of one"):
        ggplan.charts.draw_quality(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": "siz"}, "x cannot be siz (help: the nearest is size)"),
        ({"metric": "delta_ln_ppl"}, "metric cannot be delta_ln_ppl"),
    ],
)
def test_a_misspelt_choice_of_a_chart_is_refused(tmp_path: Path, given: dict[str, str], said: str) -> None:
    (tmp_path / "a.csv").write_text("quant,size,kld\nQ8_0,24 GiB,0.01\n")
    with pytest.raises(ggplan.Error) as caught:
        ggplan.charts.draw_quality(tmp_path / "a.csv", **given)  # type: ignore[arg-type]
    assert said in str(caught.value)
    with pytest.raises(ggplan.Error, match="theme cannot be drak"):
        ggplan.charts.draw_quality(tmp_path / "a.csv").save(tmp_path / "x.png", "drak")  # type: ignore[arg-type]
    assert not (tmp_path / "x.png").exists()
