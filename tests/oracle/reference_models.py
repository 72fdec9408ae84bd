"""Make random tiny models of the families with transformers, as it saves them: hub names, hub layout.

    python reference_models.py OUT [CASE...]     (needs torch and transformers)

Each case is a function in a file of `families`. Each model gets the small tokenizer of tests/data/hf. Some
are saved in shards, some in f16 or f32, some get what transformers does not write: layers that predict
further tokens, fused experts, fp8 weights with scales, a config in the hub's older style.
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from family_cases import CASES

sys.path.insert(0, str(Path(__file__).parent / "families"))


def make(cases: Sequence[str], folder: Path) -> None:
    for case in cases:
        getattr(importlib.import_module(CASES[case]), case)(folder / case)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, cases, n_processes = Path(sys.argv[1]), sys.argv[2:] or list(CASES), os.cpu_count() or 1
    importlib.import_module("making")  # and transformers, once
    processes = [
        multiprocessing.get_context("fork").Process(target=make, args=(cases[i::n_processes], folder))
        for i in range(n_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
