"""A small sample of what tools/hostile_campaign.py does by the thousand, and attacks that need no dice."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from campaign import Outcome, campaign, checkpoint_mutants, faults_of, gguf_mutants, run, sound_gguf
from handmade_gguf import gguf, record
from tiny_checkpoints import read_case, write_case

ROOT = Path(__file__).parent.parent.parent
MIB = 1 << 20


@pytest.mark.parametrize("mutants", [gguf_mutants, checkpoint_mutants], ids=["gguf", "folder"])
def test_fifty_mutants_break_no_promise(tmp_path: Path, mutants: object) -> None:
    tally = campaign(mutants, tmp_path, seed=20, count=50)  # type: ignore[arg-type]
    assert tally.failures == []
    assert tally.taken + tally.refused == 50
    assert tally.taken > 0
    assert tally.refused > 25


def test_the_judge_sees_what_is_wrong() -> None:
    assert faults_of(Outcome(0, "fine\n", 0.1)) == []
    assert faults_of(Outcome(1, "error: x\n", 0.1)) == []
    for bad in (
        Outcome(1, "Traceback (most recent call last)\nValueError\n", 0.1),
        Outcome(1, "error: a bug in ggplan: KeyError: 1\nhelp: please report it\n", 0.1),
        Outcome(1, "", 0.1),
        Outcome(124, "x", 0.1),
        Outcome(0, "\x1b[2J", 0.1),
        Outcome(0, "x", 6.0),
    ):
        assert faults_of(bad)


def limited(arguments: list[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], float, int]:
    """Run ggplan in a process of its own: what it printed, how long it computed, its largest memory."""
    # Linux counts to ru_maxrss what the parent had when it forked; VmHWM is the program's own.
    program = (
        "import pathlib, resource, sys, time\nfrom ggplan.cli import main\n"
        "def peak():\n"
        "    status = pathlib.Path('/proc/self/status')\n"
        "    if not status.exists():\n"
        "        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    return status.read_text().split('VmHWM:')[1].split()[0]\n"
        "try:\n    main()\n"
        "finally:\n    print(time.process_time(), peak(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    seconds, peak = done.stderr.split()[-2:]
    return done, float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024)


def test_a_tebibyte_is_inspected_at_once(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    # 64 tensors of bf16 with 8 Gi weights each: 16 GiB a tensor, 1 TiB together, of which nothing is on disk.
    n_bytes = 1 << 34
    records = [record(f"blk.{k}.ffn_up_exps.weight", (8192, 4096, 256), 30, k * n_bytes) for k in range(64)]
    header = gguf([], records)
    path.write_bytes(header)
    os.truncate(path, len(header) + 64 * n_bytes)
    done, seconds, peak = limited(["inspect", str(path)], tmp_path)
    assert done.returncode == 0
    assert "1.00 TiB" in done.stdout
    assert seconds < 2
    assert peak < 200 * MIB


@pytest.mark.parametrize("command", ["inspect", "plan", "verify", "convert"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused_by_every_command(tmp_path: Path, command: str, kind: str) -> None:
    path = tmp_path / "m.gguf"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    outcome = run([command, str(path), *([str(tmp_path / "out.gguf")] if command == "convert" else [])])
    assert outcome.code == 1
    assert "is not a" in outcome.printed
    assert faults_of(outcome) == []


@pytest.mark.parametrize("option", ["-r", "--imatrix"])
def test_pipes_as_recipe_and_imatrix(tmp_path: Path, option: str) -> None:
    (tmp_path / "m.gguf").write_bytes(sound_gguf())
    os.mkfifo(tmp_path / "pipe")
    outcome = run(["plan", str(tmp_path / "m.gguf"), option, str(tmp_path / "pipe")])
    assert outcome.code == 1
    assert "pipe" in outcome.printed
    assert faults_of(outcome) == []


def test_a_pipe_as_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(sound_gguf())
    os.mkfifo(tmp_path / "m.gguf.sha256")
    outcome = run(["verify", str(tmp_path / "m.gguf")])
    assert outcome.code == 1
    assert faults_of(outcome) == []


def test_nothing_of_a_model_folder_is_imported(tmp_path: Path) -> None:
    """Modules that a stranger put into the folder one works in."""
    folder = write_case(tmp_path / "m", read_case("llama"))
    names = "numpy numba click rich json re tokenizers yaml re2 torch safetensors gguf sitecustomize"
    for name in names.split():
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    (folder / "modeling_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('modeling')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "modeling_x.Config"}, "trust_remote_code": True}
    (folder / "config.json").write_text(json.dumps(config))
    # The console script has its own folder on the path; `python -m` has the one it runs in, but for -P.
    script = tmp_path / "bin" / "ggplan"
    script.parent.mkdir()
    script.write_text("import sys\nfrom ggplan.cli import main\nsys.exit(main())\n")
    inspect, convert = ["inspect", ".", "--pre", "glm4"], ["convert", ".", "out.gguf", "--pre", "glm4"]
    for start in ([str(script), *inspect], [str(script), *convert], ["-P", "-m", "ggplan", *inspect]):
        done = subprocess.run(
            [sys.executable, *start],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


EVIL = "a\x1b[31m\x07\u202e\x9b2J\nb"


def test_names_are_escaped_wherever_they_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / f"m{EVIL.replace('/', '')}"
    write_case(folder, read_case("llama"))
    config = json.loads((folder / "config.json").read_text())
    commands = [
        ["inspect", str(folder), "--metadata", "--tensors", "--pre", "glm4"],
        ["plan", str(folder), "--pre", EVIL],
    ]
    for changes in ({}, {"architectures": [EVIL]}, {"hidden_size": EVIL}, {EVIL: 1, "_name_or_path": EVIL}):
        (folder / "config.json").write_text(json.dumps(config | changes))
        for command in commands:
            assert faults_of(run(command)) == [], (changes, command)
    (tmp_path / "evil.recipe").write_text(f"{EVIL.replace(chr(10), '')} = q8_0\nx = {EVIL}\n")
    (folder / "config.json").write_text(json.dumps(config))
    assert faults_of(run(["plan", str(folder), "-r", str(tmp_path / "evil.recipe"), "--pre", "glm4"])) == []
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {EVIL: EVIL}}))
    assert faults_of(run(commands[0])) == []
    hostile = gguf([], [record(EVIL, (32, 2), 0, 0)], bytes(256))
    (tmp_path / "m.gguf").write_bytes(hostile)
    (tmp_path / "m.gguf.sha256").write_text(f"sha256    {'0' * 64}  m.gguf:x{EVIL}\n")
    for arguments in (["inspect", "--tensors"], ["plan", "--tensors"], ["verify"]):
        assert faults_of(run([arguments[0], str(tmp_path / "m.gguf"), *arguments[1:]])) == []


def test_memory_is_not_what_a_header_claims(tmp_path: Path) -> None:
    """Sparse files that have what they claim, and no room to hold it."""
    paths = []
    for number, dims in enumerate([(1 << 20, 1 << 12), (1 << 32,), (32, 1 << 27)]):
        path = tmp_path / f"{number}.gguf"
        header = gguf([], [record("blk.0.attn_q.weight", dims, 0, 0)])
        path.write_bytes(header)
        os.truncate(path, len(header) + (1 << 34))
        paths.append(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in paths:
        assert faults_of(run(["inspect", str(path)])) == []
        assert faults_of(run(["plan", str(path)])) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
