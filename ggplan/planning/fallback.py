"""Fallbacks: the type that an engine writes if a row does not hold whole blocks of the type asked for.

Only the row's length counts (ggml's ne0). A type's row in `ggplan.ggml_types` names its fallback in either
engine. They differ if ik_llama.cpp has a type of its own (`q6_0`) or prefers `iq4_nl`, and if no
fallback fits: then ik_llama.cpp stops; llama.cpp writes f16, and stops only for types with blocks longer than
32 for which it names no fallback (nvfp4, q1_0).
"""

from __future__ import annotations

from typing import Literal

from ggplan.errors import PlanError
from ggplan.ggml_types import F16, GgmlType, parse_type
from ggplan.rules import Recipe

FallbackTable = Literal["llama.cpp", "ik"]


def table_of(recipe: Recipe | None) -> FallbackTable:
    """The table of the engine that the recipe's `@target` names; llama.cpp's where it names none."""
    return "ik" if recipe is not None and recipe.target == "ik_llama.cpp" else "llama.cpp"


def fallback_type(asked: GgmlType, n_columns: int, table: FallbackTable) -> GgmlType:
    """The type that takes the place of `asked` for rows of `n_columns` weights.

    Raises
    ------
    PlanError
        If the engine of the table would stop, too.
    """
    name = asked.ik_fallback if table == "ik" else asked.fallback
    found = parse_type(name) if name else None
    if found is not None and found.fits(n_columns):
        return found
    if table == "llama.cpp" and (found is not None or asked.block_size <= 32):
        return F16
    engine, last = ("ik_llama.cpp", "| f16") if table == "ik" else ("llama.cpp", "| q8_0 | f16")
    raise PlanError(
        f"rows of {n_columns} do not fit {asked.name} ({remainder(asked, n_columns)}), "
        f"and {engine} has no fallback for that",
        hint=f"give the rule a chain that ends in a type that fits, such as `{last}`",
    )


def remainder(asked: GgmlType, n_columns: int) -> str:
    """The arithmetic that forbids a type: `1408 % 256 = 128`."""
    return f"{n_columns} % {asked.block_size} = {n_columns % asked.block_size}"
