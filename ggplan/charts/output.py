"""`Drawing`: a figure as SVG, PNG or HTML, the same bytes every time.

In an SVG text stays text, and each named part of the drawing (`gid`) gets a `<title>`, which browsers
show and screen readers read. `auto` puts the dark colours behind `prefers-color-scheme`; programs that do not
know it show the light ones.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.charts.given import require_choice
from ggplan.charts.style import ALL, BACKGROUND, TEXT, Ink, Theme, settings
from ggplan.errors import ChartError, MeasureError
from ggplan.measure.outputs import write_whole
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

STARTS = {".svg": b"<svg ", ".png": b"\x89PNG\r\n\x1a\n", ".html": b'<!doctype html>\n<html lang="en">\n'}
"""What the files that are written begin with, by their ending."""
KINDS = tuple(STARTS)
_PNG_DPI = 200


class FontWarning(UserWarning):
    """A PNG has characters that its font cannot draw."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart: a figure and what goes with it into a file. A notebook shows it.

    Attributes
    ----------
    figure
        matplotlib's figure, in the light theme.
    title, description
        What the picture is and what it shows, for readers who cannot see it.
    titles
        The tooltip of each named part (`gid`) of the drawing.
    table
        HTML of the data.
    inks
        Colours of this chart besides those of all charts.
    """

    figure: Figure = field(repr=False)
    title: str
    description: str = field(repr=False)
    titles: Mapping[str, str] = field(repr=False)
    table: str = field(default="", repr=False)
    inks: tuple[Ink, ...] = field(default=(), repr=False)

    def save(self, path: str | Path, theme: Theme = "auto") -> None:
        """Write the chart; the ending of `path`, .svg, .png or .html, gives the format.

        Parameters
        ----------
        theme
            "auto" follows the reader's setting in SVG and HTML; a PNG has one theme, which is then the light
            one.

        A PNG warns (`FontWarning`) of characters that its font lacks.

        Raises
        ------
        ChartError
            If the ending or the theme is unknown, or the file cannot be written.
        """
        require_choice("theme", theme, Theme)
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".png":
            data = _png(self, theme)
            if lacking := _characters_without_glyph(self.figure):
                warnings.warn(
                    f"the font of the PNG lacks {lacking}, drawn as boxes; an SVG shows them",
                    FontWarning,
                    stacklevel=2,
                )
        elif kind == ".svg":
            data = _svg(self, theme).encode("utf-8")
        elif kind == ".html":
            data = _page(_svg(self, theme), self.title, self.table, theme).encode("utf-8")
        else:
            raise ChartError(f"{printable(str(path))} is none of {', '.join(KINDS)}")
        try:
            write_whole(path, data)
        except MeasureError as error:
            raise ChartError(error.message, hint=error.hint) from error

    def to_svg(self, theme: Theme = "auto") -> str:
        """The chart as an SVG document."""
        require_choice("theme", theme, Theme)
        return _svg(self, theme)

    def _repr_svg_(self) -> str:
        """What a notebook shows: its page may be light or dark whatever the system's setting."""
        return _svg(self, "light")

    @property
    def _colours(self) -> dict[str, str]:
        """The dark colour of each light one."""
        return {ink.light: ink.dark for ink in (*ALL, *self.inks)}


def _svg(drawing: Drawing, theme: Theme) -> str:
    buffer = io.StringIO()
    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with settings():
        drawing.figure.savefig(buffer, format="svg", metadata=unsaid)
    text = buffer.getvalue()
    text = re.sub(r" <metadata>.*?</metadata>\n", "", text[text.index("<svg") :], flags=re.DOTALL)
    opening, closing, rest = text.partition(">")
    style = f"\n <style>{_dark_rules(drawing)}</style>" if theme == "auto" else ""
    words = f"\n <title>{_escaped(drawing.title)}</title>\n <desc>{_escaped(drawing.description)}</desc>"
    text = f'{opening} role="img"{closing}{words}{style}{rest}'

    def titled(found: re.Match[str]) -> str:
        name = drawing.titles.get(found[1])
        return found[0] if name is None else f"{found[0]}<title>{_escaped(name)}</title>"

    text = re.sub(r'<g id="([^"]+)">', titled, text)
    # Places were measured in DejaVu Sans; a reader without it gets a sans-serif of about the same width.
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return _darkened(text, drawing) if theme == "dark" else text


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=False)


def _darkened(text: str, drawing: Drawing) -> str:
    colours = drawing._colours
    return re.sub(r"((?:fill|stroke): )(#[0-9a-f]{6})", lambda f: f[1] + colours.get(f[2], f[2]), text)


def _dark_rules(drawing: Drawing) -> str:
    """CSS that turns each light colour, wherever it is set, into the dark one."""
    rules = [
        f'[style*="{what}: {light}"]{{{what}:{dark} !important}}'
        for light, dark in drawing._colours.items()
        for what in ("fill", "stroke")
    ]
    return "@media (prefers-color-scheme: dark){" + "".join(rules) + "}"


def _png(drawing: Drawing, theme: Theme) -> bytes:
    artists = drawing.figure.findobj()
    before = [vars(artist).copy() for artist in artists]
    buffer = io.BytesIO()
    try:
        if theme == "dark":
            _repaint(artists, drawing._colours)
        with settings():
            drawing.figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    finally:
        for artist, state in zip(artists, before, strict=True):
            vars(artist).update(state)
    return buffer.getvalue()


def _characters_without_glyph(figure: Figure) -> str:
    """The characters of a figure's texts that its font cannot draw."""
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.text import Text

    texts = [artist.get_text() for artist in figure.findobj(Text) if isinstance(artist, Text)]
    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()
    characters = dict.fromkeys(c for text in texts for c in text if c.isprintable() and ord(c) not in glyphs)
    return printable("".join(characters))


def _repaint(artists: Sequence[Artist], dark: Mapping[str, str]) -> None:
    """Give every artist its dark colour."""
    from matplotlib.colors import to_hex, to_rgba

    def turned(colour: object) -> object:
        rgba = to_rgba(colour)  # type: ignore[arg-type]
        name = to_hex(rgba)
        return (*to_rgba(dark[name])[:3], rgba[3]) if name in dark else colour

    for artist in artists:
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
            if get is None or put is None:
                continue
            value = get()
            try:
                colours = [turned(c) for c in value] if _is_list(value) else turned(value)
            except ValueError:
                continue  # "none", "auto"
            put(colours)


def _is_list(value: object) -> bool:
    return hasattr(value, "ndim") and getattr(value, "ndim", 0) == 2


def _page(svg: str, title: str, table: str, theme: Theme) -> str:
    light = f"body{{background:{BACKGROUND.light};color:{TEXT.light}}}"
    dark = f"body{{background:{BACKGROUND.dark};color:{TEXT.dark}}}"
    colours = {
        "light": light,
        "dark": dark,
        "auto": f"{light}@media (prefers-color-scheme: dark){{{dark}}}",
    }[theme]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>
{colours}
body{{font:15px/1.5 'DejaVu Sans',Verdana,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
svg{{width:100%;height:auto}}
table{{border-collapse:collapse;font-size:13px;width:100%}}
td,th{{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #8884}}
td:first-child,th:first-child{{text-align:left}}
</style>
</head>
<body>
{svg}
{table}
</body>
</html>
"""
