r"""What a config gives the modules of a model, and the values it states: flags, numbers, names, formats.

A value of the wrong kind is an error that names its key: `"false"` is no flag, and 100 is no number of bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ggplan.dialects.settings import Settings
from ggplan.dialects.source import Source
from ggplan.dialects.weight_formats import WeightFormat, nearest_type
from ggplan.ggml_types import GgmlType
from ggplan.recovering.patterns import escape
from ggplan.rules.patterns import PatternError, check_pattern, tokens

_FLOAT_BITS = (16, 32)


@dataclass(slots=True)
class Scheme:
    """What a config gives the modules.

    Attributes
    ----------
    default
        The type of all linear modules in the blocks; None leaves them as they are.
    exceptions
        Patterns, their types, None for modules that are not quantized, and how the config says it; the first
        that matches decides.
    takes_output, takes_embeddings
        Whether `default` is for these, too.
    only
        Patterns of the only modules that `default` is for; empty for all.
    only_refines
        Whether exceptions that have a type apply only to modules that `default` is for.
    output_note
        What to say where the output gets the default.
    seen_as
        The name by which the config knows a module, where it is not the module's own.
    """

    default: GgmlType | None = None
    exceptions: list[tuple[str, GgmlType | None, str]] = field(default_factory=list)
    takes_output: bool = False
    takes_embeddings: bool = False
    only: list[str] = field(default_factory=list)
    only_refines: bool = False
    output_note: str = ""
    seen_as: Callable[[str], str] = str
    notes: list[str] = field(default_factory=list)


def type_of(source: Source, scheme: Scheme, format_: WeightFormat, where: str) -> GgmlType | None:
    """The nearest type to a format, with a note where it is not the same."""
    try:
        type_, same = nearest_type(format_)
    except ValueError as error:
        raise source.fault(0, f"{where}: {error}") from None
    if not same and type_ is not None:
        scheme.notes.append(f"{format_.described}; the nearest type is {type_.name}")
    return type_


def flag(source: Source, settings: Settings, *keys: str, default: bool) -> bool:
    """A bool of the settings; an error names the key if it is none."""
    value = settings.get(*keys, default=default)
    if type(value) is not bool:
        raise source.fault(_line(source, settings, keys), f"{_path(settings, keys)} is true or false")
    return value


def whole(source: Source, settings: Settings, *keys: str, default: int | None = None) -> int:
    """A whole number of the settings; an error names the key if it is none."""
    return checked_whole(source, settings, keys, settings.get(*keys, default=default))


def checked_whole(source: Source, settings: Settings, keys: tuple[str, ...], value: object) -> int:
    """The value, if it can be what the first of the keys that is there is called: bits, or a group's size."""
    if fault := number_fault(keys[0], value):
        raise source.fault(_line(source, settings, keys), f"{_path(settings, keys)} {fault}")
    assert isinstance(value, int)
    return value


def number_fault(key: str, value: object) -> str:
    """What is wrong with a number of bits or the size of a group, by what it is called; "" if nothing."""
    if type(value) is not int:
        return "is a whole number"
    if "bit" in key and not (1 <= value <= 8 or value in _FLOAT_BITS):
        return "is 1 to 8, or 16 for weights that stay floats"
    if "group" in key and not -1 <= value < 1 << 20:
        return "is a whole number, -1 for one scale a row"
    return ""


def _path(settings: Settings, keys: tuple[str, ...]) -> str:
    return settings.path + next((key for key in keys if settings.get(key) is not None), keys[0])


def _line(source: Source, settings: Settings, keys: tuple[str, ...]) -> int:
    key = next((key for key in keys if settings.get(key) is not None), keys[0])
    return source.line_of(f'"{key}"')


def names_at(source: Source, settings: Settings, *keys: str) -> list[str]:
    """The list of names at the first of these keys that is there."""
    value = settings.get(*keys, default=[])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise source.fault(source.line_of(f'"{keys[0]}"'), f"{settings.path}{keys[0]} is a list of names")
    return values


def exclude(source: Source, settings: Settings, scheme: Scheme, *keys: str) -> None:
    """Modules that are not quantized, in transformers' way; they decide before all other exceptions."""
    out: list[tuple[str, GgmlType | None, str]] = []
    for key in keys:
        for name in names_at(source, settings, key):
            out.append((transformers_pattern(source, name), None, name))
    scheme.exceptions[:0] = out


def take_output(settings: Settings, scheme: Scheme, *keys: str) -> None:
    """Quantize the output where a list of modules to leave out is there and does not name it.

    transformers leaves the output out by itself only where there is no list (`get_modules_to_not_convert`).
    """
    said = next((key for key in keys if settings.get(key) is not None), None)
    if said is not None:
        scheme.takes_output = True
        scheme.output_note = f"`{said}` does not name lm_head, so that transformers quantizes it too"


def transformers_pattern(source: Source, name: str) -> str:
    r"""The pattern of a name in transformers' lists of modules that are not converted.

    There a name is a regular expression that is matched from the start up to a boundary: before a dot or the
    end, or behind a dot (5.24, `should_convert_module`). Or it is the end of a module's name, as it stands.

    Raises
    ------
    RecipeError
        If the expression is one of Python's that RE2 has not, such as `(?!up)`.
    """
    try:
        check_pattern(name)
    except PatternError as error:
        if error.code == "GP003":  # it is no expression of Python's either
            return rf"{escape(name)}$"
    pattern = source.pattern(name)
    return "|".join([rf"^(?:{pattern})(?:\.|$)", *_up_to_a_dot(pattern), rf"{escape(name)}$"])


def _up_to_a_dot(pattern: str) -> list[str]:
    """What of a regular expression matches texts that end in a dot, where its last piece is any character."""
    pieces = list(tokens(pattern))
    depth, start, found = 0, 0, []
    for n, (kind, text, at) in enumerate([*pieces, ("anchor", "|", len(pattern))]):
        depth += (kind == "group") - (kind == "group_end")
        if depth or text != "|":
            continue
        last = n - 1
        while last >= 0 and pieces[last][2] >= start:
            may_be_absent = pieces[last][0] == "repeat" and pieces[last][1] in ("?", "*")
            last -= may_be_absent
            kind, text, begin = pieces[last]
            if kind in ("character", "escape") and text in (".", r"\.", r"\W", r"\S", r"\D"):
                found.append(rf"^(?:{pattern[start:begin]}\.)")
            if not may_be_absent or kind not in ("character", "escape", "set"):
                break
            last -= 1
        start = at + 1
    return found
