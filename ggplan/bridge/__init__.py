"""Checkpoints that only llama.cpp's converter reads, as models: names, keys and transforms are its own.

llama.cpp's `conversion` package runs in a process of its own (`server`), from a tree that the user names.
Its lazy tensors are computed there, one at a time, and come over a socket into our encoders, row by row: one
pass, no bf16 file on the way, and as much memory as the largest tensor takes in float32.
"""

from ggplan.bridge.opening import open_by_converter

__all__ = ["open_by_converter"]
