r"""From types back to rules: the shortest recipe that gives every tensor the type it has.

    ^blk\.([0-4]|8|11)\.(attn_v|ffn_down)\.weight$ = q6_K   # 14 tensors, 0.81 GiB
    ^output\.weight$                               = q6_K   # 1 tensor, 0.41 GiB
    @default                                         q4_K

`cover` finds the rules, `patterns` writes sets of layers and names as patterns, `writing` makes the text.
"""

from __future__ import annotations

from ggplan.recovering.cover import cover
from ggplan.recovering.writing import Cover, CoverRule, Wanted, write_recipe

__all__ = ["Cover", "CoverRule", "Wanted", "cover", "write_recipe"]
