r"""Parts of a chain that are never taken, and a `!` that changes nothing.

A part is taken by rows of whole blocks of its type. So `q8_0 | q6_K` is q8_0: rows of whole blocks of 256
are rows of whole blocks of 32. All that is stored quantized takes the first `keep`, and a `keep` at the end
is for all that is left.

GP112: a part of a chain is never taken
    What stands before it takes every tensor that it could take: rows that fit q6_K fit q8_0 as well,
    any row fits bf16, and what `keep(q4_1)` is for takes the `keep` before it.
    - ffn_down_exps\.weight = q8_0 | q6_K
    + ffn_down_exps\.weight = q6_K | q8_0
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import rechosen
from ggplan.rules import Keep


class NeverTaken(Finding):
    """A part, the part before it that takes its tensors, and what the chain is without it."""

    part: str
    taker: str
    rest: str
    says = "`{f.part}` is never taken: `{f.taker}` before it takes all that it could take"
    advice = "write `{f.rest}`, or the other order"


class IdleForce(Finding):
    """A `!` after nothing but `keep`."""

    rest: str
    says = "`!` changes nothing: a protected tensor that is kept has its type either way"
    advice = "write `{f.rest}`"


def check(case: Case) -> Iterator[NeverTaken | IdleForce]:
    for choice in case.choices():
        takers = {i: j for i in range(len(choice.types)) if (j := _taker(choice.types, i)) is not None}
        left = [part for i, part in enumerate(choice.types) if i not in takers]
        is_idle = choice.forced and all(isinstance(part, Keep) for part in left)
        rest = " | ".join(map(str, left)) + "!" * (choice.forced and not is_idle)
        fix = rechosen(choice, rest, safe=True)
        for i, j in takers.items():
            part, taker = str(choice.types[i]), str(choice.types[j])
            yield NeverTaken(choice.locations[i], part, taker, rest, fixes=(fix,))
        if is_idle and not takers:
            yield IdleForce(choice.location, rest, fixes=(fix,))


def _taker(parts: Sequence[GgmlType | Keep], i: int) -> int | None:
    """The first part before `i` that takes all that it could take; None if there is none."""
    part = parts[i]
    for j, other in enumerate(parts[:i]):
        if isinstance(other, GgmlType):
            # What any row fits takes also what is to be kept.
            fits = (
                other.block_size == 1 if isinstance(part, Keep) else part.block_size % other.block_size == 0
            )
            if fits and other.row_group == 1:
                return j
        elif isinstance(part, Keep) and (i < len(parts) - 1 or j == i - 1):
            return j
    return None


GP112 = LintRule("GP112", "warning", check, needs_model=False)
