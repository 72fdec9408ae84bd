"""Run a model layer by layer: the hidden states of all tokens lie on the disk between two layers.

The tokens are parted into batches of the same number of windows, whatever the number of threads, and torch
works with one thread in each batch, so that every number is the same with any number of threads. What the
batches give is handed on in their order.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import CheckpointError
from ggplan.forward.checkpoint_model import OTHER_ENGINE, Call, CheckpointModel, same_call
from ggplan.forward.matrices import layer_places, place_key
from ggplan.forward.products import Product, watched
from ggplan.forward.structure import Given, LayerInput, Structure, find_structure, multiples
from ggplan.sources.files import shown

if TYPE_CHECKING:
    from torch import Tensor

F32Array = NDArray[np.float32]
BATCH_TOKENS = 2048
"""Tokens that are run at a time, at least one window."""
_M_MMAP_THRESHOLD, _LARGE = -3, 1 << 20  # of malloc.h; bytes
_SAMPLE = 32  # tokens that show the structure of a layer
_Made = TypeVar("_Made")


def batch_windows(n_tokens: int) -> int:
    """The windows of so many tokens that are run at a time."""
    return max(1, BATCH_TOKENS // n_tokens)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one input of a layer for one batch.

    Attributes
    ----------
    number
        Of the input in the layer's structure.
    values
        (rows, n_columns) float32.
    slices
        For each row its expert, where rows belong to experts and are in no order of tokens; else None.
    routes
        (rows, k): the experts that each row goes to, of an experts' module; else None.
    """

    number: int
    values: F32Array
    slices: NDArray[np.int32] | None = None
    routes: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class States:
    """The hidden states of all windows in a file, read when they are asked for.

    Attributes
    ----------
    path
        The file: float32 (windows, T, width).
    n_tokens, width
        T, and the length of a state.
    """

    path: Path
    n_tokens: int
    width: int

    def __getitem__(self, windows: slice) -> F32Array:
        """The states of windows that follow one another, (windows, T, width)."""
        each = self.n_tokens * self.width
        first, stop = windows.start or 0, windows.stop
        found = np.fromfile(self.path, np.float32, (stop - first) * each, offset=4 * first * each)
        return found.reshape(-1, self.n_tokens, self.width)


def return_freed_memory() -> None:
    """Make the C library give large arrays back to the system as soon as they are freed.

    Otherwise glibc keeps most of what torch's products have freed, and takes more for what does not fit into
    the gaps: three times what is used in a layer of 1024 columns (mallopt(3), M_MMAP_THRESHOLD). With other C
    libraries this has no effect.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch with one thread, so that its sums have one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(slots=True)
class TokenRun:
    """Tokens that are run through a model.

    Attributes
    ----------
    model
        The model; its parts outside of the layers are filled.
    tokens
        (windows, T) int64.
    n_threads
        Batches that are run at the same time.
    is_fixed
        Whether a GGUF tensor of a layer (without `blk.N.`) is never quantized.
    width
        The length of a hidden state; 0 until it is known.
    """

    model: CheckpointModel
    tokens: NDArray[np.int64]
    n_threads: int
    is_fixed: Callable[[str], bool]
    width: int = 0
    _calls: dict[int, list[Call]] = field(default_factory=dict)
    _of_tokens: set[int] = field(default_factory=set)
    _structures: dict[object, Structure] = field(default_factory=dict)

    @property
    def batches(self) -> list[slice]:
        """The windows of each batch."""
        each = batch_windows(self.tokens.shape[1])
        return [slice(k, min(k + each, len(self.tokens))) for k in range(0, len(self.tokens), each)]

    def start(self, path: Path) -> None:
        """Write what the first layer gets.

        Raises
        ------
        CheckpointError
            If the layers cannot be run one by one.
        OSError
            If the file cannot be written.
        """
        import torch

        with _new_file(path) as out:
            for batch in self.batches:
                states, calls = self.model.start(torch.from_numpy(self.tokens[batch]))
                out.write(states.float().contiguous().numpy().data)
                self.width = states.shape[-1]
                known = self._calls.setdefault(batch.stop - batch.start, calls)
                self._of_tokens |= {
                    k for k, (a, b) in enumerate(zip(known, calls, strict=True)) if same_call(a, b)
                }

    def calls(self, layer: int) -> list[Call]:
        """How a layer is called for each batch."""
        import torch

        found = []
        for batch in self.batches:
            call = self._calls.get(batch.stop - batch.start)
            if call is None or layer in self._of_tokens:
                _, call = self.model.start(torch.from_numpy(self.tokens[batch]))
                self._calls.setdefault(batch.stop - batch.start, call)
            found.append(call[layer])
        return found

    def calls_by_batch(self, layer: int) -> dict[int, Call]:
        """The same by the number of the batch's first window."""
        return dict(zip((batch.start for batch in self.batches), self.calls(layer), strict=True))

    def states(self, path: Path) -> States:
        """The hidden states in a file."""
        self.width = self.width or path.stat().st_size // (4 * self.tokens.size)
        return States(path, self.tokens.shape[1], self.width)

    def structure(self, layer: int, states: States) -> Structure:
        """The inputs of a layer's matrices, found once for all layers of a kind; it fills the layer."""
        import torch

        key = place_key(self.model, layer)
        if (known := self._structures.get(key)) is not None:
            self.model.fill(layer)
            return known
        tokens = torch.from_numpy(self.tokens[:1, :_SAMPLE])
        _, calls = self.model.start(tokens)  # which may empty a layer
        places = layer_places(self.model, layer)
        self.model.fill(layer)
        sample = torch.from_numpy(states[:1][:, : tokens.shape[1]].copy())
        fixed = [name for name in places if self.is_fixed(name)]
        found = find_structure(self.model, layer, sample, calls[layer], places, fixed)
        self._structures[key] = found
        return found

    def each(self, work: Callable[[slice], _Made]) -> Iterator[_Made]:
        """What `work` gives for each batch, in order; some batches at the same time."""
        import torch

        waiting: deque[Future[_Made]] = deque()
        with ThreadPoolExecutor(self.n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for batch in self.batches:
                    waiting.append(pool.submit(work, batch))
                    if len(waiting) > self.n_threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def run(
        self,
        layer: int,
        states: States,
        structure: Structure | None = None,
        wanted: Callable[[LayerInput], bool] = lambda each: True,
        *,
        to_end: bool = True,
    ) -> Iterator[tuple[slice, F32Array, list[Rows]]]:
        """Run a filled layer: for each batch its windows, the output and the rows of the wanted inputs.

        Without `to_end` each batch may stop as soon as these are known; then the output is empty.
        """
        import torch

        inputs = structure.inputs if structure is not None else ()
        numbers = [k for k, each in enumerate(inputs) if wanted(each)]
        calls = self.calls_by_batch(layer)
        modules = {inputs[k].module for k in numbers if inputs[k].is_given}

        with Given(self.model, layer, modules) as given:

            def work(batch: slice) -> tuple[slice, F32Array, list[Rows]]:
                hidden = torch.from_numpy(states[batch])
                call = calls[batch.start]
                output, rows = observe(self.model, layer, hidden, call, inputs, numbers, given, to_end)
                if not torch.isfinite(output).all():
                    raise CheckpointError(
                        f"{shown(self.model.checkpoint.path)}: layer {layer} gives what is not finite"
                    )
                return batch, output.numpy(), rows

            yield from self.each(work)

    def end(self, states: States) -> Iterator[F32Array]:
        """What the output matrix is given for the last layer's states, batch by batch: (tokens, width)."""
        import torch

        for batch in self.batches:
            hidden = torch.from_numpy(states[batch])
            yield self.model.output_input(torch.from_numpy(self.tokens[batch]), hidden).numpy()

    def write(self, path: Path, outputs: Iterator[F32Array]) -> None:
        """Write a layer's outputs, whole under another name and then renamed."""
        with _new_file(path) as out:
            for output in outputs:
                out.write(np.ascontiguousarray(output, np.float32).data)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, whole under another name and then renamed; of what fails nothing is left.

    Raises
    ------
    OSError
        If it cannot be written; it has the file's name, which a failed write alone has not.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


class _Enough(Exception):  # noqa: N818 - no error
    """Ends a run of which no more is needed."""


def observe(
    model: CheckpointModel,
    layer: int,
    hidden: Tensor,
    call: Call,
    inputs: tuple[LayerInput, ...],
    numbers: list[int],
    given: Given,
    to_end: bool,
) -> tuple[Tensor, list[Rows]]:
    """The output of a layer and the rows of the numbered inputs."""
    import torch

    given.of_thread().clear()
    is_stoppable = not to_end and all(inputs[k].is_given or not inputs[k].n_slices for k in numbers)
    by_parameter = {name: k for k in numbers for name in inputs[k].parameters if not inputs[k].is_given}
    plain: dict[int, Tensor] = {}
    own: dict[int, dict[int, Tensor]] = {}

    def seen(product: Product, x: Tensor) -> None:
        number = by_parameter.get(product.parameter)
        if number is not None and inputs[number].n_slices:
            own.setdefault(number, {})[product.slice] = x
        elif number is not None:
            plain[number] = x
        if is_stoppable and all(
            inputs[k].module in given.of_thread() if inputs[k].is_given else k in plain for k in numbers
        ):
            raise _Enough

    output = torch.empty(0)
    with contextlib.suppress(_Enough), watched(model.layers[layer], seen):
        output = model.run_layer(layer, hidden, call)
    rows = []
    for number in numbers:
        each = inputs[number]
        if each.is_given:
            states, routes = given.of_thread()[each.module][:2]
            values = states.reshape(-1, states.shape[-1]).float().numpy()
            rows.append(Rows(number, values, routes=routes.numpy().astype(np.int32)))
        elif each.n_slices:
            rows.append(own_rows(number, own.get(number, {}), each))
        elif number in plain:
            rows.append(Rows(number, plain[number].float().contiguous().numpy()))
        else:
            raise CheckpointError(
                f"layer {layer}: the inputs of {each.parameters[0]} are not seen for all tokens",
                hint=OTHER_ENGINE,
            )
    return output, rows


def own_rows(number: int, by_slice: Mapping[int, Tensor], each: LayerInput) -> Rows:
    """The rows of experts, one expert after the other.

    Experts without routes are given all tokens, those of others as zeros, which are left out.
    """
    values, slices = [np.empty((0, each.n_columns), np.float32)], [np.empty(0, np.int32)]
    for slice_ in sorted(by_slice):
        x = by_slice[slice_].float().contiguous().numpy()
        x = x if each.module else x[x.any(axis=1)]
        values.append(x)
        slices.append(np.full(len(x), slice_, np.int32))
    return Rows(number, np.concatenate(values), slices=np.concatenate(slices))


def experts_rows(
    model: CheckpointModel,
    layer: int,
    each: LayerInput,
    states: F32Array,
    routes: NDArray[np.int32],
    own: LayerInput,
    number: int,
) -> Rows:
    """What the inputs of the experts' last matrices are for given states and routes.

    Parameters
    ----------
    each
        The input of the experts' module.
    own, number
        The input of its last matrices, and its number.
    """
    import torch

    found: dict[int, Tensor] = {}

    def seen(product: Product, x: Tensor) -> None:
        if product.parameter in own.parameters:
            found[product.slice] = x

    module = model.layers[layer].get_submodule(each.module)
    given = torch.from_numpy(routes.astype(np.int64))
    weights = torch.full(given.shape, 1.0 / given.shape[1])
    with watched(model.layers[layer], seen), torch.inference_mode():
        module(torch.from_numpy(states), given, weights)
    return own_rows(number, found, own)


def multiplied_rows(
    model: CheckpointModel,
    layer: int,
    structure: Structure,
    numbers: tuple[int, int],
    own: Sequence[int],
    states: tuple[F32Array, F32Array],
    call: Call,
) -> list[Rows]:
    """What the inputs of experts' last matrices are, if the first ones are given other states.

    Parameters
    ----------
    numbers
        An input of all tokens, and that of the experts, whose rows are multiples of the first's.
    own
        The numbers of the other inputs of these experts: what is given back.
    states
        What the layer is given for one batch; and what is to stand in place of the first input, (tokens, n).
    """
    import torch

    source, number = (structure.inputs[k].parameters for k in numbers)
    by_parameter = {name: k for k in own for name in structure.inputs[k].parameters}
    others = torch.from_numpy(states[1])
    plain: list[Tensor] = []
    found: dict[int, dict[int, Tensor]] = {k: {} for k in own}

    def seen(product: Product, x: Tensor) -> Tensor | None:
        if product.parameter in source and not plain:
            plain.append(x)
        elif product.parameter in number:
            return multiples(x, plain[0]) * others
        elif (k := by_parameter.get(product.parameter)) is not None:
            found[k][product.slice] = x
        return None

    with watched(model.layers[layer], seen):
        model.run_layer(layer, torch.from_numpy(states[0]), call)
    return [own_rows(k, found[k], structure.inputs[k]) for k in own]
