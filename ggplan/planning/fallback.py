"""What to do when a row does not hold whole blocks: the fallback tables of both engines.

Only the row's length counts (ggml's ne0). llama.cpp b11434: `src/llama-quant.cpp`,
`tensor_type_fallback`; ik_llama.cpp 8337e4c: `src/llama-quantize.cpp`. The two differ where ik_llama.cpp
has a type of its own (`q6_0`) or prefers `iq4_nl`, and where nothing fits: llama.cpp then writes f16,
ik_llama.cpp stops.
"""

from __future__ import annotations

import re
from typing import Literal

from ggplan.errors import PlanError
from ggplan.ggml_types import F16, GgmlType, parse_type
from ggplan.rules import Recipe

FallbackTable = Literal["llama.cpp", "ik"]


def table_of(recipe: Recipe | None) -> FallbackTable:
    """The table of the engine that the recipe's `@target` names; llama.cpp's where it names none."""
    return "ik" if recipe is not None and recipe.target == "ik_llama.cpp" else "llama.cpp"


_LLAMA_CPP = {
    **dict.fromkeys(
        ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"),
        "iq4_nl",
    ),
    **dict.fromkeys(("q2_0", "q2_K", "q3_K", "tq1_0", "tq2_0"), "q4_0"),
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}
_IK = {
    **dict.fromkeys(
        ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"),
        "iq4_nl",
    ),
    **dict.fromkeys(("q2_K", "q3_K", "iq2_k", "iq2_ks", "iq2_kl", "iq3_k", "iq3_ks"), "iq4_nl"),
    **dict.fromkeys(("iq4_ks", "iq4_kss", "iq1_kt", "iq2_kt", "iq3_kt", "iq4_kt"), "iq4_nl"),
    **dict.fromkeys(("iq4_k", "q4_K", "iq5_ks"), "q5_0"),
    **dict.fromkeys(("iq5_k", "q5_K"), "q6_0"),
    **dict.fromkeys(("iq6_k", "q6_K", "q8_k_r8"), "q8_0"),
}


def fallback_type(asked: GgmlType, n_columns: int, table: FallbackTable) -> GgmlType:
    """The type that takes the place of `asked` for rows of `n_columns` weights.

    Raises
    ------
    PlanError
        Where the engine of the table would stop too.
    """
    if table == "ik":
        plain = re.sub(r"_r\d+$", "", asked.name)
        name = _IK.get(asked.name) or _IK.get(parse_type(plain).name)
        found = parse_type(name) if name else None
        if found is None or not found.fits(n_columns):
            raise PlanError(
                f"rows of {n_columns} do not fit {asked.name} ({remainder(asked, n_columns)}), "
                "and ik_llama.cpp has no fallback for that",
                hint="give the rule a chain that ends in a type that fits, such as `| f16`",
            )
        return found
    name = _LLAMA_CPP.get(asked.name)
    if name is None:
        if asked.block_size > 32:
            raise PlanError(
                f"rows of {n_columns} do not fit {asked.name} ({remainder(asked, n_columns)}), "
                "and llama.cpp has no fallback for that",
                hint="give the rule a chain that ends in a type that fits, such as `| q8_0 | f16`",
            )
        return F16
    found = parse_type(name)
    return found if found.fits(n_columns) else F16


def remainder(asked: GgmlType, n_columns: int) -> str:
    """The arithmetic that forbids a type: `1408 % 256 = 128`."""
    return f"{n_columns} % {asked.block_size} = {n_columns % asked.block_size}"
