"""The table of mixes: llama-quantize's names, their numbers, and the type most tensors get.

Names and aliases: llama.cpp b11434, `tools/quantize/quantize.cpp`, QUANT_OPTIONS. Numbers: `include/llama.h`,
enum llama_ftype; they stand in a file's `general.file_type`. Types: `src/llama-quant.cpp`,
`llama_ftype_get_default_type`. A name promises less than it says: most of an `IQ2_S` file is iq2_xs, most of
an `IQ2_M` file iq2_s, most of an `IQ3_XS` file iq3_s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ggplan.errors import RecipeError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.text import nearest, printable

PURE = " pure"
"""What the recipe of a pure mix has behind its name."""


@dataclass(frozen=True, slots=True)
class Mix:
    """One of llama-quantize's mixes.

    Attributes
    ----------
    name
        As llama-quantize prints it: `Q4_K_M`.
    file_type
        Its number in `general.file_type`.
    type
        What tensors get that nothing else is said about.
    pure
        Give every tensor `type`, without more bits anywhere (`llama-quantize --pure`).
    """

    name: str
    file_type: int
    type: GgmlType
    pure: bool = False

    @property
    def full_name(self) -> str:
        """What the recipe of the mix is called: `Q4_K_M`, `Q4_K_M pure`."""
        return self.name + PURE if self.pure else self.name

    def purely(self) -> Mix:
        """The same mix without more bits anywhere."""
        return replace(self, pure=True)


MIXES: tuple[Mix, ...] = tuple(
    Mix(name, file_type, parse_type(type_))
    for name, file_type, type_ in (
        ("F32", 0, "f32"),
        ("F16", 1, "f16"),
        ("BF16", 32, "bf16"),
        ("Q8_0", 7, "q8_0"),
        ("Q6_K", 18, "q6_K"),
        ("Q5_K_M", 17, "q5_K"),
        ("Q5_K_S", 16, "q5_K"),
        ("Q5_1", 9, "q5_1"),
        ("Q5_0", 8, "q5_0"),
        ("Q4_K_M", 15, "q4_K"),
        ("Q4_K_S", 14, "q4_K"),
        ("Q4_1", 3, "q4_1"),
        ("Q4_0", 2, "q4_0"),
        ("IQ4_NL", 25, "iq4_nl"),
        ("IQ4_XS", 30, "iq4_xs"),
        ("MXFP4_MOE", 38, "mxfp4"),
        ("Q3_K_L", 13, "q3_K"),
        ("Q3_K_M", 12, "q3_K"),
        ("Q3_K_S", 11, "q3_K"),
        ("IQ3_M", 27, "iq3_s"),
        ("IQ3_S", 26, "iq3_s"),
        ("IQ3_XS", 22, "iq3_s"),
        ("IQ3_XXS", 23, "iq3_xxs"),
        ("Q2_K", 10, "q2_K"),
        ("Q2_K_S", 21, "q2_K"),
        ("IQ2_M", 29, "iq2_s"),
        ("IQ2_S", 28, "iq2_xs"),
        ("Q2_0", 41, "q2_0"),
        ("IQ2_XS", 20, "iq2_xs"),
        ("IQ2_XXS", 19, "iq2_xxs"),
        ("TQ2_0", 37, "tq2_0"),
        ("TQ1_0", 36, "tq1_0"),
        ("IQ1_M", 31, "iq1_m"),
        ("IQ1_S", 24, "iq1_s"),
        ("Q1_0", 40, "q1_0"),
    )
)

ALIASES: dict[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Short names llama-quantize takes, too."""

_BY_NAME = {mix.name: mix for mix in MIXES}


def is_mix(text: str) -> bool:
    """Whether `text` names a mix, in any case."""
    return _full_name(text) in _BY_NAME


def find_mix(text: str) -> Mix:
    """The mix that `text` names, in any case.

    Raises
    ------
    RecipeError
        If it names none; the hint has the nearest.
    """
    if not is_mix(text):
        near = nearest(text.strip(), (*_BY_NAME, *ALIASES))
        hint = f"the nearest is {near}" if near else f"there are {', '.join(_BY_NAME)}"
        raise RecipeError(f"llama-quantize has no mix {printable(text[:40])}", hint=hint)
    return _BY_NAME[_full_name(text)]


def _full_name(text: str) -> str:
    name = text.strip().upper()
    return ALIASES.get(name, name)
