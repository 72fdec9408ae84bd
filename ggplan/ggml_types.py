"""The one table of ggml types: name, id, block size, bytes, and whether ggplan reads or writes them.

A ggml type stores a row of `ne0` weights as `ne0 / block_size` blocks of `block_bytes` bytes, plus, for
some of ik_llama.cpp's types, `row_extra_bytes` at the head of each row (a float scale of the whole row).
A row must hold whole blocks; that is the only shape rule a type has, and the cause of every fallback.

Ids and sizes: llama.cpp b11434, `ggml/include/ggml.h` (enum ggml_type) and `ggml/src/ggml-common.h`;
ik_llama.cpp 8337e4c, the same files and `iqk_quantize.cpp`. ik_llama.cpp numbers its own types from 97
up so that they never meet llama.cpp's. `*_rN` types store N rows interleaved.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

from ggplan.errors import TypeNameError

Kind = Literal["float", "integer", "quantized"]
Engine = Literal["llama.cpp", "ik_llama.cpp"]


@dataclass(frozen=True, slots=True)
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
    row_extra_bytes
        Bytes at the head of each row, besides its blocks (ik_llama.cpp only).
    row_group
        Rows stored interleaved; a tensor needs a multiple of this many.
    engine
        Who defines the type; llama.cpp's types are known to ik_llama.cpp too, not the other way round.
    encodable, decodable
        Whether ggplan can write it from float32, and read it to float32.
    requires_imatrix
        Whether ggml cannot encode it without an importance matrix.
    internal
        A type of intermediate results that no tensor in a file may have (`q8_1`, `q8_K`, ...).
    """

    name: str
    id: int
    block_size: int
    block_bytes: int
    kind: Kind
    engine: Engine = "llama.cpp"
    row_extra_bytes: int = 0
    row_group: int = 1
    encodable: bool = False
    decodable: bool = False
    requires_imatrix: bool = False
    internal: bool = False

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
    def described(self) -> str:
        """The name, for messages, with who alone knows the type where that is not llama.cpp."""
        return self.name if self.engine == "llama.cpp" else f"{self.name} (a type of {self.engine})"

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


# ggml_quantize_requires_imatrix in `ggml/src/ggml.c`.
_REQUIRE_IMATRIX = ("iq2_xxs", "iq2_xs", "iq1_s")


def _own(name: str, id: int, block_size: int, block_bytes: int, codec: str = "rw") -> GgmlType:
    """A quantized type of llama.cpp; `codec` says whether ggplan reads ("r") and writes ("w") it."""
    return GgmlType(
        name,
        id,
        block_size,
        block_bytes,
        "quantized",
        encodable="w" in codec,
        decodable="r" in codec,
        requires_imatrix=name in _REQUIRE_IMATRIX,
    )


def _ik(name: str, id: int, block_size: int, block_bytes: int, row_extra_bytes: int = 0) -> GgmlType:
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
    )


def _number(name: str, id: int, size: int, kind: Kind, codec: str = "") -> GgmlType:
    return GgmlType(name, id, 1, size, kind, encodable="w" in codec, decodable="r" in codec)


def _internal(name: str, id: int, block_size: int, block_bytes: int, engine: Engine) -> GgmlType:
    return GgmlType(name, id, block_size, block_bytes, "quantized", engine=engine, internal=True)


TYPES: tuple[GgmlType, ...] = (
    _number("f32", 0, 4, "float", "rw"),
    _number("f16", 1, 2, "float", "rw"),
    _number("bf16", 30, 2, "float", "rw"),
    _number("f64", 28, 8, "float"),
    _number("i8", 24, 1, "integer"),
    _number("i16", 25, 2, "integer"),
    _number("i32", 26, 4, "integer"),
    _number("i64", 27, 8, "integer"),
    _own("q4_0", 2, 32, 18),
    _own("q4_1", 3, 32, 20),
    _own("q5_0", 6, 32, 22),
    _own("q5_1", 7, 32, 24),
    _own("q8_0", 8, 32, 34),
    _own("q2_K", 10, 256, 84),
    _own("q3_K", 11, 256, 110),
    _own("q4_K", 12, 256, 144),
    _own("q5_K", 13, 256, 176),
    _own("q6_K", 14, 256, 210),
    _own("iq4_nl", 20, 32, 18),
    _own("iq4_xs", 23, 256, 136),
    _own("iq3_s", 21, 256, 110),
    _own("iq3_xxs", 18, 256, 98),
    _own("iq2_s", 22, 256, 82),
    _own("iq2_xs", 17, 256, 74),
    _own("iq2_xxs", 16, 256, 66),
    _own("iq1_m", 29, 256, 56),
    _own("iq1_s", 19, 256, 50),
    _own("tq1_0", 34, 256, 54),
    _own("tq2_0", 35, 256, 66),
    _own("mxfp4", 39, 32, 17),
    _own("nvfp4", 40, 64, 36),
    _own("q1_0", 41, 128, 18),
    _own("q2_0", 42, 64, 18),
    _internal("q8_1", 9, 32, 36, "llama.cpp"),
    _internal("q8_K", 15, 256, 292, "llama.cpp"),
    _ik("q6_0", 133, 32, 26),
    _ik("iq1_bn", 134, 64, 13, 2),
    _ik("iq2_bn", 135, 64, 16, 4),
    _ik("iq2_k", 137, 256, 76),
    _ik("iq3_k", 138, 256, 110),
    _ik("iq4_k", 139, 256, 144),
    _ik("iq5_k", 140, 256, 176),
    _ik("iq6_k", 141, 256, 212),
    _ik("iq4_ks", 144, 256, 136, 4),
    _ik("iq2_ks", 145, 256, 70, 2),
    _ik("iq4_kss", 146, 256, 128, 4),
    _ik("q8_KV", 151, 32, 32, 8),
    _ik("iq5_ks", 152, 256, 168, 4),
    _ik("iq2_kt", 153, 256, 68, 4),
    _ik("iq3_kt", 154, 256, 100, 4),
    _ik("iq4_kt", 155, 256, 128, 4),
    _ik("iq3_ks", 156, 256, 102, 2),
    _ik("iq2_kl", 157, 256, 86, 2),
    _ik("iq1_kt", 158, 256, 56, 4),
    _ik("q4_0_r8", 202, 32, 18),
    _ik("q5_0_r4", 206, 32, 22),
    _ik("q8_0_r8", 208, 32, 34),
    _ik("q2_k_r4", 210, 256, 84),
    _ik("q3_k_r4", 211, 256, 110),
    _ik("q4_k_r4", 212, 256, 144),
    _ik("q5_k_r4", 213, 256, 176),
    _ik("q6_k_r4", 214, 256, 210),
    _ik("iq2_xxs_r4", 216, 256, 66),
    _ik("iq2_xs_r4", 217, 256, 74),
    _ik("iq3_xxs_r4", 218, 256, 98),
    _ik("iq1_s_r4", 219, 32, 6, 2),
    _ik("iq4_nl_r4", 220, 32, 18),
    _ik("iq3_s_r4", 221, 256, 110),
    _ik("iq2_s_r4", 222, 256, 82),
    _ik("iq4_xs_r8", 223, 256, 136),
    _ik("iq1_m_r4", 229, 32, 7, 2),
    _ik("bf16_r16", 230, 1, 2),
    _ik("q6_0_r4", 233, 32, 26),
    _ik("iq2_bn_r4", 335, 64, 16, 4),
    _ik("iq2_k_r4", 337, 256, 76),
    _ik("iq3_k_r4", 338, 256, 110),
    _ik("iq4_k_r4", 339, 256, 144),
    _ik("iq5_k_r4", 340, 256, 176),
    _ik("iq4_ks_r4", 344, 256, 136, 4),
    _ik("iq5_ks_r4", 352, 256, 168, 4),
    _ik("q8_KV_r8", 398, 32, 32, 4),
    _ik("q8_k_r8", 399, 256, 258),
    _internal("q8_0_x4", 97, 32, 34, "ik_llama.cpp"),
    _internal("q8_1_x4", 98, 32, 36, "ik_llama.cpp"),
    _internal("q8_2_x4", 99, 32, 36, "ik_llama.cpp"),
)

_BY_NAME = {entry.name.lower(): entry for entry in TYPES}
_BY_ID = {entry.id: entry for entry in TYPES}

# llama-quantize's names of whole-model mixes that are not also the name of a tensor type.
_MIXES = re.compile(
    r"^(q[2-6]_k_(xs|s|m|l|xl)|iq[1-4]_(xs|s|m|l|xxs)|mxfp4_moe|(ud-)?i?q\d_\w+_(s|m|l|xl))$", re.I
)

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
        if mix := _MIXES.match(name):
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
