"""What charts of types and of bytes draw: the tensors of a file or of a plan, each with its type and role."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ggplan.errors import ChartError, Error
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.measure.record import Part
from ggplan.model import Model, require_model
from ggplan.planning import Assignment, Plan, fit
from ggplan.planning.export import SCHEMA
from ggplan.planning.layout import file_order
from ggplan.planning.protection import n_dimensions
from ggplan.planning.roles import Role, roles_in
from ggplan.substitutes import read_limited
from ggplan.text import printable

_MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class TypedTensor:
    """One tensor; its shape has rows first."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    role: Role

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return self.type.tensor_bytes(self.shape)

    @property
    def n_weights(self) -> int:
        """Its weights."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def is_matrix(self) -> bool:
        """Whether it has two dimensions or more, as ggml counts them."""
        return n_dimensions(self.shape) > 1


@dataclass(frozen=True, slots=True)
class TypedTensors:
    """All tensors of one file or plan, in the file's order, and what to call it and its model."""

    name: str
    model: str
    tensors: tuple[TypedTensor, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The bytes of each role and type."""
        sums: dict[tuple[str, str], list[int]] = {}
        for tensor in self.tensors:
            total = sums.setdefault((tensor.role.value, tensor.type.name), [0, 0])
            total[0] += tensor.n_bytes
            total[1] += tensor.n_weights
        return tuple(Part(role, type_, *total) for (role, type_), total in sorted(sums.items()))


Drawable = Model | Plan | TypedTensors
"""What has tensors: a model as it is stored, a plan, or tensors that are typed already."""


def typed(subject: Drawable, assignment: Assignment | None = None) -> TypedTensors:
    """The tensors of a model or a plan with their types.

    Parameters
    ----------
    assignment
        The types to draw instead of a model's own.

    Raises
    ------
    PlanError
        If a shape forbids a type and no fallback exists.
    """
    if isinstance(subject, TypedTensors):
        return subject
    if isinstance(subject, Plan):
        model = _name_of(subject.model)
        name = subject.assignment.name or model
        return TypedTensors(
            name, model, tuple(TypedTensor(t.name, t.tensor.shape, t.type, t.role) for t in subject.tensors)
        )
    require_model(subject)
    roles, model = roles_in(subject), _name_of(subject)
    if assignment is None:
        pairs = [(t, t.type) for t in subject.tensors]
    else:
        fitted = fit(subject, assignment)
        for f in fitted:
            if f.fault is not None:
                raise f.error()
        pairs = [(f.tensor, f.type) for f in fitted]
    pairs.sort(key=lambda pair: file_order(pair[0].name))
    name = model if assignment is None else assignment.name or model
    return TypedTensors(
        name, model, tuple(TypedTensor(t.name, t.shape, type_, roles[t.name]) for t, type_ in pairs)
    )


def _name_of(model: Model) -> str:
    return model.path.name.removesuffix(".gguf") or str(model.path)


def is_plan_file(path: Path) -> bool:
    """Whether a file begins as the JSON of `ggplan plan --json` does."""
    try:
        with path.open("rb") as file:
            return is_plan(file.read(200))
    except OSError:
        return False


def is_plan(start: bytes) -> bool:
    """Whether a file that begins with these bytes begins as the JSON of `ggplan plan --json` does."""
    return start.lstrip().startswith(b"{") and SCHEMA.encode() in start


def read_plan(path: Path) -> TypedTensors:
    """The tensors in a plan that `ggplan plan --json` wrote.

    Raises
    ------
    ChartError
        If the file cannot be read, or is no such plan.
    """
    shown = printable(str(path))
    raw = read_limited(path, _MAX_BYTES, "plan", ChartError)
    try:
        plan = json.loads(raw)
        recipe = plan["recipe"]["name"] if plan["recipe"] else ""
        model = Path(str(plan["model"]["path"])).name.removesuffix(".gguf")
        tensors = tuple(_tensor(item) for item in plan["tensors"])
    except (KeyError, TypeError, ValueError, RecursionError, Error) as error:
        raise ChartError(
            f"{shown} is not a whole plan: {printable(str(error))}",
            hint="`ggplan plan MODEL -r RECIPE -o PLAN.json` writes one",
        ) from None
    return TypedTensors(str(recipe) or model, model, tensors)


def _tensor(item: dict[str, object]) -> TypedTensor:
    shape = item["shape"]
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 1 << 40 for n in shape):
        raise ValueError(f"a tensor's shape is {shape!r:.60}")
    tensor = TypedTensor(
        str(item["name"]), tuple(shape), parse_type(str(item["type"])), Role(str(item["class"]))
    )
    _ = tensor.n_bytes  # raises ValueError where the shape does not hold whole blocks
    return tensor
