"""The types of a mix: a cell for each layer and kind of tensor, coloured by the bits of its type."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from ggplan.charts.drawing import Drawing, html_table, write_caption, write_heading
from ggplan.charts.style import BACKGROUND, new_figure, settings
from ggplan.errors import ChartError
from ggplan.ggml_types import GgmlType
from ggplan.model import Model
from ggplan.planning import Assignment, fit
from ggplan.planning.layout import file_order
from ggplan.planning.roles import Role, roles_in
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_ON_DARK, _ON_PALE = "#fdfdfd", "#33373d"  # the cells keep their colours in both themes
_BLOCK = re.compile(r"^blk\.(\d{1,6})\.(.+?)(?:\.weight)?$")


def draw_types(model: Model, assignment: Assignment, *, title: str = "") -> Drawing:
    """Draw the types that an assignment gives a model.

    Vectors and norms are left out: they are float everywhere.

    Raises
    ------
    ChartError
        If the model has no blocks.
    PlanError
        If a shape forbids a type and no fallback exists.
    """
    from matplotlib.patches import Patch

    cells: dict[tuple[str, int], GgmlType] = {}
    order: dict[str, int] = {}
    roles = roles_in(model)
    fitted = sorted(fit(model, assignment), key=lambda f: file_order(f.tensor.name))
    for tensor in fitted:
        if tensor.fault is not None:
            raise tensor.error()
        name = tensor.tensor.name
        found = _BLOCK.match(name)
        if found is None or sum(n > 1 for n in tensor.tensor.shape) < 2:
            continue
        kind = found[2]
        order.setdefault(kind, list(Role).index(roles[name]))
        cells[kind, int(found[1])] = tensor.type
    if not cells:
        raise ChartError(f"{printable(str(model.path))} has no blocks to draw")
    kinds = sorted(order, key=lambda kind: (order[kind], kind))
    layers = range(max(layer for _, layer in cells) + 1)
    types = sorted(set(cells.values()), key=lambda t: (t.bits_per_weight, t.name))
    colours = {t.name: _colour(t.bits_per_weight) for t in types}
    titles: dict[str, str] = {}
    width, height = max(6.4, min(14.0, 2.6 + 0.2 * len(layers))), 1.82 + 0.26 * len(kinds)
    with settings():
        figure, (ax,) = new_figure(height, 1, width)
        left = (0.35 + 0.085 * max(map(len, kinds))) / width
        figure.subplots_adjust(left=left, right=1 - 0.2 / width, top=1 - 0.5 / height, bottom=1.02 / height)
        heading = title or f"{assignment.name or model.path.name}: types by layer"
        write_heading(figure, heading)
        for (kind, layer), type_ in cells.items():
            _draw_cell(ax, layer, kinds.index(kind), type_, colours[type_.name], len(layers), titles, kind)
        ax.set_xlim(-0.5, len(layers) - 0.5)
        ax.set_ylim(len(kinds) - 0.5, -0.5)
        ax.set_yticks(range(len(kinds)), [printable(k) for k in kinds], fontsize=8.5)
        ax.set_xticks([n for n in layers if n % (5 if len(layers) > 16 else 1) == 0])
        ax.set_xlabel("layer")
        ax.grid(visible=False)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        handles = [Patch(color=colours[t.name]) for t in types]
        figure.legend(
            handles, [t.name for t in types], loc="lower left", bbox_to_anchor=(0.01, 0.24 / height),
            ncols=len(types), fontsize=8, handlelength=0.9, handletextpad=0.4, columnspacing=1.2,
        )  # fmt: skip
        whole = [f for f in fitted if not f.tensor.name.startswith("blk.") and len(f.tensor.shape) > 1]
        others = ", ".join(f"{f.tensor.name.removesuffix('.weight')} {f.type.name}" for f in whole)
        caption = printable(
            f"Darker: more bits. Outside the layers: {others}." if others else "Darker: more bits."
        )
        write_caption(figure, caption)
    rows = [[kind, str(layer), t.name] for (kind, layer), t in sorted(cells.items(), key=lambda c: c[0])]
    return Drawing(figure, heading, caption, titles, html_table(("tensor", "layer", "type"), rows))


def _draw_cell(
    ax: Axes,
    layer: int,
    row: int,
    type_: GgmlType,
    colour: str,
    n_layers: int,
    titles: dict[str, str],
    kind: str,
) -> None:
    from matplotlib.patches import Rectangle

    cell = Rectangle(
        (layer - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor=BACKGROUND.light, linewidth=0.8
    )
    gid = f"cell-{len(titles)}"
    cell.set_gid(gid)
    titles[gid] = f"blk.{layer}.{kind}: {type_.name}, {type_.bits_per_weight:g} bits per weight"
    ax.add_patch(cell)
    if n_layers <= 12:
        dark = type_.bits_per_weight >= 4
        ax.text(
            layer, row, type_.name, ha="center", va="center", fontsize=7,
            color=_ON_DARK if dark else _ON_PALE,
        )  # fmt: skip


def _colour(bits: float) -> str:
    """From pale yellow at 1.5 bits through blue to dark purple at 32 bits, evenly on a logarithmic scale."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    scale = LinearSegmentedColormap.from_list(
        "bits", ["#fbe9a9", "#8fd0a5", "#2f8fb0", "#27408b", "#1b1b45", "#5b2a5e"]
    )
    return to_hex(scale(min(1.0, max(0.0, math.log2(bits / 1.5) / math.log2(32 / 1.5)))))
