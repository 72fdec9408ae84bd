"""The file of the base's log-probabilities: what is written comes back, and nothing else is believed."""

import struct
from pathlib import Path

import numpy as np
import pytest

from ggplan.errors import MeasureError
from ggplan.measure.base_logits import BaseLogits, ChunkedText, compress, log_probs, write_base_logits
from ggplan.measure.scores import score_chunk


def written(path: Path, n_vocab: int = 37, n_ctx: int = 16, n_chunks: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(n_vocab)
    tokens = random.integers(0, n_vocab, (n_chunks, n_ctx), dtype=np.int32)
    chunked = ChunkedText(n_ctx, n_vocab, tokens)
    chunks = [random.normal(0, 4, (chunked.n_scored, n_vocab)).astype(np.float32) for _ in range(n_chunks)]
    assert all(a is b for a, b in zip(write_base_logits(path, chunked, iter(chunks)), chunks, strict=True))
    return chunks


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1, keepdims=True).astype(np.float64)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("n_vocab", [36, 37])
def test_log_probabilities_come_back(tmp_path: Path, n_vocab: int) -> None:
    chunks = written(tmp_path / "base", n_vocab)
    with BaseLogits(tmp_path / "base") as base:
        assert base.chunked.n_scored == 7
        assert base.chunked.targets.shape == (3, 7)
        for i, logits in enumerate(chunks):
            expected = log_softmax(logits)
            kept = log_probs(base.rows(i, 0, 7), n_vocab)
            near = expected > expected.max(axis=1, keepdims=True) - 16
            assert np.abs(kept - expected)[near].max() < 16 / 65535
            assert (kept >= expected - 16 / 65535)[~near].all()
            np.testing.assert_array_equal(base.rows(i, 2, 5), base.rows(i, 0, 7)[2:5])
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_equal_logits_have_no_scale() -> None:
    rows = compress(np.zeros((1, 8), np.float32), 12)
    assert log_probs(rows, 8) == pytest.approx(np.full((1, 8), -np.log(8)))


def test_kept_log_probabilities_stand_for_the_logits(tmp_path: Path) -> None:
    logits = written(tmp_path / "base", 400, n_chunks=1)[0]
    with BaseLogits(tmp_path / "base") as base:
        rows, targets = base.rows(0, 0, 7), base.chunked.targets[0]
        exact = score_chunk(logits, targets, rows)
        again = score_chunk(log_probs(rows, 400), targets, rows, normalized=True)
    assert exact.comparison is not None
    assert again.comparison is not None
    assert np.abs(exact.comparison.kld).max() < 1e-4
    assert np.abs(again.comparison.kld).max() == 0
    kept = exact.nll < again.nll.max()  # what is less likely than the file keeps is cut off there
    assert kept.sum() > 3
    assert np.abs(exact.nll - again.nll)[kept].max() < 2e-4
    assert exact.comparison.same_top.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"", "not whole"),
        (lambda raw: b"GGUF" + raw[4:], "not a file of log-probabilities"),
        (lambda raw: raw[:-1], "not whole"),
        (lambda raw: raw + b"\0", "not whole"),
        (lambda raw: raw[:8] + struct.pack("<I", 1 << 30) + raw[12:], "damaged"),
        (lambda raw: raw[:16] + struct.pack("<i", 1 << 23) + raw[20:], "not whole"),
        (lambda raw: raw[:16] + struct.pack("<i", -1) + raw[20:], "damaged"),
        (lambda raw: raw[:20] + struct.pack("<i", 99) + raw[24:], "not in the vocabulary"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "base"
    written(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(MeasureError, match=message):
        BaseLogits(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="nowhere"):
        BaseLogits(tmp_path / "nowhere")
