"""The file of a machine: `~/.config/ggplan/machine.toml`, or wherever XDG_CONFIG_HOME points.

    ram = 134217728000           # 125 GiB, /proc/meminfo
    bandwidth = 78000000000      # 78.0 GB/s, measured
    cores = 16
    gpu_margin = 1073741824
    ram_margin = 4294967296

    [[gpu]]                      # CUDA0, CUDA1, ... in this order
    name = "RTX 3090"
    memory = 25769803776
    bandwidth = 936000000000     # of its memory, bytes per second
    pcie = 24000000000
    flops = 142000000000000

    [rates]                      # of one core, bytes of weights per second
    q4_K = 20000000000

    [learned]                    # what a benchmark on the machine taught
    generation = 1.12
    source = "bench.log"

    [sources]                    # where a number is from, as long as it is this one
    bandwidth = ["measured", 78000000000]

Sizes and bandwidths are bytes and bytes per second; texts do too: `memory = "24GiB"`, `bandwidth = "78GB/s"`.
All but a GPU's memory may be missing. What is unknown is refused, so that a slip of the pen does not become a
default.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ggplan.errors import MachineError, TypeNameError
from ggplan.ggml_types import parse_type
from ggplan.offload.machine import Gpu, Learned, Machine
from ggplan.text import decode_text, format_bytes, nearest, parse_bytes, printable

_LARGEST_FILE = 1 << 20
_MOST_BYTES = 1 << 50
_MOST_SPEED = 1e18
_MOST_CORES = 8192
_MOST_GPUS = 64
_MOST_STRETCH = 1000.0
_TABLES = ("rates", "learned", "sources")


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the machine's file is kept."""
    home = environment.get("XDG_CONFIG_HOME", "")
    # A relative path there is invalid, and to be ignored, by the XDG base directory specification.
    folder = Path(home) if home.startswith("/") else Path(environment.get("HOME") or Path.home()) / ".config"
    return folder / "ggplan" / "machine.toml"


def read_machine(path: Path) -> Machine:
    """The machine of a file.

    Raises
    ------
    MachineError
        If it is no TOML, or says what no machine has; the message has the file and the line.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(_LARGEST_FILE + 1)
    if len(raw) > _LARGEST_FILE:
        raise MachineError(
            f"{printable(str(path))} has more than a mebibyte: it is no description of a machine"
        )
    try:
        text = decode_text(raw, "strict")
    except UnicodeDecodeError as error:
        raise MachineError(f"{printable(str(path))} is no text: {error.reason}") from None
    return parse_machine(text, printable(str(path)))


def parse_machine(text: str, name: str) -> Machine:
    """The machine that a text describes; `name` is how messages call it.

    Raises
    ------
    MachineError
        As `read_machine`.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise MachineError(f"{name} is no TOML: {printable(str(error))[:200]}") from None
    except ValueError as error:  # a number with more digits than Python converts
        raise MachineError(f"{name} has a number that cannot be: {printable(str(error))[:80]}") from None
    return _Reader(text, name).machine(table)


@dataclass(frozen=True, slots=True)
class _Reader:
    text: str
    name: str

    def machine(self, table: Mapping[str, Any]) -> Machine:
        known = {"ram", "bandwidth", "cores", "gpu_margin", "ram_margin", "gpu", *_TABLES}
        self.only(table, known, "")
        gpus = table.get("gpu", [])
        if not isinstance(gpus, list) or not all(isinstance(gpu, dict) for gpu in gpus):
            raise self.error("gpu", "must be tables that begin with [[gpu]]")
        if len(gpus) > _MOST_GPUS:
            raise self.error("gpu", f"comes {len(gpus)} times; {_MOST_GPUS} are the most")
        tables = {key: self.table(table, key) for key in _TABLES}
        default = Machine()
        found = Machine(
            tuple(self.gpu(gpu) for gpu in gpus),
            self.size(table, "ram"),
            self.speed(table, "bandwidth"),
            self.count(table, "cores"),
            {self.type_name(key): self.needed(self.speed(tables["rates"], key)) for key in tables["rates"]},
            _or(self.size(table, "gpu_margin", least=0), default.gpu_margin),
            _or(self.size(table, "ram_margin", least=0), default.ram_margin),
            learned=self.learned(tables["learned"]) if "learned" in table else None,
        )
        return replace(found, sources=self.sources(tables["sources"], found))

    def sources(self, table: Mapping[str, Any], machine: Machine) -> dict[str, str]:
        """Where numbers are from, but for those that somebody wrote anew."""
        found = {}
        for key, value in table.items():
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
                text, number = value
                if _value_of(machine, key) in (None, number):
                    found[key] = self.text_of({key: text}, key)
            else:
                found[key] = self.text_of(table, key)
        return found

    def gpu(self, table: Mapping[str, Any]) -> Gpu:
        self.only(table, {field.name for field in fields(Gpu)}, " in [[gpu]]")
        memory = self.size(table, "memory")
        if memory is None:
            raise MachineError(
                f"{self.name}: a [[gpu]] has no memory", hint='write `memory = "24GiB"` below it'
            )
        name = self.text_of(table, "name") if "name" in table else ""
        pcie, flops = self.speed(table, "pcie"), self.speed(table, "flops")
        return Gpu(name, memory, self.speed(table, "bandwidth"), pcie, flops)

    def learned(self, table: Mapping[str, Any]) -> Learned:
        self.only(table, {field.name for field in fields(Learned)}, " in [learned]")
        return Learned(
            self.text_of(table, "source") if "source" in table else self.name,
            self.stretch(table, "generation"),
            self.stretch(table, "prompt"),
            _or(self.size(table, "file_bytes", least=0), 0),
        )

    def only(self, table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
        for key in table:
            if key not in known:
                meant = nearest(key, known)
                hint = f"the nearest name is `{meant}`" if meant else f"known are {', '.join(sorted(known))}"
                raise self.error(key, f"is unknown{where}", hint)

    def table(self, table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = table.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, f"must be a table: [{key}]")
        return value

    def size(self, table: Mapping[str, Any], key: str, least: int = 1) -> int | None:
        """Bytes, as a number or a text with a unit."""
        value = table.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            value = parse_bytes(value, 1024)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST_BYTES:
            raise self.error(key, f"is no size: {self.shown(table, key)}", 'write bytes, or "24GiB"')
        return value

    def speed(self, table: Mapping[str, Any], key: str) -> float | None:
        """Something per second, as a number or a text with a unit."""
        value = table.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            value = parse_bytes(re.sub(r"/s$", "", value.strip()), 1000)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_SPEED:
            raise self.error(
                key, f"is no speed: {self.shown(table, key)}", 'write bytes per second, or "80GB/s"'
            )
        return float(value)

    def count(self, table: Mapping[str, Any], key: str) -> int | None:
        value = table.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_CORES:
            raise self.error(key, f"is no number of {key}: {self.shown(table, key)}")
        return value

    def stretch(self, table: Mapping[str, Any], key: str) -> float | None:
        value = table.get(key)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 1 / _MOST_STRETCH <= value <= _MOST_STRETCH:
            raise self.error(key, f"is no factor: {self.shown(table, key)}")
        return float(value)

    def type_name(self, key: str) -> str:
        try:
            return parse_type(key).name
        except TypeNameError as error:
            raise self.error(key, "is no ggml type", error.hint) from None

    def text_of(self, table: Mapping[str, Any], key: str) -> str:
        value = table[key]
        if not isinstance(value, str):
            raise self.error(key, f"must be a text: {self.shown(table, key)}")
        return value

    def needed(self, value: float | None) -> float:
        assert value is not None
        return value

    def shown(self, table: Mapping[str, Any], key: str) -> str:
        return printable(str(table[key]))[:60]

    def error(self, key: str, what: str, hint: str = "") -> MachineError:
        """An error of one key, with the line where it first stands."""
        pattern = re.compile(rf"^[ \t]*\[*\s*[\"']?{re.escape(key)}[\"']?\s*(=|\])")
        lines = (n for n, line in enumerate(self.text.split("\n"), 1) if pattern.match(line))
        line = next(lines, None)
        place = f"{self.name}:{line}" if line else self.name
        return MachineError(f"{place}: {printable(key)[:60]} {what}", hint=hint)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


# --- Writing -----------------------------------------------------------------------------------------


def machine_text(machine: Machine, head: str = "") -> str:
    """The text of a machine's file, from which `parse_machine` gets the same machine.

    Parameters
    ----------
    head
        Lines to put before it, as comments.
    """
    sources = machine.sources
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    lines += ['# Bytes, and bytes per second; "24GiB" and "80GB/s" are understood too.', ""]

    def add(key: str, value: float | None, shown: Callable[[float], str], source: str = "") -> None:
        if value is not None:
            said = ", ".join(filter(None, (shown(value), printable(source))))
            lines.append(f"{key} = {_number(value)}" + (f"  # {said}" if said else ""))

    add("ram", machine.ram, _size, sources.get("ram", ""))
    add("bandwidth", machine.bandwidth, _speed, sources.get("bandwidth", ""))
    add("cores", machine.cores, lambda _: "", sources.get("cores", ""))
    add("gpu_margin", machine.gpu_margin, _size, "left free on each GPU")
    add("ram_margin", machine.ram_margin, _size, "left free")
    for i, gpu in enumerate(machine.gpus):
        lines += ["", "[[gpu]]", f"name = {_quoted(gpu.name)}"]
        add("memory", gpu.memory, _size, sources.get(f"gpu {i} memory", ""))
        add("bandwidth", gpu.bandwidth, _speed, sources.get(f"gpu {i} bandwidth", ""))
        add("pcie", gpu.pcie, _speed, sources.get(f"gpu {i} pcie", ""))
        add("flops", gpu.flops, lambda v: f"{v / 1e12:.3g} TFLOPS", sources.get(f"gpu {i} flops", ""))
    if machine.rates:
        lines += ["", "[rates]  # of one core: bytes of weights per second"]
        for kind, rate in machine.rates.items():
            add(kind, rate, _speed)
    if machine.learned is not None:
        lines += ["", *_learned_lines(machine.learned)]
    if sources:
        lines += ["", "[sources]"]
        for key, source in sources.items():
            value = _value_of(machine, key)
            shown = _quoted(source) if value is None else f"[{_quoted(source)}, {_number(value)}]"
            lines.append(f"{_quoted(key)} = {shown}")
    return "\n".join(lines) + "\n"


def _value_of(machine: Machine, key: str) -> float | None:
    """The number that a key of [sources] is about; None where it is about several, or none."""
    if key in ("ram", "bandwidth", "cores"):
        value: float | None = getattr(machine, key)
        return value
    found = re.fullmatch(r"gpu (\d{1,2}) (memory|bandwidth|pcie|flops)", key)
    if found is None or int(found[1]) >= len(machine.gpus):
        return None
    value = getattr(machine.gpus[int(found[1])], found[2])
    return value


def with_learned(text: str, machine: Machine) -> str:
    """The text of a machine's file with what `machine` learned, the rest as a person left it.

    Where the text is written in a way that does not allow it, the file is written anew.
    """
    kept, inside = [], False
    for line in text.rstrip().split("\n"):
        if line.lstrip().startswith("["):
            inside = re.match(r"\s*\[\s*learned\s*\]", line) is not None
        if not inside:
            kept.append(line)
    assert machine.learned is not None
    new = "\n".join(["\n".join(kept).rstrip(), "", *_learned_lines(machine.learned)]) + "\n"
    try:
        found = parse_machine(new, "the new text")
    except MachineError:
        return machine_text(machine)
    return new if found == machine else machine_text(machine)


def _learned_lines(learned: Learned) -> list[str]:
    figures = (("generation", learned.generation), ("prompt", learned.prompt))
    return [
        "[learned]  # by a benchmark: time measured over time reckoned",
        f"source = {_quoted(learned.source)}",
        *(f"{name} = {_number(value)}" for name, value in figures if value is not None),
        f"file_bytes = {learned.file_bytes}  # {_size(learned.file_bytes)}, the tensors of that file",
    ]


def _number(value: float) -> str:
    if isinstance(value, float) and value.is_integer() and math.isfinite(value) and abs(value) < 1 << 62:
        return str(int(value))
    return repr(value)


def _size(value: float) -> str:
    return format_bytes(int(value))


def _speed(value: float) -> str:
    return f"{value / 1e9:.3g} GB/s"


def _quoted(text: str) -> str:
    """A TOML basic string."""
    # Lone surrogates have no UTF-8, and TOML forbids the one control character that JSON lets pass.
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(clean, ensure_ascii=False).replace("\x7f", "\\u007f")
