"""Scales folded into a model: llama.cpp's logits stay, to the rounding of float32."""

import os
from pathlib import Path

import numpy as np
import pytest

import ggplan
from ggplan.calibrating import CalibrateOptions, calibrate
from ggplan.folding import fold, parse_fold
from ggplan.ggml_types import parse_type

pytestmark = pytest.mark.oracle

DEMO = Path(ggplan.__file__).parent / "demo_model"
TEXT = DEMO / "joshua.txt"


def logits(path: Path) -> np.ndarray:
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=256, n_batch=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0
    )
    tokens = model.tokenize(TEXT.read_bytes()[:1500])[:200]
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def test_the_logits_stay(llama_cpp: Path, tmp_path: Path) -> None:
    os.environ.setdefault("LLAMA_CPP_LIB_PATH", str(llama_cpp / "build" / "bin"))
    f32 = ggplan.parse_recipe("@default f32")
    base = tmp_path / "base.gguf"
    ggplan.convert(ggplan.make_plan(ggplan.open_model(DEMO, pre="glm4"), f32), base)
    model = ggplan.open_model(base)
    calibrate(str(base), [str(TEXT)], tmp_path / "c", CalibrateOptions(n_chunks=6, threads=1))
    calibration = ggplan.open_calibration(tmp_path / "c")
    quantized = parse_type("q5_0")
    types = {t.name: t.type if len(t.shape) < 2 else quantized for t in model.tensors}
    expected = logits(base)
    for how in ("awq:0.5", "smooth:0.5"):
        folded, _ = fold(model, parse_fold(how), calibration, types)
        assert "11 of 11 places" in next(note for note in folded.notes if how in note)
        out = tmp_path / f"{how[:3]}.gguf"
        ggplan.convert(ggplan.make_plan(folded, f32), out)
        there = {t.name: t.rows.read_float32(0, 1) for t in ggplan.open_model(out).tensors}
        norm = "blk.1.attn_norm.weight"
        assert np.abs(there[norm] / model[norm].rows.read_float32(0, 1) - 1).max() > 0.1
        assert np.abs(logits(out) - expected).max() < 1e-4  # of 15; with a cache in f16 0.002
