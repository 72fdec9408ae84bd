"""What llama.cpp tells of a layer by its number, and so gets wrong where others are pruned.

    sliding window, recurrent     every so many layers differ; a key may list each layer instead, which is
                                  written if the numbers do not tell the layers that are left as before
    no rope                       no key: it is noted which layers change
    experts                       no key: refused if a layer would not have what its new number asks for
    K and V of another layer      the last layers take them from the last two before; these must stay
    the number of layers itself   some models are known by it: noted

From b11434: `load_swa_pattern`, `is_recr_impl`, `n_no_rope_layer_step`, `n_moe_layer_step`, the reuse of
layers in `src/llama-model.cpp` (create_memory), and `n_layer() ==`, each in `src/models/*.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggplan.errors import PlanError
from ggplan.metadata import Metadata, MetadataType, array, scalar
from ggplan.model import Model
from ggplan.reshaping.blocks import block_of, mtp_blocks, n_blocks, number, numbered, ranges

_PATTERN = "attention.sliding_window_pattern"
# After how many layers one attends to all tokens, unless the key says so; whether it is the first of them.
_WINDOWS = {
    "afmoe": (4, False), "cohere2": (4, False), "cohere2moe": (4, True), "exaone-moe": (4, False),
    "exaone4": (4, False), "gemma-embedding": (6, False), "gemma2": (2, False), "gemma3": (6, False),
    "gemma3n": (5, False), "gpt-oss": (2, False), "laguna": (4, True), "llama4": (4, False),
    "mellum": (4, False), "modern-bert": (3, True), "muse-glimmer": (4, False), "olmo2": (4, False),
    "plamo3": (8, False), "smallthinker": (4, True),
}  # fmt: skip
# Those of them that have no window unless they have its size.
_WINDOW_BY_SIZE = frozenset({
    "afmoe", "exaone4", "gemma3", "laguna", "mellum", "modern-bert", "olmo2", "plamo3", "smallthinker",
})  # fmt: skip
# After how many layers one is not recurrent, unless `full_attention_interval` says so.
_RECURRENT = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
# Every fourth layer has no rope: what is added to its number to be a multiple of four.
_NO_ROPE = {"afmoe": 1, "llama4": 1, "smallthinker": 0, "smollm3": 1}
_NO_ROPE_STEP = 4
_MIXED = ("llama4", "ernie4_5-moe")
# Models that are known by how many layers they have, and what llama.cpp then does.
_BY_COUNT = {
    "baichuan": ((40,), "biases attention by distance (ALiBi)"),
    "deepseek2": ((26, 27), "reads q as one matrix (Lite)"),
    "exaone4": ((64,), "has a sliding window"),
    "gemma2": ((46,), "scales attention as the 27B"),
    "gemma3": ((62,), "scales attention as the 27B"),
}
# Keys of steps that no list can replace.
_STEPS = ("moe_every_n_layers", "rescale_every_n_layers")


def keys_of_kinds(model: Model, kept: Sequence[int]) -> Metadata:
    """The keys that list the kind of each layer, where the numbers alone tell it otherwise once pruned."""
    nextn = set(mtp_blocks(model))
    layers = [n for n in kept if n not in nextn]
    found: Metadata = {}
    for key, kinds in (
        (_PATTERN, _windows(model)),
        ("attention.recurrent_layers", _recurrent(model)),
    ):
        if kinds is not None and [kinds[n] for n in layers] != kinds[: len(layers)]:
            items = [kinds[n] if n not in nextn else False for n in kept]
            found[f"{model.architecture}.{key}"] = array(MetadataType.BOOL, items)
    return found


def notes_on_kinds(model: Model, kept: Sequence[int]) -> list[str]:
    """What changes in layers that stay, for no key can say it."""
    nextn = set(mtp_blocks(model))
    layers = [n for n in kept if n not in nextn]
    n_layers, notes = n_blocks(model) - len(nextn), []
    without = _without_rope(model, n_layers)
    if without is not None:
        before = [n for n in layers if without[n]]
        after = [n for at, n in enumerate(layers) if without[at]]
        if before != after:
            notes.append(
                f"llama.cpp leaves rope out of every {_NO_ROPE_STEP}th layer, by its number: of those that "
                f"stay it was {_listed(before)}, and will be {_listed(after)} (numbers before pruning), "
                "which changes what the model says"
            )
    counts, what = _BY_COUNT.get(model.architecture, ((), ""))
    if (n_layers in counts) != (len(layers) in counts):
        notes.append(
            f"llama.cpp {what} in {model.architecture} models of {' or '.join(map(str, counts))} "
            f"layers alone; this one had {n_layers:,}, and will have {len(layers):,}: it may not load, or "
            "not work"
        )
    if layers != list(range(len(layers))):
        for key in _STEPS:
            if (number(model, key) or 0) > 1:
                notes.append(
                    f"{model.architecture}.{key} tells the kind of a layer by its number: those after layer "
                    f"{next(at for at, n in enumerate(layers) if at != n)} may change theirs"
                )
    return notes


def refuse_mixed_up(model: Model, kept: Sequence[int], metadata: Metadata) -> None:
    """Refuse a file that does not load: a layer has experts, but not where llama.cpp looks for them.

    Parameters
    ----------
    metadata
        The keys of the pruned model.

    Raises
    ------
    PlanError
        If a layer has another network than its new number asks for.
    """
    step = number(model, "interleave_moe_layer_step") or 0
    if model.architecture not in _MIXED or step < 2:
        return
    experts = {block_of(t.name) for t in model.tensors if "_exps." in t.name}
    key = f"{model.architecture}.leading_dense_block_count"
    lead = number(model, "leading_dense_block_count") or 0
    new = metadata[key].decode() if key in metadata else 0
    new_lead = new if isinstance(new, int) else 0
    nextn = set(mtp_blocks(model))

    def asks(layer: int, lead: int) -> bool:
        return layer >= lead and (layer + 1) % step == 0

    layers = range(n_blocks(model) - len(nextn))
    if any(asks(n, lead) != (n in experts) for n in layers):
        return  # it is none that llama.cpp reads
    left = (n for n in kept if n not in nextn)
    wrong = next(((at, n) for at, n in enumerate(left) if asks(at, new_lead) != (n in experts)), None)
    if wrong is not None:
        at, layer = wrong
        has, wants = ("experts", "a dense network") if layer in experts else ("a dense network", "experts")
        raise PlanError(
            f"layer {layer} has {has}, but as layer {at}, which it would be, llama.cpp looks for {wants}",
            hint=f"one layer in {step} has experts: prune {step} that follow each other",
        )


def shared_kv(model: Model, kept: Sequence[int]) -> Metadata:
    """The key of layers that take K and V from others, for the layers that are left.

    Raises
    ------
    PlanError
        If they would take them from others than before.
    """
    count = n_blocks(model)
    key = f"{model.architecture}.attention.shared_kv_layers"
    n_shared = number(model, "attention.shared_kv_layers") or 0
    is_fixed = model.architecture == "gemma3n"  # of which the first twenty have their own
    first = 20 if is_fixed else count - n_shared
    if not (is_fixed or n_shared) or not 0 <= first < count:
        return {}
    own, sharing = [n for n in kept if n < first], [n for n in kept if n >= first]
    if sharing:
        windows = _windows(model) or _listed_kinds(model, _PATTERN) or [False] * count
        sources = {first - 2 if windows[n] else first - 1 for n in sharing if n < len(windows)}
        lost = [n for n in sorted(sources) if len(own) < 2 or n < 0 or own[n - first] != n]
        if lost or (is_fixed and len(own) < first):
            told = numbered("layer", sorted(sources))
            raise PlanError(
                f"{numbered('layer', sharing)} cannot go on taking K and V from {told}: "
                + (
                    f"llama.cpp knows them by the number {first}"
                    if is_fixed and not lost
                    else "they must stay the last before"
                ),
                hint=f"prune layers from {first} on" + ("" if is_fixed else f", or before {min(sources)}"),
            )
    if is_fixed:
        return {}
    return {key: scalar(model.metadata[key].type, len(sharing))}


def _windows(model: Model) -> list[bool] | None:
    """Which layers attend within a window, if numbers tell; None where they do not, or none does."""
    if model.architecture not in _WINDOWS or _listed_kinds(model, _PATTERN) is not None:
        return None
    size = number(model, "attention.sliding_window")
    if size == 0 or (size is None and model.architecture in _WINDOW_BY_SIZE):
        return None
    n_layers = n_blocks(model) - len(mtp_blocks(model))
    if model.architecture == "exaone4" and n_layers not in _BY_COUNT["exaone4"][0]:
        return None
    default, full_first = _WINDOWS[model.architecture]
    stated = number(model, _PATTERN)
    step = default if stated is None else stated
    if step < 0:
        return None
    full = 0 if full_first else step - 1
    return [step == 0 or n % step != full for n in range(n_layers)]


def _recurrent(model: Model) -> list[bool] | None:
    """Which layers are recurrent, if numbers tell."""
    default = _RECURRENT.get(model.architecture)
    if default is None or f"{model.architecture}.attention.recurrent_layers" in model.metadata:
        return None
    stated = number(model, "full_attention_interval")
    step = default if stated is None else stated
    if step < 1:
        return None
    return [(n + 1) % step != 0 for n in range(n_blocks(model) - len(mtp_blocks(model)))]


def _without_rope(model: Model, n_layers: int) -> list[bool] | None:
    """Which layers have no rope, if numbers tell."""
    architecture = model.architecture
    size = number(model, "attention.sliding_window")
    has_none = (architecture == "llama4" and size == 0) or (architecture == "smallthinker" and not size)
    if architecture not in _NO_ROPE or has_none:
        return None
    return [(n + _NO_ROPE[architecture]) % _NO_ROPE_STEP == 0 for n in range(n_layers)]


def _listed_kinds(model: Model, key: str) -> list[bool] | None:
    value = model.metadata.get(f"{model.architecture}.{key}")
    if value is None or value.item_type is None:
        return None
    return [bool(item) for item in value.decode_items(value.length)]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(ranges(layers)) or "none"
