"""`effort="best"`: never more error than ggml's blocks, and blocks that ggml reads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ggml_reference
import numpy as np
import pytest
from distributions import DISTRIBUTIONS, importances
from numpy.typing import NDArray

from ggplan.errors import QuantizationError
from ggplan.ggml_types import TYPES, parse_type
from ggplan.quants import (
    EFFORTS,
    dequantize,
    efforts_of,
    encode_into,
    quantize,
    quantize_error,
    warm_up,
)

BEST = [t.name for t in TYPES if t.best_encoder]

# What of the default's weighted squared error is left at most, on the demo model's weights: without an
# importance matrix and with one.
LEFT = {
    "q4_0": (0.91, 0.97),
    "q4_1": (0.83, 0.96),
    "q5_0": (0.90, 0.97),
    "q5_1": (0.85, 0.97),
    "q8_0": (0.87, 0.78),
    "q2_K": (0.78, 0.92),
    "q3_K": (0.91, 0.98),
    "q4_K": (0.95, 0.95),
    "q5_K": (0.89, 0.88),
    "q6_K": (0.88, 0.87),
    "iq4_nl": (0.94, 0.94),
    "iq4_xs": (0.93, 0.93),
    "iq3_s": (0.62, 0.68),
    "iq3_xxs": (0.70, 0.69),
    "iq2_s": (0.83, 0.77),
    "iq2_xs": (0.95, 0.81),
    "iq2_xxs": (0.95, 0.71),
    "iq1_m": (0.55, 0.94),
    "iq1_s": (0.91, 0.92),
    "mxfp4": (0.95, 0.95),
    "nvfp4": (0.75, 0.65),
    "tq1_0": (0.35, 0.35),
    "tq2_0": (0.35, 0.35),
    "q1_0": (1.00, 0.995),
    "q2_0": (0.30, 0.27),
}

# Nine superblocks a row: tiles begin and end anywhere in a row.
COLUMNS = 9 * 256
ROWS = 2

with_and_without_importance = pytest.mark.parametrize("guided", [False, True], ids=["plain", "imatrix"])
each_type = pytest.mark.parametrize("type_name", BEST)


def encode(
    rows: NDArray[np.float32], type_name: str, importance: NDArray[np.float32] | None, effort: str = "best"
) -> NDArray[np.uint8]:
    ggml_type = parse_type(type_name)
    if importance is None and ggml_type.requires_imatrix:
        importance = np.ones(rows.shape[1], np.float32)
    out = np.full((len(rows), ggml_type.row_bytes(rows.shape[1])), 0xA5, np.uint8)
    encode_into(rows, ggml_type, importance, out, effort)
    return out


def squared_errors(
    rows: NDArray[np.float32],
    blocks: NDArray[np.uint8],
    type_name: str,
    importance: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """The weighted squared error of each block."""
    size = parse_type(type_name).block_size
    with np.errstate(all="ignore"):
        errors = (dequantize(blocks, type_name).astype(np.float64) - rows) ** 2
        if importance is not None:
            errors *= importance
        return errors.reshape(-1, size).sum(axis=1)


def demo_model_weights() -> NDArray[np.float32]:
    """The first 16 rows of each matrix of 256 columns in the demo model."""
    checkpoint = (Path(__file__).parents[2] / "ggplan" / "demo_model" / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(checkpoint[:8], "little")
    rows = []
    for entry in json.loads(checkpoint[8:start]).values():
        if entry.get("dtype") == "BF16" and entry["shape"][1:] == [256]:
            halves = np.frombuffer(checkpoint, np.uint16, 16 * 256, start + entry["data_offsets"][0])
            rows.append((halves.astype(np.uint32) << 16).view(np.float32).reshape(16, 256))
    return np.concatenate(rows)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One kind of weights, and the blocks that both efforts make of them."""

    kind: str
    rows: NDArray[np.float32]
    importance: NDArray[np.float32] | None
    default: NDArray[np.uint8]
    best: NDArray[np.uint8]


@cache
def of_every_kind(type_name: str, guided: bool) -> list[Encoded]:
    """Searching takes most of the time: what several tests look at is made once."""
    found = []
    for number, (kind, make) in enumerate(DISTRIBUTIONS.items()):
        rng = np.random.default_rng([2, number])
        rows = make(rng, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
        importance = importances(rng, COLUMNS) if guided else None
        default = encode(rows, type_name, importance, "default")
        found.append(Encoded(kind, rows, importance, default, encode(rows, type_name, importance)))
    return found


@each_type
@with_and_without_importance
def test_no_block_is_worse_whatever_the_weights(type_name: str, guided: bool) -> None:
    """Errors that float64 cannot hold, where a default's scale is infinite, count as equal."""
    for made in of_every_kind(type_name, guided):
        before = squared_errors(made.rows, made.default, type_name, made.importance)
        after = squared_errors(made.rows, made.best, type_name, made.importance)
        worse = ~(after <= before) & np.isfinite(before)
        assert not worse.any(), f"{made.kind}: block {worse.argmax()}"


@each_type
@with_and_without_importance
def test_real_weights_lose_less(type_name: str, guided: bool) -> None:
    rows = demo_model_weights()
    importance = importances(np.random.default_rng(1), 256) if guided else None
    default = encode(rows, type_name, importance, "default")
    best = encode(rows, type_name, importance)
    before = squared_errors(rows, default, type_name, importance)
    after = squared_errors(rows, best, type_name, importance)
    assert (after <= before).all()
    assert after.sum() <= LEFT[type_name][guided] * before.sum()


@each_type
@with_and_without_importance
def test_ggml_reads_what_ggplan_reads(type_name: str, guided: bool) -> None:
    for made in of_every_kind(type_name, guided):
        with np.errstate(all="ignore"):
            ours = dequantize(made.best, type_name)
        ggmls = ggml_reference.dequantize(made.best, type_name)
        assert np.array_equal(ours, ggmls, equal_nan=True), made.kind


@each_type
def test_scales_stay_finite_where_the_defaults_are(type_name: str) -> None:
    for made in of_every_kind(type_name, False):
        with np.errstate(all="ignore"):
            default, best = (dequantize(blocks, type_name) for blocks in (made.default, made.best))
        assert not (np.isfinite(default) & ~np.isfinite(best)).any(), made.kind


@each_type
@with_and_without_importance
def test_a_block_depends_on_nothing_around_it(type_name: str, guided: bool) -> None:
    """Whole, row by row, and from other memory: the same bytes."""
    rng = np.random.default_rng(5)
    rows = DISTRIBUTIONS["like a model"](rng, 19 * 768).reshape(19, 768)
    importance = importances(rng, 768) if guided else None
    whole = encode(rows, type_name, importance)
    assert (whole == encode(rows, type_name, importance)).all()
    for cut in (1, 6, 17):
        parts = [encode(rows[:cut], type_name, importance), encode(rows[cut:], type_name, importance)]
        assert (whole == np.concatenate(parts)).all()
    shifted = np.empty(rows.size + 1, np.float32)[1:].reshape(rows.shape)
    shifted[:] = rows
    assert (whole == encode(shifted, type_name, importance)).all()


@each_type
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 1e30])
def test_the_same_importance_everywhere(type_name: str, value: float) -> None:
    rows = DISTRIBUTIONS["magnitude by sub-block"](np.random.default_rng(3), 20 * 768).reshape(20, 768)
    importance = np.full(768, value, np.float32)
    before = squared_errors(rows, encode(rows, type_name, importance, "default"), type_name, importance)
    after = squared_errors(rows, encode(rows, type_name, importance), type_name, importance)
    assert (after <= before).all()
    assert (after.sum() < before.sum()) == (value > 0 and type_name != "q1_0")  # a mean is a mean


def test_without_importance_blocks_are_the_defaults() -> None:
    rows = DISTRIBUTIONS["normal"](np.random.default_rng(6), 8 * 512).reshape(8, 512)
    for type_name in BEST:
        nothing = np.zeros(512, np.float32)
        assert (encode(rows, type_name, nothing) == encode(rows, type_name, nothing, "default")).all()


def test_ternary_weights_come_back_as_they_were() -> None:
    rng = np.random.default_rng(13)
    rows = (rng.integers(-1, 2, (9, 1024)) * (rng.integers(1, 100, (9, 1)) / 64)).astype(np.float32)
    rows[:, ::64] = rows.max(axis=1, keepdims=True)
    for type_name in ("tq1_0", "tq2_0", "q2_0"):
        assert (dequantize(encode(rows, type_name, None), type_name) == rows).all()


def test_weights_after_a_sub_block_of_zeros_are_read_as_meant() -> None:
    """ggml's iq3_s moves them up."""
    rows = DISTRIBUTIONS["normal"](np.random.default_rng(14), 20 * 512).reshape(20, 512)
    rows.reshape(-1, 8, 32)[:, 2] = 0
    energy = float((rows * rows).sum())
    assert squared_errors(rows, encode(rows, "iq3_s", None, "default"), "iq3_s", None).sum() > 0.5 * energy
    assert squared_errors(rows, encode(rows, "iq3_s", None), "iq3_s", None).sum() < 0.05 * energy


def test_an_effort_is_one_of_two() -> None:
    with pytest.raises(QuantizationError, match="no effort 'bset'") as raised:
        quantize(np.ones((1, 32)), "q8_0", effort="bset")
    assert raised.value.hint == "choose from default, best"
    with pytest.raises(QuantizationError, match="no effort"):
        quantize_error(np.ones((1, 32)), "q8_0", effort="")


def test_types_without_a_search_have_the_default_bytes() -> None:
    rows = DISTRIBUTIONS["normal"](np.random.default_rng(7), 512).reshape(1, 512)
    for type_name in ("f32", "f16", "bf16"):
        assert efforts_of(parse_type(type_name)) == ("default",)
        assert (quantize(rows, type_name, effort="best") == quantize(rows, type_name)).all()


def test_the_errors_that_quantize_error_reports_are_those_of_the_effort() -> None:
    rows = DISTRIBUTIONS["normal"](np.random.default_rng(8), 2048).reshape(4, 512)
    importance = importances(np.random.default_rng(9), 512)
    default, best = (quantize_error(rows, "q4_K", importance, effort=effort) for effort in EFFORTS)
    assert default.weighted is not None
    assert best.weighted is not None
    assert best.weighted < default.weighted


@each_type
def test_nothing_and_little(type_name: str) -> None:
    ggml_type = parse_type(type_name)
    assert efforts_of(ggml_type) == EFFORTS
    assert ggml_type.encodable
    warm_up([ggml_type], with_imatrix=True, effort="best")
    for shape in ((0, 256), (2, 0)):
        blocks = quantize(np.empty(shape), type_name, np.ones(shape[1]), effort="best")
        assert blocks.shape == (shape[0], ggml_type.row_bytes(shape[1]))


def test_a_machine_of_another_width_gives_the_same_bytes() -> None:
    program = "from test_best import digest; print(digest())"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NUMBA_CPU_NAME": "generic", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.strip() == digest(), finished.stderr


def digest() -> str:
    """Of what some types make of odd weights."""
    total = hashlib.sha256()
    for type_name in ("q3_K", "iq3_xxs"):
        for number, make in enumerate(DISTRIBUTIONS.values()):
            rng = np.random.default_rng([10, number])
            rows = make(rng, COLUMNS).reshape(1, COLUMNS)
            total.update(encode(rows, type_name, importances(rng, COLUMNS)).tobytes())
    return total.hexdigest()
