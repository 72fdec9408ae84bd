"""The two engines with one interface: a function runs the base, another runs a model and compares it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggplan.errors import MeasureError
from ggplan.measure import llama_perplexity
from ggplan.measure.base_logits import BaseLogits
from ggplan.measure.llama_perplexity import ChunkProgress, Run
from ggplan.measure.scores import TokenScores
from ggplan.text import printable

EMBEDDED = "llama-cpp-python"


@dataclass(frozen=True, slots=True)
class Engine:
    """A program that runs models.

    Attributes
    ----------
    name, build
        As records keep them.
    run_base
        `(model, text, keep, n_ctx, n_chunks, progress)`: run the base model on a text and keep its
        log-probabilities in the file `keep`.
    run_model
        `(model, text, base, progress)`: run a model on the chunks of `base` and compare every token.
    options
        What is passed on to the program.
    """

    name: str
    build: str
    run_base: Callable[[Path, Path, Path, int, int | None, ChunkProgress | None], Run]
    run_model: Callable[[Path, Path, BaseLogits, ChunkProgress | None], Run]
    options: tuple[str, ...] = ()


def external_engine(path: str, options: Sequence[str] = ()) -> Engine:
    """The user's llama-perplexity, with options passed through to it.

    Raises
    ------
    MeasureError
        If `path` is not a program.
    """
    found = llama_perplexity.find_engine(path)
    if found is None:
        raise MeasureError(f"{printable(path)} is not on the PATH")

    def run_base(
        model: Path, text: Path, keep: Path, n_ctx: int, n_chunks: int | None, progress: ChunkProgress | None
    ) -> Run:
        return llama_perplexity.run_base(
            found, model, text, keep, n_ctx=n_ctx, n_chunks=n_chunks, options=options, progress=progress
        )

    def run_model(model: Path, text: Path, base: BaseLogits, progress: ChunkProgress | None) -> Run:
        return llama_perplexity.run_model(found, model, text, base, options=options, progress=progress)

    build = llama_perplexity.engine_build(found)
    return Engine(Path(found).name, build, run_base, run_model, tuple(options))


def embedded_engine(*, threads: int | None = None, n_gpu_layers: int = 0) -> Engine:
    """llama.cpp through llama-cpp-python, in a process of its own.

    Raises
    ------
    MeasureError
        If llama-cpp-python is not installed, or does not load.
    """
    from ggplan.measure import embedded

    build = embedded.build()

    def run(model: Path, text: Path, progress: ChunkProgress | None, **more: Any) -> Run:
        request = {"model": str(model), "text": str(text), "threads": threads, "n_gpu_layers": n_gpu_layers}
        return _run_worker(request | more, progress)

    def run_base(
        model: Path, text: Path, keep: Path, n_ctx: int, n_chunks: int | None, progress: ChunkProgress | None
    ) -> Run:
        return run(model, text, progress, n_ctx=n_ctx, n_chunks=n_chunks, base=None, keep_logits=str(keep))

    def run_model(model: Path, text: Path, base: BaseLogits, progress: ChunkProgress | None) -> Run:
        chunked = base.chunked
        return run(
            model, text, progress, n_ctx=chunked.n_ctx, n_chunks=chunked.n_chunks, base=str(base.path),
            keep_logits=None,
        )  # fmt: skip

    return Engine(EMBEDDED, build, run_base, run_model)


def default_engine(*, threads: int | None = None, n_gpu_layers: int = 0) -> Engine:
    """The llama-perplexity on the PATH, else llama.cpp through llama-cpp-python.

    Raises
    ------
    MeasureError
        If there is neither; where llama-cpp-python is installed and does not load, with the reason.
    """
    found = llama_perplexity.find_engine(None)
    if found is None:
        return embedded_engine(threads=threads, n_gpu_layers=n_gpu_layers)
    options = ["-t", str(threads)] if threads else []
    return external_engine(found, options + (["-ngl", str(n_gpu_layers)] if n_gpu_layers else []))


def _run_worker(request: dict[str, Any], progress: ChunkProgress | None) -> Run:
    """Score a text in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="ggplan-") as folder:
        scores = Path(folder) / "scores.npz"
        for said in run_apart("ggplan.measure.embedded", request | {"scores": str(scores)}):
            if "chunks" in said and progress is not None:
                progress(*said["chunks"])
        return Run(TokenScores.load(scores))


def run_apart(module: str, request: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """Carry out a request in a process of its own, so that a damaged model can crash only that one.

    Parameters
    ----------
    module
        What is run as `python -m MODULE REQUEST.json`. It prints a JSON object a line, and the object
        {"failed": message, "hint": ...} before it exits with 1. It calls `embedded.end_with_caller`.
    request
        What it is to do; `model` is the path of a model.

    Yields
    ------
    What it says.

    Raises
    ------
    MeasureError
        If it fails or crashes.
    """
    with tempfile.TemporaryDirectory(prefix="ggplan-") as folder:
        order = Path(folder) / "request.json"
        try:
            order.write_text(json.dumps(request), "utf-8")
        except OSError as error:
            raise MeasureError(f"cannot write {printable(folder)}: {error.strerror}") from error
        package = str(Path(__file__).resolve().parents[2])
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([package, *_python_path()])},
        )
        assert process.stdout is not None
        failed: MeasureError | None = None
        try:
            for line in process.stdout:
                try:
                    said = json.loads(line)
                except ValueError:  # what llama.cpp prints where it should not
                    continue
                if "failed" in said:
                    failed = MeasureError(said["failed"], hint=said["hint"])
                else:
                    yield said
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
            if process.stdin is not None:
                process.stdin.close()
        if failed is not None:
            raise failed
        if process.returncode == -signal.SIGKILL:
            raise MeasureError(
                f"llama.cpp was killed while it ran {printable(Path(request['model']).name)}: probably the "
                "memory was full",
                hint="free some memory, or run a smaller file of the model (q8_0)",
            )
        if process.returncode:
            raise MeasureError(
                f"llama.cpp crashed on {printable(Path(request['model']).name)} (exit {process.returncode})",
                hint="`ggplan verify` checks the file",
            )


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
