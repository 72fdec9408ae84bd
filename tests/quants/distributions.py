"""Kinds of weights, from what checkpoints hold to what only a hostile one would, for comparing encoders.

Each maker takes a random generator and a number of weights, a multiple of 256, and returns finite float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Generator = np.random.Generator
Weights = NDArray[np.float32]
Maker = Callable[[Generator, int], Weights]

f32 = np.float32


def normal(rng: Generator, count: int) -> Weights:
    return rng.standard_normal(count, np.float32)


def bf16(weights: Weights) -> Weights:
    """Round to the nearest bfloat16."""
    bits = weights.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def like_a_model(rng: Generator, count: int) -> Weights:
    """Heavy tails, superblocks of different size, here and there a block of zeros, rounded to bf16."""
    weights = 0.02 * rng.standard_t(5, count) * np.exp(0.3 * rng.standard_normal(count // 256)).repeat(256)
    weights.reshape(-1, 32)[rng.random(count // 32) < 0.002] = 0
    return bf16(weights.astype(f32))


def scaled(scale: float, base: Maker = normal) -> Maker:
    return lambda rng, count: base(rng, count) * f32(scale)


def shifted(offset: float, spread: float) -> Maker:
    return lambda rng, count: f32(offset) + normal(rng, count) * f32(spread)


def magnitudes(low: float, high: float, run: int) -> Maker:
    """Each run of weights has its own power of ten."""

    def make(rng: Generator, count: int) -> Weights:
        powers = 10 ** rng.uniform(low, high, count // run)
        return (rng.standard_normal(count) * powers.repeat(run)).astype(f32)

    return make


def sparse(share_of_zeros: float, run: int = 1, base: Maker = normal) -> Maker:
    """Runs of zeros among other weights."""

    def make(rng: Generator, count: int) -> Weights:
        weights = base(rng, count)
        weights.reshape(-1, run)[rng.random(count // run) < share_of_zeros] = 0
        return weights

    return make


def one_in(run: int) -> Maker:
    """All zeros but one weight in each run."""

    def make(rng: Generator, count: int) -> Weights:
        weights = np.zeros((count // run, run), f32)
        weights[np.arange(count // run), rng.integers(0, run, count // run)] = normal(rng, count // run)
        return weights.reshape(-1)

    return make


def constant_runs(rng: Generator, count: int) -> Weights:
    weights = normal(rng, count)
    runs = weights.reshape(-1, 16)
    chosen = rng.random(len(runs)) < 0.5
    runs[chosen] = normal(rng, int(chosen.sum()))[:, None]
    return weights


def outliers(rng: Generator, count: int) -> Weights:
    weights = normal(rng, count) * f32(0.01)
    weights[rng.integers(0, count, count // 300)] *= f32(1000)
    return weights


def negative_zeros(rng: Generator, count: int) -> Weights:
    return np.where(rng.random(count) < 0.5, f32(-0.0), f32(0.0))


def random_bits(lowest_exponent: int, highest_exponent: int) -> Maker:
    """Any sign and fraction, and any exponent from the lowest (0: denormal) to below the highest."""

    def make(rng: Generator, count: int) -> Weights:
        bits = rng.integers(0, 2**32, count, dtype=np.uint32) & np.uint32(0x807FFFFF)
        exponents = rng.integers(lowest_exponent, highest_exponent, count, dtype=np.uint32)
        return (bits | (exponents << np.uint32(23))).view(np.float32)

    return make


def random_bits_by_run(rng: Generator, count: int) -> Weights:
    """Runs of 16 random weights of one exponent, which may be any."""
    bits = rng.integers(0, 2**32, count, dtype=np.uint32) & np.uint32(0x807FFFFF)
    exponents = rng.integers(0, 255, count // 16, dtype=np.uint32).repeat(16)
    return (bits | (exponents << np.uint32(23))).view(np.float32)


def of_values(*values: float) -> Maker:
    return lambda rng, count: rng.choice(np.array(values, f32), count)


def neighbours(rng: Generator, count: int) -> Weights:
    """Runs of 32 weights that differ in their last few bits only."""
    start = normal(rng, count // 32).view(np.int32).repeat(32)
    return (start + rng.integers(0, 6, count, dtype=np.int32)).view(np.float32)


def ramp(rng: Generator, count: int) -> Weights:
    slopes = rng.standard_normal(count // 256).astype(f32)
    return np.outer(slopes, np.linspace(-1, 1, 256, dtype=f32)).reshape(-1)


DISTRIBUTIONS: dict[str, Maker] = {
    "normal": scaled(0.02),
    "like a model": like_a_model,
    "bf16": lambda rng, count: bf16(normal(rng, count)),
    "student t, 2": lambda rng, count: rng.standard_t(2, count).astype(f32),
    "cauchy": lambda rng, count: rng.standard_cauchy(count).clip(-1e6, 1e6).astype(f32),
    "laplace": lambda rng, count: rng.laplace(size=count).astype(f32),
    "uniform, positive": lambda rng, count: rng.random(count, f32),
    "uniform, negative": lambda rng, count: -rng.random(count, f32),
    "about 1": shifted(1, 0.01),
    "about -1": shifted(-1, 0.01),
    "very near 1": shifted(1, 1e-6),
    "very near -1": shifted(-1, 1e-6),
    "near -1, tiny": scaled(1e-16, shifted(-1, 1e-5)),
    "neighbours": neighbours,
    "negative neighbours": lambda rng, count: -np.abs(neighbours(rng, count)),
    "1e-6": scaled(1e-6),
    "1e-9": scaled(1e-9),
    "1e-12": scaled(1e-12),
    "1e-15": scaled(1e-15),
    "1e-20": scaled(1e-20),
    "1e-30": scaled(1e-30),
    "1e-37": scaled(1e-37),
    "denormal": scaled(1e-41),
    "smallest denormals": scaled(1e-44),
    "1e4": scaled(1e4),
    "1e10": scaled(1e10),
    "1e18": scaled(1e18),
    "1e25": scaled(1e25),
    "1e37": scaled(1e37),
    "largest": lambda rng, count: rng.uniform(-3.4e38, 3.4e38, count).astype(f32),
    "magnitude by superblock": magnitudes(-12, 6, 256),
    "magnitude by sub-block": magnitudes(-6, 2, 16),
    "wide magnitude by sub-block": magnitudes(-44, 37, 16),
    "magnitude by weight": magnitudes(-8, 4, 1),
    "wide magnitude by weight": magnitudes(-44, 37, 1),
    "zero blocks": sparse(0.3, 32),
    "zero superblocks": sparse(0.3, 256),
    "half zeros": sparse(0.5),
    "mostly zeros": sparse(0.95),
    "mostly zeros, tiny": sparse(0.9, base=magnitudes(-20, -10, 16)),
    "one in 256": one_in(256),
    "one in 16": one_in(16),
    "constant runs": constant_runs,
    "outliers": outliers,
    "plus or minus": of_values(-0.5, 0.5),
    "ternary": of_values(-0.37, 0, 0.37),
    "int8 grid": lambda rng, count: (rng.integers(-127, 128, count) * (0.05 / 127)).astype(f32),
    "fp4 grid": of_values(-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6),
    "zero": of_values(0),
    "negative zeros": negative_zeros,
    "0.7": of_values(0.7),
    "-0.7": of_values(-0.7),
    "ramp": ramp,
    "random bits": random_bits(0, 255),
    "random bits, small": random_bits(0, 60),
    "random bits, middle": random_bits(90, 140),
    "random bits by run": random_bits_by_run,
}


def importances(rng: Generator, columns: int) -> Weights:
    """Importances as real matrices have them: some large, some zero."""
    values = np.exp(2 * rng.standard_normal(columns)).astype(f32)
    values[rng.random(columns) < 0.02] = 0
    values.reshape(-1, 16)[rng.random(columns // 16) < 0.03] = 0
    return values
