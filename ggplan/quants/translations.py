"""Kernels in LLVM's language, as they are shipped beside their sources.

What Numba makes of a kernel differs between processors by the number of lanes, and by nothing else that
counts. So it is made ahead, by `tools/make_translations.py`, for those with AVX-512 and for those with AVX2,
and where a kernel is first used LLVM has a few tenths of a second's work left. Where there is no translation
(for another kind of processor or another LLVM, or because the sources were changed since), Numba makes one
there and then.

An archive is a zip file. Its entries are modules of LLVM's assembly language; its comment is JSON:

    {"sources": the digest of this package, "llvm": LLVM's version, "numba": Numba's}
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ggplan.quants import machine_code

FOLDER = Path(__file__).with_name("translated")

_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


def shipped(function: Callable[..., Any], types: Sequence[object]) -> str | None:
    """The translation of a kernel for arguments of these types, if there is one for this processor."""
    place = _usable_archive()
    if place is None:
        return None
    try:
        with zipfile.ZipFile(place) as archive:
            return archive.read(entry_name(function, types)).decode()
    except (KeyError, *_UNREADABLE):
        return None


def entry_name(function: Callable[..., Any], types: Sequence[object]) -> str:
    """What a kernel's entry in an archive is called."""
    return f"{machine_code.name_of(function, types)}.ll"


def write_archive(place: Path, translations: Mapping[str, str], numba_version: str) -> None:
    """Write an archive; the same translations make the same bytes."""
    with zipfile.ZipFile(place, "w") as archive:
        for name, text in sorted(translations.items()):
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED, compresslevel=9)
        archive.comment = json.dumps({**_needed(), "numba": numba_version}).encode()


@cache
def _usable_archive() -> Path | None:
    place = _archive()
    if place is None:
        return None
    try:
        with zipfile.ZipFile(place) as archive:
            about = json.loads(archive.comment)
    except _UNREADABLE:
        return None
    return place if _needed().items() <= about.items() else None


def _archive() -> Path | None:
    """The archive for processors like `machine_code.target`."""
    import llvmlite.binding as llvm

    if not llvm.get_process_triple().startswith("x86_64") or not machine_code.has_rounding():
        return None
    return FOLDER / ("avx512.zip" if machine_code.has_wide_registers() else "avx2.zip")


def _needed() -> dict[str, object]:
    """What an archive must say of itself: LLVM reads no other version's language without fail."""
    import llvmlite.binding as llvm

    return {"sources": machine_code.sources_digest(), "llvm": llvm.llvm_version_info[0]}
