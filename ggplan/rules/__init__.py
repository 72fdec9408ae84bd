r"""The recipe language: ordered rules `PATTERN = TYPE`, of which the first that matches a tensor decides.

    >>> recipe = parse_recipe(r"^blk\.\d+\.ffn_down_exps\.weight$ = q6_K | q8_0  # the costly half")
    >>> match(recipe, ["blk.7.ffn_down_exps.weight", "output.weight"])
    ((0,), ())

`parser` documents the grammar, `patterns` the regular expressions, `diagnostics` what errors look like.
"""

from __future__ import annotations

from ggplan.rules.diagnostics import Diagnostic, Edit, Fix, InvalidRecipeError, Severity, render
from ggplan.rules.loading import load_recipe, shipped_recipes
from ggplan.rules.matching import match
from ggplan.rules.parser import parse_recipe
from ggplan.rules.recipe import Assertion, Choice, Keep, Location, Recipe, Rule, TypeTest
from ggplan.rules.roles import ROLES, Blocks, roles_of

__all__ = [
    "ROLES",
    "Assertion",
    "Blocks",
    "Choice",
    "Diagnostic",
    "Edit",
    "Fix",
    "InvalidRecipeError",
    "Keep",
    "Location",
    "Recipe",
    "Rule",
    "Severity",
    "TypeTest",
    "load_recipe",
    "match",
    "parse_recipe",
    "render",
    "roles_of",
    "shipped_recipes",
]
