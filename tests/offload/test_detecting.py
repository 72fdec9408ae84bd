"""Detection: what nvidia-smi, /proc and /sys say, and what becomes of text that no driver wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggplan.offload.detecting import detect

_MEMINFO = "MemTotal:       131072000 kB\nMemFree: 1 kB\nMemAvailable:   65536000 kB\n"


def _program(folder: Path, script: str) -> dict[str, str]:
    """An environment in which nvidia-smi is this script."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def _says(folder: Path, *lines: str) -> dict[str, str]:
    text = "\n".join(lines)
    return _program(folder, f"cat <<'EOF'\n{text}\nEOF")


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """A root with RAM and two cores of two threads each."""
    root = tmp_path / "root"
    _write(root, {"proc/meminfo": _MEMINFO})
    for cpu in range(4):
        topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
        _write(root, {f"{topology}/core_id": str(cpu % 2), f"{topology}/physical_package_id": "0"})
    return root


def test_a_card_with_its_slot(seen: Path, tmp_path: Path) -> None:
    found = detect(seen, _says(tmp_path / "bin", "NVIDIA GeForce RTX 3090, 24576, 900, 4, 8"))
    (gpu,) = found.machine.gpus
    assert (gpu.name, gpu.memory, gpu.bandwidth) == ("NVIDIA GeForce RTX 3090", 24576 << 20, 936e9)
    assert gpu.pcie == 12e9
    assert found.machine.sources["gpu 0 pcie"] == "nvidia-smi: PCIe 4.0 x8"
    assert found.machine.sources["gpu 0 bandwidth"] == "table of cards"
    assert (found.machine.ram, found.free, found.machine.cores) == (131072000 << 10, 65536000 << 10, 2)
    assert any("900 MiB are in use" in note for note in found.notes)


def test_the_fastest_is_the_first_as_cuda_has_it(seen: Path, tmp_path: Path) -> None:
    lines = ["NVIDIA GeForce RTX 3060, 12288, 1, 4, 16", "NVIDIA GeForce RTX 3090, 24576, 1, 4, 16"]
    environment = _says(tmp_path / "bin", *lines)
    found = detect(seen, environment)
    assert [gpu.memory >> 30 for gpu in found.machine.gpus] == [24, 12]
    assert found.machine.sources["gpu 0 memory"] == "nvidia-smi"
    assert any("CUDA_DEVICE_ORDER" in note for note in found.notes)
    by_bus = detect(seen, environment | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert [gpu.memory >> 30 for gpu in by_bus.machine.gpus] == [12, 24]
    one = detect(seen, environment | {"CUDA_VISIBLE_DEVICES": "1"})
    assert [gpu.memory >> 30 for gpu in one.machine.gpus] == [12]
    none = detect(seen, environment | {"CUDA_VISIBLE_DEVICES": "-1"})
    assert none.machine.gpus == ()


def test_a_riser_is_told(seen: Path, tmp_path: Path) -> None:
    found = detect(seen, _says(tmp_path / "bin", "NVIDIA GeForce RTX 3090, 24576, 1, 4, 1"))
    assert found.machine.gpus[0].pcie == 1.5e9
    assert any("a slot of 1 lanes" in note for note in found.notes)


@pytest.mark.parametrize(
    "line",
    [
        "", "NVIDIA-SMI has failed", "a,b,c,d,e", "RTX,-5,1,4,16", "RTX,99999999999999999999,1,4,16",
        "\x1b[31m,1", "RTX 3090, 24576, 1, 4, 16, 7",
    ],
)  # fmt: skip
def test_garbage_is_no_card(line: str, seen: Path, tmp_path: Path) -> None:
    found = detect(seen, _says(tmp_path / "bin", line))
    assert found.machine.gpus == ()
    assert all(note.isprintable() for note in found.notes)
    assert bool(line) == any("is not understood" in note for note in found.notes)


def test_a_card_that_shares_the_ram_states_no_memory(seen: Path, tmp_path: Path) -> None:
    found = detect(seen, _says(tmp_path / "bin", "NVIDIA GB10, [N/A], [N/A], 5, 16"))
    assert found.machine.gpus == ()
    assert found.notes == ("NVIDIA GB10 states no memory of its own: say what it may use with `--vram`",)


def test_a_card_whose_slot_is_not_known_is_still_a_card(seen: Path, tmp_path: Path) -> None:
    found = detect(seen, _says(tmp_path / "bin", "NVIDIA GeForce RTX 3090, 24576, [N/A], [N/A], 99"))
    assert found.machine.gpus[0].pcie == 24e9
    assert found.machine.sources["gpu 0 pcie"] == "table of cards"


def test_a_card_that_nobody_knows_has_no_bandwidth(seen: Path, tmp_path: Path) -> None:
    found = detect(seen, _says(tmp_path / "bin", "NVIDIA Something 9999, 24576, 1, 4, 16"))
    assert found.machine.gpus[0].bandwidth is None
    assert any("not in the table of cards" in note for note in found.notes)


def test_a_program_that_fails_is_told(seen: Path, tmp_path: Path) -> None:
    found = detect(seen, _program(tmp_path / "bin", "echo 'no driver'; exit 9"))
    assert found.machine.gpus == ()
    assert found.notes == ("nvidia-smi failed: no driver",)


def test_a_program_that_hangs_is_left(seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggplan.offload.detecting._SECONDS", 0.3)
    found = detect(seen, _program(tmp_path / "bin", "exec sleep 20"))
    assert found.machine.gpus == ()
    assert any("gave no answer" in note for note in found.notes)


def test_a_flood_of_text_is_cut(seen: Path, tmp_path: Path) -> None:
    flood = "yes 'NVIDIA RTX A6000, 49140, 1, 4, 16' | head -9000"
    found = detect(seen, _program(tmp_path / "bin", flood))
    assert len(found.machine.gpus) == 64


def test_no_program_is_no_card(seen: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = detect(seen, {"PATH": str(tmp_path / "empty")})
    assert found.machine.gpus == ()
    assert found.notes == ()


def test_cards_of_amd(seen: Path, tmp_path: Path) -> None:
    device = "sys/class/drm/card1/device"
    _write(seen, {
        f"{device}/vendor": "0x1002\n", f"{device}/mem_info_vram_total": f"{24 << 30}\n",
        f"{device}/product_name": "AMD Radeon RX 7900 XTX\n", f"{device}/current_link_width": "16",
        f"{device}/current_link_speed": "16.0 GT/s PCIe",
        "sys/class/drm/card0/device/vendor": "0x1002",  # integrated graphics
        "sys/class/drm/card0/device/mem_info_vram_total": str(512 << 20),
        "sys/class/drm/card1-DP-1/device/vendor": "0x1002",
    })  # fmt: skip
    (tmp_path / "empty").mkdir()
    (gpu,) = detect(seen, {"PATH": str(tmp_path / "empty")}).machine.gpus
    assert (gpu.name, gpu.bandwidth, gpu.pcie) == ("AMD Radeon RX 7900 XTX", 960e9, 24e9)


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({"sys/fs/cgroup/memory.max": "max"}, 125),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": str(32 << 30),
          "sys/fs/cgroup/a/b/memory.max": "max"}, 32),
        ({"proc/self/cgroup": "4:memory:/x\n",
          "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(16 << 30)}, 16),
        ({"proc/self/cgroup": "0::/../../..\n", "sys/fs/cgroup/memory.max": str(8 << 30)}, 8),
        ({"sys/fs/cgroup/memory.max": "9" * 40}, 125),
    ],
)  # fmt: skip
def test_limits_of_control_groups(files: dict[str, str], gib: int, seen: Path, tmp_path: Path) -> None:
    _write(seen, files)
    (tmp_path / "empty").mkdir()
    found = detect(seen, {"PATH": str(tmp_path / "empty")})
    assert (found.machine.ram or 0) >> 30 == gib
    assert found.free is not None
    assert found.free <= (found.machine.ram or 0)


@pytest.mark.parametrize(
    ("text", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 2), ("900000 100000", 2),
                        ("0 0", 2), ("x", 2)]
)  # fmt: skip
def test_limits_of_time(text: str, cores: int, seen: Path, tmp_path: Path) -> None:
    _write(seen, {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": text})
    (tmp_path / "empty").mkdir()
    assert detect(seen, {"PATH": str(tmp_path / "empty")}).machine.cores == cores


def test_nothing_is_known_of_an_empty_system(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = detect(tmp_path / "empty", {"PATH": str(tmp_path / "empty")})
    assert (found.machine.ram, found.machine.cores, found.free) == (None, None, None)
    assert any("does not say how much RAM" in note for note in found.notes)


def test_several_memory_nodes_are_told(seen: Path, tmp_path: Path) -> None:
    for node in ("node0", "node1"):
        (seen / "sys/devices/system/node" / node).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    found = detect(seen, {"PATH": str(tmp_path / "empty")})
    assert any("2 memory nodes" in note for note in found.notes)
