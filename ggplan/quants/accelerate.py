"""Numba's flags, and where its compiled code is kept.

Every encoder and decoder is compiled by one of these decorators:

`kernel`
    What Python calls: runs without the GIL, allocates its own scratch memory, and is kept on disk, so that
    only the first run on a machine pays for compiling (seconds; loading takes milliseconds).
`inline`
    A step of a kernel: LLVM pastes it into its caller, so it costs no call and is not kept by itself.
`intrinsic`
    A step of a kernel that is written as LLVM instructions.

Bytes are a contract, hence no fast-math flag, ever: LLVM may neither reorder sums nor fuse a multiplication
and an addition, and each IEEE operation rounds once, in the order in which it is written.
`error_model="numpy"` makes x/0 an inf or a nan, as in C, instead of an exception.

Numba keys a kept kernel by the source of its own file, not of the steps it takes from others. So the folder's
name carries a digest of all sources here: no kernel can outlive a change to its steps.
The folder lies under `NUMBA_CACHE_DIR` where that is set, else under `XDG_CACHE_HOME/ggplan` or
`~/.cache/ggplan`; where it cannot be written, every process compiles anew.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numba.extending

Function = TypeVar("Function", bound=Callable[..., Any])

_FLAGS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": False,
    "boundscheck": False,
    "no_cfunc_wrapper": True,
}

_cache_lock = threading.Lock()


def kernel(function: Function) -> Function:
    """Compile `function` on its first call and keep the result on disk.

    The function must stand at the top level of a module: a closure is never found again on disk.
    """
    with _cache_lock:
        # Numba settles a function's folder when it is decorated, and reads it from this one setting.
        users_own = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = CACHE_FOLDER
        try:
            return cast(Function, numba.njit(cache=bool(CACHE_FOLDER), **_FLAGS)(function))
        finally:
            numba.config.CACHE_DIR = users_own


def inline(function: Function) -> Function:
    """Let kernels call `function`, compiled as a part of them; for Python it stays a plain function."""
    options = {"forceinline": True, "no_cpython_wrapper": True, **_FLAGS}
    register = numba.extending.overload(function, jit_options=options, strict=False, prefer_literal=True)
    register(lambda *arguments, **named: function)
    return function


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels call the step that `function(typing_context, *argument_types)` returns as LLVM code.

    The types of constant integers are given as literals.
    """
    return cast(Callable[..., Any], numba.extending.intrinsic(prefer_literal=True)(function))


def _cache_folder() -> str:
    """The folder of kept kernels, or "" where it cannot be written."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"numba-{digest.hexdigest()[:16]}"
    if numba.config.CACHE_DIR:
        folder = Path(numba.config.CACHE_DIR) / f"ggplan-{name}"
    else:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = Path(home) / "ggplan" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return ""
    return str(folder)


CACHE_FOLDER = _cache_folder()
