"""Input and result of `cover`, and the text of a recipe: a heading, then rules with `=` in one column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggplan.ggml_types import GgmlType
from ggplan.text import format_bytes, printable

_WIDEST = 76  # longer patterns do not move the column of `=`


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor and the type it must get.

    Attributes
    ----------
    n_columns
        Weights in a row, which must be whole blocks of a type.
    protected
        Whether only a forced rule gives it a type other than f32 (see `ggplan.planning.protection`).
    """

    name: str
    type: GgmlType
    n_columns: int
    protected: bool
    n_bytes: int


@dataclass(frozen=True, slots=True)
class CoverRule:
    """One rule, and what it decides; `types` is a chain of one or two."""

    pattern: str
    types: tuple[GgmlType, ...]
    forced: bool
    n_tensors: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Cover:
    """Rules in their order, the chain of `@default` (empty if there is none), and the tensors left to it."""

    rules: tuple[CoverRule, ...]
    default: tuple[GgmlType, ...]
    n_by_default: int
    bytes_by_default: int


def write_recipe(found: Cover, *, name: str, architecture: str = "", heading: Sequence[str] = ()) -> str:
    """The text of a recipe with these rules.

    Parameters
    ----------
    name
        For `@name`.
    heading
        Lines of comment at the top.
    """
    lines = [f"# {_inert(line)}".rstrip() for line in heading]
    lines += ["@recipe 1", f"@name {_inert(name)}"]
    if architecture:
        lines.append(f"@arch {architecture}")
    lines.append("")
    width = max((len(r.pattern) for r in found.rules if len(r.pattern) <= _WIDEST), default=0)
    sides = [f"{_chain(r.types)}{'!' if r.forced else ''}" for r in found.rules]
    right = max((len(side) for side in sides), default=0)
    for rule, side in zip(found.rules, sides, strict=True):
        lines.append(f"{rule.pattern:<{width}} = {side:<{right}}  # {_weight(rule.n_tensors, rule.n_bytes)}")
    if found.default:
        weight = _weight(found.n_by_default, found.bytes_by_default)
        lines += ["", f"@default {_chain(found.default)}  # {weight}"]
    return "\n".join(lines) + "\n"


def _chain(types: Sequence[GgmlType]) -> str:
    return " | ".join(type_.name for type_ in types)


def _weight(n_tensors: int, n_bytes: int) -> str:
    return f"{n_tensors:,} tensor{'' if n_tensors == 1 else 's'}, {format_bytes(n_bytes)}"


def _inert(text: str) -> str:
    """`text` without line ends and `#`, so that it stays inside a comment or a name."""
    return printable(text).replace("#", "")
