"""Types that want an importance matrix, and what the one that is given lacks.

GP204: the type needs an imatrix
    llama-quantize refuses iq1, iq2 and iq3_xxs without an importance matrix: unweighted, they lose too
    much. Of some ggml cannot encode a block without: there `ggplan convert` stops before it writes a
    byte.

GP206: the imatrix does not know a tensor
    It is encoded without importance: check that the imatrix is this model's. No imatrix has data for nextn
    blocks, for these are not run while it is collected: write a rule for them.

GP207: the imatrix has no data for some experts
    They were never routed to while it was collected, so their columns count alike. Collect it from more
    text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import NO_RECIPE, Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import some
from ggplan.planning import Fitted
from ggplan.planning.importance import OUTSIDE_HINT, coverage_of, nextn_hint
from ggplan.planning.plan import Coverage
from ggplan.rules import Fix
from ggplan.stock import needs_imatrix
from ggplan.text import printable


class NeedsImatrix(Finding):
    """Tensors of one type that llama-quantize refuses without an imatrix."""

    tensors: str
    type: str
    says = "{f.tensors}: llama-quantize refuses {f.type} without an imatrix; the weights will be useless"
    advice = "give `ggplan convert` one with --imatrix, or choose a type of more bits"


class CannotDoWithout(NeedsImatrix):
    """The same of a type that no encoder can do without."""

    says = "{f.tensors}: {f.type} cannot be encoded without an imatrix"


class NoEntry(Finding):
    """Tensors that the imatrix has no entry for."""

    tensors: str
    imatrix: str
    why: str
    says = "{f.tensors}: no entry in {f.imatrix}; encoded without importance"
    otherwise: ClassVar[str] = "check that the imatrix is of this very model"

    def help(self, fix: Fix | None) -> str:
        return self.why or self.otherwise


class RefusedWithoutEntry(NoEntry):
    """The same, of a type that llama-quantize refuses so."""

    type: str
    says = (
        "{f.tensors}: no entry in {f.imatrix}; llama-quantize refuses {f.type} without importance; expect "
        "garbage"
    )
    otherwise = "collect an imatrix of this very model, or choose a type of more bits"


class UnseenExperts(Finding):
    """A tensor some of whose experts saw no token."""

    tensor: str
    imatrix: str
    coverage: Coverage
    says = (
        "{f.tensor}: {f.coverage.n_unseen} of {f.coverage.n_matrices} experts were never routed to in "
        "{f.imatrix}; their columns count alike"
    )


def check_given(case: Case) -> Iterator[NeedsImatrix]:
    if case.imatrix is None:
        for (rule, type_), members in case.grouped(lambda f: _needing(case, f)).items():
            kind = CannotDoWithout if type_.requires_imatrix else NeedsImatrix
            yield kind(case.place(rule), some(case, members), type_.name)


def check_entries(case: Case) -> Iterator[NoEntry]:
    if case.imatrix is None:
        return
    groups: dict[tuple[str, str], list[int]] = {}
    for t, coverage in _coverage(case):
        if not coverage.n_matrices and case.tensors[t].name not in case.guided:
            refused = _needing(case, case.fitted[t])
            why = "" if case.tensors[t].name.startswith("blk.") else OUTSIDE_HINT
            if "nextn" in case.roles(t):
                why = nextn_hint("" if case.recipe is NO_RECIPE else case.recipe.order)
            groups.setdefault(("" if refused is None else refused[1].name, why), []).append(t)
    file = printable(case.imatrix.path.name)
    for (name, why), members in groups.items():
        facts = (case.file, some(case, members), file, why)
        yield RefusedWithoutEntry(*facts, name) if name else NoEntry(*facts)


def check_experts(case: Case) -> Iterator[UnseenExperts]:
    for t, coverage in _coverage(case):
        if coverage.n_unseen and case.imatrix is not None:
            tensor, file = printable(case.tensors[t].name), printable(case.imatrix.path.name)
            yield UnseenExperts(case.file, tensor, file, coverage)


def _needing(case: Case, f: Fitted) -> tuple[int | None, GgmlType] | None:
    """The rule and type of a tensor that llama-quantize refuses without importance."""
    is_refused = f.type.requires_imatrix or needs_imatrix(case.mix, f.tensor.name, f.type)
    return (f.decision.rule, f.type) if is_refused and f.type != f.tensor.type else None


def _coverage(case: Case) -> Iterator[tuple[int, Coverage]]:
    """What the imatrix knows of each tensor that is encoded and could use it."""
    for t, f in enumerate(case.fitted):
        if f.type != f.tensor.type and (coverage := coverage_of(f.tensor, f.type, case.imatrix)):
            yield t, coverage


GP204 = LintRule("GP204", "note", check_given)
GP206 = LintRule("GP206", "warning", check_entries, needs_imatrix=True)
GP207 = LintRule("GP207", "note", check_experts, needs_imatrix=True)
