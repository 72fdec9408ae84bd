"""A figure as SVG, PNG or HTML, the same bytes every time.

In an SVG text stays text, and each named part of the drawing (`gid`) gets a `<title>`, which browsers
show and screen readers read. `auto` puts the dark colours behind `prefers-color-scheme`; programs that do not
know it show the light ones.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.charts.drawing import Drawing
from ggplan.charts.style import ALL, BACKGROUND, TEXT, Theme, settings
from ggplan.errors import ChartError, MeasureError
from ggplan.measure.outputs import write_whole
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (".svg", ".png", ".html")
_PNG_DPI = 200


def save(drawing: Drawing, path: str | Path, theme: Theme = "auto") -> None:
    """Write a drawing; the ending of `path` gives the format.

    Parameters
    ----------
    theme
        "auto" follows the reader's setting in SVG and HTML; a PNG has one theme, which is then the light one.

    Raises
    ------
    ChartError
        If the ending is unknown or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".png":
        data = _png(drawing.figure, theme)
    elif kind in KINDS:
        svg = _svg(drawing, theme)
        data = (svg if kind == ".svg" else _page(svg, drawing.title, drawing.table, theme)).encode("utf-8")
    else:
        raise ChartError(f"{printable(str(path))} is none of {', '.join(KINDS)}")
    try:
        write_whole(path, data)
    except MeasureError as error:
        raise ChartError(error.message, hint=error.hint) from error


def _svg(drawing: Drawing, theme: Theme) -> str:
    buffer = io.StringIO()
    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with settings():
        drawing.figure.savefig(buffer, format="svg", metadata=unsaid)
    text = buffer.getvalue()
    text = re.sub(r" <metadata>.*?</metadata>\n", "", text[text.index("<svg") :], flags=re.DOTALL)
    opening, closing, rest = text.partition(">")
    style = f"\n <style>{_dark_rules()}</style>" if theme == "auto" else ""
    words = f"\n <title>{_escaped(drawing.title)}</title>\n <desc>{_escaped(drawing.description)}</desc>"
    text = f'{opening} role="img"{closing}{words}{style}{rest}'

    def titled(found: re.Match[str]) -> str:
        name = drawing.titles.get(found[1])
        return found[0] if name is None else f"{found[0]}<title>{_escaped(name)}</title>"

    text = re.sub(r'<g id="([^"]+)">', titled, text)
    # Places were measured in DejaVu Sans; a reader without it gets a sans-serif of about the same width.
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return _darkened(text) if theme == "dark" else text


def _escaped(text: str) -> str:
    return html.escape(printable(text), quote=False)


def _darkened(text: str) -> str:
    colours = {ink.light: ink.dark for ink in ALL}
    return re.sub("|".join(colours), lambda found: colours[found[0]], text)


def _dark_rules() -> str:
    """CSS that turns each light colour, wherever it is set, into the dark one."""
    rules = [
        f'[style*="{what}: {ink.light}"]{{{what}:{ink.dark} !important}}'
        for ink in ALL
        for what in ("fill", "stroke")
    ]
    return "@media (prefers-color-scheme: dark){" + "".join(rules) + "}"


def _png(figure: Figure, theme: Theme) -> bytes:
    if theme == "dark":
        _repaint(figure)
    buffer = io.BytesIO()
    with settings():
        figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _repaint(figure: Figure) -> None:
    """Give every artist its dark colour."""
    from matplotlib.colors import to_hex, to_rgba

    dark = {ink.light: ink.dark for ink in ALL}

    def turned(colour: object) -> object:
        rgba = to_rgba(colour)  # type: ignore[arg-type]
        name = to_hex(rgba)
        return (*to_rgba(dark[name])[:3], rgba[3]) if name in dark else colour

    for artist in figure.findobj():
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
