"""Pins: tensors that a wish puts on a device, whatever else is there."""

from __future__ import annotations

from collections.abc import Iterable

from ggplan.errors import PlanError
from ggplan.offload.allocation import gpu_name
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.header import Header
from ggplan.offload.machine import Machine
from ggplan.offload.placement import Wishes
from ggplan.offload.settings import Override, Settings
from ggplan.offload.weights import place_weights
from ggplan.text import printable


def check_pins(header: Header, dimensions: Dimensions, machine: Machine, wishes: Wishes) -> None:
    """Refuse a pin that cannot be obeyed.

    Raises
    ------
    PlanError
        If its pattern or device is none, or it matches no tensor that is loaded.
    """
    if not wishes.pins:
        return
    devices = ["CPU", *(gpu_name(i) for i in range(len(machine.gpus)))]
    for pin in wishes.pins:
        shown = f"--pin {printable(pin.pattern)}={printable(pin.device)}"
        if pin.device not in devices:
            hint = f"the devices are {', '.join(devices)}"
            raise PlanError(f"{shown}: there is no device {printable(pin.device)}", hint=hint)
        if any(c in pin.pattern for c in ",=;"):
            hint = "write alternatives as (1|2)"
            raise PlanError(f"{shown}: `,`, `;` and `=` end a pattern after -ot", hint=hint)
    settings = Settings(gpu_layers=-1 if machine.gpus else 0, overrides=wishes.pins)
    # What is no regex is refused here.
    loaded = {one.use for one in place_weights(header, dimensions, settings, machine.gpus).loaded}
    for pin in wishes.pins:
        shown = f"--pin {printable(pin.pattern)}={pin.device}"
        matched = matching(pin, (t.name for t in header.tensors))
        if not matched:
            raise PlanError(f"{shown} matches no tensor", hint="`ggplan inspect FILE --tensors` lists them")
        if not any(name in loaded for name in matched):
            raise PlanError(f"{shown} matches tensors for multi-token prediction alone, which are not loaded")


def matching(pin: Override, names: Iterable[str]) -> list[str]:
    """The tensors that a pin is for."""
    import re2

    search = re2.compile(pin.pattern).search
    return [name for name in names if search(name)]
