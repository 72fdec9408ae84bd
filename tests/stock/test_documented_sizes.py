"""docs/stock-mixes.md says what the mixes really give."""

import re
from pathlib import Path

import pytest

import ggplan
from ggplan.errors import RecipeError
from ggplan.inventories import inventory
from ggplan.stock import ALIASES, MIXES, Mix, find_mix, is_mix

PAGE = (Path(__file__).parent.parent.parent / "docs" / "stock-mixes.md").read_text(encoding="utf-8")


def size_of(mix: Mix, model: str) -> str:
    try:
        plan = ggplan.make_plan(inventory(model), mix)
    except ggplan.Error:
        return "no fallback"
    return f"{plan.tensor_bytes / 2**30:.2f} ({plan.bits_per_weight:.2f})"


def test_the_table_of_sizes() -> None:
    table = re.findall(r"^\| (.*) \|$", PAGE.partition("<!-- sizes -->")[2], re.MULTILINE)
    head, _, *rows = [[cell.strip() for cell in row.split("|")] for row in table]
    assert [row[0] for row in rows] == [mix.name for mix in MIXES]
    for row, mix in zip(rows, MIXES, strict=True):
        assert row[1] == mix.type.name
        assert row[2:] == [size_of(mix, model) for model in head[2:]]


def test_the_recipe_shown() -> None:
    mix = find_mix("Q4_K_M")
    recipe = ggplan.make_plan(inventory("GLM-4.5-Air"), mix).recipe
    assert recipe is not None
    assert f"```text\n{recipe.text}```" in PAGE


@pytest.mark.parametrize(("short", "name"), [*ALIASES.items(), (" q4_k_m ", "Q4_K_M"), ("iq1_s", "IQ1_S")])
def test_names_are_found_in_any_case(short: str, name: str) -> None:
    assert is_mix(short)
    assert find_mix(short).name == name
    unknown = f"{short}x"
    assert not is_mix(unknown)
    with pytest.raises(RecipeError, match="has no mix") as caught:
        find_mix(unknown)
    assert caught.value.hint == f"the nearest is {short.strip().upper()}"


def test_the_numbers_are_those_of_gguf() -> None:
    from gguf import LlamaFileType

    numbers = {
        member.name.removeprefix("MOSTLY_").removeprefix("ALL_"): member.value for member in LlamaFileType
    }
    known = {mix.name: mix.file_type for mix in MIXES if mix.name in numbers}
    assert len(known) >= 32
    assert known == {name: numbers[name] for name in known}
