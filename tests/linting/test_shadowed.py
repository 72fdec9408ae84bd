"""Rules without effect: what matches nothing, and what never decides."""

from pathlib import Path

from ggplan import Model, TensorInfo, parse_recipe, parse_type
from ggplan.linting import lint_rules
from ggplan.linting.case import make_case
from ggplan.linting.engine import diagnostic
from ggplan.rules import Diagnostic, render

TENSORS = [
    "output.weight",
    *(f"blk.{i}.{role}.weight" for i in range(3) for role in ("attn_output", "attn_q")),
]
RECIPE = "air.recipe"


def found(code: str, text: str, tensors: list[str] = TENSORS, protected: str = "nothing") -> list[Diagnostic]:
    """The findings of one rule; tensors whose names hold `protected` are vectors."""
    shapes = {name: (256,) if protected in name else (256, 256) for name in tensors}
    infos = tuple(TensorInfo(n, s, parse_type("bf16"), "x.map", "bf16") for n, s in shapes.items())
    case = make_case(Model(Path("x.map"), "inventory", "", {}, infos), parse_recipe(text, RECIPE))
    rule = lint_rules()[code]
    assert rule.check is not None
    return [diagnostic(rule, finding, None) for finding in rule.check(case)]


def test_a_rule_without_tensors_is_dead() -> None:
    text = "attn = q8_0\nffn_up = q4_K\noutput = f16\na=q8_0,b=q4_K"
    first, second = found("GP101", text)
    assert (first.code, first.line, first.column, first.length) == ("GP101", 2, 1, 6)
    assert first.severity == "warning"
    assert second.line == 4
    assert "one rule a line" in second.help
    assert len(found("GP101", text, [])) == 4


def test_an_unanchored_rule_that_swallows_another_is_named() -> None:
    text = "output\\.weight = q8_0\nattn_q = f16\nattn_output\\.weight = q4_K\n"
    (shadowed,) = found("GP102", text)
    assert render(shadowed, text.split("\n")[shadowed.line - 1]) == (
        "warning[GP102]: the rule never decides: line 1 takes all 3 tensors it matches\n"
        " --> air.recipe:3:1\n"
        "  |\n"
        "3 | attn_output\\.weight = q4_K\n"
        "  | ^^^^^^^^^^^^^^^^^^^\n"
        "  = help: the first match wins: anchor the pattern of line 1 with `^`, or put this rule above it"
    )


def test_several_rules_may_shadow_one() -> None:
    (shadowed,) = found("GP102", "^output = f16\nattn_q = q8_0\nattn_o = q8_0\nweight = q4_K\n")
    assert shadowed.message == (
        "the rule never decides: rules above take all 7 tensors it matches, first line 1 (1)"
    )
    assert "narrow" in shadowed.help


def test_the_only_tensor_may_be_taken() -> None:
    text = "^output = f16\noutput\\.weight$|blk\\.9 = q8_0\n"
    (shadowed,) = found("GP102", text, ["output.weight", "output_norm.weight"])
    assert shadowed.message == "the rule never decides: line 1 takes the only tensor it matches"


def test_rules_that_are_passed_over_are_not_shadowed() -> None:
    # Attention goes to the second rule: the first was passed over, the second decides.
    assert found("GP102", "attn = q8_0\nweight = f32\n", protected="attn") == []
    assert found("GP102", "attn = q8_0\nweight = q4_K\n", protected="weight") == []


def test_a_rule_may_lose_some_to_others_and_some_to_protection() -> None:
    (shadowed,) = found("GP102", "attn_q = q8_0\nattn = q4_K\n", protected="attn_output")
    assert shadowed.message == (
        "the rule never decides: line 1 takes 3 of the 6 tensors it matches, the others are protected"
    )


def test_a_rule_that_decides_one_tensor_is_not_reported() -> None:
    assert found("GP102", "blk = q8_0\nweight = f16") == []
    assert found("GP101", "blk = q8_0\nweight = f16") == []
