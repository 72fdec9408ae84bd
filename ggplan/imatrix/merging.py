"""Imatrix files are merged by their counts: sums are added to sums, tokens to tokens.

So a file of ten times the tokens has ten times the weight, as if all texts had been run in one go. This is
what `llama-imatrix --in-file A --in-file B` does (b11434, `tools/imatrix/imatrix.cpp`), and the result is the
same. A legacy file has one count for all experts of a weight; beside a GGUF each of its experts counts as
having seen so many.

Experts that saw no token in any file have no importance of their own. What they get is the *policy*:

    ones   their count stays 0. Readers give all their columns the same importance: llama-quantize and ggplan
           alike, and in the legacy form the ones are written.
    mean   those of gate and up, whose experts all have the layer's own input, get the mean square over all
           tokens of the layer, which beats ones; those of down, whose inputs are each expert's own, stay.

A file with the policy `mean` records it and the experts that have it (`ggplan.imatrix.unseen`, see
`ImatrixSums.unseen`). A merge removes these values before it adds, so that they never count as measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np

from ggplan.errors import ImatrixError
from ggplan.imatrix.entries import ReadOnDemand
from ggplan.imatrix.sums import ImatrixSums, Sums
from ggplan.sources.files import shown

Policy = Literal["ones", "mean"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
_SHARED_INPUT = re.compile(r"ffn_(gate|up|gate_up)_exps\.weight$")


@dataclass(frozen=True, slots=True)
class Source:
    """An imatrix to merge, and its name for messages."""

    name: str
    sums: ImatrixSums


def merged(sources: Sequence[Source]) -> ImatrixSums:
    """The sums of several imatrix files.

    Entries are added up when they are looked up, so files of any size can be merged. What experts have by a
    policy is left out; `with_policy(result, policy_of(sources))` gives it to those that still lack data.

    Raises
    ------
    ImatrixError
        If there is none, an entry has not the same size in all of them, or a file's record of a policy does
        not fit its counts.
    """
    if not sources:
        raise ImatrixError("no imatrix is given to merge")
    sources = [Source(source.name, _measured(source)) for source in sources]
    names = {name for source in sources for name in source.sums.entries}
    for name in names:
        _added(name, sources)  # finds entries that do not fit together before a byte is written
    return ImatrixSums(
        tuple(dataset for source in sources for dataset in source.sums.datasets),
        sources[0].sums.chunk_size,
        ReadOnDemand({name: partial(_added, name, sources) for name in names}),
    )


def _added(name: str, sources: Sequence[Source]) -> Sums:
    found: Sums | None = None
    first = ""
    for source in sources:
        if name not in source.sums.entries:
            continue
        other = source.sums.entries[name]
        if found is None:
            found, first = other, source.name
            continue
        if found.squares.size != other.squares.size:
            raise ImatrixError(
                f"'{shown(name)}' has {found.squares.size:,} values in {shown(first)} and "
                f"{other.squares.size:,} in {shown(source.name)}",
                hint="merge imatrix files of one model",
            )
        found = _sum(found, other, f"'{shown(name)}' of {shown(first)} and {shown(source.name)}")
    assert found is not None
    return found


def _sum(a: Sums, b: Sums, what: str) -> Sums:
    n = max(len(a.counts), len(b.counts))
    if any(len(each.counts) not in (1, n) for each in (a, b)):
        raise ImatrixError(f"{what} have {len(a.counts)} and {len(b.counts)} matrices")
    counts = np.broadcast_to(a.counts, n) + np.broadcast_to(b.counts, n)
    squares = a.squares.reshape(n, -1).astype(np.float32) + b.squares.reshape(n, -1).astype(np.float32)
    return Sums(squares, counts)


def counted_as_one(sources: Sequence[Source]) -> dict[str, list[str]]:
    """By the file, the weights that have one count for all experts there and one for each elsewhere.

    A merge takes each of their experts to have seen so many tokens.
    """
    names = sorted({name for source in sources for name in source.sums.entries})
    found: dict[str, list[str]] = {}
    for name in names:
        there = [(s.name, len(s.sums.entries[name].counts)) for s in sources if name in s.sums.entries]
        if max(n for _, n in there) > 1:
            for source, n in there:
                if n == 1:
                    found.setdefault(source, []).append(name)
    return found


def policy_of(sources: Sequence[Source]) -> Policy:
    """The policy of the files: that of those that have one."""
    return "mean" if any(source.sums.unseen for source in sources) else "ones"


def with_policy(imatrix: ImatrixSums, policy: Policy) -> ImatrixSums:
    """The same with what experts that saw no token get; the policy is recorded in it."""
    if policy == "ones":
        return imatrix
    filled = {
        name: partial(_filled, imatrix.entries, name)
        if _SHARED_INPUT.search(name)
        else partial(imatrix.entries.__getitem__, name)
        for name in imatrix.entries
    }
    unseen = [
        f"{name}: {', '.join(map(str, missing))}"
        for name in imatrix.names
        if _SHARED_INPUT.search(name) and (missing := _unseen(imatrix.entries[name]))
    ]
    return replace(imatrix, entries=ReadOnDemand(filled), unseen=("mean", *unseen) if unseen else ())


def _measured(source: Source) -> ImatrixSums:
    """The sums of a file without what a policy filled in."""
    sums = source.sums
    if not sums.unseen:
        return sums
    if sums.unseen[0] != "mean":
        raise ImatrixError(
            f"{shown(source.name)} has a policy for experts without data that this ggplan does not know: "
            f"{shown(sums.unseen[0])}",
            hint="merge the files that it was made of",
        )
    filled = dict(_filled_experts(text, source) for text in sums.unseen[1:])
    readers = {name: partial(sums.entries.__getitem__, name) for name in sums.entries}
    readers |= {name: partial(_without, source, name, experts) for name, experts in filled.items()}
    return replace(sums, entries=ReadOnDemand(readers), unseen=())


def _filled_experts(text: str, source: Source) -> tuple[str, list[int]]:
    """A weight's name and the numbers of its experts, as `with_policy` records them."""
    name, _, numbers = text.rpartition(": ")
    if name not in source.sums.entries or not re.fullmatch(r"\d{1,9}(, \d{1,9})*", numbers, re.ASCII):
        raise _no_record(source, text)
    return name, [int(number) for number in numbers.split(", ")]


def _without(source: Source, name: str, experts: list[int]) -> Sums:
    sums = source.sums.entries[name]
    if max(experts) >= len(sums.counts) or (sums.counts[experts] != 1).any():
        raise _no_record(source, name)
    squares, counts = sums.squares.copy(), sums.counts.copy()
    squares[experts], counts[experts] = 0, 0
    return Sums(squares, counts)


def _no_record(source: Source, text: str) -> ImatrixError:
    return ImatrixError(
        f"{shown(source.name)}: its record of experts without data does not fit its counts: {shown(text)}",
        hint="merge the files that it was made of",
    )


def _unseen(sums: Sums) -> list[int]:
    is_unseen = sums.counts <= 0
    return np.flatnonzero(is_unseen).tolist() if not is_unseen.all() else []


def _filled(entries: Mapping[str, Sums], name: str) -> Sums:
    """An entry whose unseen experts have the mean of all tokens, as one token."""
    sums = entries[name]
    missing = _unseen(sums)
    if not missing:
        return sums
    squares, counts = sums.squares.copy(), sums.counts.copy()
    squares[missing] = sums.squares.sum(axis=0, dtype=np.float64) / sums.counts.sum()
    counts[missing] = 1
    return Sums(squares, counts)
