"""A terminal's output as an SVG that fetches nothing: in the reader's monospaced font, light or dark."""

from __future__ import annotations

import html

from rich.console import Console
from rich.text import Text

_SIZE, _LINE, _CHARACTER, _EDGE = 14, 19, 8.43, 16
_FONTS = "'DejaVu Sans Mono',Menlo,Consolas,'Liberation Mono',monospace"


def terminal_svg(printed: str, title: str, description: str) -> str:
    """Draw what a program printed, ANSI codes and all.

    Whatever that font is, each run of text is stretched to its own number of columns (`textLength`), so that
    tables stay aligned.
    """
    lines = Text.from_ansi(printed.rstrip("\n")).split("\n")
    console = Console(width=1000)
    width = round(max(line.cell_len for line in lines) * _CHARACTER + 2 * _EDGE)
    height = len(lines) * _LINE + 2 * _EDGE
    drawn = []
    for number, line in enumerate(lines):
        y = _EDGE + number * _LINE + _SIZE
        column = 0
        for segment in line.render(console):
            run = segment.text.rstrip("\n")
            bare = run.strip()
            if bare:
                x = _EDGE + (column + len(run) - len(run.lstrip())) * _CHARACTER
                kind = "".join(
                    f" {name}"
                    for name, is_on in (
                        ("b", segment.style and segment.style.bold),
                        ("r", set(bare) <= set("─━")),
                    )
                    if is_on
                )
                style = f' class="{kind.strip()}"' if kind else ""
                drawn.append(
                    f'<text x="{x:.1f}" y="{y}" textLength="{len(bare) * _CHARACTER:.1f}"{style}>'
                    f"{html.escape(bare, quote=False)}</text>"
                )
            column += len(run)
    body = "\n".join(drawn)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"
 role="img" xml:space="preserve">
<title>{html.escape(title, quote=False)}</title>
<desc>{html.escape(description, quote=False)}</desc>
<style>
text{{font:{_SIZE}px {_FONTS};fill:#1f2328;white-space:pre}}
.b{{font-weight:bold}}
.r{{fill:#8c959f}}
rect{{fill:#ffffff;stroke:#d1d9e0}}
@media (prefers-color-scheme: dark){{
text{{fill:#e6edf3}}
.r{{fill:#6e7681}}
rect{{fill:#0d1117;stroke:#3d444d}}
}}
</style>
<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>
{body}
</svg>
"""
