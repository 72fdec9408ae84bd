"""What a calibration is worth: KL divergence in llama.cpp of files of equal bytes, with and without it.

    python tools/compare_feedback.py MODEL.gguf CALIB --text eval.txt [--text other.txt] [--type q2_K ...]
        [--recipe RECIPE ...] [--programs FOLDER] [--chunks 16] [--method gptq] [--broad] [-o FOLDER]

MODEL is a bf16 or f16 GGUF file, CALIB what `ggplan calibrate` made of it with other texts than those that
are measured here. For each type all matrices of the layers are written in it, embeddings and output in bf16;
for each recipe as it says. Each is converted twice, with `--effort best` and the calibration's imatrix, and
with `--calibration`; llama-perplexity measures both against the model itself. A line of the table is

    TYPE TEXT best KLD (99.9 %)  with calibration KLD (99.9 %)  ratio   bytes   CPU s per million weights

and the exit status is 1 where a ratio is above its bar (`_BARS`, of glm4moe-tiny).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import ggplan
from ggplan.calibration import Calibration, open_calibration
from ggplan.model import Model
from ggplan.opening import open_model
from ggplan.planning import Feedback, Plan, make_plan
from ggplan.planning.guidance import BROAD_LAMBDA, LAMBDA
from ggplan.rules import Recipe, parse_recipe
from ggplan.rules.loading import load_recipe

_BARS = {"q2_K": 0.60, "q3_K": 0.55, "q4_K": 0.62, "iq4_xs": 0.55, "iq3_xxs": 0.50, "iq2_xs": 0.60}
_FALLBACK = {"q2_K": "q4_0", "q3_K": "q4_0", "q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0"}
_TRIES = 4
_FIGURES = re.compile(r"^(Mean|99\.9%)\s+KLD:\s+([0-9.]+)", re.MULTILINE)


def main() -> int:
    """Convert and measure; 1 if a ratio is above its bar."""
    given = _arguments()
    model, calibration = open_model(given.model), open_calibration(given.calibration)
    given.output.mkdir(parents=True, exist_ok=True)
    recipes = [_of_type(name) for name in given.type] + [load_recipe(name) for name in given.recipe]
    bases = {text: _base(given, text) for text in given.text}
    is_above = False
    for recipe in recipes:
        files = {}
        for kind in ("best", "feedback"):
            plan = _plan(model, recipe, calibration, kind, given)
            path = given.output / f"{recipe.name}-{kind}.gguf"
            started = time.process_time()
            ggplan.convert(plan, path, ggplan.ConvertOptions(force=True, restart=True))
            seconds = (time.process_time() - started) / plan.n_weights * 1e6
            files[kind] = path, seconds
        for text, base in bases.items():
            best, found = (_divergence(given, path, text, base) for path, _ in files.values())
            ratio = found[0] / best[0]
            is_above |= ratio > _BARS.get(recipe.name, 1.0)
            size = files["feedback"][0].stat().st_size
            print(
                f"{recipe.name:8} {text.name:16} best {best[0]:.5f} ({best[1]:.3f})"
                f"  calibrated {found[0]:.5f} ({found[1]:.3f})  {ratio:.3f}"
                f"  {size:,} B  {files['best'][1]:.2f} and {files['feedback'][1]:.2f} s/Mw",
                flush=True,
            )
    return int(is_above)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--type", action="append", default=[])
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--programs", type=Path, help="the folder of llama-perplexity; else on PATH")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--method", default="feedback")
    parser.add_argument("--broad", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("compared"))
    return parser.parse_args()


def _of_type(name: str) -> Recipe:
    other = _FALLBACK.get(name, "iq4_nl")
    chain = (
        name if name.startswith(("q4_", "q5_", "q8_", "iq4_nl")) and "K" not in name else f"{name} | {other}"
    )
    text = f"token_embd|^output\\.weight = bf16\nffn_gate_inp = f32\n@default {chain}\n"
    return parse_recipe(text, name)


def _plan(
    model: Model, recipe: Recipe, calibration: Calibration, kind: str, given: argparse.Namespace
) -> Plan:
    if kind == "best":
        return make_plan(model, recipe, imatrix=calibration.imatrix, effort="best")
    lam = BROAD_LAMBDA if given.broad else LAMBDA
    return make_plan(model, recipe, feedback=Feedback(calibration, given.method, lam))


def _base(given: argparse.Namespace, text: Path) -> Path:
    """The logits of the model itself, for one text."""
    base: Path = given.output / f"{text.stem}.base"
    if not base.exists():
        _perplexity(given, given.model, text, "--kl-divergence-base", str(base))
    return base


def _divergence(given: argparse.Namespace, file: Path, text: Path, base: Path) -> tuple[float, float]:
    """The mean KL divergence of a file, and that which 0.1 % of the tokens exceed."""
    for _ in range(_TRIES):
        said = _perplexity(given, file, text, "--kl-divergence-base", str(base), "--kl-divergence")
        figures = {name: float(value) for name, value in _FIGURES.findall(said)}
        if len(figures) == 2:  # on a busy machine it may end before its last lines are printed
            return figures["Mean"], figures["99.9%"]
    raise SystemExit(f"llama-perplexity prints no KL divergence of {file}")


def _perplexity(given: argparse.Namespace, file: Path, text: Path, *options: str) -> str:
    program = "llama-perplexity" if given.programs is None else str(given.programs / "llama-perplexity")
    command = [
        program,
        "-m",
        str(file),
        "-f",
        str(text),
        "-c",
        "512",
        "--chunks",
        str(given.chunks),
        *options,
    ]
    folder = "" if given.programs is None else str(given.programs)
    done = subprocess.run(
        command, capture_output=True, check=True, env={**os.environ, "LD_LIBRARY_PATH": folder}
    )
    return done.stdout.decode("utf-8", "replace")  # it prints tokens that are parts of characters


if __name__ == "__main__":
    sys.exit(main())
