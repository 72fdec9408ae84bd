"""A starting recipe for a model: one rule for each role it has, with what the role weighs."""

from __future__ import annotations

from ggplan.linting.wording import kind_of
from ggplan.model import Model
from ggplan.planning import make_plan
from ggplan.planning.protection import n_dimensions, protected_reason
from ggplan.rules import ROLES, Blocks, parse_recipe, roles_of
from ggplan.text import format_bytes, printable

# Role, its types, and why. In the order in which they decide.
_RULES = (
    ("norm", "f32", "Norms, biases and vectors steer everything else and weigh nothing."),
    ("router", "f32", "A router in fewer bits picks other experts."),
    (
        "attention",
        "q8_0 | f16",
        "Read as a whole for every token; q8_0 is half of bf16 and loses next to nothing.",
    ),
    ("shared", "q8_0 | f16", "The shared expert sees every token."),
    ("dense", "q8_0 | f16", "The plain feed-forward network of the first layers, or of all."),
    ("experts.gate, experts.up", "q4_K | q5_0 | f16", "Most of the file, and a token uses few of them."),
    ("experts.down", "q6_K | q8_0 | f16", "Writes straight into the residual stream and forgives less."),
    ("embeddings", "q8_0 | f16", "Looked up, not multiplied; may stay in RAM."),
    ("output", "q8_0 | f16", "Chooses the words."),
    ("nextn", "q8_0 | f16", "What only predicts further tokens, and no rule above has taken."),
)
_PLAIN = {"dense": "q5_K | q5_1 | f16"}  # of a model without experts, where it is most of the file


def starting_recipe(model: Model, name: str = "start") -> str:
    """The text of a commented recipe for a model: by roles, complete, with its size and tests."""
    blocks = Blocks.of(t.name for t in model.tensors)
    weights: dict[str, int] = {}
    for tensor in model.tensors:
        for role in roles_of(tensor.name, blocks)[:1]:
            weights[role] = weights.get(role, 0) + tensor.n_bytes
    has_experts = any(role.startswith("experts.") for role in weights)
    shown = printable(model.path.name)
    lines = [f"# A start for {shown}: {'experts in RAM, all else on the GPU' if has_experts else 'dense'}."]
    lines += ["# The first rule that matches decides. Sizes are those of the source.", "@recipe 1"]
    lines += [f"@name {name}", *([f"@arch {model.architecture}"] if model.architecture else []), ""]
    for words, chain, why in _RULES:
        size = sum(weights.get(role, 0) for role in words.split(", "))
        if not size:
            continue
        types = _PLAIN.get(words, chain) if not has_experts else chain
        lines += [f"# {why} {format_bytes(size)}.", f"@role {words} = {types}", ""]
    text = "\n".join(lines)
    plan = make_plan(model, parse_recipe(text, "start.recipe"))
    tests = [t for t in plan.tensors if _worth_a_test(t.name, n_dimensions(t.tensor.shape))]
    first = {kind_of(t.name): t for t in reversed(tests)}
    largest = sorted(first.values(), key=lambda t: -t.tensor.n_weights)[:6]
    left = sum(1 for t in plan.tensors if t.rule is None)
    if left:
        text += f"\n# {left} tensors have names of no role.\n@default q8_0 | f16\n"
        plan = make_plan(model, parse_recipe(text, "start.recipe"))
    limit = plan.bits_per_weight + 0.005
    promises = [f"@assert bpw <= {limit:.2f}", "@assert uncovered == 0"]
    types_of = {t.name: t.type.name for t in plan.tensors}
    promises += [f"@test {t.name} -> {types_of[t.name]}" for t in largest]
    gives = f"{format_bytes(plan.tensor_bytes)}, {plan.bits_per_weight:.3f} bpw"
    return f"{text}\n# It gives {gives}. `ggplan rules test` holds it to that.\n" + "\n".join(promises) + "\n"


def _worth_a_test(name: str, n_dims: int) -> bool:
    return protected_reason(name, n_dims) is None and name.isascii() and not set(name) & set(" \t#")


assert all(role in ROLES for words, *_ in _RULES for role in words.split(", "))
