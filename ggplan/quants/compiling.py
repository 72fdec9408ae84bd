"""Compile kernels with Numba. Imported only where no machine code of one is kept.

Bytes are a contract, hence no fast-math flag, ever: LLVM may neither reorder sums nor fuse a multiplication
and an addition, and each IEEE operation rounds once, in the order in which it is written.
`error_model="numpy"` makes x/0 an inf or a nan, as in C, instead of an exception.

A kernel becomes a C function by `numba.cfunc`. Its steps become functions that are pasted into it, its
intrinsics Numba's. What Numba makes of all of it is taken as LLVM's language (`inspect_llvm`), and becomes an
object file that calls nothing but C's library, so it runs where Numba was never imported.

Numba optimizes each step by itself and generates code for it, and again in each step that takes it. With
`NUMBA_OPT=0` it leaves that, and a kernel is optimized here, once: a quarter less time for the same code. The
command line asks for it, where Numba compiles nothing but kernels.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from types import CellType, FunctionType
from typing import Any

import llvmlite.binding as llvm
import numba
import numba.extending
from numba import types

from ggplan.errors import QuantizationError
from ggplan.quants import machine_code
from ggplan.quants.machine_code import SYMBOL, MachineCode

_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": False, "boundscheck": False}

_OPTIMIZED = 3

# Steps are called by nothing but kernels: they need no wrappers for Python and C.
_STEP_FLAGS: dict[str, Any] = {
    **_FLAGS,
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

Steps = Set[Callable[..., Any]]

_lock = threading.Lock()
_known: dict[Callable[..., Any], Any] = {}


def compile_kernel(
    function: Callable[..., Any], type_names: Sequence[str], steps: Steps, intrinsics: Steps
) -> MachineCode:
    """Machine code of a kernel.

    Parameters
    ----------
    type_names
        The types of its arguments: Numba's names, a star after those of memory.
    steps, intrinsics
        The functions that it may call: those that are compiled as a part of it, and those that return LLVM
        code.

    Raises
    ------
    QuantizationError
        If Numba was told to compile nothing.
    TypeError
        If it calls what only Numba or Python has, for example to raise an exception, which the step of a
        range does that is no constant.
    """
    if numba.config.DISABLE_JIT:
        raise QuantizationError("encoders cannot be compiled where NUMBA_DISABLE_JIT is set", hint="unset it")
    with _lock, _no_garbage_collection():
        signature = types.void(*[_numba_type(name) for name in type_names])
        compiled = numba.cfunc(signature, **_FLAGS)(_for_numba(function, steps, intrinsics))
        module = llvm.parse_assembly(compiled.inspect_llvm())
    module.get_function(compiled.native_name).name = SYMBOL
    _optimize(module)
    called = called_from(module)
    missing = [
        name for name in called if name.startswith(("numba", "Py")) or not machine_code.is_linkable([name])
    ]
    if missing:
        raise TypeError(f"{function.__qualname__} needs Numba's runtime: {', '.join(missing)}")
    return MachineCode(machine_code.target_machine().emit_object(module), tuple(called))


def called_from(module: Any) -> list[str]:
    """The functions that are called from a module and are not in it; LLVM's own are."""
    declared = [function.name for function in module.functions if function.is_declaration]
    return sorted(name for name in declared if not name.startswith("llvm."))


def _optimize(module: Any) -> None:
    """Optimize where Numba did not, and remove what the kernel does not need: functions that are pasted into
    it already, and Numba's report of exceptions, which none raises.
    """
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != SYMBOL:
            value.linkage = llvm.Linkage.internal
    builder = llvm.create_pass_builder(machine_code.target_machine(), llvm.PipelineTuningOptions())
    if numba.config.OPT != _OPTIMIZED:
        builder.getModulePassManager().run(module, builder)
    passes = llvm.create_new_module_pass_manager()
    passes.add_ipsccp_pass()
    passes.add_simplify_cfg_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)


def _for_numba(value: Any, steps: Steps, intrinsics: Steps) -> Any:
    """What Numba is to see where a kernel names `value`: its own object for a step, else the value itself."""
    if not isinstance(value, FunctionType):
        return value
    if value not in _known:
        if value in intrinsics:
            made = numba.extending.intrinsic(prefer_literal=True)(value)
        else:
            made = _with_known_names(value, steps, intrinsics)
            if value in steps:
                made = numba.njit(**_STEP_FLAGS)(made)
        _known[value] = made
    return _known[value]


def _with_known_names(function: FunctionType, steps: Steps, intrinsics: Steps) -> FunctionType:
    """The same function, with Numba's objects in the place of the steps that it names."""
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        if name in names:
            names[name] = _for_numba(names[name], steps, intrinsics)
    closure = function.__closure__ and tuple(
        CellType(_for_numba(cell.cell_contents, steps, intrinsics)) for cell in function.__closure__
    )
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    made.__qualname__ = function.__qualname__
    return made


def _numba_type(name: str) -> types.Type:
    scalar = getattr(types, name.removesuffix("*"))
    return types.CPointer(scalar) if name.endswith("*") else scalar


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause Python's search for cycles of garbage: it takes a tenth of the time, and finds nearly nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
