"""reckon: what an engine allocates for a header and its settings on some GPUs, by device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ggplan.errors import PlanError
from ggplan.offload.allocation import HOST, device_bytes, gpu_name
from ggplan.offload.cache.classes import cache_tensors, draft_tensors, is_known
from ggplan.offload.cache.tensors import CacheTensor
from ggplan.offload.dimensions import ROLLS_BACK, Dimensions, dimensions_of
from ggplan.offload.graph.attention import has_kernel
from ggplan.offload.graph.compute import compute_sizes, draft_sizes, is_pipelined, placed_weights
from ggplan.offload.graph.maker import Job
from ggplan.offload.graph.schedule import Rules
from ggplan.offload.graph.thumb import thumb_sizes
from ggplan.offload.header import Header
from ggplan.offload.holding import Holding, holding_of
from ggplan.offload.machine import Gpu
from ggplan.offload.profiles import LLAMA_CPP, Profile
from ggplan.offload.reckoning import DeviceBytes, Reckoning
from ggplan.offload.settings import Settings
from ggplan.offload.weights import Weights, place_weights, streamed_tensor
from ggplan.text import printable

# Graphs that are not described here, and those that are a decoder's but for some parts.
_UNLIKE = frozenset({
    "bailingmoe3", "deepseek4", "dots3note", "dream", "glm5-next", "hrm_text", "hy_v4", "kimi-k3", "llada",
    "llada-moe", "minicpm3", "minimax-01", "qwen4exp", "rnd1",
})  # fmt: skip
_ABOUT = frozenset({
    "afmoe", "arctic", "arwkv7", "baichuan", "bloom", "chameleon", "cogvlm", "dbrx", "falcon", "gemma3n",
    "gpt2", "gptj", "gptneox", "grok", "jais", "mpt", "olmo", "plamo2", "refact", "rwkv6",
    "rwkv6qwen2", "rwkv7", "starcoder", "t5", "talkie",
})  # fmt: skip
# What building a graph of a header that cannot be may run into.
_DAMAGE = (LookupError, ArithmeticError, AssertionError)
MEMORY = 24 << 30  # of a GPU of which nothing is known


def reckon(
    header: Header,
    settings: Settings,
    gpus: Sequence[Gpu] | int = 0,
    profile: Profile = LLAMA_CPP,
) -> Reckoning:
    """What `profile`'s build allocates.

    Parameters
    ----------
    gpus
        The GPUs in the engine's order; a number stands for as many of one size.

    Raises
    ------
    CheckpointError
        If a metadata key is missing or cannot be.
    PlanError
        If the engine would refuse the settings: a device that is not there, a pattern that is no regex, types
        of the cache that do not go together.
    """
    cards = [Gpu("", MEMORY)] * gpus if isinstance(gpus, int) else list(gpus)
    settings = profile.as_run(settings)
    dimensions = dimensions_of(header)
    weights = place_weights(header, dimensions, settings, cards)
    return reckon_placed(dimensions, settings, weights, len(cards), profile)


def reckon_placed(
    dimensions: Dimensions, settings: Settings, weights: Weights, n_gpus: int, profile: Profile
) -> Reckoning:
    """The same for weights that were placed."""
    settings = profile.as_run(settings)
    settings = replace(settings, flash_attention=_flash(dimensions, settings, weights))
    _check(dimensions, settings, profile)
    holding = holding_of(dimensions, settings, limits_outputs=profile.limits_outputs)
    case = _Case(dimensions, settings, holding, weights, n_gpus, profile)
    sums, context = weights.by_device(), case.context(case.cache())
    rollback, (draft_context, draft_compute) = case.rollback(), case.draft()
    compute, compute_note = case.compute()
    devices = tuple(
        DeviceBytes(
            name,
            sums.get(name, 0),
            context.get(name, 0),
            compute.get(name, 0),
            rollback.get(name, 0),
            draft_context.get(name, 0),
            draft_compute.get(name, 0),
        )
        for name in case.names
    )
    streams = n_gpus and settings.op_offload and _copies_experts(dimensions, holding, profile)
    notes = (*_notes(dimensions, settings, holding, profile, weights), *compute_note)
    return Reckoning(profile.name, devices, streamed_tensor(weights) if streams else None, notes)


@dataclass(frozen=True, slots=True)
class _Case:
    """One reckoning: what is loaded where, and what is held."""

    dimensions: Dimensions
    settings: Settings
    holding: Holding
    weights: Weights
    n_gpus: int
    profile: Profile

    @property
    def names(self) -> list[str]:
        """The devices, the CPU last."""
        return [*(gpu_name(i) for i in range(self.n_gpus)), HOST]

    def cache(self) -> list[CacheTensor]:
        """The tensors of the main context."""
        return cache_tensors(self.dimensions, self.settings, self.holding)

    def context(self, cache: Iterable[CacheTensor]) -> dict[str, int]:
        """Bytes of a context on each device: that of the block, the CPU with `-nkvo`."""
        sums: dict[str, int] = {}
        for tensor in cache:
            device = self.weights.blocks[tensor.block] if self.settings.cache_on_gpu else HOST
            sums[device] = sums.get(device, 0) + device_bytes(device, tensor.type, tensor.shape)
        return sums

    def rollback(self) -> dict[str, int]:
        """What the main context keeps of its state before each drafted token."""
        if not self._drafts or self.dimensions.architecture not in ROLLS_BACK:
            return {}
        kept = replace(self.holding, n_planes=1 + self.settings.n_drafted)
        more = self.context(cache_tensors(self.dimensions, self.settings, kept))
        return {name: more[name] - n_bytes for name, n_bytes in self.context(self.cache()).items()}

    @property
    def _drafts(self) -> bool:
        return self.settings.mtp and bool(self.dimensions.n_mtp)

    def draft(self) -> tuple[dict[str, int], dict[str, int]]:
        """The draft context and its compute buffers."""
        if not self._drafts:
            return {}, {}
        context = self.context(draft_tensors(self.dimensions, self.settings, self.holding))
        job = self._job(replace(self.holding, n_outputs=min(self.holding.n_tokens, self.holding.n_slots)))
        try:
            return context, dict(zip(self.names, draft_sizes(job, self._rules()), strict=True))
        except _DAMAGE:
            return context, {}

    def compute(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """Bytes of compute buffers, and a note if they are not those of the architecture's own graph."""
        name = printable(self.dimensions.architecture)
        job, rules = self._job(self.holding), self._rules()
        notes: tuple[str, ...] = ()
        if name in _UNLIKE:
            notes = (f"{name}: compute buffers are a rule of thumb, and may be far off",)
            streamed = streamed_tensor(self.weights)
            sizes = thumb_sizes(job, rules, streamed[1] if streamed else 0)
            return dict(zip(self.names, sizes, strict=True)), notes
        if name in _ABOUT or not is_known(self.dimensions.architecture):
            notes = (f"{name}: compute buffers are a plain decoder's, and may be off by a fifth",)
        try:
            sizes = compute_sizes(job, rules)
        except _DAMAGE as error:
            # A missing tensor is a KeyError or a LookupError of ours; sizes that are 0 or do not go together
            # divide by nothing or reach beyond a list.
            is_named = isinstance(error, LookupError) and not isinstance(error, IndexError)
            why = (
                f"there is no {printable(str(error.args[0]))}" if is_named else "its sizes do not go together"
            )
            notes = (f"compute buffers are a rule of thumb, and may be far off: {why}",)
            streamed = streamed_tensor(self.weights)
            sizes = thumb_sizes(job, rules, streamed[1] if streamed else 0)
        return dict(zip(self.names, sizes, strict=True)), notes

    def _job(self, holding: Holding) -> Job:
        placed = placed_weights(self.weights, self.names[:-1])
        numbers = {name: i for i, name in enumerate(self.names)}
        blocks = tuple(numbers[device] for device in self.weights.blocks)
        return Job(self.dimensions, self.settings, holding, self.profile, placed, blocks, self.n_gpus)

    def _rules(self) -> Rules:
        settings, profile = self.settings, self.profile
        return Rules(
            self.n_gpus,
            settings.op_offload,
            profile.offload_batch,
            profile.pipelines and is_pipelined(settings, self.weights, self.n_gpus),
            profile.offload_per_expert,
            profile.keeps_fused,
        )


def _flash(dimensions: Dimensions, settings: Settings, weights: Weights) -> Literal["on", "off"]:
    """Whether attention is one operation: with `auto`, if every GPU with attention has a kernel for it."""
    if settings.flash_attention != "auto":
        return "on" if settings.flash_attention == "on" else "off"
    if settings.cache_v.is_quantized:  # for which it is needed
        return "on"
    return "on" if _has_kernels(dimensions, settings, weights) else "off"


def _has_kernels(dimensions: Dimensions, settings: Settings, weights: Weights) -> bool:
    """Whether every GPU with attention has a kernel for flash attention."""
    for block, device in enumerate(weights.blocks[: dimensions.n_trunk]):
        if device == HOST or dimensions.recurrent[block] or not dimensions.kv_heads[block]:
            continue
        key, value, n = dimensions.key_size(block), dimensions.value_size(block), dimensions.kv_heads[block]
        types = (settings.cache_k, settings.cache_k if dimensions.is_mla else settings.cache_v)
        if dimensions.is_mla:
            value = dimensions.kv_rank
        if not has_kernel(key, value, dimensions.heads[block], n, types):
            return False
    return True


def _copies_experts(dimensions: Dimensions, holding: Holding, profile: Profile) -> bool:
    """Whether a micro-batch is large enough for a GPU to do the work of experts in RAM."""
    used = max(dimensions.used, default=0)
    if profile.offload_per_expert and dimensions.n_experts and used:
        return holding.n_tokens * used >= profile.offload_batch * dimensions.n_experts
    return holding.n_tokens >= profile.offload_batch


def _check(dimensions: Dimensions, settings: Settings, profile: Profile) -> None:
    k, v = settings.cache_k, settings.cache_v
    has_one = dimensions.is_mla or dimensions.architecture == "deepseek4"
    if has_one and k is not v and profile.compares_latent_types:
        raise PlanError(
            f"K as {k.name} and V as {v.name}: the engine refuses, for this model has one cache for both",
            hint=f"give one type for both: `--kv-type {k.name}`, or `-ctk {k.name} -ctv {k.name}`",
        )
    if v.is_quantized and settings.flash_attention == "off":
        raise PlanError(
            f"V as {v.name} without flash attention: the engine refuses",
            hint="use -fa on, or -ctv f16",
        )
    for letter, kind, size_of in (("K", k, dimensions.key_size), ("V", v, dimensions.value_size)):
        odd = [size for i in range(dimensions.n_trunk) if (size := size_of(i)) % kind.block_size]
        if kind.is_quantized and odd and settings.flash_attention == "on":
            raise PlanError(
                f"{letter} as {kind.name}: the engine refuses, for a head of {odd[0]} is not whole blocks of "
                f"{kind.block_size}",
                hint=f"give -ct{letter.lower()} f16",
            )


def _notes(
    dimensions: Dimensions, settings: Settings, holding: Holding, profile: Profile, weights: Weights
) -> Iterator[str]:
    shown = printable(dimensions.architecture)
    if not is_known(dimensions.architecture):
        yield f"{shown} is no architecture that is known here: its context is reckoned as plain attention"
    if not profile.exact:
        what = "may be twice what they need" if dimensions.is_mla else "may differ by a sixth"
        yield f"{profile.name}: compute buffers are reckoned by llama.cpp's graphs, experts fused, and {what}"
    if dimensions.architecture == "minimax-m3" and dimensions.indexer is not None:
        n = (
            dimensions.indexer.heads * holding.n_tokens * holding.n_context * 4
        )  # scores of all positions, f32
        yield f"compute buffers grow as the context fills: by about {n / 2**20:.0f} MiB where it is full"
    fuses = settings.flash_attention == "on" and settings.cache_on_gpu
    if fuses and not _has_kernels(dimensions, settings, weights):
        names = " and ".join(dict.fromkeys((settings.cache_k.name, settings.cache_v.name)))
        yield f"no GPU has a kernel for this attention with a cache in {names}: the CPU does it, more slowly"
    if settings.split_mode in ("row", "tensor"):
        yield f"-sm {settings.split_mode} is reckoned as -sm layer"
    if settings.mtp and not dimensions.n_mtp:
        yield "the model has no blocks for multi-token prediction: nothing is drafted"
