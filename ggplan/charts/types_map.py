"""The types of a mix: a row for each kind of tensor, a column for each layer, coloured by bits per weight.

Types with equal bits have equal colours, so each has a letter too; neighbours of one type are one strip that
has the type's name if there is room. Tensors outside the layers are strips across all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ggplan.charts.drawing import (
    PAIR_WIDTH,
    WIDTH,
    Key,
    finish,
    html_table,
    new_figure,
    set_ticks,
    shortened,
    text_width,
)
from ggplan.charts.output import Drawing
from ggplan.charts.style import BACKGROUND, TEXT, Ink, ink_of_bits, ink_on, settings
from ggplan.charts.tensors import Drawable, TypedTensor, typed
from ggplan.errors import ChartError
from ggplan.ggml_types import GgmlType
from ggplan.planning import Assignment, Role
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLOCK = re.compile(r"^blk\.(\d{1,6})\.(.+?)(?:\.weight)?$")
_ROW, _WIDEST_CELL, _NARROWEST_FIGURE = 0.26, 1.1, 6.4
_NAME_SIZE, _LETTER_SIZE = 7.0, 6.5
_MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the map: the type at each layer, and what the tensor there is called."""

    label: str
    cells: Mapping[int, GgmlType]
    name: str
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class _Look:
    ink: Ink
    on: Ink
    letter: str


def draw_types(subject: Drawable, assignment: Assignment | None = None, *, title: str = "") -> Drawing:
    """Draw the types of all matrices of a model or a plan.

    Vectors and norms are left out: they are float everywhere.

    Parameters
    ----------
    subject
        A plan, or a model; of a model, the types it is stored in.
    assignment
        The types to draw instead of a model's own.

    Raises
    ------
    ChartError
        If the model has no matrices in blocks.
    PlanError
        If a shape forbids a type and no fallback exists.
    """
    found = typed(subject, assignment)
    rows, n_layers = _rows_of(found.tensors)
    if not n_layers:
        raise ChartError(f"{printable(found.model)} has no blocks to draw")
    if n_layers > _MOST_LAYERS:
        raise ChartError(f"{printable(found.model)} has {n_layers:,} layers; {_MOST_LAYERS:,} can be drawn")
    types = sorted({t for row in rows for t in row.cells.values()}, key=lambda t: (t.bits_per_weight, t.name))
    looks = _looks(types)
    titles: dict[str, str] = {}
    left = min(3.2, 0.35 + 0.078 * max(len(row.label) for row in rows))
    room = (WIDTH if n_layers < 32 else PAIR_WIDTH) - left - 0.2
    cell = min(_WIDEST_CELL, room / n_layers)
    width = max(_NARROWEST_FIGURE, left + cell * n_layers + 0.2)
    named = found.name if found.model in found.name else f"{found.model}, {found.name}"
    heading = title or f"{named}: types by layer"
    with settings():
        figure, (ax,) = new_figure(
            _ROW * len(rows), 1, width, left=left, right=width - left - cell * n_layers, above=0.08
        )
        ax.set_xlim(-0.5, n_layers - 0.5)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        for y, row in enumerate(rows):
            _draw_row(figure, ax, y, row, looks, cell, titles)
        labels = [shortened(figure, row.label, left - 0.2, 8.5) for row in rows]
        ax.set_yticks(range(len(rows)), labels, fontsize=8.5, color=TEXT.light)
        set_ticks(ax.xaxis, range(n_layers), [str(n) for n in range(n_layers)])
        if n_layers > 12:
            step = next(s for s in (5, 10, 20, 50, 100) if n_layers / s <= 20)
            set_ticks(ax.xaxis, range(0, n_layers, step), [str(n) for n in range(0, n_layers, step)])
        ax.set_xlabel("layer")
        ax.grid(visible=False)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        keys = [Key(t.name, looks[t.name].ink, "", looks[t.name].letter, looks[t.name].on) for t in types]
        caption = "The more bits a weight has, the more its colour stands out."
        if any(len(row.cells) < n_layers for row in rows):
            caption += " Blank: the layer has no such tensor."
        finish(figure, heading, caption, keys)
    table = [
        [row.name if row.is_whole else row.label, "" if row.is_whole else str(layer), t.name]
        for row in rows
        for layer, t in sorted(row.cells.items())[: 1 if row.is_whole else None]
    ]
    inks = tuple(dict.fromkeys(look.ink for look in looks.values()))
    return Drawing(figure, heading, caption, titles, html_table(("tensor", "layer", "type"), table), inks)


def _rows_of(tensors: Sequence[TypedTensor]) -> tuple[list[_Row], int]:
    """Embeddings first, then the kinds of tensors in layers by role, then all others; and the layers."""
    kinds: dict[str, dict[int, GgmlType]] = {}
    order: dict[str, int] = {}
    whole = []
    for tensor in tensors:
        if not tensor.is_matrix:
            continue
        block = _BLOCK.match(tensor.name)
        if block is None:
            whole.append(tensor)
            continue
        order.setdefault(block[2], list(Role).index(tensor.role))
        kinds.setdefault(block[2], {})[int(block[1])] = tensor.type
    n_layers = max((layer for cells in kinds.values() for layer in cells), default=-1) + 1
    inside = [_Row(kind, kinds[kind], kind) for kind in sorted(kinds, key=lambda k: (order[k], k))]

    def across(tensor: TypedTensor) -> _Row:
        cells = dict.fromkeys(range(min(n_layers, _MOST_LAYERS)), tensor.type)
        return _Row(tensor.name.removesuffix(".weight"), cells, tensor.name, is_whole=True)

    first = [across(t) for t in whole if t.role == Role.EMBEDDINGS]
    last = [across(t) for t in whole if t.role != Role.EMBEDDINGS]
    return [*first, *inside, *last], n_layers


def _looks(types: Sequence[GgmlType]) -> dict[str, _Look]:
    """Colour and letter of each type: A has the fewest bits."""
    looks = {}
    for k, type_ in enumerate(types):
        ink = ink_of_bits(type_.bits_per_weight)
        looks[type_.name] = _Look(
            ink, ink_on(ink), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[k % 52]
        )
    return looks


def _draw_row(
    figure: Figure,
    ax: Axes,
    y: int,
    row: _Row,
    looks: Mapping[str, _Look],
    cell: float,
    titles: dict[str, str],
) -> None:
    from matplotlib.patches import Rectangle

    for start, end, type_ in _strips(row.cells):
        look = looks[type_.name]
        bits = f"{type_.name}, {type_.bits_per_weight:g} bits per weight"
        pieces = [(start, end)] if row.is_whole else [(n, n + 1) for n in range(start, end)]
        for first, after in pieces:
            patch = Rectangle(
                (first - 0.5, y - 0.5), after - first, 1, facecolor=look.ink.light,
                edgecolor=look.ink.light, linewidth=0.3,
            )  # fmt: skip
            gid = f"cell-{len(titles)}"
            patch.set_gid(gid)
            titles[gid] = f"{row.name if row.is_whole else f'blk.{first}.{row.label}'}: {bits}"
            ax.add_artist(patch)  # the limits are set: nothing is to be learned from the patch
        frame = Rectangle(
            (start - 0.5, y - 0.5), end - start, 1, fill=False, edgecolor=BACKGROUND.light, linewidth=1.2
        )
        ax.add_artist(frame)
        room = cell * (end - start) - 0.06
        fits = text_width(figure, type_.name, _NAME_SIZE) <= room
        ax.text(
            (start + end - 1) / 2, y, type_.name if fits else look.letter, ha="center", va="center_baseline",
            color=look.on.light, fontsize=_NAME_SIZE if fits else min(_LETTER_SIZE, 72 * (room + 0.05)),
        )  # fmt: skip


def _strips(cells: Mapping[int, GgmlType]) -> Iterator[tuple[int, int, GgmlType]]:
    """Neighbouring layers of one type: the first, the one after the last, and the type."""
    for (_, type_), run in groupby(
        enumerate(sorted(cells)), key=lambda pair: (pair[1] - pair[0], cells[pair[1]])
    ):
        layers = [layer for _, layer in run]
        yield layers[0], layers[-1] + 1, type_
