"""Where a file's loss is: a row for each kind of tensor, a column for each layer, coloured by its part.

The colours are steps of a third of a decade to two, so that lightness alone tells the order. Beside each row
stand its part of the loss and of the bytes: a row that loses much for few bytes is where bits are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggplan.charts.drawing import (
    PAIR_WIDTH,
    WIDTH,
    Key,
    finish,
    html_table,
    new_figure,
    set_ticks,
    shortened,
)
from ggplan.charts.output import Drawing
from ggplan.charts.style import MUTED, TEXT, Ink, settings
from ggplan.errors import ChartError
from ggplan.planning import Role
from ggplan.planning.roles import role_of
from ggplan.rules.roles import block_of
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW, _WIDEST_CELL, _NARROWEST_FIGURE = 0.26, 1.1, 6.4
_RIGHT = 1.5
_MOST_LAYERS = 1000
# From which part of the loss a cell has the colour, in the light theme and the dark one.
_STEPS: tuple[tuple[float, str, Ink], ...] = (
    (0.10, "10 % of the loss and more", Ink("#4a0a3c", "#fff1c9")),
    (0.03, "from 3 %", Ink("#8c1d40", "#fdc66f")),
    (0.01, "from 1 %", Ink("#c23b2b", "#f28a3a")),
    (0.003, "from 0.3 %", Ink("#e0752d", "#c9552c")),
    (0.001, "from 0.1 %", Ink("#efab5b", "#8f3a36")),
    (0.0003, "from 0.03 %", Ink("#f6d29b", "#5c2f3d")),
    (0.0, "less", Ink("#f8ead0", "#332733")),
)


@dataclass(frozen=True, slots=True)
class TensorDamage:
    """A tensor in a file: its type's name, its bytes, and what is lost by it, in nats."""

    name: str
    type: str
    n_bytes: int
    damage: float


@dataclass(frozen=True, slots=True)
class FileDamage:
    """What is lost by each tensor of a file.

    Attributes
    ----------
    name
        What to call the file: its model, and the recipe.
    tensors
        Those that have a type to choose.
    kld, low, high
        The KL divergence that is predicted of the file, and between what it probably is.
    source, credit
        Where the sensitivities are from, and who measured.
    """

    name: str
    tensors: tuple[TensorDamage, ...]
    kld: float
    low: float
    high: float
    source: str
    credit: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    role: Role
    cells: Mapping[int, TensorDamage]
    is_whole: bool = False


def draw_damage(found: FileDamage, *, title: str = "") -> Drawing:
    """Draw what is lost by each kind of tensor in each layer.

    Raises
    ------
    ChartError
        If nothing is lost, or the model has no layers.
    """
    total = sum(t.damage for t in found.tensors)
    if total <= 0:
        raise ChartError(
            f"nothing is lost by any tensor of {printable(found.name)}", hint="give a recipe with -r"
        )
    rows, n_layers = _rows_of(found.tensors)
    if not 0 < n_layers <= _MOST_LAYERS:
        raise ChartError(f"{printable(found.name)} has {n_layers:,} layers; 1 to {_MOST_LAYERS:,} are drawn")
    n_bytes = sum(t.n_bytes for t in found.tensors)
    titles: dict[str, str] = {}
    left = min(3.2, 0.35 + 0.078 * max(len(row.label) for row in rows))
    room = (WIDTH if n_layers < 32 else PAIR_WIDTH) - left - _RIGHT
    cell = min(_WIDEST_CELL, room / n_layers)
    width = max(_NARROWEST_FIGURE, left + cell * n_layers + _RIGHT)
    heading = title or f"{found.name}: where the loss is, predicted"
    with settings():
        figure, (ax,) = new_figure(
            _ROW * len(rows), 1, width, left=left, right=width - left - cell * n_layers, above=0.3
        )
        ax.set_xlim(-0.5, n_layers - 0.5)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        for y, row in enumerate(rows):
            _draw_row(ax, y, row, total, n_layers, titles)
        _draw_sums(ax, rows, total, n_bytes, cell)
        labels = [shortened(figure, row.label, left - 0.2, 8.5) for row in rows]
        ax.set_yticks(range(len(rows)), labels, fontsize=8.5, color=TEXT.light)
        step = next(s for s in (1, 5, 10, 20, 50, 100) if n_layers / s <= (12 if s == 1 else 20))
        set_ticks(ax.xaxis, range(0, n_layers, step), [str(n) for n in range(0, n_layers, step)])
        ax.set_xlabel("layer")
        ax.grid(visible=False)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        caption = _caption(found, rows, n_layers)
        finish(figure, heading, caption, [Key(label, ink) for _, label, ink in _STEPS])
    table = [
        [t.name, t.type, f"{t.n_bytes:,}", f"{t.damage:.3g}", f"{100 * t.damage / total:.3g} %"]
        for row in rows
        for t in dict.fromkeys(row.cells.values())
    ]
    headings = ("tensor", "type", "bytes", "damage, nats", "of the loss")
    inks = tuple(ink for _, _, ink in _STEPS)
    return Drawing(figure, heading, caption.replace("\n", " "), titles, html_table(headings, table), inks)


def _rows_of(tensors: Sequence[TensorDamage]) -> tuple[list[_Row], int]:
    """Embeddings first, then the kinds in layers by role, then all others; and the layers."""
    kinds: dict[tuple[int, str], dict[int, TensorDamage]] = {}
    first: list[TensorDamage] = []
    last: list[TensorDamage] = []
    for t in tensors:
        if t.damage <= 0:
            continue
        layer = block_of(t.name)
        if layer is not None and layer < _MOST_LAYERS:
            kind = t.name.split(".", 2)[2].removesuffix(".weight")
            kinds.setdefault((list(Role).index(role_of(t.name, 2)), kind), {})[layer] = t
        else:
            (first if role_of(t.name, 2) is Role.EMBEDDINGS else last).append(t)
    n_layers = max((layer for cells in kinds.values() for layer in cells), default=-1) + 1

    def across(t: TensorDamage) -> _Row:
        cells = dict.fromkeys(range(n_layers), t)
        return _Row(t.name.removesuffix(".weight"), role_of(t.name, 2), cells, is_whole=True)

    inside = [_Row(kind, list(Role)[role], kinds[role, kind]) for role, kind in sorted(kinds)]
    return [*map(across, first), *inside, *map(across, last)], n_layers


def _draw_row(ax: Axes, y: int, row: _Row, total: float, n_layers: int, titles: dict[str, str]) -> None:
    from matplotlib.patches import Rectangle

    cells = [(0, n_layers, row.cells[0])] if row.is_whole else [(n, 1, t) for n, t in row.cells.items()]
    for start, n, tensor in cells:
        part = tensor.damage / total
        ink = next(ink for least, _, ink in _STEPS if part >= least)
        patch = Rectangle(
            (start - 0.5, y - 0.46), n, 0.92, facecolor=ink.light, edgecolor=ink.light, linewidth=0.3
        )
        gid = f"cell-{len(titles)}"
        patch.set_gid(gid)
        titles[gid] = (
            f"{tensor.name}: {tensor.type}, {tensor.damage:.2g} nats, {100 * part:.2g} % of the loss"
        )
        ax.add_artist(patch)


def _draw_sums(ax: Axes, rows: Sequence[_Row], total: float, n_bytes: int, cell: float) -> None:
    """Each row's part of the loss and of the bytes, right of it."""
    for column, heading in enumerate(("loss", "bytes")):
        place: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "ha": "right",
        }
        right = 46 + 44 * column
        ax.annotate(
            heading, (1, -0.55), xytext=(right, 2), va="bottom", fontsize=8, color=MUTED.light, **place
        )
        for y, row in enumerate(rows):
            tensors = dict.fromkeys(row.cells.values())
            part = (
                sum(t.n_bytes for t in tensors) / max(n_bytes, 1)
                if column
                else sum(t.damage for t in tensors) / total
            )
            shown = f"{100 * part:.1f} %" if part < 0.0995 else f"{100 * part:.0f} %"
            ax.annotate(
                shown, (1, y), xytext=(right, 0), va="center_baseline", fontsize=8, color=TEXT.light, **place
            )


def _caption(found: FileDamage, rows: Sequence[_Row], n_layers: int) -> str:
    said = (
        "Predicted, not measured: sensitivity of the place times the error of the type, as a part of the"
        f" file's sum. KL divergence of the file {found.kld:.2g} predicted ({found.low:.2g} to"
        f" {found.high:.2g})."
    )
    if any(len(row.cells) < n_layers for row in rows):
        said += " Blank: the layer has no such tensor, or nothing is lost by it."
    source = f"Sensitivities: {found.source}. {' '.join(found.credit)}".strip()
    return "\n".join(map(printable, (said, source)))
