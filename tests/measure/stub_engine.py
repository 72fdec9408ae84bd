"""A small engine for tests: figures that follow from a file's bytes, by the ways of the real ones.

As a program it is a llama-perplexity: the options that ggplan gives, the file of log-probabilities, the lines
that are read; it shares no code with ggplan. As `stub_engine()` it is the same inside Python. Its "models"
are GGUF files whose description says how far they are from the truth: `noise=0.1 seed=3`, and `nan=2` for so
many tokens without a number in the first chunk.

    STUB_LOG    a file that gets a line for each run: the model's file name
    STUB_WAIT   a file whose appearance a run waits for
"""

import argparse
import os
import re
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ggplan.measure import Engine

N_VOCAB = 40


def write_model(
    path: Path,
    noise: float,
    seed: int = 1,
    *,
    n_columns: int = 32,
    nan: int = 0,
    name: str = "Tiny",
    architecture: str = "llama",
    n_vocab: int = N_VOCAB,
    split: int = 0,
) -> Path:
    """A GGUF file of four tensors, more columns making it larger; with `split` tensors a file, a set."""
    import gguf  # late: the program does without

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    writer.add_name(name)
    writer.add_description(f"noise={noise} seed={seed} nan={nan};")
    writer.add_token_list([f"t{i}" for i in range(n_vocab)])
    for i in range(4):
        writer.add_tensor(f"blk.{i}.attn_q.weight", np.full((2, n_columns), seed, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name(f"{path.stem}-00001-of-{-(-4 // split):05d}.gguf") if split else path


def write_text(path: Path, seed: int, n_tokens: int = 200) -> Path:
    """A text of so many tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(np.random.default_rng(seed).integers(33, 90, n_tokens, np.uint8)))
    return path


def tokens_of(text: bytes, n_ctx: int, n_chunks: int | None) -> np.ndarray:
    """(n_chunks, n_ctx) int32."""
    tokens = np.frombuffer(text, np.uint8).astype("<i4") % N_VOCAB
    n = min(len(tokens) // n_ctx, n_chunks or len(tokens))
    return tokens[: n * n_ctx].reshape(n, n_ctx)


def logits_of(model: Path, tokens: np.ndarray) -> list[np.ndarray]:
    """The truth of these tokens and the model's noise, (n_scored, n_vocab) a chunk."""
    found = re.search(rb"noise=([0-9.]+) seed=(\d+) nan=(\d+);", model.read_bytes())
    assert found is not None, "an engine must be given the first file of a set"
    noise, seed, nan = float(found[1]), int(found[2]), int(found[3])
    truth = np.random.default_rng(zlib.crc32(tokens.tobytes()))
    wrong = np.random.default_rng(seed)
    n_chunks, n_ctx = tokens.shape
    shape = (n_chunks, n_ctx - 1 - n_ctx // 2, N_VOCAB)
    logits = (2 * truth.standard_normal(shape) + noise * wrong.standard_normal(shape)).astype(np.float32)
    logits[0, :nan] = np.nan
    return list(logits)


def stub_engine(log: list[str] | None = None) -> "Engine":
    """The engine inside Python; `log` gets the name of each file it runs."""
    from ggplan.measure.base_logits import BaseLogits, ChunkedText, write_base_logits
    from ggplan.measure.engines import Engine
    from ggplan.measure.llama_perplexity import Run
    from ggplan.measure.scores import join_scores, score_chunk

    def run_base(model, text, keep, n_ctx, n_chunks, progress) -> Run:
        tokens = tokens_of(text.read_bytes(), n_ctx, n_chunks)
        chunked = ChunkedText(n_ctx, N_VOCAB, tokens)
        chunks = write_base_logits(keep, chunked, iter(logits_of(model, tokens)))
        return run(model, chunked, list(chunks), None, progress)

    def run_model(model, text, base: BaseLogits, progress) -> Run:
        return run(model, base.chunked, logits_of(model, base.chunked.tokens), base, progress)

    def run(
        model: Path, chunked: "ChunkedText", chunks: list[np.ndarray], base: BaseLogits | None, progress
    ) -> Run:
        if progress is not None:
            progress(len(chunks), len(chunks))
        if log is not None:
            log.append(model.name)
        _note_run(model)
        rows = [base.rows(i, 0, chunked.n_scored) if base else None for i in range(chunked.n_chunks)]
        return Run(join_scores([score_chunk(c, chunked.targets[i], rows[i]) for i, c in enumerate(chunks)]))

    return Engine("stub", "b1", run_base, run_model)


def _note_run(model: Path) -> None:
    if log := os.environ.get("STUB_LOG"):
        with open(log, "a") as file:
            file.write(f"{model.name}\n")


def write_program(folder: Path) -> Path:
    """The engine as a program that `--engine` can name."""
    folder.mkdir(exist_ok=True)
    program = folder / "llama-perplexity"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo version: b1 && exit\n'
        f'exec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n'
    )
    program.chmod(0o755)
    return program


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", type=Path, required=True)
    parser.add_argument("-f", type=Path, required=True)
    parser.add_argument("-c", type=int, required=True)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--kl-divergence-base", type=Path, required=True)
    asked = parser.parse_args()
    _note_run(asked.m)
    if wait := os.environ.get("STUB_WAIT"):
        while not os.path.exists(wait):
            time.sleep(0.02)
    tokens = tokens_of(asked.f.read_bytes(), asked.c, asked.chunks)
    n_chunks, n_ctx = tokens.shape
    print(f"perplexity: calculating perplexity over {n_chunks} chunks, n_ctx={n_ctx}")
    losses = []
    with asked.kl_divergence_base.open("wb") as file, np.errstate(invalid="ignore"):
        file.write(struct.pack("<8sIii", b"_logits_", n_ctx, N_VOCAB, n_chunks) + tokens.tobytes())
        for i, logits in enumerate(logits_of(asked.m, tokens)):
            log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            low = np.maximum(log_probs.min(axis=1), log_probs.max(axis=1) - 16)
            scale = (log_probs.max(axis=1) - low) / 65535
            for row, at, step in zip(log_probs, low, scale, strict=True):
                codes = np.nan_to_num(np.rint((row - at) / step)).clip(0, 65535)
                file.write(struct.pack("<ff", step, at) + codes.astype("<u2").tobytes())
            losses.append(-log_probs[np.arange(len(logits)), tokens[i, n_ctx // 2 + 1 :]])
            print(f"[{i + 1}]{np.exp(np.mean(losses)):.4f},", end="", flush=True)
    ppl = np.exp(np.mean(losses, dtype=np.float64))
    print("" if np.isnan(ppl) else f"\nFinal estimate: PPL = {ppl:.6f} +/- 0.10000")


if __name__ == "__main__":
    main()
