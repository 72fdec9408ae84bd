"""Encoding with second moments: less error of products, never more than best effort's, the same bits."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ggplan import dequantize, parse_type, quantize
from ggplan.errors import QuantizationError
from ggplan.quants.feedback import ACT_ORDER, METHODS, encode_with_moments, takes_moments
from ggplan.quants.formats.grid_descent import GRID_TYPES
from ggplan.quants.formats.ladders import LADDERS
from ggplan.quants.linear_algebra import Moments, regularized
from ggplan.quants.prepared import prepare
from ggplan.quants.revisions import FEEDBACK_REVISION

KEPT = Path(__file__).parent.parent / "data" / "feedback_revision.json"
TOKENS, ROWS = 1200, 19
MANY = 40_000  # tokens that the moments are said to be of


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers near a normal distribution: sums of pseudo-random bytes, the same with any NumPy."""
    size = int(np.prod(shape))
    raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * size), np.uint8)
    return (raw.reshape(-1, 4).sum(axis=1, dtype=np.int64) - 510).reshape(shape)


@cache
def sample(n: int) -> tuple[np.ndarray, Moments]:
    """Weights, and the moments of inputs whose neighbouring columns go together, one of them far larger.

    All sums are of whole numbers, so they are the same in any order.
    """
    weights = (numbers("weights", (ROWS, n)) / np.float32(8192)).astype(np.float32)
    x = numbers("inputs", (TOKENS, n + 40)) >> 3
    x = sum(x[:, k : k + n] for k in range(0, 40, 4))
    x[:, 5] *= 8
    matrix = ((x.T @ x) / TOKENS / 4096).astype(np.float32)
    return weights, Moments(matrix, MANY)


def error_of(weights: np.ndarray, blocks: np.ndarray, name: str, moments: Moments) -> np.ndarray:
    """(w - y) H (w - y)^T of each row, in float64."""
    residues = (weights - dequantize(blocks, name)).astype(np.float64)
    return ((residues @ regularized(moments).astype(np.float64)) * residues).sum(axis=1)


def encoded(weights: np.ndarray, name: str, moments: object, **options: object) -> np.ndarray:
    """The blocks of rows."""
    out = np.empty((len(weights), parse_type(name).row_bytes(weights.shape[1])), np.uint8)
    encode_with_moments(np.ascontiguousarray(weights), parse_type(name), moments, out, **options)
    return out


def columns_of(name: str) -> int:
    """A whole panel and a part of one, as far as the type's blocks allow."""
    return 512 if parse_type(name).block_size == 256 else 288


# Rows of over 1024 columns are searched another way: a type of each kind of search for scales.
WIDE = 1280
WIDE_TYPES = ("q2_K", "q4_K", "q6_K", "iq4_xs", "q5_0", "iq4_nl", "iq3_xxs")


@pytest.mark.parametrize(
    ("name", "n"), [*((name, columns_of(name)) for name in LADDERS), *((name, WIDE) for name in WIDE_TYPES)]
)
def test_no_row_has_more_error_than_best_effort_leaves(name: str, n: int) -> None:
    weights, moments = sample(n)
    best = quantize(weights, name, moments.matrix.diagonal(), effort="best")
    before = error_of(weights, best, name, moments)
    found = encoded(weights, name, moments)
    after = error_of(weights, found, name, moments)
    assert (after <= before * (1 + 1e-6)).all()
    assert after.sum() < 0.8 * before.sum()
    # Rows do not know of each other, nor of how the moments were prepared.
    assert np.array_equal(encoded(weights[5:9], name, prepare(moments)), found[5:9])


@pytest.mark.parametrize("name", [*LADDERS, *GRID_TYPES])
def test_threads_and_splits_of_rows_make_no_difference(name: str) -> None:
    weights, moments = sample(columns_of(name))
    rows = np.concatenate((weights, weights[::-1] * np.float32(0.5), -weights[3:7]))
    whole = encoded(rows, name, prepare(moments))
    for threads, step in ((2, 17), (4, 5)):
        prepared = prepare(moments, threads=threads)
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(
                lambda start, prepared=prepared, step=step: encoded(
                    rows[start : start + step], name, prepared
                ),
                range(0, len(rows), step),
            )
            assert np.array_equal(np.concatenate(list(parts)), whole)


@pytest.mark.parametrize("name", ["q4_K", "q3_K", "q4_1", "iq4_nl"])
def test_act_order_rounds_the_most_important_columns_first(name: str) -> None:
    """As written out here in float64, with the scales of best effort."""
    weights, moments = sample(columns_of(name))
    type_, ladder = parse_type(name), LADDERS[name]
    found = encoded(weights, name, moments, method=ACT_ORDER)
    best = quantize(weights, name, moments.matrix.diagonal(), effort="best")
    numbers = ladder.numbers(best.reshape(-1, type_.block_bytes))
    n, rules = weights.shape[1], ladder.rules
    scale, low = (
        np.repeat(unit[:, None] * integers, rules.sub, axis=1).reshape(-1, n).astype(np.float64)
        for unit, integers in ((numbers.d, numbers.scales), (numbers.dmin, numbers.mins))
    )
    hessian = regularized(moments).astype(np.float64)
    order = np.argsort(-hessian.diagonal(), kind="stable")
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T  # GPTQ's own recursion, by way of the inverse
    left = weights[:, order].astype(np.float64)
    levels = np.unique(ladder.level_of[: 16 if rules.uneven else 256]).astype(np.float64)
    levels = levels[(levels >= rules.lowest) & (levels <= rules.highest)]
    asked = np.empty_like(left)
    for j, column in enumerate(order):
        s, m = scale[:, column], low[:, column]
        nearest = levels[np.abs((left[:, j, None] + m[:, None]) - s[:, None] * levels).argmin(axis=1)]
        asked[:, column] = s * nearest - m
        left[:, j:] -= ((left[:, j] - asked[:, column]) / upper[j, j])[:, None] * upper[j, j:]
    residues = weights - asked
    wanted = ((residues @ hessian) * residues).sum(axis=1)
    taken = ~(found == best).all(axis=1)  # the others were no better
    assert taken.mean() > 0.8
    assert error_of(weights, found, name, moments)[taken] == pytest.approx(wanted[taken], rel=0.02)
    same = (dequantize(found, name)[taken] == asked[taken].astype(np.float32)).mean()
    assert same > 0.97  # a code that falls the other way moves some after it


def test_act_order_of_uneven_columns_beats_the_order_they_have() -> None:
    weights, moments = sample(512)
    importance = 4.0 ** (numbers("uneven", (512,)) / 148)
    matrix = moments.matrix * np.sqrt(importance) * np.sqrt(importance)[:, None]
    uneven = Moments(matrix.astype(np.float32), MANY)
    plain, ordered = (
        error_of(weights, encoded(weights, "q4_K", uneven, method=method), "q4_K", uneven).sum()
        for method in ("gptq", ACT_ORDER)
    )
    assert ordered < 0.9 * plain


def test_moments_that_are_prepared_for_another_order_are_refused() -> None:
    weights, moments = sample(512)
    for method, by_importance in (("gptq", True), (ACT_ORDER, False)):
        with pytest.raises(ValueError, match="not prepared for"):
            encoded(weights, "q4_K", prepare(moments, by_importance=by_importance), method=method)
    grid = prepare(moments)  # points of a grid are of neighbouring columns
    assert np.array_equal(
        encoded(weights, "iq3_xxs", grid, method=ACT_ORDER), encoded(weights, "iq3_xxs", grid, method="gptq")
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["q4_K", "q5_0"])
def test_methods(name: str, method: str) -> None:
    weights, moments = sample(columns_of(name))
    best = quantize(weights, name, moments.matrix.diagonal(), effort="best")
    before, after = (
        error_of(weights, blocks, name, moments)
        for blocks in (best, encoded(weights, name, moments, method=method))
    )
    assert (after <= before * (1 + 1e-6)).all()
    assert after.sum() < 0.9 * before.sum()


@pytest.mark.parametrize("name", LADDERS)
def test_blocks_are_put_together_as_they_were_taken_apart(name: str) -> None:
    ladder, type_ = LADDERS[name], parse_type(name)
    weights, _ = sample(columns_of(name))
    blocks = quantize(weights, name).reshape(-1, type_.block_bytes)
    again = np.empty_like(blocks)
    ladder.write(ladder.numbers(blocks), again)
    assert np.array_equal(again, blocks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["q4_1", "q5_1", "q4_K"])
def test_rows_far_from_zero(name: str, method: str) -> None:
    """Where float32 hardly holds what blocks leave of a row, best effort's are kept."""
    weights, moments = sample(256)
    for rows in (8 + weights * np.float32(2e-4), 1024 + np.rint(weights * 99) / np.float32(2**13)):
        rows = rows.astype(np.float32)
        best = quantize(rows, name, moments.matrix.diagonal(), effort="best")
        found = encoded(rows, name, moments, method=method)
        before, after = (error_of(rows, blocks, name, moments) for blocks in (best, found))
        assert (after <= before * (1 + 1e-6)).all()


def test_inputs_that_say_little() -> None:
    weights, moments = sample(512)
    weights = weights.copy()
    weights[3] = 0
    matrix = moments.matrix.copy()
    matrix[40:60] = 0
    matrix[:, 40:60] = 0
    for given in (Moments(matrix, 9), Moments(np.zeros_like(matrix), 0)):
        best = quantize(weights, "q2_K", prepare(given).mean_squares, effort="best")
        found = encoded(weights, "q2_K", given)
        before, after = (error_of(weights, b, "q2_K", given) for b in (best, found))
        assert (after <= before * (1 + 1e-6)).all()
        assert not dequantize(found[3], "q2_K").any()


def test_what_feedback_writes_changes_only_with_its_revision() -> None:
    found = {}
    names = ("q2_K", "q3_K", "q4_K", "q5_1", "iq4_xs", "iq2_xs", "iq3_s")
    for name, n in [*((name, columns_of(name)) for name in names), *((name, WIDE) for name in WIDE_TYPES)]:
        weights, moments = sample(n)
        found[f"{name} {n}"] = hashlib.sha256(encoded(weights, name, moments)).hexdigest()
    weights, moments = sample(512)
    found[f"q4_K {ACT_ORDER}"] = hashlib.sha256(
        encoded(weights, "q4_K", moments, method=ACT_ORDER)
    ).hexdigest()
    if os.environ.get("GGPLAN_RENEW"):
        KEPT.write_text(json.dumps({"revision": FEEDBACK_REVISION, "sha256": found}, indent=1) + "\n")
    kept = json.loads(KEPT.read_text())
    assert kept["revision"] == FEEDBACK_REVISION
    assert found == kept["sha256"], (
        "raise FEEDBACK_REVISION, then GGPLAN_RENEW=1 pytest " + Path(__file__).name
    )


def test_quantize_takes_a_hessian() -> None:
    torch = pytest.importorskip("torch") if os.environ.get("GGPLAN_WITH_TORCH") else None
    weights, moments = sample(512)
    expected = encoded(weights, "q4_K", moments)
    assert np.array_equal(
        quantize(weights, "q4_K", hessian=moments.matrix.astype(np.float64), tokens=MANY), expected
    )
    if torch is not None:
        given = torch.from_numpy(moments.matrix)
        assert np.array_equal(
            quantize(torch.from_numpy(weights), "q4_K", hessian=given, tokens=MANY), expected
        )
    stack = quantize(weights[:18].reshape(2, 9, 512), "q4_K", hessian=moments.matrix, tokens=MANY)
    assert np.array_equal(stack.reshape(18, -1), expected[:18])
    assert takes_moments(parse_type("q4_K"))
    assert not takes_moments(parse_type("bf16"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hessian": np.eye(256)}, "shape"),
        ({"hessian": np.triu(np.ones((512, 512)))}, "not symmetric"),
        ({"hessian": -np.eye(512)}, "negative"),
        ({"hessian": np.full((512, 512), np.nan)}, "NaN"),
        ({"hessian": np.eye(512, dtype=complex)}, "float32 cannot take"),
        ({"hessian": np.eye(512), "imatrix": np.ones(512)}, "imatrix"),
        ({"hessian": np.eye(512), "effort": "best"}, "feedback"),
        ({"hessian": np.eye(512), "tokens": 0}, "tokens"),
        ({"hessian": np.eye(512), "lam": 0.0}, "lam"),
        ({"hessian": np.eye(512), "method": "magic"}, "method"),
        ({"hessian": np.eye(512), "type": "tq2_0"}, "no search"),
        ({"effort": "feedback"}, "hessian="),
        # An impossible correlation: no mean of squares is like this.
        ({"hessian": np.eye(512) + 9 * np.fliplr(np.eye(512))}, "positive"),
    ],
)
def test_what_is_no_hessian_is_refused(change: dict[str, object], told: str) -> None:
    weights, _ = sample(512)
    with pytest.raises(QuantizationError) as caught:
        quantize(weights, **{"type": "q4_K", **change})
    assert told in str(caught.value) or told in (caught.value.hint or "")
