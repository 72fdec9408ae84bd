"""What an engine that runs a model for a calibration can do, and the one that is llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ggplan.calibration.collecting import Taken
from ggplan.calibration.run import Run
from ggplan.errors import CalibrationError
from ggplan.imatrix.writing import Form
from ggplan.text import format_bytes

Progress = Callable[[int, int], None]
"""Told how many chunks are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What an engine knows before it runs.

    Attributes
    ----------
    tokens
        The tokens of each text.
    layers
        The layers that have inputs; None is what is outside the layers.
    """

    tokens: tuple[int, ...]
    layers: tuple[int | None, ...]


class Engine(Protocol):
    """Runs texts through a model."""

    @property
    def name(self) -> str:
        """As `--engine` has it."""

    @property
    def build(self) -> str:
        """Its version."""

    def survey(self) -> Surveyed:
        """What is known before a token is run."""

    def collect(self, taken: Taken, layers: Sequence[int | None], run: Run, progress: Progress) -> None:
        """Run chunks of the texts, and write the files of some layers."""

    def imatrix(self, taken: Taken, path: Path, form: Form, progress: Progress) -> None:
        """Run the same and write an imatrix alone."""


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """How llama.cpp runs a GGUF.

    Attributes
    ----------
    texts
        The files.
    datasets
        The names by which an imatrix calls them.
    n_ctx
        Tokens of a chunk.
    memory
        Bytes that what is collected in one pass over the text may take.
    threads
        Threads of llama.cpp, or None for its default.
    process_output
        Whether the input of output.weight is wanted too.
    """

    texts: tuple[Path, ...]
    datasets: tuple[str, ...]
    n_ctx: int
    memory: int
    threads: int | None
    process_output: bool


class LlamaCpp:
    """llama.cpp through llama-cpp-python, in a process of its own.

    Parameters
    ----------
    gguf
        The model.

    Raises
    ------
    CalibrationError
        If llama-cpp-python is missing, or does not load.
    """

    name = "llama.cpp"

    def __init__(self, gguf: Path, options: LlamaCppOptions) -> None:
        from ggplan.measure import embedded

        if why := embedded.why_missing():
            raise CalibrationError(
                f"the engine llama.cpp cannot be used: {why}", hint="pip install 'ggplan[measure]'"
            )
        self.build = embedded.build()
        self._options = options
        self._request = {
            "model": str(gguf),
            "texts": [str(text) for text in options.texts],
            "n_ctx": options.n_ctx,
            "threads": options.threads,
            "process_output": options.process_output,
        }
        self._inputs: list[dict[str, Any]] = []

    def survey(self) -> Surveyed:
        """As `Engine.survey`."""
        tokens: list[int] = []
        for said in self._run(task="survey"):
            tokens = said.get("tokens", tokens)
            self._inputs = said.get("inputs", self._inputs)
        return Surveyed(tuple(tokens), tuple(dict.fromkeys(each["layer"] for each in self._inputs)))

    def collect(self, taken: Taken, layers: Sequence[int | None], run: Run, progress: Progress) -> None:
        """As `Engine.collect`: in passes over the text, each for as many layers as the memory holds."""
        groups = self.passes(sum(map(len, taken)) * self._options.n_ctx, layers)
        where = {"folder": str(run.folder), "run": run.digest}
        for said in self._run(
            task="layers",
            taken=[list(numbers) for numbers in taken],
            groups=groups,
            inputs=self._inputs,
            **where,
        ):
            if "chunks" in said:
                progress(*said["chunks"])

    def imatrix(self, taken: Taken, path: Path, form: Form, progress: Progress) -> None:
        """As `Engine.imatrix`."""
        where = {"output": str(path), "form": form, "datasets": list(self._options.datasets)}
        for said in self._run(task="imatrix", taken=[list(numbers) for numbers in taken], **where):
            if "chunks" in said:
                progress(*said["chunks"])

    def passes(self, n_tokens: int, layers: Sequence[int | None]) -> list[list[int | None]]:
        """The layers of each pass over the text.

        Raises
        ------
        CalibrationError
            If one layer alone takes more than the memory.
        """
        from ggplan.calibration.llama_cpp import input_from_survey

        needed: dict[int | None, int] = dict.fromkeys(layers, 0)
        for each in map(input_from_survey, self._inputs):
            if each.layer in needed:
                needed[each.layer] += each.activation.memory(n_tokens)
        memory, room = self._options.memory, 0
        groups: list[list[int | None]] = []
        for layer, n_bytes in needed.items():
            if n_bytes > memory:
                what = (
                    "the inputs outside the layers take"
                    if layer is None
                    else f"the inputs of layer {layer} take"
                )
                raise CalibrationError(
                    f"{what} {format_bytes(n_bytes)} for {n_tokens:,} tokens, and the memory is "
                    f"{format_bytes(memory)}",
                    hint="give more with --memory SIZE, or fewer --tokens",
                )
            if n_bytes > room:
                groups.append([])
                room = memory
            groups[-1].append(layer)
            room -= n_bytes
        return groups

    def _run(self, **more: Any) -> Iterator[dict[str, Any]]:
        from ggplan.measure.engines import run_apart

        with closing(run_apart("ggplan.calibration.llama_cpp", self._request | more)) as lines:
            yield from lines
