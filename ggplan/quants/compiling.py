"""Translate kernels to LLVM's language with Numba. Imported only where no translation of one is at hand.

Bytes are a contract, hence no fast-math flag, ever: LLVM may neither reorder sums nor fuse a multiplication
and an addition, and each IEEE operation rounds once, in the order in which it is written.
`error_model="numpy"` makes x/0 an inf or a nan, as in C, instead of an exception.

Numba translates a kernel and its steps and optimizes them; its wrappers for Python are left out. Of its
runtime a kernel needs what gives it memory: two functions, which are added here in a few lines of LLVM. So
the machine code calls nothing but C's library, and runs where Numba was never imported.
"""

from __future__ import annotations

import contextlib
import gc
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llvmlite.binding as llvm
import numba
import numba.extending
from numba import types
from numba.core import registry
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.core.typed_passes import NopythonRewrites
from numba.core.typing import templates
from numba.core.untyped_passes import InlineClosureLikes

from ggplan.quants import machine_code
from ggplan.quants.accelerate import ArgumentType, take_steps
from ggplan.quants.machine_code import SYMBOL


class _Pipeline(CompilerBase):  # type: ignore[misc]
    """Numba's pipeline without the passes that kernels have no use for: they hold no closures."""

    def define_pipelines(self) -> list[Any]:
        """The one way to compile a kernel."""
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        unused = (InlineClosureLikes, NopythonRewrites)
        pipeline.passes = [entry for entry in pipeline.passes if entry[0] not in unused]
        pipeline.finalize()
        return [pipeline]


_FLAGS: dict[str, Any] = {
    "pipeline_class": _Pipeline,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": False,
    "boundscheck": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

# An array's owner, as Numba's code has it: reference count, destructor and its data, address, size. Numba's
# code counts, and calls for the destructor when it comes to zero.
_RUNTIME = """
declare i32 @posix_memalign(i8**, i64, i64)
declare void @free(i8*)

define linkonce_odr i8* @NRT_MemInfo_alloc_aligned(i64 %size, i32 %alignment) {
  %room = alloca i8*
  %all = add i64 %size, 64
  %status = call i32 @posix_memalign(i8** %room, i64 64, i64 %all)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %none, label %some
none:
  ret i8* null
some:
  %owner = load i8*, i8** %room
  %fields = bitcast i8* %owner to { i64, i8*, i8*, i8*, i64 }*
  %data = getelementptr i8, i8* %owner, i64 64
  %fresh = insertvalue { i64, i8*, i8*, i8*, i64 } zeroinitializer, i64 1, 0
  %first = insertvalue { i64, i8*, i8*, i8*, i64 } %fresh, i8* %data, 3
  %value = insertvalue { i64, i8*, i8*, i8*, i64 } %first, i64 %size, 4
  store { i64, i8*, i8*, i8*, i64 } %value, { i64, i8*, i8*, i8*, i64 }* %fields
  ret i8* %owner
}

define linkonce_odr void @NRT_MemInfo_call_dtor(i8* %owner) {
  call void @free(i8* %owner)
  ret void
}
"""

_SCOPE_NAME = re.compile(r', !"_ZN[^"]*"')  # of an alias scope: it may have one

_lock = threading.Lock()


def translate(function: Callable[..., Any], argument_types: Sequence[ArgumentType]) -> str:
    """What a kernel is in LLVM's language, for arguments of these types: one function, named `SYMBOL`.

    Raises
    ------
    TypeError
        If it calls what only Numba's runtime has: an exception with arguments, or `np.empty`.
    """
    with _lock:
        steps, intrinsics = take_steps()
        for step in intrinsics:
            _register_intrinsic(step)
        for step in steps:
            _register(step)
        signature = types.void(*[_numba_type(argument) for argument in argument_types])
        dispatcher = numba.njit(**_FLAGS)(function)
        with _no_garbage_collection(), _only_translating(function.__qualname__):
            _with_room(lambda: dispatcher.compile(signature))
        result = dispatcher.overloads[signature.args]
        module = llvm.parse_assembly(result.library.get_llvm_str())
    module.link_in(llvm.parse_assembly(_RUNTIME))
    module.get_function(result.fndesc.llvm_func_name).name = SYMBOL
    _strip(module)
    missing = [name for name in machine_code.called_from(module) if name.startswith(("NRT_", "numba_", "Py"))]
    if missing:
        raise TypeError(f"{function.__qualname__} needs Numba's runtime: {', '.join(missing)}")
    return _SCOPE_NAME.sub("", str(module))


def _strip(module: Any) -> None:
    """Remove what the kernel does not need, and names: those that Numba gives count what it did before."""
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != SYMBOL:
            value.linkage = llvm.Linkage.internal
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_symbols_pass()
    passes.run(module, llvm.create_pass_builder(machine_code.target_machine(), llvm.PipelineTuningOptions()))


def _with_room(work: Callable[[], Any]) -> None:
    """Call `work` with a deep stack of Python's at hand.

    CPython keeps frames in chunks of 16 KiB, and gives a chunk back when its first frame returns. Where a
    loop happens to call across the end of one, each call maps memory and unmaps it: up to a third of the time
    that a kernel takes. A frame that claims half a MiB gets a chunk of one, with room for all that follow.
    """
    work()


_with_room.__code__ = _with_room.__code__.replace(co_stacksize=1 << 16)


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


@contextlib.contextmanager
def _only_translating(kernel: str) -> Iterator[None]:
    """Keep Numba from optimizing each step by itself, and from making machine code of each.

    LLVM's work is half of the time otherwise, and all that counts is what comes of the kernel as a whole.
    """
    codegen = registry.cpu_target.target_context.codegen()
    with global_compiler_lock:
        _Translation.kernel = kernel
        codegen._library_class, codegen.set_env = _Translation, lambda name, environment: None
        try:
            yield
        finally:
            del codegen._library_class, codegen.set_env


class _Translation(JITCodeLibrary):  # type: ignore[misc]
    """LLVM code of which no machine code is made, and which is optimized only if it is a kernel."""

    kernel = ""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        if self.name == self.kernel:
            super()._optimize_final_module()

    def _get_module_for_linking(self) -> Any:
        """Numba copies the module, to have the original's functions called from outside. No one does that."""
        self._ensure_finalized()
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.external:
                function.linkage = "linkonce_odr"
        return self._final_module

    def _finalize_final_module(self) -> None:
        self._finalized = True


def _register(step: Callable[..., Any]) -> None:
    options = {"forceinline": True, **_FLAGS}
    register = numba.extending.overload(step, jit_options=options, strict=False, prefer_literal=True)
    register(lambda *arguments, **named: step)


def _register_intrinsic(step: Callable[..., Any]) -> None:
    """As `numba.extending.intrinsic` does, but for a function that kernels know already."""
    template = templates.make_intrinsic_template(step, step, step.__name__, prefer_literal=True)
    templates.infer(template)
    templates.infer_global(step, types.Function(template))


def _numba_type(argument: ArgumentType) -> types.Type:
    if isinstance(argument[0], type):
        items = [_numba_type(item) for item in argument[1:]]
        return types.NamedTuple(items, argument[0]) if hasattr(argument[0], "_fields") else types.Tuple(items)
    name, dimensions = argument
    scalar = getattr(types, name)
    return types.Array(scalar, dimensions, "C") if dimensions else scalar
