"""Make random tiny models of the families with transformers, as it saves them: hub names, hub layout.

    python reference_models.py OUT [CASE...]     (needs torch and transformers)

Each case is a function in a file of `families`. Each model gets the small tokenizer of tests/data/hf. Some
are saved in shards, some in f16 or f32, some get what transformers does not write: layers that predict
further tokens, fused experts, fp8 weights with scales, a config in the hub's older style.
"""

import importlib
import sys
from pathlib import Path

import torch
from family_cases import CASES

sys.path.insert(0, str(Path(__file__).parent / "families"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[2:] or CASES:
        getattr(importlib.import_module(CASES[case]), case)(Path(sys.argv[1]) / case)
