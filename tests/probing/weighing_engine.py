"""An engine whose figures follow from the errors of tensors: a KL divergence that is known beforehand.

The logits are a truth, and for each tensor noise of its own, whose variance is the tensor's sensitivity times
the relative squared error of its weights. So the divergence of a file is the sum of what its tensors do.
"""

import itertools
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import ggplan
from ggplan.measure.base_logits import BaseLogits, ChunkedText, write_base_logits
from ggplan.measure.engines import Engine
from ggplan.measure.llama_perplexity import Run
from ggplan.measure.scores import join_scores, score_chunk

N_VOCAB = 40
N_CTX = 16
_RUNS = itertools.count()


class StoppedError(Exception):
    """The engine was told to stop."""


def write_model(path: Path, weights: Mapping[str, np.ndarray], name: str = "Tiny") -> Path:
    """A GGUF file of these weights, in f32."""
    import gguf  # late: the program does without

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_block_count(4)
    writer.add_token_list([f"t{i}" for i in range(N_VOCAB)])
    for tensor, values in weights.items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weighing_engine(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, float],
    log: list[dict[str, str]],
    stop: Callable[[], bool] = lambda: False,
) -> Engine:
    """The engine; `log` gets the types of the tensors of each file that it runs."""

    def tokens_of(text: bytes, n_chunks: int | None) -> np.ndarray:
        tokens = np.frombuffer(text, np.uint8).astype("<i4") % N_VOCAB
        n = min(len(tokens) // N_CTX, n_chunks or len(tokens))
        return tokens[: n * N_CTX].reshape(n, N_CTX)

    def logits_of(path: Path, tokens: np.ndarray) -> list[np.ndarray]:
        if stop():
            raise StoppedError
        model = ggplan.open_model(path)
        log.append({t.name: t.type.name for t in model.tensors})
        truth = np.random.default_rng(zlib.crc32(tokens.tobytes()))
        shape = (len(tokens), N_CTX - 1 - N_CTX // 2, N_VOCAB)
        logits = 2 * truth.standard_normal(shape)
        for tensor in model.tensors:
            rows = tensor.rows.read_float32(0, tensor.n_rows).astype(np.float64)
            right = weights[tensor.name].reshape(rows.shape)
            error = ((rows - right) ** 2).sum() / max((right**2).sum(), 1e-30)
            wrong = np.random.default_rng(zlib.crc32(tensor.name.encode()))
            noise = wrong.standard_normal(shape)
            logits += np.sqrt(sensitivities.get(tensor.name, 0.0) * error) * noise
        return list(logits.astype(np.float32))

    def run_base(model, text, keep, n_ctx, n_chunks, progress) -> Run:
        tokens = tokens_of(text.read_bytes(), n_chunks)
        chunked = ChunkedText(N_CTX, N_VOCAB, tokens)
        return run(chunked, list(write_base_logits(keep, chunked, iter(logits_of(model, tokens)))), None)

    def run_model(model, text, base: BaseLogits, progress) -> Run:
        return run(base.chunked, logits_of(model, base.chunked.tokens), base)

    def run(chunked: ChunkedText, chunks: list[np.ndarray], base: BaseLogits | None) -> Run:
        rows = [base.rows(i, 0, chunked.n_scored) if base else None for i in range(chunked.n_chunks)]
        scores = join_scores([score_chunk(c, chunked.targets[i], rows[i]) for i, c in enumerate(chunks)])
        # Its own perplexity is never quite the same, as if an engine lost its last lines now and then.
        return Run(scores, ppl=float(np.exp(scores.nll.mean())) + 1e-6 * next(_RUNS))

    return Engine("weighing", "b1", run_base, run_model)
