"""Compare the types that two files, plans or recipes give the same tensors, with the bytes of each role.

A *side* is a table of tensors: name, shape, type, role, bytes. It is made from a model (its types as they are
stored), a plan, or the JSON that `ggplan plan --json` prints. Two tensors are equal if their types and shapes
are; a tensor that only one side has differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ggplan.errors import PlanError, TypeNameError
from ggplan.ggml_types import parse_type
from ggplan.model import Model
from ggplan.planning import Assignment, Fitted, Plan, PlannedTensor, Role, fit, stored_types
from ggplan.planning.export import SCHEMA as PLAN_SCHEMA
from ggplan.planning.fitting import with_companions
from ggplan.planning.layout import file_order, written_shape
from ggplan.planning.roles import roles_in
from ggplan.text import printable

SCHEMA = "ggplan/diff@1"


@dataclass(frozen=True, slots=True)
class SideTensor:
    """One tensor of a side."""

    type: str
    shape: tuple[int, ...]
    role: str
    n_weights: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared: its label, and its tensors by name."""

    label: str
    tensors: Mapping[str, SideTensor]


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor on both sides; None for a side that lacks it."""

    name: str
    before: SideTensor | None
    after: SideTensor | None

    @property
    def role(self) -> str:
        """Its role."""
        entry = self.before or self.after
        assert entry is not None
        return entry.role

    @property
    def bytes(self) -> tuple[int, int]:
        """Its size on both sides."""
        return self.before.n_bytes if self.before else 0, self.after.n_bytes if self.after else 0

    @property
    def verdict(self) -> str:
        """What differs: the type, the shape, or that a side lacks it; "" if nothing does."""
        if self.before is None or self.after is None:
            return "only in B" if self.before is None else "only in A"
        if written_shape(self.before.shape) != written_shape(self.after.shape):
            return "shape"
        return "type" if self.before.type != self.after.type else ""


@dataclass(frozen=True, slots=True)
class Total:
    """Weights and bytes of some tensors on both sides, and how many tensors differ."""

    label: str
    n_tensors: int
    n_different: int
    weights: tuple[int, int]
    bytes: tuple[int, int]

    @property
    def bits_per_weight(self) -> tuple[float, float]:
        """Bits per weight of both sides."""
        first, second = (8 * b / w if w else 0.0 for b, w in zip(self.bytes, self.weights, strict=True))
        return first, second


@dataclass(frozen=True, slots=True)
class Differences:
    """The two sides, all tensors (in the first side's order), and the totals by role."""

    sides: tuple[Side, Side]
    pairs: tuple[Pair, ...]
    by_role: tuple[Total, ...]
    total: Total

    @property
    def changes(self) -> tuple[Pair, ...]:
        """The tensors that differ."""
        return tuple(pair for pair in self.pairs if pair.verdict)

    @property
    def is_same(self) -> bool:
        """Whether no tensor differs."""
        return not self.total.n_different


def side_of_model(model: Model, label: str = "") -> Side:
    """A model with the types it stores."""
    return side_of_assignment(model, stored_types(model), label or str(model.path))


def side_of_assignment(model: Model, assignment: Assignment, label: str) -> Side:
    """A model with the types of an assignment, in the order of an output file.

    Raises
    ------
    PlanError
        If a shape forbids a type and no fallback exists.
    """

    def order(found: Fitted) -> tuple[int, bytes]:
        return file_order(found.tensor.name)

    fitted = fit(model, assignment)
    for found in sorted(fitted, key=order):
        if found.fault is not None:
            raise found.error()
    fitted = tuple(sorted(with_companions(fitted), key=order))
    roles = roles_in(model)
    return Side(label, {f.tensor.name: _side_tensor(f, roles[f.tensor.name]) for f in fitted})


def side_of_plan(plan: Plan, label: str) -> Side:
    """A model under a recipe."""
    return Side(label, {t.name: _side_tensor(t, t.role) for t in plan.tensors})


def _side_tensor(tensor: Fitted | PlannedTensor, role: Role) -> SideTensor:
    info, type_ = tensor.tensor, tensor.type
    return SideTensor(type_.name, info.shape, role.value, info.n_weights, type_.tensor_bytes(info.shape))


def side_of_json(document: Mapping[str, object], label: str) -> Side:
    """A plan as `ggplan plan --json` prints it; bytes are computed from types and shapes.

    Raises
    ------
    PlanError
        If the document is not such a plan.
    """
    if document.get("schema") != PLAN_SCHEMA:
        raise PlanError(f"{printable(label)} is not a plan: its schema is not {PLAN_SCHEMA}")
    listed = document.get("tensors")
    entries = {}
    roles = {role.value for role in Role}
    for item in listed if isinstance(listed, list) else ():
        try:
            name, role, shape = str(item["name"]), str(item["class"]), tuple(int(n) for n in item["shape"])
            type_ = parse_type(item["type"])
            if role not in roles or not shape or min(shape) < 0 or not type_.fits(shape[-1]):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError, TypeNameError):
            raise PlanError(f"{printable(label)} is a damaged plan: a tensor is malformed") from None
        n_weights = 1
        for n in shape:
            n_weights *= n
        entries[name] = SideTensor(type_.name, shape, role, n_weights, type_.tensor_bytes(shape))
    if not entries:
        raise PlanError(f"{printable(label)} is a damaged plan: it lists no tensors")
    return Side(label, entries)


def compare(first: Side, second: Side) -> Differences:
    """Compare two sides tensor by tensor."""
    names = [*first.tensors, *(name for name in second.tensors if name not in first.tensors)]
    pairs = tuple(Pair(name, first.tensors.get(name), second.tensors.get(name)) for name in names)
    order = [role.value for role in Role]
    by_role = tuple(
        _total(role, members) for role in order if (members := [p for p in pairs if p.role == role])
    )
    return Differences((first, second), pairs, by_role, _total("all", pairs))


def transitions(changes: Iterable[Pair]) -> tuple[tuple[str, str, str, Total], ...]:
    """Changes of one role from one type to another summed up: role, type before, type after, total.

    The type is "" if a side lacks the tensor. The largest change in bytes comes first.
    """
    groups: dict[tuple[str, str, str], list[Pair]] = {}
    for change in changes:
        types = (entry.type if entry else "" for entry in (change.before, change.after))
        groups.setdefault((change.role, *types), []).append(change)  # type: ignore[arg-type]
    found = [(*key, _total(key[0], members)) for key, members in groups.items()]
    return tuple(sorted(found, key=lambda row: (-abs(row[3].bytes[1] - row[3].bytes[0]), row[:3])))


def differences_json(differences: Differences, *, every_tensor: bool = False) -> dict[str, object]:
    """The differences as an object of plain JSON types."""
    return {
        "schema": SCHEMA,
        "sides": [side.label for side in differences.sides],
        "same": differences.is_same,
        "total": _total_json(differences.total),
        "by_class": [_total_json(total) for total in differences.by_role],
        "tensors": [
            {
                "name": pair.name,
                "class": pair.role,
                "differs": pair.verdict,
                "before": _tensor_json(pair.before),
                "after": _tensor_json(pair.after),
            }
            for pair in (differences.pairs if every_tensor else differences.changes)
        ],
    }


def _total(label: str, pairs: Iterable[Pair]) -> Total:
    members = list(pairs)
    sides = [[p.before for p in members if p.before], [p.after for p in members if p.after]]
    weights, n_bytes = zip(
        *((sum(e.n_weights for e in side), sum(e.n_bytes for e in side)) for side in sides), strict=True
    )
    return Total(label, len(members), sum(bool(p.verdict) for p in members), weights, n_bytes)


def _total_json(total: Total) -> dict[str, object]:
    return {
        "label": total.label,
        "tensors": total.n_tensors,
        "different": total.n_different,
        "weights": list(total.weights),
        "bytes": list(total.bytes),
        "bits_per_weight": list(total.bits_per_weight),
    }


def _tensor_json(entry: SideTensor | None) -> dict[str, object] | None:
    if entry is None:
        return None
    return {"type": entry.type, "shape": list(entry.shape), "bytes": entry.n_bytes}
