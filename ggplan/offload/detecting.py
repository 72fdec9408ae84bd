"""Detecting the machine at hand: what the system says of GPUs, RAM and cores, without measuring.

    GPUs     nvidia-smi; of AMD's, the driver's files in /sys/class/drm. Their bandwidth is that of the
             table of cards, their PCIe bandwidth that of the slot they are in
    RAM      /proc/meminfo; less where a control group allows less
    cores    physical ones of /sys/devices/system/cpu that this process may use

llama.cpp numbers CUDA devices as CUDA does: the fastest first, unless `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
`CUDA_VISIBLE_DEVICES` chooses among them.

What programs and files say is a stranger's text: it is cut, and what cannot be is noted and left out.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggplan.offload.cards import known_card, pcie_bandwidth
from ggplan.offload.machine import Gpu, Machine
from ggplan.text import printable

_SECONDS = 10
_MOST_TEXT = 1 << 16
_MOST_GPUS = 64
_MOST_MIB = 1 << 24
_LEAST_CARD = 3 << 30  # what AMD's integrated graphics take of RAM is less
_AMD = "0x1002"
_QUERY = "name,memory.total,memory.used,pcie.link.gen.max,pcie.link.width.current"
_SPEEDS = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}  # GT/s of a lane
_UNLIMITED = 1 << 60


@dataclass(slots=True)
class _Found:
    gpus: list[Gpu] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Detected:
    """What the system says.

    Attributes
    ----------
    machine
        Without what has to be measured.
    free
        Bytes of RAM that are free now; None if unknown.
    notes
        What was left out, and what matters for speed: several sockets, a card with a slow slot.
    """

    machine: Machine
    free: int | None
    notes: tuple[str, ...]


def detect(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Detected:
    """What the system says of the machine at hand.

    Parameters
    ----------
    root
        Where /proc and /sys are.
    """
    found = _Found()
    _nvidia(found, environment)
    if not found.gpus:
        _amd(found, root)
    gpus = _in_order(found, environment)
    ram, free = _ram(found, root)
    cores = _cores(found, root)
    machine = Machine(gpus, ram, None, cores, sources=found.sources)
    return Detected(machine, free, tuple(found.notes))


# --- GPUs --------------------------------------------------------------------------------------------


def _nvidia(found: _Found, environment: Mapping[str, str]) -> None:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL,
            env=dict(environment),
        )  # fmt: skip
    except FileNotFoundError:
        return
    except subprocess.TimeoutExpired:
        found.notes.append(f"nvidia-smi gave no answer in {_SECONDS} seconds: no NVIDIA GPU is counted")
        return
    except (OSError, ValueError) as error:
        found.notes.append(f"nvidia-smi cannot be run: {printable(str(error))[:120]}")
        return
    text = done.stdout[:_MOST_TEXT].decode("utf-8", "replace")
    if done.returncode:
        says = (text + done.stderr[:_MOST_TEXT].decode("utf-8", "replace")).strip()
        said = printable(says.splitlines()[0])[:120] if says else f"exit code {done.returncode}"
        found.notes.append(f"nvidia-smi failed: {said}")
        return
    for line in text.splitlines()[:_MOST_GPUS]:
        if line.strip():
            _nvidia_card(found, line)


def _nvidia_card(found: _Found, line: str) -> None:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) == 5 and cells[1].startswith("[N/A"):
        # A GPU that shares the RAM (GB10) states no memory.
        name = printable(cells[0])[:80]
        found.notes.append(f"{name} states no memory of its own: say what it may use with `--vram`")
        return
    mib = _integer(cells[1]) if len(cells) == 5 else None
    if mib is None or not 0 < mib <= _MOST_MIB:
        found.notes.append(f"a line of nvidia-smi is not understood: {printable(line)[:80]}")
        return
    name = printable(cells[0])[:80]
    memory = mib << 20
    known = known_card(name, memory)
    generation, width = _integer(cells[3]), _integer(cells[4])
    pcie, source = (known.pcie if known else None), "table of cards"
    if generation and width and generation <= 8 and width <= 32:
        pcie, source = pcie_bandwidth(generation, width), f"nvidia-smi: PCIe {generation}.0 x{width}"
    _add(found, Gpu(name, memory, None, pcie), known, "nvidia-smi", source)
    used = _integer(cells[2])
    if used and used >= 200:
        found.notes.append(f"{name}: {used:,} MiB are in use now; count them in `gpu_margin` if they stay")
    if width and width <= 4:
        found.notes.append(f"{name} is in a slot of {width} lanes: prompts that are streamed are slow there")


def _add(found: _Found, gpu: Gpu, known: Gpu | None, source: str, pcie_source: str) -> None:
    at = f"gpu {len(found.gpus)}"
    found.sources[f"{at} memory"] = source
    if gpu.pcie is not None:
        found.sources[f"{at} pcie"] = pcie_source
    if known is not None:
        gpu = replace(gpu, bandwidth=known.bandwidth, flops=known.flops)
        found.sources[f"{at} bandwidth"] = "table of cards"
        if known.flops is not None:
            found.sources[f"{at} flops"] = "table of cards"
    else:
        found.notes.append(
            f"{gpu.name or 'the GPU'} is not in the table of cards: its bandwidth is not known"
        )
    found.gpus.append(gpu)


def _amd(found: _Found, root: Path) -> None:
    for card in sorted((root / "sys/class/drm").glob("card[0-9]*")):
        device = card / "device"
        if not re.fullmatch(r"card\d{1,3}", card.name) or _text(device / "vendor") != _AMD:
            continue
        memory = _integer(_text(device / "mem_info_vram_total"))
        if memory is None or not _LEAST_CARD <= memory <= _MOST_MIB << 20 or len(found.gpus) >= _MOST_GPUS:
            continue
        name = printable(_text(device / "product_name"))[:80]
        known = known_card(name, memory) if name else None
        speed = re.match(r"([\d.]+) GT/s", _text(device / "current_link_speed"))
        width = _integer(_text(device / "current_link_width"))
        generation = _SPEEDS.get(speed[1]) if speed else None
        pcie, source = (known.pcie if known else None), "table of cards"
        if generation and width and width <= 32:
            pcie, source = pcie_bandwidth(generation, width), f"/sys: PCIe {generation}.0 x{width}"
        _add(found, Gpu(name or "AMD GPU", memory, None, pcie), known, "/sys/class/drm", source)


def _in_order(found: _Found, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs as CUDA numbers and shows them, and their sources with them."""
    order = list(range(len(found.gpus)))
    if environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len(set(found.gpus)) > 1:
        fastest = max(order, key=lambda i: (found.gpus[i].flops or 0, found.gpus[i].bandwidth or 0, -i))
        order.remove(fastest)
        order.insert(0, fastest)
        found.notes.append(
            f"CUDA0 is taken to be {found.gpus[fastest].name}, the fastest, as CUDA has it unless "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").strip()
    if visible and re.fullmatch(r"-?\d{1,3}(,-?\d{1,3})*", visible):
        chosen: list[int] = []
        for number in map(int, visible.split(",")):
            if not 0 <= number < len(order):  # as CUDA does: this one and all after it are not there
                break
            chosen.append(order[number])
        order = chosen
        found.notes.append(f"CUDA_VISIBLE_DEVICES={visible} leaves {len(order)} of {len(found.gpus)} GPUs")
    elif visible:
        found.notes.append("CUDA_VISIBLE_DEVICES is not a list of numbers, and is not regarded")
    gpus = tuple(found.gpus[i] for i in order)
    kept = {name: source for name, source in found.sources.items() if not name.startswith("gpu ")}
    for new, old in enumerate(order):
        for part in ("memory", "bandwidth", "pcie", "flops"):
            if (source := found.sources.get(f"gpu {old} {part}")) is not None:
                kept[f"gpu {new} {part}"] = source
    found.sources = kept
    return gpus


# --- RAM and cores -----------------------------------------------------------------------------------


def _ram(found: _Found, root: Path) -> tuple[int | None, int | None]:
    """All RAM and what is free of it."""
    facts = dict(
        re.findall(r"^(MemTotal|MemAvailable):\s+(\d{1,15}) kB$", _text(root / "proc/meminfo"), re.M)
    )
    total = int(facts["MemTotal"]) << 10 if "MemTotal" in facts else None
    free = int(facts["MemAvailable"]) << 10 if "MemAvailable" in facts else None
    source = "/proc/meminfo"
    if total is None and root == Path("/"):
        total = _pages("SC_PHYS_PAGES")
        free, source = _pages("SC_AVPHYS_PAGES") or total, "the system"
    limit = _limit(root)
    if total is not None and limit is not None and limit < total:
        total, free, source = limit, min(free or limit, limit), "the limit of the control group"
    if total is None:
        found.notes.append("the system does not say how much RAM there is")
    else:
        found.sources["ram"] = source
    return total, free


def _pages(name: str) -> int | None:
    try:
        pages, size = os.sysconf(name), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return pages * size if pages > 0 and size > 0 else None


def _limit(root: Path) -> int | None:
    """The least limit of memory of this process's control groups and those above them."""
    texts = [*_in_groups(root, "", "memory.max"), *_in_groups(root, "memory", "memory.limit_in_bytes")]
    limits = [n for n in map(_integer, texts) if n is not None and 0 < n < _UNLIMITED]
    return min(limits, default=None)


def _quota(root: Path) -> int | None:
    """Whole cores whose time the control groups allow: microseconds of each period."""
    found = []
    for text in _in_groups(root, "", "cpu.max"):
        pair = re.fullmatch(r"(\d{1,15}) (\d{1,15})", text)
        if pair and int(pair[2]):
            found.append(max(int(pair[1]) // int(pair[2]), 1))
    return min(found, default=None)


def _in_groups(root: Path, controller: str, name: str) -> list[str]:
    """A file of each control group that this process is in, and of those above; "" of version 2."""
    pattern = rf"^\d+:{controller}:(/[^\n]{{0,400}})$" if controller else r"^0::(/[^\n]{0,400})$"
    found = []
    for path in [*re.findall(pattern, _text(root / "proc/self/cgroup"), re.M), "/"]:
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        group = root / "sys/fs/cgroup" / controller
        found += [_text(group.joinpath(*parts[:depth]) / name) for depth in range(len(parts) + 1)]
    return found


def _cores(found: _Found, root: Path) -> int | None:
    """Physical cores that this process may use."""
    usable = os.sched_getaffinity(0) if root == Path("/") and hasattr(os, "sched_getaffinity") else None
    pairs: set[tuple[str, str]] = set()
    for cpu in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        number = _integer(cpu.name.removeprefix("cpu"))
        core = _text(cpu / "topology/core_id")
        if number is not None and core and (usable is None or number in usable):
            pairs.add((_text(cpu / "topology/physical_package_id"), core))
    nodes = len(list((root / "sys/devices/system/node").glob("node[0-9]*")))
    if len({package for package, _ in pairs}) > 1 or nodes > 1:
        found.notes.append(
            f"{max(nodes, 1)} memory nodes: an engine reads all at full speed only with `--numa distribute`"
        )
    quota = _quota(root)
    if pairs and quota is not None and quota < len(pairs):
        found.sources["cores"] = "the limit of the control group"
        return quota
    if pairs:
        found.sources["cores"] = "/sys/devices/system/cpu"
        return len(pairs)
    count = (len(usable) if usable else os.cpu_count()) if root == Path("/") else None
    if count:
        found.sources["cores"] = "the system, which may count threads"
    return count


def _text(path: Path) -> str:
    """The beginning of a file, "" where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_TEXT).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None
