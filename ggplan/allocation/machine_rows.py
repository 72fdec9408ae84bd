"""The limits of a machine as rows: memory of each GPU, RAM, and seconds of a token.

`placed_rows` are those of one placement: each tensor counts where it is, weights as the engine pads them, and
context and compute buffers are taken off. They are exact for the file and that placement.

`merged_rows` know no places yet. Whatever may lie on a GPU or in RAM (the routed experts; of a model without
experts, the layers) counts in all memory together, and the rest where it must be. No placement allows a file
that these rows do not. Seconds are counted as if all that may lie in RAM were there, and a byte that must be
on a GPU also takes the place of one that could have been moved there: what is gained by what is moved is the
same for every file then, and is measured on one placement.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ggplan.allocation.budget import Row
from ggplan.allocation.candidates import TensorChoices
from ggplan.ggml_types import F16, GgmlType
from ggplan.model import Model, TensorInfo
from ggplan.offload.allocation import HOST, gpu_name
from ggplan.offload.completing import completed
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.filling import expert_blocks
from ggplan.offload.header import Header, HeaderTensor, header_of
from ggplan.offload.machine import Machine
from ggplan.offload.placement import Placement, Wishes, placed_memory
from ggplan.offload.profiles import PROFILES
from ggplan.offload.speed import core_rate, is_fast
from ggplan.offload.tensor_costs import TensorCosts
from ggplan.text import format_bytes

MEMORY, SPEED = "memory", "speed"
"""Names of rows. Those of devices are the devices' own, `CUDA0` and `host`."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Target:
    """A machine that the file must fit, and how it is to be loaded there.

    Attributes
    ----------
    machine, wishes
        As `ggplan.place` takes them.
    min_tps
        The least likely tokens per second, written into an empty context; None for no such limit.
    fast_types
        Whether what is in RAM may have only types that the cores work off as fast as they read RAM.
    """

    machine: Machine
    wishes: Wishes = field(default_factory=Wishes)
    min_tps: float | None = None
    fast_types: bool = False


def placed_rows(
    placement: Placement, target: Target, costs: TensorCosts, spare: Mapping[str, int]
) -> tuple[Row, ...]:
    """The rows of a placement.

    Parameters
    ----------
    spare
        Bytes of devices that are to stay free beside the margin.
    """
    rows = []
    bytes_on = _bytes_on(costs)
    for device, memory in zip(placement.reckoning.devices, placed_memory(placement), strict=True):
        if memory is None:
            continue
        taken = device.whole_context + device.whole_compute + spare.get(device.name, 0)
        cost = _on_device(bytes_on, device.name)
        rows.append(_memory_row(device.name, memory, taken, cost, placement.machine))
    if target.min_tps is not None:
        rows.append(_speed_row(target.min_tps, costs, _memoized(costs.seconds)))
    return tuple(rows)


def merged_rows(
    placement: Placement, target: Target, costs: TensorCosts, spare: int, *, speed: bool
) -> tuple[Row, ...]:
    """The rows of all placements.

    Parameters
    ----------
    placement
        Of some types, for the context and the buffers, and for what moving experts to the GPUs gains.
    spare
        Bytes of all memory that are to stay free beside the margins.
    speed
        Whether the seconds of a token are a row; some of what may be in RAM must be there then.
    """
    header, machine = placement.header, placement.machine
    free = movable(header, target.wishes) if machine.gpus else frozenset()
    devices, memories = placement.reckoning.devices, placed_memory(placement)
    is_still = not free or bool(expert_blocks(header, dimensions_of(header)))
    bytes_on = _bytes_on(costs)
    rows = []
    if None not in memories:
        taken = spare + sum(d.whole_context + d.whole_compute for d in devices)
        total = sum(memory or 0 for memory in memories)
        rows.append(_memory_row(MEMORY, total, taken, lambda t, q: sum(bytes_on(t, q).values()), machine))
    for device, memory in zip(devices, memories, strict=True):
        if memory is None or (device.name == HOST and None not in memories and not machine.gpus):
            continue
        # Layers that may move take their part of the context with them.
        taken = device.whole_compute + (device.whole_context if is_still else 0)
        if len(machine.gpus) > 1 and device.name != HOST:
            continue  # how layers are split is not known yet
        rows.append(_memory_row(device.name, memory, taken, _on_device(bytes_on, device.name, free), machine))
    if speed and target.min_tps is not None:
        rows.append(_speed_row(target.min_tps, costs, _merged_seconds(costs, free)))
    return tuple(rows)


def movable(header: Header, wishes: Wishes) -> frozenset[str]:
    """The tensors that may be in RAM or on a GPU."""
    import re2

    dimensions = dimensions_of(header)
    experts = {t.name for tensors in expert_blocks(header, dimensions).values() for t in tensors}
    layers = {t.name for t in header.tensors if t.name.startswith("blk.")}
    # Experts can be in RAM whatever layers are on the GPUs; layers are where the wish has them.
    names = experts or (layers if wishes.gpu_layers is None else set())
    pins = [re2.compile(pin.pattern).search for pin in wishes.pins]
    return frozenset(name for name in names if not any(search(name) for search in pins))


def fast_alone(
    choices: Sequence[TensorChoices], model: Model, target: Target, engine: str
) -> tuple[tuple[TensorChoices, ...], tuple[str, ...]]:
    """The candidates without the slow ones of what may be in RAM, and notes.

    A type is slow if the machine's cores work it off slower than they read RAM. Of a tensor that has slow
    candidates alone the fastest is left.
    """
    machine, profile = target.machine, PROFILES[engine]
    header = header_of(model)
    header = completed(header) if model.kind == "inventory" else header
    free = movable(header, target.wishes) if machine.gpus else {c.tensor.name for c in choices}
    threads = target.wishes.threads or machine.cores
    found, left = [], []
    for choice in choices:
        if choice.fixed or choice.tensor.name not in free:
            found.append(choice)
            continue
        fast = tuple(c for c in choice.candidates if is_fast(c.type.name, machine, profile, threads))
        if not fast:
            least = max(choice.candidates, key=lambda c: core_rate(c.type.name, machine, profile) / c.n_bytes)
            fast = (least,)
            left.append(least.type.name)
        found.append(replace(choice, candidates=fast))
    notes = []
    if left:
        kinds = ", ".join(sorted(set(left)))
        notes.append(
            f"{len(left):,} tensors have no type that {threads} cores work off as fast as they read RAM: they"
            f" get {kinds}, the fastest"
        )
    return tuple(found), tuple(notes)


def _memory_row(
    name: str, limit: int, taken: float, cost: Callable[[TensorInfo, GgmlType], float], machine: Machine
) -> Row:
    where = "RAM" if name == HOST else "all memory" if name == MEMORY else name
    sizes = {gpu_name(i): gpu.memory for i, gpu in enumerate(machine.gpus)} | {HOST: machine.ram or 0}
    whole = sizes.get(name, limit)

    def short(least: float) -> str:
        return (
            f"{where} is short of {format_bytes(round(max(least - limit, 0)))}: {format_bytes(round(least))} "
            f"are needed, {format_bytes(limit)} are there beside the margin"
        )

    return Row(name, limit, taken, cost, f"{format_bytes(whole)} of {where}", short)


def _speed_row(min_tps: float, costs: TensorCosts, cost: Callable[[TensorInfo, GgmlType], float]) -> Row:
    header = costs.placement.header
    # What a token waits for besides weights: all of it, less the weights of the placement.
    weights = sum(cost(_info(t), t.type) for t in header.tensors)

    def short(least: float) -> str:
        tps = 1 / least if least > 0 else float("inf")
        return (
            f"{tps:.1f} tokens per second are likely at most, {min_tps - tps:.1f} below --min-tps {min_tps:g}"
        )

    return Row(
        SPEED, 1 / min_tps * (1 - _ROUNDING), costs.whole_seconds - weights, cost,
        f"{min_tps:g} tokens per second", short,
    )  # fmt: skip


def _merged_seconds(costs: TensorCosts, free: Collection[str]) -> Callable[[TensorInfo, GgmlType], float]:
    placement = costs.placement
    gpus = [gpu_name(i) for i in range(len(placement.machine.gpus))]
    gained = costs.used_share * (costs.per_byte(HOST, F16) - costs.per_byte(gpus[0], F16)) if gpus else 0.0

    def seconds(tensor: HeaderTensor) -> float:
        if tensor.name in free:
            return sum(costs.reads_of(tensor).values()) * costs.per_byte(HOST, tensor.type)
        on_gpus = sum(n for device, n in costs.bytes_on(tensor).items() if device != HOST)
        return costs.seconds(tensor) + on_gpus * max(gained, 0.0)

    return _memoized(seconds)


def _info(tensor: HeaderTensor) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.shape[::-1], tensor.type, "", "")


def _memoized(cost: Callable[[HeaderTensor], float]) -> Callable[[TensorInfo, GgmlType], float]:
    known: dict[tuple[str, GgmlType], float] = {}

    def found(tensor: TensorInfo, type_: GgmlType) -> float:
        key = tensor.name, type_
        if key not in known:
            known[key] = cost(HeaderTensor(tensor.name, type_, tensor.shape[::-1]))
        return known[key]

    return found


def _bytes_on(costs: TensorCosts) -> Callable[[TensorInfo, GgmlType], Mapping[str, int]]:
    known: dict[tuple[str, GgmlType], Mapping[str, int]] = {}

    def found(tensor: TensorInfo, type_: GgmlType) -> Mapping[str, int]:
        key = tensor.name, type_
        if key not in known:
            known[key] = costs.bytes_on(HeaderTensor(tensor.name, type_, tensor.shape[::-1]))
        return known[key]

    return found


def _on_device(
    bytes_on: Callable[[TensorInfo, GgmlType], Mapping[str, int]], device: str, free: Collection[str] = ()
) -> Callable[[TensorInfo, GgmlType], float]:
    return lambda tensor, type_: 0 if tensor.name in free else bytes_on(tensor, type_).get(device, 0)
