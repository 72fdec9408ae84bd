"""Compare what ggplan reckons with what llama.cpp b11434 allocated, and say which rows miss.

    python tools/compare_memory.py                    the 22 big models
    python tools/compare_memory.py architectures      tiny models of all architectures

Prints, by kind of placement and by architecture, how many compute buffers are exact, within 5 % and within
10 %, and whether weights and context are right to the byte; then every row that is not.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "offload"))

from memory_rows import Row, headers, rows

from ggplan.errors import Error
from ggplan.offload.reckon import reckon


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", default="models", choices=("models", "architectures"))
    name = parser.parse_args().rows
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    wrong: dict[tuple[str, str], int] = defaultdict(int)
    misses: list[tuple[float, str]] = []
    for row in rows(name):
        header = headers(name)[row.model]
        architecture = str(header.metadata["general.architecture"].decode())
        try:
            found = reckon(header, row.settings, row.n_gpus)
        except Error as error:
            print(f"{_shown(row)}: {error}")
            continue
        for device in found.devices:
            got = (device.weights, device.context, device.compute)
            if row.is_draft:
                got = (device.weights, device.draft_context, device.draft_compute)
            expected = row.bytes[device.name]
            off = got[2] / expected[2] - 1 if expected[2] else float(got[2] > 0)
            for key in (("kind", row.kind), ("architecture", architecture), ("all", "")):
                groups[key].append(abs(off))
                wrong[key] += got[:2] != expected[:2]
            if got != expected:
                misses.append((abs(off), f"{_shown(row)} {device.name}: {got} for {expected}, {off:+.2%}"))
    print(f"{'':36}{'values':>8}{'exact':>8}{'<= 5 %':>9}{'<= 10 %':>9}  weights or context wrong")
    for key in sorted(groups):
        offs = groups[key]
        within = [sum(off <= limit for off in offs) / len(offs) for limit in (0, 0.05, 0.1)]
        label = f"{key[0]} {key[1]}".strip()
        rates = f"{within[0]:8.1%}{within[1]:9.1%}{within[2]:9.1%}"
        print(f"{label:36}{len(offs):8}{rates}  {wrong[key] or ''}".rstrip())
    for _, text in sorted(misses, reverse=True):
        print(text)


def _shown(row: Row) -> str:
    words = [f"{key}={value}" for key, value in (row.load | row.context).items()]
    return f"{row.model} {row.n_gpus} GPUs {' '.join(words)[:160]}"


if __name__ == "__main__":
    main()
