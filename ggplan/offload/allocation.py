"""Allocation: bytes that a tensor takes in a buffer of a device.

A CUDA buffer aligns tensors to 128 bytes and, because its kernels read quantized rows in pieces of 512
weights, adds what one row lacks to a multiple of them, once a tensor. The CPU's buffers align to 32.

Source: llama.cpp b11434, `ggml/src/ggml-cuda/ggml-cuda.cu` (ggml_backend_cuda_buffer_type_get_alloc_size,
_get_alignment), `ggml/src/ggml-backend.cpp` and `ggml/src/ggml-cpu/repack.cpp` (TENSOR_ALIGNMENT).
"""

from __future__ import annotations

from ggplan.ggml_types import GgmlType

HOST = "host"
HOST_ALIGNMENT, GPU_ALIGNMENT = 32, 128
_ROW_STEP = 512  # MATRIX_ROW_PADDING


def gpu_name(index: int) -> str:
    """How the engine calls its GPUs."""
    return f"CUDA{index}"


def plain_bytes(kind: GgmlType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor's rows; `shape` begins with the row's length, ggml's ne0."""
    n_rows = 1
    for n in shape[1:]:
        n_rows *= n
    columns = shape[0] if shape else 1
    # A row of a damaged header may end within a block; the engine would refuse it later.
    return (-(-columns // kind.block_size) * kind.block_bytes + kind.row_extra_bytes) * n_rows


def host_bytes(kind: GgmlType, shape: tuple[int, ...]) -> int:
    """Bytes in a buffer of the CPU."""
    return _aligned(plain_bytes(kind, shape), HOST_ALIGNMENT)


def gpu_bytes(kind: GgmlType, shape: tuple[int, ...]) -> int:
    """Bytes in a buffer of a GPU."""
    size, lacks = plain_bytes(kind, shape), -(shape[0] if shape else 1) % _ROW_STEP
    if kind.is_quantized and lacks:
        size += -(-lacks // kind.block_size) * kind.block_bytes
    return _aligned(size, GPU_ALIGNMENT)


def device_bytes(device: str, kind: GgmlType, shape: tuple[int, ...]) -> int:
    """Bytes on a device."""
    return host_bytes(kind, shape) if device == HOST else gpu_bytes(kind, shape)


def _aligned(n: int, to: int) -> int:
    return -(-n // to) * to
