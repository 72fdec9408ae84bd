"""Text that comes in and goes out: encodings, names made safe, byte counts with units, the nearest name."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

_SHOWN_NAMES = 3
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_MARKS = (  # UTF-32's mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 512
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?)(ib|b)?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


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


def plural(n: int, noun: str) -> str:
    """A number of things: `1 chunk`, `1,200 chunks`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


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


def parse_bytes(text: str, kilo: int) -> int | None:
    """The bytes that `48G`, `1.5GiB` or `500 MB` says, as a whole number; None where it is no such text.

    `GiB` always counts in powers of 1024 and `GB` in powers of 1000; a bare `G` in powers of `kilo`.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    unit = found[3].lower() if found[3] else ""
    base = kilo if not unit else 1024 if unit == "ib" else 1000
    return int(float(found[1]) * base ** _POWERS[found[2].lower()])


def has_unit(text: str) -> bool:
    """Whether a size says what it counts: `48G`, `90B`, and not `48`."""
    return not text.strip()[-1:].isdecimal()


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The known name most like this one, whatever the case of its letters; "" where none is like it."""
    import difflib

    by_lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name[:100].lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else ""


def text_encoding(raw: bytes) -> tuple[bytes, str]:
    """The byte order mark that a text begins with, or b"", and its encoding as Python calls it.

    It is UTF-8 unless a mark says otherwise, or a zero stands in every other byte of its beginning.
    """
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return mark, encoding
    sample = raw[:_SAMPLE]
    zeros = [sample[start::2].count(0) for start in (0, 1)]
    is_utf16 = len(sample) >= 4 and max(zeros) > len(sample) // 4 and not min(zeros)
    return b"", ("utf-16-be" if zeros[0] else "utf-16-le") if is_utf16 else "utf-8"


def decode_text(raw: bytes, errors: str = "replace") -> str:
    """The text in a user's file, with LF at the ends of lines, whatever program wrote it.

    It is UTF-8 unless a byte order mark says otherwise: `>` in Windows PowerShell writes UTF-16. UTF-16
    without a mark is known by the zero in every other byte of its beginning.

    Parameters
    ----------
    errors
        What becomes of bytes that are no text, as for `bytes.decode`; by default each becomes U+FFFD.

    Raises
    ------
    UnicodeDecodeError
        If `errors` is "strict" and there are such bytes.
    """
    mark, encoding = text_encoding(raw)
    return raw[len(mark) :].decode(encoding, errors).replace("\r\n", "\n")
