"""The stock mixes: what llama-quantize makes of `Q4_K_M`, computed for any model.

    >>> mix = find_mix("q4_k_m")
    >>> mix.name, mix.type.name, mix.file_type
    ('Q4_K_M', 'q4_K', 15)

A mix is not a list of rules: the type of a tensor may depend on its layer, on the number of attention heads
and experts, on whether the embeddings are tied and whether there is an imatrix. `choose_types` computes the
types, and `ggplan.planning.mix_types` makes the model's assignment of them.
"""

from __future__ import annotations

from ggplan.stock.facts import Facts, facts_of
from ggplan.stock.mixes import ALIASES, MIXES, PURE, Mix, find_mix, is_mix
from ggplan.stock.selection import choose_types, needs_imatrix

__all__ = [
    "ALIASES",
    "MIXES",
    "PURE",
    "Facts",
    "Mix",
    "choose_types",
    "facts_of",
    "find_mix",
    "is_mix",
    "needs_imatrix",
]
