"""`ggplan verify` as a user meets it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from program import run

NAME = "blk.0.attn_q.weight"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A source and what `ggplan convert` makes of it."""
    source, target = tmp_path / "source.gguf", tmp_path / "out.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", rng.standard_normal((20, 64), np.float32))
    writer.add_tensor(NAME, rng.standard_normal((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "my.recipe").write_text("attn = q4_0\n@default q8_0\n")
    done = run("convert", source, target, "-r", tmp_path / "my.recipe")
    assert done.returncode == 0, done.stderr
    return source, target


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-33] ^= 1
    path.write_bytes(data)


def test_a_sound_file_and_how_far_it_is_from_its_source(made: tuple[Path, Path]) -> None:
    source, target = made
    done = run("verify", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{target}: 2 tensors, 3.58 KiB: structure, padding and scales are sound; checksums agree"
    ]
    assert run("verify", target, "-q").stdout == ""
    done = run("verify", target, "--against", source, "--exact", COLUMNS="140")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "weight" in line]
    assert [line.split()[0] for line in lines] == [NAME, "token_embd.weight"]  # the worse first
    assert "every byte is what the plan encodes" in done.stdout


def test_json(made: tuple[Path, Path]) -> None:
    source, target = made
    done = run("verify", target, "--against", source, "--json")
    found = json.loads(done.stdout)
    assert found["schema"] == "ggplan/verification@1"
    assert (found["sound"], found["faults"], found["proven"]) == (True, [], False)
    assert found["manifest"] == f"{target}.sha256"
    assert [error["name"] for error in found["errors"]] == [NAME, "token_embd.weight"]
    assert 0 < found["errors"][1]["relative"] < found["errors"][0]["relative"] < 0.2
    flip_last_bit(target)
    done = run("verify", target, "--json")
    assert done.returncode == 1
    (fault,) = json.loads(done.stdout)["faults"]
    assert (fault["where"], fault["kind"]) == (NAME, "checksum")


def test_a_fault_names_its_tensor(made: tuple[Path, Path]) -> None:
    source, target = made
    flip_last_bit(target)
    done = run("verify", target)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: out.gguf: {NAME}: its sha256 is not the manifest's"]
    Path(f"{target}.sha256").unlink()
    done = run("verify", target)
    assert done.returncode == 0  # the bit is one of a weight, and nothing tells what it was
    assert "no manifest" in done.stderr
    done = run("verify", target, "--against", source, "--exact")
    assert done.returncode == 1
    assert f"{NAME}: row 63 is not what the plan encodes" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument"),
        (["{target}", "--exact"], 2, "--exact needs --against"),
        (["{target}", "--imatrix", "x"], 2, "are for --exact"),
        (["{target}", "--pre", "x"], 2, "--pre is for the model of --against"),
        (["{target}.gone"], 1, "No such file"),
        (["{target}", "--manifest", "{target}"], 1, "is not a manifest"),
        (["{target}", "--manifest", "{target}.gone"], 1, "there is no manifest"),
        (["{source}", "--against", "{source}", "--exact"], 1, "does not say how it was made"),
    ],
)
def test_mistakes(made: tuple[Path, Path], arguments: list[str], code: int, said: str) -> None:
    done = run("verify", *[a.format(source=made[0], target=made[1]) for a in arguments])
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_llama_cpps_own_line_format(made: tuple[Path, Path]) -> None:
    """The tensors' lines are those sha256sum would give of their bytes."""
    _, target = made
    (tensor,) = (t for t in gguf.GGUFReader(target).tensors if t.name == NAME)
    done = subprocess.run(["sha256sum"], input=tensor.data.tobytes(), capture_output=True, check=True)
    digest = done.stdout.decode().split()[0]
    assert f"sha256    {digest}  out.gguf:{NAME}" in Path(f"{target}.sha256").read_text().splitlines()
