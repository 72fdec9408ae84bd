"""ggml's searches for the scales of sub-blocks, in lanes: each lane has a sub-block of its own.

The levels of a sub-block are small whole numbers. A trial scale gives a set of levels, and for given levels
the best scale (and minimum) follows in closed form from a few weighted sums; the set with the least weighted
error wins. All sums run in the order of the weights, as in llama.cpp's `ggml/src/ggml-quants.c`:

    affine_search       make_qkx2_quants, make_qkx3_quants    value = scale * level - offset, 0 <= level
    symmetric_search    make_qx_quants                        value = scale * level, -n <= level < n
    quantize_scales     make_qp_quants                        value = scale * level, 0 <= level

The two `qkx` differ in how they treat quotients beyond 2^22. In `make_qkx3_quants`, ggml 0.26 clamps them
before it rounds; ggml 0.25 wraps them as `nearest_int` does everywhere else, and so do the lanes here. Such a
quotient comes of a minimum that has risen to the largest weight, and its fit was never found to win: both
give the same bytes on 12.8 million weights of 49 kinds, some made to provoke it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.kernels import inline
from ggplan.quants.memory import load, store
from ggplan.quants.searches.superblock import SHIFT, nearest, shifted_nearest
from ggplan.quants.vector import (
    WIDTH,
    absolute,
    all_lanes,
    any_lane,
    float_of,
    maximum,
    minimum,
    rounded,
    select,
    splat,
)

# A sub-block whose largest weight is below this is taken for zero (GROUP_MAX_EPS).
NOTHING = np.float32(1e-15)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TENTH = np.float32(0.1)
_INFINITY = np.float32(np.inf)
_REFINEMENTS = 5
# Up to here the nearest whole number is what ggml's rounding gives; far beyond, it wraps around.
_FAR = np.float32(1 << 21)


@inline
def _between(one_end: Any, other_end: Any, lowest: Any, highest: Any) -> Any:
    """Whether both ends are within the limits, in all lanes; a nan is not."""
    return all_lanes(
        (one_end >= lowest) & (one_end <= highest) & (other_end >= lowest) & (other_end <= highest)
    )


@inline
def affine_search(
    values: Any,
    start: Any,
    size: Any,
    weight: Any,
    level: Any,
    highest: Any,
    first: Any,
    step: Any,
    count: Any,
    absolute_error: Any,
) -> Any:
    """Fit `size` values by levels from 0 to `highest` and a minimum that is not above zero.

    Parameters
    ----------
    values, start
        Value i stands at `values[start + WIDTH * i]`.
    weight
        The weight of its error, at `weight[WIDTH * i]`.
    level
        Scratch memory, as large as `weight`.
    highest
        float32.
    first, step, count
        Trial k divides the range of the values by first + step * k + highest; float32, float32, int.
    absolute_error
        Whether to weigh the error's absolute value, not its square.

    Returns
    -------
    tuple
        The scale and the offset (the minimum negated); the kept scale and offset, with which
        (value + offset) * scale gives the levels again; the sum of the weights.
    """
    x = load(values, start, WIDTH)
    w = load(weight, 0, WIDTH)
    smallest = x
    largest = x
    sum_w = w
    sum_x = w * x
    for i in range(1, size):
        x = load(values, start + WIDTH * i, WIDTH)
        w = load(weight, WIDTH * i, WIDTH)
        smallest = minimum(x, smallest)
        largest = maximum(x, largest)
        sum_w = sum_w + w
        sum_x = sum_x + w * x
    low = select(smallest > _ZERO, _ZERO, smallest)
    flat = largest <= low
    flat_low = low

    floor = SHIFT
    ceiling = SHIFT + highest
    inverse = highest / (largest - low)
    scale = _ONE / inverse
    kept_inverse = inverse
    kept_low = low
    least = splat(_ZERO, WIDTH)
    for i in range(size):
        x = load(values, start + WIDTH * i, WIDTH)
        q = shifted_nearest(inverse * (x - low), floor, ceiling) - SHIFT
        error = scale * q + low - x
        least = least + load(weight, WIDTH * i, WIDTH) * (
            absolute(error) if absolute_error else error * error
        )

    for k in range(count):
        trial = np.float32(first + np.float32(step * np.float32(k))) + highest
        inverse = trial / (largest - low)
        # Rounding is monotone, so the ends tell what all values need: usually neither mask nor clamp.
        one_end = inverse * (smallest - low)
        other_end = inverse * (largest - low)
        all_near = _between(one_end, other_end, -_FAR, _FAR)
        all_inside = _between(rounded(one_end), rounded(other_end), _ZERO, highest)
        sum_q = splat(_ZERO, WIDTH)
        sum_q2 = splat(_ZERO, WIDTH)
        sum_xq = splat(_ZERO, WIDTH)
        for i in range(size):
            x = load(values, start + WIDTH * i, WIDTH)
            value = inverse * (x - low)
            if all_inside:
                q = rounded(value)
            elif all_near:
                q = maximum(minimum(rounded(value), highest), _ZERO)
            else:
                q = shifted_nearest(value, floor, ceiling) - SHIFT
            store(level, WIDTH * i, q)
            wq = load(weight, WIDTH * i, WIDTH) * q
            sum_q = sum_q + wq
            sum_q2 = sum_q2 + wq * q
            sum_xq = sum_xq + wq * x
        determinant = sum_w * sum_q2 - sum_q * sum_q
        this_scale = (sum_w * sum_xq - sum_x * sum_q) / determinant
        this_low = (sum_q2 * sum_x - sum_q * sum_xq) / determinant
        above = this_low > _ZERO
        if any_lane(above):
            this_low = select(above, _ZERO, this_low)
            this_scale = select(above, sum_xq / sum_q2, this_scale)
        total = splat(_ZERO, WIDTH)
        for i in range(size):
            x = load(values, start + WIDTH * i, WIDTH)
            error = this_scale * load(level, WIDTH * i, WIDTH) + this_low - x
            total = total + load(weight, WIDTH * i, WIDTH) * (
                absolute(error) if absolute_error else error * error
            )
        better = (determinant > _ZERO) & (total < least)
        least = select(better, total, least)
        kept_inverse = select(better, inverse, kept_inverse)
        kept_low = select(better, low, kept_low)
        scale = select(better, this_scale, scale)
        low = select(better, this_low, low)
    # One weight repeated needs no levels.
    scale = select(flat, _ZERO, scale)
    low = select(flat, flat_low, low)
    kept_inverse = select(flat, _ZERO, kept_inverse)
    kept_low = select(flat, flat_low, kept_low)
    return scale, -low, kept_inverse, -kept_low, sum_w


@inline
def find_extreme(values: Any, start: Any, size: Any, width: Any) -> Any:
    """The value of the largest magnitude, the first of several, and its magnitude; nans do not count."""
    extreme = splat(_ZERO, width)
    magnitude = splat(_ZERO, width)
    for i in range(size):
        x = load(values, start + width * i, width)
        larger = absolute(x) > magnitude
        magnitude = select(larger, absolute(x), magnitude)
        extreme = select(larger, x, extreme)
    return extreme, magnitude


@inline
def symmetric_search(
    values: Any, start: Any, size: Any, width: Any, weight: Any, scratch: Any, highest: Any, finite: Any
) -> Any:
    """Fit `size` values by levels from -highest to highest - 1, the largest value near level -highest.

    Parameters
    ----------
    values, start, size, width
        Value i stands at `values[start + width * i]`, in `width` (a constant) lanes.
    weight
        The weight of its error, at `weight[width * i]`.
    scratch
        Memory for `size * width` float32.
    highest
        float32.
    finite
        Whether no value can be infinite or a nan (a constant). Then no quotient is farther from zero than the
        extreme's, and rounding needs no mask.

    Returns
    -------
    tuple
        The scale; the kept scale and offset, with which (value + offset) * scale gives the levels again.
    """
    extreme, magnitude = find_extreme(values, start, size, width)
    for i in range(size):
        x = load(values, start + width * i, width)
        store(scratch, width * i, load(weight, width * i, width) * x)
    nothing = magnitude < NOTHING

    floor = SHIFT - highest
    ceiling = SHIFT + (highest - _ONE)
    scale = splat(_ZERO, width)
    best = scale
    kept_scale = scale
    for trial in range(-10, 10):
        if trial == 0:
            continue  # it comes first, as number -10
        overshoots = trial > 4  # the extreme's quotient rounds to -highest - 1
        k = np.float32(0 if trial == -10 else trial)
        inverse = -(highest + np.float32(_TENTH * k)) / extreme
        sum_qx = splat(_ZERO, width)
        sum_q2 = splat(_ZERO, width)
        for i in range(size):
            value = inverse * load(values, start + width * i, width)
            if finite:
                q = minimum(rounded(value), highest - _ONE)
                if overshoots:
                    q = maximum(q, -highest)
            else:
                q = shifted_nearest(value, floor, ceiling) - SHIFT
            sum_qx = sum_qx + load(scratch, width * i, width) * q
            sum_q2 = sum_q2 + load(weight, width * i, width) * q * q
        if trial == -10:
            scale = select(sum_q2 != _ZERO, sum_qx / sum_q2, _ZERO)
            best = scale * sum_qx
            kept_scale = inverse
            continue
        # No branch: it would be hard to predict, and the next trial would have to wait for these sums.
        better = (sum_q2 > _ZERO) & (sum_qx * sum_qx > best * sum_q2)
        scale = select(better, sum_qx / sum_q2, scale)
        best = select(better, scale * sum_qx, best)
        kept_scale = select(better, inverse, kept_scale)
    # What is nothing has scale 0, and is kept at the lowest level, not at 0: minus infinity gives that.
    scale = select(nothing, _ZERO, scale)
    kept_scale = select(nothing, _ONE, kept_scale)
    kept_offset = select(nothing, -_INFINITY, splat(_ZERO, width))
    return scale, kept_scale, kept_offset


@inline
def scales_by_largest(values: Any, count: Any, highest: Any, levels: Any) -> Any:
    """Give the largest of `count` scales (or offsets) the level `highest`, the others their share.

    Returns the scale of the levels. ggml has the levels in bytes, where a negative one wraps: `levels` gets
    what is in those bytes.
    """
    largest = splat(_ZERO, 16)
    for j in range(count):
        largest = maximum(load(values, 16 * j, 16), largest)
    inverse = select(largest > _ZERO, highest / largest, _ZERO)
    for j in range(count):
        store(levels, 16 * j, nearest(inverse * load(values, 16 * j, 16)) & 255)
    return largest / highest


@inline
def quantize_scales(values: Any, weight: Any, count: Any, highest: Any, levels: Any) -> Any:
    """Fit `count` scales (or offsets) by levels from 0 to `highest`, each error weighing `weight`.

    Returns the scale of the levels, which `levels` gets as bytes, like `scales_by_largest`.
    """
    largest = splat(_ZERO, 16)
    for j in range(count):
        largest = maximum(largest, load(values, 16 * j, 16))
    nothing = largest < NOTHING

    top = np.int32(highest)
    inverse = highest / largest
    scale = _ONE / inverse
    least = splat(_ZERO, 16)
    for j in range(count):
        x = load(values, 16 * j, 16)
        error = x - scale * float_of(nearest(inverse * x) & 255)
        least = least + load(weight, 16 * j, 16) * error * error
    for k in range(-4, 5):
        if k == 0:
            continue
        this_inverse = (np.float32(_TENTH * np.float32(k)) + highest) / largest
        this_scale = _ONE / this_inverse
        total = splat(_ZERO, 16)
        for j in range(count):
            x = load(values, 16 * j, 16)
            error = x - this_scale * float_of(minimum(nearest(this_inverse * x), top))
            total = total + load(weight, 16 * j, 16) * error * error
        better = total < least
        least = select(better, total, least)
        inverse = select(better, this_inverse, inverse)

    sum_qx = splat(_ZERO, 16)
    sum_q2 = splat(_ZERO, 16)
    for j in range(count):
        x = load(values, 16 * j, 16)
        w = load(weight, 16 * j, 16)
        level = minimum(nearest(inverse * x), top)
        store(levels, 16 * j, level & 255)
        q = float_of(level)
        sum_qx = sum_qx + w * x * q
        sum_q2 = sum_q2 + w * q * q
    for _ in range(_REFINEMENTS):
        changed = False
        for j in range(count):
            x = load(values, 16 * j, 16)
            w = load(weight, 16 * j, 16)
            level = load(levels, 16 * j, 16)
            q = float_of(level)
            other_qx = sum_qx - w * x * q
            other_q2 = sum_q2 - w * q * q
            new_level = minimum(nearest(x * other_q2 / other_qx), top)
            q = float_of(new_level)
            new_qx = other_qx + w * x * q
            new_q2 = other_q2 + w * q * q
            better = (
                (other_qx > _ZERO)
                & (other_q2 > _ZERO)
                & (new_level != level)
                & (new_qx * new_qx * sum_q2 > sum_qx * sum_qx * new_q2)
            )
            if any_lane(better):
                changed = True
                store(levels, 16 * j, select(better, new_level & 255, level))
                sum_qx = select(better, new_qx, sum_qx)
                sum_q2 = select(better, new_q2, sum_q2)
        if not changed:
            break
    if any_lane(nothing):
        for j in range(count):
            store(levels, 16 * j, select(nothing, 0, load(levels, 16 * j, 16)))
    return select(nothing | ~(sum_q2 > _ZERO), _ZERO, sum_qx / sum_q2)
