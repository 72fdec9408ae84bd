"""One layer of the two streams while it is corrected.

All tokens pass the original weights, which shows what every matrix is given there. Then the quantized stream
is run up to each input, the matrices that have it are corrected (see `targets`), encoded, and put back as a
reader will find them. Experts are given the tokens that the quantized model's router sends them, in both
streams.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.correcting.encoding import (
    Target,
    encode_target,
    target_of,
    tensors_of_layer,
)
from ggplan.correcting.kept import KeptLayers, KeptRows, Scratch
from ggplan.correcting.targets import Correction, correction
from ggplan.errors import ConversionError
from ggplan.forward.matrices import Place
from ggplan.forward.running import (
    Rows,
    TokenRun,
    experts_rows,
    multiplied_rows,
)
from ggplan.forward.structure import LayerInput, Structure, require_known
from ggplan.ggml_types import F32
from ggplan.planning import Plan
from ggplan.quants import dequantize
from ggplan.quants.linear_algebra import Moments, second_moments, times
from ggplan.quants.prepared import LAMBDA
from ggplan.sources.files import shown

F32Array = NDArray[np.float32]
ORIGINAL, QUANTIZED = "original", "quantized"
CHUNK_ROWS = 256
"""Rows of a matrix that one thread corrects at a time."""


@dataclass(frozen=True, slots=True)
class CorrectOptions:
    """How to correct.

    Attributes
    ----------
    threads
        Batches, experts and runs of rows that are worked on at the same time, at most.
    memory
        Bytes that correcting a layer may take, its weights among them, besides one Hessian a thread; None for
        what is usual, or needed (see `needs`).
    lam, method
        As of `ggplan.quants.feedback.encode_with_moments`.
    restart
        Discard unfinished work.
    """

    threads: int
    memory: int | None
    lam: float = LAMBDA
    method: str = "feedback"
    restart: bool = False


class Layer:
    """One layer while it is corrected."""

    def __init__(
        self,
        run: TokenRun,
        plan: Plan,
        layer: int,
        kept: KeptLayers,
        options: CorrectOptions,
        progress: Callable[[int], None],
    ) -> None:
        self.progress, self.lock = progress, threading.Lock()
        self.run, self.plan, self.layer, self.kept, self.options = run, plan, layer, kept, options
        self.original = run.states(kept.states(layer, ORIGINAL))
        self.quantized = run.states(kept.states(layer, QUANTIZED))
        self.structure: Structure = run.structure(layer, self.original)
        self.planned = tensors_of_layer(plan, layer)
        wanted = [n for n, t in self.planned.items() if t.tensor.type != F32]
        require_known(self.structure, wanted, shown(plan.model.path))
        self.blocks = {
            name: np.empty((t.tensor.n_rows, t.type.row_bytes(t.tensor.n_columns)), np.uint8)
            for name, t in self.planned.items()
            if name in self.structure.feeds
        }
        self.left = {
            f"blk.{layer}.{name}": self.structure.without.get(name, "it is not found in transformers' module")
            for name in self.planned
            if name not in self.structure.feeds
        }
        self.parameters = {
            name: parameter.detach().numpy() for name, parameter in run.model.layers[layer].named_parameters()
        }

    def correct(self) -> dict[str, NDArray[np.uint8]]:
        """Correct and encode all matrices, and write the states after the layer."""
        with Scratch(self.kept.folder) as scratch:
            self._pass_original(scratch)
            for level in range(self.structure.n_levels):
                self._correct_level(level, scratch)
        self._put_uncorrected()
        outputs = (output for _, output, _ in self.run.run(self.layer, self.quantized))
        self.run.write(self.kept.states(self.layer + 1, QUANTIZED), outputs)
        return {f"blk.{self.layer}.{name}": blocks for name, blocks in self.blocks.items()}

    def _is_used(self, number: int) -> bool:
        """Whether a matrix with this input is quantized."""
        return any(name in self.planned for name in self.structure.tensors_of(number))

    def _pass_original(self, scratch: Scratch) -> None:
        """All tokens through the original weights: the inputs there, and the states after the layer."""
        inputs = self.structure.inputs

        def outputs() -> Iterator[F32Array]:
            for _, output, rows in self.run.run(
                self.layer, self.original, self.structure, lambda e: e.is_given or not e.n_slices
            ):
                for each in rows:
                    scratch.add(f"{ORIGINAL}-{each.number}", each.values)
                yield output

        self.run.write(self.kept.states(self.layer + 1, ORIGINAL), outputs())
        for number in range(len(inputs)):
            scratch.close(f"{ORIGINAL}-{number}")

    def _correct_level(self, level: int, scratch: Scratch) -> None:
        inputs = self.structure.inputs
        numbers = [k for k, e in enumerate(inputs) if e.level == level and self._is_used(k)]
        if not numbers:
            return
        sources = {source for k in numbers if (source := inputs[k].multiple_of) is not None}
        chosen = {id(inputs[k]) for k in {*numbers, *sources}}
        routes: dict[int, list[NDArray[np.int32]]] = {}
        slices: dict[int, list[NDArray[np.int32]]] = {}
        for _, _, rows in self.run.run(
            self.layer, self.quantized, self.structure, lambda e: id(e) in chosen, to_end=False
        ):
            for each in rows:
                scratch.add(f"{QUANTIZED}-{each.number}", each.values)
                if each.routes is not None:
                    routes.setdefault(each.number, []).append(each.routes)
                if each.slices is not None:
                    slices.setdefault(each.number, []).append(each.slices)
            del each, rows  # their memory is wanted for the next
        for number in {*numbers, *sources}:
            scratch.close(f"{QUANTIZED}-{number}")
        for number, of_batches in routes.items():
            self._run_experts(number, of_batches, scratch)
        for number in numbers:
            if inputs[number].multiple_of is not None:
                self._run_multiples(number, scratch)
        for number in numbers:
            which = inputs[number]
            x = scratch.rows(f"{QUANTIZED}-{number}", which.n_columns)
            f = scratch.rows(f"{ORIGINAL}-{number}", which.n_columns)
            if which.is_given:
                sent = np.concatenate(routes[number])
                tokens = [np.flatnonzero((sent == e).any(axis=1)) for e in range(which.n_slices)]
                self._experts_with_map(number, (x, f), x, tokens)
            elif (source := which.multiple_of) is not None:
                of_all = [scratch.rows(f"{s}-{source}", which.n_columns) for s in (QUANTIZED, ORIGINAL)]
                own = np.concatenate(slices[number])
                tokens = [np.flatnonzero(own == e) for e in range(which.n_slices)]
                self._experts_with_map(number, (of_all[0], of_all[1]), x, tokens)
            elif which.n_slices:
                self._experts_of_their_own(number, x, f, np.concatenate(slices[number]))
            else:
                self._plain(number, x, f)
        still = {e.multiple_of for k, e in enumerate(inputs) if e.level > level and self._is_used(k)}
        for number in {*numbers, *sources}:
            scratch.remove(f"{QUANTIZED}-{number}")
            if number not in still:
                scratch.remove(f"{ORIGINAL}-{number}")

    def _run_experts(self, number: int, routes: Sequence[NDArray[np.int32]], scratch: Scratch) -> None:
        """What the experts' last matrices are given in the original, for the quantized model's routes."""
        inputs = self.structure.inputs
        given = inputs[number]
        states = scratch.rows(f"{ORIGINAL}-{number}", given.n_columns)
        by_start = dict(zip((b.start for b in self.run.batches), routes, strict=True))
        width = self.run.tokens.shape[1]
        for k, own in enumerate(inputs):
            if own.module != given.module or own.is_given:
                continue

            def work(batch: slice, own: LayerInput = own, k: int = k) -> Rows:
                of_batch = states[batch.start * width : batch.stop * width]
                return experts_rows(
                    self.run.model, self.layer, given, of_batch, by_start[batch.start], own, k
                )

            for rows in self.run.each(work):
                scratch.add(f"{ORIGINAL}-{k}", rows.values)
            scratch.close(f"{ORIGINAL}-{k}")

    def _run_multiples(self, number: int, scratch: Scratch) -> None:
        """The same for experts that are given all tokens, each times its chance.

        The quantized stream runs, but these experts multiply the original's states times the same chances.
        """
        inputs = self.structure.inputs
        source = inputs[number].multiple_of
        assert source is not None
        own = [k for k, e in enumerate(inputs) if e.owner == inputs[number].owner and k != number]
        n_columns, width = inputs[number].n_columns, self.run.tokens.shape[1]
        states = scratch.rows(f"{ORIGINAL}-{source}", n_columns)
        calls = self.run.calls_by_batch(self.layer)

        def work(batch: slice) -> list[Rows]:
            of_batch = states[batch.start * width : batch.stop * width]
            return multiplied_rows(
                self.run.model, self.layer, self.structure, (source, number), own,
                (self.quantized[batch], of_batch), calls[batch.start],
            )  # fmt: skip

        for of_batch in self.run.each(work):
            for rows in of_batch:
                scratch.add(f"{ORIGINAL}-{rows.number}", rows.values)
        for k in own:
            scratch.close(f"{ORIGINAL}-{k}")

    def _plain(self, number: int, x: KeptRows, f: KeptRows) -> None:
        """Matrices that every token goes to."""
        threads = self.options.threads
        for columns, names in self._by_columns(number).items():
            found = correction(x.of_columns(columns), f.of_columns(columns), threads)
            jobs = [
                (name, slice_, start, stop)
                for name in names
                for slice_ in range(len(self.structure.places[name]))
                for start, stop in self._runs(name)
            ]
            m = found.as_map(threads, overwrite=True)
            target = self._target(found.moments, names, threads)

            def work(job: tuple[str, int, int, int], m: F32Array = m, target: Target = target) -> None:
                name, slice_, start, stop = job
                wanted = self._moved(self._weights(name, slice_, start, stop), m)
                self._encode(name, slice_, start, wanted, target)

            self._each(work, jobs)

    def _experts_with_map(
        self,
        number: int,
        of_all: tuple[KeptRows, KeptRows],
        x: KeptRows,
        rows: Sequence[NDArray[np.int64]],
    ) -> None:
        """Matrices of experts that share the layer's input: one map of all tokens corrects all of them.

        `of_all` is that input in the quantized and the original stream, `rows` for each expert the rows of
        `x` that it is given.
        """
        threads = self.options.threads
        for columns, names in self._by_columns(number).items():
            own, original, given = (each.of_columns(columns) for each in (*of_all, x))
            found = correction(own, original, threads)
            m = found.as_map(threads, overwrite=True)

            def work(
                expert: int,
                given: KeptRows = given,
                found: Correction = found,
                m: F32Array = m,
                names: Any = names,
            ) -> None:
                if rows[expert].size:
                    moments = Moments(second_moments(given.only(rows[expert])), rows[expert].size)
                else:
                    moments = Moments(found.moments.matrix.copy(), found.moments.tokens)
                target = self._target(moments, names)
                del moments
                for name in names:
                    for start, stop in self._runs(name):
                        wanted = self._moved(self._weights(name, expert, start, stop), m)
                        self._encode(name, expert, start, wanted, target)

            self._each(work, range(self.structure.inputs[number].n_slices))

    def _experts_of_their_own(self, number: int, x: KeptRows, f: KeptRows, slices: NDArray[np.int32]) -> None:
        """Matrices of experts that each have an input of their own.

        Where the original's is not known for the same tokens, the targets stay the original weights.
        """
        for columns, names in self._by_columns(number).items():
            if len(f) != len(x):
                why = "what the original gives it is not known for the tokens that it gets here"
                self.left |= {f"blk.{self.layer}.{name}": why for name in names}

            def work(expert: int, columns: Any = columns, names: Any = names) -> None:
                rows = np.flatnonzero(slices == expert)
                wanted = {
                    name: self._weights(name, expert, 0, self.planned[name].tensor.shape[-2])
                    for name in names
                }
                moments = None
                if rows.size:
                    own = x.of_columns(columns).only(rows)
                    original = f.of_columns(columns).only(rows) if len(f) == len(x) else own
                    found = correction(own, original)
                    wanted = {name: found.target(weights) for name, weights in wanted.items()}
                    moments = found.moments
                    del found
                target = self._target(moments, names)
                for name in names:
                    self._encode(name, expert, 0, wanted[name], target)

            self._each(work, range(self.structure.inputs[number].n_slices))

    def _runs(self, name: str) -> list[tuple[int, int]]:
        """The rows of a slice of a matrix that are worked on at a time."""
        n_rows = self.planned[name].tensor.shape[-2]
        return [(start, min(start + CHUNK_ROWS, n_rows)) for start in range(0, n_rows, CHUNK_ROWS)]

    def _moved(self, weights: F32Array, m: F32Array) -> F32Array:
        """W + W M."""
        wanted = times(weights, m)
        wanted += weights
        return wanted

    def _target(self, moments: Moments | None, names: Sequence[str], threads: int = 1) -> Target:
        """What tensors with one input are encoded for."""
        lam, method = self.options.lam, self.options.method
        types = [self.planned[name].type for name in names]
        return target_of(moments, types, lam=lam, method=method, threads=threads)

    def _by_columns(self, number: int) -> dict[tuple[int, ...] | None, list[str]]:
        """The quantized tensors of an input, by the columns of it that they have."""
        found: dict[tuple[int, ...] | None, list[str]] = {}
        for name in self.structure.tensors_of(number):
            if name in self.planned:
                columns = self.structure.feeds[name].columns
                found.setdefault(None if columns is None else tuple(columns.tolist()), []).append(name)
        return found

    def _weights(self, name: str, slice_: int, start: int, stop: int) -> F32Array:
        tensor = self.planned[name].tensor
        assert tensor.rows is not None
        first = slice_ * tensor.shape[-2]
        weights = np.ascontiguousarray(tensor.rows.read_float32(first + start, first + stop))
        if not np.isfinite(weights).all():
            raise ConversionError(
                f"{shown(tensor.name)} has weights that are not finite", hint="leave --correct out"
            )
        return weights

    def _encode(self, name: str, slice_: int, start: int, wanted: F32Array, target: Target) -> None:
        """Encode rows of a matrix, keep the blocks, and put what a reader finds into the module."""
        planned = self.planned[name]
        out = encode_target(self.plan, planned, slice_, wanted, target)
        n_rows = planned.tensor.shape[-2]
        first = slice_ * n_rows + start
        self.blocks[name][first : first + len(out)] = out
        with self.lock:
            self.progress(out.size)
        self._put(self.structure.places[name][slice_], start, dequantize(out, planned.type))

    def _put(self, places: Sequence[Place], start: int, weights: F32Array) -> None:
        """Put rows from `start` on of a matrix of the GGUF into the module."""
        for place in places:
            chosen = (place.gguf_rows >= start) & (place.gguf_rows < start + len(weights))
            if not chosen.any():
                continue
            values = weights[place.gguf_rows[chosen] - start]
            matrix = self.parameters[place.parameter]
            matrix = matrix[place.slice] if matrix.ndim == 3 else matrix
            if place.transposed:
                matrix[np.ix_(place.columns, place.rows[chosen])] = values.T
            else:
                matrix[np.ix_(place.rows[chosen], place.columns)] = values

    def _put_uncorrected(self) -> None:
        """Tensors whose inputs are none here: encoded by the plan's imatrix, where it has them."""
        for name, planned in self.planned.items():
            if name in self.structure.feeds:
                continue
            for slice_, places in enumerate(self.structure.places.get(name, ())):
                for start, stop in self._runs(name):
                    weights = self._weights(name, slice_, start, stop)
                    out = encode_target(self.plan, planned, slice_, weights, Target())
                    self._put(places, start, dequantize(out, planned.type))

    def _each(self, work: Callable[[Any], None], jobs: Sequence[Any]) -> None:
        with ThreadPoolExecutor(self.options.threads) as pool:
            futures = [pool.submit(work, job) for job in jobs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
