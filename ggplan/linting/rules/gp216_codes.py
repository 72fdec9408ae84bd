r"""Codes of a quantized checkpoint that are encoded anew although they could be moved.

GP216: codes that could be moved are quantized again, or take more bytes than they need
    The checkpoint is quantized to about 4 bits, and a ggml type holds its codes exactly. To decode them and
    to encode the result as another such type is a second quantization: as q4_0 it keeps 10 to 56 % of the
    blocks and adds an error of 5 to 8 % (relative RMSE of int4 checkpoints of five tools). `keep` moves the
    codes and loses nothing. Types of fewer bits lose what they lose, on top of what the checkpoint has lost.
    Integers are moved into q5_0 and q8_0 too, exactly, and gain nothing there: q8_0 takes twice the bytes for
    the same weights. Codes of mxfp4 and nvfp4 are not, and encoded anew in a wider type they still lose.
    Where no ggml type holds the codes, `keep` has nothing to move: they are decoded, and the finding says
    why. To encode the result in 4 or 5 bits is a second quantization all the same; q8_0 adds the least that
    a quantized type adds, and the decoded type nothing but its rounding.
    + _exps\.weight = keep | q5_K
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import rechosen, some
from ggplan.model import TensorInfo
from ggplan.planning import Fitted
from ggplan.rules import Fix

_FEW_BITS = 5.5  # q5_0, the widest type of 4-bit codes


class Roomy(Finding):
    """Tensors, how the checkpoint stores them, the type of their codes, and the wider one they are in."""

    tensors: str
    n_weights: int
    form: str
    source: GgmlType
    type: GgmlType
    says = (
        "{f.tensors}: {f.form} in the source, whose codes {f.source} holds, moved to {f.type}, which holds "
        "the same weights in more bytes"
    )
    advice = "write `keep`: no weight changes"

    @property
    def cost_bytes(self) -> int | None:
        return round(self.n_weights * (self.type.bits_per_weight - self.source.bits_per_weight) / 8)


class Decoded(Finding):
    """Tensors, how the checkpoint stores them, why they are decoded, and the types they have and get."""

    tensors: str
    form: str
    why: str
    decoded: GgmlType
    type: GgmlType
    says = "{f.tensors}: {f.form} in the source, decoded ({f.why}), encoded anew as {f.type}"
    advice = (
        "no type holds these codes exactly, so `keep` does not move them: q8_0 or {f.decoded} loses least"
    )


class Again(Finding):
    """Tensors, how the checkpoint stores them, the type of their codes, and the type they get."""

    tensors: str
    n_weights: int
    form: str
    source: GgmlType
    type: GgmlType
    says = (
        "{f.tensors}: {f.form} in the source, whose codes {f.source} holds, encoded anew as {f.type}{f.loss}"
    )

    @property
    def loss(self) -> str:
        """What that is known to cost."""
        if self.source.name in ("mxfp4", "nvfp4"):
            return ""
        return ", with an error of 5 to 8 %" if self.type.name == "q4_0" else ""

    def help(self, fix: Fix | None) -> str:
        if fix is not None and "keep(q4_1)" in fix.edits[0].text:
            return "write `keep(q4_1)`, which moves the codes and rounds the minimum of each block"
        if self.type.bits_per_weight < self.source.bits_per_weight:
            return f"it saves {-self._more:.2g} bpw; `keep` moves the codes and loses nothing"
        return "write `keep`, which moves the codes and loses nothing"

    @property
    def _more(self) -> float:
        return self.type.bits_per_weight - self.source.bits_per_weight

    @property
    def cost_bytes(self) -> int | None:
        return round(self.n_weights * self._more / 8) if self._more > 0 else None


def check(case: Case) -> Iterator[Again | Roomy | Decoded]:
    for (rule, form, source, type_), members in case.grouped(_key).items():
        choice, n_weights = case.choice(rule), sum(case.tensors[t].n_weights for t in members)
        fix = None
        if choice is not None and type_.bits_per_weight >= 4:
            keep = "keep" if source.bits_per_weight <= type_.bits_per_weight else _smallest(case, members)
            fix = rechosen(choice, f"{keep} | {choice.text}", safe=_is_no_larger(case, rule, keep))
        told = some(case, members)
        yield Again(case.place(rule), told, n_weights, form, source, type_, fixes=(fix,))
    for (rule, form, source, type_), members in _roomy(case).items():
        choice, n_weights = case.choice(rule), sum(case.tensors[t].n_weights for t in members)
        fix = None
        if choice is not None:
            fix = rechosen(choice, f"keep | {choice.text}", safe=_is_no_larger(case, rule, "keep"))
        told = some(case, members)
        yield Roomy(case.place(rule), told, n_weights, form, source, type_, fixes=(fix,))
    for (rule, form, why, decoded, type_), members in case.grouped(_key_of_decoded).items():
        yield Decoded(case.place(rule), some(case, members), form, why, decoded, type_)


def _key(f: Fitted) -> tuple[int | None, str, GgmlType, GgmlType] | None:
    codes, own = f.tensor.codes, f.tensor.type
    if codes is None or not codes.are_moved or own.bits_per_weight > _FEW_BITS:
        return None
    is_again = f.type.is_quantized and f.type != own and f.decision.reason != "kept"
    return (f.decision.rule, codes.form, own, f.type) if is_again else None


def _roomy(case: Case) -> dict[tuple[int | None, str, GgmlType, GgmlType], list[int]]:
    """The tensors whose codes were moved into a wider type than theirs."""
    found: dict[tuple[int | None, str, GgmlType, GgmlType], list[int]] = {}
    for t, (tensor, f) in enumerate(zip(case.tensors, case.fitted, strict=True)):
        is_moved = f.tensor.type == f.type != tensor.type and f.decision.keep is None
        if tensor.codes is not None and is_moved:
            found.setdefault((f.decision.rule, tensor.codes.form, tensor.type, f.type), []).append(t)
    return found


def _key_of_decoded(f: Fitted) -> tuple[int | None, str, str, GgmlType, GgmlType] | None:
    codes = f.tensor.codes
    if codes is None or codes.are_moved or not 0 < codes.bits < _FEW_BITS:
        return None
    is_again = f.type.is_quantized and f.type.bits_per_weight <= _FEW_BITS
    return (f.decision.rule, codes.form, codes.why_in_short, f.tensor.type, f.type) if is_again else None


def _smallest(case: Case, members: list[int]) -> str:
    """The `keep` of the fewest bits that the tensors have."""
    codes = [case.tensors[t].codes for t in members]
    return "keep(q4_1)" if all(c is not None and c.nearly is not None for c in codes) else "keep"


def _is_no_larger(case: Case, rule: int | None, keep: str) -> bool:
    """Whether no tensor that the choice decides takes more bytes if it keeps its codes."""
    mine = [f for f in case.fitted if f.decision.rule == rule and f.decision.reason in ("rule", "default")]
    kept = [f for f in mine if f.tensor.is_quantized]
    return all(_kept_bits(f.tensor, keep) <= f.type.bits_per_weight for f in kept)


def _kept_bits(tensor: TensorInfo, keep: str) -> float:
    nearly = tensor.codes.nearly if tensor.codes is not None and keep != "keep" else None
    return (tensor.type if nearly is None else nearly.dtype).bits_per_weight


GP216 = LintRule("GP216", "warning", check)
