r"""mlx-lm's mixed predicates: `mlx_lm.convert --quant-predicate mixed_3_6`.

A predicate has two numbers of bits. Value and down projections get the higher one in the first and the last
eighth of the layers and in every third layer between, and embeddings and output get it always; all other
tensors get the lower one. mlx stores a scale and a smallest weight for groups of 64; ggml's nearest types are
the k-quants.

mlx-lm d78bf58 (`mlx_lm/convert.py`); `mixed_3_5`, `mixed_3_8` and `mixed_4_8` are mlx-vlm's.
"""

from __future__ import annotations

import re

from ggplan.dialects.flatten import fitted_types
from ggplan.dialects.modules import need_model
from ggplan.dialects.source import Imported, Source, imported_text
from ggplan.errors import RecipeError
from ggplan.ggml_types import parse_type
from ggplan.model import Model
from ggplan.planning import Assignment
from ggplan.recovering.patterns import layers_pattern, runs
from ggplan.rules import Recipe, parse_recipe
from ggplan.rules.roles import Blocks

PREDICATES = ("mixed_2_6", "mixed_3_4", "mixed_3_5", "mixed_3_6", "mixed_3_8", "mixed_4_6", "mixed_4_8")
_TYPES = {2: "q2_K", 3: "q3_K", 4: "q4_K", 5: "q5_K", 6: "q6_K", 8: "q8_0"}


def import_(source: Source, name: str, model: Model | None) -> Imported:
    """Import the name of a predicate, alone or on a command line."""
    model = need_model(source, model)
    found = re.search(r"\bmixed_\d_\d\b", source.text)
    if found is None or found[0] not in PREDICATES:
        raise source.fault(0, "there is no mixed predicate", f"there are {', '.join(PREDICATES)}")
    low, high = (_chain(_TYPES[int(bits)]) for bits in found[0].split("_")[1:])
    blocks = Blocks.of([t.name for t in model.tensors])
    n = blocks.count - len(blocks.nextn)
    if not n:
        raise source.fault(0, f"{model.path.name} has no layers")
    more = sum(1 << i for i in range(n) if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2)
    body = [
        "# In more bits: embeddings, output, and at both ends and in every third layer values and down.",
        rf"^(token_embd|output)\.weight$ = {high}",
        rf"^blk\.{layers_pattern(runs(more, 0))}\.(attn_v|ffn_down(_exps|_shexp)?)\.weight$ = {high}",
        "",
        f"@default {low}",
    ]
    notes = ("groups of 64 with a scale and a smallest weight become k-quants",)
    head = [f"@arch {model.architecture}"] if model.architecture else []
    what = f"mlx-lm's {found[0]}, for {model.path.name}"
    return Imported("mlx", imported_text(source, what, name, body, notes, head), notes)


def _chain(name: str) -> str:
    fallback = parse_type(name).fallback
    return f"{name} | {fallback}" if fallback else name


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """The name of the predicate that gives the recipe's types."""
    wanted = [d.type for d in fitted_types(recipe, model)]
    nearest, fewest = "", len(wanted) + 1
    for predicate in PREDICATES:
        like = parse_recipe(import_(Source(predicate, predicate), predicate, model).text)
        differing = sum(d.type != w for d, w in zip(fitted_types(like, model), wanted, strict=True))
        if differing < fewest:
            nearest, fewest = predicate, differing
    if fewest:
        raise RecipeError(
            f"no mixed predicate of mlx-lm gives {recipe.name}'s types",
            hint=f"the nearest is {nearest}, with other types for {fewest:,} of {len(wanted):,} tensors",
        )
    return f"{nearest}\n", [f"use it as: mlx_lm.convert -q --quant-predicate {nearest}"]
