"""What can go wrong with a conversion, by kind: which trials, how many, and what came of them."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_injection import (
    DAMAGES,
    FaultServer,
    Scenario,
    is_clean,
    rerun,
    trial_of_damage,
    trial_of_error,
    trial_of_kill,
    trial_of_signal,
)

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The calls of a run that write, each with the errors it may give.
ERRORS = {
    "pwrite": (*FULL_DISK, errno.EIO),
    "posix_fallocate": FULL_DISK,
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO, errno.ENOSPC),
    "write": (errno.ENOSPC, errno.EIO),
    "replace": (errno.EACCES, errno.EIO, errno.ENOSPC),
    "unlink": (errno.EACCES, errno.EIO),
    "ftruncate": (errno.EFBIG, errno.EIO),
    "open": (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EMFILE),
}

_LAST_CALLS = 30

Trial = Callable[[FaultServer, Scenario, Path, random.Random], str]


def kill(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """SIGKILL before a call, or in the middle of a write."""
    return trial_of_kill(server, scenario, folder, _killing(scenario, dice))


def kill_twice(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """SIGKILL, and again in the run that goes on."""
    server.run(scenario.arguments, folder / "out.gguf", _killing(scenario, dice))
    return trial_of_kill(server, scenario, folder, _killing(scenario, dice))


def kill_by_clock(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """SIGKILL from outside after a random time, wherever the run is then."""
    return trial_of_kill(
        server, scenario, folder, {"kill_after": dice.uniform(0.01, max(0.6, scenario.seconds))}
    )


def fail(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """A call of the system fails, once or from then on."""
    call = dice.choice(sorted(ERRORS))
    fault = {"kind": "error", "call": call, "at": dice.randrange(scenario.calls[call]),
             "errno": dice.choice(ERRORS[call]), "sticky": dice.random() < 0.5}  # fmt: skip
    return trial_of_error(server, scenario, folder, fault)


def fail_to_write(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """The disk is full from some write on."""
    fault = {"kind": "error", "call": "pwrite", "at": dice.randrange(scenario.calls["pwrite"]),
             "errno": dice.choice(ERRORS["pwrite"]), "sticky": True}  # fmt: skip
    return trial_of_error(server, scenario, folder, fault)


def write_short(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """The system takes only half of each write from some moment on."""
    fault = {"kind": "short", "at": dice.randrange(scenario.n_calls), "sticky": True}
    done = server.run(scenario.arguments, folder / "out.gguf", fault)
    return f"{fault}: {done.stderr}" if done.status else rerun(server, scenario, folder, fault)


def _surely_reached(scenario: Scenario) -> int:
    """Calls that every run makes before its work ends: a busy machine syncs less often, and calls less."""
    return scenario.n_calls // 2


def interrupt(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """SIGINT or SIGTERM at a call."""
    fault = {"kind": "signal", "signal": int(dice.choice((signal.SIGINT, signal.SIGTERM))),
             "at": dice.randrange(_surely_reached(scenario))}  # fmt: skip
    return trial_of_signal(server, scenario, folder, fault)


def interrupt_twice(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """Ctrl-C, and again at every further call."""
    fault = {"kind": "signal", "signal": int(signal.SIGINT), "sticky": True,
             "at": dice.randrange(_surely_reached(scenario))}  # fmt: skip
    stopped = server.run(scenario.arguments, folder / "out.gguf", fault)
    if stopped.status != 130 or "Traceback" in stopped.stderr:
        return f"{fault}: exit {stopped.status}: {stopped.stderr}"
    return rerun(server, scenario, folder, fault)


def damage(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """Bits flipped, the end cut off, and so on, in what a kill left."""
    return trial_of_damage(
        server, scenario, folder, _killing(scenario, dice), dice.choice(DAMAGES), dice.randrange(1 << 30)
    )


def truncate_input(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """An input loses its end while it is read, and is whole again for the next run."""
    path = dice.choice(scenario.inputs)
    kept, times = folder.parent / "kept-input", path.stat()
    shutil.copyfile(path, kept)
    fault = {"kind": "truncate", "at": dice.randrange(scenario.n_calls - 12), "path": str(path),
             "size": dice.randrange(times.st_size // 4)}  # fmt: skip
    try:
        failed = server.run(scenario.arguments, folder / "out.gguf", fault)
    finally:
        shutil.copyfile(kept, path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if failed.status != 1 or not is_clean(failed.stderr) or path.name not in failed.stderr:
        return f"{fault}: exit {failed.status}: {failed.stderr}"
    if left := [path.name for path in folder.iterdir()]:
        return f"{fault}: left {left}"
    return rerun(server, scenario, folder, fault)


def replace_old(server: FaultServer, scenario: Scenario, folder: Path, dice: random.Random) -> str:
    """SIGKILL where an older output exists and is to be replaced: it is whole, or the new one is."""
    forced = Scenario(**{**_fields(scenario), "arguments": (*scenario.arguments, "--force")})
    old = {name: b"old " + name.encode() for name in scenario.expected}
    for name, data in old.items():
        (folder / name).write_bytes(data)
    fault = _killing(scenario, dice)
    server.run(forced.arguments, folder / "out.gguf", fault)
    for path in folder.glob("*.gguf"):
        if path.read_bytes() not in (old[path.name], scenario.expected[path.name]):
            return f"{fault}: {path.name} is neither the old file nor the new one"
    return rerun(server, forced, folder, fault)


TRIALS: dict[str, Trial] = {
    trial.__name__: trial
    for trial in (
        kill, kill_twice, kill_by_clock, fail, fail_to_write, write_short, interrupt, interrupt_twice, damage,
        truncate_input, replace_old,
    )
}  # fmt: skip


@dataclass
class Tally:
    """How many trials of a kind there were, and what went wrong in those that failed."""

    n: int = 0
    wrong: list[str] = field(default_factory=list)


def campaign(
    server: FaultServer, scenarios: dict[str, Scenario], folder: Path, counts: dict[str, int], seed: int
) -> Iterator[tuple[str, str, str]]:
    """Carry out trials, in turn in each scenario; yields the trial's name, the scenario's, what is wrong."""
    for name, count in counts.items():
        for number in range(count):
            scenario = list(scenarios.values())[number % len(scenarios)]
            dice = random.Random(f"{seed} {name} {number}")
            place = folder / f"{name}-{number}"
            place.mkdir()
            wrong = TRIALS[name](server, scenario, place, dice)
            shutil.rmtree(place)
            yield name, scenario.name, wrong


def _killing(scenario: Scenario, dice: random.Random) -> dict[str, Any]:
    # Most calls write weights; the last few, where files get their names, deserve a third of the kills.
    first = 0 if dice.random() < 2 / 3 else scenario.n_calls - _LAST_CALLS
    return {"kind": dice.choice(("kill", "torn")), "at": dice.randrange(first, scenario.n_calls)}


def _fields(scenario: Scenario) -> dict[str, Any]:
    return {name: getattr(scenario, name) for name in scenario.__dataclass_fields__}
