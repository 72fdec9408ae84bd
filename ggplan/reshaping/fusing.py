"""Fused tensors: gate and up of the experts, or q, k and v, joined to one, or cut apart.

    gate-up   blk.N.ffn_gate_exps, blk.N.ffn_up_exps       of each expert gate's rows, then up's
    qkv       blk.N.attn_q, blk.N.attn_k, blk.N.attn_v     one's rows after the other's, biases too

llama.cpp reads either form of some architectures. Joined, they stand where the last of them stood. As
`--fuse-gate-up-exps` and `--fuse-qkv` of llama.cpp's `convert_hf_to_gguf.py` (b11434, `modify_tensors` and
`prepare_qkv_fusion` in `conversion/base.py`): a layer that lacks one of them, or has biases of some, stays as
it is. Rows stay whole, so quantized ones are joined and cut too, if they are of one type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ggplan.errors import PlanError
from ggplan.ggml_types import F32, GgmlType
from ggplan.model import Codes, Integers, Model, RowSource, TensorInfo, empty_rows
from ggplan.reshaping.blocks import BLOCK, block_of, mtp_blocks, n_blocks, number, numbered, with_extras
from ggplan.reshaping.importance import also_under
from ggplan.sources.codes import HALVES, joined_levels, widened, widest
from ggplan.text import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggplan.imatrix import Imatrix

# The architectures of which llama.cpp b11434 reads both forms: whose loading in `src/models/*.cpp` calls
# create_tensor_gate_up_exps or create_tensor_qkv, or does the same by itself (gemma4). Its
# converter fuses those that MODEL_TENSORS in `gguf-py/gguf/constants.py` has the fused tensor of, and leaves
# the others as they are.
_GATE_UP = frozenset({
    "cohere2moe", "deepseek2", "deepseek2-ocr", "gemma4", "granite_swa", "hy_v3", "mistral4",
    "qwen35moe", "qwen3next", "qwen4exp",
})  # fmt: skip
_QKV = frozenset({
    "afmoe", "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bert", "chameleon", "chatglm",
    "codeshell", "cohere2", "cohere2moe", "command-r", "deci", "deepseek", "deepseek2-ocr", "dots1",
    "dream", "ernie4_5", "ernie4_5-moe", "eurobert", "exaone", "exaone-moe", "exaone4", "falcon-h1",
    "gemma", "gemma-embedding", "gemma2", "gemma3", "gemma3n", "gemma4", "glm4", "glm4moe", "gpt-oss",
    "granite", "granite_swa", "granitehybrid", "granitemoe", "grok", "grovemoe", "hrm_text",
    "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3", "internlm2", "jais2", "jamba",
    "jina-bert-v2", "kimi-linear", "laguna", "lfm2", "lfm2moe", "llada", "llada-moe", "llama",
    "llama-embed", "llama4", "maincoder", "maple", "mellum", "mimo2", "minicpm", "minimax-01",
    "minimax-m2", "minimax-m3", "mistral3", "muse-glimmer", "nanbeige", "nemotron", "nemotron_h",
    "nemotron_h_moe", "olmo", "olmo2", "olmoe", "orion", "paddleocr", "pangu-embedded", "phi2", "phi3",
    "phimoe", "plamo", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen35", "qwen35moe", "qwen3moe",
    "qwen3next", "qwen3vl", "qwen3vlmoe", "qwen4exp", "refact", "rnd1", "seed_oss", "smallthinker",
    "smollm3", "spark2_5", "stablelm", "starcoder2", "step35", "talkie", "xverse",
})  # fmt: skip
# Those of them whose q, k and v the converter leaves apart, whatever it is asked.
_CONVERTER_LEAVES = frozenset({
    "cohere2moe", "granite_swa", "hrm_text", "hy_v3", "laguna", "maple", "mellum", "minimax-m3", "nanbeige",
    "talkie",
})  # fmt: skip
# Whose MTP blocks have names in the checkpoint of which the converter does not tell q, k and v.
_MTP_APART = ("nemotron_h", "nemotron_h_moe")


@dataclass(frozen=True, slots=True)
class _Form:
    """A fused tensor of a layer and its parts, in the order of rows."""

    title: str
    whole: str
    parts: tuple[str, ...]
    endings: tuple[str, ...]
    architectures: frozenset[str]

    def is_whole(self, name: str) -> bool:
        """Whether it is the name of a fused tensor."""
        return any(name.endswith(f".{self.whole}{ending}") for ending in self.endings)


_WEIGHT = ".weight"
_FORMS = {
    "gate-up": _Form(
        "gate and up", "ffn_gate_up_exps", ("ffn_gate_exps", "ffn_up_exps"), (".weight",), _GATE_UP
    ),
    "qkv": _Form("q, k and v", "attn_qkv", ("attn_q", "attn_k", "attn_v"), (".weight", ".bias"), _QKV),
}


def other_forms(name: str) -> tuple[str, ...]:
    """The names under which a matrix with the same input stands in a model of the other form.

    Of `blk.3.ffn_gate_exps.weight` that of the fused tensor, of a fused tensor those of its parts; none for
    others.
    """
    block = BLOCK.match(name)
    stem = name[block.end() : -len(_WEIGHT)] if block is not None and name.endswith(_WEIGHT) else ""
    for form in _FORMS.values():
        others = form.parts if stem == form.whole else (form.whole,) if stem in form.parts else ()
        if others and block is not None:
            return tuple(f"{block[0]}{other}{_WEIGHT}" for other in others)
    return ()


def fused(model: Model, form_name: str, imatrix: Imatrix | None) -> tuple[Model, Imatrix | None]:
    """The model with the parts of one form joined in every layer that has them all.

    Raises
    ------
    PlanError
        If llama.cpp does not read this architecture so, no layer has the parts, or they are quantized in
        several types.
    """
    form = _known(model, form_name)
    by_name = {t.name: t for t in model.tensors}
    joined: dict[str, TensorInfo] = {}  # by the part in whose place it stands
    gone: set[str] = set()
    entries: dict[str, str] = {}
    left: list[int] = []
    order = {t.name: at for at, t in enumerate(model.tensors)}
    apart = mtp_blocks(model) if form_name == "qkv" and model.architecture in _MTP_APART else range(0)
    for block in range(n_blocks(model)):
        if block in apart:
            continue
        groups = [[f"blk.{block}.{part}{ending}" for part in form.parts] for ending in form.endings]
        present = [[name for name in group if name in by_name] for group in groups]
        if not present[0]:
            continue
        if any(found and len(found) < len(group) for found, group in zip(present, groups, strict=True)):
            left.append(block)
            continue
        _refuse_scales(model, form, block)
        for ending, group in zip(form.endings, present, strict=True):
            if group:
                last = max(group, key=order.__getitem__)
                name = f"blk.{block}.{form.whole}{ending}"
                joined[last] = _joined(name, [by_name[part] for part in group])
                gone.update(group)
                measured = () if imatrix is None else (part for part in group if part in imatrix.entries)
                entries[name] = next(iter(measured), group[0])
    if not joined:
        if any(form.is_whole(t.name) for t in model.tensors):
            note = f"{form.title} are fused already: `--fuse {form_name}` changes nothing"
            return replace(model, notes=(*model.notes, note)), imatrix
        raise PlanError(f"no layer of the model has {form.title} as tensors of their own to fuse")
    tensors = tuple(joined.get(t.name, t) for t in model.tensors if t.name not in gone or t.name in joined)
    notes = [f"{form.title} are fused in {len(joined):,} tensors"]
    if form_name == "qkv" and model.architecture in _CONVERTER_LEAVES:
        notes.append(
            f"llama.cpp's converter would leave those of {model.architecture} apart; llama.cpp reads both"
        )
    if apart:
        notes.append(f"{numbered('MTP block', apart)}: no change, as llama.cpp's converter makes none")
    if left:
        notes.append(
            f"{numbered('layer', left)} lack{'s' if len(left) == 1 else ''} some of {form.title}: no change"
        )
    fused_before = model.reshaped.get("fused", "")
    done = {**model.reshaped, "fused": f"{fused_before},{form_name}".strip(",")}
    wholes = {name: f"blk.{block_of(name)}.{form.whole}{name[name.rindex('.') :]}" for name in gone}
    model = with_extras(model, lambda name: (wholes.get(name, name),))
    changed = replace(model, tensors=tensors, notes=(*model.notes, *notes), reshaped=done)
    return changed, None if imatrix is None else also_under(imatrix, entries)


def cut(model: Model, form_name: str, imatrix: Imatrix | None) -> tuple[Model, Imatrix | None]:
    """The model with the fused tensors of one form cut into their parts.

    Raises
    ------
    PlanError
        If llama.cpp does not read this architecture so, the model has no such tensor, or its keys do not say
        where to cut.
    """
    form = _known(model, form_name)
    tensors: list[TensorInfo] = []
    entries: dict[str, str] = {}
    wholes = {f".{form.whole}{ending}": ending for ending in form.endings}
    linear = {block_of(t.name) for t in model.tensors if ".ssm_" in t.name}
    n_cut = n_linear = 0
    for tensor in model.tensors:
        block = block_of(tensor.name)
        ending = wholes.get(tensor.name[len(f"blk.{block}") :]) if block is not None else None
        if ending is None or block is None:
            tensors.append(tensor)
            continue
        if form_name == "qkv" and block in linear:  # of linear attention, which has one form alone
            n_linear += 1
            tensors.append(tensor)
            continue
        _refuse_scales(model, form, block)
        at = 0
        for part, length in zip(form.parts, _lengths(model, form_name, block, tensor), strict=True):
            name = f"blk.{block}.{part}{ending}"
            tensors.append(_part(name, tensor, at, length))
            entries[name] = tensor.name
            at += length
        n_cut += 1
    if not n_cut:
        raise PlanError(f"the model has no fused {form.title} to cut")
    notes = [f"{n_cut:,} tensors of fused {form.title} are cut apart"]
    if n_linear:
        notes.append(f"{n_linear:,} of linear attention stay, which llama.cpp reads in one form alone")
    split_before = model.reshaped.get("split", "")
    done = {**model.reshaped, "split": f"{split_before},{form_name}".strip(",")}
    model = with_extras(
        model, lambda name: [part for part, whole in entries.items() if whole == name] or [name]
    )
    changed = replace(model, tensors=tuple(tensors), notes=(*model.notes, *notes), reshaped=done)
    return changed, None if imatrix is None else also_under(imatrix, entries)


def _known(model: Model, form_name: str) -> _Form:
    form = _FORMS[form_name]
    if model.architecture not in form.architectures:
        raise PlanError(
            f"llama.cpp does not read {form.title} of {printable(model.architecture) or 'this model'} "
            "in two forms",
            hint=f"leave {form_name} out: a file with the other form would not load",
        )
    return form


def _refuse_scales(model: Model, form: _Form, block: int) -> None:
    """Refuse tensors of a GGUF file that are multiplied by a scale, which is a tensor beside them."""
    beside = {
        f"blk.{block}.{kind}.{ending}"
        for kind in (form.whole, *form.parts)
        for ending in ("scale", "input_scale")
    }
    if scale := next((t.name for t in model.tensors if t.name in beside), None):
        raise PlanError(
            f"{form.title} of layer {block} have scales of their own, such as {printable(scale)}",
            hint="start from the checkpoint that the file was made of",
        )


def _lengths(model: Model, form_name: str, block: int, tensor: TensorInfo) -> tuple[int, ...]:
    """The rows of each part in a slice of the fused tensor; of a bias its columns."""
    n_rows = tensor.shape[-2] if len(tensor.shape) > 1 else tensor.shape[-1]
    if form_name == "gate-up":
        if n_rows % 2:
            raise PlanError(f"{printable(tensor.name)} has {n_rows:,} rows, an odd number, to cut in halves")
        return (n_rows // 2, n_rows // 2)
    heads = _of_block(model, "attention.head_count", block)
    kv = _of_block(model, "attention.head_count_kv", block) or heads
    width = number(model, "embedding_length")
    key = number(model, "attention.key_length") or (width // heads if width and heads else None)
    value = number(model, "attention.value_length") or key
    if heads and kv and key and value:
        lengths = (n_rows - kv * (key + value), kv * key, kv * value)
        if lengths[0] in (heads * key, 2 * heads * key):  # twice: with a gate
            return lengths
    raise PlanError(
        f"{printable(tensor.name)} has {n_rows:,} rows, not those of q, k and v by the model's keys",
        hint="the keys attention.head_count, head_count_kv, key_length and value_length say where to cut",
    )


def _of_block(model: Model, key: str, block: int) -> int | None:
    """The integer under a key, or its item for a block."""
    value = model.metadata.get(f"{model.architecture}.{key}")
    decoded = None if value is None else value.decode()
    if isinstance(decoded, list):
        decoded = decoded[block] if block < len(decoded) else None
    return decoded if isinstance(decoded, int) else None


def _joined(name: str, parts: Sequence[TensorInfo]) -> TensorInfo:
    shapes = {part.shape[:-2] + part.shape[-1:] if len(part.shape) > 1 else () for part in parts}
    if len(shapes) > 1:
        told = ", ".join(f"{printable(part.name)} {list(part.shape)}" for part in parts)
        raise PlanError(f"{printable(name)} cannot be fused of shapes that differ: {told}")
    whole, parts = parts, _of_one_type(parts)
    types = {part.type for part in parts}
    has_companions = any(part.codes is not None and part.codes.companions for part in parts)
    if len(types) > 1 or has_companions:
        why = "it is fused of parts " + (
            "with scales of their own"
            if has_companions
            else f"in {' and '.join(sorted(t.name for t in types))}"
        )
        parts = [
            part if part.codes is None or not part.codes.are_moved else part.without_codes(why)
            for part in parts
        ]
        types = {part.type for part in parts}
    if len(types) > 1 and any(type_.is_quantized for type_ in types):
        told = ", ".join(f"{printable(part.name)} {part.type}" for part in parts)
        raise PlanError(
            f"{printable(name)} cannot be fused of quantized rows of several types: {told}",
            hint="start from the original weights, or leave --fuse out",
        )
    axis = -2 if len(parts[0].shape) > 1 else -1
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    rows, stored = (
        _join([getattr(part, kind) for part in parts], tuple(shape)) for kind in ("rows", "stored")
    )
    type_ = types.pop() if len(types) == 1 else F32
    return TensorInfo(
        name,
        tuple(shape),
        type_,
        ", ".join(dict.fromkeys(part.origin for part in parts)),
        ", ".join(dict.fromkeys(part.stored_as for part in parts)),
        rows,
        stored if stored is not None and stored.dtype == type_ else None,
        _codes(parts, tuple(shape), _integers(whole, tuple(shape))),
    )


def _of_one_type(parts: Sequence[TensorInfo]) -> Sequence[TensorInfo]:
    """Tensors of integers in the widest type of theirs, which holds them as exactly; others as they are."""
    if not all(t.codes is not None and t.codes.are_moved and t.type in HALVES for t in parts):
        return parts
    type_ = widest([part.type for part in parts])
    return [
        replace(part, type=type_, stored=None if part.stored is None else widened(part.stored, type_))
        for part in parts
    ]


def _integers(parts: Sequence[TensorInfo], shape: tuple[int, ...]) -> Integers | None:
    """The integers of fused tensors all of which have some."""
    owns = [t.codes.integers for t in parts if t.codes is not None and t.codes.integers is not None]
    if len(owns) < len(parts):
        return None

    def rows_in(type_: GgmlType) -> RowSource:
        joined = _join([own.rows_in(type_) for own in owns], shape)
        assert joined is not None
        return joined

    by_part = [own.levels for own in owns]
    is_even = len({len(levels) for levels in by_part}) == 1
    by_expert = tuple(zip(*by_part, strict=True)) if is_even else (tuple(chain(*by_part)),)
    levels = tuple(partial(joined_levels, of) for of in by_expert)
    return Integers(max(own.bits for own in owns), rows_in, levels, sum(own.n_bytes for own in owns))


def _codes(parts: Sequence[TensorInfo], shape: tuple[int, ...], integers: Integers | None) -> Codes | None:
    found = [part.codes for part in parts if part.codes is not None]
    if not found:
        return None
    if len(found) < len(parts):
        plain = next(part for part in parts if part.codes is None)
        return replace(
            found[0], why_decoded=f"{plain.name} is not quantized", companions=(), nearly=None, integers=None
        )
    nearly = _join([codes.nearly for codes in found], shape)
    return replace(
        found[0],
        form=", ".join(dict.fromkeys(codes.form for codes in found)),
        why_decoded=next((codes.why_decoded for codes in found if codes.why_decoded), ""),
        nearly=nearly,
        integers=integers,
        settled=all(codes.settled for codes in found),
        too_large_for_q4_1=any(codes.too_large_for_q4_1 for codes in found),
        full_activations=any(codes.full_activations for codes in found),
    )


def _join(sources: Sequence[RowSource | None], shape: tuple[int, ...]) -> RowSource | None:
    """Rows of several sources, in turn of each slice; of vectors the columns."""
    given = [source for source in sources if source is not None]
    if len(given) < len(sources):
        return None
    if len({source.dtype for source in given}) > 1:
        if not all(source.dtype.is_float for source in given):
            return None
        given = [source.as_float32() for source in given]
    first = given[0]

    def fault() -> str:
        return next((found for source in given if (found := source.fault())), "")

    if len(shape) == 1:

        def read_vector(start: int, stop: int) -> NDArray[Any]:
            import numpy as np

            return np.concatenate([source.read(start, stop) for source in given], axis=1)

        return RowSource(first.dtype, shape, read_vector, fault)
    lengths = [source.shape[-2] for source in given]
    total = sum(lengths)

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = empty_rows(first.dtype, stop - start, first.n_columns)
        for slice_ in range(start // total, -(-stop // total)):
            at = slice_ * total
            for source, length in zip(given, lengths, strict=True):
                low, high = max(start, at), min(stop, at + length)
                if low < high:
                    offset = slice_ * length - at
                    rows[low - start : high - start] = source.read(low + offset, high + offset)
                at += length
        return rows

    return RowSource(first.dtype, shape, read, fault)


def _part(name: str, tensor: TensorInfo, offset: int, length: int) -> TensorInfo:
    """Rows `offset` up to `offset + length` of each slice of a tensor, or these columns of a vector."""
    axis = -2 if len(tensor.shape) > 1 else -1
    shape = list(tensor.shape)
    group, shape[axis] = shape[axis], length
    take = partial(_taken, shape=tuple(shape), group=group, offset=offset)
    if tensor.codes is not None and tensor.codes.companions and tensor.codes.are_moved:
        tensor = tensor.without_codes("it is cut out of a tensor with a scale of its own")
    codes = tensor.codes
    if codes is not None:
        nearly = None if codes.nearly is None else take(codes.nearly)
        codes = replace(codes, nearly=nearly, integers=_integers_of(codes.integers, take))
    rows = None if tensor.rows is None else take(tensor.rows)
    stored = None if tensor.stored is None else take(tensor.stored)
    return replace(tensor, name=name, shape=tuple(shape), rows=rows, stored=stored, codes=codes)


def _integers_of(integers: Integers | None, take: Callable[[RowSource], RowSource]) -> Integers | None:
    """The integers of rows that are taken out of a tensor; they have no more levels than the whole."""
    if integers is None:
        return None
    whole = integers
    return replace(whole, rows_in=lambda type_: take(whole.rows_in(type_)))


def _taken(source: RowSource, shape: tuple[int, ...], group: int, offset: int) -> RowSource:
    if len(shape) == 1:
        whole = source.as_float32() if source.dtype.is_quantized else source
        return RowSource(
            whole.dtype,
            shape,
            lambda start, stop: whole.read(start, stop)[:, offset : offset + shape[0]].copy(),
            source.fault,
        )
    from ggplan.arch.transforms import sliced

    return replace(sliced(source, group, offset, shape[-2]), shape=shape)
