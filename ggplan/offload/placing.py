"""Placement: how a model is loaded on a machine, what that takes of each device, and how fast it will be.

    everything on the GPUs                      if it fits
    attention, shared experts, dense layers,    on the GPUs; the routed experts in RAM, but for those that go
    norms and the output                        back to what is left of the GPUs (`filling.py`)
    a model without experts                     the last layers on the GPUs, as many as fit (`-ngl`)

What is left of a GPU is its memory without the margin, the weights, the context and the compute buffer with
the tensor that is streamed for prompts. Every candidate is reckoned whole before it is taken. A wish is never
changed to make it fit: what does not fit is said, with ways out that were reckoned (`ways_out.py`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ggplan.offload.active import ActiveBytes, active_bytes
from ggplan.offload.allocation import HOST, device_bytes, gpu_name
from ggplan.offload.cache.classes import cache_tensors
from ggplan.offload.checks_of_memory import without_kernel
from ggplan.offload.dimensions import Dimensions, dimensions_of
from ggplan.offload.filling import (
    Unit,
    compact_layers,
    expert_blocks,
    fill,
    layer_of,
    ram_overrides,
    split_layers,
    splits_near,
    units_of,
)
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.holding import holding_of
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.pins import check_pins, matching
from ggplan.offload.placement import Placement, Shortage, Wishes, free_of_gpus, left_of, shortages
from ggplan.offload.profiles import LLAMA_CPP, Profile
from ggplan.offload.reckon import reckon, reckon_placed
from ggplan.offload.reckoning import Reckoning
from ggplan.offload.settings import Settings
from ggplan.offload.speed import Rate, generation, prompt
from ggplan.offload.weights import Weights, block_devices, place_weights

DEFAULT_CONTEXT = 32768
_MICRO_BATCHES = (512, 2048)
# A larger micro-batch takes memory that could hold experts; so much slower may generation get for it.
_WORTH = 1.03
_ALL_LAYERS = 99


def place(
    header: Header, machine: Machine, wishes: Wishes | None = None, profile: Profile = LLAMA_CPP
) -> Placement:
    """Place a model on a machine.

    Raises
    ------
    PlanError
        If a pin names a device that is not there, is no regex, or matches no tensor that is loaded.
    CheckpointError
        If the header lacks what the engine needs.
    """
    wishes = wishes or Wishes()
    dimensions = dimensions_of(header)
    check_pins(header, dimensions, machine, wishes)
    planner = _Planner(header, dimensions, machine, wishes, profile)
    best = planner.placed()
    if len(machine.gpus) < 2 or not best.fits or not planner.may_be_faster_alone(best):
        return best
    return _on_one_gpu(best, dimensions)


def _with_note(made: Placement, before: Rate) -> Placement | None:
    """A placement with a large micro-batch, which it says; None if prompts are no faster with it."""
    if made.prompt.likely <= before.likely * _WORTH:  # below its batch ik_llama.cpp computes on the CPU
        return None
    note = (
        f"a micro-batch of {_MICRO_BATCHES[1]} tokens and not {_MICRO_BATCHES[0]} (--ubatch): weights in RAM "
        f"are copied to the GPU once for each, so prompts are read at about {made.prompt.likely:,.0f} tokens "
        f"per second and not {before.likely:,.0f}; its buffers cost at most 3 % of generation"
    )
    return replace(made, notes=(*made.notes, note))


def _on_one_gpu(best: Placement, dimensions: Dimensions) -> Placement:
    """The same on the first GPU alone, if that is faster: a second one costs changes of device."""
    header, machine, profile = best.header, best.machine, best.profile
    alone = replace(machine, gpus=machine.gpus[:1])
    single = _Planner(header, dimensions, alone, best.wishes, profile).placed()
    if not single.fits or single.generation.likely <= best.generation.likely:
        return best
    note = (
        f"a second GPU makes it slower: about {best.generation.likely:.1f} tokens per second with "
        f"{len(machine.gpus)} GPUs and {single.generation.likely:.1f} with CUDA0 alone, which is used"
    )
    settings = replace(single.settings, split_mode="none")
    reckoning = reckon(header, settings, machine.gpus, profile)
    return replace(
        single, machine=machine, settings=settings, reckoning=reckoning, notes=(*single.notes, note)
    )


@dataclass(frozen=True)
class _Candidate:
    """Settings that were tried: what they allocate, and where the weights are."""

    settings: Settings
    reckoning: Reckoning
    weights: Weights
    shortages: tuple[Shortage, ...]

    @property
    def fits_gpus(self) -> bool:
        return all(s.device == HOST for s in self.shortages)


@dataclass(frozen=True)
class _Planner:
    """Candidates for one model, machine and wishes."""

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

    def placed(self) -> Placement:
        """The best candidate."""
        settings = self.base(self.wishes.micro_batch or _MICRO_BATCHES[0])
        if not self.gpus:
            return self.made(self.tried(settings))
        whole = self.whole(settings) if settings.gpu_layers >= self.dimensions.n_blocks + 1 else None
        if whole is not None:
            return self.with_wishes_in_ram(whole) if self.copies(whole) else self.made(whole)
        return self.with_experts_in_ram(settings) if self.experts else self.with_layers_in_ram(settings)

    def may_be_faster_alone(self, best: Placement) -> bool:
        """Whether the first GPU alone may be faster, by an estimate with the compute buffer as it is."""
        if any(pin.device not in ("CPU", "CUDA0") for pin in self.wishes.pins):
            return False
        alone = replace(self, machine=replace(self.machine, gpus=self.gpus[:1]))
        first = best.reckoning.devices[0]
        room = self.gpus[0].memory - self.machine.gpu_margin - first.whole_compute
        settings = replace(best.settings, tensor_split=(), overrides=self.wishes.pins)
        room -= sum(alone.sizes(settings, experts=not self.experts))
        if room < 0:
            return False
        if self.experts:
            given = self.dimensions, self.machine, 0, self.profile, settings.threads
            units = {block: units_of(block, tensors, *given) for block, tensors in self.experts.items()}
            overrides = ram_overrides(sorted(self.experts), fill(room, units), by_count=False)
            settings = replace(settings, overrides=(*self.wishes.pins, *overrides))
        weights = place_weights(self.header, self.dimensions, settings, alone.gpus)
        active = active_bytes(weights, self.dimensions, settings)
        rate = generation(active, alone.machine, self.profile, settings)
        return rate.likely * _WORTH > best.generation.likely

    # --- Candidates

    def whole(self, settings: Settings) -> _Candidate | None:
        """Everything on the GPUs; None if it does not fit."""
        sizes = self.sizes(settings, experts=True)
        if sum(sizes) > sum(gpu.memory - self.machine.gpu_margin for gpu in self.gpus):
            return None
        tried = self.tried(self.split(settings, sizes))
        return None if tried.shortages else tried

    def copies(self, tried: _Candidate) -> bool:
        """Whether weights that lie in RAM are copied to a GPU for prompts."""
        active = self.active(tried)
        return bool(active.streamable or active.streamable_matrices)

    def with_wishes_in_ram(self, whole: _Candidate) -> Placement:
        """What would fit the GPUs, with what is wished in RAM, by pins or layers, where GPUs copy it fast."""
        settings = replace(whole.settings, load_mode="none")
        small = self.made(self.tried(settings))
        if self.wishes.micro_batch is not None or not small.fits:
            return small
        large = self.made(self.tried(replace(settings, micro_batch=_MICRO_BATCHES[1])))
        return (_with_note(large, small.prompt) if large.fits else None) or small

    def with_experts_in_ram(self, settings: Settings) -> Placement:
        """The routed experts in RAM, but for those that fit into what is left of the GPUs."""
        blocks = sorted(self.experts)
        in_ram = replace(
            settings,
            overrides=(*self.wishes.pins, *ram_overrides(blocks, (), by_count=True)),
            load_mode="none",
        )
        if len(self.gpus) < 2:
            return self.filled_up(in_ram, blocks)
        # What fits is better than what would be faster.
        first: Placement | None = None
        for split in self.splits(in_ram):
            made = self.filled_up(split, blocks)
            if made.fits:
                return made
            first = first or made
        assert first is not None
        for split in self.splits_nearby(in_ram, first):
            made = self.filled_up(split, blocks)
            if made.fits:
                return made
        return first

    def filled_up(self, in_ram: Settings, blocks: Sequence[int]) -> Placement:
        """What is left of the GPUs with all routed experts in RAM, filled with experts."""
        start = self.tried(in_ram)
        if not start.fits_gpus:
            return self.made(start)
        taken = self.filled(start, 1.0) or []
        if self.wishes.micro_batch is None and start.reckoning.streamed is not None:
            larger = self._with_large_micro_batch(start, taken, blocks)
            if larger is not None:
                return larger
        return self.made(self._verified(in_ram, taken, blocks) or start)

    def _with_large_micro_batch(
        self, start: _Candidate, taken: Sequence[Unit], blocks: Sequence[int]
    ) -> Placement | None:
        """The same with a larger micro-batch, if that fits and generation loses little."""
        units = self.filled(start, _MICRO_BATCHES[1] / _MICRO_BATCHES[0])
        if units is None or not self._is_worth(start, taken, units):
            return None
        found = self._verified(replace(start.settings, micro_batch=_MICRO_BATCHES[1]), units, blocks)
        if found is None or found.shortages:
            return None
        before = prompt(self.active(start), self.machine, self.profile, start.settings)
        return _with_note(self.made(found), before)

    def _verified(self, in_ram: Settings, taken: list[Unit], blocks: Sequence[int]) -> _Candidate | None:
        """The candidate with these units on the GPUs, or with fewer where the whole reckoning says so.

        Where it says that there is room for more than was thought, more are tried once.
        """
        best: _Candidate | None = None
        while True:
            # One pattern is quicker to reckon than the many of -ncmoe, which say the same.
            overrides = ram_overrides(blocks, taken, by_count=False)
            tried = self.tried(replace(in_ram, overrides=(*self.wishes.pins, *overrides)))
            if not tried.fits_gpus:
                if best is not None or not taken:
                    return best
                taken = self.without(taken, tried)
                continue
            counted = ram_overrides(blocks, taken, by_count=self._counts())
            settings = replace(tried.settings, overrides=(*self.wishes.pins, *counted))
            more = [] if best is not None else self.filled(tried, 1.0, {unit.block for unit in taken}) or []
            best = replace(tried, settings=settings)
            if not more:
                return best
            taken = taken + more

    def _is_worth(self, start: _Candidate, taken: Sequence[Unit], larger: Sequence[Unit]) -> bool:
        """Whether generation loses little to the larger micro-batch, whose buffer takes room of experts."""
        rate = generation(self.active(start), self.machine, self.profile, start.settings)
        seconds = sum(rate.seconds.values())
        small = seconds - sum(unit.gain for unit in taken)
        return seconds - sum(unit.gain for unit in larger) <= small * _WORTH

    @property
    def _is_llama_cpp(self) -> bool:
        return self.profile.engine == "llama.cpp"

    def _counts(self) -> bool:
        """Whether `-ncmoe` says what it says here: on one GPU, and in llama.cpp."""
        return len(self.gpus) == 1 and self._is_llama_cpp and not self.wishes.pins

    def filled(self, start: _Candidate, growth: float, done: Container[int] = ()) -> list[Unit] | None:
        """Units for what is left of each GPU, whose blocks are on it; None if nothing is left at all.

        Parameters
        ----------
        growth
            By what the micro-batch grows, and with it all of a compute buffer but the streamed tensor.
        done
            Blocks whose experts were considered before.
        """
        taken: list[Unit] = []
        for index, device in enumerate(start.reckoning.devices[:-1]):
            streamed = start.reckoning.streamed[1] if start.reckoning.streamed and not index else 0
            grown = int(max(device.compute - streamed, 0) * (growth - 1))
            room = left_of(device, self.gpus[index], self.machine) - grown
            if room < 0:
                return None
            blocks = {
                block: units_of(
                    block, tensors, self.dimensions, self.machine, index, self.profile, start.settings.threads
                )
                for block, tensors in self.experts.items()
                if start.weights.blocks[block] == device.name and block not in done
            }
            taken += fill(room, blocks)
        return taken

    def without(self, taken: list[Unit], tried: _Candidate) -> list[Unit]:
        """The units without the least valuable ones of a GPU that became too full."""
        kept = list(taken)
        for shortage in tried.shortages:
            missing = shortage.short if shortage.device != HOST else 0
            on = [u for u in kept if tried.weights.blocks[u.block] == shortage.device]
            while missing > 0 and on:
                last = on.pop()
                kept.remove(last)
                missing -= last.n_bytes
            if missing > 0:  # not the experts take the room
                return []
        return kept

    def with_layers_in_ram(self, settings: Settings) -> Placement:
        """The last layers on the GPUs, with the micro-batch that is worth it: the others are copied too."""
        small = self.by_layers(settings)
        if self.wishes.micro_batch is not None or not small.fits:
            return small
        large = self.by_layers(replace(settings, micro_batch=_MICRO_BATCHES[1]))
        slower = small.generation.likely > large.generation.likely * _WORTH
        return small if slower or not large.fits else _with_note(large, small.prompt) or small

    def by_layers(self, settings: Settings) -> Placement:
        """A model without experts: as many of the last layers on the GPUs as fit."""
        settings = replace(settings, load_mode="none")  # what is in RAM is copied to a GPU for prompts
        if self.wishes.gpu_layers is not None:
            return self.made(self.tried(self.split(settings, self.sizes(settings, experts=True))))
        sizes = self.sizes(settings, experts=True)
        n = len(sizes)
        over = self.tried(self.split(settings, sizes))
        compute = sum(d.compute for d in over.reckoning.devices[:-1])
        room = sum(g.memory - self.machine.gpu_margin for g in self.gpus) - compute
        while n and sum(sizes[len(sizes) - n :]) > room:
            n -= 1
        best: _Candidate | None = None
        # How many are tried first is told with the buffers of all layers; those of a few may be smaller.
        while n >= 0:
            layers = replace(settings, gpu_layers=n)
            tried = self.tried(self.split(layers, sizes[len(sizes) - n :]) if n else layers)
            if tried.fits_gpus:
                best, n = tried, n + 1
                if n > len(sizes) or sizes[len(sizes) - n] > free_of_gpus(tried.reckoning, self.machine):
                    break
            elif best is not None:
                break
            else:
                short = sum(s.short for s in tried.shortages if s.device != HOST)
                n -= max(1, short * n // max(sum(sizes[len(sizes) - n :]), 1))
        return self.made(best or over)

    # --- Parts of candidates

    def splits(self, settings: Settings) -> list[Settings]:
        """The ways to spread layers, the faster one first: by room, or whole layers on all but the first."""
        dense, sizes = (self.sizes(settings, experts=e) for e in (False, True))
        rooms = self.rooms(reckon(self.header, settings, self.gpus, self.profile))
        ways = {split_layers(dense, rooms), compact_layers(sizes, dense, rooms)}
        return sorted(
            (replace(settings, tensor_split=way) for way in sorted(ways)),
            key=lambda settings: -self.speed_of(settings, dense, rooms),
        )

    def speed_of(self, settings: Settings, dense: Sequence[int], rooms: Sequence[int]) -> float:
        """Tokens per second with the experts that would fit, by an estimate; 0 if a GPU is too small."""
        on = block_devices(self.dimensions, settings, self.gpus)
        units: list[Unit] = []
        for gpu, room in enumerate(rooms):
            mine = [i for i, device in enumerate(on) if device == gpu_name(gpu)]
            left = room - sum(dense[i] for i in mine)
            if left < 0:
                return 0.0
            given = self.dimensions, self.machine, gpu, self.profile, settings.threads
            units += fill(left, {i: units_of(i, self.experts[i], *given) for i in mine if i in self.experts})
        overrides = ram_overrides(sorted(self.experts), units, by_count=False)
        filled = replace(settings, overrides=(*self.wishes.pins, *overrides))
        weights = place_weights(self.header, self.dimensions, filled, self.gpus)
        active = active_bytes(weights, self.dimensions, filled)
        return generation(active, self.machine, self.profile, filled).likely

    def splits_nearby(self, settings: Settings, short: Placement) -> list[Settings]:
        """Other ways to spread layers, near those of `splits`, for a placement for which RAM is too small.

        None where all that is left of the GPUs would not be enough either.
        """
        free = free_of_gpus(short.reckoning, self.machine)
        if any(s.device != HOST or s.short > free for s in short.shortages):
            return []
        dense = self.sizes(settings, experts=False)
        rooms = self.rooms(reckon(self.header, settings, self.gpus, self.profile))
        given = self.dimensions, self.machine
        units = [
            {i: units_of(i, e, *given, gpu, self.profile, settings.threads) for i, e in self.experts.items()}
            for gpu in range(len(rooms))
        ]
        before = {way.tensor_split for way in self.splits(settings)}
        return [replace(settings, tensor_split=way) for way in splits_near(before, dense, rooms, units)]

    def rooms(self, known: Reckoning) -> list[int]:
        """Bytes of each GPU for weights and context, with compute buffers as they were reckoned."""
        compute = [d.whole_compute for d in known.devices[:-1]]
        return [g.memory - self.machine.gpu_margin - c for g, c in zip(self.gpus, compute, strict=True)]

    def split(self, settings: Settings, sizes: Sequence[int]) -> Settings:
        """The settings with layers in proportion to what each GPU has room for."""
        if len(self.gpus) < 2:
            return settings
        rooms = self.rooms(reckon(self.header, settings, self.gpus, self.profile))
        return replace(settings, tensor_split=split_layers(sizes, rooms))

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

    def tried(self, settings: Settings) -> _Candidate:
        """These settings, reckoned."""
        run = self.profile.as_run(settings)
        weights = place_weights(self.header, self.dimensions, run, self.gpus)
        reckoning = reckon_placed(self.dimensions, run, weights, len(self.gpus), self.profile)
        return _Candidate(settings, reckoning, weights, shortages(reckoning, self.machine))

    def active(self, tried: _Candidate, depth: int = 0) -> ActiveBytes:
        """What a token reads with so many tokens before it."""
        return active_bytes(tried.weights, self.dimensions, tried.settings, depth=depth)

    def made(self, tried: _Candidate) -> Placement:
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
            is_cut = "llama-server gives a conversation no more" if self._is_llama_cpp else "few can more"
            yield f"the model was trained with {trained:,} tokens of context: {is_cut}"
        if slots > 1 and context:
            yield f"each of {slots} conversations has {context // slots:,} tokens of the context (--ctx)"
        if self.gpus and (odd := without_kernel(settings, self.dimensions)):
            yield f"{odd[1]}; this costs speed, which is not reckoned"
