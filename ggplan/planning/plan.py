"""Plan: what will be written, to the byte."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ggplan.ggml_types import GgmlType
from ggplan.metadata import Metadata
from ggplan.model import Model, TensorInfo
from ggplan.planning.assignment import Assignment, Decision
from ggplan.planning.fallback import FallbackTable
from ggplan.planning.guidance import Feedback
from ggplan.planning.layout import encode_header
from ggplan.planning.roles import Role
from ggplan.rules import Recipe, Rule
from ggplan.text import format_bytes, printable

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an imatrix has for a tensor.

    Attributes
    ----------
    n_matrices
        Matrices (experts) it has importance for; 0 where it has no entry for the tensor.
    n_unseen
        Those of them that saw no token, so that all their columns have the same weight.
    """

    n_matrices: int
    n_unseen: int = 0


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output.

    Attributes
    ----------
    tensor
        The tensor of the model.
    type
        The type it is written in.
    decision
        The type that was chosen and why; `type` is another one if the tensor's shape forbids that.
    role
        Its role in tables.
    rule
        The rule that chose the type; None if something else did.
    chosen_by
        What chose the type, for tables: `hq4_k.recipe:14`, `@default`, `Q4_K_M`, `kept`.
    coverage
        What the imatrix has for it; None without an imatrix, and for types that do not use one.
    n_bytes, offset
        Its size, and its place in the file's data part.
    """

    tensor: TensorInfo
    type: GgmlType
    decision: Decision
    role: Role
    rule: Rule | None
    chosen_by: str
    coverage: Coverage | None
    n_bytes: int
    offset: int

    @property
    def name(self) -> str:
        """The tensor's GGUF name."""
        return self.tensor.name

    @property
    def asked(self) -> GgmlType | None:
        """The chosen type, if its shape forbids that and `type` replaces it; else None."""
        return None if self.type == self.decision.type else self.decision.type

    @property
    def is_copied(self) -> bool:
        """Whether the stored bytes go to the output as they are."""
        return self.type == self.tensor.type and self.tensor.stored is not None


Effort = Literal["default", "best", "feedback"]
"""How the encoders search: for llama.cpp's bytes, for the least error of weights in as many bytes, or for the
least error of what matrices make of the inputs of a calibration."""
Nonfinite = Literal["refuse", "zero", "keep"]
"""What becomes of weights that are NaN or infinite; see `ggplan.conversion.finiteness`."""


@dataclass(frozen=True, repr=False)
class Plan:
    """A model's assignment laid out: the output, to the byte.

    Attributes
    ----------
    assignment
        The type of each tensor, and why.
    recipe
        The recipe that the output records: the one that decided, or if none did, one that gives the same
        types. None if every tensor keeps its type.
    tensors
        In the order of the output file.
    metadata
        The key-value pairs of the output file. The hashes of the inputs are filled with zeros until
        `ggplan.conversion.input_hashes` fills them in: planning does not read the inputs.
    imatrix
        The importance matrix the encoders will use, or None.
    fallback
        The table that was applied.
    data_bytes
        Size of the data part, padding included.
    nonfinite
        What becomes of weights that are not finite.
    effort
        How the encoders search.
    feedback
        With effort "feedback", the calibration that it goes by; else None.
    """

    model: Model
    assignment: Assignment
    recipe: Recipe | None
    tensors: tuple[PlannedTensor, ...]
    metadata: Metadata
    imatrix: Imatrix | None
    fallback: FallbackTable
    data_bytes: int
    nonfinite: Nonfinite = "refuse"
    effort: Effort = "default"
    feedback: Feedback | None = None

    def __repr__(self) -> str:
        return f"<Plan: {self._words}>"

    def _repr_html_(self) -> str:
        """Where the bytes are, by role: what a notebook shows."""
        from html import escape

        rows = []
        for role in Role:
            tensors = [t for t in self.tensors if t.role == role]
            if not tensors:
                continue
            n_bytes = sum(t.n_bytes for t in tensors)
            n_weights = sum(t.tensor.n_weights for t in tensors)
            sizes: dict[str, int] = {}
            for t in tensors:
                sizes[t.type.name] = sizes.get(t.type.name, 0) + t.n_bytes
            rows.append(
                (
                    role.value,
                    f"{len(tensors):,}",
                    f"{n_weights:,}",
                    format_bytes(n_bytes),
                    f"{n_bytes / self.tensor_bytes:.1%}" if self.tensor_bytes else "",
                    f"{8 * n_bytes / n_weights:.3f}" if n_weights else "",
                    " ".join(sorted(sizes, key=lambda name: (-sizes[name], name))),
                )
            )
        headings = ("", "tensors", "weights", "size", "share", "bpw", "types")
        head = "".join(f"<th>{heading}</th>" for heading in headings)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        caption = f"<caption>{escape(self._words)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @property
    def _words(self) -> str:
        """The plan in one line: whose types of which model, and the size."""
        chosen = f"{printable(self.assignment.name)} of " if self.assignment.name else ""
        least = "at least " if self.model.kind == "inventory" else ""
        return (
            f"{chosen}{printable(self.model.path.name)}, {len(self.tensors):,} tensors,"
            f" {least}{format_bytes(self.file_bytes)}, {self.bits_per_weight:.3f} bpw"
        )

    @cached_property
    def header(self) -> bytes:
        """The output file up to its data part."""
        records = [(t.name, t.tensor.shape, t.type.id, t.offset) for t in self.tensors]
        is_converted = self.model.kind == "hf" and self.recipe is None
        return encode_header(self.metadata, records, whole_shapes=is_converted)

    @property
    def file_bytes(self) -> int:
        """Size of the output file. For an inventory, whose tokenizer is unknown, a lower bound."""
        return len(self.header) + self.data_bytes

    @cached_property
    def n_weights(self) -> int:
        """Weights of all tensors."""
        return sum(t.tensor.n_weights for t in self.tensors)

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without header and padding."""
        return sum(t.n_bytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors (bpw), as llama-quantize counts it."""
        return 8 * self.tensor_bytes / self.n_weights if self.n_weights else 0.0

    @property
    def requantized(self) -> tuple[PlannedTensor, ...]:
        """Tensors of a GGUF file that are quantized in it and would be quantized again, to another type."""
        return tuple(
            t
            for t in self.tensors
            if t.tensor.type.is_quantized and t.type != t.tensor.type and t.tensor.codes is None
        )
