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

from ggplan.offload.active import active_bytes
from ggplan.offload.allocation import HOST
from ggplan.offload.candidates import Candidate, Case
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.filling import Unit, fill, ram_overrides, rows_of, with_ram_full
from ggplan.offload.header import Header
from ggplan.offload.machine import Machine
from ggplan.offload.pins import check_pins
from ggplan.offload.placement import Placement, Wishes, describe_shortage, free_of_gpus, left_of, shortages
from ggplan.offload.profiles import LLAMA_CPP, Profile
from ggplan.offload.reckon import reckon
from ggplan.offload.settings import Settings
from ggplan.offload.speed import Rate, generation, prompt
from ggplan.offload.splitting import splits, splits_nearby, spread
from ggplan.offload.weights import place_weights

_MICRO_BATCHES = (512, 2048)
_FULL, _ROWS = 4, 6  # ways that are worth a whole reckoning
# A larger micro-batch takes memory that could hold experts; so much slower may generation get for it.
_WORTH = 1.03


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
    case = Case(header, dimensions, machine, wishes, profile)
    best = _Planner(case).placed()
    if len(machine.gpus) < 2 or any(pin.device not in ("CPU", "CUDA0") for pin in wishes.pins):
        return best
    return (_on_one_gpu(case, best) if not best.fits or _may_be_faster_alone(case, best) else None) or best


def place_in_rows(
    header: Header, machine: Machine, wishes: Wishes, profile: Profile = LLAMA_CPP
) -> Placement | None:
    """The placement in which each GPU has the experts of its last blocks, whether RAM is large enough or not;
    None where nothing is to be chosen, or other tensors are too large for a GPU.

    `place` falls back on it, so that a file that fits so is one that fits.

    Raises
    ------
    PlanError, CheckpointError
        As `place` does.
    """
    case = Case(header, dimensions_of(header), machine, wishes, profile)
    planner = _Planner(case)
    if not machine.gpus or not case.experts:
        return None
    blocks = sorted(case.experts)
    settings = planner.in_ram(case.base(wishes.micro_batch or _MICRO_BATCHES[0]), blocks)
    found: list[Candidate] = []
    for split in splits(case, settings) if len(machine.gpus) > 1 else [settings]:
        start = case.tried(split)
        candidate = planner.in_rows(split, start, blocks) if start.fits_gpus else None
        found += [] if candidate is None else [candidate]
    best = min(found, key=lambda one: sum(s.short for s in one.shortages), default=None)
    return None if best is None else case.made(best)


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


def _may_be_faster_alone(case: Case, best: Placement) -> bool:
    """Whether the first GPU alone may be faster, by an estimate with the compute buffer as it is."""
    alone = replace(case, machine=replace(case.machine, gpus=case.gpus[:1]))
    room = case.gpus[0].memory - case.machine.gpu_margin - best.reckoning.devices[0].whole_compute
    settings = replace(best.settings, tensor_split=(), overrides=case.wishes.pins)
    room -= sum(alone.sizes(settings, experts=not case.experts))
    if room < 0:
        return False
    if case.experts:
        units = case.units(0, case.experts, settings.threads)
        overrides = ram_overrides(sorted(case.experts), fill(room, units), by_count=False)
        settings = replace(settings, overrides=(*case.wishes.pins, *overrides))
    weights = place_weights(case.header, case.dimensions, settings, alone.gpus)
    active = active_bytes(weights, case.dimensions, settings)
    rate = generation(active, alone.machine, case.profile, settings)
    return rate.likely * _WORTH > best.generation.likely


def _on_one_gpu(case: Case, best: Placement) -> Placement | None:
    """The same on the first GPU alone, if that fits and a second one does not, or is slower: it costs changes
    of device, and buffers of the host.
    """
    header, machine = case.header, case.machine
    single = _Planner(replace(case, machine=replace(machine, gpus=machine.gpus[:1]))).placed()
    if not single.fits or (best.fits and single.generation.likely <= best.generation.likely):
        return None
    settings = replace(single.settings, split_mode="none")
    reckoning = reckon(header, settings, machine.gpus, case.profile)
    if shortages(reckoning, machine):
        return None
    if best.fits:
        note = (
            f"a second GPU makes it slower: about {best.generation.likely:.1f} tokens per second with "
            f"{len(machine.gpus)} GPUs and {single.generation.likely:.1f} with CUDA0 alone, which is used"
        )
    else:
        short = "; ".join(map(describe_shortage, best.shortages))
        note = f"CUDA0 alone is used: spread over {len(machine.gpus)} GPUs it does not fit, as {short}"
    return replace(
        single, machine=machine, settings=settings, reckoning=reckoning, notes=(*single.notes, note)
    )


@dataclass(frozen=True)
class _Planner:
    """What is tried for a case, in which order."""

    case: Case

    def placed(self) -> Placement:
        """The best candidate."""
        settings = self.case.base(self.case.wishes.micro_batch or _MICRO_BATCHES[0])
        if not self.case.gpus:
            return self.case.made(self.case.tried(settings))
        whole = self.whole(settings) if settings.gpu_layers >= self.case.dimensions.n_blocks + 1 else None
        if whole is not None:
            return self.with_wishes_in_ram(whole) if self.case.copies(whole) else self.case.made(whole)
        return self.with_experts_in_ram(settings) if self.case.experts else self.with_layers_in_ram(settings)

    def whole(self, settings: Settings) -> Candidate | None:
        """Everything on the GPUs; None if it does not fit."""
        sizes = self.case.sizes(settings, experts=True)
        if sum(sizes) > sum(gpu.memory - self.case.machine.gpu_margin for gpu in self.case.gpus):
            return None
        tried = spread(self.case, settings, sizes)
        return None if tried.shortages else tried

    def with_wishes_in_ram(self, whole: Candidate) -> Placement:
        """What would fit the GPUs, with what is wished in RAM, by pins or layers, where GPUs copy it fast."""
        settings = replace(whole.settings, load_mode="none")
        small = self.case.made(self.case.tried(settings))
        if self.case.wishes.micro_batch is not None or not small.fits:
            return small
        large = self.case.made(self.case.tried(replace(settings, micro_batch=_MICRO_BATCHES[1])))
        return (_with_note(large, small.prompt) if large.fits else None) or small

    def with_experts_in_ram(self, settings: Settings) -> Placement:
        """The routed experts in RAM, but for those that fit into what is left of the GPUs."""
        blocks = sorted(self.case.experts)
        in_ram = self.in_ram(settings, blocks)
        if len(self.case.gpus) < 2:
            return self.filled_up(in_ram, blocks)
        # What fits is better than what would be faster.
        first: Placement | None = None
        for split in splits(self.case, in_ram):
            made = self.filled_up(split, blocks)
            if made.fits:
                return made
            first = first or made
        assert first is not None
        for split in splits_nearby(self.case, in_ram, first):
            made = self.filled_up(split, blocks)
            if made.fits:
                return made
        return first

    def in_ram(self, settings: Settings, blocks: Sequence[int]) -> Settings:
        """The settings with all routed experts in RAM."""
        overrides = (*self.case.wishes.pins, *ram_overrides(blocks, (), by_count=True))
        return replace(settings, overrides=overrides, load_mode="none")

    def filled_up(self, in_ram: Settings, blocks: Sequence[int]) -> Placement:
        """What is left of the GPUs with all routed experts in RAM, filled with experts."""
        start = self.case.tried(in_ram)
        if not start.fits_gpus:
            return self.case.made(start)
        taken = self.filled(start, 1.0) or []
        if self.case.wishes.micro_batch is None and start.reckoning.streamed is not None:
            larger = self._with_large_micro_batch(start, taken, blocks)
            if larger is not None:
                return larger
        made = self.case.made(self._verified(in_ram, taken, blocks) or start)
        if {s.device for s in made.shortages} != {HOST}:
            return made
        # Other experts in RAM may take other compute buffers, too.
        room = free_of_gpus(made.reckoning, self.case.machine)
        if made.shortages[0].short > room + sum(d.compute for d in made.reckoning.devices[:-1]):
            return made
        for other in self._by_bytes(in_ram, start, blocks):
            if not other.shortages:
                return self.case.made(other)
        return made

    def _by_bytes(self, in_ram: Settings, start: Candidate, blocks: Sequence[int]) -> Iterator[Candidate]:
        """Other ways to choose experts, for what fits is better than what would be faster."""
        in_rows = self.in_rows(in_ram, start, blocks)
        if in_rows is not None:
            yield in_rows
        if len(self.case.gpus) < 2:
            units = self.case.units(0, blocks, start.settings.threads)
            room = sum(ways[0].n_bytes for ways in units.values()) - sum(s.short for s in start.shortages)
            for way in with_ram_full(room, units)[:_FULL]:
                yield self.counted(self.tried_with(in_ram, way, blocks), way, blocks)

    def in_rows(self, in_ram: Settings, start: Candidate, blocks: Sequence[int]) -> Candidate | None:
        """The candidate in which each GPU has the experts of its last blocks, as many as fit."""
        ways, at = [], []
        for index, device in enumerate(start.reckoning.devices[:-1]):
            units = self.case.units(index, self._blocks_on(start, device.name), start.settings.threads)
            ways.append(rows_of(units))
            room = left_of(device, self.case.gpus[index], self.case.machine)
            at.append(next(i for i, way in enumerate(ways[-1]) if sum(unit.n_bytes for unit in way) <= room))
        for _ in range(_ROWS):
            taken = [unit for i, own in zip(at, ways, strict=True) for unit in own[i]]
            tried = self.tried_with(in_ram, taken, blocks)
            if tried.fits_gpus:
                return self.counted(tried, taken, blocks)
            short = {s.device for s in tried.shortages}
            for index, device in enumerate(tried.reckoning.devices[:-1]):
                at[index] = min(at[index] + (device.name in short), len(ways[index]) - 1)
        return None

    def _blocks_on(self, start: Candidate, device: str) -> list[int]:
        """The blocks that a GPU has, with experts that may be anywhere."""
        return [block for block in self.case.experts if start.weights.blocks[block] == device]

    def _with_large_micro_batch(
        self, start: Candidate, taken: Sequence[Unit], blocks: Sequence[int]
    ) -> Placement | None:
        """The same with a larger micro-batch, if that fits and generation loses little."""
        units = self.filled(start, _MICRO_BATCHES[1] / _MICRO_BATCHES[0])
        if units is None or not self._is_worth(start, taken, units):
            return None
        found = self._verified(replace(start.settings, micro_batch=_MICRO_BATCHES[1]), units, blocks)
        if found is None or found.shortages:
            return None
        before = prompt(self.case.active(start), self.case.machine, self.case.profile, start.settings)
        return _with_note(self.case.made(found), before)

    def _verified(self, in_ram: Settings, taken: list[Unit], blocks: Sequence[int]) -> Candidate | None:
        """The candidate with these units on the GPUs, or with fewer where the whole reckoning says so.

        Where it says that there is room for more than was thought, more are tried once.
        """
        best: Candidate | None = None
        while True:
            tried = self.tried_with(in_ram, taken, blocks)
            if not tried.fits_gpus:
                if best is not None or not taken:
                    return best
                taken = self.without(taken, tried)
                continue
            more = [] if best is not None else self.filled(tried, 1.0, {unit.block for unit in taken}) or []
            best = self.counted(tried, taken, blocks)
            if not more:
                return best
            taken = taken + more

    def tried_with(self, in_ram: Settings, taken: Sequence[Unit], blocks: Sequence[int]) -> Candidate:
        """The candidate with these units on the GPUs."""
        # One pattern is quicker to reckon than the many of -ncmoe, which say the same.
        overrides = ram_overrides(blocks, taken, by_count=False)
        return self.case.tried(replace(in_ram, overrides=(*self.case.wishes.pins, *overrides)))

    def counted(self, tried: Candidate, taken: Sequence[Unit], blocks: Sequence[int]) -> Candidate:
        """The same with `-ncmoe` where that says it."""
        overrides = ram_overrides(blocks, taken, by_count=self._counts())
        settings = replace(tried.settings, overrides=(*self.case.wishes.pins, *overrides))
        return replace(tried, settings=settings)

    def _is_worth(self, start: Candidate, taken: Sequence[Unit], larger: Sequence[Unit]) -> bool:
        """Whether generation loses little to the larger micro-batch, whose buffer takes room of experts."""
        rate = generation(self.case.active(start), self.case.machine, self.case.profile, start.settings)
        seconds = sum(rate.seconds.values())
        small = seconds - sum(unit.gain for unit in taken)
        return seconds - sum(unit.gain for unit in larger) <= small * _WORTH

    def _counts(self) -> bool:
        """Whether `-ncmoe` says what it says here: on one GPU, and in llama.cpp."""
        return len(self.case.gpus) == 1 and self.case.is_llama_cpp and not self.case.wishes.pins

    def filled(self, start: Candidate, growth: float, done: Container[int] = ()) -> list[Unit] | None:
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
            room = left_of(device, self.case.gpus[index], self.case.machine) - grown
            if room < 0:
                return None
            mine = [block for block in self._blocks_on(start, device.name) if block not in done]
            taken += fill(room, self.case.units(index, mine, start.settings.threads))
        return taken

    def without(self, taken: list[Unit], tried: Candidate) -> list[Unit]:
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
        if self.case.wishes.micro_batch is not None or not small.fits:
            return small
        large = self.by_layers(replace(settings, micro_batch=_MICRO_BATCHES[1]))
        slower = small.generation.likely > large.generation.likely * _WORTH
        return small if slower or not large.fits else _with_note(large, small.prompt) or small

    def by_layers(self, settings: Settings) -> Placement:
        """A model without experts: as many of the last layers on the GPUs as fit."""
        settings = replace(settings, load_mode="none")  # what is in RAM is copied to a GPU for prompts
        sizes = self.case.sizes(settings, experts=True)
        n = len(sizes)
        if (wished := self.case.wishes.gpu_layers) is not None:
            return self.case.made(spread(self.case, settings, sizes[max(n - wished, 0) :]))
        over = spread(self.case, settings, sizes)
        compute = sum(d.compute for d in over.reckoning.devices[:-1])
        room = sum(g.memory - self.case.machine.gpu_margin for g in self.case.gpus) - compute
        while n and sum(sizes[len(sizes) - n :]) > room:
            n -= 1
        best: Candidate | None = None
        # How many are tried first is told with the buffers of all layers; those of a few may be smaller.
        while n >= 0:
            layers = replace(settings, gpu_layers=n)
            tried = spread(self.case, layers, sizes[len(sizes) - n :])
            if tried.fits_gpus:
                best, n = tried, n + 1
                if n > len(sizes) or sizes[len(sizes) - n] > free_of_gpus(tried.reckoning, self.case.machine):
                    break
            elif best is not None:
                break
            else:
                short = sum(s.short for s in tried.shortages if s.device != HOST)
                n -= max(1, short * n // max(sum(sizes[len(sizes) - n :]), 1))
        return self.case.made(best or over)
