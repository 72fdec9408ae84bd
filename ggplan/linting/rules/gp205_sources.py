r"""Weights that are quantized twice, or written with more bits than they have.

GP205: a quantized tensor is quantized again
    Each encoding loses. Start from the original weights, or let the tensor keep its type.

GP211: the type is wider than the source
    More bits than the source has say nothing more: bf16 weights in f32 take twice the bytes and give
    the same results.
    - attn_q\.weight = f32
    + attn_q\.weight = bf16
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import rechosen, some
from ggplan.planning import Fitted


class Twice(Finding):
    """Tensors quantized in the source, their form there, what keeps it, and the other type they get."""

    tensors: str
    n_weights: int
    form: str
    source: GgmlType
    kept: str
    type: GgmlType
    says = "{f.tensors}: {f.form} in the source, encoded again as {f.type}"
    advice = "each encoding loses: write `{f.kept}`, or start from the original weights"


class Wider(Twice):
    """Tensors that get more bits than the source has."""

    says = "{f.tensors}: {f.form} in the source, written as {f.type}"
    advice = "more bits say no more: write `{f.kept}`"

    @property
    def cost_bytes(self) -> int:
        return round(self.n_weights * (self.type.bits_per_weight - self.source.bits_per_weight) / 8)


def check_twice(case: Case) -> Iterator[Twice]:
    return _grouped(case, Twice, _is_twice)


def check_wider(case: Case) -> Iterator[Twice]:
    return _grouped(case, Wider, _is_wider)


def _is_twice(f: Fitted) -> bool:
    is_moved = f.tensor.codes is not None  # codes of a checkpoint that is quantized: GP216
    return f.tensor.type.is_quantized and f.type.is_quantized and not is_moved


def _is_wider(f: Fitted) -> bool:
    # A mix such as F32 is asked for by its type; a rule may not have been meant so.
    is_ruled = f.decision.reason in ("rule", "default") and f.decision.protected is None
    is_wider = f.type.bits_per_weight > f.tensor.type.bits_per_weight
    # Codes that are decoded are products, which often only f32 holds.
    is_decoded = f.tensor.codes is not None and not f.tensor.codes.are_moved
    return (
        is_ruled and is_wider and not is_decoded and not (f.tensor.type.is_quantized and f.type.is_quantized)
    )


def _grouped(case: Case, kind: type[Twice], is_meant: Callable[[Fitted], bool]) -> Iterator[Twice]:
    """One finding for each choice, form, source type and type."""

    def key(f: Fitted) -> tuple[int | None, str, GgmlType, GgmlType] | None:
        source, codes = f.tensor.type, f.tensor.codes
        is_chosen = f.decision.reason != "kept" and source != f.type and source.kind != "integer"
        return (
            (f.decision.rule, codes.form if codes else "", source, f.type)
            if is_chosen and is_meant(f)
            else None
        )

    for (rule, form, source, type_), members in case.grouped(key).items():
        n_weights, kept = sum(case.tensors[t].n_weights for t in members), "keep" if form else str(source)
        fix = rechosen(case.choice(rule), kept, safe=False)
        told = some(case, members)
        yield kind(case.place(rule), told, n_weights, form or str(source), source, kept, type_, fixes=(fix,))


GP205 = LintRule("GP205", "warning", check_twice)
GP211 = LintRule("GP211", "warning", check_wider)
