"""The tensors of a compute graph and the order in which they are computed.

A tensor is made by an operation on others. Asking for one to be computed puts it behind all it needs, depth
first, as the engine does; the order decides what lives at the same time and so how large a buffer must be.

Source: llama.cpp b11434, `ggml/src/ggml.c` (ggml_build_forward_expand, the shapes of operations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ggplan.ggml_types import F16, F32, GgmlType

Shape = tuple[int, int, int, int]
VIEWS = frozenset({"view", "reshape", "permute", "transpose"})
IN_PLACE = frozenset({
    "add", "add id", "clamp", "div", "fill", "log", "mul", "rms norm", "rope", "scale", "soft max", "sqr",
    "sqrt", "sub", "unary",
})  # fmt: skip
"""Operations that may write over what they read."""


@dataclass(slots=True, eq=False)
class Tensor:
    """One tensor of a graph.

    Attributes
    ----------
    op
        What makes it; "" for weights, caches and inputs.
    type, shape
        ggml type; ggml's order, the row's length first.
    sources
        What it is made of, in the engine's order.
    strides
        Bytes between neighbours in each dimension.
    n_bytes
        Bytes from the first to the last element.
    viewed
        The tensor that owns its data, where it is a view.
    device
        Number of the device that holds it before the graph runs (weights and caches); None for others.
    is_weight, is_streamed
        Of those: a weight; and one in RAM that a GPU may read.
    is_input, is_output
        Filled by the program before the graph runs; kept after it.
    runs_on_gpu
        Whether a GPU has a kernel for it.
    gpu_extra
        Bytes that a GPU needs behind its result.
    fused
        Operations from this one on that a GPU may run as one, 0 if none.
    """

    op: str
    type: GgmlType
    shape: Shape
    sources: tuple[Tensor, ...] = ()
    strides: tuple[int, int, int, int] = (0, 0, 0, 0)
    n_bytes: int = 0
    viewed: Tensor | None = None
    device: int | None = None
    is_weight: bool = False
    is_streamed: bool = False
    is_input: bool = False
    is_output: bool = False
    runs_on_gpu: bool = True
    gpu_extra: int = 0
    fused: int = 0
    # Of the scheduler and the allocator.
    at: int = -1
    children: int = 0
    views: int = 0
    is_own: bool = False
    offset: int = 0
    buffer: int = 0

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie one behind the other."""
        return self.strides == _strides(self.type, self.shape)


def _strides(kind: GgmlType, shape: Shape) -> tuple[int, int, int, int]:
    row = shape[0] // kind.block_size * kind.block_bytes
    return kind.block_bytes, row, row * shape[1], row * shape[1] * shape[2]


def _bytes(kind: GgmlType, shape: Shape, strides: tuple[int, int, int, int]) -> int:
    """Bytes from the first element to the last, as ggml_nbytes counts."""
    n0, n1, n2, n3 = shape
    if not (n0 and n1 and n2 and n3):
        return 0
    _, s1, s2, s3 = strides
    rest = (n1 - 1) * s1 + (n2 - 1) * s2 + (n3 - 1) * s3
    if kind.block_size == 1:
        return kind.block_bytes + (n0 - 1) * strides[0] + rest
    return n0 * strides[0] // kind.block_size + rest


@dataclass(slots=True)
class Graph:
    """A graph that is being built.

    Attributes
    ----------
    nodes
        Tensors to compute, in order.
    leafs
        Weights, caches, inputs, in the order in which they were met.
    """

    nodes: list[Tensor] = field(default_factory=list)
    leafs: list[Tensor] = field(default_factory=list)
    _n_seen: int = 0

    # --- What is there before ------------------------------------------------------------------------

    def given(
        self,
        kind: GgmlType,
        shape: Sequence[int],
        device: int,
        *,
        weight: bool = False,
        streamed: bool = False,
    ) -> Tensor:
        """A weight or a cache on a device."""
        tensor = _new("", kind, _four(shape))
        tensor.device, tensor.is_weight, tensor.is_streamed = device, weight, streamed
        return tensor

    def input(self, kind: GgmlType, *shape: int) -> Tensor:
        """What the program fills in."""
        tensor = _new("", kind, _four(shape))
        tensor.is_input = True
        return tensor

    def fresh(self, kind: GgmlType, *shape: int) -> Tensor:
        """A tensor that nothing fills: it is made for an operation to write into."""
        return _new("", kind, _four(shape))

    # --- Operations ----------------------------------------------------------------------------------

    def op(self, op: str, shape: Sequence[int], *sources: Tensor | None, kind: GgmlType = F32) -> Tensor:
        """The result of an operation."""
        tensor = _new(op, kind, _four(shape))
        tensor.sources = tuple(s for s in sources if s is not None)
        return tensor

    def like(self, op: str, *sources: Tensor | None) -> Tensor:
        """An operation on every element of the first source."""
        first = sources[0]
        assert first is not None
        return self.op(op, first.shape, *sources, kind=first.type)

    def mul_mat(self, weight: Tensor, x: Tensor) -> Tensor:
        """Rows of `x` times a matrix."""
        return self.op("mul mat", (weight.shape[1], *x.shape[1:]), weight, x)

    def mul_mat_id(self, experts: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        """Rows of `x`, each times the matrices of the experts that it chose."""
        return self.op("mul mat id", (experts.shape[1], ids.shape[0], x.shape[2], 1), experts, x, ids)

    def get_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table."""
        kind = table.type if table.type.name == "i32" else F32
        return self.op("get rows", (table.shape[0], *ids.shape[:3]), table, ids, kind=kind)

    def set_rows(self, into: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """Rows written into a tensor; the result is a view of it."""
        tensor = self.view(into, into.shape, into.strides)
        tensor.op, tensor.sources = "set rows", (rows, ids, into)
        return tensor

    def in_place(self, op: str, into: Tensor, other: Tensor) -> Tensor:
        """An operation that writes over its first source; the result is a view of it."""
        tensor = self.view(into, into.shape, into.strides)
        tensor.op, tensor.sources = op, (into, other)
        return tensor

    def concat(self, a: Tensor, b: Tensor, dim: int) -> Tensor:
        """Two tensors one behind the other."""
        shape = list(a.shape)
        shape[dim] += b.shape[dim]
        return self.op("concat", shape, a, b, kind=a.type)

    def copy_into(self, source: Tensor, target: Tensor) -> Tensor:
        """A copy to where a view of another tensor lies."""
        tensor = self.view(target, target.shape, target.strides)
        tensor.op, tensor.sources = "cpy", (source, target)
        return tensor

    def contiguous(self, x: Tensor, *shape: int) -> Tensor:
        """A copy whose elements lie one behind the other."""
        return self.op("cont", shape or x.shape, x, kind=x.type)

    def argsort_top(self, x: Tensor, k: int, i32: GgmlType) -> Tensor:
        """Numbers of the `k` largest of each row: a view of all sorted."""
        order = self.op("argsort", x.shape, x, kind=i32)
        return self.view(order, (k, *x.shape[1:]), order.strides)

    # --- Views ---------------------------------------------------------------------------------------

    def view(self, x: Tensor, shape: Sequence[int], strides: Sequence[int] | None = None) -> Tensor:
        """A view; without strides it is contiguous."""
        return _viewing(x, "view", _four(shape), None if strides is None else (*strides,))

    def slice(self, x: Tensor, shape: Sequence[int], *strides: int) -> Tensor:
        """A view with the strides of dimensions 1, 2...; those not given follow from the last."""
        four = _four(shape)
        found = [x.type.block_bytes, *strides]
        while len(found) < 4:
            found.append(found[-1] * four[len(found) - 1])
        return _viewing(x, "view", four, tuple(found))

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """The same elements in another shape."""
        return _viewing(x, "reshape", _four(shape), None)

    def permute(self, x: Tensor, *to: int) -> Tensor:
        """Dimensions in another order: dimension i becomes dimension `to[i]`."""
        shape, strides = [0] * 4, [0] * 4
        for i, j in enumerate(to):
            shape[j], strides[j] = x.shape[i], x.strides[i]
        return _viewing(x, "permute", _four(shape), tuple(strides))

    def transpose(self, x: Tensor) -> Tensor:
        """The first two dimensions in the other order."""
        return self.permute(x, 1, 0, 2, 3)

    # --- Order ---------------------------------------------------------------------------------------

    def expand(self, tensor: Tensor) -> None:
        """Put a tensor behind all that it needs."""
        if tensor.at >= 0:
            return
        stack: list[tuple[Tensor, int]] = [(tensor, 0)]
        tensor.at = self._n_seen
        self._n_seen += 1
        while stack:
            current, i = stack.pop()
            sources = current.sources
            n = len(sources)
            while i < n and sources[i].at >= 0:
                i += 1
            if i < n:
                stack.append((current, i + 1))
                found = sources[i]
                found.at = self._n_seen
                self._n_seen += 1
                stack.append((found, 0))
            elif current.op:
                self.nodes.append(current)
            else:
                self.leafs.append(current)


def _four(shape: Sequence[int]) -> Shape:
    n = len(shape)
    if n == 4:
        return shape[0], shape[1], shape[2], shape[3]
    if n == 2:
        return shape[0], shape[1], 1, 1
    if n == 3:
        return shape[0], shape[1], shape[2], 1
    return shape[0], 1, 1, 1


def _new(op: str, kind: GgmlType, shape: Shape) -> Tensor:
    row = -(-shape[0] // kind.block_size) * kind.block_bytes
    s2 = row * shape[1]
    s3 = s2 * shape[2]
    return Tensor(op, kind, shape, (), (kind.block_bytes, row, s2, s3), s3 * shape[3])


def _viewing(x: Tensor, op: str, shape: Shape, strides: tuple[int, ...] | None) -> Tensor:
    found = _strides(x.type, shape) if strides is None else (strides[0], strides[1], strides[2], strides[3])
    tensor = Tensor(op, x.type, shape, (x,), found, _bytes(x.type, shape, found))
    base = x if x.viewed is None else x.viewed
    tensor.viewed, tensor.device = base, base.device
    return tensor


__all__ = ["F16", "F32", "IN_PLACE", "VIEWS", "Graph", "Shape", "Tensor"]
