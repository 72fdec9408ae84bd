"""The table of cards and memories: what drivers and people call them."""

from __future__ import annotations

import pytest

from ggplan.errors import MachineError
from ggplan.offload.cards import card_names, cards_of, known_card, listed, ram_bandwidth


def _gib(n: float) -> int:
    return int(n * (1 << 30))


@pytest.mark.parametrize(
    ("driver", "mib", "name", "bandwidth"),
    [
        ("NVIDIA GeForce RTX 3090", 24576, "RTX 3090", 936),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, "RTX 4090 Laptop", 576),
        ("NVIDIA RTX A6000", 49140, "RTX A6000", 768),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "RTX 6000 Ada", 960),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, "RTX PRO 6000", 1792),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 97887, "RTX PRO 6000 Max-Q", 1792),
        ("Quadro RTX 6000", 24576, "Quadro RTX 6000", 672),
        ("Tesla P40", 24576, "P40", 346),
        ("Tesla V100-SXM2-32GB", 32510, "V100", 900),
        ("NVIDIA A100-SXM4-80GB", 81920, "A100", 1935),
        ("NVIDIA A100-PCIE-40GB", 40960, None, None),
        ("NVIDIA H100 80GB HBM3", 81559, "H100", 3350),
        ("NVIDIA H100 PCIe", 81559, "H100 PCIe", 2000),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "RTX 4060 Ti", 288),
        ("AMD Radeon RX 7900 XTX", 24560, "RX 7900 XTX", 960),
        ("Intel(R) Arc(TM) A770 Graphics", 16288, "Arc A770", 560),
        ("NVIDIA GeForce RTX 2080 Super with Max-Q Design", 8192, None, None),
        ("NVIDIA GeForce RTX 3090", 12288, None, None),
        ("something else", 24576, None, None),
        ("", 24576, None, None),
    ],
)
def test_names_of_drivers(driver: str, mib: int, name: str | None, bandwidth: float | None) -> None:
    card = known_card(driver, mib << 20)
    assert (card and card.name, card and card.bandwidth) == (name, bandwidth and bandwidth * 1e9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3090,3060", [("RTX 3090", 24), ("RTX 3060", 12)]),
        ("2x3090", [("RTX 3090", 24)] * 2),
        ("2 x RTX 3090, p40", [("RTX 3090", 24), ("RTX 3090", 24), ("P40", 24)]),
        ("rtx4060ti 16g", [("RTX 4060 Ti", 16)]),
        ("4060 Ti 8GB", [("RTX 4060 Ti", 8)]),
        ("4070tisuper", [("RTX 4070 Ti Super", 16)]),
        ("a6000", [("RTX A6000", 48)]),
        ("pro6000", [("RTX PRO 6000", 96)]),
        ("7900xtx", [("RX 7900 XTX", 24)]),
        ("mi50-32g", [("Instinct MI50", 32)]),
        ("w7900", [("PRO W7900", 48)]),
    ],
)
def test_names_of_people(text: str, expected: list[tuple[str, int]]) -> None:
    assert [(card.name, card.memory >> 30) for card in cards_of(text)] == expected


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("4060ti", "4060ti comes with 8G or 16G", "write `4060ti 16G`"),
        ("3095", "3095 is not in the table of cards", "state its memory: `--vram 24G`"),
        ("99x3090", "99 GPUs are not a machine", "from 1 to 32 are"),
        ("0x3090", "0 GPUs are not a machine", ""),
        ("3090,", "nothing is not in the table of cards", ""),
    ],
)
def test_what_is_no_card(text: str, says: str, hint: str) -> None:
    with pytest.raises(MachineError) as refused:
        cards_of(text)
    assert says in refused.value.message
    assert hint in f"{refused.value.hint} {refused.value.message}"


def test_every_card_is_found_by_its_own_name() -> None:
    cards = list(listed())
    assert len(cards) > 100
    for card in cards:
        assert known_card(card.name, card.memory) == card
        assert cards_of(f"{card.name} {card.memory >> 30}G") == (card,)
        assert 1e11 < (card.bandwidth or 0) < 1e13
    assert len(card_names()) <= len(cards)


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("DDR5-6000", 96), ("2xDDR5-6000", 96), ("DDR5-6000 x2", 96), ("8ch DDR5-4800", 307.2),
        ("DDR4-3200 x4", 102.4), ("12 channels ddr5-6400", 614.4), ("M3 Ultra", 819), ("Apple M4 Max", 546),
        ("strix halo", 256),
    ],
)  # fmt: skip
def test_kinds_of_memory(text: str, stated: float) -> None:
    found = ram_bandwidth(text)
    assert found is not None
    assert found[0] == pytest.approx(0.85 * stated * 1e9)


@pytest.mark.parametrize("text", ["", "80G", "DDR5", "DDR9-6000", "DDR5-6000 x99", "DDR5-99999", "M99"])
def test_what_is_no_memory(text: str) -> None:
    assert ram_bandwidth(text) is None
