"""Kernels: functions that are compiled to machine code when they are first called, and kept on disk.

`kernel`
    What Python calls. Its annotations are its signature: they say what is float32 and what is int32. They are
    read as text, so its module imports `annotations` from `__future__`.
`inline`
    A step of kernels: LLVM pastes it into its caller, so it costs no call. For Python it stays a function.
`intrinsic`
    A step that is written as LLVM instructions (`vector`, `memory`).

A parameter of a kernel is a number or memory:

    I64, F32                            an integer, a float32
    F32s, I32s, U8s, U16s, U64s, I64s   memory with numbers of this type
    Weights                             memory with float32, or with the bits of bfloat16 in uint16; these are
                                        widened where they are loaded (`memory.load_weights`)

Memory is a pointer: an index is not checked, and a kernel does not know where memory ends, so sizes are
parameters of their own. Python gives C-contiguous NumPy arrays of that type, or None, which kernels are
written never to read. All memory that a kernel works on is given to it, so what may fail for lack of memory
is NumPy's allocation, with a MemoryError. A kernel gives nothing back and runs without the GIL.

Two steps lead to machine code, and both are left out where its result is at hand. Numba compiles a kernel,
which takes seconds and is done once for each processor and version (`compiling`). LLVM's object file is
kept on disk and loaded in milliseconds, without Numba (`machine_code`). A kernel that takes weights is
compiled for float32 and for bfloat16 separately.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import machine_code

Function = TypeVar("Function", bound=Callable[..., Any])

# The types of a kernel's parameters. A type checker sees no more of them than of the steps that take them.
I64: TypeAlias = Any
F32: TypeAlias = Any
F32s: TypeAlias = Any
I32s: TypeAlias = Any
U8s: TypeAlias = Any
U16s: TypeAlias = Any
U64s: TypeAlias = Any
I64s: TypeAlias = Any
Weights: TypeAlias = Any

_FLOAT32, _BF16_BITS = np.dtype(np.float32), np.dtype(np.uint16)
_NUMBERS: dict[str, tuple[str, Any]] = {"I64": ("int64", ctypes.c_int64), "F32": ("float32", ctypes.c_float)}
_MEMORY = {
    f"{kind[0].upper()}{8 * np.dtype(kind).itemsize}s": np.dtype(kind)
    for kind in ("f4", "i4", "i8", "u1", "u2", "u8")
}
_WEIGHTS = "float32 or the bits of bfloat16"
_EXPECTED = {**dict.fromkeys(_NUMBERS), **_MEMORY, "Weights": _WEIGHTS}
_ANY = ctypes.c_char

_steps: set[Callable[..., Any]] = set()
_intrinsics: set[Callable[..., Any]] = set()
_compiling: list[str] = []  # the names of kernels


def kernel(function: Callable[..., None]) -> Kernel:
    """Compile `function` on its first call, or load what an earlier process compiled."""
    return Kernel(function)


def inline(function: Function) -> Function:
    """Let kernels call `function`, compiled as a part of them."""
    _steps.add(function)
    return function


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels call the step that `function(typing_context, *argument_types)` returns as LLVM code.

    It returns Numba's signature and generator; the types of constant integers are given to it as literals.
    """
    _intrinsics.add(function)
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


def is_compiling() -> bool:
    """Whether a kernel is being compiled just now, for progress lines."""
    return bool(_compiling)


def scratch(n_numbers: int) -> NDArray[np.float32]:
    """Memory for so many numbers of four bytes, from the beginning of a cache line on.

    Lanes that straddle two cache lines cost more. What is in it is arbitrary.
    """
    room = np.empty(n_numbers + 16, np.float32)
    skipped = -_address(room) // 4 % 16
    return room[skipped : skipped + n_numbers]


class Kernel:
    """A function and its machine code."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.parameters = tuple(
            annotation for name, annotation in function.__annotations__.items() if name != "return"
        )
        unknown = set(self.parameters) - set(_EXPECTED)
        if (
            unknown
            or self.parameters.count("Weights") > 1
            or len(self.parameters) != function.__code__.co_argcount
        ):
            raise TypeError(f"{function.__qualname__}: its annotations are no signature of a kernel")
        self._expected = tuple(_EXPECTED[kind] for kind in self.parameters)
        self._lock = threading.Lock()
        self._entries: dict[np.dtype[Any], Callable[..., None]] = {}

    @property
    def variants(self) -> list[np.dtype[Any]]:
        """The types of weights that it was called with; float32 where it takes none."""
        return list(self._entries)

    def __call__(self, *arguments: Any) -> None:
        """Run it."""
        weights = _FLOAT32
        values: list[Any] = []
        for expected, argument in zip(self._expected, arguments, strict=True):
            if expected is None or argument is None:
                values.append(argument.item() if isinstance(argument, np.generic) else argument)
                continue
            dtype = argument.dtype
            if dtype is not expected:
                if expected is not _WEIGHTS or dtype not in (_FLOAT32, _BF16_BITS):
                    raise TypeError(f"{self.function.__qualname__}: an array of {dtype} for {expected}")
                weights = dtype
            values.append(_address(argument))
        entry = self._entries.get(weights) or self._prepare(weights)
        entry(*values)

    def _prepare(self, weights: np.dtype[Any]) -> Callable[..., None]:
        with self._lock:
            if weights not in self._entries:
                types = [
                    _NUMBERS[kind][0] if kind in _NUMBERS else f"{_MEMORY.get(kind, weights)}*"
                    for kind in self.parameters
                ]
                place = machine_code.place_of(self.function, types)
                code = machine_code.read(place) or self._compiled(types, place)
                numbers = {kind: c_type for kind, (_, c_type) in _NUMBERS.items()}
                c_types = [numbers.get(kind, ctypes.c_void_p) for kind in self.parameters]
                self._entries[weights] = ctypes.CFUNCTYPE(None, *c_types)(machine_code.load(code))
            return self._entries[weights]

    def _compiled(self, types: list[str], place: Path) -> machine_code.MachineCode:
        """Compile it and keep it, unless another process did so while this one waited for it."""
        with _announced(self.function.__qualname__), machine_code.compiling_alone(place):
            code = machine_code.read(place)
            if code is None:
                from ggplan.quants.compiling import compile_kernel

                code = compile_kernel(self.function, types, _steps, _intrinsics)
                machine_code.keep(code, place)
            return code


def _address(array: Any) -> int:
    """Where the numbers of a C-contiguous array are. NumPy's own ways to tell take three times as long."""
    if array.flags.writeable and array.size:
        return ctypes.addressof(_ANY.from_buffer(array))
    if not array.flags.c_contiguous:
        raise TypeError("kernels take contiguous arrays")
    address: int = array.__array_interface__["data"][0]
    return address


@contextmanager
def _announced(kernel_name: str) -> Iterator[None]:
    _compiling.append(kernel_name)
    try:
        yield
    finally:
        _compiling.remove(kernel_name)
