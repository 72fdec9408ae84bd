"""The look of all charts: two themes, colours that colour-blind readers can tell apart, reproducible files.

Colours are Okabe and Ito's (Color Universal Design, 2008), darkened or lightened to a contrast of 4.5:1 on
the background, so that text can have them and stand on them; every author has a shape too. Charts are drawn
in the light theme; the dark one replaces colour by colour, so that one SVG can hold both and follow the
reader's setting. An ink is therefore known by its light colour, and no two inks have the same one.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    Ink("#2b789f", "#7cc7f0"),  # sky blue, darkened
    Ink("#4d4d4f", "#b6bac0"),  # grey
    Ink("#8b2d2d", "#e5736b"),  # a brown red
)
# Text on a fill of the ramp: black or white in each theme, whichever can be read there.
ON_FILL = {
    ("white", "white"): Ink("#fefefe", "#ffffff"),
    ("white", "black"): Ink("#fdfdfd", "#000000"),
    ("black", "white"): Ink("#020202", "#ffffff"),
    ("black", "black"): Ink("#010101", "#000000"),
}
ALL = (BACKGROUND, TEXT, MUTED, FAINT, GRID, BAND, *SERIES, *ON_FILL.values())

# From few bits to many. Each theme's ramp begins at a contrast of more than 3:1 with its background and moves
# away from it, so that "the stronger, the more bits" holds in both, and lightness alone tells the order.
_RAMP = (
    ("#cc7a1f", "#7f8f1d", "#2b8c70", "#22739f", "#3f45a0", "#35165e", "#1d0b33"),
    ("#9a5a1a", "#6f7f1d", "#2a9a70", "#3fa5d0", "#9aa5f0", "#d5c2f5", "#fbeffd"),
)
_FEWEST_BITS, _MOST_BITS = 1.5, 32.0


def ink_of_bits(bits: float) -> Ink:
    """The colour of a type with so many bits per weight, evenly on a logarithmic scale from 1.5 to 32."""
    place = math.log2(max(bits, _FEWEST_BITS) / _FEWEST_BITS) / math.log2(_MOST_BITS / _FEWEST_BITS)
    return Ink(*(_between(ramp, min(1.0, place)) for ramp in _RAMP))


def _between(ramp: Sequence[str], place: float) -> str:
    k = min(int(place * (len(ramp) - 1)), len(ramp) - 2)
    share = place * (len(ramp) - 1) - k
    low, high = (_channels(ramp[k]), _channels(ramp[k + 1]))
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(low, high, strict=True))


def ink_on(fill: Ink) -> Ink:
    """The colour of text on a fill: of black and white the one with more contrast, in each theme."""
    light, dark = (
        "white" if contrast(colour, "#ffffff") >= contrast(colour, "#000000") else "black"
        for colour in (fill.light, fill.dark)
    )
    return ON_FILL[light, dark]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours `#rrggbb`, 1 to 21, by the Web Content Accessibility Guidelines."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in _channels(colour))
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@dataclass(frozen=True, slots=True)
class Mark:
    """How an author's points look."""

    ink: Ink
    marker: str


# Chosen so that the most prolific authors of mixes have different colours.
_SALT = "3022"


def marks_of(authors: Sequence[str]) -> dict[str, Mark]:
    """How each author's points look; "" is of nobody, and blue.

    The colour depends on the name alone, so an author has the same one in all charts. There are fewer colours
    than authors: where two in a chart have the same one, their shapes differ.
    """
    marks: dict[str, Mark] = {}
    for author in sorted(set(authors), key=lambda a: (a.casefold(), a)):
        number = zlib.crc32((_SALT + author.casefold()).encode()) if author else 0
        ink, first = SERIES[number % len(SERIES)], number % len(SERIES)
        shapes = [MARKERS[(first + i) % len(MARKERS)] for i in range(len(MARKERS))]
        taken = {mark.marker for mark in marks.values() if mark.ink == ink}
        marks[author] = Mark(ink, next((shape for shape in shapes if shape not in taken), shapes[0]))
    return marks


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
    "text.hinting": "no_hinting",  # text is as wide at any resolution, and in an SVG
    "text.parse_math": False,  # a name is no formula
}


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """A context in which matplotlib draws in this style, whatever the user's own settings."""
    import matplotlib
    from cycler import cycler

    own: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    cycle = {"axes.prop_cycle": cycler(color=[ink.light for ink in SERIES])}
    with matplotlib.rc_context(own | SETTINGS | cycle), warnings.catch_warnings():
        # Names in scripts that DejaVu lacks stay text in an SVG, and the reader's fonts show them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
