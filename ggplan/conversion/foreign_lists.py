r"""SHA-256 of whole files as other programs print them: of a file, all bytes.

    HEX  FILE, HEX *FILE, \HEX  FILE          sha256sum; behind a backslash those of the name are doubled
    SHA256 (FILE) = HEX, SHA256(FILE)= HEX    BSD, sha256sum --tag, openssl
    SHA256          HEX          PATH         Get-FileHash of PowerShell, a table
    Algorithm : SHA256 / Hash : HEX / Path :  the same with Format-List, a line each
    "SHA256","HEX","PATH"                     the same with Export-Csv
    SHA256 hash of FILE: / HEX                certutil -hashfile FILE SHA256, in any language
    HEX                                       a hash alone, of the file that the list is named after

Windows PowerShell writes UTF-16, and cuts a path that is too long for the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_HEX = r"[0-9a-fA-F]{64}"
_GNU = re.compile(rf"(\\?)({_HEX})[ \t]+\*?(.+)")
_BSD = re.compile(rf"SHA2?-?256 ?\((.+)\) ?= ({_HEX})", re.I)
_TABLE = re.compile(rf"\"?SHA-?256\"?(?:[ \t]+|,)\"?({_HEX})\"?(?:(?:[ \t]+|,)(.*))?", re.I)
_FIELD = re.compile(r"(Algorithm|Hash|Path)[ \t]*:[ \t]*(.*)", re.I)
_OF_FILE = re.compile(r"SHA-?256\b.{0,40}?\b(?:of file|of|von|de|di)\b:?[ \t]+(.+):", re.I)
_BYTES = re.compile(r"(?:[0-9a-fA-F]{2} ){31}[0-9a-fA-F]{2}")
_CUT = ("...", "\N{HORIZONTAL ELLIPSIS}")

HINT = (
    "what `ggplan convert`, `llama-gguf-hash --sha256`, `sha256sum`, `Get-FileHash` and "
    "`certutil -hashfile FILE SHA256` print is read"
)


def whole_file_hashes(lines: Sequence[str], own: str) -> Iterator[tuple[str, str]]:
    """The files and their hashes, in lower case.

    Parameters
    ----------
    own
        The file that a hash without a name is of.
    """
    field: dict[str, str] = {}
    before = ""
    for line in lines:
        text = line.strip()
        if found := _GNU.fullmatch(text):
            yield (found[3].replace("\\\\", "\\") if found[1] else found[3]), found[2].lower()
        elif found := _BSD.fullmatch(text):
            yield found[1], found[2].lower()
        elif found := _TABLE.fullmatch(text):
            name = (found[2] or "").strip().strip('"')
            yield (own if not name or name.endswith(_CUT) else name), found[1].lower()
        elif found := _FIELD.fullmatch(text):
            if found[1].lower() in field:
                yield from _of_fields(field, own)
                field = {}
            field[found[1].lower()] = found[2].strip()
        elif field.get("path") and line[:1] in " \t" and text:  # a long path goes on in the next line
            field["path"] += text
        elif re.fullmatch(_HEX, text) or _BYTES.fullmatch(text):
            named = _OF_FILE.fullmatch(before)
            yield (named[1].strip() if named else own), text.replace(" ", "").lower()
        before = text or before
    yield from _of_fields(field, own)


def _of_fields(field: dict[str, str], own: str) -> Iterator[tuple[str, str]]:
    is_sha256 = field.get("algorithm", "SHA256").upper().replace("-", "") == "SHA256"
    if is_sha256 and re.fullmatch(_HEX, field.get("hash", "")):
        yield field.get("path") or own, field["hash"].lower()
