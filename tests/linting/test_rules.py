"""What every rule of the linter keeps: a page that is true, one severity, and the same words everywhere."""

import ast
import difflib
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from ggplan import Model
from ggplan.inventories import inventories, inventory
from ggplan.linting import check_plan, check_recipe, lint_rules
from ggplan.linting.case import make_case
from ggplan.linting.check import check_text
from ggplan.linting.rule import LintRule
from ggplan.linting.trials import Trials
from ggplan.planning import make_plan
from ggplan.rules import InvalidRecipeError, load_recipe, parse_recipe, shipped_recipes

ROOT = Path(__file__).parents[2]
RULES = lint_rules()
DENSE = {"GP106"}  # codes whose example is for a model without experts


def test_every_code_is_documented_with_its_page() -> None:
    page = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    for code, rule in RULES.items():
        assert rule.page in page, "run tools/make_docs.py"
        assert f"| [{code}](#" in page
        assert f"| {rule.title} |" in page
    assert re.findall(r"^## (GP\d+)", page, re.MULTILINE) == list(RULES)
    assert list(RULES) == sorted(RULES)


def test_every_code_that_is_raised_has_a_page() -> None:
    for module in (ROOT / "ggplan").rglob("*.py"):
        text = module.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "GP" in text else ():
            if isinstance(node, ast.Constant) and re.fullmatch(r"GP\d\d\d", str(node.value)):
                assert node.value in RULES, module


def test_a_rule_is_one_module_named_after_its_first_code() -> None:
    homes: dict[str, list[str]] = {}
    for module in (ROOT / "ggplan" / "linting" / "rules").glob("gp*.py"):
        codes = re.findall(r"^(GP\d{3}) = LintRule", module.read_text(encoding="utf-8"), re.MULTILINE)
        assert module.name.startswith(f"{min(codes).lower()}_")
        for code in codes:
            homes.setdefault(code, []).append(module.name)
    assert {code: len(modules) for code, modules in homes.items()} == dict.fromkeys(RULES, 1)
    assert all(rule.title and rule.why for rule in RULES.values())


def test_rules_yield_to_rules_that_exist() -> None:
    for rule in RULES.values():
        assert set(rule.yields_to) < set(RULES)
        assert rule.check is not None or (rule.severity, rule.code < "GP017") == ("error", True)


@pytest.mark.parametrize("code", [code for code, rule in RULES.items() if rule.instead])
def test_what_a_page_tells_to_write_is_a_recipe(code: str) -> None:
    recipe = RULES[code].instead
    if "@include" not in recipe:
        parse_recipe(recipe)


@pytest.mark.parametrize("code", [code for code, rule in RULES.items() if rule.example and not rule.check])
def test_the_example_of_an_error_has_its_mistake(code: str) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(RULES[code].example)
    assert [d.code for d in caught.value.diagnostics] == [code]


@pytest.mark.parametrize("code", [code for code, rule in RULES.items() if rule.example and rule.check])
def test_the_example_of_a_rule_has_its_mistake_and_what_to_write_has_not(code: str) -> None:
    rule = RULES[code]
    model = inventory("Qwen3-8B" if code in DENSE else "GLM-4.5-Air")
    report = check_text(rule.example, "x.recipe", model=model)
    (severity,) = {d.severity for d in report.diagnostics if d.code == code}
    assert severity == rule.severity
    if rule.instead:
        report = check_text(rule.instead, "x.recipe", model=model)
        assert code not in {d.code for d in report.diagnostics}


@cache
def smallest_by_architecture() -> dict[str, Model]:
    models = sorted(map(inventory, inventories()), key=lambda model: -len(model.tensors))
    return {model.architecture: model for model in models}


@pytest.mark.parametrize("name", shipped_recipes())
def test_plan_and_rules_check_say_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(name)
    # GLM-4.7 has GLM-4.5's tensors.
    models = [inventory(model) for model in inventories() if model != "GLM-4.7"]
    turn = shipped_recipes().index(name)
    own = [model for model in models if model.architecture == recipe.architecture]
    own = own and [own[turn % len(own)]]
    families = smallest_by_architecture()
    others = [model for family, model in sorted(families.items()) if family != recipe.architecture]
    assert len(others) >= 5
    # Two of the others: each family has its turn with some recipe.
    others = [others[(2 * turn + i) % len(others)] for i in range(2)]
    # One it is for, with all fixes tried; then, to save time, the others with none, and no nearest names.
    for group in (own, others):
        for model in group:
            report = check_recipe(name, model)
            assert check_plan(make_plan(model, recipe)).diagnostics == report.diagnostics, model.path
        monkeypatch.setattr(Trials, "tried", lambda self, fixes: None)
        monkeypatch.setattr(difflib, "get_close_matches", lambda *_, **__: [])


def test_plan_and_rules_check_say_the_same_of_what_is_wrong() -> None:
    text = "output\\.weight = q8_0\nattn_output\\.weight = iq2_xs\nffn_down_exps = q6_K\nattn_v = f32\n"
    model = inventory("GLM-4.5-Air")
    report = check_text(text, "x.recipe", model=model)
    assert {d.code for d in report.diagnostics} >= {"GP102", "GP108", "GP201", "GP211"}
    assert check_plan(make_plan(model, parse_recipe(text, "x.recipe"))).diagnostics == report.diagnostics


@pytest.mark.parametrize(
    "docstring", ["GP999: a title\n    What it means.\n", "A line.\n\nGP999: a title\n", ""]
)
def test_a_rule_without_a_page_is_refused_at_import(docstring: str) -> None:
    rule = LintRule("GP999", "note")
    with pytest.raises(ValueError, match="no page of GP999"):
        rule.with_page(docstring)


def test_the_example_of_a_new_rule_in_the_contributing_guide_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "gp999_default.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("gp999_default")
    rule = module.GP999
    assert isinstance(rule, LintRule)
    page = rule.with_page(module.__doc__ or "")
    assert page.check is not None
    model = inventory("GLM-4.5-Air")
    (finding,) = page.check(make_case(model, parse_recipe(page.example)))
    assert finding.message
    assert list(page.check(make_case(model, parse_recipe(page.instead)))) == []


def test_a_type_of_ik_llama_cpp_without_a_place_is_told_as_its() -> None:
    for target, told in (("", True), ("@target ik_llama.cpp\n", False)):
        text = f"@arch glm4moe\n{target}ffn_down_exps = iq4_ks\n@default q8_0\n"
        report = check_text(text, "x.recipe", None, inventory("GLM-4.5-Air"))
        found = [d for d in report.diagnostics if d.code in ("GP212", "GP201")]
        assert any("`@target ik_llama.cpp`" in d.message for d in found) == told


def test_findings_are_made_by_their_base() -> None:
    """A dataclass of its own would not take the place and the fixes, and fail once it finds something."""
    import importlib
    import pkgutil

    from ggplan.linting import rules
    from ggplan.linting.rule import Finding

    for module in pkgutil.iter_modules(rules.__path__):
        for value in vars(importlib.import_module(f"{rules.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Finding):
                assert value.__init__ is Finding.__init__, value
