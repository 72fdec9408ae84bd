"""A calibration that is filled without an engine that runs a model: random inputs of a small layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ggplan.calibration import Calibration
from ggplan.calibration.collecting import Activation, LayerCollector, Taken
from ggplan.calibration.engines import Progress, Surveyed
from ggplan.calibration.run import Run, begin
from ggplan.imatrix import ImatrixSums, write_imatrix
from ggplan.imatrix.writing import Form

COLUMNS, EXPERTS, USED = 32, 4, 2
SETTINGS = {"model": {"name": "m"}, "texts": [{"name": "a.txt", "sha256": "0" * 64}], "n_ctx": 8, "tokens": 0}


def activations() -> list[Activation]:
    """The inputs of a layer: one that three share, one that experts share with others, two of their own."""
    return [
        Activation("attn_norm", COLUMNS, ("attn_q", "attn_k", "attn_v")),
        Activation("ffn_norm", COLUMNS, ("ffn_up_shexp",), ("ffn_gate_exps", "ffn_up_exps"), EXPERTS, USED),
        Activation("glu", COLUMNS, (), ("ffn_down_exps",), EXPERTS, USED, True, USED),
        Activation("heads", COLUMNS, ("attn_k_b",), (), 3, 0, True, 3),
    ]


def inputs(n_tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of all tokens, the experts of each (never the last one), inputs by expert and by head."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n_tokens, COLUMNS)).astype(np.float32)
    routes = np.stack([rng.permutation(EXPERTS - 1)[:USED] for _ in range(n_tokens)]).astype(np.int32)
    own = rng.standard_normal((n_tokens, USED, COLUMNS)).astype(np.float32)
    heads = rng.standard_normal((n_tokens, 3, COLUMNS)).astype(np.float32)
    return shared, routes, own, heads


def collected(n_tokens: int, layer: int | None = 0, *, step: int = 50, keep: bool = True) -> LayerCollector:
    """A layer's collector with the inputs of so many tokens."""
    prefix = f"blk.{layer}."

    def named(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{prefix}{name}.weight" for name in names)

    listed = [
        Activation(
            a.name, a.n_columns, named(a.tensors), named(a.expert_tensors), a.n_slices, a.n_routes,
            a.has_own_rows, a.rows_per_token,
        )
        for a in activations()
    ]  # fmt: skip
    collector = LayerCollector(layer, listed, n_tokens, keep=keep)
    shared, routes, own, heads = inputs(n_tokens, layer or 0)
    for first in range(0, n_tokens, step):
        some = slice(first, first + step)
        collector.add("attn_norm", shared[some])
        collector.add("ffn_norm", shared[some], routes[some])
        collector.add_own("glu", own[some].reshape(-1, COLUMNS), routes[some].reshape(-1))
        numbers = np.tile(np.arange(3, dtype=np.int32), len(shared[some]))
        collector.add_own("heads", heads[some].reshape(-1, COLUMNS), numbers)
    return collector


def filled(folder: Path, n_tokens: int, layers: Sequence[int] = (0,)) -> Calibration:
    """A whole calibration of some layers."""
    run = begin(folder, SETTINGS | {"tokens": n_tokens})
    if isinstance(run, Calibration):
        return run
    run.write_tokens(np.arange(n_tokens, dtype=np.int32).reshape(1, -1))
    for layer in layers:
        collected(n_tokens, layer).write(folder, run.digest)
    return run.finish(run.finished(layers).values(), {"blk.0.attn_q.weight": "aa", "else": "bb"})


class StubEngine:
    """An engine that runs nothing: texts of as many tokens as bytes, and layers as above.

    Parameters
    ----------
    fails_after
        How many layers it writes before it raises `error`; by default KeyboardInterrupt, as Ctrl-C does.
    """

    name, build = "llama.cpp", "0"

    def __init__(self, texts: Sequence[Path], n_ctx: int, fails_after: int | None = None) -> None:
        self.texts, self.n_ctx, self.fails_after = texts, n_ctx, fails_after
        self.error: BaseException = KeyboardInterrupt()
        self.written: list[int | None] = []
        self.taken: Taken = ()

    def survey(self) -> Surveyed:
        return Surveyed(tuple(len(text.read_bytes()) for text in self.texts), (0, 1, 2))

    def collect(self, taken: Taken, layers: Sequence[int | None], run: Run, progress: Progress) -> None:
        self.taken = taken
        n_chunks = sum(map(len, taken))
        n_tokens = n_chunks * self.n_ctx
        run.write_tokens(np.zeros((n_chunks, self.n_ctx), np.int32))
        for layer in layers:
            if self.fails_after == len(self.written):
                (run.folder / f"states-{run.digest[:16]}-000.f32").write_bytes(b"....")
                raise self.error
            collected(n_tokens, layer).write(run.folder, run.digest)
            self.written.append(layer)
        progress(n_chunks, n_chunks)

    def imatrix(self, taken: Taken, path: Path, form: Form, progress: Progress) -> None:
        sums = collected(sum(map(len, taken)) * self.n_ctx, 0, keep=False).sums()
        write_imatrix(ImatrixSums(("a.txt",), self.n_ctx, sums), path, form)

    @contextlib.contextmanager
    def entered(
        self, model: object, texts: list[Path], options: object, work: Path, watch: object
    ) -> Iterator[StubEngine]:
        """As an entry of `calibrating.ENGINES`."""
        self.texts = texts
        yield self
