"""Experts that are left out: slices of the stacked matrices, with their rows of the router.

    ffn_{gate,up,down,gate_up}_exps   (experts, rows, columns): whole matrices stay or go; their biases too
    ffn_gate_inp                      (experts, columns): a row for each expert; its bias too
    exp_probs_b                       (experts,), or (1, experts) as ERNIE has it

and `expert_count` is how many stay, which must be as many in every layer, for llama.cpp has one number for
all. A token is still routed to `expert_used_count` of them, so there must be that many; where the router
first chooses among groups of experts (`expert_group_count`), each group must keep as many, two at least: the
best two tell how good a group is (b11434, build_moe_ffn in `src/llama-graph.cpp`).

By the counts of an imatrix those stay to which most tokens were routed; of a tie the lower numbers. That is a
crude measure, and leaving out experts costs much: Qwen3.5-397B without 5 % of its experts had 13 times the
perplexity (baa.ai, MINT).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.metadata import scalar
from ggplan.model import Integers, Model, RowSource, TensorInfo, empty_rows
from ggplan.reshaping.blocks import block_of, number, numbered, relabelled
from ggplan.reshaping.importance import of_experts
from ggplan.reshaping.wishes import experts_text
from ggplan.text import format_bytes, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggplan.imatrix import Imatrix

_STACK = re.compile(
    r"^blk\.\d{1,9}\.ffn_(gate|up|down|gate_up)_exps\.(weight|bias|scale|input_scale)$", re.ASCII
)
_ROUTER = re.compile(r"^blk\.\d{1,9}\.(ffn_gate_inp\.(weight|bias)|exp_probs_b(\.(weight|bias))?)$", re.ASCII)
# Tensors that name experts otherwise: groups of experts (Grove-MoE), and a table from tokens to experts.
_OTHERS = re.compile(r"\.ffn_\w+_chexps\.|\.ffn_gate_tid2eid\b")
_EXPERTS_OF_MAVERICK = 128  # `src/models/llama4.cpp`, use_kq_norm
_COST = (
    "leaving out experts costs much: published is 13 times the perplexity for 5 % of the experts of "
    "Qwen3.5-397B (baa.ai, MINT); measure it, with `ggplan measure`"
)


def with_experts(
    model: Model,
    wanted: Mapping[int, Sequence[int]] | int,
    imatrix: Imatrix | None,
    *,
    gone: Collection[int] = (),
) -> tuple[Model, Imatrix | None]:
    """The model with some experts of every layer, and the imatrix with their values.

    Parameters
    ----------
    wanted
        The experts that stay, by layer; or how many, by the counts of the imatrix.
    gone
        Layers that are left out as a whole, of which `wanted` may say what it will.

    Raises
    ------
    PlanError
        If a layer's list is missing or wrong, lists differ in length, too few stay, or the model has a tensor
        that names experts otherwise.
    """
    stacks = {b: t for t in model.tensors if _is_stack(t) and (b := block_of(t.name)) is not None}
    layers = [layer for layer in sorted(stacks) if layer not in gone]
    if not layers:
        raise PlanError("the model has no routed experts to leave out")
    if other := next((t.name for t in model.tensors if _OTHERS.search(t.name)), None):
        raise PlanError(f"{printable(other)} names experts by their number, which would have to be made anew")
    n = _n_experts(model) or stacks[layers[0]].shape[0]
    routed = {block_of(t.name) for t in model.tensors if t.name.endswith(".ffn_gate_inp.weight")}
    if unrouted := [layer for layer in layers if layer not in routed]:
        raise PlanError(f"{numbered('layer', unrouted)} would lose experts, but has no router (ffn_gate_inp)")
    if wrong := next((stacks[layer] for layer in layers if stacks[layer].shape[0] != n), None):
        raise PlanError(f"{printable(wrong.name)} has {wrong.shape[0]:,} experts, the model {n:,}")
    chosen = _by_counts(model, layers, n, wanted, imatrix) if isinstance(wanted, int) else dict(wanted)
    kept = _checked({k: v for k, v in chosen.items() if k not in gone}, layers, n)
    count = len(kept[layers[0]])
    if count < n:
        _check_router(model, kept, n)
    tensors = tuple(_of_tensor(t, kept.get(block_of(t.name) or 0, ()), n) for t in model.tensors)
    lost = sum(t.n_bytes for t in model.tensors) - sum(t.n_bytes for t in tensors)
    key = f"{model.architecture}.expert_count"
    metadata = dict(model.metadata)
    if key in metadata:
        metadata[key] = scalar(metadata[key].type, count)
    notes = [f"{count:,} of {n:,} experts are kept in {numbered('layer', layers)}: {format_bytes(lost)} less"]
    if count < n:
        notes.append(_COST)
    done = replace(
        model,
        tensors=tensors,
        metadata=metadata,
        notes=(*model.notes, *notes),
        reshaped={**model.reshaped, "kept_experts": experts_text(kept)},
    )
    entries = {
        t.name: (kept[b], n) for t in model.tensors if _is_stack(t) and (b := block_of(t.name)) in kept
    }
    return relabelled(model, done), None if imatrix is None else of_experts(imatrix, entries)


def _is_stack(tensor: TensorInfo) -> bool:
    return len(tensor.shape) == 3 and is_expert_stack(tensor.name)


def is_expert_stack(name: str) -> bool:
    """Whether a tensor of this name has a slice for each routed expert."""
    return _STACK.match(name) is not None


def _by_counts(
    model: Model, layers: Sequence[int], n: int, n_kept: int, imatrix: Imatrix | None
) -> dict[int, tuple[int, ...]]:
    """Of each layer the experts to which most tokens were routed."""
    if not 0 < n_kept <= n:
        raise PlanError(f"{n_kept:,} experts cannot be kept: the model has {n:,} in a layer")
    groups = _n_groups(model, n)
    if n_kept % groups:
        raise PlanError(
            f"{n_kept:,} experts cannot be kept: the router chooses among {groups:,} groups, which must "
            "keep as many each",
            hint=f"give a multiple of {groups:,}",
        )
    if imatrix is None:
        raise PlanError(
            "which experts stay is told by the counts of an imatrix",
            hint="give it with --imatrix, or a file with a list of experts for each layer",
        )
    chosen = {}
    for layer in layers:
        names = [f"blk.{layer}.ffn_{part}_exps.weight" for part in ("down", "up", "gate", "gate_up")]
        entry = next((imatrix.entries[name] for name in names if name in imatrix.entries), None)
        shown = printable(imatrix.path.name)
        if entry is None:
            nextn = any(t.name.startswith(f"blk.{layer}.nextn.") for t in model.tensors)
            raise PlanError(
                f"{shown} has no counts of the experts of layer {layer}",
                hint="an imatrix has none of MTP blocks: leave them out with `--mtp drop`, or list the "
                "experts in a file"
                if nextn
                else "use an imatrix of this very model",
            )
        counts = [int(count) for count in entry.counts]
        if len(counts) != n:
            raise PlanError(
                f"{shown} has {len(counts):,} counts for the {n:,} experts of layer {layer}",
                hint="the legacy form (.dat) has no counts of experts: collect it in GGUF form",
            )
        size = n // groups
        best: list[int] = []
        for first in range(0, n, size):
            ranked = sorted(range(first, first + size), key=lambda expert: (-counts[expert], expert))
            best += ranked[: n_kept // groups]
        chosen[layer] = tuple(sorted(best))
    return chosen


def _checked(
    chosen: Mapping[int, Sequence[int]], layers: Sequence[int], n: int
) -> dict[int, tuple[int, ...]]:
    """The lists of the layers, ascending; refused where one is missing, wrong, or of another length."""
    if missing := [layer for layer in layers if layer not in chosen]:
        raise PlanError(
            f"no experts are named for {numbered('layer', missing)}",
            hint="name those of every layer that has experts, MTP blocks included, or leave the latter out "
            "with `--mtp drop`",
        )
    if foreign := [layer for layer in chosen if layer not in layers]:
        raise PlanError(f"experts are named for layer {foreign[0]}, which has none to leave out")
    kept = {}
    for layer in layers:
        experts = sorted(chosen[layer])
        if wrong := [e for e in experts if not 0 <= e < n]:
            raise PlanError(f"layer {layer} has no expert {wrong[0]}: it has 0 to {n - 1}")
        if len(set(experts)) < len(experts):
            twice = next(e for e in experts if experts.count(e) > 1)
            raise PlanError(f"expert {twice} of layer {layer} is named twice")
        if len(experts) != len(chosen[layers[0]]):
            raise PlanError(
                f"{len(chosen[layers[0]]):,} experts are named for layer {layers[0]}, {len(experts):,} for "
                f"layer {layer}",
                hint="llama.cpp has one number of experts for all layers: name as many in each",
            )
        kept[layer] = tuple(experts)
    return kept


def _check_router(model: Model, kept: Mapping[int, tuple[int, ...]], n: int) -> None:
    """Refuse what the router cannot do: choose more experts than there are, or among unequal groups."""
    count, used = len(next(iter(kept.values()))), _n_used(model)
    if count < used:
        raise PlanError(f"{count:,} experts are too few: each token is routed to {used:,}")
    if model.architecture == "llama4" and n == _EXPERTS_OF_MAVERICK:
        raise PlanError(
            f"llama.cpp knows Llama 4 Maverick by its {n:,} experts: with fewer it would normalize Q and K, "
            "which that model does not"
        )
    groups = _n_groups(model, n)
    if groups == 1:
        return
    size = n // groups
    for layer, experts in kept.items():
        found = [sum(first <= e < first + size for e in experts) for first in range(0, n, size)]
        if len(set(found)) > 1:
            raise PlanError(
                f"layer {layer} would keep {min(found):,} experts of a group, {max(found):,} of another",
                hint=f"the router chooses among {groups:,} groups of {size:,}; each must keep as many",
            )
    each, chosen = count // groups, number(model, "expert_group_used_count") or groups
    if each < 2:
        raise PlanError(
            f"{each:,} expert of each of {groups:,} groups is too few: the best two tell which group is used",
            hint=f"keep {2 * groups:,} at least",
        )
    if each * chosen < used:
        raise PlanError(
            f"{each:,} experts of each group are too few: each token is routed to {used:,} experts of "
            f"{chosen:,} of the {groups:,} groups",
            hint=f"keep {-(-used // chosen) * groups:,} at least",
        )


def _n_experts(model: Model) -> int | None:
    """How many experts the model says that a layer has."""
    key = f"{model.architecture}.expert_count"
    if key not in model.metadata:
        return None
    found = number(model, "expert_count")
    if found is None or found < 1:
        raise PlanError(f"{key} is no number of experts")
    return found


def _n_groups(model: Model, n: int) -> int:
    """Among how many groups of experts the router chooses first; 1 where it does not."""
    groups = number(model, "expert_group_count") or 1
    if groups < 1 or n % groups:
        raise PlanError(f"the {n:,} experts of a layer are no {groups:,} groups of one size")
    return groups


def _n_used(model: Model) -> int:
    """How many experts a token is routed to, at most: some models have a number for each layer."""
    value = model.metadata.get(f"{model.architecture}.expert_used_count")
    found = [] if value is None else value.decode()
    return max((n for n in (found if isinstance(found, list) else [found]) if isinstance(n, int)), default=1)


def _of_tensor(tensor: TensorInfo, kept: Sequence[int], n: int) -> TensorInfo:
    """A tensor with some of its experts; as it is where it has none."""
    if not kept or not (is_expert_stack(tensor.name) or _ROUTER.match(tensor.name)):
        return tensor
    is_row = len(tensor.shape) == 2 and tensor.shape[0] == 1 and ".exp_probs_b" in tensor.name
    if tensor.shape[-1 if is_row else 0] != n:
        raise PlanError(f"{printable(tensor.name)} of shape {list(tensor.shape)} has no {n:,} experts")

    def take(source: RowSource | None) -> RowSource | None:
        return None if source is None else picked_columns(source, kept) if is_row else picked(source, kept)

    codes = tensor.codes
    if codes is not None:
        companions = tuple(
            replace(c, shape=(len(kept),), rows=take(c.rows), stored=take(c.stored)) if c.shape == (n,) else c
            for c in codes.companions
        )
        integers = codes.integers
        if integers is not None:
            levels = tuple(integers.levels[e] for e in kept) if len(integers.levels) == n else integers.levels
            integers = replace(integers, rows_in=_taking(integers, kept), levels=levels)
        codes = replace(codes, companions=companions, nearly=take(codes.nearly), integers=integers)
    shape = (1, len(kept)) if is_row else (len(kept), *tensor.shape[1:])
    return replace(tensor, shape=shape, rows=take(tensor.rows), stored=take(tensor.stored), codes=codes)


def _taking(integers: Integers, kept: Sequence[int]) -> Callable[[GgmlType], RowSource]:
    """What gives the integers of some experts in a type."""
    return lambda type_: picked(integers.rows_in(type_), kept)


def picked_columns(source: RowSource, kept: Sequence[int]) -> RowSource:
    """The columns `kept` of a source that has its weights one by one."""
    numbers = list(kept)

    def read(start: int, stop: int) -> NDArray[Any]:
        return source.read(start, stop)[:, numbers]

    return RowSource(source.dtype, (*source.shape[:-1], len(numbers)), read, source.fault)


def picked(source: RowSource, kept: Sequence[int]) -> RowSource:
    """The slices `kept` of a source's first dimension: matrices, rows, or the columns of a vector."""
    numbers = list(kept)
    shape = (len(numbers), *source.shape[1:])
    if len(shape) == 1:
        return picked_columns(source, kept)
    size = source.n_rows // source.shape[0]

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = empty_rows(source.dtype, stop - start, source.n_columns)
        at = start
        while at < stop:
            slice_, first = divmod(at, size)
            last = min(size, first + stop - at)
            begin = numbers[slice_] * size
            rows[at - start : at - start + last - first] = source.read(begin + first, begin + last)
            at += last - first
        return rows

    return RowSource(source.dtype, shape, read, source.fault)
