"""Kernels: functions that are compiled to machine code when they are first called, and kept on disk.

`kernel`
    What Python calls: takes arrays and numbers, gives nothing back, runs without the GIL.
`inline`
    A step of kernels: LLVM pastes it into its caller, so it costs no call. For Python it stays a function.

Three steps lead to machine code, and each is left out where its result is at hand. Numba translates a kernel
to LLVM's language, which takes up to two seconds, and a third of one to import it (`compiling`); ggplan comes
with translations for most processors (`translations`). LLVM makes machine code of one in some tenths of a
second, and llvmlite loads that, kept on disk, in milliseconds (`machine_code`). Calls go straight to it.

A kernel is compiled once for all callers. Arrays are passed by their address, so it makes no difference
whether they may be written to; whole numbers and truth values arrive as int64, `np.float32` as such. Only
arrays of another type or another number of dimensions make another machine code. They must be C-contiguous.

`intrinsic` and `deferred` are for steps that are written as LLVM instructions (`vector`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from ggplan.quants import machine_code

Function = TypeVar("Function", bound=Callable[..., Any])

ArgumentType = tuple[Any, ...]
"""A NumPy type's name and the array's dimensions, 0 for a number; or a tuple's class and what is in it."""

_NUMBERS = {"int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double}
_RETURNED, _RETURNED_NONE = 0, -2  # Numba's status codes

_steps: list[Callable[..., Any]] = []
_intrinsics: list[Callable[..., Any]] = []


def kernel(function: Function) -> Function:
    """Compile `function` on its first call, or load what an earlier process compiled."""
    return cast(Function, functools.update_wrapper(Kernel(function), function))


def inline(function: Function) -> Function:
    """Let kernels call `function`, compiled as a part of them."""
    _steps.append(function)
    return function


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels call the step that `function(typing_context, *argument_types)` returns as LLVM code.

    It returns Numba's signature and generator; the types of constant integers are given to it as literals.
    """
    _intrinsics.append(function)
    return function


def deferred(name: str) -> Any:
    """A module that is imported when one of its attributes is first asked for."""
    return _Deferred(name)


class _Deferred:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


def take_steps() -> tuple[list[Callable[..., Any]], list[Callable[..., Any]]]:
    """The inline steps and the intrinsics declared since this was last called."""
    taken = _steps[:], _intrinsics[:]
    del _steps[: len(taken[0])], _intrinsics[: len(taken[1])]
    return taken


class Kernel:
    """A function and its machine code."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._lock = threading.Lock()
        self._entries: dict[tuple[ArgumentType, ...], Callable[..., int]] = {}

    @property
    def signatures(self) -> list[tuple[ArgumentType, ...]]:
        """The types of arguments that it was called with."""
        return list(self._entries)

    def __call__(self, *arguments: Any) -> None:
        """Run it."""
        types = tuple([_type_of(argument) for argument in arguments])
        entry = self._entries.get(types)
        if entry is None:
            entry = self._prepare(types)
        flat: list[Any] = []
        for argument in arguments:
            _flatten(argument, flat)
        result, exception = ctypes.c_void_p(), ctypes.c_void_p()
        status = entry(ctypes.byref(result), ctypes.byref(exception), *flat)
        if status not in (_RETURNED, _RETURNED_NONE):
            raise RuntimeError(f"{self.function.__qualname__} failed with status {status}")

    def _prepare(self, types: tuple[ArgumentType, ...]) -> Callable[..., int]:
        with self._lock:
            if types not in self._entries:
                place = machine_code.place_of(self.function, types)
                code = machine_code.read(place)
                if code is None:
                    code = machine_code.assemble(translation_of(self.function, types))
                    machine_code.keep(code, place)
                self._entries[types] = _prototype(types)(machine_code.load(code))
            return self._entries[types]


def translation_of(function: Callable[..., Any], types: tuple[ArgumentType, ...]) -> str:
    """A kernel in LLVM's language: the shipped translation or, where none fits, Numba's."""
    from ggplan.quants import translations

    shipped = translations.shipped(function, types)
    if shipped is not None:
        return shipped
    from ggplan.quants import compiling

    return compiling.translate(function, types)


def _type_of(argument: Any) -> ArgumentType:
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:
            raise TypeError("kernels take contiguous arrays")
        return _name_of(argument.dtype), argument.ndim
    if isinstance(argument, tuple):
        return (type(argument), *map(_type_of, argument))
    if isinstance(argument, int | np.integer | np.bool_):
        return "int64", 0
    return ("float32" if isinstance(argument, np.float32) else "float64"), 0


@functools.cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """NumPy's name of a type, which it puts together anew each time it is asked."""
    return dtype.name


def _flatten(argument: Any, flat: list[Any]) -> None:
    """Append what Numba's calling convention makes of an argument."""
    if isinstance(argument, np.ndarray):
        # Owner, parent, number of items, bytes of each, address, shape, strides.
        address = argument.__array_interface__["data"][0]
        flat += [None, None, argument.size, argument.itemsize, address, *argument.shape, *argument.strides]
    elif isinstance(argument, tuple):
        for item in argument:
            _flatten(item, flat)
    else:
        flat.append(int(argument) if _type_of(argument)[0] == "int64" else float(argument))


def _prototype(types: tuple[ArgumentType, ...]) -> Callable[[int], Callable[..., int]]:
    """The C function that Numba makes: status(result *, exception **, arguments ...)."""
    pointers = [ctypes.c_void_p, ctypes.c_void_p]
    return ctypes.CFUNCTYPE(ctypes.c_int32, *pointers, *[c for type_ in types for c in _c_types(type_)])


def _c_types(argument: ArgumentType) -> list[Any]:
    if isinstance(argument[0], type):
        return [c for item in argument[1:] for c in _c_types(item)]
    name, dimensions = argument
    if not dimensions:
        return [_NUMBERS[name]]
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    return [pointer, pointer, size, size, pointer, *[size] * (2 * dimensions)]
