"""Rules without effect."""

from ggplan.rules import dead_rules, match, parse_recipe, render, shadowed_rules

TENSORS = [
    "output.weight",
    *(f"blk.{i}.{role}.weight" for i in range(3) for role in ("attn_output", "attn_q")),
]


def first_match(matches: tuple[tuple[int, ...], ...]) -> list[int | None]:
    return [hits[0] if hits else None for hits in matches]


def test_a_rule_without_tensors_is_dead() -> None:
    recipe = parse_recipe("attn = q8_0\nffn_up = q4_K\noutput = f16\na=q8_0,b=q4_K", "x.recipe")
    first, second = dead_rules(recipe, match(recipe, TENSORS))
    assert (first.code, first.line, first.column, first.length) == ("GP101", 2, 1, 6)
    assert first.severity == "warning"
    assert second.line == 4
    assert "one rule a line" in second.help
    assert len(dead_rules(recipe, match(recipe, []))) == 4


def test_an_unanchored_rule_that_swallows_another_is_named() -> None:
    recipe = parse_recipe("output\\.weight = q8_0\nattn_q = f16\nattn_output\\.weight = q4_K\n", "air.recipe")
    matches = match(recipe, TENSORS)
    (found,) = shadowed_rules(recipe, matches, first_match(matches))
    assert render(found, recipe.source_line(found.line)) == (
        "warning[GP102]: the rule never decides: line 1 takes all 3 tensors it matches\n"
        " --> air.recipe:3:1\n"
        "  |\n"
        "3 | attn_output\\.weight = q4_K\n"
        "  | ^^^^^^^^^^^^^^^^^^^\n"
        "  = help: the first match wins: anchor the pattern of line 1 with `^`, or put this rule above it"
    )


def test_several_rules_may_shadow_one() -> None:
    recipe = parse_recipe("^output = f16\nattn_q = q8_0\nattn_o = q8_0\nweight = q4_K\n")
    matches = match(recipe, TENSORS)
    (found,) = shadowed_rules(recipe, matches, first_match(matches))
    assert found.message == (
        "the rule never decides: rules above take all 7 tensors it matches, first line 1 (1)"
    )
    assert "narrow" in found.help


def test_the_only_tensor_may_be_taken() -> None:
    recipe = parse_recipe("^output = f16\n^output = q8_0\n")
    matches = match(recipe, TENSORS)
    (found,) = shadowed_rules(recipe, matches, first_match(matches))
    assert found.message == "the rule never decides: line 1 takes the only tensor it matches"


def test_rules_that_the_planner_passed_over_are_not_shadowed() -> None:
    recipe = parse_recipe("attn = q8_0\nweight = f32\n")
    matches = match(recipe, TENSORS)
    # The planner gave attention to the second rule: the first was passed over, the second decides.
    assert shadowed_rules(recipe, matches, [1] * len(TENSORS)) == ()
    assert shadowed_rules(recipe, matches, [None] * len(TENSORS)) == ()


def test_a_rule_may_lose_some_to_others_and_some_to_protection() -> None:
    recipe = parse_recipe("attn_q = q8_0\nattn = q4_K\n")
    matches = match(recipe, TENSORS)
    deciding = [0 if "attn_q" in name else None for name in TENSORS]
    (found,) = shadowed_rules(recipe, matches, deciding)
    assert found.message == (
        "the rule never decides: line 1 takes 3 of the 6 tensors it matches, the others are protected"
    )


def test_a_rule_that_decides_one_tensor_is_not_reported() -> None:
    recipe = parse_recipe("blk = q8_0\nweight = f16")
    matches = match(recipe, TENSORS)
    assert shadowed_rules(recipe, matches, first_match(matches)) == ()
    assert dead_rules(recipe, matches) == ()
