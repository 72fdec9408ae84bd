"""Integers packed as quantizers pack them, one code after another: slow and plain, to compare with."""

from __future__ import annotations

import numpy as np

NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # of AutoAWQ: where column j of 8 lies
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def stream(codes: list[int], bits: int) -> list[int]:
    """Words of a little-endian stream of bits."""
    whole = sum(code << (i * bits) for i, code in enumerate(codes))
    return [whole >> (32 * i) & 0xFFFFFFFF for i in range(-(-len(codes) * bits // 32))]


def padded(codes: list[int], bits: int) -> list[int]:
    """Words of `32 // bits` codes each."""
    n = 32 // bits
    return [stream(codes[at : at + n], bits)[0] for at in range(0, len(codes), n)]


def planar(codes: list[int], bits: int) -> list[int]:
    """GPTQModel's planes: of each 32 codes first the low bits of all, then the higher ones."""
    words = []
    for at in range(0, len(codes), 32):
        below = 0
        for width in PLANES[bits]:
            plane = [code >> below & ((1 << width) - 1) for code in codes[at : at + 32]]
            words += stream(plane + [0] * (32 - len(plane)), width)
            below += width
    return words


def interleaved(codes: list[int], bits: int) -> list[int]:
    """AutoAWQ's words of 8 nibbles."""
    assert bits == 4
    return [
        sum(code << (4 * NIBBLES[j]) for j, code in enumerate(codes[at : at + 8]))
        for at in range(0, len(codes), 8)
    ]


PACKINGS = {"dense": stream, "padded": padded, "planar": planar, "interleaved": interleaved}


def packed(codes: np.ndarray, bits: int, packing: str) -> np.ndarray:
    """Each row of codes as a row of I32 words."""
    return np.array([PACKINGS[packing](row, bits) for row in codes.tolist()], np.uint32).view(np.int32)


def packed_fast(codes: np.ndarray) -> np.ndarray:
    """GEMV-fast's I16 words [rows / 4, columns], as llm-awq packs them (`pack_intweight`)."""
    n_rows, n_columns = codes.shape
    mixed = codes.reshape(n_rows, n_columns // 32, 4, 4, 2).transpose(0, 1, 3, 2, 4)
    mixed = mixed.reshape(n_rows, n_columns // 32, 4, 8)
    mixed = mixed.reshape(n_rows, n_columns // 32, 4, 4, 2).transpose(0, 1, 2, 4, 3)
    mixed = mixed.reshape(n_rows, n_columns)
    mixed = mixed.reshape(n_rows // 4, 4, n_columns // 64, 64).transpose(0, 2, 1, 3)
    fours = mixed.reshape(n_rows // 4, n_columns // 64, 64, 4).astype(np.uint16)
    words = fours[..., 0] | fours[..., 1] << 4 | fours[..., 2] << 8 | fours[..., 3] << 12
    return words.reshape(n_rows // 4, n_columns).view(np.int16)
