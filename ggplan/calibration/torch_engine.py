"""The engine torch: a checkpoint run by transformers' modules, its inputs collected layer by layer.

Each layer's weights are in memory while all tokens pass through it (see `ggplan.forward`). The hidden states
between two layers are kept in the folder, under the digest of the run, until the next layer is done; so a run
that was stopped goes on with the layer it was in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.calibration.collecting import Activation, LayerCollector, Taken, chunks_of
from ggplan.calibration.engines import Progress, Surveyed
from ggplan.calibration.given_texts import TEXT_LIMIT
from ggplan.calibration.run import Run
from ggplan.errors import CalibrationError
from ggplan.forward.building import open_checkpoint_model, require_transformers
from ggplan.forward.running import Rows, TokenRun, one_torch_thread, return_freed_memory
from ggplan.forward.structure import Structure, require_known
from ggplan.ggml_types import F32
from ggplan.imatrix import ImatrixSums, Sums, write_imatrix
from ggplan.imatrix.writing import Form
from ggplan.model import Model
from ggplan.reshaping import forms_of
from ggplan.sources.files import exists, read_whole, shown
from ggplan.sources.huggingface import open_checkpoint
from ggplan.text import format_bytes


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How to run a checkpoint.

    Attributes
    ----------
    threads
        Batches that are run at the same time.
    memory
        Bytes that the weights of a layer and what is collected of it may take.
    keep
        Whether second moments are wanted; else only what an imatrix needs.
    process_output
        Whether the input of output.weight is wanted too.
    """

    threads: int
    memory: int
    keep: bool = True
    process_output: bool = False


class TorchEngine:
    """transformers' modules, layer by layer: an engine as `ggplan.calibration.engines` describes it.

    Parameters
    ----------
    model
        A Hugging Face folder.
    texts
        The files.
    datasets
        The names by which an imatrix calls them.
    n_ctx
        Tokens of a chunk.

    Raises
    ------
    CalibrationError
        If the model is no such folder.
    CheckpointError
        If torch or transformers are missing.
    """

    name = "torch"

    def __init__(
        self,
        model: Model,
        texts: Sequence[Path],
        datasets: Sequence[str],
        n_ctx: int,
        options: TorchOptions,
    ) -> None:
        is_other = model.reshaped.keys() & {"pruned_layers", "kept_experts"}
        if model.kind != "hf" or is_other or model.reshaped.get("mtp") == "only":
            raise CalibrationError(
                f"{shown(model.path)} is not a Hugging Face folder as it is, which the engine torch runs",
                hint="give the checkpoint's folder, or calibrate with --engine llama.cpp",
            )
        torch, transformers = require_transformers()
        self.build = f"torch {torch.__version__}, transformers {transformers.__version__}"
        self._model, self._n_ctx, self._options = model, n_ctx, options
        self._texts, self._datasets = tuple(texts), tuple(datasets)
        self._tokens: list[NDArray[np.int64]] | None = None

    def survey(self) -> Surveyed:
        """As `Engine.survey`."""
        blocks = {int(t.name.split(".")[1]) for t in self._model.tensors if t.name.startswith("blk.")}
        config = open_checkpoint(self._model.path).config
        text = config.get("text_config", config)
        n_layers = text.get("num_hidden_layers") if isinstance(text, dict) else None
        layers: list[int | None] = [
            k for k in sorted(blocks) if not isinstance(n_layers, int) or k < n_layers
        ]
        if self._options.process_output:
            layers.append(None)
        return Surveyed(tuple(len(tokens) for tokens in self._all_tokens()), tuple(layers))

    def collect(self, taken: Taken, layers: Sequence[int | None], run: Run, progress: Progress) -> None:
        """As `Engine.collect`."""
        tokens = self.chunks(taken)
        run.write_tokens(tokens.astype(np.int32))
        missing = set(layers)
        n_layers = len(self.survey().layers)
        done = 0

        def passed(n_tokens: int) -> None:
            nonlocal done
            done += n_tokens
            progress(done // self._n_ctx, n_layers * len(tokens))

        for collector in collect_layers(
            self._model,
            tokens,
            run.folder,
            run.digest,
            self._options,
            is_done=lambda layer: layer not in missing,
            progress=passed,
        ):
            collector.write(run.folder, run.digest)

    def imatrix(self, taken: Taken, path: Path, form: Form, progress: Progress) -> None:
        """As `Engine.imatrix`."""
        tokens = self.chunks(taken)
        n_layers = len(self.survey().layers)
        done = 0

        def passed(n_tokens: int) -> None:
            nonlocal done
            done += n_tokens
            progress(done // self._n_ctx, n_layers * len(tokens))

        entries: dict[str, Sums] = {}
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as work:
            for collector in collect_layers(
                self._model,
                tokens,
                Path(work),
                "imatrix",
                replace(self._options, keep=False),
                progress=passed,
            ):
                entries |= collector.sums()
        write_imatrix(ImatrixSums(self._datasets, self._n_ctx, entries), path, form)

    def chunks(self, taken: Taken) -> NDArray[np.int64]:
        """Chunks of the texts by their numbers: (n, n_ctx), as llama.cpp cuts them.

        Where the tokenizer begins a text with a token, every chunk's first token is replaced by it.
        """
        chunks = chunks_of(self._all_tokens(), taken, self._n_ctx)
        if (first := self._first_token()) is not None:
            chunks[:, 0] = first
        return chunks

    def _all_tokens(self) -> list[NDArray[np.int64]]:
        if self._tokens is None:
            tokenizer, first = self._tokenizer(), self._first_token()
            begin = [] if first is None else [first]
            self._tokens = []
            for text in self._texts:
                raw = read_whole(text, TEXT_LIMIT).decode("utf-8", errors="replace")
                ids = tokenizer.encode(raw, add_special_tokens=False).ids
                self._tokens.append(np.array([*begin, *ids], np.int64))
        return self._tokens

    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        path = self._model.path / "tokenizer.json"
        if not exists(path):
            raise CalibrationError(
                f"{shown(self._model.path)} has no tokenizer.json, which the engine torch reads texts with",
                hint="calibrate with --engine llama.cpp",
            )
        return Tokenizer.from_file(str(path))

    def _first_token(self) -> int | None:
        """The token that a text begins with, as the GGUF's metadata has it for llama.cpp."""
        metadata = {key: value.decode() for key in _BEGINNING if (value := self._model.metadata.get(key))}
        kind, adds, token = (metadata.get(key) for key in _BEGINNING)
        if adds is None:
            adds = kind == "llama"  # what llama.cpp takes for SentencePiece without the key
        return int(str(token)) if adds and token is not None else None


_BEGINNING = ("tokenizer.ggml.model", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id")


def collect_layers(
    model: Model,
    tokens: NDArray[np.int64],
    work: Path,
    run: str,
    options: TorchOptions,
    *,
    is_done: Callable[[int | None], bool] = lambda layer: False,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[LayerCollector]:
    """What the matrices of each layer are given, for the layers that are not done.

    Parameters
    ----------
    model
        A Hugging Face folder, as `open_model` gives it.
    tokens
        (windows, T): the text.
    work
        The folder in which hidden states are kept from layer to layer.
    run
        The digest of the run.
    is_done
        Whether a layer's inputs are there already; it is only run then, if it must.
    progress
        Called with the tokens that passed another layer.

    Raises
    ------
    CheckpointError
        If transformers does not know the checkpoint, or the use of a matrix is not known.
    CalibrationError
        If a layer does not fit into the memory.
    """
    return_freed_memory()
    with one_torch_thread():
        yield from _collect_layers(model, tokens, work, run, options, is_done, progress)


def _collect_layers(
    model: Model,
    tokens: NDArray[np.int64],
    work: Path,
    run: str,
    options: TorchOptions,
    is_done: Callable[[int | None], bool],
    progress: Callable[[int], None],
) -> Iterator[LayerCollector]:
    checkpoint_model = open_checkpoint_model(open_checkpoint(model.path), forms_of(model))
    types = {tensor.name: tensor.type for tensor in model.tensors}
    matrices = {tensor.name for tensor in model.tensors if len(tensor.shape) > 1 and tensor.type != F32}
    checkpoint_model.fill_outside()
    tokens_run = TokenRun(checkpoint_model, tokens, options.threads, lambda name: _is_fixed(types, name))
    n_layers = len(checkpoint_model.layers)
    first = _first_layer(work, run, n_layers, is_done)
    if not first and not _states(work, run, 0).exists():
        tokens_run.start(_states(work, run, 0))
    for layer in range(first, n_layers):
        states = tokens_run.states(_states(work, run, layer))
        done = is_done(layer)
        collector = None
        structure = None
        if done:
            checkpoint_model.fill(layer)
        else:
            structure = tokens_run.structure(layer, states)
            prefix = f"blk.{layer}."
            wanted = [name.removeprefix(prefix) for name in matrices if name.startswith(prefix)]
            require_known(structure, wanted, shown(model.path))
            collecting = _Collecting(layer, structure)
            collected = collecting.memory(tokens.size) if options.keep else 0
            _require_memory(layer, checkpoint_model.layer_bytes(layer), collected, options.memory)
            collector = collecting.start(tokens.size, options.keep)

        def outputs() -> Iterator[NDArray[np.float32]]:
            for batch, output, rows in tokens_run.run(layer, states, structure):  # noqa: B023
                for each in rows:
                    collecting.add(each)  # noqa: B023
                progress((batch.stop - batch.start) * tokens.shape[1])
                yield output

        tokens_run.write(_states(work, run, layer + 1), outputs())
        checkpoint_model.empty(layer)
        if collector is not None:
            yield collector
        _states(work, run, layer).unlink(missing_ok=True)
    last = _states(work, run, n_layers)
    if options.process_output and not is_done(None):
        states = tokens_run.states(last)
        collector = LayerCollector(
            None, [Activation("output", tokens_run.width, ("output.weight",))], tokens.size, keep=options.keep
        )
        for x in tokens_run.end(states):
            collector.add("output", x)
        yield collector
    last.unlink(missing_ok=True)


class _Collecting:
    """The collector of a layer, and which of its activations each input is."""

    def __init__(self, layer: int, structure: Structure) -> None:
        self.layer, self.structure = layer, structure
        self.prefix = f"blk.{layer}."
        self.activations: dict[int, list[tuple[Activation, NDArray[np.int64] | None]]] = {}
        self.waiting: dict[int, Rows] = {}
        given = {e.twin: k for k, e in enumerate(structure.inputs) if e.is_given and e.twin is not None}
        for number, each in enumerate(structure.inputs):
            if each.is_given and each.twin is not None:
                continue
            experts = given.get(number, number if each.is_given else -1)
            routed = self._names(experts, None) if experts >= 0 else ()
            n_slices = structure.inputs[experts].n_slices if experts >= 0 else each.n_slices or 1
            own = each.n_slices > 0 and not each.is_given
            n_routes = structure.inputs[experts].n_routes if experts >= 0 else each.n_routes or n_slices
            for columns in self._columns(number):
                names = self._names(number, columns)
                plain = () if each.n_slices else names
                n_columns = each.n_columns if columns is None else columns.size
                found = Activation(
                    (plain or routed or names or each.parameters)[0].removeprefix(self.prefix),
                    n_columns,
                    plain,
                    (names if own else routed) if columns is None else (),
                    n_slices,
                    n_routes if routed else 0,
                    own,
                    n_routes if own else 1,
                )
                if found.tensors or found.expert_tensors:
                    self.activations.setdefault(number, []).append((found, columns))
        self.listed = [a for found in self.activations.values() for a, _ in found]

    def memory(self, n_tokens: int) -> int:
        """Bytes that collecting the inputs takes, and writing them."""
        return sum(activation.memory(n_tokens) for activation in self.listed)

    def start(self, n_tokens: int, keep: bool) -> LayerCollector:
        """A collector for so many tokens."""
        self.collector = LayerCollector(self.layer, self.listed, n_tokens, keep=keep)
        return self.collector

    def add(self, rows: Rows) -> None:
        """Add the rows of an input of one batch; those of an experts' module go with those of its twin."""
        inputs = self.structure.inputs
        each = inputs[rows.number]
        pair = (
            each.twin
            if each.is_given
            else next((k for k, e in enumerate(inputs) if e.is_given and e.twin == rows.number), None)
        )
        if pair is None:
            self._add(rows, rows.routes)
        elif pair in self.waiting:
            other = self.waiting.pop(pair)
            plain, routed = (other, rows) if each.is_given else (rows, other)
            self._add(plain, routed.routes)
        else:
            self.waiting[rows.number] = rows

    def _add(self, rows: Rows, routes: NDArray[np.int32] | None) -> None:
        for activation, columns in self.activations.get(rows.number, ()):
            x = rows.values if columns is None else np.ascontiguousarray(rows.values[:, columns])
            if rows.slices is not None:
                self.collector.add_own(activation.name, x, rows.slices)
            else:
                self.collector.add(activation.name, x, routes if activation.expert_tensors else None)

    def _columns(self, number: int) -> list[NDArray[np.int64] | None]:
        """The ways in which the columns of an input are used."""
        found: list[NDArray[np.int64] | None] = [None]
        for feed in self.structure.feeds.values():
            if feed.number == number and not any(_are_same(columns, feed.columns) for columns in found):
                found.append(feed.columns)
        return found

    def _names(self, number: int, columns: NDArray[np.int64] | None) -> tuple[str, ...]:
        """The GGUF tensors of an input that use its columns so; a stack has one input only with experts."""
        n_slices = self.structure.inputs[number].n_slices
        return tuple(
            self.prefix + name
            for name, feed in self.structure.feeds.items()
            if feed.number == number
            and (len(self.structure.places[name]) == 1 or n_slices)
            and _are_same(columns, feed.columns)
        )


def _are_same(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one, other))


def _is_fixed(types: Mapping[str, object], name: str) -> bool:
    """Whether the tensors of this name, of all layers, stay f32."""
    return all(type_ == F32 for full, type_ in types.items() if full.endswith(f".{name}"))


def _states(work: Path, run: str, layer: int) -> Path:
    return work / f"states-{run[:16]}-{layer:03}.f32"


def _first_layer(work: Path, run: str, n_layers: int, is_done: Callable[[int | None], bool]) -> int:
    """The last layer whose hidden states are there, and all layers before it done; 0 without any."""
    n_done = next((k for k in range(n_layers) if not is_done(k)), n_layers)
    return next((k for k in range(n_done, 0, -1) if _states(work, run, k).exists()), 0)


def _require_memory(layer: int, weights: int, collected: int, memory: int) -> None:
    if weights + collected > memory:
        inputs = f" and its inputs {format_bytes(collected)}" if collected else ""
        raise CalibrationError(
            f"the weights of layer {layer} take {format_bytes(weights)} in float32{inputs}, and memory is "
            f"{format_bytes(memory)}",
            hint="give more with --memory, or calibrate with the engine llama.cpp",
        )
