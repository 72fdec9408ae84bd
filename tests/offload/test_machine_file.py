"""A machine's file: what is written is read back the same; what is damaged is refused with its line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.errors import MachineError
from ggplan.ggml_types import TYPES
from ggplan.offload.machine import Gpu, Learned, Machine
from ggplan.offload.machine_file import default_path, machine_text, parse_machine, read_machine

_SIZES = st.integers(1, 1 << 50)
_SPEEDS = st.floats(1.0, 1e18)
_TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
_STRETCH = st.none() | st.floats(1e-3, 1e3)
_GPUS = st.builds(Gpu, _TEXTS, _SIZES, *(st.none() | _SPEEDS,) * 3)
_MACHINES = st.builds(
    Machine,
    st.lists(_GPUS, max_size=4).map(tuple),
    st.none() | _SIZES,
    st.none() | _SPEEDS,
    st.none() | st.integers(1, 8192),
    st.dictionaries(st.sampled_from([t.name for t in TYPES if not t.internal]), _SPEEDS, max_size=5),
    st.integers(0, 1 << 50),
    st.integers(0, 1 << 50),
    st.dictionaries(_TEXTS, _TEXTS, max_size=4),
    st.none() | st.builds(Learned, _TEXTS, _STRETCH, _STRETCH, st.integers(0, 1 << 50)),
)


@given(_MACHINES)
def test_what_is_written_is_read_back(machine: Machine) -> None:
    assert parse_machine(machine_text(machine, "a\nhead"), "machine.toml") == machine


@given(st.text(max_size=80))
def test_no_text_is_a_bug(text: str) -> None:
    refused = ""
    try:
        parse_machine(text, "machine.toml")
    except MachineError as error:
        refused = error.message
    assert refused == "" or refused.startswith("machine.toml")


_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.sampled_from(["24GiB", "80GB/s", "x"]),
    lambda inner: st.lists(inner),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(["ram", "bandwidth", "cores", "gpu", "rates"]), _VALUES))
def test_no_value_is_a_bug(table: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in table.items())
    tomllib.loads(text)
    machine, refused = Machine(), ""
    try:
        machine = parse_machine(text, "machine.toml")
    except MachineError as error:
        refused = error.message
    assert refused == "" or refused.startswith("machine.toml")
    assert machine.ram is None or machine.ram > 0
    assert machine.bandwidth is None or machine.bandwidth > 0


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def test_a_person_may_write_units() -> None:
    text = """
        ram = "128GiB"
        bandwidth = "80GB/s"
        [[gpu]]
        memory = "24G"
        bandwidth = "936 GB/s"
        [rates]
        q4_k = "20G"
    """
    machine = parse_machine(text, "machine.toml")
    assert (machine.ram, machine.bandwidth) == (128 << 30, 80e9)
    assert machine.gpus == (Gpu("", 24 << 30, 936e9),)
    assert machine.rates == {"q4_K": 20e9}
    assert (machine.gpu_margin, machine.ram_margin) == (1 << 30, 4 << 30)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("ram = -1", "machine.toml:1: ram is no size: -1", 'write bytes, or "24GiB"'),
        ("\nram = 12.5", "machine.toml:2: ram is no size: 12.5", 'write bytes, or "24GiB"'),
        ("bandwidth = 0", "machine.toml:1: bandwidth is no speed: 0", 'write bytes per second, or "80GB/s"'),
        ("bandwidth = nan", "machine.toml:1: bandwidth is no speed: nan", None),
        ("cores = true", "machine.toml:1: cores is no number of cores: True", None),
        ("rma = 5", "machine.toml:1: rma is unknown", "the nearest name is `ram`"),
        ("[[gpu]]\nmemory = 5\nbandwith = 5", "machine.toml:3: bandwith is unknown in [[gpu]]",
         "the nearest name is `bandwidth`"),
        ('[[gpu]]\nname = "a"', "machine.toml: a [[gpu]] has no memory", None),
        ("gpu = 1", "machine.toml:1: gpu must be tables that begin with [[gpu]]", None),
        ("rates = 1", "machine.toml:1: rates must be a table: [rates]", None),
        ("[rates]\nq4_K_M = 1", "machine.toml:2: q4_K_M is no ggml type", None),
        ("[learned]\ngeneration = 0", "machine.toml:2: generation is no factor: 0", None),
        ("ram = [", "machine.toml is no TOML: Invalid value (at end of document)", None),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused(text: str, says: str, hint: str | None) -> None:
    with pytest.raises(MachineError) as refused:
        parse_machine(text, "machine.toml")
    assert refused.value.message == says
    assert hint is None or refused.value.hint == hint


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_bytes(b"\xff\x00\xfe" * 10)
    with pytest.raises(MachineError, match=r"machine\.toml is no text"):
        read_machine(path)
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(MachineError, match="more than a mebibyte"):
        read_machine(path)


def test_a_text_of_any_encoding_is_read(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_bytes("ram = 1024\r\n".encode("utf-16"))
    assert read_machine(path).ram == 1024


def test_the_place_of_the_file() -> None:
    assert default_path({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/ggplan/machine.toml")
    assert default_path({"XDG_CONFIG_HOME": "x", "HOME": "/h"}) == Path("/h/.config/ggplan/machine.toml")
    assert default_path({"HOME": "/h"}) == Path("/h/.config/ggplan/machine.toml")


def test_a_number_that_somebody_wrote_anew_has_lost_its_source() -> None:
    cards = (Gpu("RTX 3090", 24 << 30, 936e9, 24e9),)
    sources = {"bandwidth": "measured", "ram": "/proc/meminfo", "gpu 0 bandwidth": "table of cards"}
    machine = Machine(cards, 128 << 30, 60e9, 16, sources=sources)
    text = machine_text(machine)
    assert parse_machine(text, "m.toml") == machine
    edited = parse_machine(text.replace("\nbandwidth = 60000000000", '\nbandwidth = "80GB/s"', 1), "m.toml")
    assert edited.bandwidth == 80e9
    assert dict(edited.sources) == {k: v for k, v in sources.items() if k != "bandwidth"}
    # Files of before have the text alone.
    old = parse_machine('ram = "64G"\n[sources]\nram = "/proc/meminfo"\n', "m.toml")
    assert dict(old.sources) == {"ram": "/proc/meminfo"}
