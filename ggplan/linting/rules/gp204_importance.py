"""GP204, GP206 and GP207: types that want an importance matrix, and what the one that is given lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import some
from ggplan.planning.importance import entry_of, uses_imatrix
from ggplan.rules import Fix
from ggplan.stock import needs_imatrix
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class NeedsImatrix(Finding):
    """Tensors of one type that llama-quantize refuses without an imatrix; the encoder may too."""

    tensors: str
    type: str
    is_impossible: bool

    @property
    def message(self) -> str:
        if self.is_impossible:
            return f"{self.tensors}: {self.type} cannot be encoded without an imatrix"
        return f"{self.tensors}: llama-quantize refuses {self.type} without an imatrix; expect garbage"

    def help(self, fix: Fix | None) -> str:
        return "give one with --imatrix, or choose a type of more bits"


@dataclass(frozen=True, slots=True)
class NoEntry(Finding):
    """Tensors that the imatrix has no entry for, and the type where llama-quantize would refuse it so."""

    tensors: str
    imatrix: str
    refused: str

    @property
    def message(self) -> str:
        what = "encoded without importance"
        if self.refused:
            what = f"llama-quantize refuses {self.refused} without importance; expect garbage"
        return f"{self.tensors}: no entry in {self.imatrix}; {what}"

    def help(self, fix: Fix | None) -> str:
        return "collect an imatrix of this very model, or choose a type of more bits" if self.refused else ""


@dataclass(frozen=True, slots=True)
class UnseenExperts(Finding):
    """A tensor some of whose experts saw no token."""

    tensor: str
    imatrix: str
    n_unseen: int
    n_experts: int

    @property
    def message(self) -> str:
        return (
            f"{self.tensor}: {self.n_unseen} of {self.n_experts} experts were never routed to in "
            f"{self.imatrix}; their columns count alike"
        )


def check_given(case: Case) -> Iterator[NeedsImatrix]:
    if case.imatrix is not None:
        return
    groups: dict[tuple[int | None, str, bool], list[int]] = {}
    for t, d in enumerate(case.decisions):
        is_impossible = d.type.requires_imatrix
        if d.type != d.tensor.type and (is_impossible or needs_imatrix(None, d.tensor.name, d.type)):
            groups.setdefault((d.rule, d.type.name, is_impossible), []).append(t)
    for (rule, name, is_impossible), members in groups.items():
        yield NeedsImatrix(case.place(rule), some(case, members), name, is_impossible)


def check_entries(case: Case) -> Iterator[NoEntry]:
    if case.imatrix is None:
        return
    groups: dict[str, list[int]] = {}
    for t, d in enumerate(case.decisions):
        if d.type != d.tensor.type and uses_imatrix(d.type) and entry_of(d.tensor, case.imatrix) is None:
            is_refused = needs_imatrix(None, d.tensor.name, d.type)
            groups.setdefault(d.type.name if is_refused else "", []).append(t)
    for refused, members in groups.items():
        yield NoEntry(case.file, some(case, members), printable(case.imatrix.path.name), refused)


def check_experts(case: Case) -> Iterator[UnseenExperts]:
    if case.imatrix is None:
        return
    file = printable(case.imatrix.path.name)
    for d in case.decisions:
        if d.type == d.tensor.type or not uses_imatrix(d.type):
            continue
        entry = entry_of(d.tensor, case.imatrix)
        if entry is not None and (unseen := len(entry.matrices_without_data)):
            yield UnseenExperts(case.file, printable(d.tensor.name), file, unseen, len(entry.values))


GP204 = LintRule(
    "GP204",
    "note",
    "the type needs an imatrix",
    "llama-quantize refuses iq1, iq2 and iq3_xxs without an importance matrix: unweighted, they lose too much. "
    "Of some ggml cannot encode a block without: there `ggplan convert` stops before it writes a byte.",
    check=check_given,
)
GP206 = LintRule(
    "GP206",
    "warning",
    "the imatrix does not know a tensor",
    "It is encoded without importance: check that the imatrix is this model's.",
    check=check_entries,
)
GP207 = LintRule(
    "GP207",
    "note",
    "the imatrix has no data for some experts",
    "They were never routed to while it was collected, so their columns count alike. Collect it from more text.",
    check=check_experts,
)
