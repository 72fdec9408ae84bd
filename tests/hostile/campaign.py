"""Give broken files to the command line, and hold it to what it promises of them.

A mutant may be taken or refused, but never with a traceback or a report of a bug, never in more than five
seconds or 500 MiB, never with a control character in what is printed, and a command that fails leaves no file
under the final name. Commands run in this process, as `ggplan` would run them: thousands take minutes.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from unittest import mock

import numpy as np

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "arch"), str(TESTS / "sources")]

from handmade_gguf import F32, STRING, U32, array, gguf, pair, record, text  # noqa: E402
from mutations import mutate_bytes, mutate_json, mutate_safetensors  # noqa: E402
from tiny_checkpoints import read_case, write_case  # noqa: E402

from ggplan import quantize  # noqa: E402
from ggplan.cli import main  # noqa: E402

SECONDS = 5.0
MEMORY = 500 << 20
RECIPE = "norm = f32\nexps = q4_K | q8_0\n^a$ = q5_0\n@default f16\n"
CASES = ("llama", "glm4moe", "deepseek_v3_fp8", "mixtral")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did: its exit code, all it printed, how long it computed."""

    code: int
    printed: str
    seconds: float


@dataclass(slots=True)
class Tally:
    """What a campaign found."""

    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)


class _TooSlow(BaseException):
    """The alarm of a command that hangs."""


def run(arguments: list[str]) -> Outcome:
    """Run `ggplan` in this process."""
    printed = io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    started = time.process_time()
    with (
        tempfile.TemporaryFile() as unasked,
        mock.patch.object(sys, "argv", ["ggplan", *arguments]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        _descriptor_2_is(unasked.fileno()),
        _alarm(),
    ):
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        except _TooSlow:
            code = 124
        unasked.seek(0)
        more = unasked.read().decode("utf-8", "backslashreplace")
    signal.signal(signal.SIGTERM, before)
    return Outcome(code, printed.getvalue() + more, time.process_time() - started)


@contextlib.contextmanager
def _descriptor_2_is(other: int) -> Iterator[None]:
    """Catch what libraries print without asking Python."""
    kept = os.dup(2)
    os.dup2(other, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)  # for what waits without working
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def faults_of(outcome: Outcome) -> list[str]:
    """Which promises an outcome breaks."""
    faults = []
    if outcome.code not in (0, 1, 2):
        faults.append(f"exit code {outcome.code}")
    if "panicked" in outcome.printed:
        faults.append("a panic was printed")
    if "Traceback" in outcome.printed or "a bug in ggplan" in outcome.printed:
        faults.append(outcome.printed.strip().splitlines()[-2 if "report it" in outcome.printed else -1])
    if outcome.seconds > SECONDS:
        faults.append(f"{outcome.seconds:.1f} seconds")
    if not outcome.printed.replace("\n", "").isprintable():
        faults.append("control characters printed")
    if outcome.code and not outcome.printed.strip():
        faults.append("not a word why")
    return faults


def sound_gguf() -> bytes:
    """A model of four tensors in four types, with what a tokenizer has."""
    pairs = [
        pair("general.architecture", STRING, text("llama")),
        pair("llama.block_count", U32, struct.pack("<I", 2)),
        array("tokenizer.ggml.tokens", STRING, 3, text("a") + text("") + text("ccc")),
        array("tokenizer.ggml.scores", F32, 3, struct.pack("<3f", 1, 2, 3)),
        pair("general.alignment", U32, struct.pack("<I", 32)),
    ]
    rows = np.random.default_rng(0).standard_normal((4, 256), np.float32)
    records, data = [], b""
    for name, type_, type_id in (
        ("a", "f32", 0),
        ("b", "q8_0", 8),
        ("blk.0.c.weight", "q4_K", 12),
        ("d", "f16", 1),
    ):
        records.append(record(name, (256, 4), type_id, len(data)))
        data += quantize(rows, type_).tobytes()
        data += bytes(-len(data) % 32)
    return gguf(pairs, records, data)


def gguf_mutants(folder: Path, dice: random.Random, count: int) -> Iterator[tuple[str, Path]]:
    """Broken GGUF files, one after another under one name."""
    sound = sound_gguf()
    path = folder / "m.gguf"
    for number in range(count):
        path.write_bytes(mutate_bytes(sound, dice, sound.index(b"blk.0.c") + 150))
        yield f"gguf {number}", path


def checkpoint_mutants(folder: Path, dice: random.Random, count: int) -> Iterator[tuple[str, Path]]:
    """Folders of which one file is broken: the weights most often, the config, the tokenizer."""
    models = {case: write_case(folder / case, read_case(case)) for case in CASES}
    for number in range(count):
        case = dice.choice(CASES)
        names = sorted(path.name for path in models[case].iterdir())
        weights = [name for name in names if name.endswith(".safetensors")]
        name = dice.choice(weights if dice.random() < 0.6 else names)
        path = models[case] / name
        sound = path.read_bytes()
        path.write_bytes(_changed(name, sound, dice))
        yield f"{case}/{name} {number}", models[case]
        path.write_bytes(sound)


def _changed(name: str, data: bytes, dice: random.Random) -> bytes:
    if name.endswith(".safetensors"):
        return mutate_safetensors(data, dice)
    if name.endswith(".json") and dice.random() < 0.8:
        return mutate_json(data, dice)
    return mutate_bytes(data, dice, len(data))


Mutants = Callable[[Path, random.Random, int], Iterator[tuple[str, Path]]]


def campaign(mutants: Mutants, folder: Path, seed: int, count: int, keep: Path | None = None) -> Tally:
    """Inspect and convert `count` mutants, verify those that are GGUF files; `keep` gathers the faulty."""
    tally = Tally()
    recipe, output = folder / "r.recipe", folder / "out.gguf"
    recipe.write_text(RECIPE)
    sources = folder / "sources"
    sources.mkdir()
    dice = random.Random(seed)
    baseline = _peak()
    for label, path in mutants(sources, dice, count):
        commands = [["inspect", str(path), "--tensors", "--metadata", "--pre", "glm4"]]
        convert = ["convert", str(path), str(output), "-r", str(recipe), "--pre", "glm4", "-t", "2", "-q"]
        commands.append([*convert, "--allow-requantize"])
        commands += [["verify", str(path)]] if path.suffix == ".gguf" else []
        found = []
        for arguments in commands:
            outcome = run(arguments)
            found += [f"{label}: {arguments[0]}: {fault}" for fault in faults_of(outcome)]
            tally.slowest = max(tally.slowest, outcome.seconds)
            if arguments[0] == "convert":
                tally.taken += outcome.code == 0
                tally.refused += outcome.code != 0
                found += _leftovers(label, output, outcome)
        if found and keep is not None:
            _keep(path, keep / label.replace("/", "-").replace(" ", "-"))
        tally.failures += found
    tally.memory = _peak() - baseline
    if tally.memory > MEMORY:
        tally.failures.append(f"{tally.memory >> 20} MiB")
    return tally


def _leftovers(label: str, output: Path, outcome: Outcome) -> list[str]:
    """A file under the final name must be there just if the command says so, and be sound."""
    found = []
    if output.exists() != (outcome.code == 0):
        found.append(f"{label}: exit code {outcome.code} and {'a' if output.exists() else 'no'} file")
    elif output.exists() and (checked := run(["verify", str(output), "-q"])).code:
        found.append(f"{label}: what was written is not sound: {checked.printed}")
    for path in output.parent.glob("out.gguf*"):
        if outcome.code and path.name == output.name + ".part":
            found.append(f"{label}: {path.name} was left")
        path.unlink()
    return found


def _keep(path: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        target.mkdir(parents=True)
        shutil.copy(path, target)


def _peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
