"""What differs between ggml's searches for iq2_* and iq3_*: the rules of each type (see `grids`)."""

from __future__ import annotations

from typing import Any, NamedTuple

from ggplan.quants.searches.ggml import NOTHING

_SMALL = 1e-8
_SMALLEST = 1e-45  # only zeros are below

# Which groups are searched again under the scale found.
NEIGHBOURS, WITH_NEIGHBOURS, ALL = range(3)


class Rules(NamedTuple):
    """What differs between types with the same groups and sub-blocks.

    Attributes
    ----------
    even
        Whether the number of negative weights in eight must be even.
    energy, background
        The error of x weighs qw sqrt(energy ms + x^2), or background energy ms + x^2 without importance qw,
        ms being the mean square of the superblock's weights.
    nothing
        A sub-block whose largest magnitude is below this is nothing.
    step, reach
        Trials are step * k apart, k from -reach to reach.
    again
        Which groups are searched again: `NEIGHBOURS`, those that have got a neighbour; `WITH_NEIGHBOURS`, all
        of a sub-block that has one, or for which no trial was any good; `ALL`.
    stored
        How many times as large as found d is stored.
    """

    even: Any
    energy: Any
    background: Any
    nothing: Any
    step: Any
    reach: Any
    again: Any
    stored: Any


IQ3_S = Rules(False, 2, 0, _SMALLEST, 0.2, 9, WITH_NEIGHBOURS, 1.033)
IQ3_XXS = Rules(True, 2, 0, _SMALL, 0.2, 15, NEIGHBOURS, 1.0125)
IQ2_S = Rules(False, 2, 0.25, _SMALL, 0.1, 9, NEIGHBOURS, 0.9875)
IQ2_XS = Rules(True, 1, 0, float(NOTHING), 0.1, 9, NEIGHBOURS, 1)
IQ2_XXS = Rules(True, 1, 0, float(NOTHING), 0.1, 6, ALL, 1)
