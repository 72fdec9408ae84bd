"""Machine code of kernels, kept on disk and loaded by llvmlite.

A kept file is one compiled kernel: an object file as a C compiler makes it, for this processor, and before it
a line that says what it is.

    {"sha256": of what follows, "externals": ["log2"]}
    the object file

Its name says what it was made of: a digest of the kernel's name and argument types, of the processor and
its features, of Numba's settings and the versions of Numba and llvmlite, and of all sources in this
package, since a kernel takes its steps from several of them. So a file is never out of date, only out of
use. Files are written under another name and renamed, so any number of processes may write and read; a
damaged file is made again. While one process compiles a kernel, others that need it wait for it.

Numba's own cache would not do: reading it takes an import of Numba, half a second of processor time, and it
looks at the source of the kernel alone, not at the steps that it takes from other modules.

Files are in a folder for the sources' digest, under `NUMBA_CACHE_DIR` where that is set, else under
`XDG_CACHE_HOME/ggplan` or `~/.cache/ggplan`. It is made at first use. Where it cannot be written, each
process compiles again. Folders of other versions that were not used for 30 days are removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SYMBOL = "kernel"
"""The name of each kernel's function."""

_PLACE = "NUMBA_CACHE_DIR"
_KEPT_SECONDS = 30 * 24 * 3600
_DAY = 24 * 3600
_WAITED_SECONDS, _POLLED_SECONDS = 30, 0.02
_has_given_up = False
_OLD_FOLDER = r"(ggplan-)?(numba|kernels)-[0-9a-f]{16}"


@dataclass(frozen=True, slots=True)
class MachineCode:
    """A compiled kernel.

    Attributes
    ----------
    externals
        The functions of C's library that it calls.
    """

    object_file: bytes
    externals: tuple[str, ...]


def name_of(function: Callable[..., Any], types: Sequence[object], *others: object) -> str:
    """A file name for a kernel with arguments of these types."""
    name = f"{function.__module__}.{function.__qualname__}"
    # What tells kernels apart that one function makes.
    captured = [cell.cell_contents for cell in function.__closure__ or ()]
    captured = [(getattr(v, "__module__", ""), getattr(v, "__qualname__", v)) for v in captured]
    digest = hashlib.sha256(repr((name, captured, types, *others)).encode())
    source = Path(function.__code__.co_filename)
    if Path(__file__).parent not in source.parents:  # else the folder's name says what it was
        with contextlib.suppress(OSError):
            digest.update(source.read_bytes())
    return f"{re.sub(r'[^A-Za-z0-9_.]', '-', name)[-80:]}-{digest.hexdigest()[:16]}"


def place_of(function: Callable[..., Any], types: Sequence[str]) -> Path:
    """Where the machine code of a kernel is kept."""
    made_of = target(), versions(), _settings(), sys.platform, sys.byteorder
    return cache_folder() / f"{name_of(function, types, *made_of)}.o"


def read(place: Path) -> MachineCode | None:
    """What is kept there, unless it is missing or damaged."""
    try:
        head, _, body = place.read_bytes().partition(b"\n")
        about = json.loads(head)
        if about["sha256"] != hashlib.sha256(body).hexdigest():
            return None
        code = MachineCode(body, tuple(map(str, about["externals"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    _note_use()
    return code if is_linkable(code.externals) else None


def keep(code: MachineCode, place: Path) -> None:
    """Keep it for later processes, where that can be done."""
    about = {"sha256": hashlib.sha256(code.object_file).hexdigest(), "externals": code.externals}
    with contextlib.suppress(OSError):
        make_cache_folder()
        descriptor, waiting = tempfile.mkstemp(dir=place.parent, suffix=".new")
        try:
            with open(descriptor, "wb") as file:
                file.write(json.dumps(about).encode() + b"\n" + code.object_file)
            os.replace(waiting, place)
        except BaseException:
            os.unlink(waiting)
            raise


@contextlib.contextmanager
def compiling_alone(place: Path) -> Iterator[None]:
    """Wait while another process compiles the kernel that is kept there, so that it is compiled once.

    A process that was stopped is not waited for longer than half a minute, and only once: after that, this
    process compiles whatever others hold. Where files cannot be locked, nobody waits, and the kernel is
    compiled twice.
    """
    global _has_given_up
    lock = place.with_suffix(".lock")
    try:
        import fcntl

        make_cache_folder()
        # A link that somebody has put there is not followed, and nothing is emptied.
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except (ImportError, OSError):
        yield
        return
    is_got = False
    try:
        give_up = time.monotonic() + _WAITED_SECONDS
        while not is_got:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_got = True
            except BlockingIOError:
                _has_given_up = _has_given_up or time.monotonic() >= give_up
                if _has_given_up:
                    break
                time.sleep(_POLLED_SECONDS)
            except OSError:
                break
        yield
    finally:
        # Those who wait on it find the kernel kept when they are let in.
        with contextlib.suppress(OSError):
            # It was deleted, and may have been made anew, if another had it first.
            if is_got and os.path.samestat(os.fstat(held), os.stat(lock, follow_symlinks=False)):
                lock.unlink()
        os.close(held)


def load(code: MachineCode) -> int:
    """Make it executable, for the life of this process; returns the address of its function."""
    import llvmlite.binding as llvm

    # An engine of its own for each, so that no two kernels' symbols can meet.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.object_file))
    engine.finalize_object()
    _engines.append(engine)  # it owns the code
    address: int = engine.get_function_address(SYMBOL)
    if not address:
        raise RuntimeError("the object file has no kernel")
    return address


_engines: list[Any] = []


def is_linkable(externals: Sequence[str]) -> bool:
    """Whether this process has all of these functions; LLVM would abort it if one were missing."""
    process = ctypes.CDLL(None)
    return all(hasattr(process, name) for name in externals)


@cache
def target() -> tuple[str, str]:
    """The name of the processor that kernels are compiled for, and the features beyond its name.

    The machine's own, but for Numba's settings `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`.
    """
    import llvmlite.binding as llvm

    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if name in (None, "", "host"):
        name = llvm.get_host_cpu_name()
        features = llvm.get_host_cpu_features().flatten() if features is None else features
    return str(name), features or ""


def target_machine() -> Any:
    """LLVM's machine for `target`."""
    import llvmlite.binding as llvm

    _initialize()
    name, features = target()
    triple = llvm.Target.from_triple(llvm.get_process_triple())
    reloc = "static" if triple.name.startswith("x86") else "default"
    return triple.create_target_machine(
        cpu=name, features=features, opt=3, reloc=reloc, codemodel="jitdefault", jit=True
    )


def has_wide_registers() -> bool:
    """Whether `target` has AVX-512."""
    return "+avx512f" in target()[1].split(",")


def has_avx() -> bool:
    """Whether `target` has AVX."""
    return "+avx" in target()[1].split(",")


@cache
def has_rounding() -> bool:
    """Whether `target` rounds lanes to whole numbers in one instruction; else LLVM would call C's library."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly("""
        declare <4 x float> @llvm.roundeven.v4f32(<4 x float>)
        define <4 x float> @round(<4 x float> %x) {
          %y = call <4 x float> @llvm.roundeven.v4f32(<4 x float> %x)
          ret <4 x float> %y
        }
    """)
    return "roundevenf" not in target_machine().emit_assembly(module)


@cache
def _initialize() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@cache
def versions() -> tuple[str, str]:
    """The versions of Numba, without importing it, and of llvmlite."""
    import llvmlite

    # The standard place of an installed package's version is the name of a folder beside it. To ask
    # importlib.metadata takes longer than to load a kernel, since it imports the reader of e-mail.
    numba = importlib.util.find_spec("numba")
    beside = Path(numba.origin).parents[1] if numba is not None and numba.origin else None
    found = sorted(folder.name for folder in beside.glob("numba-*.dist-info")) if beside else []
    if len(found) == 1:
        return found[0], str(llvmlite.__version__)
    from importlib.metadata import version

    return version("numba"), str(llvmlite.__version__)


def _settings() -> tuple[tuple[str, str], ...]:
    """Numba's settings in the environment, some of which change the code: not `_PLACE`, nor how far Numba
    optimizes, since `compiling` does what it leaves.
    """
    without = (_PLACE, "NUMBA_OPT")
    return tuple(
        sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_") and item[0] not in without)
    )


@cache
def sources_digest() -> str:
    """What tells one version of this package's sources from another."""
    digest = hashlib.sha256()
    # Not by pathlib, which takes longer than to read them.
    found = (
        os.path.join(folder, name)
        for folder, _, names in os.walk(os.path.dirname(__file__))
        for name in names
    )
    for source in sorted(path for path in found if path.endswith(".py")):
        with open(source, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


@cache
def cache_folder() -> Path:
    """The folder of kept files, which may not exist."""
    name = f"kernels-{sources_digest()}"
    if users_own := os.environ.get(_PLACE):
        return Path(users_own) / f"ggplan-{name}"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "ggplan" / name


def make_cache_folder() -> None:
    """Make the folder of kept files where it does not exist, and remove old ones beside it.

    Raises
    ------
    OSError
        If that cannot be done.
    """
    folder = cache_folder()
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old_folders(folder)


def _remove_old_folders(own: Path) -> None:
    """Remove what other versions kept beside `own` and nobody used for long."""
    for folder in own.parent.iterdir():
        with contextlib.suppress(OSError):
            is_ours = re.fullmatch(_OLD_FOLDER, folder.name) and folder.is_dir() and not folder.is_symlink()
            if is_ours and folder != own and time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@cache
def _note_use() -> None:
    """Let the folder's time tell, to the day, when it was last used."""
    folder = cache_folder()
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime > _DAY:
            os.utime(folder)
