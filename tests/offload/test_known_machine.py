"""Which machine a plan is for: options, a file, or the one at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ggplan.errors import MachineError
from ggplan.offload.known_machine import Stated, machine_for, on_top_of, stated_bandwidth
from ggplan.offload.machine import Gpu, Learned, Machine
from ggplan.offload.machine_file import machine_text

_KEPT = Machine(
    (Gpu("RTX 3090", 24 << 30, 936e9, 24e9, 142e12),), 64 << 30, 70e9, 8, {"q4_K": 2e10}, 3 << 29, 8 << 30,
    {"bandwidth": "measured", "gpu 0 memory": "nvidia-smi"}, Learned("bench.log", 1.1),
)  # fmt: skip


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, str]:
    """An environment whose machine's file says `_KEPT`."""
    path = tmp_path / "ggplan" / "machine.toml"
    path.parent.mkdir()
    path.write_text(machine_text(_KEPT), "utf-8")
    return {"XDG_CONFIG_HOME": str(tmp_path), "PATH": str(tmp_path)}


def test_the_file_is_what_is_not_stated(kept: dict[str, str]) -> None:
    machine, notes = machine_for(Stated(), kept)
    assert replace(machine, sources=_KEPT.sources) == _KEPT
    assert machine.sources["bandwidth"].startswith("measured, in ")
    assert notes == ()


def test_an_option_replaces_its_part(kept: dict[str, str]) -> None:
    machine, _ = machine_for(Stated(ram=128 << 30), kept)
    assert (machine.ram, machine.bandwidth, machine.gpus) == (128 << 30, 70e9, _KEPT.gpus)
    assert machine.sources["ram"] == "--ram"
    machine, _ = machine_for(Stated(cores=4), kept)
    assert (machine.cores, machine.sources["cores"]) == (4, "--cores")
    machine, _ = machine_for(Stated(bandwidth="DDR4-3200 x2"), kept)
    assert machine.bandwidth == pytest.approx(0.85 * 51.2e9)
    assert machine.learned is None


def test_less_memory_is_the_same_card_and_much_less_is_another(kept: dict[str, str]) -> None:
    machine, _ = machine_for(Stated(vram=(23 << 30,)), kept)
    assert machine.gpus == (replace(_KEPT.gpus[0], memory=23 << 30),)
    machine, _ = machine_for(Stated(vram=(12 << 30,)), kept)
    assert machine.gpus == (Gpu("", 12 << 30),)
    machine, _ = machine_for(Stated(vram=(24 << 30, 12 << 30)), kept)
    assert [gpu.bandwidth for gpu in machine.gpus] == [936e9, None]


def test_another_machine_gets_nothing_of_this_one(kept: dict[str, str]) -> None:
    machine, _ = machine_for(Stated(vram=(24 << 30,), ram=128 << 30), kept)
    assert machine == Machine(
        (Gpu("", 24 << 30),), 128 << 30, sources={"gpu 0 memory": "--vram", "ram": "--ram"}
    )


def test_cards_by_name_with_other_memory(kept: dict[str, str]) -> None:
    machine, _ = machine_for(Stated(cards="3090,3060", vram=(20 << 30, 12 << 30), ram=1 << 36), kept)
    assert [(gpu.name, gpu.memory >> 30) for gpu in machine.gpus] == [("RTX 3090", 20), ("RTX 3060", 12)]
    assert machine.sources["gpu 0 memory"] == "--vram"
    assert machine.sources["gpu 0 bandwidth"] == "table of cards"
    with pytest.raises(MachineError, match="1 sizes for 2 cards"):
        machine_for(Stated(cards="2x3090", vram=(20 << 30,)), kept)


def test_a_file_that_is_named_is_all_there_is(kept: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("ram = 1024\n", "utf-8")
    machine, _ = machine_for(Stated(file=other), kept)
    assert (machine.ram, machine.gpus, machine.bandwidth) == (1024, (), None)


def test_without_a_file_the_system_is_asked(tmp_path: Path) -> None:
    machine, _ = machine_for(Stated(), {"XDG_CONFIG_HOME": str(tmp_path), "PATH": str(tmp_path)})
    assert machine.ram
    assert machine.bandwidth is None


@pytest.mark.parametrize(
    ("text", "rate"), [("80G", 80e9), ("80GB/s", 80e9), ("80 GB/s", 80e9), ("1.5T", 1.5e12)]
)
def test_bandwidths(text: str, rate: float) -> None:
    assert stated_bandwidth(text) == (rate, "--bandwidth")


@pytest.mark.parametrize("text", ["0", "80", "-80G", "fast", "nan", "1e30", "5M", ""])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(MachineError, match="is no bandwidth"):
        stated_bandwidth(text)


def test_what_is_found_now_on_top_of_the_file() -> None:
    now = Machine((), 1 << 36, 71e9, 16, sources={"ram": "/proc/meminfo"})
    machine, notes = on_top_of(now, _KEPT)
    assert (machine.gpus, machine.ram, machine.cores) == (_KEPT.gpus, 1 << 36, 16)
    assert (machine.gpu_margin, machine.learned) == (3 << 29, _KEPT.learned)
    assert machine.sources["ram"] == "/proc/meminfo"
    assert notes == []


def test_what_was_learned_of_other_memory_is_dropped() -> None:
    machine, notes = on_top_of(Machine(bandwidth=140e9), _KEPT)
    assert machine.learned is None
    assert notes == ["RAM is 2.00 times as fast as in the file: what bench.log taught is dropped"]
