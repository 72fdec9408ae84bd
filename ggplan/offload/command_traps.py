"""What a check of a command line finds, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import re2

from ggplan.errors import Error
from ggplan.ggml_types import F16
from ggplan.offload.allocation import HOST
from ggplan.offload.commands import Command
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.filling import expert_blocks
from ggplan.offload.header import Header
from ggplan.offload.machine import Machine
from ggplan.offload.placement import shortages
from ggplan.offload.profiles import PROFILES
from ggplan.offload.reckon import reckon
from ggplan.offload.reckoning import Reckoning
from ggplan.offload.settings import Settings

Severity = Literal["error", "warning", "note"]

TRAPS: Mapping[str, str] = {
    "FC101": "an option that the program does not have",
    "FC102": "an option of the other engine",
    "FC103": "an option that no longer exists",
    "FC104": "a value that the option does not take",
    "FC105": "an option without its value",
    "FC106": "a comma in a regex after -ot, where it ends an entry",
    "FC107": "a setting that cannot be loaded",
    "FC108": "an option that is given again, so that the first does not count",
    "FC109": "several values of llama-bench, of which the first is looked at",
    "FC201": "an override that matches no tensor",
    "FC202": "an override whose tensors earlier ones decide",
    "FC203": "a block's number that is the beginning of others: `blk.1` is in `blk.10` too",
    "FC204": "-ncmoe with several GPUs, of which it frees the first alone",
    "FC205": "-ngl that leaves blocks on the CPU",
    "FC206": "an option of experts for a model that has none",
    "FC207": "-ts with more or fewer shares than GPUs",
    "FC301": "a GPU that is too small",
    "FC302": "a GPU that is too small for the experts that are copied to it",
    "FC303": "RAM that is too small, with the old conversations that llama-server keeps",
    "FC304": "the engine's own fit, which cuts a context that is not stated",
    "FC305": "the engine's own fit, which leaves a block of a file for multi-token prediction on the CPU",
    "FC306": "a context that is not stated: what the model was trained with",
    "FC307": "four slots by default",
    "FC308": "a tied output, which is on the GPU a second time",
    "FC309": "a micro-batch that is larger than the batch",
    "FC310": "experts that are copied from mapped memory",
    "FC311": "experts that no GPU can read, because they are repacked",
    "FC312": "more threads than cores",
    "FC401": "different types of keys and values with latent attention",
    "FC402": "a type of keys or values that no GPU kernel reads",
    "FC403": "quantized values without Flash Attention",
    "FC404": "a pair of types of keys and values without a kernel of its own",
    "FC405": "a quantized type that a head does not divide by",
    "FC406": "attention without Flash Attention",
}


@dataclass(frozen=True, slots=True)
class Trap:
    """Something that a command line does and its writer hardly meant.

    Attributes
    ----------
    code
        A key of `TRAPS`.
    severity
        `error`: it does not start or not fit; `warning`: it does something else than it seems to; `note`.
    line
        Of the command, from 1.
    message, remedy
        What it does, and what to write instead.
    """

    code: str
    severity: Severity
    line: int
    message: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """A command line, a file and a machine, and what is reckoned of them.

    Attributes
    ----------
    command, header, machine
        What is looked at.
    dimensions
        Those of the header.
    """

    command: Command
    header: Header
    machine: Machine
    dimensions: Dimensions

    @cached_property
    def reckoned(self) -> Reckoning | Error:
        """What it allocates, or why that cannot be said."""
        try:
            profile = PROFILES[self.command.engine]
            return reckon(self.header, self.command.settings, self.machine.gpus, profile)
        except Error as error:
            return error

    @cached_property
    def matches(self) -> list[frozenset[str] | None]:
        """The tensors in whose names each override is found; None where it is no regex."""
        names = [t.name for t in self.header.tensors]
        found: list[frozenset[str] | None] = []
        for override in self.command.settings.overrides:
            search = _compiled(override.pattern)
            found.append(None if search is None else frozenset(n for n in names if search.search(n)))
        return found

    @cached_property
    def has_experts(self) -> bool:
        """Whether the model has routed experts."""
        return bool(expert_blocks(self.header, self.dimensions))

    def is_too_much(self, settings: Settings) -> bool:
        """Whether other settings are known not to fit the GPUs."""
        profile = PROFILES[self.command.engine]
        try:
            other = reckon(self.header, settings, self.machine.gpus, profile)
        except Error:
            # Types of keys and values that do not go together are another matter.
            plain = replace(settings, cache_k=F16, cache_v=F16)
            try:
                other = reckon(self.header, plain, self.machine.gpus, profile)
            except Error:
                return False
        return any(s.device != HOST for s in shortages(other, self.machine))

    def line_of(self, *names: str) -> int:
        """The line of the last of these options that is given; 1 if none is."""
        return next((g.line for g in reversed(self.command.given) if g.name in names), 1)


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None
