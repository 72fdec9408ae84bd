r"""The recipe language: ordered rules `PATTERN = TYPE`, of which the first that matches a tensor decides.

    >>> recipe = parse_recipe(r"^blk\.\d+\.ffn_down_exps\.weight$ = q6_K | q8_0  # the costly half")
    >>> match(recipe, ["blk.7.ffn_down_exps.weight", "output.weight"])
    ((0,), ())

`parser` documents the grammar, `patterns` the regular expressions, `diagnostics` what errors look like.
"""

from __future__ import annotations

from ggplan.rules.codes import CODES
from ggplan.rules.diagnostics import Diagnostic, Edit, Fix, InvalidRecipeError, Severity, render
from ggplan.rules.lint import dead_rules, shadowed_rules
from ggplan.rules.loading import load_recipe, shipped_recipes
from ggplan.rules.matching import match
from ggplan.rules.parser import parse_recipe
from ggplan.rules.recipe import Assertion, Choice, Location, Recipe, Rule, TypeTest
from ggplan.rules.roles import ROLES, Blocks, roles_of

__all__ = [
    "CODES",
    "ROLES",
    "Assertion",
    "Blocks",
    "Choice",
    "Diagnostic",
    "Edit",
    "Fix",
    "InvalidRecipeError",
    "Location",
    "Recipe",
    "Rule",
    "Severity",
    "TypeTest",
    "dead_rules",
    "load_recipe",
    "match",
    "parse_recipe",
    "render",
    "roles_of",
    "shadowed_rules",
    "shipped_recipes",
]
