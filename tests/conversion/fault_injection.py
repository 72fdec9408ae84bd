"""Run `ggplan convert` again and again, and let the system fail at a chosen moment.

A server process imports ggplan and loads its kernels once; each run is a fork of it, so it takes a fraction
of a second. In the fork the calls that change files (`os.pwrite`, `os.fdatasync`, `os.replace`, …) are
counted, and one of them fails, is cut short, stops the process or sends it a signal. The rest is the program
as users run it, with smaller chunks and more frequent checkpoints, so that a small model has as many moments
as a large one.

Started as a program this file is the server: a job a line on stdin, an answer a line on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "arch"), str(ROOT / "tests" / "conversion")]

from made_up_calibration import made_up, small_model  # noqa: E402
from tiny_checkpoints import read_case, write_case  # noqa: E402

from ggplan import open_model  # noqa: E402

CALLS = ("open", "pwrite", "write", "fdatasync", "fsync", "ftruncate", "posix_fallocate", "replace", "unlink")
CALIBRATED = "ffn_down_exps = q5_0\n@default q4_K\n"
CORRECTED = "@default q4_0\n"
RECIPE = "ffn_(gate|up)_exps = q4_K\nffn_down_exps = q6_K | q8_0\nattn_ = q5_K | q5_0\n@default q8_0\n"
_HANGS_AFTER = 60


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit code, or minus the signal that killed it; what it said; calls it made."""

    status: int
    stderr: str
    n_calls: int
    calls: dict[str, int]


@dataclass(frozen=True)
class Scenario:
    """A conversion: the arguments without the output, and the whole and right folder of its output."""

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...]
    expected: dict[str, bytes]
    n_calls: int
    calls: dict[str, int]
    seconds: float


class FaultServer:
    """The process that is forked; `with_torch` it loads what `--correct` needs too."""

    def __init__(self, *, with_torch: bool = False) -> None:
        self.has_torch = with_torch
        self._process = subprocess.Popen(
            [sys.executable, __file__, *["torch"] * with_torch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def run(self, arguments: tuple[str, ...], output: Path, fault: dict[str, Any] | None = None) -> Outcome:
        """Run `ggplan convert`, with a fault."""
        assert self._process.stdin
        assert self._process.stdout
        job = {"arguments": [*arguments[:1], str(output), *arguments[1:]], "fault": fault or {}}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def fault_server(*, with_torch: bool = False) -> Iterator[FaultServer]:
    """A server, for a while."""
    server = FaultServer(with_torch=with_torch)
    try:
        yield server
    finally:
        server.close()


# Scenarios.


def make_scenarios(server: FaultServer, folder: Path) -> dict[str, Scenario]:
    """Conversions, each carried out once without a fault.

    A GGUF in, a sharded Hugging Face folder in, a split set out, with a calibration, and if the server has
    torch with corrected targets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    demo = ROOT / "ggplan" / "demo_model"
    sharded = shard_checkpoint(demo, folder / "sharded", 3)
    recipe = folder / "faults.recipe"
    recipe.write_text(RECIPE)
    source = folder / "source.gguf"
    made = server.run((str(demo), "--pre", "glm4", "-q"), source)
    assert made.status == 0, made.stderr
    common = ("-r", str(recipe), "-q", "-t", "2")
    shards = tuple(sorted(sharded.glob("*.safetensors")))
    small, calibrated = _calibrated_arguments(folder / "calibrated")
    corrected = {}
    if server.has_torch:
        tiny, arguments = _corrected_arguments(folder / "corrected")
        corrected["corrected"] = _scenario(
            server, folder, "corrected", arguments, tuple(sorted(tiny.glob("*.safetensors")))
        )
    return corrected | {
        "calibrated": _scenario(server, folder, "calibrated", calibrated, (small,)),
        "gguf": _scenario(server, folder, "gguf", (str(source), *common), (source,)),
        "hf": _scenario(server, folder, "hf", (str(sharded), "--pre", "glm4", *common), shards),
        "split": _scenario(
            server, folder, "split", (str(source), *common, "--split-max-size", "1500K"), (source,)
        ),
    }


def _calibrated_arguments(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A small GGUF, and the arguments of its conversion with a calibration of random inputs."""
    folder.mkdir(parents=True)
    small, recipe = small_model(folder / "small.gguf"), folder / "calibrated.recipe"
    recipe.write_text(CALIBRATED)
    made = made_up(folder / "calibration", open_model(small), np.zeros((3, 30), np.int32))
    common = ("-r", str(recipe), "-q", "-t", "2")
    return small, (str(small), *common, "--calibration", str(made.path))


def _corrected_arguments(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A tiny checkpoint, and the arguments of its conversion with corrected targets."""
    folder.mkdir(parents=True)
    tiny, recipe = write_case(folder / "tiny", read_case("glm4moe")), folder / "corrected.recipe"
    recipe.write_text(CORRECTED)
    tokens = np.random.default_rng(2).integers(0, 256, (5, 48))
    made = made_up(folder / "calibration", open_model(tiny, pre="glm4"), tokens)
    common = ("--pre", "glm4", "-r", str(recipe), "-q", "-t", "2")
    return tiny, (str(tiny), *common, "--calibration", str(made.path), "--correct")


def shard_checkpoint(source: Path, target: Path, n_shards: int, seed: int = 0) -> Path:
    """The same checkpoint with its tensors dealt out to several files at random, and an index."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, target)
    data = (source / "model.safetensors").read_bytes()
    at = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:at])
    header.pop("__metadata__", None)
    names = list(header)
    random.Random(seed).shuffle(names)
    weight_map = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        entries: dict[str, object] = {}
        parts: list[bytes] = []
        end = 0
        for name in sorted(names[shard::n_shards]):
            begin, stop = header[name]["data_offsets"]
            parts.append(data[at + begin : at + stop])
            entries[name] = {**header[name], "data_offsets": [end, end + stop - begin]}
            end += stop - begin
            weight_map[name] = file
        text = json.dumps(entries).encode()
        (target / file).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return target


def _scenario(
    server: FaultServer, folder: Path, name: str, arguments: tuple[str, ...], inputs: tuple[Path, ...]
) -> Scenario:
    target = folder / f"expected-{name}"
    target.mkdir()
    started = time.monotonic()
    done = server.run(arguments, target / "out.gguf")
    assert done.status == 0, done.stderr
    seconds = time.monotonic() - started
    return Scenario(name, arguments, inputs, contents(target), done.n_calls, done.calls, seconds)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Trials. Each returns what is wrong, or "".


def trial_of_kill(server: FaultServer, scenario: Scenario, folder: Path, fault: dict[str, Any]) -> str:
    """Kill a run; is what is there right, and does the same command finish?"""
    output = folder / "out.gguf"
    killed = server.run(scenario.arguments, output, fault)
    if killed.status not in (0, -signal.SIGKILL):
        return f"{fault}: exit {killed.status}: {killed.stderr}"
    return _wrong_files(scenario, folder, fault) or rerun(server, scenario, folder, fault)


def trial_of_error(server: FaultServer, scenario: Scenario, folder: Path, fault: dict[str, Any]) -> str:
    """Let a call fail; is the message one clean error, and does the same command finish afterwards?"""
    output = folder / "out.gguf"
    failed = server.run(scenario.arguments, output, fault)
    if failed.status == 0 and failed.calls[fault["call"]] <= fault["at"]:
        # How often a run syncs depends on the clock; this one did so less often. One is always there.
        for path in folder.iterdir():
            path.unlink()
        failed = server.run(scenario.arguments, output, {**fault, "at": 0})
    if failed.status != 1 or not is_clean(failed.stderr):
        return f"{fault}: exit {failed.status}: {failed.stderr}"
    return _wrong_files(scenario, folder, fault) or rerun(server, scenario, folder, fault)


def trial_of_signal(server: FaultServer, scenario: Scenario, folder: Path, fault: dict[str, Any]) -> str:
    """Send a signal; is the exit code right, the message one line, and does the same command finish?"""
    output = folder / "out.gguf"
    stopped = server.run(scenario.arguments, output, fault)
    line = stopped.stderr.strip()
    if stopped.status != 128 + fault["signal"] or not line.startswith("interrupted") or "\n" in line:
        return f"{fault}: exit {stopped.status}: {stopped.stderr}"
    return _wrong_files(scenario, folder, fault) or rerun(server, scenario, folder, fault)


def trial_of_damage(
    server: FaultServer, scenario: Scenario, folder: Path, fault: dict[str, Any], damage: str, seed: int
) -> str:
    """Kill a run and damage what it left; does the same command still end in the right bytes?

    A set of which files have their names already is its own only by its journal. Where that is damaged too,
    the command says that a file exists, and ends well with --force.
    """
    output = folder / "out.gguf"
    server.run(scenario.arguments, output, fault)
    dice = random.Random(seed)
    states = sorted(path for path in folder.iterdir() if ".part" in path.name)
    for path in [path for path in states if path.name.endswith(".journal") == damage.startswith("journal")]:
        apply_damage(path, damage.partition("-")[2], dice)
    some_are_named = any(path.suffix == ".gguf" for path in folder.iterdir())
    if damage.startswith("journal") and some_are_named and _leftovers(scenario, folder):
        again = server.run(scenario.arguments, output, {})
        if again.status not in (0, 1) or (again.status == 1 and " exists" not in again.stderr):
            return f"{fault}: {damage}: exit {again.status}: {again.stderr}"
        if again.status == 1:
            scenario = replace(scenario, arguments=(*scenario.arguments, "--force"))
    return rerun(server, scenario, folder, {**fault, "damage": damage, "seed": seed})


def apply_damage(path: Path, damage: str, dice: random.Random) -> None:
    """Flip a bit of a file, cut its end off, empty it, delete it, or put random bytes in its place."""
    size = path.stat().st_size
    if damage == "delete":
        path.unlink()
    elif damage == "empty":
        os.truncate(path, 0)
    elif damage == "cut":
        os.truncate(path, dice.randrange(size + 1))
    elif damage == "noise":
        path.write_bytes(dice.randbytes(size))
    elif damage == "flips":
        data = bytearray(path.read_bytes())
        for _ in range(8 if data else 0):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
    else:
        raise ValueError(damage)


DAMAGES = tuple(
    f"{file}-{how}" for file in ("journal", "part") for how in ("flips", "cut", "empty", "delete", "noise")
)


def rerun(server: FaultServer, scenario: Scenario, folder: Path, fault: object) -> str:
    """Give the same command again; it must end well, with the right files and no others."""
    again = server.run(scenario.arguments, folder / "out.gguf", {})
    complete = again.status == 1 and " exists" in again.stderr and not _leftovers(scenario, folder)
    if again.status != 0 and not complete:
        return f"{fault}: the same command again: exit {again.status}: {again.stderr}"
    found = contents(folder)
    if found != scenario.expected:
        wrong = sorted(
            name for name in {*found, *scenario.expected} if found.get(name) != scenario.expected.get(name)
        )
        return f"{fault}: not as they should be: {', '.join(wrong)}"
    return ""


def is_clean(stderr: str) -> bool:
    """One line of error, and maybe one of help."""
    lines = stderr.strip().split("\n")
    return lines[0].startswith("error: ") and "Traceback" not in stderr and len(lines) <= 2


def _wrong_files(scenario: Scenario, folder: Path, fault: object) -> str:
    for path in folder.iterdir():
        if path.suffix == ".gguf" and path.read_bytes() != scenario.expected.get(path.name):
            return f"{fault}: {path.name} is there and wrong"
    return ""


def _leftovers(scenario: Scenario, folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in scenario.expected]


# The server's side.


class _Faults:
    """Counts the calls of a run and lets the chosen one go wrong.

    A fault is {"kind": "kill" | "torn" | "error" | "short" | "signal" | "pause" | "truncate", "at": n}, where
    n counts all calls, or with "call" those of this name, from 0. "torn" writes half of the data before the
    kill; "error" has an "errno", and "sticky" makes all later calls of that name fail too. A fault in
    the "background" is not waited for.
    """

    def __init__(self, fault: dict[str, Any]) -> None:
        self.fault = fault
        self.counts = dict.fromkeys(CALLS, 0)
        self.lock = threading.Lock()
        self.real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, self._wrapped(name))

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return self.real[name](*arguments, **options)
            with self.lock:
                only = self.fault.get("call")
                number = self.counts[name] if only else sum(self.counts.values())
                self.counts[name] += 1
                at = self.fault.get("at", -1)
                due = only in (None, name) and at >= 0
                due = due and (number == at or (number > at and bool(self.fault.get("sticky"))))
            if due:
                arguments = self._strike(name, arguments)
            return self.real[name](*arguments, **options)

        return call

    def _strike(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        kind = self.fault["kind"]
        if kind in ("torn", "short") and name in ("pwrite", "write") and len(arguments[1]) > 1:
            arguments = (arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2], *arguments[2:])
        if kind == "torn" and name in ("pwrite", "write"):
            self.real[name](*arguments)
        if kind in ("kill", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10)
        elif kind == "error":
            raise OSError(self.fault["errno"], os.strerror(self.fault["errno"]))
        elif kind == "signal":
            os.kill(os.getpid(), self.fault["signal"])
        elif kind == "pause":
            time.sleep(self.fault["seconds"])
        elif kind == "truncate":
            os.truncate(self.fault["path"], self.fault["size"])
        return arguments


def _child(job: dict[str, Any], answer: int, stderr: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    os.dup2(stderr, 2)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    from ggplan.cli import main
    from ggplan.conversion import pace, streaming, workers

    sys.modules.get("ggplan.forward.running", argparse.Namespace()).BATCH_TOKENS = 100
    pace.CHUNK_WEIGHTS = 1 << 14
    streaming.CHECKPOINT_BYTES = 1 << 18
    workers._TICK_SECONDS = 0.002
    faults = _Faults(job["fault"])
    real_write = faults.real["write"]
    sys.argv = ["ggplan", "convert", *job["arguments"]]
    status = 0
    try:
        main()
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException as error:
        sys.stderr.write(f"Traceback: {error!r}\n")
        status = 70
    sys.stderr.flush()
    real_write(answer, json.dumps(faults.counts).encode())
    os._exit(status)


def _serve() -> None:
    from ggplan.cli import cli

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        # Loads what a run needs, kernels included, into the process that is forked.
        recipe = Path(folder) / "warm.recipe"
        recipe.write_text(RECIPE)
        arguments = [
            ROOT / "ggplan" / "demo_model",
            Path(folder) / "warm.gguf",
            "--pre",
            "glm4",
            "-r",
            recipe,
        ]
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            cli.main(["convert", "-q", "-t", "1", *map(str, arguments)], standalone_mode=False)
            chosen = [_calibrated_arguments(Path(folder) / "calibrated")[1]]
            if "torch" in sys.argv[1:]:
                chosen.append(_corrected_arguments(Path(folder) / "corrected")[1])
            for model, *others in chosen:
                cli.main(
                    ["convert", model, f"{folder}/warm-too.gguf", "--force", *others], standalone_mode=False
                )
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as stderr:
            child = os.fork()
            if child == 0:
                try:
                    _child(job, writer, stderr.fileno())
                finally:
                    os._exit(71)
            os.close(writer)
            if job["fault"].get("background"):
                os.close(reader)
                print(json.dumps({"status": 0, "stderr": "", "n_calls": 0, "calls": {}}), flush=True)
                continue
            outcome = _wait(child, job["fault"].get("kill_after"))
            counts = os.read(reader, 1 << 16)
            os.close(reader)
            stderr.seek(0)
            calls = json.loads(counts) if counts else {}
            answer = {"status": outcome, "stderr": stderr.read().decode("utf-8", "replace"),
                      "n_calls": sum(calls.values()), "calls": calls}  # fmt: skip
        print(json.dumps(answer), flush=True)


def _wait(child: int, kill_after: float | None) -> int:
    """Wait for a child, which is killed after a time; it may not take longer than a minute."""
    end = time.monotonic() + (kill_after or _HANGS_AFTER)
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if kill_after else -999


if __name__ == "__main__":
    _serve()
