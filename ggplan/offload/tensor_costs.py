"""What one tensor costs where a placement has it: bytes of each device, and seconds of a token.

Both are sums over tensors, given where each of them is, so whoever chooses types can count with them:

    bytes of a device       weights, padded as there; context and compute buffers are the placement's
    seconds of a token      active bytes / what the device reads per second; steps and changes of device are
                            the placement's

The compute buffers do depend on types (the expert tensor that is streamed), and so does the placement that is
chosen; a file whose types were chosen so is placed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ggplan.ggml_types import GgmlType
from ggplan.offload.active import active_bytes, token_reads, used_share
from ggplan.offload.allocation import device_bytes
from ggplan.offload.dimensions import Dimensions, dimensions_of
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.placement import Placement
from ggplan.offload.settings import Settings
from ggplan.offload.speed import seconds_per_byte
from ggplan.offload.weights import Weights, place_weights

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class TensorCosts:
    """The costs of tensors as a placement has them."""

    placement: Placement

    def bytes_on(self, tensor: HeaderTensor) -> dict[str, int]:
        """Bytes of a tensor on each device; of a type that may be another than the placement's."""
        found: dict[str, int] = {}
        for device in self._uses(tensor)[0]:
            found[device] = found.get(device, 0) + device_bytes(device, tensor.type, tensor.shape)
        return found

    def reads_of(self, tensor: HeaderTensor) -> dict[str, float]:
        """Bytes of a tensor that a token reads, by device."""
        found: dict[str, float] = {}
        for device, share in self._uses(tensor)[1]:
            found[device] = found.get(device, 0.0) + tensor.n_bytes * share
        return found

    def seconds(self, tensor: HeaderTensor) -> float:
        """Likely seconds that a token waits for a tensor."""
        return sum(n * self.per_byte(device, tensor.type) for device, n in self.reads_of(tensor).items())

    def per_byte(self, device: str, type_: GgmlType) -> float:
        """Likely seconds of a byte that a token reads on a device."""
        return self._per_byte(device, type_.name)

    @cached_property
    def whole_seconds(self) -> float:
        """Likely seconds of a token, the context being empty."""
        return 1 / self.placement.generation.likely

    @cached_property
    def used_share(self) -> float:
        """Share of the routed experts that a token uses; 1 where there are none."""
        return used_share(self._dimensions)

    @cached_property
    def _settings(self) -> Settings:
        return self.placement.profile.as_run(self.placement.settings)

    @cached_property
    def _dimensions(self) -> Dimensions:
        return dimensions_of(self.placement.header)

    def _weights(self, header: Header) -> Weights:
        return place_weights(header, self._dimensions, self._settings, self.placement.machine.gpus)

    @cached_property
    def _per_byte(self) -> Callable[[str, str], float]:
        placement = self.placement
        active = active_bytes(self._weights(placement.header), self._dimensions, placement.settings)
        return seconds_per_byte(active, placement.machine, placement.profile, placement.settings)

    @cached_property
    def _all_uses(self) -> Mapping[str, tuple[list[str], list[tuple[str, float]]]]:
        return self._uses_of(self._weights(self.placement.header))

    def _uses_of(self, weights: Weights) -> dict[str, tuple[list[str], list[tuple[str, float]]]]:
        found: dict[str, tuple[list[str], list[tuple[str, float]]]] = {}
        for one in weights.loaded:
            found.setdefault(one.tensor.name, ([], []))[0].append(one.device)
        for one, share in token_reads(weights, self._dimensions):
            found[one.tensor.name][1].append((one.device, share))
        return found

    @cached_property
    def _is_tied(self) -> bool:
        return all(t.name != _OUTPUT for t in self.placement.header.tensors)

    @cached_property
    def _tied(self) -> dict[GgmlType, tuple[list[str], list[tuple[str, float]]]]:
        return {}

    def _uses(self, tensor: HeaderTensor) -> tuple[list[str], list[tuple[str, float]]]:
        """The devices that hold a tensor, and the shares that a token reads on them."""
        if tensor.name != _EMBEDDING or not self._is_tied:
            return self._all_uses.get(tensor.name, ([], []))
        # Whether a tied output has a copy of its own depends on its type.
        if tensor.type not in self._tied:
            header = replace(self.placement.header, tensors=(tensor,))
            self._tied[tensor.type] = self._uses_of(self._weights(header))[_EMBEDDING]
        return self._tied[tensor.type]


def with_types(header: Header, types: Mapping[str, GgmlType]) -> Header:
    """The header with other types for the tensors that are named."""
    tensors = (replace(t, type=types[t.name]) if t.name in types else t for t in header.tensors)
    return replace(header, tensors=tuple(tensors))
