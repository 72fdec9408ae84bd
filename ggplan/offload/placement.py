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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ggplan.errors import PlanError
from ggplan.ggml_types import F16, GgmlType
from ggplan.offload.active import active_bytes
from ggplan.offload.allocation import HOST, device_bytes, gpu_name
from ggplan.offload.cache.classes import cache_tensors
from ggplan.offload.dimensions import Dimensions, dimensions_of
from ggplan.offload.filling import Unit, expert_blocks, fill, ram_overrides, split_layers, units_of
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.holding import holding_of
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.profiles import LLAMA_CPP, Profile
from ggplan.offload.reckon import reckon
from ggplan.offload.reckoning import DeviceBytes, Reckoning
from ggplan.offload.settings import Override, Settings
from ggplan.offload.speed import FITTED, Rate, generation, prompt
from ggplan.offload.weights import Weights, place_weights
from ggplan.text import format_bytes, printable

DEFAULT_CONTEXT = 32768
_MICRO_BATCHES = (512, 2048)
# A larger micro-batch takes memory that could hold experts; so much slower may generation get for it.
_WORTH = 1.03
_ALL_LAYERS = 99
_LITTLE = 4 * FITTED.gpu_crossing


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for; what is None is chosen.

    Attributes
    ----------
    context
        Tokens of all slots together; None is what the model was trained with, at most 32,768.
    cache_k, cache_v
        Types of keys and values.
    micro_batch
        Tokens of a prompt at a time; None is 2048 where experts in RAM are streamed and that costs at most
        3 % of generation, else 512.
    slots
        Sequences at once.
    gpu_layers
        Layers on the GPUs, counted from the end; None is all, or as many as fit of a model without experts.
    pins
        Tensors by regex and the device where they must be: `CPU`, `CUDA0`, ...
    threads
        None is one a core.
    """

    context: int | None = None
    cache_k: GgmlType = F16
    cache_v: GgmlType = F16
    micro_batch: int | None = None
    slots: int = 1
    gpu_layers: int | None = None
    pins: tuple[Override, ...] = ()
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """A device that is too small.

    Attributes
    ----------
    device
        `CUDA0` or `host`.
    needed, available
        Bytes; available is without the margin.
    """

    device: str
    needed: int
    available: int

    @property
    def short(self) -> int:
        """Bytes that are missing."""
        return self.needed - self.available


@dataclass(frozen=True, slots=True)
class Placement:
    """A model on a machine.

    Attributes
    ----------
    header, machine, profile, wishes
        What it was made from.
    settings
        How the engine is started.
    reckoning
        What it allocates then.
    devices
        Device of each tensor that is loaded; that of a tied output as `output.weight`.
    shortages
        Devices that are too small; () if it fits.
    in_ram
        Blocks whose routed experts are in RAM, all or in part.
    generation, generation_full, prompt
        Tokens per second: written into an empty context, into a full one, and read.
    notes
        What was chosen for the user, and what may be otherwise.
    """

    header: Header
    machine: Machine
    profile: Profile
    wishes: Wishes
    settings: Settings
    reckoning: Reckoning
    devices: Mapping[str, str]
    shortages: tuple[Shortage, ...]
    in_ram: tuple[int, ...]
    generation: Rate
    generation_full: Rate
    prompt: Rate
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every device is large enough."""
        return not self.shortages


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
    _check_pins(header, dimensions, machine, wishes)
    planner = _Planner(header, dimensions, machine, wishes, profile)
    best = planner.placed()
    if len(machine.gpus) < 2 or not best.fits or not planner.is_second_gpu_idle(best):
        return best
    return _on_one_gpu(best, dimensions)


def _on_one_gpu(best: Placement, dimensions: Dimensions) -> Placement:
    """The same on the first GPU alone, if that is faster: a second one costs changes of device."""
    header, machine, profile = best.header, best.machine, best.profile
    alone = replace(machine, gpus=machine.gpus[:1])
    single = _Planner(header, dimensions, alone, best.wishes, profile).placed()
    if not single.fits or single.generation.likely <= best.generation.likely:
        return best
    note = (
        f"a second GPU makes it slower: {best.generation.likely:.1f} tokens per second on all "
        f"{len(machine.gpus)}, {single.generation.likely:.1f} on the first alone, which is used"
    )
    settings = replace(single.settings, split_mode="none")
    reckoning = reckon(header, settings, machine.gpus, profile)
    return replace(
        single, machine=machine, settings=settings, reckoning=reckoning, notes=(*single.notes, note)
    )


def _check_pins(header: Header, dimensions: Dimensions, machine: Machine, wishes: Wishes) -> None:
    """Refuse a pin that cannot be obeyed."""
    if not wishes.pins:
        return
    settings = Settings(gpu_layers=-1 if machine.gpus else 0, overrides=wishes.pins)
    # Names devices that are not there, and what is no regex.
    loaded = {one.use for one in place_weights(header, dimensions, settings, machine.gpus).loaded}
    for pin in wishes.pins:
        shown = f"--pin {printable(pin.pattern)}={pin.device}"
        if any(c in pin.pattern for c in ",="):
            raise PlanError(
                f"{shown}: `,` and `=` end a pattern after -ot", hint="write alternatives as (1|2)"
            )
        matched = _matching(pin, (t.name for t in header.tensors))
        if not matched:
            raise PlanError(f"{shown} matches no tensor", hint="`ggplan inspect FILE --tensors` lists them")
        if not any(name in loaded for name in matched):
            raise PlanError(f"{shown} matches tensors for multi-token prediction alone, which are not loaded")


def _matching(pin: Override, names: Iterable[str]) -> list[str]:
    import re2

    search = re2.compile(pin.pattern).search
    return [name for name in names if search(name)]


@dataclass
class _Planner:
    """Candidates for one model, machine and wishes."""

    header: Header
    dimensions: Dimensions
    machine: Machine
    wishes: Wishes
    profile: Profile
    notes: list[str] = field(default_factory=list)

    @cached_property
    def experts(self) -> dict[int, list[HeaderTensor]]:
        """Routed experts by block, without those that are pinned."""
        pinned = {
            name for pin in self.wishes.pins for name in _matching(pin, (t.name for t in self.header.tensors))
        }
        free = (t.name for t in self.header.tensors if t.name not in pinned)
        return expert_blocks(self.header, self.dimensions, free)

    @property
    def gpus(self) -> Sequence[Gpu]:
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
            return self.made(settings)
        whole = self.whole(settings)
        if whole is not None:
            return whole
        return self.with_experts_in_ram(settings) if self.experts else self.by_layers(settings)

    def is_second_gpu_idle(self, best: Placement) -> bool:
        """Whether GPUs after the first save a token so little that a change of device may cost more."""
        if any(pin.device not in ("CPU", "CUDA0") for pin in self.wishes.pins):
            return False
        if not best.in_ram:
            sizes = self.sizes(best.settings, experts=True)
            return sum(sizes) < self.gpus[0].memory - self.machine.gpu_margin
        saved = 0.0
        for block, tensors in self.experts.items():
            device = best.devices.get(tensors[0].name, HOST)
            if device not in (HOST, gpu_name(0)):
                given = self.dimensions, self.machine, 0, self.profile, best.settings.threads
                saved += units_of(block, tensors, *given)[0].gain
        return saved < _LITTLE

    # --- Candidates

    def whole(self, settings: Settings) -> Placement | None:
        """Everything on the GPUs; None if it does not fit."""
        sizes = self.sizes(settings, experts=True)
        if sum(sizes) > sum(gpu.memory - self.machine.gpu_margin for gpu in self.gpus):
            return None
        made = self.made(self.split(settings, sizes))
        return made if made.fits else None

    def with_experts_in_ram(self, settings: Settings) -> Placement:
        """The routed experts in RAM, but for those that fit into what is left of the GPUs."""
        blocks = sorted(self.experts)
        in_ram = replace(
            settings,
            overrides=(*self.wishes.pins, *ram_overrides(blocks, (), by_count=True)),
            load_mode="none",
        )
        if len(self.gpus) > 1:
            in_ram = self.split(in_ram, self.sizes(in_ram, experts=False))
        start = self.made(in_ram)
        if any(s.device != HOST for s in start.shortages):
            return start
        taken = self.filled(start, 1.0)
        if self.wishes.micro_batch is None and start.reckoning.streamed is not None:
            larger = self.filled(start, _MICRO_BATCHES[1] / _MICRO_BATCHES[0])
            if larger is not None and self._is_worth(start, taken or [], larger):
                taken, in_ram = larger, replace(in_ram, micro_batch=_MICRO_BATCHES[1])
        made = self._verified(in_ram, taken or [], blocks)
        if made is None:
            return start
        if made.settings.micro_batch == start.settings.micro_batch:
            return made
        note = (
            f"a micro-batch of {_MICRO_BATCHES[1]}, as experts in RAM are copied to the GPU once for each: "
            f"prompts at about {made.prompt.likely:.0f} tokens per second, not {start.prompt.likely:.0f}, "
            "for at most 3 % of generation"
        )
        return replace(made, notes=(*made.notes, note))

    def _verified(self, in_ram: Settings, taken: list[Unit], blocks: Sequence[int]) -> Placement | None:
        """The candidate with these units on the GPUs, or with fewer where the whole reckoning says so."""
        while True:
            # One pattern is quicker to reckon than the many of -ncmoe, which say the same.
            overrides = ram_overrides(blocks, taken, by_count=False)
            made = self.made(replace(in_ram, overrides=(*self.wishes.pins, *overrides)))
            too_small = [s for s in made.shortages if s.device != HOST]
            if not too_small:
                counted = ram_overrides(blocks, taken, by_count=self._counts())
                settings = replace(made.settings, overrides=(*self.wishes.pins, *counted))
                return replace(made, settings=settings)
            if not taken:
                return None
            taken = self.without(taken, made, too_small)

    def _is_worth(self, start: Placement, taken: Sequence[Unit], larger: Sequence[Unit]) -> bool:
        """Whether generation loses little to the larger micro-batch, whose buffer takes room of experts."""
        seconds = sum(start.generation.seconds.values())
        small = seconds - sum(unit.gain for unit in taken)
        return seconds - sum(unit.gain for unit in larger) <= small * _WORTH

    def _counts(self) -> bool:
        """Whether `-ncmoe` says what it says here: on one GPU, and in llama.cpp."""
        return len(self.gpus) == 1 and self.profile.engine == "llama.cpp" and not self.wishes.pins

    def filled(self, start: Placement, growth: float) -> list[Unit] | None:
        """Units for what is left of each GPU, whose blocks are on it; None if nothing is left at all.

        Parameters
        ----------
        growth
            By what the micro-batch grows, and with it all of a compute buffer but the streamed tensor.
        """
        taken: list[Unit] = []
        on = start.devices
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
                if on.get(f"blk.{block}.attn_norm.weight", gpu_name(index)) == device.name
            }
            taken += fill(room, blocks)
        return taken

    def without(self, taken: list[Unit], made: Placement, short: Sequence[Shortage]) -> list[Unit]:
        """The units without the least valuable ones of a GPU that became too full."""
        kept = list(taken)
        for shortage in short:
            missing = shortage.short
            on = [u for u in kept if self._device(u, made) == shortage.device]
            while missing > 0 and on:
                last = on.pop()
                kept.remove(last)
                missing -= last.n_bytes
            if missing > 0:  # not the experts take the room
                return []
        return kept

    def _device(self, unit: Unit, made: Placement) -> str:
        names = (t.name for t in self.experts[unit.block])
        return next((d for n in names if (d := made.devices[n]) != HOST), HOST)

    def by_layers(self, settings: Settings) -> Placement:
        """A model without experts: as many of the last layers on the GPUs as fit."""
        if self.wishes.gpu_layers is not None:
            return self.made(self.split(settings, self.sizes(settings, experts=True)))
        sizes = self.sizes(settings, experts=True)
        n = len(sizes)
        over = self.made(self.split(settings, sizes))
        compute = sum(d.compute for d in over.reckoning.devices[:-1])
        room = sum(g.memory - self.machine.gpu_margin for g in self.gpus) - compute
        while n and sum(sizes[len(sizes) - n :]) > room:
            n -= 1
        while n >= 0:
            layers = replace(settings, gpu_layers=n)
            made = self.made(self.split(layers, sizes[len(sizes) - n :]) if n else layers)
            if not any(s.device != HOST for s in made.shortages) or n == 0:
                return made
            n -= 1
        return over

    # --- Parts of candidates

    def split(self, settings: Settings, sizes: Sequence[int], known: Reckoning | None = None) -> Settings:
        """The settings with layers in proportion to what each GPU has room for."""
        if len(self.gpus) < 2:
            return settings
        known = known or reckon(self.header, settings, self.gpus, self.profile)
        compute = [d.compute + d.draft_compute for d in known.devices[:-1]]
        rooms = [g.memory - self.machine.gpu_margin - c for g, c in zip(self.gpus, compute, strict=True)]
        return replace(settings, tensor_split=split_layers(sizes, rooms))

    def sizes(self, settings: Settings, *, experts: bool) -> list[int]:
        """Bytes of weights and context of each block on a GPU, and at the end those of the output."""
        everywhere = replace(settings, gpu_layers=-1, overrides=self.wishes.pins, tensor_split=())
        weights = place_weights(self.header, self.dimensions, everywhere, self.gpus)
        sizes = [0] * (self.dimensions.n_blocks + 1)
        routed = set() if experts else {t.name for ts in self.experts.values() for t in ts}
        for one in weights.loaded:
            if one.device != HOST and one.use not in routed:
                sizes[_layer(one.use, len(sizes))] += one.n_bytes
        holding = holding_of(self.dimensions, settings)
        for tensor in cache_tensors(self.dimensions, settings, holding):
            sizes[tensor.block] += device_bytes(gpu_name(0), tensor.type, tensor.shape)
        return sizes

    def made(self, settings: Settings) -> Placement:
        """The placement with these settings."""
        reckoning = reckon(self.header, settings, self.gpus, self.profile)
        weights = place_weights(self.header, self.dimensions, settings, self.gpus)
        devices = weights.devices()
        rates = self.rates(weights, settings)
        in_ram = tuple(
            block
            for block, tensors in sorted(expert_blocks(self.header, self.dimensions).items())
            if any(devices.get(t.name) == HOST for t in tensors)
        )
        return Placement(
            self.header, self.machine, self.profile, self.wishes, settings, reckoning, devices,
            shortages(reckoning, self.machine), in_ram, *rates, notes=reckoning.notes,
        )  # fmt: skip

    def rates(self, weights: Weights, settings: Settings) -> tuple[Rate, Rate, Rate]:
        """Generation into an empty and a full context, and prompts."""
        depth = (settings.context or 0) // max(settings.slots or 1, 1)
        empty = active_bytes(weights, self.dimensions, settings)
        full = active_bytes(weights, self.dimensions, settings, depth=depth)
        given = self.machine, self.profile, settings
        return generation(empty, *given), generation(full, *given), prompt(empty, *given)


def _layer(name: str, n_layers: int) -> int:
    """The layer that a tensor counts for: its block, else the output."""
    if name.startswith("blk."):
        return min(int(name.split(".")[1]), n_layers - 1)
    return n_layers - 1


def shortages(reckoning: Reckoning, machine: Machine) -> tuple[Shortage, ...]:
    """The devices of a machine that are too small for what is reckoned."""
    found = []
    for device, gpu in zip(reckoning.devices[:-1], machine.gpus, strict=True):
        available = gpu.memory - machine.gpu_margin
        if device.total > available and device.total:
            found.append(Shortage(device.name, device.total, max(available, 0)))
    host = reckoning.devices[-1]
    if machine.ram is not None and host.total > machine.ram - machine.ram_margin:
        found.append(Shortage(HOST, host.total, max(machine.ram - machine.ram_margin, 0)))
    return tuple(found)


def left_of(device: DeviceBytes, gpu: Gpu, machine: Machine) -> int:
    """Bytes of a GPU that stay free beside the margin."""
    return gpu.memory - machine.gpu_margin - device.total


def describe_shortage(shortage: Shortage) -> str:
    """One sentence: what is short by how much."""
    where = "RAM" if shortage.device == HOST else shortage.device
    return (
        f"{where} is short of {format_bytes(shortage.short)}: {format_bytes(shortage.needed)} are needed, "
        f"{format_bytes(shortage.available)} are there beside the margin"
    )
