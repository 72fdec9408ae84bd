"""Model: what every checkpoint becomes before rules are applied, whatever kind of file it came from.

Tensors have GGUF names (`blk.7.ffn_down_exps.weight`) and shapes with rows first, as NumPy has them: the
last dimension is the row's length, ggml's `ne0`. A tensor of any number of dimensions is also a matrix
of `n_rows` rows of `n_columns` weights; the rows of experts stacked in three dimensions follow one another.
Rows are the unit in which weights are read, encoded and written, so no tensor is ever in memory as a whole.

All code that reads weights does so through a `RowSource`. It states the type of its rows, so the type is
known without reading a row, and bfloat16 reaches an encoder without being widened first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggplan.errors import Error
from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.metadata import Metadata
from ggplan.text import format_bytes, nearest, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The NumPy types for rows of float types; rows of all other types are bytes.
_ARRAYS = {F32: "<f4", F16: "<f2", BF16: "<u2"}


def _no_fault() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows of one tensor, in one type, read from files or computed.

    Attributes
    ----------
    dtype
        The ggml type of the rows.
    shape
        The tensor's, rows first; `()` is one row of one weight.
    read
        `read(start, stop)` gives rows `start` up to `stop` as a C-contiguous array: (stop - start, n_columns)
        float32 for f32, float16 for f16, and uint16, the bits, for bf16; for any other type
        (stop - start, bytes of a row) uint8, the bytes that a GGUF file has. Safe to call from several
        threads at once. Raises `CheckpointError` if a file cannot be read, ValueError for rows that do not
        exist.
    fault
        Reads the data that the weights depend on, such as scales, and says what is wrong with it; "" if
        nothing is. It finds in seconds what reading all rows would find after hours.
    """

    dtype: GgmlType
    shape: tuple[int, ...]
    read: Callable[[int, int], NDArray[Any]]
    fault: Callable[[], str] = _no_fault

    @property
    def n_columns(self) -> int:
        """Weights in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        """Rows of all slices together."""
        return math.prod(self.shape[:-1])

    def read_float32(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop` as a (stop - start, n_columns) float32 array, whatever type they are in.

        Raises
        ------
        CheckpointError, ValueError
            As `read`.
        QuantizationError
            If ggplan does not decode the type.
        """
        import numpy as np

        rows = self.read(start, stop)
        if self.dtype == F32:
            return rows
        if self.dtype == F16:
            return rows.astype(np.float32)
        if self.dtype == BF16:
            from ggplan.quants.floats import widened

            return widened(rows)
        from ggplan.quants import dequantize

        return dequantize(rows, self.dtype)

    def read_bytes(self, start: int, stop: int) -> memoryview:
        """Rows `start` up to `stop` as the bytes that a GGUF file has."""
        return self.read(start, stop).reshape(-1).data.cast("B")

    def as_float32(self) -> RowSource:
        """The same rows in f32."""
        if self.dtype == F32:
            return self
        return RowSource(F32, self.shape, self.read_float32, self.fault)


def empty_rows(dtype: GgmlType, n_rows: int, n_columns: int) -> NDArray[Any]:
    """An uninitialised array for `n_rows` rows of a type, as `RowSource.read` gives them."""
    import numpy as np

    if (array := _ARRAYS.get(dtype)) is not None:
        return np.empty((n_rows, n_columns), array)
    return np.empty((n_rows, dtype.row_bytes(n_columns)), np.uint8)


def require_model(value: object) -> None:
    """Raise TypeError, which says how to open one, unless `value` is a model."""
    if not isinstance(value, Model):
        shown = printable(repr(value))[:80]
        raise TypeError(f"{shown} is not a model; ggplan.open_model opens a path or a name as one")


def require_rows(start: int, stop: int, n_rows: int) -> None:
    """Raise ValueError unless `start` up to `stop` are rows of a tensor with `n_rows` rows."""
    if not 0 <= start <= stop <= n_rows:
        raise ValueError(f"rows {start} to {stop} of {n_rows}")


@dataclass(frozen=True, slots=True)
class Levels:
    """The integers that a matrix of codes is made of: codes less their zero points.

    Attributes
    ----------
    lowest, highest
        Between which they are.
    told
        By what that is known, for people: `'x.qzeros' has zero points 4 to 11`.
    of_codes
        Whether the codes were read for it, at least up to one that no type holds; else the zero points alone.
    why_not
        Why no ggml type holds them, whatever they are; "" if one may.
    """

    lowest: int
    highest: int
    told: str = ""
    of_codes: bool = False
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Integers:
    """Codes that are integers, which several ggml types may hold.

    Attributes
    ----------
    bits
        Of a code; of stacked experts of the widest.
    rows_in
        The codes as rows of q4_0, q5_0 or q8_0, exactly (they raise CheckpointError when they are read and an
        integer is outside of the type), or of q4_1, whose minima are rounded. The `fault` of the rows says
        that a scale has no place in the type.
    levels
        Of each expert, or one for all: reads zero points, and the codes where these do not decide.
    n_bytes
        Of what is read for it: scales, zero points, and codes that may decide.
    """

    bits: int
    rows_in: Callable[[GgmlType], RowSource]
    levels: tuple[Callable[[], Levels], ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Codes:
    """What becomes of the codes of a tensor that its checkpoint stores quantized.

    Where a ggml type holds them exactly they are moved: `TensorInfo.type` is that type and
    `TensorInfo.stored` has them, so that the tensor is copied where the type stays. Else the tensor is
    decoded.

    Attributes
    ----------
    form
        How the checkpoint stores them, in its own words: `int4 group 128`.
    decoded
        The type of the decoded weights where no rule matches.
    why_decoded
        Why they are not moved, for people: "group_size 16 is no multiple of 32"; "" where they are.
    companions
        Tensors that the file needs as long as it has the codes, and must not have with any other type:
        `blk.0.attn_q.scale` of nvfp4. `TensorInfo.rows` has them multiplied in already.
    nearly
        The same weights as rows of q4_1, exact but for the rounding of each block's minimum, where `stored`
        needs a type of more bits; else None.
    settled
        Whether the scales were read (see `ggplan.planning.settling`).
    full_activations
        Whether the checkpoint says that they are not for activations of 4 bits.
    bits
        Bits that the checkpoint has for each code, without scales; 0 where that is not known.
    widened
        What makes the type wider than the form of the codes lets expect, for people, with what is true of one
        tensor alone after ": "; "" where nothing does.
    integers
        Of codes that are integers, from which the type is chosen once their zero points are read; else None.
    too_large_for_q4_1
        Whether a scale is so large that q4_1 does not hold the minimum of its block.
    """

    form: str
    decoded: GgmlType
    why_decoded: str = ""
    companions: tuple[TensorInfo, ...] = ()
    nearly: RowSource | None = None
    settled: bool = False
    full_activations: bool = False
    bits: float = 0.0
    widened: str = ""
    integers: Integers | None = None
    too_large_for_q4_1: bool = False

    @property
    def are_moved(self) -> bool:
        """Whether a ggml type holds them exactly."""
        return not self.why_decoded

    @property
    def outcome(self) -> str:
        """What becomes of them, for tables: `moved from int4 group 128`, `decoded: ...`."""
        if self.why_decoded:
            return f"decoded: {self.why_decoded}"
        return f"moved from {self.form}{self.widened and f', {self.widened}'}"

    @property
    def why_in_short(self) -> str:
        """Why they are decoded, without what is true of one tensor alone: which scale, which expert."""
        return self.why_decoded.partition(": ")[0]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a model.

    Attributes
    ----------
    name
        The GGUF name.
    shape
        Rows first; `shape[-1]` is ggml's ne0.
    type
        The type it keeps when no rule matches: for GGUF the type in the file, for Hugging Face
        checkpoints the type that holds its codes exactly, or the one llama.cpp's converter gives it (f32
        for norms, vectors and the router, the checkpoint's own float type for the rest).
    origin
        Where its weights are, for messages: `model-00003-of-00047.safetensors`.
    stored_as
        The checkpoint's own name of its type: `BF16`, `F8_E4M3`, `q8_0`.
    rows
        Its weights, in f32, f16 or bf16; None for an inventory that has no weights, and for types ggplan
        cannot decode.
    stored
        The rows in `type` as a GGUF file stores them, which are copied where the type stays; None where
        the source has no such rows: a plain Hugging Face tensor, an inventory. For float types this is
        `rows`.
    codes
        Of a tensor that a Hugging Face checkpoint stores quantized; else None.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    origin: str
    stored_as: str
    rows: RowSource | None = None
    stored: RowSource | None = None
    codes: Codes | None = None

    @property
    def n_columns(self) -> int:
        """Weights in a row (ggml's ne0)."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows of all slices together."""
        return math.prod(self.shape[:-1])

    @property
    def n_weights(self) -> int:
        """Weights in the tensor."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in its own type."""
        return self.type.tensor_bytes(self.shape)

    @property
    def is_quantized(self) -> bool:
        """Whether it can be kept as it is quantized: its codes are moved, or a GGUF file has them."""
        return self.type.is_quantized if self.codes is None else self.codes.are_moved

    def without_codes(self, why: str) -> TensorInfo:
        """The same tensor decoded; `why` its codes, which it must have, are not moved."""
        assert self.codes is not None
        codes = replace(self.codes, why_decoded=why, companions=(), nearly=None, widened="", integers=None)
        return replace(self, type=self.codes.decoded, stored=None, codes=codes)


@dataclass(frozen=True, slots=True, repr=False)
class Model:
    """A checkpoint, ready for rules: metadata and tensors, no weights in memory.

    Attributes
    ----------
    path
        What the user opened.
    kind
        `"hf"`, `"gguf"` or `"inventory"` (names and shapes without weights).
    architecture
        GGUF's `general.architecture`, or "" where an inventory does not say.
    metadata
        The key-value pairs the GGUF will carry, in order.
    tensors
        In the checkpoint's order; names are unique.
    files
        The files the weights are in, in order; empty for an inventory.
    notes
        What a user should know of the checkpoint, a sentence each: files that were not read, facts of its
        config that llama.cpp does not use, sizes of a map that are taken otherwise.
    obstacle
        Why it cannot be converted, though its tensors are known: its tokenizer is not known to llama.cpp, or
        only headers were read. None if nothing is in the way.
    converter
        The SHA-256 of the code of llama.cpp's converter, where that made names, keys and transforms of an
        architecture that ggplan does not know itself; else "".
    reshaped
        What was done to it since it was opened (see `ggplan.reshaping`): texts by the key that records each
        in the output, without `ggplan.`.
    """

    path: Path
    kind: str
    architecture: str
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    obstacle: Error | None = None
    converter: str = ""
    reshaped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> TensorInfo:
        """The tensor of this name.

        Raises
        ------
        KeyError
            If there is none, with the nearest name.
        TypeError
            If it is no name: a tensor has no number that a checkpoint and its GGUF share.
        """
        if not isinstance(name, str):
            raise TypeError(
                f"a model's tensors are found by name, not by {type(name).__name__};"
                " model.tensors[0] is the first of them"
            )
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        near = nearest(name, (tensor.name for tensor in self.tensors))
        raise KeyError(f"no tensor {name!r}" + (f"; the nearest is {near!r}" if near else ""))

    def __iter__(self) -> Iterator[TensorInfo]:
        """The tensors."""
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""
        return any(tensor.name == name for tensor in self.tensors)

    @property
    def n_weights(self) -> int:
        """Weights in all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def pretokenizer(self) -> str:
        """The pre-tokenizer's name in llama.cpp; "" where there is none."""
        value = self.metadata.get("tokenizer.ggml.pre")
        return "" if value is None else str(value.decode())

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors in their own types."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def companions(self) -> tuple[TensorInfo, ...]:
        """The tensors that belong to moved codes, which are not among `tensors`: see `Codes`."""
        return tuple(c for t in self.tensors if t.codes is not None for c in t.codes.companions)

    def bytes_by_type(self) -> dict[GgmlType, tuple[int, int, int]]:
        """Tensors, weights and bytes of each type, the type with most bytes first."""
        found: dict[GgmlType, tuple[int, int, int]] = {}
        for tensor in self.tensors:
            n, n_weights, n_bytes = found.get(tensor.type, (0, 0, 0))
            found[tensor.type] = (n + 1, n_weights + tensor.n_weights, n_bytes + tensor.n_bytes)
        return dict(sorted(found.items(), key=lambda item: -item[1][2]))

    def __repr__(self) -> str:
        """One line: `<Model GLM-4.5-Air: glm4moe, 803 tensors, 200 GiB>`."""
        return f"<Model {printable(self.path.name)}: {self._in_words()}>"

    def _repr_html_(self) -> str:
        """The types and their sizes as a table, for notebooks."""
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(type_.name)}</td><td>{n:,}</td><td>{n_weights:,}</td>"
            f"<td>{format_bytes(n_bytes)}</td></tr>"
            for type_, (n, n_weights, n_bytes) in self.bytes_by_type().items()
        )
        return (
            f"<p><b>{escape(printable(self.path.name))}</b>: {escape(self._in_words())}</p>"
            "<table><thead><tr><th>type</th><th>tensors</th><th>weights</th><th>size</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def _in_words(self) -> str:
        architecture = printable(self.architecture) or "unknown architecture"
        return f"{architecture}, {len(self.tensors):,} tensors, {format_bytes(self.n_bytes)}"
