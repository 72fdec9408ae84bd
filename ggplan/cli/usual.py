"""What stands under a plan: bytes in RAM and on the GPU, what a token reads, and tokens per second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggplan.offload.speed import Rate
    from ggplan.offload.usual import UsualMachine
    from ggplan.planning import Memory, Plan


def usual_lines(plan: Plan) -> Iterator[str]:
    """RAM, GPU, and the speed, one line each."""
    from ggplan.planning import in_memory
    from ggplan.text import format_bytes

    memory = in_memory(plan)
    experts = "routed experts and " if memory.ram_per_token is not None else ""
    yield f"RAM {format_bytes(memory.ram)}: {experts}lookup tables"
    nextn = f", nextn {format_bytes(memory.nextn)} not loaded" if memory.nextn else ""
    yield f"GPU {format_bytes(memory.gpu)}: all else{nextn}"
    yield f"{_read(memory)}: {_speed(plan)}"


def _read(memory: Memory) -> str:
    from ggplan.text import format_bytes

    if memory.ram_per_token is not None:
        return f"{format_bytes(round(memory.ram_per_token))} of RAM read per token"
    return f"{format_bytes(memory.gpu)} of GPU memory read per token"


def _speed(plan: Plan) -> str:
    from ggplan.errors import Error
    from ggplan.offload.usual import usual_machine
    from ggplan.text import printable

    usual = usual_machine()
    try:
        rate = _rate(plan, usual)
    except Error as error:
        return f"tokens per second are not known, {printable(error.message)}"
    return f"{range_of(rate)} tokens per second at {stated(usual)}"


def _rate(plan: Plan, usual: UsualMachine) -> Rate:
    from ggplan.offload.header import header_of
    from ggplan.offload.usual import usual_rate

    return usual_rate(header_of(plan), usual.machine)


def usual_notes() -> tuple[str, ...]:
    """Why the user's machine is not the one that speeds are for, where it has a file."""
    from ggplan.offload.usual import usual_machine

    told = usual_machine().note
    return (told,) if told else ()


def stated(usual: UsualMachine) -> str:
    """The machine in words: `80 GB/s (GPU 936 GB/s), an example; ...`."""
    ram, gpu = (f"{n / 1e9:.0f} GB/s" for n in usual.bandwidths)
    where = f"of {usual.source}" if usual.source else "an example: `ggplan machine --write` keeps yours"
    return f"{ram} (GPU {gpu}), {where}"


def range_of(rate: Rate) -> str:
    """`6.6 to 12`."""
    return f"{figure(rate.low)} to {figure(rate.high)}"


def figure(rate: float) -> str:
    """Tokens per second with two or three digits."""
    return f"{rate:.2f}" if rate < 1 else f"{rate:.1f}" if rate < 20 else f"{rate:,.0f}"


def speed_json(plan: Plan) -> dict[str, Any]:
    """The speed and the machine it is for, for programs; `why` says why there is none."""
    from ggplan.errors import Error
    from ggplan.offload.usual import usual_machine

    usual = usual_machine()
    found = machine_json(usual)
    try:
        rate = _rate(plan, usual)
    except Error as error:
        return {"tokens_per_second": None, "why": error.message, **found}
    return {"tokens_per_second": rate_json(rate), "reasons": list(rate.reasons), **found}


def rate_json(rate: Rate) -> dict[str, float]:
    """A range of tokens per second, for programs."""
    return {"low": rate.low, "likely": rate.likely, "high": rate.high}


def machine_json(usual: UsualMachine) -> dict[str, Any]:
    """The machine that speeds are stated for, for programs: bytes per second, and where they are from."""
    ram, gpu = usual.bandwidths
    return {
        "ram_bandwidth": ram,
        "gpu_bandwidth": gpu,
        "cores": usual.machine.cores,
        "machine": usual.source or "example",
    }
