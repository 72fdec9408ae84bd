"""Cards and memories that people run models on: the makers' figures.

Of a card: memory, the bandwidth of its memory, its place on the PCIe bus, and operations per second on
half-precision matrices (dense, the fastest accumulation; int8 where a card has no such units, as Pascal).
Sources: the makers' data sheets and architecture papers (NVIDIA Pascal, Volta, Turing, Ampere, Ada, Hopper,
Blackwell; AMD RDNA 2 to 4 and CDNA; Intel Arc). A figure that no sheet states is left out.

Of RAM: transfers per second × 8 bytes × channels, which no program reaches: measured reads are 75 to 90 % of
it. Unified memories (Apple, AMD Strix Halo, NVIDIA GB10) are stated as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from ggplan.errors import MachineError
from ggplan.offload.machine import Gpu
from ggplan.text import nearest, printable

READ_SHARE = 0.85
"""Of the theoretical bandwidth of RAM, what programs that only read it measure."""

# Bytes per second that a lane carries in practice, by the generation of PCIe.
_LANE = {1: 0.19e9, 2: 0.38e9, 3: 0.77e9, 4: 1.5e9, 5: 3.0e9, 6: 6.0e9}
_MOST_CARDS = 32

# name | memory, GiB | bandwidth, GB/s | PCIe generation x lanes | TFLOPS or -
_CARDS = """
GTX 1060 | 6 | 192 | 3x16 | 17
GTX 1070 | 8 | 256 | 3x16 | 26
GTX 1070 Ti | 8 | 256 | 3x16 | 33
GTX 1080 | 8 | 320 | 3x16 | 35
GTX 1080 Ti | 11 | 484 | 3x16 | 45
GTX 1660 Super | 6 | 336 | 3x16 | -
RTX 2060 | 6 | 336 | 3x16 | 52
RTX 2060 Super | 8 | 448 | 3x16 | 57
RTX 2070 | 8 | 448 | 3x16 | 60
RTX 2070 Super | 8 | 448 | 3x16 | 73
RTX 2080 | 8 | 448 | 3x16 | 81
RTX 2080 Super | 8 | 496 | 3x16 | 89
RTX 2080 Ti | 11 | 616 | 3x16 | 108
Titan RTX | 24 | 672 | 3x16 | 130
RTX 3050 | 8 | 224 | 4x8 | 36
RTX 3060 | 12 | 360 | 4x16 | 51
RTX 3060 Ti | 8 | 448 | 4x16 | 65
RTX 3070 | 8 | 448 | 4x16 | 81
RTX 3070 Ti | 8 | 608 | 4x16 | 87
RTX 3080 | 10 | 760 | 4x16 | 119
RTX 3080 | 12 | 912 | 4x16 | 122
RTX 3080 Ti | 12 | 912 | 4x16 | 136
RTX 3090 | 24 | 936 | 4x16 | 142
RTX 3090 Ti | 24 | 1008 | 4x16 | 160
RTX 4060 | 8 | 272 | 4x8 | 60
RTX 4060 Ti | 8 | 288 | 4x8 | 88
RTX 4060 Ti | 16 | 288 | 4x8 | 88
RTX 4070 | 12 | 504 | 4x16 | 117
RTX 4070 Super | 12 | 504 | 4x16 | 142
RTX 4070 Ti | 12 | 504 | 4x16 | 160
RTX 4070 Ti Super | 16 | 672 | 4x16 | 176
RTX 4080 | 16 | 717 | 4x16 | 195
RTX 4080 Super | 16 | 736 | 4x16 | 209
RTX 4090 | 24 | 1008 | 4x16 | 330
RTX 4090 D | 24 | 1008 | 4x16 | 294
RTX 5060 | 8 | 448 | 5x8 | 77
RTX 5060 Ti | 8 | 448 | 5x8 | 95
RTX 5060 Ti | 16 | 448 | 5x8 | 95
RTX 5070 | 12 | 672 | 5x16 | 123
RTX 5070 Ti | 16 | 896 | 5x16 | 176
RTX 5080 | 16 | 960 | 5x16 | 225
RTX 5090 | 32 | 1792 | 5x16 | 419
RTX 3060 Laptop | 6 | 336 | 4x16 | -
RTX 3070 Laptop | 8 | 448 | 4x16 | -
RTX 4070 Laptop | 8 | 256 | 4x8 | -
RTX 4080 Laptop | 12 | 432 | 4x16 | -
RTX 4090 Laptop | 16 | 576 | 4x16 | -
RTX 5090 Laptop | 24 | 896 | 5x16 | -
RTX A2000 | 6 | 288 | 4x16 | 32
RTX A2000 | 12 | 288 | 4x16 | 32
RTX A4000 | 16 | 448 | 4x16 | 77
RTX A4500 | 20 | 640 | 4x16 | 95
RTX A5000 | 24 | 768 | 4x16 | 111
RTX A5500 | 24 | 768 | 4x16 | 136
RTX A6000 | 48 | 768 | 4x16 | 155
RTX 2000 Ada | 16 | 224 | 4x8 | 48
RTX 4000 Ada | 20 | 360 | 4x16 | 107
RTX 4500 Ada | 24 | 432 | 4x16 | 158
RTX 5000 Ada | 32 | 576 | 4x16 | 261
RTX 6000 Ada | 48 | 960 | 4x16 | 364
RTX PRO 4000 | 24 | 672 | 5x16 | -
RTX PRO 4500 | 32 | 896 | 5x16 | -
RTX PRO 5000 | 48 | 1344 | 5x16 | -
RTX PRO 6000 | 96 | 1792 | 5x16 | 500
RTX PRO 6000 Max-Q | 96 | 1792 | 5x16 | 440
Quadro RTX 6000 | 24 | 672 | 3x16 | 130
Quadro RTX 8000 | 48 | 672 | 3x16 | 130
P40 | 24 | 346 | 3x16 | 47
P100 | 16 | 732 | 3x16 | 19
V100 | 16 | 900 | 3x16 | 112
V100 | 32 | 900 | 3x16 | 112
T4 | 16 | 320 | 3x16 | 65
A2 | 16 | 200 | 4x8 | 18
A10 | 24 | 600 | 4x16 | 125
A30 | 24 | 933 | 4x16 | 165
A40 | 48 | 696 | 4x16 | 150
A100 | 40 | 1555 | 4x16 | 312
A100 | 80 | 1935 | 4x16 | 312
L4 | 24 | 300 | 4x16 | 121
L40 | 48 | 864 | 4x16 | 181
L40S | 48 | 864 | 4x16 | 362
H100 PCIe | 80 | 2000 | 5x16 | 756
H100 | 80 | 3350 | 5x16 | 989
H100 NVL | 94 | 3938 | 5x16 | 835
H200 | 141 | 4800 | 5x16 | 989
B200 | 180 | 8000 | 5x16 | 2250
RX 6600 | 8 | 224 | 4x8 | -
RX 6700 XT | 12 | 384 | 4x16 | 26
RX 6800 | 16 | 512 | 4x16 | 32
RX 6800 XT | 16 | 512 | 4x16 | 41
RX 6900 XT | 16 | 512 | 4x16 | 46
RX 6950 XT | 16 | 576 | 4x16 | 47
RX 7600 | 8 | 288 | 4x8 | 43
RX 7600 XT | 16 | 288 | 4x8 | 45
RX 7700 XT | 12 | 432 | 4x16 | 70
RX 7800 XT | 16 | 624 | 4x16 | 75
RX 7900 GRE | 16 | 576 | 4x16 | 92
RX 7900 XT | 20 | 800 | 4x16 | 103
RX 7900 XTX | 24 | 960 | 4x16 | 123
RX 9060 XT | 8 | 320 | 5x16 | -
RX 9060 XT | 16 | 320 | 5x16 | -
RX 9070 | 16 | 640 | 5x16 | -
RX 9070 XT | 16 | 640 | 5x16 | 195
AI PRO R9700 | 32 | 640 | 5x16 | 191
PRO W6800 | 32 | 512 | 4x16 | 36
PRO W7800 | 32 | 576 | 4x16 | 90
PRO W7900 | 48 | 864 | 4x16 | 123
Radeon VII | 16 | 1024 | 3x16 | 27
Vega 64 | 8 | 484 | 3x16 | 25
Instinct MI25 | 16 | 484 | 3x16 | 25
Instinct MI50 | 16 | 1024 | 4x16 | 27
Instinct MI50 | 32 | 1024 | 4x16 | 27
Instinct MI60 | 32 | 1024 | 4x16 | 29
Instinct MI100 | 32 | 1229 | 4x16 | 185
Instinct MI210 | 64 | 1638 | 4x16 | 181
Instinct MI300X | 192 | 5300 | 5x16 | 1307
Instinct MI325X | 256 | 6000 | 5x16 | 1307
Arc A580 | 8 | 512 | 4x16 | -
Arc A750 | 8 | 512 | 4x16 | -
Arc A770 | 8 | 512 | 4x16 | -
Arc A770 | 16 | 560 | 4x16 | -
Arc B570 | 10 | 380 | 4x8 | -
Arc B580 | 12 | 456 | 4x8 | -
Arc Pro B50 | 16 | 224 | 5x8 | -
Arc Pro B60 | 24 | 456 | 5x8 | -
"""

_UNIFIED = {
    "m1": 68, "m1 pro": 200, "m1 max": 400, "m1 ultra": 800, "m2": 100, "m2 pro": 200, "m2 max": 400,
    "m2 ultra": 800, "m3": 100, "m3 pro": 150, "m3 max": 400, "m3 ultra": 819, "m4": 120, "m4 pro": 273,
    "m4 max": 546, "strix halo": 256, "ai max 395": 256, "gb10": 273, "dgx spark": 273,
}  # fmt: skip
_KIT = re.compile(
    r"(?:(?P<before>\d{1,2})\s*(?:x|ch|channels?)\s*)?(?:lp)?ddr[345]x?[- ]?(?P<speed>\d{3,5})"
    r"(?:\s*(?:x|,)?\s*(?P<after>\d{1,2})\s*(?:ch|channels?)?)?",
    re.IGNORECASE,
)

# Words that say nothing about which card it is, and those of its memory.
_NOISE = frozenset({
    "nvidia", "amd", "intel", "geforce", "rtx", "gtx", "rx", "radeon", "graphics", "tesla", "corporation",
    "tm", "r", "instinct", "arc", "blackwell", "workstation", "server", "edition", "generation", "sxm",
    "sxm2", "sxm3", "sxm4", "sxm5", "hbm2", "hbm2e", "hbm3", "hbm3e", "gddr6", "gddr6x", "gddr7", "gpu",
    "card",
})  # fmt: skip
_MEMORY = re.compile(r"(\d{1,3})\s*(?:gib|gb|g)\b")


@dataclass(frozen=True, slots=True)
class _Card:
    name: str
    words: tuple[str, ...]
    gib: int
    gpu: Gpu


@cache
def _cards() -> tuple[_Card, ...]:
    found = []
    for line in _CARDS.strip().splitlines():
        name, gib, bandwidth, bus, flops = (cell.strip() for cell in line.split("|"))
        generation, lanes = map(int, bus.split("x"))
        gpu = Gpu(
            name,
            int(gib) << 30,
            float(bandwidth) * 1e9,
            pcie_bandwidth(generation, lanes),
            None if flops == "-" else float(flops) * 1e12,
        )
        found.append(_Card(name, _words(name)[0], int(gib), gpu))
    return tuple(found)


def pcie_bandwidth(generation: int, lanes: int) -> float:
    """Bytes per second that a slot carries in practice."""
    return _LANE.get(generation, _LANE[max(_LANE)]) * lanes


def card_names() -> tuple[str, ...]:
    """The names of all cards of the table, each once."""
    return tuple(dict.fromkeys(card.name for card in _cards()))


def known_card(name: str, memory: int | None = None) -> Gpu | None:
    """The card that a driver or a person calls so; None where it is not in the table, or may be several.

    Parameters
    ----------
    memory
        Bytes that it has, where that is known: cards of one name come with several.
    """
    words, gib = _words(name)
    fitting = [card for card in _cards() if sorted(card.words) == sorted(words)]
    if gib is not None:
        return next((card.gpu for card in fitting if card.gib == gib), None)
    if memory is not None:
        near = [c for c in fitting if abs(c.gpu.memory - memory) < 0.12 * c.gpu.memory]
        return near[0].gpu if near else None
    return fitting[0].gpu if len({card.gpu for card in fitting}) == 1 else None


def _words(name: str) -> tuple[tuple[str, ...], int | None]:
    """The words that tell a card from others, and the GiB that the name states."""
    text = name.lower().replace("max-q", "maxq")
    text = re.sub(r"\bgeneration\b|\(r\)|\(tm\)", " ", text)
    found = _MEMORY.search(text)
    gib = int(found[1]) if found else None
    text = _MEMORY.sub(" ", text, count=1)
    text = re.sub(r"\b(?:ai\s+)?pro\s+(?=[wrb]\d)", " ", text)
    text = re.sub(r"(?<=\d)(?=(?:ti|super|xtx?|gre|laptop|ada)\b|(?:ti)(?:super)\b)", " ", text)
    text = re.sub(r"\bti(?=super\b)", "ti ", text)
    text = re.sub(r"\b(rtx|gtx|rx|arc|pro)(?=\w?\d)", r"\1 ", text)
    words = re.findall(r"[a-z0-9]+", text)
    return tuple(w for w in words if w not in _NOISE), gib


def cards_of(text: str) -> tuple[Gpu, ...]:
    """The cards of `3090,3060`, `2x3090`, `RTX 4060 Ti 16GB`.

    Raises
    ------
    MachineError
        If one is not in the table, or comes with several memories.
    """
    found: list[Gpu] = []
    for item in (part.strip() for part in text.split(",")):
        times = re.match(r"(\d{1,2})\s*[x×]\s*(?=\S)", item, re.IGNORECASE)
        name = item[times.end() :] if times else item
        gpu = known_card(name)
        if gpu is None:
            raise _unknown_card(name)
        found += [gpu] * (int(times[1]) if times else 1)
    if not 0 < len(found) <= _MOST_CARDS:
        raise MachineError(f"{len(found)} GPUs are not a machine; from 1 to {_MOST_CARDS} are")
    return tuple(found)


def _unknown_card(name: str) -> MachineError:
    shown = printable(name)[:60]
    words, _ = _words(name)
    sizes = [card.gib for card in _cards() if sorted(card.words) == sorted(words)]
    if len(sizes) > 1:
        says = " or ".join(f"{size}G" for size in sizes)
        return MachineError(f"{shown} comes with {says}", hint=f"write `{shown} {sizes[-1]}G`")
    near = nearest(name, card_names())
    hint = f"the nearest is {near}; " if near else ""
    return MachineError(
        f"{shown or 'nothing'} is not in the table of cards", hint=f"{hint}state its memory: `--vram 24G`"
    )


def ram_bandwidth(text: str) -> tuple[float, str] | None:
    """Bytes per second that programs read from a kind of RAM, and how that was reckoned; None if unknown.

    Known are modules with their channels (`DDR5-6000 x2`, `8ch DDR4-3200`; two channels unless stated) and
    memories that a CPU and a GPU share (`M3 Ultra`, `Strix Halo`).
    """
    words = " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("apple", "")))
    unified = {" ".join(re.findall(r"[a-z0-9]+", name)): value for name, value in _UNIFIED.items()}
    if words in unified:
        return unified[words] * 1e9 * READ_SHARE, f"{READ_SHARE:.0%} of the stated {unified[words]} GB/s"
    found = _KIT.fullmatch(text.strip())
    if found is None:
        return None
    channels = int(found["before"] or found["after"] or 2)
    speed = int(found["speed"])
    if not (200 <= speed <= 20_000 and 0 < channels <= 48):
        return None
    stated = speed * 8e6 * channels
    return stated * READ_SHARE, f"{READ_SHARE:.0%} of {speed} MT/s × 8 bytes × {channels} channels"


def listed() -> Iterator[Gpu]:
    """All cards of the table."""
    for card in _cards():
        yield card.gpu
