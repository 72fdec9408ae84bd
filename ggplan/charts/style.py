"""The look of all charts: two themes, colours that colour-blind readers can tell apart, reproducible files.

Colours are Okabe and Ito's (Color Universal Design, 2008), darkened or lightened where they would not reach a
contrast of 3:1 on the background; every series has a shape of its own too. Charts are drawn in the light
theme; the dark one replaces colour by colour, so that one SVG can hold both and follow the reader's setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Theme = Literal["auto", "light", "dark"]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


@dataclass(frozen=True, slots=True)
class Ink:
    """A colour in the light theme and in the dark one."""

    light: str
    dark: str


BACKGROUND = Ink("#ffffff", "#0d1117")
TEXT = Ink("#1f2328", "#e6edf3")
MUTED = Ink("#59636e", "#9198a1")
FAINT = Ink("#8c959f", "#6e7681")
GRID = Ink("#e4e8ec", "#21262d")
BAND = Ink("#eef1f4", "#161b22")
SERIES = (
    Ink("#0072b2", "#56a8e0"),  # blue
    Ink("#c04f00", "#f0883e"),  # vermilion
    Ink("#00805c", "#2fbf8f"),  # bluish green
    Ink("#a3558a", "#d98cbd"),  # reddish purple
    Ink("#8a6d00", "#e3b341"),  # yellow, darkened
    Ink("#2f7ea8", "#7cc7f0"),  # sky blue, darkened
    Ink("#4d4d4f", "#b6bac0"),  # grey
    Ink("#8b2d2d", "#e5736b"),  # a brown red
)
ALL = (BACKGROUND, TEXT, MUTED, FAINT, GRID, BAND, *SERIES)

WIDTH = 8.4
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED.light,
    "axes.edgecolor": FAINT.light,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": BACKGROUND.light,
    "figure.facecolor": BACKGROUND.light,
    "figure.dpi": 100,
    "text.color": TEXT.light,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ggplan",
    "path.simplify": False,
}


def new_figure(height: float, n_panels: int = 1, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side; call it, and draw, inside `settings()`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    return figure, list(axes)


def settings() -> Any:
    """A context in which matplotlib draws in this style, whatever the user's own settings."""
    import matplotlib
    from cycler import cycler

    own: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    cycle = {"axes.prop_cycle": cycler(color=[ink.light for ink in SERIES])}
    return matplotlib.rc_context(own | SETTINGS | cycle)
