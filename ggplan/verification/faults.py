"""Faults, which verifying finds, each with its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FaultKind = Literal[
    "header", "padding", "scale", "value", "checksum", "missing", "shape", "bytes", "unreadable"
]

HEADER = "header"
"""The place of a fault that belongs to no tensor: in the metadata or the table of tensors."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a file.

    Attributes
    ----------
    where
        The tensor, or `HEADER`.
    kind
        What was checked: the header's structure, padding that is not zero, a block's scale or a float that
        is not finite, a checksum, a tensor that is missing, its shape, its bytes against the plan's, or that
        the data cannot be read.
    message
        What is wrong, and how much of it; does not name the tensor. It is safe to print.
    file
        The name of the file.
    key
        The metadata key that differs from the plan's, or "".
    hint
        What helps, or "".
    """

    where: str
    kind: FaultKind
    message: str
    file: str
    key: str = ""
    hint: str = ""
