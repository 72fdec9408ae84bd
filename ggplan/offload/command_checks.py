r"""Checks of a command line against a file and a machine: what the program would refuse, and known traps.

    FC1xx   the program refuses it
    FC2xx   it puts tensors elsewhere than it seems to
    FC3xx   it needs more memory than it seems to, or than there is
    FC4xx   the types of keys and values

`TRAPS` has the code of each with what it is about. A note is of what is not wrong, and worth knowing.
"""

from __future__ import annotations

from collections.abc import Mapping

from ggplan.offload import checks_of_memory, checks_of_places
from ggplan.offload.command_traps import Case, Trap
from ggplan.offload.commands import Command, FaultKind
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.header import Header
from ggplan.offload.machine import Machine

_REFUSED: Mapping[FaultKind, str] = {
    "unknown": "FC101",
    "other engine": "FC102",
    "gone": "FC103",
    "value": "FC104",
    "missing": "FC105",
    "cut regex": "FC106",
    "tests": "FC109",
}


def check_command(command: Command, header: Header, machine: Machine) -> tuple[Trap, ...]:
    """The traps of a command line, by line.

    Parameters
    ----------
    machine
        Whose GPUs and RAM there are; without RAM or GPUs nothing is said of them.

    Raises
    ------
    CheckpointError
        If the header lacks what the engine needs.
    """
    case = Case(command, header, machine, dimensions_of(header))
    found = [
        Trap(_REFUSED[f.kind], "note" if f.kind == "tests" else "error", f.line, f.message, f.hint)
        for f in command.faults
    ]
    for check in (*checks_of_places.CHECKS, *checks_of_memory.CHECKS):
        found += check(case)
    if not any(trap.code.startswith("FC4") and trap.severity == "error" for trap in found):
        found += checks_of_memory.loading(case)  # else what keeps it from loading is said already
    return tuple(sorted(found, key=lambda trap: (trap.line, trap.code)))
