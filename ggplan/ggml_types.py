"""The one table of ggml types: all that ggplan knows of a type stands in its row of `TYPES`.

A ggml type stores a row of `ne0` weights as `ne0 / block_size` blocks of `block_bytes` bytes, plus, for
some of ik_llama.cpp's types, `row_extra_bytes` at the head of each row (a float scale of the whole row).
A row must hold whole blocks; that is the only shape rule a type has, and the cause of every fallback.

To add a type that is read and written, write its module in `ggplan.quants`, whose docstring teaches its
layout, and its row here: the list of types, plans, fallbacks, encoders, their warm-up and the checks of files
all read the row.

Sources, by field:

    name, id, block_size, block_bytes   llama.cpp b11434, `ggml/include/ggml.h` (enum ggml_type) and
                                        `ggml/src/ggml-common.h`; ik_llama.cpp 8337e4c, the same files and
                                        `iqk_quantize.cpp`
    scale_offsets, scale_format         `ggml/src/ggml-common.h`
    file_type                           `include/llama.h`, enum llama_ftype
    imatrix                             `ggml/src/ggml.c`, ggml_quantize_requires_imatrix;
                                        `src/llama-quant.cpp`, tensor_requires_imatrix
    fallback                            `src/llama-quant.cpp`, tensor_type_fallback
    ik_fallback                         ik_llama.cpp 8337e4c, `src/llama-quantize.cpp`

ik_llama.cpp numbers its own types from 97 up so that they never meet llama.cpp's. Its `*_rN` types store N
rows interleaved, and fall back as the type they interleave does.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
from dataclasses import dataclass
from typing import Literal

from ggplan.errors import TypeNameError

Kind = Literal["float", "integer", "quantized"]
Engine = Literal["llama.cpp", "ik_llama.cpp"]
ScaleFormat = Literal["f16", "split f16", "e8m0", "ue4m3"]
ImatrixUse = Literal["ignored", "optional", "expected", "required"]


# Each type is one row of the table below, so two are equal where they are the same object. To compare their
# twenty fields would take a tenth of the time of planning.
@dataclass(frozen=True, slots=True, eq=False)
class GgmlType:
    """One ggml type.

    Attributes
    ----------
    name
        ggml's own spelling: `q4_K`, `iq4_xs`, `bf16`.
    id
        The number that stands in a GGUF tensor record.
    block_size
        Weights per block.
    block_bytes
        Bytes per block.
    engine
        Who defines the type; llama.cpp's types are known to ik_llama.cpp too, not the other way round.
    row_extra_bytes
        Bytes at the head of each row, besides its blocks (ik_llama.cpp only).
    row_group
        Rows stored interleaved; a tensor needs a multiple of this many.
    internal
        A type of intermediate results that no tensor in a file may have (`q8_1`, `q8_K`, ...).
    exponent
        The exponent bits of a float type, as a mask over its bits; 0 for other types, and for floats that are
        not checked.
    scale_offsets
        Where a block's floating-point scales begin, in bytes; empty for floats and for types that are not
        checked.
    scale_format
        What these scales are: half-precision numbers; one such number in the upper four bits of four 16-bit
        words (iq1_m); E8M0 bytes (mxfp4); UE4M3 bytes (nvfp4).
    file_type
        `general.file_type` of a file that holds mostly this type; None where llama.cpp has no number for it.
        llama-quantize has no pure k-quant files and takes `Q4_K` for Q4_K_M, whose number stands here.
    fallback, ik_fallback
        The type that llama.cpp's, and ik_llama.cpp's, llama-quantize puts in its place for rows that are not
        whole blocks; "" where that engine names none.
    imatrix
        What an importance matrix is to the type: "ignored" by ggml's encoder; "optional", used where there is
        one; "expected", llama-quantize refuses to write the type without one, though ggml could encode it;
        "required", ggml cannot encode it without one.
    encoder, decoder
        The functions that write the type from float32 and read it to float32, as `module:function` below
        `ggplan.quants` (see `ggplan.quants.codecs`); "" where ggplan has none. That module's docstring is
        the type's page: its layout, its formula and where they come from.
    best_encoder
        The encoder for `effort="best"`; "" where that is the default one.
    """

    name: str
    id: int
    block_size: int
    block_bytes: int
    kind: Kind = "quantized"
    engine: Engine = "llama.cpp"
    row_extra_bytes: int = 0
    row_group: int = 1
    internal: bool = False
    exponent: int = 0
    scale_offsets: tuple[int, ...] = ()
    scale_format: ScaleFormat = "f16"
    file_type: int | None = None
    fallback: str = ""
    ik_fallback: str = ""
    imatrix: ImatrixUse = "optional"
    encoder: str = ""
    decoder: str = ""
    best_encoder: str = ""

    @property
    def encodable(self) -> bool:
        """Whether ggplan can write the type from float32."""
        return bool(self.encoder)

    @property
    def decodable(self) -> bool:
        """Whether ggplan can read the type to float32."""
        return bool(self.decoder)

    @property
    def uses_imatrix(self) -> bool:
        """Whether ggml's encoder weighs its errors by an importance matrix."""
        return self.is_quantized and self.imatrix != "ignored"

    @property
    def expects_imatrix(self) -> bool:
        """Whether llama-quantize refuses to write the type without an importance matrix."""
        return self.imatrix in ("expected", "required")

    @property
    def requires_imatrix(self) -> bool:
        """Whether ggml cannot encode the type without an importance matrix."""
        return self.imatrix == "required"

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the blocks, without the bytes per row."""
        return 8 * self.block_bytes / self.block_size

    @property
    def is_float(self) -> bool:
        """Whether weights are stored one by one as floats (f32, f16, bf16, f64)."""
        return self.kind == "float"

    @property
    def is_quantized(self) -> bool:
        """Whether weights are stored as blocks with shared scales."""
        return self.kind == "quantized"

    @property
    def overflows_at(self) -> float:
        """The least magnitude that a float type rounds to infinity: half a step above its largest number."""
        n_fraction_bits = (self.exponent & -self.exponent).bit_length() - 1
        bias = (self.exponent >> n_fraction_bits) // 2
        return (2 - 2.0 ** -(n_fraction_bits + 1)) * 2.0**bias

    @property
    def described(self) -> str:
        """The name, for messages, with who alone knows the type where that is not llama.cpp."""
        return self.name if self.engine == "llama.cpp" else f"{self.name} (a type of {self.engine})"

    @property
    def plain(self) -> GgmlType:
        """The type whose rows this one interleaves, the type itself where it interleaves none.

        No file holds q8_K, the type of intermediate results that q8_k_r8 interleaves; ik_llama.cpp puts q8_0
        in its place.
        """
        if self.row_group == 1:
            return self
        name = self.name.rpartition("_r")[0].lower()
        return _BY_NAME["q8_0" if name == "q8_k" else name]

    def fits(self, n_columns: int) -> bool:
        """Tell whether a row of `n_columns` weights holds whole blocks."""
        return n_columns % self.block_size == 0

    def row_bytes(self, n_columns: int) -> int:
        """Bytes of one row of `n_columns` weights, which must hold whole blocks."""
        if not self.fits(n_columns):
            raise ValueError(f"{n_columns} columns are not whole blocks of {self.block_size} ({self.name})")
        return n_columns // self.block_size * self.block_bytes + self.row_extra_bytes

    def tensor_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape` (rows first: the last dimension is ggml's ne0)."""
        return math.prod(shape[:-1]) * self.row_bytes(shape[-1]) if shape else self.row_bytes(1)

    def __str__(self) -> str:
        return self.name


def _ik(
    name: str, id: int, block_size: int, block_bytes: int, row_extra_bytes: int = 0, fallback: str = ""
) -> GgmlType:
    """A type of ik_llama.cpp: sized and listed, not yet read or written."""
    interleaved = re.search(r"_r(\d+)$", name)
    return GgmlType(
        name,
        id,
        block_size,
        block_bytes,
        "float" if name.startswith("bf16") else "quantized",
        engine="ik_llama.cpp",
        row_extra_bytes=row_extra_bytes,
        row_group=int(interleaved[1]) if interleaved else 1,
        ik_fallback=fallback,
    )


TYPES: tuple[GgmlType, ...] = (
    GgmlType("f32", 0, 1, 4, kind="float", file_type=0, exponent=0x7F800000,
             encoder="floats:encode_f32", decoder="floats:decode_f32"),
    GgmlType("f16", 1, 1, 2, kind="float", file_type=1, exponent=0x7C00,
             encoder="floats:encode_f16", decoder="floats:decode_f16"),
    GgmlType("bf16", 30, 1, 2, kind="float", file_type=32, exponent=0x7F80,
             encoder="floats:encode_bf16", decoder="floats:decode_bf16"),
    GgmlType("f64", 28, 1, 8, kind="float", exponent=0x7FF0000000000000),
    GgmlType("i8", 24, 1, 1, kind="integer"),
    GgmlType("i16", 25, 1, 2, kind="integer"),
    GgmlType("i32", 26, 1, 4, kind="integer"),
    GgmlType("i64", 27, 1, 8, kind="integer"),
    GgmlType("q4_0", 2, 32, 18, file_type=2, scale_offsets=(0,),
             encoder="formats.blocks32:encode_q4_0", decoder="formats.blocks32:decode_q4_0",
             best_encoder="formats.blocks32:encode_best_q4_0"),
    GgmlType("q4_1", 3, 32, 20, file_type=3, scale_offsets=(0, 2),
             encoder="formats.blocks32:encode_q4_1", decoder="formats.blocks32:decode_q4_1",
             best_encoder="formats.blocks32:encode_best_q4_1"),
    GgmlType("q5_0", 6, 32, 22, file_type=8, scale_offsets=(0,),
             encoder="formats.blocks32:encode_q5_0", decoder="formats.blocks32:decode_q5_0",
             best_encoder="formats.blocks32:encode_best_q5_0"),
    GgmlType("q5_1", 7, 32, 24, file_type=9, scale_offsets=(0, 2),
             encoder="formats.blocks32:encode_q5_1", decoder="formats.blocks32:decode_q5_1",
             best_encoder="formats.blocks32:encode_best_q5_1"),
    GgmlType("q8_0", 8, 32, 34, file_type=7, scale_offsets=(0,), imatrix="ignored",
             encoder="formats.blocks32:encode_q8_0", decoder="formats.blocks32:decode_q8_0",
             best_encoder="formats.blocks32:encode_best_q8_0"),
    GgmlType("q2_K", 10, 256, 84, file_type=10, scale_offsets=(80, 82),
             fallback="q4_0", ik_fallback="iq4_nl",
             encoder="formats.q2_k:encode", decoder="formats.q2_k:decode",
             best_encoder="formats.q2_k:encode_best"),
    GgmlType("q3_K", 11, 256, 110, file_type=12, scale_offsets=(108,),
             fallback="q4_0", ik_fallback="iq4_nl",
             encoder="formats.q3_k:encode", decoder="formats.q3_k:decode",
             best_encoder="formats.q3_k:encode_best"),
    GgmlType("q4_K", 12, 256, 144, file_type=15, scale_offsets=(0, 2), fallback="q5_0", ik_fallback="q5_0",
             encoder="formats.q45_k:encode_q4_k", decoder="formats.q45_k:decode_q4_k",
             best_encoder="formats.q45_k:encode_best_q4_k"),
    GgmlType("q5_K", 13, 256, 176, file_type=17, scale_offsets=(0, 2), fallback="q5_1", ik_fallback="q6_0",
             encoder="formats.q45_k:encode_q5_k", decoder="formats.q45_k:decode_q5_k",
             best_encoder="formats.q45_k:encode_best_q5_k"),
    GgmlType("q6_K", 14, 256, 210, file_type=18, scale_offsets=(208,), fallback="q8_0", ik_fallback="q8_0",
             encoder="formats.q6_k:encode", decoder="formats.q6_k:decode",
             best_encoder="formats.q6_k:encode_best"),
    GgmlType("iq4_nl", 20, 32, 18, file_type=25, scale_offsets=(0,),
             encoder="formats.iq4:encode_iq4_nl", decoder="formats.iq4:decode_iq4_nl",
             best_encoder="formats.iq4:encode_best_iq4_nl"),
    GgmlType("iq4_xs", 23, 256, 136, file_type=30, scale_offsets=(0,),
             fallback="iq4_nl", ik_fallback="iq4_nl",
             encoder="formats.iq4_xs:encode", decoder="formats.iq4_xs:decode",
             best_encoder="formats.iq4_xs:encode_best"),
    GgmlType("iq3_s", 21, 256, 110, file_type=26, scale_offsets=(0,),
             fallback="iq4_nl", ik_fallback="iq4_nl",
             encoder="formats.iq3:encode_iq3_s", decoder="formats.iq3:decode_iq3_s",
             best_encoder="formats.iq3:encode_best_iq3_s"),
    GgmlType("iq3_xxs", 18, 256, 98, file_type=23, scale_offsets=(0,),
             imatrix="expected", fallback="iq4_nl", ik_fallback="iq4_nl",
             encoder="formats.iq3:encode_iq3_xxs", decoder="formats.iq3:decode_iq3_xxs",
             best_encoder="formats.iq3:encode_best_iq3_xxs"),
    GgmlType("iq2_s", 22, 256, 82, file_type=28, scale_offsets=(0,),
             imatrix="expected", fallback="iq4_nl", ik_fallback="iq4_nl",
             encoder="formats.iq2:encode_iq2_s", decoder="formats.iq2:decode_iq2_s",
             best_encoder="formats.iq2:encode_best_iq2_s"),
    GgmlType("iq2_xs", 17, 256, 74, file_type=20, scale_offsets=(0,),
             imatrix="required", fallback="iq4_nl", ik_fallback="iq4_nl",
             encoder="formats.iq2:encode_iq2_xs", decoder="formats.iq2:decode_iq2_xs",
             best_encoder="formats.iq2:encode_best_iq2_xs"),
    GgmlType("iq2_xxs", 16, 256, 66, file_type=19, scale_offsets=(0,),
             imatrix="required", fallback="iq4_nl", ik_fallback="iq4_nl",
             encoder="formats.iq2:encode_iq2_xxs", decoder="formats.iq2:decode_iq2_xxs",
             best_encoder="formats.iq2:encode_best_iq2_xxs"),
    GgmlType("iq1_m", 29, 256, 56, file_type=31, scale_offsets=(48, 50, 52, 54), scale_format="split f16",
             imatrix="expected", fallback="iq4_nl", ik_fallback="iq4_nl",
             encoder="formats.iq1:encode_iq1_m", decoder="formats.iq1:decode_iq1_m",
             best_encoder="formats.iq1:encode_best_iq1_m"),
    GgmlType("iq1_s", 19, 256, 50, file_type=24, scale_offsets=(0,),
             imatrix="required", fallback="iq4_nl", ik_fallback="iq4_nl",
             encoder="formats.iq1:encode_iq1_s", decoder="formats.iq1:decode_iq1_s",
             best_encoder="formats.iq1:encode_best_iq1_s"),
    GgmlType("tq1_0", 34, 256, 54, file_type=36, scale_offsets=(52,), imatrix="ignored", fallback="q4_0",
             encoder="formats.ternary:encode_tq1_0", decoder="formats.ternary:decode_tq1_0",
             best_encoder="formats.ternary:encode_best_tq1_0"),
    GgmlType("tq2_0", 35, 256, 66, file_type=37, scale_offsets=(64,), imatrix="ignored", fallback="q4_0",
             encoder="formats.ternary:encode_tq2_0", decoder="formats.ternary:decode_tq2_0",
             best_encoder="formats.ternary:encode_best_tq2_0"),
    GgmlType("mxfp4", 39, 32, 17, file_type=38, scale_offsets=(0,), scale_format="e8m0", imatrix="ignored",
             encoder="formats.fp4:encode_mxfp4", decoder="formats.fp4:decode_mxfp4",
             best_encoder="formats.fp4:encode_best_mxfp4"),
    GgmlType("nvfp4", 40, 64, 36, file_type=39, scale_offsets=(0, 1, 2, 3), scale_format="ue4m3",
             imatrix="ignored",
             encoder="formats.fp4:encode_nvfp4", decoder="formats.fp4:decode_nvfp4",
             best_encoder="formats.fp4:encode_best_nvfp4"),
    GgmlType("q1_0", 41, 128, 18, file_type=40, scale_offsets=(0,), imatrix="ignored",
             encoder="formats.bits:encode_q1_0", decoder="formats.bits:decode_q1_0",
             best_encoder="formats.bits:encode_best_q1_0"),
    GgmlType("q2_0", 42, 64, 18, file_type=41, scale_offsets=(0,), imatrix="ignored", fallback="q4_0",
             encoder="formats.bits:encode_q2_0", decoder="formats.bits:decode_q2_0",
             best_encoder="formats.bits:encode_best_q2_0"),
    GgmlType("q8_1", 9, 32, 36, internal=True),
    GgmlType("q8_K", 15, 256, 292, internal=True),
    _ik("q6_0", 133, 32, 26),
    _ik("iq1_bn", 134, 64, 13, 2),
    _ik("iq2_bn", 135, 64, 16, 4),
    _ik("iq2_k", 137, 256, 76, fallback="iq4_nl"),
    _ik("iq3_k", 138, 256, 110, fallback="iq4_nl"),
    _ik("iq4_k", 139, 256, 144, fallback="q5_0"),
    _ik("iq5_k", 140, 256, 176, fallback="q6_0"),
    _ik("iq6_k", 141, 256, 212, fallback="q8_0"),
    _ik("iq4_ks", 144, 256, 136, 4, fallback="iq4_nl"),
    _ik("iq2_ks", 145, 256, 70, 2, fallback="iq4_nl"),
    _ik("iq4_kss", 146, 256, 128, 4, fallback="iq4_nl"),
    _ik("q8_KV", 151, 32, 32, 8),
    _ik("iq5_ks", 152, 256, 168, 4, fallback="q5_0"),
    _ik("iq2_kt", 153, 256, 68, 4, fallback="iq4_nl"),
    _ik("iq3_kt", 154, 256, 100, 4, fallback="iq4_nl"),
    _ik("iq4_kt", 155, 256, 128, 4, fallback="iq4_nl"),
    _ik("iq3_ks", 156, 256, 102, 2, fallback="iq4_nl"),
    _ik("iq2_kl", 157, 256, 86, 2, fallback="iq4_nl"),
    _ik("iq1_kt", 158, 256, 56, 4, fallback="iq4_nl"),
    _ik("q4_0_r8", 202, 32, 18),
    _ik("q5_0_r4", 206, 32, 22),
    _ik("q8_0_r8", 208, 32, 34),
    _ik("q2_k_r4", 210, 256, 84, fallback="iq4_nl"),
    _ik("q3_k_r4", 211, 256, 110, fallback="iq4_nl"),
    _ik("q4_k_r4", 212, 256, 144, fallback="q5_0"),
    _ik("q5_k_r4", 213, 256, 176, fallback="q6_0"),
    _ik("q6_k_r4", 214, 256, 210, fallback="q8_0"),
    _ik("iq2_xxs_r4", 216, 256, 66, fallback="iq4_nl"),
    _ik("iq2_xs_r4", 217, 256, 74, fallback="iq4_nl"),
    _ik("iq3_xxs_r4", 218, 256, 98, fallback="iq4_nl"),
    _ik("iq1_s_r4", 219, 32, 6, 2, fallback="iq4_nl"),
    _ik("iq4_nl_r4", 220, 32, 18),
    _ik("iq3_s_r4", 221, 256, 110, fallback="iq4_nl"),
    _ik("iq2_s_r4", 222, 256, 82, fallback="iq4_nl"),
    _ik("iq4_xs_r8", 223, 256, 136, fallback="iq4_nl"),
    _ik("iq1_m_r4", 229, 32, 7, 2, fallback="iq4_nl"),
    _ik("bf16_r16", 230, 1, 2),
    _ik("q6_0_r4", 233, 32, 26),
    _ik("iq2_bn_r4", 335, 64, 16, 4),
    _ik("iq2_k_r4", 337, 256, 76, fallback="iq4_nl"),
    _ik("iq3_k_r4", 338, 256, 110, fallback="iq4_nl"),
    _ik("iq4_k_r4", 339, 256, 144, fallback="q5_0"),
    _ik("iq5_k_r4", 340, 256, 176, fallback="q6_0"),
    _ik("iq4_ks_r4", 344, 256, 136, 4, fallback="iq4_nl"),
    _ik("iq5_ks_r4", 352, 256, 168, 4, fallback="q5_0"),
    _ik("q8_KV_r8", 398, 32, 32, 4),
    _ik("q8_k_r8", 399, 256, 258, fallback="q8_0"),
    GgmlType("q8_0_x4", 97, 32, 34, engine="ik_llama.cpp", internal=True),
    GgmlType("q8_1_x4", 98, 32, 36, engine="ik_llama.cpp", internal=True),
    GgmlType("q8_2_x4", 99, 32, 36, engine="ik_llama.cpp", internal=True),
)  # fmt: skip

_BY_NAME = {entry.name.lower(): entry for entry in TYPES}
_BY_ID = {entry.id: entry for entry in TYPES}

# llama-quantize's names of whole-model mixes that are not also the name of a tensor type.
_MIXES = r"(?i)^(q[2-6]_k_(xs|s|m|l|xl)|iq[1-4]_(xs|s|m|l|xxs)|mxfp4_moe|(ud-)?i?q\d_\w+_(s|m|l|xl))$"

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION of llama.cpp b11434: the layout of the quantized types."""

F32 = _BY_NAME["f32"]
F16 = _BY_NAME["f16"]
BF16 = _BY_NAME["bf16"]


def parse_type(text: str) -> GgmlType:
    """Find the ggml type that `text` names, in any case.

    Raises
    ------
    TypeNameError
        For a name that is unknown, a mix (`Q4_K_M`), or a type no file can hold (`q8_K`).
    """
    name = text.strip()
    found = _BY_NAME.get(name.lower())
    if found is None:
        if mix := re.match(_MIXES, name):
            base = _mix_base(mix[0])
            raise TypeNameError(
                f"`{name}` is a llama.cpp mix of several types, not a tensor type",
                hint=f"use `{base}` for every tensor of the rule" if base else "name one tensor type",
                meant=base or "",
            )
        meant = _nearest(name)
        hint = f"the nearest name is `{meant}`" if meant else "`ggplan types` lists all types"
        raise TypeNameError(f"unknown tensor type `{name}`", hint=hint, meant=meant)
    if found.internal:
        raise TypeNameError(
            f"`{found.name}` is a type of intermediate results; no file can hold it",
            hint="`ggplan types` lists the types a rule can name",
            meant=_nearest(name),
        )
    return found


def way_to_write(type_: GgmlType, recipe: str, model: str, pre: str = "") -> str:
    """How a file with a type that ggplan cannot write is made, or which types it can write.

    Parameters
    ----------
    recipe, model
        What the user calls them, for the commands; "" for no name.
    pre
        The pre-tokenizer that the model was opened with, which converting it may have to be told; or "".
    """
    if type_.engine == "llama.cpp":
        return "`ggplan types` shows which types can be written"
    recipe, model = shlex.quote(recipe or "RECIPE"), shlex.quote(model or "MODEL")
    is_gguf = model.strip("'").lower().endswith(".gguf")
    option = f" --pre {shlex.quote(pre)}" if pre else ""
    first, source = f"`ggplan convert {model} bf16.gguf{option}`, ", "bf16.gguf"
    if is_gguf:
        first, source = "", model
    return (
        f"ik_llama.cpp's llama-quantize writes such a file from a GGUF in bf16: {first}"
        f"`ggplan rules export {recipe} --dialect ik_llama.cpp -m {source} -o rules.sh`, "
        f'`. ./rules.sh; llama-quantize --custom-q "$custom" {source} OUT.gguf Q8_0`'
    )


def _nearest(name: str) -> str:
    """The type with the most similar name that a file can hold, or ""."""
    known = {entry.name.lower(): entry.name for entry in TYPES if not entry.internal}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return known[near[0]] if near else ""


def type_by_id(type_id: int) -> GgmlType | None:
    """The type with this number in GGUF files, or None where neither engine knows it."""
    return _BY_ID.get(type_id)


def _mix_base(mix: str) -> str | None:
    """The tensor type a mix is named after: `Q4_K_M` -> `q4_K`."""
    stem = mix.lower().removeprefix("ud-")
    while "_" in stem:
        stem = stem.rpartition("_")[0]
        if stem in _BY_NAME:
            return _BY_NAME[stem].name
    return None
