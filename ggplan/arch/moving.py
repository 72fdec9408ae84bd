"""The codes of a quantized checkpoint as rows of a GGUF tensor: whether they can be moved, or why not.

A scheme gives the codes of a tensor as rows of the ggml type that holds them exactly (`sources.schemes`).
A GGUF tensor is made of one such tensor by a transform, or of one for each expert. Its codes are moved if
that only moves whole rows, and all its parts have codes in one type; 4-bit and 5-bit integers side by side
take the wider type, which is as exact. Else the tensor is decoded, and its `Codes` say why.

What a transform does is found by trying: it is given rows that hold their own number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggplan.arch.transforms import constant, stacked
from ggplan.ggml_types import F32, GgmlType
from ggplan.metadata import Metadata, MetadataType, array
from ggplan.model import Codes, Integers, RowSource, TensorInfo, empty_rows, require_rows
from ggplan.sources.codes import Q4_0, Q8_0, WIDER, nearly_q4_1, widened, widened_experts
from ggplan.sources.tensors import CheckpointTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

Transform = Callable[[RowSource], RowSource]
# The tensors that llama.cpp multiplies by a `.scale` of theirs (b11434, `src/llama-model.cpp`, load_tensors).
_SCALED = frozenset({
    "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_gate",
    "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp",
    "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
    "ssm_in", "ssm_out", "ssm_alpha", "ssm_beta", "nextn.eh_proj", "nextn.shared_head_head", "output",
})  # fmt: skip
_READ_AS_FLOAT = "llama.cpp needs the tensor in float"
_ONE = constant([1.0])
_SPLITS_ROWS = "the GGUF tensor is not made of whole rows of the checkpoint's"


def with_codes(
    info: TensorInfo, parts: Sequence[CheckpointTensor], transform: Transform | None, *, is_float: bool
) -> TensorInfo:
    """A tensor that is stored quantized, at least in part, with its codes where they can be moved.

    Parameters
    ----------
    info
        The tensor decoded: its type and rows are those of the weights.
    parts
        The tensor of the checkpoint it is made from, or one for each expert.
    transform
        What makes it; None for experts, which are stacked.
    is_float
        Whether it must have a float type.
    """
    bits = min((part.bits for part in parts if part.bits), default=0.0)
    if is_float:
        return _with(info, Codes(info.stored_as, info.type, _READ_AS_FLOAT, bits=bits))
    integers = _integers(info, parts, transform)
    moved = _moved(info, parts, transform)
    if isinstance(moved, str):
        return _with(info, Codes(info.stored_as, info.type, moved, bits=bits, integers=integers))
    companions = _companions(info, parts)
    if isinstance(companions, str):
        return _with(info, Codes(info.stored_as, info.type, companions, bits=bits))
    codes = Codes(
        info.stored_as,
        info.type,
        companions=companions,
        nearly=_nearly(parts, transform),
        full_activations=any(part.full_activations for part in parts),
        bits=bits,
        widened=widened_experts([part.codes.dtype for part in parts if part.codes is not None]),
        integers=integers,
    )
    return _with(info, codes, moved)


def without_collisions(tensors: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    """The tensors, those decoded whose companions would have the name of another tensor of the model.

    Gemma 4 has its router's `per_expert_scale` where the scales of NVFP4 experts would be.
    """
    names = {tensor.name for tensor in tensors}

    def apart(tensor: TensorInfo) -> TensorInfo:
        companions = tensor.codes.companions if tensor.codes is not None else ()
        taken = next((companion.name for companion in companions if companion.name in names), None)
        if taken is None:
            return tensor
        return tensor.without_codes(f"the name of its scale is that of another tensor: {taken}")

    return tuple(apart(tensor) for tensor in tensors)


def activation_keys(tensors: Iterable[TensorInfo]) -> Metadata:
    """The keys that keep llama.cpp from quantizing to 4 bits what it multiplies with some tensors.

    `_tag_prec_a4` and `add_tensor_extra_prec_a4` of llama.cpp b11434, `conversion/base.py`.
    """
    names = sorted(t.name for t in tensors if t.codes is not None and t.codes.full_activations)
    if not names:
        return {}
    return {
        "general.tensor_extra.name": array(MetadataType.STRING, names),
        "general.tensor_extra.prec_a4": array(MetadataType.BOOL, [False] * len(names)),
    }


def _with(info: TensorInfo, codes: Codes, stored: RowSource | None = None) -> TensorInfo:
    type_ = info.type if stored is None else stored.dtype
    return replace(info, type=type_, stored=stored, codes=codes)


def _moved(
    info: TensorInfo, parts: Sequence[CheckpointTensor], transform: Transform | None
) -> RowSource | str:
    """The rows of codes, or why there are none."""
    without = [number for number, part in enumerate(parts) if part.codes is None]
    if without:
        first = parts[without[0]]
        if len(parts) == 1:
            return first.why_decoded or f"it is stored as {first.stored_as}, not quantized"
        which = f"{len(without):,} of {len(parts):,} experts"
        if not first.why_decoded:
            are = "is" if len(without) == 1 else "are"
            return f"{which} {are} stored as {first.stored_as}, not quantized: {_listed(without)}"
        if len(without) == len(parts):
            return first.why_decoded
        return f"{first.why_decoded} in {which}: {_listed(without)}"
    sources = [part.codes for part in parts if part.codes is not None]
    if transform is None:
        type_ = _common(sources)
        if type_ is None:
            return "its experts have codes in " + " and ".join(dict.fromkeys(s.dtype.name for s in sources))
        return stacked([source if source.dtype == type_ else widened(source, type_) for source in sources])
    return transform(sources[0]) if moves_whole_rows(transform, sources[0], info.shape) else _SPLITS_ROWS


def _integers(
    info: TensorInfo, parts: Sequence[CheckpointTensor], transform: Transform | None
) -> Integers | None:
    """The integers of a tensor all of whose parts have some, if whole rows of them are moved."""
    owns = [part.integers for part in parts if part.integers is not None]
    if len(owns) < len(parts) or any(part.companions for part in parts):
        return None
    bits, levels = max(own.bits for own in owns), tuple(read for own in owns for read in own.levels)
    n_bytes = sum(own.n_bytes for own in owns)
    if transform is None:
        return Integers(bits, lambda type_: stacked([own.rows_in(type_) for own in owns]), levels, n_bytes)
    if not moves_whole_rows(transform, owns[0].rows_in(Q8_0), info.shape):
        return None
    made = transform
    return Integers(bits, lambda type_: made(owns[0].rows_in(type_)), levels, n_bytes)


def _listed(numbers: Sequence[int]) -> str:
    """Experts by number, the first three of them."""
    more = ", …" if len(numbers) > 3 else ""
    return f"expert{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:3]))}{more}"


def _nearly(parts: Sequence[CheckpointTensor], transform: Transform | None) -> RowSource | None:
    """The codes in q4_1, where some need q5_0 to be exact and all can be had so."""
    found = []
    for part in parts:
        rows = part.nearly
        if rows is None and part.codes is not None and part.codes.dtype == Q4_0:
            rows = nearly_q4_1(part.codes)
        if rows is None:
            return None
        found.append(rows)
    if all(part.nearly is None for part in parts):
        return None
    return stacked(found) if transform is None else transform(found[0])


def _common(sources: Sequence[RowSource]) -> GgmlType | None:
    """The narrowest type that holds the codes of all of them; None where there is none."""
    types = {source.dtype for source in sources}
    able = (t for t in types if all(t == other or t in WIDER.get(other, ()) for other in types))
    return next(able, None)


def moves_whole_rows(transform: Transform, source: RowSource, shape: tuple[int, ...]) -> bool:
    """Whether a transform makes a tensor of this shape of whole rows of a source, unchanged."""
    import numpy as np

    row_bytes = source.dtype.row_bytes(source.n_columns)
    noise = np.random.default_rng(0).integers(0, 256, row_bytes, np.uint8)

    def read(start: int, stop: int) -> NDArray[Any]:
        require_rows(start, stop, source.n_rows)
        rows = empty_rows(source.dtype, stop - start, source.n_columns)
        given = rows.view(np.uint8).reshape(stop - start, row_bytes)
        given[:] = noise
        given[:, :8] = np.arange(start, stop, dtype="<u8").view(np.uint8).reshape(-1, 8)
        return rows

    try:
        made = transform(RowSource(source.dtype, source.shape, read))
        if made.dtype != source.dtype or made.shape != shape:
            return False
        for row in {0, made.n_rows // 2, made.n_rows - 1}:
            found = made.read(row, row + 1).view(np.uint8).reshape(-1)
            if found.size != row_bytes or int(found[:8].view("<u8")[0]) >= source.n_rows:
                return False
            if not np.array_equal(found[8:], noise[8:]):
                return False
    except (ValueError, IndexError, TypeError):  # it reshapes or computes, which these rows do not bear
        return False
    return True


def _companions(info: TensorInfo, parts: Sequence[CheckpointTensor]) -> tuple[TensorInfo, ...] | str:
    """The companions of the codes under their names in the GGUF, or why the file cannot have them.

    Each is a vector with one number, or one for each expert; an expert without one has a 1.
    """
    endings = list(dict.fromkeys(ending for part in parts for ending in part.companions))
    if not endings:
        return ()
    stem = info.name.removesuffix(".weight")
    kind = stem.split(".", 2)[-1] if stem.startswith("blk.") else stem
    if kind not in _SCALED:
        return "llama.cpp multiplies no scale of the whole tensor into it"
    found = []
    for ending in endings:
        rows = _one_vector([part.companions.get(ending, _ONE) for part in parts])
        if rows.n_columns != (info.shape[0] if len(info.shape) == 3 else 1):
            return f"it has {rows.n_columns:,} numbers {ending}"
        found.append(TensorInfo(f"{stem}.{ending}", rows.shape, F32, info.origin, info.stored_as, rows, rows))
    return tuple(found)


def _one_vector(sources: Sequence[RowSource]) -> RowSource:
    """Several rows of numbers as one row."""

    def read(start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        require_rows(start, stop, 1)
        values = [source.read_float32(0, 1).reshape(1, -1) for source in sources]
        return np.concatenate(values, axis=1)[: stop - start]

    return RowSource(F32, (sum(source.n_columns for source in sources),), read)
