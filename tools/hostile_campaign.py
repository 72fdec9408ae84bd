"""Damage thousands of files and check that each is refused clearly.

    python tools/hostile_campaign.py --count 1000 --seed 1 [--keep FOLDER]

Mutated GGUF files and Hugging Face folders go through `ggplan inspect`, `convert` and `verify`.
tests/hostile/campaign.py has the conditions they must meet; the default tests run a small sample of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "hostile")]

from campaign import campaign, checkpoint_mutants, gguf_mutants  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="gather the files that broke a promise here")
    given = parser.parse_args()
    failures = 0
    for kind, mutants in (("GGUF", gguf_mutants), ("safetensors", checkpoint_mutants)):
        with tempfile.TemporaryDirectory() as folder:
            tally = campaign(mutants, Path(folder), given.seed, given.count, given.keep)
        failures += len(tally.failures)
        print(
            f"{kind}: {given.count} mutants, {tally.taken} taken, {tally.refused} refused, slowest "
            f"{tally.slowest:.2f} s, {tally.memory >> 20} MiB, {len(tally.failures)} broken promises"
        )
        for failure in tally.failures[:50]:
            print(f"  {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
