"""Which dialect a text is in: a model card may hold several, and the plainest sign decides."""

from __future__ import annotations

import re

from ggplan.dialects.ik_llama import BLOCK
from ggplan.dialects.source import Source
from ggplan.errors import RecipeError

_SIGNS = (
    ("mlx", r"\A\s*mixed_\d_\d\s*\Z|--quant-predicate"),
    ("layer-types", r"\bLAYER_TYPES\s*=|--layer-types"),
    ("ik_llama.cpp", BLOCK.pattern + r"|--custom-q\b"),
    ("llama-quantize", r"--tensor-type(-file)?\b"),
    ("torchao", r"FqnToConfig\b|fqn_to_config"),
    (
        "compressed-tensors",
        r"(^[ \t]*(- )?|[{,]\s*)[\"']?"
        r"(config_groups|targets|ignore|scheme|\w+_modifiers|\w*Modifier)[\"']?[ \t]*:",
    ),
    ("autoround", r"\b(layer_config|extra_config)\b|[\"'](bits|data_type)[\"']\s*:|\b(auto-?round)\b"),
)
_RULE = re.compile(r"[^\s#]+=\w+")


def detect(source: Source) -> str:
    """The name of the dialect.

    Raises
    ------
    RecipeError
        If it is none.
    """
    for name, sign in _SIGNS:
        if re.search(sign, source.text, re.M):
            return name
    rules = [rule for line in source.text.split("\n") if (rule := line.partition("#")[0].strip())]
    if rules and all(re.search(r"=[^=]*,.*=", rule) or rule.endswith(",") for rule in rules[:1]):
        return "ik_llama.cpp"
    if rules and any("#" in line for line in source.text.split("\n")):
        return "thireus"
    if rules and all(_RULE.fullmatch(token) for token in rules[0].split()):
        return "llama-quantize"
    return _unknown(source)


def _unknown(source: Source) -> str:
    raise RecipeError(
        source.fault(0, "this is in no dialect that ggplan knows").message, hint="name it with --dialect"
    )
