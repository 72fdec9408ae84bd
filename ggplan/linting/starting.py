"""A starting recipe for a model: one rule for each role it has, with what the role weighs."""

from __future__ import annotations

from ggplan.ggml_types import parse_type
from ggplan.inventories import architecture_of
from ggplan.linting.wording import kind_of, rule_for
from ggplan.model import Model, TensorInfo
from ggplan.planning import make_plan
from ggplan.planning.protection import n_dimensions, protected_reason
from ggplan.rules import ROLES, Blocks, parse_recipe, roles_of
from ggplan.rules.formatting import format_recipe
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
)
_OTHERS = "q8_0 | f16"
_DRAFTING = "The same of what only drafts further tokens, of which below q8_0 hardly one is accepted."
_PLAIN = {"dense": "q5_K | q5_1 | f16"}  # of a model without experts, where it is most of the file


def starting_recipe(model: Model, name: str = "start") -> str:
    """The text of a commented recipe for a model: by roles, complete, with its size and tests.

    The rules do not overlap, so their order decides nothing. What is quantized in the source keeps its type.
    Blocks that draft tokens get q8_0 at least.
    """
    blocks = Blocks.of(t.name for t in model.tensors)
    roles = [set(roles_of(t.name, blocks)) for t in model.tensors]
    has_experts = any(role.startswith("experts.") for found in roles for role in found)
    architecture = model.architecture or architecture_of(t.name for t in model.tensors)
    shown = printable(model.path.name)
    lines = [f"# A start for {shown}: {'experts in RAM, all else on the GPU' if has_experts else 'dense'}."]
    lines += ["# The first rule that matches decides. Sizes are those of the source.", "@recipe 1"]
    lines += [f"@name {name}", *([f"@arch {architecture}"] if architecture else []), ""]
    drafting: dict[str, list[int]] = {}
    left = [i for i, t in enumerate(model.tensors) if t.type.kind != "integer"]
    for words, chain, why in _RULES:
        members = [i for i in left if not roles[i].isdisjoint(words.split(", "))]
        left = [i for i in left if roles[i].isdisjoint(words.split(", "))]
        types = _PLAIN.get(words, chain) if not has_experts else chain
        whole, in_draft = f"@role {words}", [i for i in members if "nextn" in roles[i]]
        if in_draft and not types.startswith(("f32", "q8_0")):
            drafting.setdefault(words, []).extend(in_draft)
            members = [i for i in members if i not in in_draft]
            whole += f" {{0..{min(blocks.nextn) - 1}}}"
        lines += _section(model, members, whole, types, why)
    if drafting:
        whole = f"@role {', '.join(drafting)} {{last {len(blocks.nextn)}}}"
        lines += _section(model, [i for found in drafting.values() for i in found], whole, _OTHERS, _DRAFTING)
    of_nextn = [i for i in left if "nextn" in roles[i]]
    lines += _section(
        model, of_nextn, "", _OTHERS, "What only predicts further tokens, and has no other role."
    )
    if others := [i for i in left if "nextn" not in roles[i]]:
        counted = f"{len(others):,} tensor{'s have names' if len(others) > 1 else ' has a name'} of no role."
        whole = "@default" if not any(model.tensors[i].type.is_quantized for i in others) else ""
        lines += _section(model, others, whole, _OTHERS, counted)
    text = "\n".join(lines)
    plan = make_plan(model, parse_recipe(text, "start.recipe"))
    tests = [t for t in plan.tensors if _worth_a_test(t.name, n_dimensions(t.tensor.shape))]
    first = {kind_of(t.name): t for t in reversed(tests)}
    largest = sorted(first.values(), key=lambda t: -t.tensor.n_weights)[:6]
    limit = plan.bits_per_weight + 0.005
    promises = [f"@assert bpw <= {limit:.2f}", "@assert uncovered == 0"]
    promises += [f"@test {t.name} -> {t.type.name}" for t in largest]
    gives = f"{format_bytes(plan.tensor_bytes)}, {plan.bits_per_weight:.3f} bpw"
    text += f"\n# It gives {gives}. `ggplan rules test` holds it to that.\n" + "\n".join(promises) + "\n"
    return format_recipe(text)


def _section(model: Model, members: list[int], whole: str, types: str, why: str) -> list[str]:
    """The rules for some tensors, with a comment: `whole`, such as `@role dense`, or one for each kind."""
    if not members:
        return []
    size = sum(model.tensors[i].n_bytes for i in members)
    kept = {model.tensors[i].type for i in members if model.tensors[i].type.is_quantized}
    is_mixed = bool(kept) and (len(kept) > 1 or not all(model.tensors[i].type in kept for i in members))
    chains = {i: _chain(types, model.tensors[i]) for i in members}
    is_mixed = is_mixed or any(chain != types for chain in chains.values())
    lines = [f"# {why} {format_bytes(size)}{', quantized in the source and kept so' if kept else ''}."]
    if whole and not is_mixed:
        equals = " " if whole == "@default" else " = "
        return [*lines, f"{whole}{equals}{kept.pop() if kept else types}", ""]
    groups: dict[tuple[str, str], list[int]] = {}
    for i in members:
        kind, type_ = kind_of(model.tensors[i].name), model.tensors[i].type
        groups.setdefault((kind, type_.name if type_ in kept else chains[i]), []).append(i)
    return [*lines, *(rule_for(model.tensors, found, chain) for (_, chain), found in groups.items()), ""]


def _chain(types: str, tensor: TensorInfo) -> str:
    """Without blocks where a row holds none, such as the four columns of a short convolution."""
    if protected_reason(tensor.name, n_dimensions(tensor.shape)) is not None:
        return "f32"
    return types.split(" | ")[-1] if tensor.n_columns % parse_type("q8_0").block_size else types


def _worth_a_test(name: str, n_dims: int) -> bool:
    return protected_reason(name, n_dims) is None and name.isascii() and not set(name) & set(" \t#")


assert all(role in ROLES for words, *_ in _RULES for role in words.split(", "))
