"""A file made by a recipe of several files can be proved from itself alone."""

import importlib.resources
from pathlib import Path

import pytest

import ggplan
from ggplan.errors import Error
from ggplan.metadata import string
from ggplan.verification.exactness import plan_again, prove

DEMO = str(importlib.resources.files("ggplan") / "demo_model")


@pytest.fixture
def made(tmp_path: Path) -> ggplan.Plan:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "norms.recipe").write_text("_norm\\.weight$ = f32\n@include more.recipe\n")
    (tmp_path / "common" / "more.recipe").write_text("attn_output = q5_0\n")
    (tmp_path / "top.recipe").write_text(
        "@include common/norms.recipe\n@base glm4moe/hq4_k\n@let A = attn_(q|k)\n${A}\\.weight$ = q4_0\n"
    )
    model = ggplan.open_model(DEMO, pre="glm4")
    return ggplan.make_plan(model, ggplan.load_recipe(tmp_path / "top.recipe"))


def test_the_parts_are_recorded_without_their_place(made: ggplan.Plan, tmp_path: Path) -> None:
    parts = made.metadata["ggplan.recipe.parts"].decode()
    assert isinstance(parts, str)
    assert "common/norms.recipe" in parts
    assert str(tmp_path) not in parts


def test_the_file_proves_itself(made: ggplan.Plan, tmp_path: Path) -> None:
    for part in tmp_path.rglob("*.recipe"):
        part.unlink()
    target = tmp_path / "elsewhere" / "out.gguf"
    target.parent.mkdir()
    ggplan.convert(made, target)
    written = ggplan.open_model(target)
    again = plan_again(written, ggplan.open_model(DEMO, pre="glm4"))
    assert [t.type for t in again.tensors] == [t.type for t in made.tensors]
    assert prove(written, again) == []


@pytest.mark.parametrize("parts", ["", "[", "[1]", '{"common/norms.recipe": "a = q8_0"}'])
def test_parts_that_are_not_the_recorded_ones_are_refused(
    made: ggplan.Plan, parts: str, tmp_path: Path
) -> None:
    target = tmp_path / "out.gguf"
    made.metadata["ggplan.recipe.parts"] = string(parts)
    ggplan.convert(made, target)
    with pytest.raises(Error, match="recorded"):
        plan_again(ggplan.open_model(target), ggplan.open_model(DEMO, pre="glm4"))
