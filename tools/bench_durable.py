"""Measure the cost of the journal: conversions with and without one, alternating, in one run.

    python tools/bench_durable.py [--types q4_K,q8_0] [--repeats 3] [--folder FOLDER]

A llama-shaped bf16 GGUF of random weights (about 2 GB) is written once to the folder. The run without a
journal (`--no-resume`) syncs once at its end; the other also every 256 MiB, and records what it synced. Both
hash what they write, for the manifest. Pairs run one after the other, the first of a pair in turn; the ratio
of a type is the median of the pairs' ratios, because these machines are shared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_convert import RECIPE, ROOT, machine, write_model

LAYERS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", default="q4_K,q8_0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "ggplan-bench"))
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"bench-{LAYERS}.gguf"
    if not source.exists():
        write_model(source, LAYERS)
    print(f"{machine()}; source {source.stat().st_size / 1e9:.2f} GB bf16, output on the same disk\n")
    print("| type | one pass | durable | ratio of times | ratio of CPU times |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for type_ in arguments.types.split(","):
        recipe = folder / f"{type_}.recipe"
        recipe.write_text(RECIPE.format(type=type_))
        run(source, folder, recipe, "--no-resume")
        pairs = []
        for number in range(arguments.repeats):
            ways = ["--no-resume", "--quiet"] if number % 2 == 0 else ["--quiet", "--no-resume"]
            times = {way: run(source, folder, recipe, way) for way in ways}
            pairs.append((times["--no-resume"], times["--quiet"]))
        once, durable = (min(pair[way][0] for pair in pairs) for way in (0, 1))
        wall, cpu = (statistics.median(pair[1][k] / pair[0][k] for pair in pairs) for k in (0, 1))
        print(f"| {type_} | {once:.2f} s | {durable:.2f} s | {wall:.3f} | {cpu:.3f} |", flush=True)


def run(source: Path, folder: Path, recipe: Path, option: str) -> tuple[float, float]:
    """Seconds and CPU seconds of a conversion."""
    target = folder / "durable.gguf"
    target.unlink(missing_ok=True)
    os.sync()
    command = [sys.executable, "-m", "ggplan", "convert", str(source), str(target), "-r", str(recipe), "-q"]
    before = os.times()
    started = time.perf_counter()
    subprocess.run([*command, option], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    seconds = time.perf_counter() - started
    after = os.times()
    return (
        seconds,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


if __name__ == "__main__":
    main()
