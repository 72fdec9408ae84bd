"""The prior: how much a tensor matters, from what it is for and how deep it lies, without a look at weights.

    log s = role + depth          of a tensor's sensitivity s, up to a level that all tensors of a model share

    role     one number for each: attn_q, attn_k, ..., ffn_down_exps, ..., token_embd, output
    depth    for routed experts, other FFN, and all else apart: a cubic in x, and numbers for block 0, block 1
             and the last block; x is block / (blocks - 1) - 1/2

Sensitivity is the mean KL divergence (nats) from the unquantized model when this tensor alone has an error of
`REFERENCE_ERROR`, about that of 2 bits a weight. Damage is proportional to the squared error
(`ggplan.allocation.type_errors`).

The numbers are in `prior.csv`, fitted by `tools/fit_prior.py` to the measurements of seventeen models that
Thireus and the contributors of the GGUF Tool Suite published.

Tied token embeddings are the output matrix too, and a role of their own, `output tied`: they matter a hundred
times more than embeddings that are only looked up.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from ggplan.rules.roles import block_of

REFERENCE_ERROR = 0.087
"""The relative squared error at which a sensitivity is told: iq2_xs's."""

CLASSES = ("experts", "ffn", "other")
"""What depth is told apart for."""
TERMS = ("x", "x2", "x3", "block 0", "block 1", "last block")
"""The terms of depth, in the order of `depth_terms`."""

_BLOCK = re.compile(r"^.*?blk\.\d+\.", re.ASCII)
_EMBEDDINGS, _OUTPUT = "token_embd", "output"
_TIED = "output tied"
# For a role that was not measured: the one that it resembles, by the first of these found in its name.
_NEAREST = (
    (r"^output tied$", _OUTPUT),
    (r"^output|^cls|\bhead\b|shared_head_head", _OUTPUT),
    (r"token_embd|embed_tokens|\bembd|_embd", _EMBEDDINGS),
    (r"down_(ch)?exps", "ffn_down_exps"),
    (r"up_(ch)?exps", "ffn_up_exps"),
    (r"_(ch)?exps", "ffn_gate_exps"),
    (r"down_shexp", "ffn_down_shexp"),
    (r"up_shexp", "ffn_up_shexp"),
    (r"shexp", "ffn_gate_shexp"),
    (r"(attn|ssm|shortconv|time_mix)\w*(\.|_)(out|output|o|out_proj)(_|$)", "attn_output"),
    (r"ssm_(in|x)\b|shortconv\.in", "attn_qkv"),
    (r"ssm_(dt|a|b|c|f|g)", "ssm_alpha"),
    (r"time_mix_(key|value|receptance)", "attn_qkv"),
    (r"time_mix_gate|attn_gate|attn_.*gate", "attn_gate"),
    (r"kv_a", "attn_kv_a_mqa"),
    (r"kv_b|attn_k_b", "attn_k_b"),
    (r"attn_v_b", "attn_v_b"),
    (r"attn_qkv|qkv", "attn_qkv"),
    (r"indexer", "attn_k"),
    (r"attn_q|attn_kqv|_q\b", "attn_q"),
    (r"attn_k|_k\b", "attn_k"),
    (r"attn_v|_v\b", "attn_v"),
    (r"attn|ssm", "attn_output"),
    (r"channel_mix_value|down|fc2|ffn_out", "ffn_down"),
    (r"up|fc1|channel_mix", "ffn_up"),
)
_LAST = "ffn_gate"
# Fused tensors are as sensitive as their parts together.
_FUSED = {
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
    "ffn_gate_up_chexps": ("ffn_gate_exps", "ffn_up_exps"),
    "ffn_gate_up_shexp": ("ffn_gate_shexp", "ffn_up_shexp"),
    "ffn_gate_up": ("ffn_gate", "ffn_up"),
}


@dataclass(frozen=True, slots=True)
class Level:
    """How large the damage of a whole model is, of one kind of model.

    Attributes
    ----------
    log_level
        What is added to `role + depth`: the natural logarithm of a level.
    spread
        The standard deviation of the logarithm of the level from model to model.
    flips
        c of the forecast A + c sqrt(A): damage that many small errors do together, because some tokens are
        routed to other experts.
    """

    log_level: float
    spread: float
    flips: float


@dataclass(frozen=True, slots=True)
class Prior:
    """The fitted numbers, and where they come from.

    Attributes
    ----------
    roles
        By role.
    depth
        By class of `CLASSES`: the numbers of `TERMS`.
    levels
        "experts" of models with routed experts, "dense" of the others; "experts measured" and
        "dense measured" where sensitivities are measured: what their sum is to be multiplied by.
    credit
        The comments of the table, which name the authors of the measurements.
    """

    roles: Mapping[str, float]
    depth: Mapping[str, tuple[float, ...]]
    levels: Mapping[str, Level]
    credit: tuple[str, ...]


@cache
def load_prior() -> Prior:
    """The prior that ships with ggplan."""
    text = resources.files("ggplan.allocation").joinpath("prior.csv").read_text(encoding="utf-8")
    lines = text.splitlines()
    rows = csv.reader(line for line in lines if not line.startswith("#"))
    next(rows)
    roles: dict[str, float] = {}
    depth: dict[str, dict[str, float]] = {kind: {} for kind in CLASSES}
    levels: dict[str, dict[str, float]] = {}
    for what, name, term, value in rows:
        if what == "role":
            roles[name] = float(value)
        elif what == "depth":
            depth[name][term] = float(value)
        else:
            levels.setdefault(name, {})[term] = float(value)
    return Prior(
        roles,
        {kind: tuple(terms[term] for term in TERMS) for kind, terms in depth.items()},
        {kind: Level(found["level"], found["spread"], found["flips"]) for kind, found in levels.items()},
        tuple(line.lstrip("# ") for line in lines if line.startswith("#")),
    )


def role_in_prior(name: str) -> str:
    """The role of a tensor as the prior names it: `blk.7.attn_q.weight` is attn_q."""
    return _BLOCK.sub("", name).removesuffix(".weight").removesuffix(".bias")


def nearest_role(role: str, known: Iterable[str]) -> str:
    """The known role that an unknown one resembles; the role itself where it is known."""
    known = frozenset(known)
    if role in known:
        return role
    found = next((to for pattern, to in _NEAREST if to in known and re.search(pattern, role)), None)
    if found is None:
        found = _LAST if _LAST in known else min(known)
    return found


def class_of(role: str) -> str:
    """Which of `CLASSES` a role's depth is told for."""
    if role.endswith(("_exps", "_chexps")):
        return "experts"
    return "ffn" if role.startswith("ffn") else "other"


def depth_terms(block: int, n_blocks: int) -> tuple[float, ...]:
    """The values of `TERMS` for a block of a model."""
    x = block / max(n_blocks - 1, 1) - 0.5
    return x, x * x, x**3, float(block == 0), float(block == 1), float(block == n_blocks - 1)


def sensitivities_by_prior(names: Iterable[str], prior: Prior, *, n_blocks: int) -> dict[str, float]:
    """The sensitivities of tensors, up to the level of the model: exp(role + depth).

    Parameters
    ----------
    names
        Of all tensors of the model, for whether there is an `output.weight` says what `token_embd.weight` is.
    n_blocks
        Of the model, without those that only predict further tokens.
    """
    names = tuple(names)
    tied = "output.weight" not in names
    return {name: _sensitivity(name, prior, n_blocks, tied) for name in names}


def _sensitivity(name: str, prior: Prior, n_blocks: int, tied: bool) -> float:
    role = role_in_prior(name)
    if role == _EMBEDDINGS and tied and block_of(name) is None:
        role = _TIED
    found = 0.0
    for part in _FUSED.get(role, (role,)):
        own = nearest_role(part, prior.roles)
        log = prior.roles[own]
        if (block := block_of(name)) is not None:
            terms = depth_terms(min(block, n_blocks - 1), n_blocks)
            log += sum(a * b for a, b in zip(prior.depth[class_of(own)], terms, strict=True))
        found += math.exp(log)
    return found
