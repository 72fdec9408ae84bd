"""The multiplications in llama.cpp's compute graph, as its callback for each node shows them.

llama.cpp asks the callback of a context (`cb_eval`) before each node of a graph whether it wants to see it,
and calls it again when a wanted node is computed. A node is a `struct ggml_tensor`, whose layout here is that
of ggml/include/ggml.h since 2024 (llama.cpp b11434):

    MUL_MAT      src0 weight (n, rows, matrices)   src1 input (n, tokens, ...)
    MUL_MAT_ID   src0 experts (n, rows, experts)   src1 input (n, 1 or k, tokens)   src2 ids (k, tokens)

with ggml's ne0 first. Of what is seen only host memory can be read, so the model runs on the CPU.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import MeasureError

_F32 = 0
_MULTIPLY, _MULTIPLY_EXPERTS = b"MUL_MAT", b"MUL_MAT_ID"
_COPIED = re.compile(r"[^#]*#(?P<name>[^#]*)(#.*)?")


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


@dataclass(frozen=True, slots=True)
class Node:
    """A multiplication of a weight and an input.

    Attributes
    ----------
    weight
        The weight's name.
    is_experts
        Whether the weight is stacked experts, to which tokens are sent by ids.
    weight_shape, input_shape
        ggml's, ne0 first, four numbers.
    n_routes
        How many experts a token is sent to; 0 without experts.
    source
        What memory the input is: equal for the weights of one graph that have the same input.
    input_name
        The input's name: `ffn_norm-3`.
    """

    weight: str
    is_experts: bool
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    n_routes: int
    source: tuple[int, ...]
    input_name: str
    _tensor: Any

    @property
    def n_columns(self) -> int:
        """Weights in a row."""
        return self.weight_shape[0]

    @property
    def n_matrices(self) -> int:
        """Experts, or matrices of a stack; 1 for a plain weight."""
        return self.weight_shape[2] * self.weight_shape[3]

    @property
    def n_rows(self) -> int:
        """Rows of the input."""
        return int(np.prod(self.input_shape[1:]))

    def input(self) -> NDArray[np.float32]:
        """The input with rows first, (ne3, ne2, ne1, ne0); a view of llama.cpp's own memory.

        Raises
        ------
        MeasureError
            If it is not in memory that can be read.
        """
        found = self._tensor.src[1].contents
        strides = [int(n) for n in found.nb][::-1]
        return _view(found, np.dtype("<f4"), self.input_shape[::-1], strides)

    def routes(self) -> NDArray[np.int32]:
        """For each token the experts that it is sent to, (tokens, k)."""
        ids = self._tensor.src[2].contents
        shape, strides = [int(ids.ne[1]), int(ids.ne[0])], [int(ids.nb[1]), int(ids.nb[0])]
        return _view(ids, np.dtype("<i4"), shape, strides)


def _view(tensor: Any, dtype: np.dtype[Any], shape: Any, strides: list[int]) -> NDArray[Any]:
    if not tensor.data:
        raise MeasureError("llama.cpp keeps an input where it cannot be read")
    span = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + dtype.itemsize
    raw = (ctypes.c_char * span).from_address(tensor.data)
    return np.ndarray(shape, dtype, raw, 0, strides)


class Graph:
    """Reads nodes of llama.cpp's graphs.

    Parameters
    ----------
    api
        llama-cpp-python.

    Raises
    ------
    MeasureError
        If its library of ggml is not found.
    """

    def __init__(self, api: Any) -> None:
        try:
            library = _ggml_of(api)
            self._op_name = library.ggml_op_name
            self._get_name = library.ggml_get_name
            self._is_host = library.ggml_backend_buffer_is_host
        except (ImportError, AttributeError, OSError) as error:
            raise MeasureError(
                f"llama-cpp-python {api.__version__} does not let its graphs be read ({error})",
                hint="pip install --upgrade llama-cpp-python",
            ) from error
        self._op_name.restype = self._get_name.restype = ctypes.c_char_p
        self._op_name.argtypes, self._get_name.argtypes = [ctypes.c_int], [ctypes.c_void_p]
        self._is_host.restype, self._is_host.argtypes = ctypes.c_bool, [ctypes.c_void_p]
        self._ops: dict[int, bytes] = {}
        self._is_known = False

    def node(self, pointer: int) -> Node | None:
        """The node at an address, if it multiplies a weight with an input in f32; else None."""
        tensor = ctypes.cast(pointer, ctypes.POINTER(_Tensor)).contents
        if not self._is_known:
            self._check_layout(pointer, tensor)
        op = self._ops.get(tensor.op)
        if op is None:
            op = self._ops[tensor.op] = self._op_name(tensor.op)
        if op not in (_MULTIPLY, _MULTIPLY_EXPERTS):
            return None
        weight, given = tensor.src[0].contents, tensor.src[1].contents
        if given.type != _F32 or given.nb[0] != 4 or given.ne[0] != weight.ne[0]:
            return None
        is_experts = op == _MULTIPLY_EXPERTS
        shape = tuple(int(n) for n in given.ne)
        strides = tuple(int(n) for n in given.nb)
        root = int(given.view_src or ctypes.addressof(given))
        # Reshaping changes nothing that is read; another order of the same memory does.
        dense = all(s == 4 * int(np.prod(shape[:i])) for i, s in enumerate(strides) if shape[i] > 1)
        order = () if dense else (*shape, *strides)
        source = (root, int(given.view_offs), shape[0], int(np.prod(shape)), *order)
        return Node(
            _weight_name(weight.name),
            is_experts,
            tuple(int(n) for n in weight.ne),
            shape,
            int(tensor.src[2].contents.ne[0]) if is_experts else 0,
            source,
            given.name.decode("utf-8", "replace"),
            tensor,
        )

    def require_host(self, node: Node) -> None:
        """Raise MeasureError unless the node's input is in memory that can be read."""
        for source in node._tensor.src[1:3] if node.is_experts else node._tensor.src[1:2]:
            buffer = source.contents.buffer
            if buffer and not self._is_host(buffer):
                raise MeasureError(
                    f"the input of {node.weight} is on another device than the CPU",
                    hint="use a llama-cpp-python that was built for the CPU",
                )

    def _check_layout(self, pointer: int, tensor: Any) -> None:
        """Refuse a library whose nodes have another layout than this module knows."""
        if self._get_name(pointer) != tensor.name:
            raise MeasureError(
                "this llama-cpp-python has another layout of tensors than ggplan knows",
                hint="pip install 'llama-cpp-python>=0.3.30,<0.4'",
            )
        self._is_known = True


def _ggml_of(api: Any) -> Any:
    """The library that has ggml's functions: that of llama.cpp, where it finds those it is linked with."""
    library = api.llama_cpp._lib
    if hasattr(library, "ggml_op_name"):
        return library
    from llama_cpp._ggml import libggml

    return libggml


def _weight_name(name: bytes) -> str:
    """A weight's name, without what is put around that of a copy: `CUDA0#blk.0.attn_q.weight#0`."""
    text = name.decode("utf-8", "replace")
    copied = _COPIED.fullmatch(text)
    return copied["name"] if copied else text
