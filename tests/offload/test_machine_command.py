"""`ggplan machine` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import program
import pytest

from ggplan.offload.machine_file import read_machine


def _environment(folder: Path) -> dict[str, str]:
    """A home without a machine's file, and no nvidia-smi."""
    return {"XDG_CONFIG_HOME": str(folder / "config"), "PATH": str(folder)}


def test_what_is_here(tmp_path: Path) -> None:
    done = program.run("machine", "--no-measure", **_environment(tmp_path))
    assert done.returncode == 0
    assert "RAM" in done.stdout
    assert "/proc/meminfo" in done.stdout
    assert "unknown" in done.stdout
    assert "`ggplan machine --write` keeps it in " in done.stderr
    assert not (tmp_path / "config").exists()


def test_it_is_written_and_never_replaced_unasked(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    path = tmp_path / "config" / "ggplan" / "machine.toml"
    assert program.run("machine", "--no-measure", "--write", **environment).returncode == 0
    first = path.read_text("utf-8")
    assert "# A machine that `ggplan fit` plans for" in first
    assert read_machine(path).ram
    again = program.run("machine", "--no-measure", "--write", **environment)
    assert (again.returncode, path.read_text("utf-8")) == (1, first)
    assert again.stderr.endswith("exists\nhelp: give --force to replace it\n")
    forced = program.run("machine", "--no-measure", "--write", "--force", "--bandwidth", "80G", **environment)
    assert forced.returncode == 0
    assert read_machine(path).bandwidth == 80e9


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    home, link = tmp_path / "dotfiles.toml", tmp_path / "config" / "ggplan" / "machine.toml"
    home.write_text("cores = 4\n", "utf-8")
    link.parent.mkdir(parents=True)
    link.symlink_to(home)
    assert program.run("machine", "--no-measure", "--write", "--force", **environment).returncode == 0
    assert link.is_symlink()
    assert read_machine(home).ram


def test_margins_and_what_was_learned_are_kept(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    path = tmp_path / "config" / "ggplan" / "machine.toml"
    path.parent.mkdir(parents=True)
    path.write_text("gpu_margin = 5\nbandwidth = 5000000000\n[learned]\ngeneration = 1.5\n", "utf-8")
    assert program.run("machine", "--no-measure", "--write", "--force", **environment).returncode == 0
    machine = read_machine(path)
    assert (machine.gpu_margin, machine.bandwidth) == (5, 5e9)
    assert machine.learned is not None
    assert machine.learned.generation == 1.5


def test_it_is_measured(tmp_path: Path) -> None:
    done = program.run("machine", "--json", **_environment(tmp_path))
    found = json.loads(done.stdout)
    assert found["schema"] == "ggplan/machine@1"
    assert found["sources"]["bandwidth"].startswith("measured with ")
    assert 1e8 < found["bandwidth"] < 1e13
    assert 1e8 < found["rates"]["q4_K"] < 1e12
    assert found["rates"]["iq4_xs"] < found["rates"]["q4_K"]


def test_another_machine_is_stated(tmp_path: Path) -> None:
    done = program.run(
        "machine", "--cards", "3090,3060", "--ram", "128G", "--bandwidth", "DDR5-6000 x2", "--json",
        **_environment(tmp_path),
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert [gpu["memory"] >> 30 for gpu in found["gpus"]] == [24, 12]
    assert (found["ram"], found["cores"]) == (128 << 30, None)
    assert found["bandwidth"] == pytest.approx(81.6e9)
    output = tmp_path / "other.toml"
    program.run("machine", "--vram", "24G,12G", "--ram", "64G", "-o", output, **_environment(tmp_path))
    assert [gpu.memory >> 30 for gpu in read_machine(output).gpus] == [24, 12]
    shown = program.run("machine", "--machine", output, "--json", **_environment(tmp_path))
    assert json.loads(shown.stdout)["ram"] == 64 << 30


def test_the_table_of_cards(tmp_path: Path) -> None:
    done = program.run("machine", "--list-cards", **_environment(tmp_path))
    assert done.returncode == 0
    assert "RTX 3090 Ti" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--vram", "24G,-3G"], 2, "'-3G' is not a size"),
        (["--vram", "24"], 2, "'24' has no unit"),
        (["--ram", "0"], 2, "always in RAM; state what there is"),
        (["--bandwidth", "0"], 2, "'0' is no bandwidth of RAM"),
        (["--bandwidth", "fast"], 2, "no kind of memory that is known"),
        (["--cards", "3095"], 2, "3095 is not in the table of cards"),
        (["--cores", "0"], 2, "0 is not in the range"),
        (["--write", "-o", "x"], 2, "--write and -o name two files"),
        (["--machine", "missing.toml"], 2, "does not exist"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    done = program.run("machine", "--no-measure", *arguments, **_environment(tmp_path))
    assert done.returncode == code
    assert says in done.stderr


def test_a_damaged_file_is_told_with_its_line(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    path = tmp_path / "config" / "ggplan" / "machine.toml"
    path.parent.mkdir(parents=True)
    path.write_text("\nrma = 5\n", "utf-8")
    done = program.run("machine", "--no-measure", **environment)
    assert done.returncode == 1
    assert f"error: {path}:2: rma is unknown\nhelp: the nearest name is `ram`\n" == done.stderr
