"""The imatrix of a model that was reshaped: entries under new names, of fewer experts.

llama-imatrix measures the inputs of a matrix. Tensors that are fused have the same inputs, so any one's entry
is that of the whole, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix, ImatrixEntry


def renamed(imatrix: Imatrix, names: Mapping[str, str]) -> Imatrix:
    """The imatrix with entries under new names.

    Parameters
    ----------
    names
        The old name of each new one. Entries of old names that it does not give are left out where a new
        name takes theirs, and where they are of a block.
    """
    from ggplan.imatrix.entries import ReadOnDemand

    old = imatrix.entries
    kept = {name: name for name in old if not name.startswith("blk.") and name not in names}
    readers = {new: partial(_read, old, name, new) for new, name in {**kept, **names}.items() if name in old}
    return replace(imatrix, entries=ReadOnDemand(readers), n_measured=imatrix.n_measured or len(old))


def also_under(imatrix: Imatrix, names: Mapping[str, str]) -> Imatrix:
    """The imatrix with further entries: by new names, the old ones that they are; a name it has stays."""
    from ggplan.imatrix.entries import ReadOnDemand

    old = imatrix.entries
    readers = {name: partial(old.__getitem__, name) for name in old}
    more = {
        new: partial(_read, old, name, new) for new, name in names.items() if name in old and new not in old
    }
    return replace(
        imatrix, entries=ReadOnDemand({**readers, **more}), n_measured=imatrix.n_measured or len(old)
    )


def _read(entries: Mapping[str, ImatrixEntry], name: str, new: str) -> ImatrixEntry:
    return replace(entries[name], name=new)


def of_experts(imatrix: Imatrix, experts: Mapping[str, tuple[Sequence[int], int]]) -> Imatrix:
    """The imatrix with the values of some experts.

    Parameters
    ----------
    experts
        By tensor: the experts that stay, and how many there were.
    """
    from ggplan.imatrix.entries import ReadOnDemand

    old = imatrix.entries
    readers = {
        name: partial(sliced, old, name, *experts[name])
        if name in experts
        else partial(old.__getitem__, name)
        for name in old
    }
    return replace(imatrix, entries=ReadOnDemand(readers))


def sliced(entries: Mapping[str, ImatrixEntry], name: str, kept: Sequence[int], n: int) -> ImatrixEntry:
    """An entry with the values of some of its `n` slices; as it is where it is of another model."""
    entry = entries[name]
    chosen = list(kept)
    values = entry.values
    if values.size % n == 0:  # else that is told when it is used
        values = values.reshape(n, -1)[chosen]
    counts = entry.counts[chosen] if len(entry.counts) == n else entry.counts
    return replace(entry, values=values, counts=counts)
