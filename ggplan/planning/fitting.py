"""Fitting: the types an assignment asks for, against the shapes of the model.

A type can be used only if a row holds whole blocks of it. If not, the fallback table of an engine (see
`ggplan.planning.fallback`) gives another type; if the table has none, there is a fault, which `lay_out`
raises and a check reports.

ik_llama.cpp looks the rows of `token_embd.weight` up one by one, so it does not interleave them, nor rows
that are no whole groups: the plain type takes the place of such an `_rN` type (`src/llama-quantize.cpp`,
interleaved_properties).

Codes of a checkpoint are moved into a wider type that is asked for, where that type holds them exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.planning.assignment import Assignment, Decision, unknown_tensor
from ggplan.planning.fallback import FallbackTable, fallback_type, remainder, table_of
from ggplan.planning.protection import kept_type, protection_of
from ggplan.sources.codes import Q4_1, WIDER, widened
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class Fitted:
    """A tensor, the decision for it, and the type it gets.

    Attributes
    ----------
    type
        The type decided on, or the one that the fallback table puts in its place. Where there is a fault,
        the type the tensor has without a recipe.
    fault
        Why the tensor cannot have the type decided on, nor any in its place; else None. The message does not
        name the tensor, see `error`.
    owner
        The tensor that a companion belongs to (see `ggplan.model.Codes`); "" for a tensor of the model.
    """

    tensor: TensorInfo
    decision: Decision
    type: GgmlType
    fault: PlanError | None = None
    owner: str = ""

    @property
    def asked(self) -> GgmlType | None:
        """The type decided on, where the fallback table put `type` in its place; else None."""
        return None if self.fault is not None or self.type == self.decision.type else self.decision.type

    def error(self) -> PlanError:
        """The error to raise for the fault, which there must be."""
        assert self.fault is not None
        return PlanError(f"{printable(self.tensor.name)}: {self.fault.message}", hint=self.fault.hint)


def fit(model: Model, assignment: Assignment, fallback: FallbackTable | None = None) -> tuple[Fitted, ...]:
    """The type each tensor gets, in the model's order.

    Parameters
    ----------
    fallback
        Whose table replaces a type that a shape forbids; None for the engine that the recipe's `@target`
        names, llama.cpp if it names none.

    Raises
    ------
    PlanError
        If the assignment lacks a tensor of the model, or has one that the model lacks.
    """
    decisions = assignment.decisions
    names = {tensor.name: tensor for tensor in model.tensors}
    whose = f"the assignment {assignment.name}".rstrip()
    for name in names:
        if name not in decisions:
            raise unknown_tensor(name, decisions, printable(whose))
    for name in decisions:
        if name not in names:
            raise unknown_tensor(name, names, printable(str(model.path)))
    table = fallback or table_of(assignment.recipe)
    return tuple(fitted(tensor, decisions[tensor.name], table) for tensor in model.tensors)


def with_companions(fitted: Iterable[Fitted]) -> Iterator[Fitted]:
    """The tensors of a file: the model's, and behind those that keep their codes their companions."""
    for found in fitted:
        yield found
        tensor = found.tensor
        if tensor.codes is not None and found.type == tensor.type:
            for companion in tensor.codes.companions:
                decision = Decision(companion.type, "kept", protection_of(companion))
                yield Fitted(companion, decision, companion.type, owner=tensor.name)


def replaced(asked: GgmlType, got: GgmlType, n_columns: int) -> str:
    """A fallback in words: `rows of 1408 do not fit q6_K (1408 % 256 = 128); q8_0 takes its place`."""
    if asked.fits(n_columns):
        return f"ik_llama.cpp cannot interleave its rows as {asked} does; {got} takes its place"
    return f"rows of {n_columns} do not fit {asked} ({remainder(asked, n_columns)}); {got} takes its place"


def allows(tensor: TensorInfo, type_: GgmlType) -> bool:
    """Whether a tensor's shape allows a type: whole blocks in a row, whole groups of rows."""
    return type_.fits(tensor.n_columns) and (type_.row_group == 1 or tensor.n_rows % type_.row_group == 0)


def fitted(tensor: TensorInfo, decision: Decision, table: FallbackTable) -> Fitted:
    """The type one tensor gets for what was decided, and the tensor in it where its codes are moved there."""
    found = _fitted(tensor, decision, table)
    codes, type_ = tensor.codes, found.type
    if codes is None or not codes.are_moved or type_ not in WIDER.get(found.tensor.type, ()):
        return found
    if type_ == Q4_1 and codes.too_large_for_q4_1:
        return found
    stored = None if tensor.stored is None else widened(tensor.stored, type_)
    return replace(found, tensor=replace(tensor, type=type_, stored=stored))


def _fitted(tensor: TensorInfo, decision: Decision, table: FallbackTable) -> Fitted:
    asked = decision.type
    if decision.reason == "kept" or decision.keep is not None:
        if tensor.codes is not None and tensor.codes.nearly is not None and asked != tensor.type:
            tensor = replace(tensor, type=asked, stored=tensor.codes.nearly)
        return Fitted(tensor, decision, asked)
    if table == "ik" and asked.fits(tensor.n_columns) and not _interleaves(asked, tensor):
        return Fitted(tensor, decision, asked.plain)
    if allows(tensor, asked):
        return Fitted(tensor, decision, asked)
    if asked.fits(tensor.n_columns):
        reason = f"{asked.name} interleaves {asked.row_group} rows and {tensor.n_rows} rows do not divide"
        return Fitted(tensor, decision, kept_type(tensor), PlanError(reason))
    try:
        return Fitted(tensor, decision, fallback_type(asked, tensor.n_columns, table))
    except PlanError as error:
        return Fitted(tensor, decision, kept_type(tensor), error)


def _interleaves(type_: GgmlType, tensor: TensorInfo) -> bool:
    """Whether ik_llama.cpp stores the tensor's rows as the type asks for."""
    return type_.row_group == 1 or (
        tensor.name != "token_embd.weight" and tensor.n_rows % type_.row_group == 0
    )
