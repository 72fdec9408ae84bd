"""Text for printing: untrusted names made safe, byte counts with units, and the nearest known name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SHOWN_NAMES = 3
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def printable(text: str) -> str:
    """`text` with every control character escaped, so that a name from a file cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def names_in_words(names: Sequence[str], *, quote: str = "") -> str:
    """Tensors by their names: `blk.7.ffn_up.weight`, or `46 tensors (a, b, c, …)`; `quote` is put around
    one.
    """
    shown = ", ".join(map(printable, names[:_SHOWN_NAMES]))
    if len(names) == 1:
        return f"{quote}{shown}{quote}"
    return f"{len(names):,} tensors ({shown}{', …' if len(names) > _SHOWN_NAMES else ''})"


def format_bytes(n_bytes: int) -> str:
    """A byte count with three significant digits and a binary unit: `69.2 GiB`, `16.0 KiB`, `90 B`."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    power = 1
    while n_bytes / 1024**power >= 999.5 and power < len(_UNITS):
        power += 1
    size = n_bytes / 1024**power
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {_UNITS[power - 1]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like this one, whatever the case of its letters; "" where none is like it."""
    import difflib

    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name[:100].lower(), by_lower, n=1)
    return by_lower[found[0]] if found else ""
