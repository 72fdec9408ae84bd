"""The allocator: where the tensors of a graph lie in a device's buffer, and how large the buffer is.

Free room is a list of blocks by offset, the last one without end. A tensor takes the smallest block that
holds it, of equals the last; only where none does, the end grows. An operation that may write over what it
reads does so where nobody else needs that, it is of the same layout, and no view. Room is given back at once
when the last reader is done, and joined to its neighbours.

Source: llama.cpp b11434, `ggml/src/ggml-alloc.c` (ggml_dyn_tallocr_alloc, ggml_gallocr_alloc_graph_impl).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from ggplan.offload.allocation import GPU_ALIGNMENT, HOST_ALIGNMENT
from ggplan.offload.graph.schedule import Schedule, Step
from ggplan.offload.graph.tensors import IN_PLACE, VIEWS, Tensor

_ENDLESS = 1 << 62
_ROW_STEP = 512


@dataclass(slots=True)
class Room:
    """One device's buffer: free blocks by offset, each `[offset, size]`, and the largest end so far."""

    alignment: int
    free: list[list[int]] = field(default_factory=lambda: [[0, _ENDLESS]])
    size: int = 0

    def take(self, n_bytes: int) -> int:
        """Take room, and return its offset."""
        n = -(-n_bytes // self.alignment) * self.alignment
        free = self.free
        last = len(free) - 1
        best, best_size = last, _ENDLESS + 1
        for i in range(last):
            size = free[i][1]
            if n <= size <= best_size:
                best, best_size = i, size
        block = free[best]
        offset = block[0]
        block[0] += n
        block[1] -= n
        if not block[1]:
            del free[best]
        if offset + n > self.size:
            self.size = offset + n
        return offset

    def give(self, offset: int, n_bytes: int) -> None:
        """Give room back."""
        n = -(-n_bytes // self.alignment) * self.alignment
        free = self.free
        end = offset + n
        for i, block in enumerate(free):
            if block[0] + block[1] == offset:
                block[1] += n
                if i + 1 < len(free) and block[0] + block[1] == free[i + 1][0]:
                    block[1] += free[i + 1][1]
                    del free[i + 1]
                return
            if end == block[0]:
                block[0] = offset
                block[1] += n
                if i and free[i - 1][0] + free[i - 1][1] == offset:
                    free[i - 1][1] += block[1]
                    del free[i]
                return
        at = next((i for i, block in enumerate(free) if block[0] > offset), len(free))
        free.insert(at, [offset, n])


def buffer_sizes(
    plan: Schedule, n_gpus: int, marks: Mapping[int, Tensor] | None = None
) -> tuple[list[int], dict[int, Hashable]]:
    """Bytes of each device's buffer, the CPU's last; and behind some tensors, the allocator's state.

    Parameters
    ----------
    marks
        The tensors, by what their states are called.
    """
    wanted = {id(tensor): number for number, tensor in (marks or {}).items()}
    states: dict[int, Hashable] = {}
    rooms = [Room(GPU_ALIGNMENT) for _ in range(n_gpus)] + [Room(HOST_ALIGNMENT)]
    for tensor, device in plan.first:
        _place(tensor, device, (), rooms)
    _count(plan.steps)
    for step in plan.steps:
        sources = step.sources
        if step.device < 0:
            continue
        for source in sources:
            if not source.is_own and source.device is None and source.viewed is None and not source.op:
                _place(source, step.device, (), rooms)
        if not step.is_keeper:
            _place(step.tensor, step.device, sources, rooms)
        _release(sources, rooms)
        number = wanted.get(id(step.tensor))
        if number is not None and not step.is_keeper:
            free = tuple(tuple(map(tuple, room.free)) for room in rooms)
            states[number] = (free, step.tensor.buffer, step.tensor.offset)
    return [room.size for room in rooms], states


def _count(steps: Iterable[Step]) -> None:
    for step in steps:
        tensor = step.tensor
        if not step.is_keeper and tensor.viewed is not None:
            tensor.viewed.views += 1
        for source in step.sources:
            source.children += 1


def _place(tensor: Tensor, device: int, sources: tuple[Tensor, ...], rooms: list[Room]) -> None:
    if tensor.is_own or tensor.viewed is not None or tensor.device is not None:
        return
    tensor.is_own = True
    if tensor.op in IN_PLACE:
        for source in sources:
            if (
                source.is_own
                and not source.is_output
                and source.children == 1
                and not source.views
                and source.shape == tensor.shape
                and source.type is tensor.type
                and source.strides == tensor.strides
            ):
                tensor.buffer, tensor.offset = source.buffer, source.offset
                source.is_own = False
                room = rooms[source.buffer]
                size, used = room_of(source, source.buffer, rooms), room_of(tensor, source.buffer, rooms)
                if size > used:
                    room.give(tensor.offset + used, size - used)
                return
    tensor.buffer = device
    tensor.offset = rooms[device].take(size_in(tensor, device, rooms))


def room_of(tensor: Tensor, device: int, rooms: list[Room]) -> int:
    """Bytes that a tensor takes, with what alignment adds."""
    alignment = rooms[device].alignment
    return -(-size_in(tensor, device, rooms) // alignment) * alignment


def size_in(tensor: Tensor, device: int, rooms: list[Room]) -> int:
    """Bytes that a tensor needs on a device."""
    if device == len(rooms) - 1:
        return tensor.n_bytes
    size = tensor.n_bytes + tensor.gpu_extra
    if tensor.type.is_quantized and tensor.shape[0] % _ROW_STEP:
        size += -(-(-tensor.shape[0] % _ROW_STEP) // tensor.type.block_size) * tensor.type.block_bytes
    return size


def _release(sources: tuple[Tensor, ...], rooms: list[Room]) -> None:
    for source in sources:
        source.children -= 1
        if source.children or source.views:
            continue
        owner = source.viewed
        if owner is None:
            _free(source, rooms)
        else:
            owner.views -= 1
            if not owner.views and not owner.children:
                _free(owner, rooms)


def _free(tensor: Tensor, rooms: list[Room]) -> None:
    if tensor.is_own and not tensor.is_output:
        rooms[tensor.buffer].give(tensor.offset, size_in(tensor, tensor.buffer, rooms))
        tensor.is_own = False


__all__ = ["VIEWS", "Room", "buffer_sizes"]
