"""`keep` in the recipe language: how it is read, laid out and refused."""

from __future__ import annotations

import pytest

from ggplan.ggml_types import parse_type
from ggplan.rules import InvalidRecipeError, Keep, parse_recipe
from ggplan.rules.formatting import format_recipe

Q4_1 = parse_type("q4_1")


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("keep", (Keep(),)),
        ("KEEP", (Keep(),)),
        ("keep | q5_K", (Keep(), parse_type("q5_K"))),
        ("keep(q4_1)", (Keep(Q4_1),)),
        ("Keep ( Q4_1 ) | q5_K", (Keep(Q4_1), parse_type("q5_K"))),
        ("q4_K|keep", (parse_type("q4_K"), Keep())),
    ],
)
def test_it_stands_in_a_chain_in_any_case(written: str, wanted: tuple) -> None:
    recipe = parse_recipe(f"_exps = {written}\n@default {written}\n@role attention = {written}!")
    assert [rule.choice.types for rule in recipe.rules] == [wanted, wanted]
    assert recipe.default.types == wanted
    assert recipe.rules[1].choice.forced


def test_fmt_lays_it_out_as_a_type() -> None:
    text = "a=KEEP|Q5_k\nlonger   =  keep( Q4_1 )  # exact but for the minimum\n@default Keep\n"
    laid = format_recipe(text)
    assert laid == "a      = keep | q5_K\nlonger = keep(q4_1)  # exact but for the minimum\n@default keep\n"
    assert format_recipe(laid) == laid


@pytest.mark.parametrize(
    ("written", "meant"), [("kep", "keep"), ("Keeps", "keep"), ("kep(q4_1)", "keep(q4_1)")]
)
def test_the_nearest_word_is_told(written: str, meant: str) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(f"a = {written}\n@default q8_0")
    (told,) = caught.value.diagnostics
    assert told.message == f"unknown tensor type `{written}`"
    assert f"the nearest name is `{meant}`" in told.help
    assert told.fix is not None
    assert told.fix.edits[0].text == meant


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a = keep(q4_0)", "`keep(q4_0)` has no meaning"),
        ("a = keep(q9_9)", "unknown tensor type `q9_9`"),
        ("a = keep()", "unknown tensor type ``"),
        ("a = keep q4_1", "unknown tensor type"),
        ("@test blk.0.attn_q.weight -> keep", "`keep` is not one type"),
        ("@assert type(blk.0.attn_q.weight) == keep", "`keep` is not one type"),
    ],
)
def test_what_it_cannot_say_is_refused(line: str, message: str) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(line)
    assert message in caught.value.diagnostics[0].message


@pytest.mark.parametrize("word", ["copy", "kept", "same", "source", "original"])
def test_other_words_for_it_are_mended(word: str) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(f"a = {word}")
    found = caught.value.diagnostics[0]
    assert found.help == "write `keep`"
    assert found.fix.safe


def test_a_line_without_an_equals_sign_may_end_in_it() -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe("_exps: keep")
    assert "_exps = keep" in caught.value.diagnostics[0].help
