"""Budgets: what a file must keep to, each limit a linear row over its tensors.

    taken + sum over tensors of cost(tensor, type) <= limit

A row says itself what it is called in a message, in the recipe's heading and in the recipe's promises, so
that a new kind of limit is one more function that makes rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.allocation.forecast import damage_of, forecast_of
from ggplan.allocation.prior import Level
from ggplan.ggml_types import GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.planning import kept_types, lay_out
from ggplan.planning.layout import ALIGNMENT, padded
from ggplan.text import format_bytes

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix
    from ggplan.planning import Feedback


@dataclass(frozen=True, slots=True)
class Row:
    """A limit.

    Attributes
    ----------
    name
        "size", "bpw", and so on.
    limit
        In the row's unit.
    taken
        What is used of it whatever types are chosen: a file's header, caches.
    cost
        What a tensor of a type uses of it.
    words
        The limit in the recipe's heading: `60.0 GiB (64,424,509,440 bytes)`.
    short
        What to say if it cannot be met, from how much the least use is: `the smallest file is 38.1 GiB, 8.1
        GiB above the 30.0 GiB of --size`.
    promise
        The `@assert` line of the recipe; "" for none.
    """

    name: str
    limit: float
    taken: float
    cost: Callable[[TensorInfo, GgmlType], float]
    words: str
    short: Callable[[float], str]
    promise: str = ""


def size_row(size: int, header: int) -> Row:
    """The bytes of the file, of which its header takes `header`."""

    def short(least: float) -> str:
        over = format_bytes(math.ceil(max(least - size, 0)))
        smallest = format_bytes(math.ceil(least))
        return f"the smallest file is {smallest}, {over} above the {format_bytes(size)} of --size"

    return Row(
        "size", size, header, lambda tensor, type_: padded(type_.tensor_bytes(tensor.shape)),
        f"{format_bytes(size)} ({size:,} bytes)", short, f"@assert size <= {size} B",
    )  # fmt: skip


def bpw_row(bpw: float, n_weights: int) -> Row:
    """The bits per weight of all tensors together."""

    def short(least: float) -> str:
        found, by = 8 * least / n_weights, 8 * max(least, 0) / n_weights - bpw
        return f"the smallest file has {found:.3f} bpw, {by:.3f} above the {bpw:g} of --bpw"

    return Row(
        "bpw", bpw * n_weights / 8, 0, lambda tensor, type_: type_.tensor_bytes(tensor.shape),
        f"{bpw:g} bits per weight", short, f"@assert bpw <= {bound_text(bpw, up=True)}",
    )  # fmt: skip


def bound_text(number: float, *, up: bool) -> str:
    """A limit of an `@assert`, of six decimals; where these round it, to the side where it still holds."""
    steps = number * 1e6
    if abs(steps - round(steps)) > 1e-6:
        steps = math.ceil(steps) if up else math.floor(steps)
    return f"{round(steps) / 1e6:.6f}".rstrip("0").rstrip(".")


def kld_row(kld: float, level: Level, damage: Callable[[TensorInfo, GgmlType], float]) -> Row:
    """The predicted KL divergence; each tensor has its damage."""

    def short(least: float) -> str:
        found = forecast_of(least, level).kld
        return (
            f"the largest file has a predicted KL divergence of {found:.3g}, {found - kld:.2g} above the"
            f" {kld:g} of --max-kld"
        )

    return Row("kld", damage_of(kld, level), 0.0, damage, f"a KL divergence of {kld:g}", short)


def header_bytes(model: Model) -> int:
    """What a file takes besides its tensors, without a recipe's text."""
    plain = lay_out(model, kept_types(model))
    return plain.file_bytes - plain.data_bytes


def recorded_bytes(model: Model, imatrix: Imatrix | None, feedback: Feedback | None = None) -> int:
    """At most so many bytes a conversion adds to the header for an imatrix, or for a calibration.

    Raises
    ------
    PlanError, ImatrixError
        If they are of another model.
    """
    own = lay_out(model, kept_types(model), imatrix=None if feedback else imatrix, feedback=feedback)
    if own.imatrix is None:
        return 0
    return own.file_bytes - own.data_bytes - header_bytes(model) + ALIGNMENT
