"""The table of mixes: llama-quantize's names, their numbers, and the type most tensors get.

Names and aliases: llama.cpp b11434, `tools/quantize/quantize.cpp`, QUANT_OPTIONS. Types:
`src/llama-quant.cpp`, `llama_ftype_get_default_type`. Numbers: `include/llama.h`, enum llama_ftype; they
stand in a file's `general.file_type`. A type's row in `ggplan.ggml_types` holds the number of the mix that is
named after it (`q4_K`: Q4_K_M); the numbers of all other mixes stand here.

A name does not always give the type of most tensors: most of an `IQ2_S` file is iq2_xs, most of an `IQ2_M`
file iq2_s, most of an `IQ3_XS` file iq3_s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ggplan.errors import RecipeError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.text import nearest, printable

PURE = " pure"
"""What is added to the mix's name in the name of a pure mix's recipe."""


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
        The type of tensors for which the mix has no exception.
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


def _mix(name: str, type: str, file_type: int | None = None) -> Mix:
    """A mix; `file_type` is by default the number of its type."""
    found = parse_type(type)
    number = found.file_type if file_type is None else file_type
    assert number is not None
    return Mix(name, number, found)


MIXES: tuple[Mix, ...] = (
    _mix("F32", "f32"),
    _mix("F16", "f16"),
    _mix("BF16", "bf16"),
    _mix("Q8_0", "q8_0"),
    _mix("Q6_K", "q6_K"),
    _mix("Q5_K_M", "q5_K"),
    _mix("Q5_K_S", "q5_K", 16),
    _mix("Q5_1", "q5_1"),
    _mix("Q5_0", "q5_0"),
    _mix("Q4_K_M", "q4_K"),
    _mix("Q4_K_S", "q4_K", 14),
    _mix("Q4_1", "q4_1"),
    _mix("Q4_0", "q4_0"),
    _mix("IQ4_NL", "iq4_nl"),
    _mix("IQ4_XS", "iq4_xs"),
    _mix("MXFP4_MOE", "mxfp4"),
    _mix("Q3_K_L", "q3_K", 13),
    _mix("Q3_K_M", "q3_K"),
    _mix("Q3_K_S", "q3_K", 11),
    _mix("IQ3_M", "iq3_s", 27),
    _mix("IQ3_S", "iq3_s"),
    _mix("IQ3_XS", "iq3_s", 22),
    _mix("IQ3_XXS", "iq3_xxs"),
    _mix("Q2_K", "q2_K"),
    _mix("Q2_K_S", "q2_K", 21),
    _mix("IQ2_M", "iq2_s", 29),
    _mix("IQ2_S", "iq2_xs", 28),
    _mix("Q2_0", "q2_0"),
    _mix("IQ2_XS", "iq2_xs"),
    _mix("IQ2_XXS", "iq2_xxs"),
    _mix("TQ2_0", "tq2_0"),
    _mix("TQ1_0", "tq1_0"),
    _mix("IQ1_M", "iq1_m"),
    _mix("IQ1_S", "iq1_s"),
    _mix("Q1_0", "q1_0"),
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
        hint = f"the nearest is {near}" if near else "`ggplan types` lists them"
        raise RecipeError(f"llama-quantize has no mix {printable(text[:40])}", hint=hint)
    return _BY_NAME[_full_name(text)]


def _full_name(text: str) -> str:
    name = text.strip().upper()
    return ALIASES.get(name, name)
