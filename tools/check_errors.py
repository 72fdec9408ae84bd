#!/usr/bin/env python
"""Check the error bars of `ggplan measure` on real text.

    ggplan measure demo/*.gguf --text ppl_graphs/texts/bible.txt --record demo.json
    python tools/check_errors.py demo.scores/*.npz

Each file's chunks are halved at random twenty times. The two halves measure the same thing, so they
should differ by less than two standard errors about 95 times of 100.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from ggplan.measure import TokenScores, metrics_of

METRICS = ("delta_ppl", "delta_ln_ppl", "kld", "same_top")
HALVINGS = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", nargs="+", type=Path)
    files = parser.parse_args().scores
    all_hits = 0
    for path in files:
        scores = TokenScores.load(path)
        random = np.random.default_rng(7)
        hits, wider = dict.fromkeys(METRICS, 0), []
        for _ in range(HALVINGS):
            order = random.permutation(len(scores.nll))
            a, b = (metrics_of(chosen(scores, half)) for half in np.array_split(order, 2))
            for name in METRICS:
                error = np.hypot(a[name].error or 0, b[name].error or 0)
                hits[name] += int(abs(a[name].value - b[name].value) <= 2 * error)
            wider.append((a["ppl"].error or 0) / (a["delta_ppl"].error or 1))
        all_hits += sum(hits.values())
        counts = ", ".join(f"{name} {n}/{HALVINGS}" for name, n in hits.items())
        print(f"{path.name}: {counts}; unpaired error {np.mean(wider):.1f} times the paired")
    print(f"within two standard errors: {all_hits} of {len(files) * len(METRICS) * HALVINGS}")


def chosen(scores: TokenScores, chunks: np.ndarray) -> TokenScores:
    """The scores of some chunks."""
    compared = scores.comparison
    assert compared is not None
    parts = {f.name: getattr(compared, f.name)[chunks] for f in dataclasses.fields(compared)}
    return TokenScores(scores.nll[chunks], type(compared)(**parts))


if __name__ == "__main__":
    main()
