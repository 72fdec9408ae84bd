"""Fitting as the library offers it: of a plan, a model or a header.

machine = ggplan.Machine((ggplan.Gpu("RTX 3090", 24 << 30, 936e9),), ram=128 << 30, bandwidth=80e9)
placement = ggplan.place(plan, machine, ggplan.Wishes(context=32768))
placement.fits, placement.generation.likely, placement.shortages

reckoning = ggplan.reckon(plan, "llama-server -ngl 99 -ncmoe 40 -c 32768", gpus=1)
reckoning.devices[0].total
"""

from __future__ import annotations

from collections.abc import Sequence

from ggplan.errors import CommandError
from ggplan.ggml_types import Engine
from ggplan.model import Model
from ggplan.offload.commands import read_command
from ggplan.offload.completing import completed
from ggplan.offload.header import Header, header_of
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.placement import Placement, Wishes
from ggplan.offload.placing import place as place_header
from ggplan.offload.profiles import PROFILES
from ggplan.offload.reckon import reckon as reckon_header
from ggplan.offload.reckoning import Reckoning
from ggplan.offload.settings import Settings
from ggplan.planning import Plan

Subject = Plan | Model | Header
"""What can be fitted: the file a plan would write, a GGUF or an inventory that was opened, a header."""


def place(
    subject: Subject, machine: Machine, wishes: Wishes | None = None, engine: Engine = "llama.cpp"
) -> Placement:
    """How a model is best loaded on a machine, what that takes, and how fast it is.

    Raises
    ------
    PlanError
        If a pin cannot be obeyed.
    CheckpointError
        If the model lacks metadata that the engine needs.
    TypeError
        If `subject` is none that can be fitted.
    """
    return place_header(_header(subject), machine, wishes, PROFILES[engine])


def reckon(
    subject: Subject,
    how: str | Settings,
    gpus: Sequence[Gpu] | int = 0,
    engine: Engine | None = None,
) -> Reckoning:
    """What an engine allocates on each device for a command line, or for settings.

    Parameters
    ----------
    how
        A command line as one types it, or settings.
    gpus
        The GPUs in the engine's order; a number stands for as many of one size.
    engine
        Whose; None is that which the command line shows, else llama.cpp.

    Raises
    ------
    CommandError
        If the command line cannot be read, or the engine would refuse it.
    CheckpointError, PlanError
        As `place` does; if the engine would refuse the settings.
    TypeError
        If `subject` is none that can be fitted.
    """
    header = _header(subject)
    if isinstance(how, Settings):
        return reckon_header(header, how, gpus, PROFILES[engine or "llama.cpp"])
    command = read_command(how, engine)
    if command.faults:
        raise CommandError(command.faults[0].message, hint=command.faults[0].hint)
    return reckon_header(header, command.settings, gpus, PROFILES[command.engine])


def _header(subject: Subject) -> Header:
    if isinstance(subject, Header):
        return subject
    if not isinstance(subject, Plan | Model):
        raise TypeError(f"{subject!r:.60} is not a plan or a model; ggplan.open_model opens one")
    model = subject.model if isinstance(subject, Plan) else subject
    header = header_of(subject)
    return completed(header) if model.kind == "inventory" else header
