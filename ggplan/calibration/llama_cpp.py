"""llama.cpp runs a text through a GGUF, and the inputs of its matrices are collected as they come by.

Like llama-imatrix (b11434, `tools/imatrix/imatrix.cpp`) it takes the inputs of every MUL_MAT of a weight
`blk.*`, of at least 16 rows, and of every MUL_MAT_ID; and it runs the same chunks in the same batches.

This runs in a process of its own, because llama.cpp aborts the whole process on some damaged files:

    python -m ggplan.calibration.llama_cpp REQUEST.json

Three tasks, by the request's "task":

    survey   {"tokens": [of each text], "inputs": [...]}: the inputs of the layers, without running a token
    layers   the files of some layers in some passes over the text: {"layer": n} for each
    imatrix  an imatrix file: {"imatrix": sha256}

It prints a JSON object a line, {"chunks": [done, of]} for progress, {"failed": message, "hint": ...} if it
fails.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.calibration.collecting import Activation, LayerCollector, Taken, chunks_of, write_tokens
from ggplan.calibration.graph_inputs import Callback, GraphInput, Reading, Survey, inputs_of_graph
from ggplan.calibration.graph_nodes import Graph
from ggplan.errors import CalibrationError, Error, MeasureError
from ggplan.imatrix import ImatrixSums, write_imatrix
from ggplan.measure.embedded import EmbeddedModel, end_with_caller, llama_cpp_module
from ggplan.sources.files import shown

UBATCH = 512
"""Tokens of a graph: llama.cpp's own default."""


class Runner:
    """A GGUF whose graphs are watched.

    Parameters
    ----------
    request
        "model", "texts", "n_ctx", "threads", "process_output".

    Raises
    ------
    MeasureError
        If llama-cpp-python is missing, or llama.cpp refuses the file.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        api = llama_cpp_module()
        self.n_ctx: int = request["n_ctx"]
        self._process_output: bool = request["process_output"]
        self._texts: Sequence[str] = request["texts"]
        self._aborts = False
        self._callback = Callback(graph := Graph(api))
        self._graph = graph
        self._model = EmbeddedModel(
            request["model"],
            self.n_ctx,
            threads=request["threads"],
            more={
                "cb_eval": api.ggml_backend_sched_eval_callback(self._callback),
                "abort_callback": api.ggml_abort_callback(lambda _: self._aborts),
                "n_ubatch": UBATCH,
                "offload_kqv": False,
                "op_offload": False,
            },
        )

    def tokens(self) -> list[NDArray[np.int32]]:
        """The tokens of each text."""
        return [self._model.tokens(Path(text).read_bytes()) for text in self._texts]

    def chunks(self, taken: Taken) -> NDArray[np.int32]:
        """Chunks of the texts by their numbers, (n, n_ctx)."""
        return self._model.as_run(chunks_of(self.tokens(), taken, self.n_ctx))

    def survey(self) -> list[GraphInput]:
        """The inputs of a graph, in its order.

        The graph is asked through and then not computed. Where llama.cpp computes it in parts, those after
        the first are not reached in this way, and it is run once.
        """
        tokens = np.zeros((1, self.n_ctx), np.int32)
        inputs: list[GraphInput] = []
        for self._aborts in (True, False):
            self._callback.watcher = survey = Survey(self._is_wanted)
            try:
                next(self._model.run(tokens))
            except MeasureError:
                if not self._aborts:
                    raise
            self._callback.check()
            inputs = inputs_of_graph(_one_graph(survey), min(self.n_ctx, UBATCH))
            if {each.layer for each in inputs} >= set(range(self._model.n_layers)):
                break
        self._aborts = False
        if not inputs:
            raise CalibrationError("llama.cpp multiplies no weight blk.* of this model with an input")
        return inputs

    def run(
        self,
        chunks: NDArray[np.int32],
        inputs: Sequence[GraphInput],
        collectors: Mapping[int | None, LayerCollector],
    ) -> Iterator[int]:
        """Run chunks and collect the inputs of some layers; yields how many were run."""
        self._callback.watcher = Reading(self._graph, inputs, collectors)
        steps = self._model.run(chunks)
        while True:
            try:
                n = next(steps, None)
            except MeasureError:
                self._callback.check()
                raise
            self._callback.check()
            if n is None:
                return
            yield n

    def _is_wanted(self, weight: str) -> bool:
        return weight.startswith("blk.") or (self._process_output and weight == "output.weight")


def _one_graph(survey: Survey) -> list[Any]:
    """The nodes of the first graph of several."""
    nodes = survey.nodes
    again = [
        i
        for i, node in enumerate(nodes)
        if i and node.source == nodes[0].source and node.weight == nodes[0].weight
    ]
    return nodes[: again[0]] if again else nodes


def main(arguments: list[str]) -> int:
    """Carry out the request; returns the exit code."""
    try:
        request = json.loads(Path(arguments[0]).read_text("utf-8"))
        {"survey": _survey, "layers": _layers, "imatrix": _imatrix}[request["task"]](request)
    except Error as error:
        _say(failed=error.message, hint=error.hint)
        return 1
    except OSError as error:
        where = f" {shown(error.filename)}" if error.filename else ""
        _say(failed=f"cannot read or write{where}: {error.strerror or error}", hint="")
        return 1
    except MemoryError:
        _say(
            failed="not enough memory for what is collected",
            hint="give a smaller --memory, or fewer --tokens",
        )
        return 1
    return 0


def _survey(request: dict[str, Any]) -> None:
    runner = Runner(request)
    _say(tokens=[len(tokens) for tokens in runner.tokens()])
    _say(inputs=[asdict(each) for each in runner.survey()])


def _layers(request: dict[str, Any]) -> None:
    runner = Runner(request)
    inputs = [input_from_survey(each) for each in request["inputs"]]
    chunks = runner.chunks(request["taken"])
    groups: list[list[int | None]] = request["groups"]
    folder, run, done = Path(request["folder"]), request["run"], 0
    write_tokens(folder, chunks, run)
    for group in groups:
        collectors = _collectors(group, inputs, chunks.size, request)
        for n in runner.run(chunks, inputs, collectors):
            done += n
            _say(chunks=[done, len(groups) * len(chunks)])
        for layer in group:
            collectors.pop(layer).write(folder, run)
            _say(layer=layer)


def _imatrix(request: dict[str, Any]) -> None:
    runner = Runner(request)
    inputs = runner.survey()
    chunks = runner.chunks(request["taken"])
    layers = list(dict.fromkeys(each.layer for each in inputs))
    collectors = _collectors(layers, inputs, chunks.size, request)
    done = 0
    for n in runner.run(chunks, inputs, collectors):
        done += n
        _say(chunks=[done, len(chunks)])
    entries = {name: sums for each in collectors.values() for name, sums in each.sums().items()}
    imatrix = ImatrixSums(tuple(request["datasets"]), runner.n_ctx, entries)
    _say(imatrix=write_imatrix(imatrix, request["output"], request["form"]))


def _collectors(
    layers: Sequence[int | None], inputs: Sequence[GraphInput], n_tokens: int, request: Mapping[str, Any]
) -> dict[int | None, LayerCollector]:
    keep, threads = request["task"] == "layers", request["threads"] or os.cpu_count() or 1
    found = {}
    for layer in layers:
        activations = [each.activation for each in inputs if each.layer == layer]
        found[layer] = LayerCollector(layer, activations, n_tokens, keep=keep, threads=threads)
    return found


def input_from_survey(value: Mapping[str, Any]) -> GraphInput:
    """An input as the survey says it."""
    a = value["activation"]
    names = {name: tuple(a[name]) for name in ("tensors", "expert_tensors")}
    return GraphInput(**{**value, "activation": Activation(**{**a, **names})})


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    end_with_caller()
    sys.exit(main(sys.argv[1:]))
