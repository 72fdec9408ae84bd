"""Candidates of a placement: settings that are tried for a model on a machine, each reckoned whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from ggplan.offload.active import ActiveBytes, active_bytes
from ggplan.offload.allocation import HOST, device_bytes, gpu_name
from ggplan.offload.cache.classes import cache_tensors
from ggplan.offload.checks_of_memory import without_kernel
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.filling import Unit, expert_blocks, layer_of, units_of
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.holding import holding_of
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.pins import matching
from ggplan.offload.placement import Placement, Shortage, Wishes, shortages
from ggplan.offload.profiles import Profile
from ggplan.offload.reckon import reckon_placed
from ggplan.offload.reckoning import Reckoning
from ggplan.offload.settings import Settings
from ggplan.offload.speed import generation, prompt
from ggplan.offload.weights import Weights, place_weights

DEFAULT_CONTEXT = 32768
_ALL_LAYERS = 99


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that were tried: what they allocate, where the weights are, and what is short."""

    settings: Settings
    reckoning: Reckoning
    weights: Weights
    shortages: tuple[Shortage, ...]

    @property
    def fits_gpus(self) -> bool:
        """Whether every GPU is large enough."""
        return all(s.device == HOST for s in self.shortages)


@dataclass(frozen=True)
class Case:
    """A model, a machine and wishes; and candidates for them."""

    header: Header
    dimensions: Dimensions
    machine: Machine
    wishes: Wishes
    profile: Profile

    @cached_property
    def experts(self) -> dict[int, list[HeaderTensor]]:
        """Routed experts by block, without those that are pinned."""
        pinned = {
            name for pin in self.wishes.pins for name in matching(pin, (t.name for t in self.header.tensors))
        }
        free = (t.name for t in self.header.tensors if t.name not in pinned)
        return expert_blocks(self.header, self.dimensions, free)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Those of the machine."""
        return self.machine.gpus

    @cached_property
    def all_layers(self) -> int:
        """A value of `-ngl` that is all layers: 99, as people write it, if that is enough."""
        n = self.dimensions.n_blocks + 1
        return _ALL_LAYERS if n <= _ALL_LAYERS else 999

    def base(self, micro_batch: int) -> Settings:
        """What all candidates have in common."""
        wishes = self.wishes
        trained = self.dimensions.trained_context or DEFAULT_CONTEXT
        layers = self.all_layers if wishes.gpu_layers is None else wishes.gpu_layers
        return Settings(
            gpu_layers=layers if self.gpus else 0,
            overrides=wishes.pins,
            context=wishes.context or min(trained, DEFAULT_CONTEXT),
            batch=max(2048, micro_batch),
            micro_batch=micro_batch,
            slots=wishes.slots,
            flash_attention="on",
            cache_k=wishes.cache_k,
            cache_v=wishes.cache_v,
            host_cache_mib=0,
            threads=wishes.threads or self.machine.cores,
        )

    def rooms(self, known: Reckoning) -> list[int]:
        """Bytes of each GPU for weights and context, with compute buffers as they were reckoned."""
        compute = [d.whole_compute for d in known.devices[:-1]]
        return [g.memory - self.machine.gpu_margin - c for g, c in zip(self.gpus, compute, strict=True)]

    def sizes(self, settings: Settings, *, experts: bool) -> list[int]:
        """Bytes of weights and context of each block on a GPU, and at the end those of the output."""
        everywhere = replace(settings, gpu_layers=-1, overrides=self.wishes.pins, tensor_split=())
        weights = place_weights(self.header, self.dimensions, everywhere, self.gpus)
        sizes = [0] * (self.dimensions.n_blocks + 1)
        routed = set() if experts else {t.name for ts in self.experts.values() for t in ts}
        for one in weights.loaded:
            if one.device != HOST and one.use not in routed:
                sizes[layer_of(one.use, len(sizes))] += one.n_bytes
        holding = holding_of(self.dimensions, self.profile.as_run(settings))
        for tensor in cache_tensors(self.dimensions, settings, holding):
            sizes[tensor.block] += device_bytes(gpu_name(0), tensor.type, tensor.shape)
        return sizes

    def tried(self, settings: Settings) -> Candidate:
        """These settings, reckoned."""
        run = self.profile.as_run(settings)
        weights = place_weights(self.header, self.dimensions, run, self.gpus)
        reckoning = reckon_placed(self.dimensions, run, weights, len(self.gpus), self.profile)
        return Candidate(settings, reckoning, weights, shortages(reckoning, self.machine))

    def copies(self, tried: Candidate) -> bool:
        """Whether weights that lie in RAM are copied to a GPU for prompts."""
        active = self.active(tried)
        return bool(active.streamable or active.streamable_matrices)

    def active(self, tried: Candidate, depth: int = 0) -> ActiveBytes:
        """What a token reads with so many tokens before it."""
        return active_bytes(tried.weights, self.dimensions, tried.settings, depth=depth)

    def made(self, tried: Candidate) -> Placement:
        """The placement of a candidate."""
        settings, devices = tried.settings, tried.weights.devices()
        given = self.machine, self.profile, settings
        empty = self.active(tried)
        full = self.active(tried, (settings.context or 0) // max(settings.slots or 1, 1))
        in_ram = tuple(
            block
            for block, tensors in sorted(expert_blocks(self.header, self.dimensions).items())
            if any(devices.get(t.name) == HOST for t in tensors)
        )
        return Placement(
            self.header, self.machine, self.profile, self.wishes, settings, tried.reckoning, devices,
            tried.shortages, in_ram, generation(empty, *given), generation(full, *given),
            prompt(empty, *given), (*tried.reckoning.notes, *self.advice(settings)),
        )  # fmt: skip

    def advice(self, settings: Settings) -> Iterator[str]:
        """What of the wishes is worth a second thought."""
        trained, context = self.dimensions.trained_context, settings.context or 0
        slots = max(settings.slots or 1, 1)
        if trained and context // slots > trained:
            is_cut = "llama-server gives a conversation no more" if self.is_llama_cpp else "few can more"
            yield f"the model was trained with {trained:,} tokens of context: {is_cut}"
        if slots > 1 and context:
            yield f"each of {slots} conversations has {context // slots:,} tokens of the context (--ctx)"
        if self.gpus and (odd := without_kernel(settings, self.dimensions)):
            yield f"{odd[1]}; this costs speed, which is not reckoned"

    @property
    def is_llama_cpp(self) -> bool:
        """Whether the engine is llama.cpp itself."""
        return self.profile.engine == "llama.cpp"

    def units(self, gpu: int, blocks: Iterable[int], threads: int | None) -> dict[int, tuple[Unit, ...]]:
        """The units of the blocks among these that have free experts, as of a GPU, by block."""
        given = self.dimensions, self.machine, gpu, self.profile, threads
        return {i: units_of(i, self.experts[i], *given) for i in blocks if i in self.experts}
