"""Make the calibration text that ships, `ggplan calibrate --text default`, out of Debian packages.

    python tools/make_texts.py [--packages FOLDER]

Four parts of equal size, each mixed of several sources in pieces of a page, so that the first tokens of a
part are as mixed as all of it: prose, code, markup, languages. A sixth as much again, of other documents of
the same kinds, is kept apart to judge by (`holdout-*.txt`). The packages are fetched with `apt-get
download` (Debian 12); what is taken from each, and under which licence, is written to LICENCES.md beside
the texts; NOTICES.md has what the licences ask to be kept. Nothing is taken of the books and pages that
this project's own measurements use (`ppl_graphs/texts`).
"""

from __future__ import annotations

import argparse
import gettext
import html
import random
import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).parent.parent / "ggplan" / "calibration" / "texts"
PIECE = 1800  # characters of a piece, at least: about a page
PART = 96_000  # bytes of a part
HELD_OUT = 16_000  # bytes of the part kept apart

PACKAGES = {
    "bible-kjv-text": "King James Version of the Bible: public domain",
    "bible-kjv": "(the program that prints it; nothing of it is in the texts)",
    "sword-text-sparv": "Reina-Valera of 1909: public domain",
    "python3.11-doc": "Python's documentation, © Python Software Foundation: PSF License Version 2",
    "libpython3.11-stdlib": "Python's standard library, © Python Software Foundation: PSF License Version 2",
    "sqlite3-doc": "SQLite's documentation: public domain",
    "libsqlite3-dev": "SQLite's header: public domain",
    "golang-1.19-src": "Go's standard library, © The Go Authors: BSD 3-clause",
    "libjs-jquery": "jQuery, © OpenJS Foundation and other contributors: MIT",
    "postgresql-client-15": "messages of PostgreSQL's programs, © PostgreSQL Global Development Group:"
    " PostgreSQL Licence",
}

# Books and pages that the project measures with, or by which its small trained models are judged.
MEASURED_BOOKS = {"Jos", "Jdg", "Rut", "Est", "Ecc", "Dan", "Rom"}
MEASURED_PAGES = {
    "heapq", "pathlib", "sqlite3", "classes", "sorting", "csv", "random", "statistics", "functions", "os",
    "datamodel",
}  # fmt: skip
BOOKS = ("Psa", "Mat", "Job", "Act", "Pro", "Exo")
LOCALES = ("de", "fr", "ru", "ja", "zh_CN", "ko", "es", "it", "pt_BR", "pl", "sv", "tr", "uk")


@dataclass(frozen=True, slots=True)
class Source:
    """Documents of one source, and the share of a part that is taken of them."""

    name: str
    share: float
    documents: list[str]


def main() -> None:
    """Fetch, cut, mix, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, help="a folder with the .deb files, or to keep them in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        debs = (arguments.packages or Path(scratch)).resolve()
        root = Path(scratch) / "root"
        versions = _unpacked(debs, root)
        parts = {
            "prose": [
                Source("kjv", 0.45, _books(root)),
                Source("python pages", 0.25, _pages(root, ("tutorial", "howto", "faq"))),
                Source("sqlite", 0.30, [_plain(page) for page in _sqlite_pages(root)]),
            ],
            "code": [
                Source("python", 0.4, _files(root, "usr/lib/python3.11", "*.py")),
                Source("go", 0.25, _files(root, "usr/share/go-1.19/src", "*.go")),
                Source("javascript", 0.2, _files(root, "usr/share/javascript/jquery", "jquery.js")),
                Source("c", 0.15, _files(root, "usr/include", "sqlite3.h")),
            ],
            "markup": [
                Source("restructuredtext", 0.5, _pages(root, ("library", "reference", "c-api"))),
                Source("html", 0.5, list(_sqlite_pages(root))),
            ],
            "languages": [
                Source("spanish", 0.2, _reina_valera(root)),
                *(Source(name, 0.8 / len(LOCALES), _messages(root, name)) for name in LOCALES),
            ],
        }
    TEXTS.mkdir(parents=True, exist_ok=True)
    for part, sources in parts.items():
        chosen, held_out = _mixed(sources)
        (TEXTS / f"{part}.txt").write_text(chosen, encoding="utf-8")
        (TEXTS / f"holdout-{part}.txt").write_text(held_out, encoding="utf-8")
        print(f"{part}: {len(chosen.encode())} bytes, {len(held_out.encode())} held out")
    (TEXTS / "LICENCES.md").write_text(_licences(versions), encoding="utf-8")


def _unpacked(debs: Path, root: Path) -> dict[str, str]:
    """Fetch and unpack the packages; their versions."""
    debs.mkdir(parents=True, exist_ok=True)
    versions = {}
    for package in PACKAGES:
        if not (found := sorted(debs.glob(f"{package}_*.deb"))):
            subprocess.run(["apt-get", "download", "-q", package], cwd=debs, check=True, capture_output=True)
            found = sorted(debs.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", found[-1], root], check=True)
        versions[package] = found[-1].name.split("_")[1].replace("%3a", ":")
    return versions


def _books(root: Path) -> list[str]:
    """Books of the King James Version, a verse a line."""
    books = []
    for book in BOOKS:
        assert book not in MEASURED_BOOKS
        passage = f"{book}1:1-{book}150:99"
        command: list[str | Path] = [root / "usr/bin/bible", "-p", root / "usr/lib", "-f", passage]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        verses = [match for line in lines if (match := re.match(rf"{book}(\d+):(\d+) (.*)", line))]
        chapters: dict[str, list[str]] = {}
        for match in verses:
            chapters.setdefault(match[1], []).append(match[3].strip())
        books += [f"Chapter {number}\n\n" + "\n".join(lines) + "\n" for number, lines in chapters.items()]
    return books


def _reina_valera(root: Path) -> list[str]:
    """Books of the Spanish Bible: a SWORD module, whose index has offset and size of zlib streams of OSIS."""
    base = root / "usr/share/sword/modules/texts/ztext/spaRV1909eb"
    index, data = (base / "nt.bzs").read_bytes(), (base / "nt.bzz").read_bytes()
    books = []
    for offset, size, _ in struct.iter_unpack("<III", index):
        if size == 0:
            continue
        text = zlib.decompress(data[offset : offset + size]).decode("utf-8")
        text = re.sub(r"<title[^>]*>.*?</title>", "", text)
        text = re.sub(r"<verse eID[^>]*>|<div [^>]*>|<chapter [^>]*>", "\n", text)
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
        lines = (" ".join(line.split()) for line in text.splitlines())
        books.append("\n".join(line for line in lines if line) + "\n")
    return books


def _pages(root: Path, folders: tuple[str, ...]) -> list[str]:
    base = root / "usr/share/doc/python3.11/html/_sources"
    paths = sorted(path for folder in folders for path in (base / folder).rglob("*.rst.txt"))
    return [
        path.read_text(encoding="utf-8")
        for path in paths
        if path.name.removesuffix(".rst.txt") not in MEASURED_PAGES
    ]


def _sqlite_pages(root: Path) -> Iterator[str]:
    """The larger pages of SQLite's documentation, as HTML without the frame that each has."""
    for path in sorted((root / "usr/share/doc/sqlite3").rglob("*.html")):
        text = path.read_text(encoding="utf-8", errors="replace")
        body = text.partition("</script>")[2] or text
        if path.parent.name != "releaselog" and 6_000 < len(body) < 80_000:
            yield body


def _plain(page: str) -> str:
    """The paragraphs of a page, without markup."""
    found = (
        html.unescape(re.sub(r"<[^>]+>", "", part))
        for part in re.findall(r"(?s)<p>(.*?)(?=<p>|</p>|<h\d)", page)
    )
    lines = (" ".join(part.split()) for part in found)
    return "\n\n".join(line for line in lines if len(line) > 120) + "\n"


def _files(root: Path, folder: str, pattern: str) -> list[str]:
    paths = sorted(path for path in (root / folder).rglob(pattern) if path.is_file())
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths if "test" not in str(path))
    return [text for text in texts if len(text) > PIECE]


def _messages(root: Path, locale: str) -> list[str]:
    """What PostgreSQL's programs say in a language, the longer messages first in the file's order."""
    texts = []
    for path in sorted((root / "usr/share/locale" / locale / "LC_MESSAGES").glob("*.mo")):
        with path.open("rb") as file:
            catalog = gettext.GNUTranslations(file)
        entries: dict[object, str] = catalog._catalog  # type: ignore[attr-defined]
        lines = [line.strip() for key, line in entries.items() if key and len(line.strip()) > 24]
        texts.append("\n".join(lines) + "\n")
    return texts


def _pieces(document: str) -> list[str]:
    """A document cut at empty lines (else at line ends) into pieces of a page or somewhat more."""
    pieces, piece = [], ""
    for paragraph in re.split(r"(?<=\n)\n+", document) if "\n\n" in document else document.splitlines(True):
        piece += paragraph + ("\n" if "\n\n" in document else "")
        if len(piece) >= PIECE:
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if len(piece) > PIECE // 2 else pieces


def _mixed(sources: list[Source]) -> tuple[str, str]:
    """A part and what is kept apart of the same kinds, of other documents where a source has several."""
    shuffled = random.Random(1)
    chosen: list[str] = []
    held_out: list[str] = []
    for source in sources:
        documents = [pieces for text in source.documents if (pieces := _pieces(text))]
        shuffled.shuffle(documents)
        if len(documents) > 4:
            apart = [piece for pieces in documents[: len(documents) // 4] for piece in pieces[:4]]
            rest = [piece for pieces in documents[len(documents) // 4 :] for piece in pieces[:6]]
        else:
            every = [piece for pieces in documents for piece in pieces]
            apart, rest = every[: len(every) // 5], every[len(every) // 5 :]
        chosen += _taken(rest, source.share * PART, shuffled.shuffle)
        held_out += _taken(apart, source.share * HELD_OUT, shuffled.shuffle)
    shuffled.shuffle(chosen)
    shuffled.shuffle(held_out)
    return "\n".join(chosen), "\n".join(held_out)


def _taken(pieces: list[str], n_bytes: float, shuffle: Callable[[list[str]], None]) -> list[str]:
    pieces = list(pieces)
    shuffle(pieces)
    taken, size = [], 0
    for piece in pieces:
        if size >= n_bytes:
            break
        cut = piece.encode()[: max(PIECE, int(n_bytes) - size)].decode(errors="ignore")
        taken.append(cut)
        size += len(cut.encode())
    return taken


def _licences(versions: dict[str, str]) -> str:
    lines = [
        "# Where the calibration text is from",
        "",
        "Made by `tools/make_texts.py` out of packages of Debian 12. Each piece stays under its source's"
        " licence (NOTICES.md).",
        "",
        "| package | version | what, and its licence |",
        "|---|---|---|",
        *(f"| {name} | {versions[name]} | {what} |" for name, what in PACKAGES.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
