"""What a calibration is worth: KL divergence in llama.cpp of files of equal bytes, with and without it.

    python tools/compare_feedback.py MODEL.gguf CALIB --text eval.txt [--text other.txt] [--type q2_K ...]
        [--recipe RECIPE ...] [--correct CHECKPOINT [--pre NAME]] [--programs FOLDER] [--chunks 16]
        [--method gptq] [--lam 0.3] [--best CALIB] [-o FOLDER]

MODEL is a bf16 or f16 GGUF file, CALIB what `ggplan calibrate` made of it with other texts than those that
are measured here. For each type all matrices of the layers are written in it, embeddings and output in bf16;
for each recipe or stock mix as it says. Each is converted with `--effort best` and the calibration's imatrix
(or that of the calibration that --best names), with `--calibration`, and with `--correct`, for which
CHECKPOINT is the folder that MODEL was made of; llama-perplexity measures all against the model itself.

The table has a line for each file and text: the mean KL divergence, the one that 0.1 % of the tokens exceed,
both as ratios to those of best, and what it took. FOLDER/results.jsonl gets the same, a JSON object a line.
The exit status is 1 where a ratio is above its bar (`_BARS`, of glm4moe-tiny), sizes differ, or the 99.9 %
is not lower than best's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import ggplan
from ggplan.calibration import open_calibration
from ggplan.conversion import ConvertOptions
from ggplan.ggml_types import parse_type
from ggplan.opening import open_model
from ggplan.planning import Feedback, Plan, find_recipe, make_plan
from ggplan.planning.guidance import LAMBDA
from ggplan.rules import Recipe, parse_recipe
from ggplan.stock import Mix

_BARS = {
    "calibrated": {"q2_K": 0.60, "q3_K": 0.55, "q4_K": 0.62, "iq4_xs": 0.55, "iq3_xxs": 0.50, "iq2_xs": 0.60},
    "corrected": {"q2_K": 0.45, "q3_K": 0.45, "q4_K": 0.55},
}
_FALLBACK = {"q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0"}
_TRIES = 4
_SMALLEST = 32  # columns of a block that every matrix has
_METADATA = 4096  # bytes: what a file says of how it was made
_FIGURES = re.compile(r"^(Mean|99\.9%)\s+KLD:\s+([0-9.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table."""

    recipe: str
    kind: str
    text: str
    kld: float
    kld_999: float
    ratio: float
    ratio_999: float
    n_bytes: int
    cpu_seconds: float


def main() -> int:
    """Convert and measure; 1 if a figure is above its bar."""
    given = _arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    recipes: list[Recipe | Mix] = [_of_type(name) for name in given.type]
    recipes += [find_recipe(name) for name in given.recipe]
    bases = {text: _base(given, text) for text in given.text}
    kinds = ("best", *given.kinds)
    is_above = False
    with (given.output / "results.jsonl").open("a", encoding="utf-8") as record:
        for recipe in recipes:
            files = {kind: _convert(given, recipe, kind) for kind in kinds}
            size = files["best"][0].stat().st_size
            for text, base in bases.items():
                paths = [path for path, _ in files.values()]
                with ThreadPoolExecutor(given.at_once) as pool:
                    found = list(pool.map(lambda path, t=text, b=base: _divergence(given, path, t, b), paths))
                for (kind, (path, seconds)), (kld, high) in zip(files.items(), found, strict=True):
                    result = Result(
                        recipe.name,
                        kind,
                        text.name,
                        kld,
                        high,
                        kld / found[0][0],
                        high / found[0][1],
                        path.stat().st_size,
                        seconds,
                    )
                    _tell(result)
                    record.write(json.dumps(asdict(result)) + "\n")
                    record.flush()
                    is_above |= _is_above(result, size)
    return int(is_above)


def _tell(result: Result) -> None:
    print(
        f"{result.recipe:12} {result.kind:10} {result.text:16} {result.kld:.5f} ({result.kld_999:.3f})"
        f"  ratio {result.ratio:.3f} ({result.ratio_999:.3f})"
        f"  {result.n_bytes:,} B  {result.cpu_seconds:.0f} s of CPU",
        flush=True,
    )


def _is_above(result: Result, n_bytes: int) -> bool:
    """Whether a figure is above what it should be; says which."""
    if result.kind == "best":
        return False
    faults = []
    bar = _BARS[result.kind].get(result.recipe, 1.0)
    if result.ratio > bar:
        faults.append(f"the ratio is above {bar:.2f}")
    if result.ratio_999 >= 1:
        faults.append("the 99.9 % is not lower")
    if abs(result.n_bytes - n_bytes) > _METADATA:
        faults.append(f"best has {n_bytes:,} B")
    if faults:
        print(f"  ABOVE: {', '.join(faults)}", flush=True)
    return bool(faults)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--type", action="append", default=[])
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--correct", type=Path, metavar="CHECKPOINT", help="correct too")
    parser.add_argument("--pre", help="the checkpoint's pre-tokenizer")
    parser.add_argument("--no-calibrated", action="store_true", help="leave out what is not corrected")
    parser.add_argument("--best", type=Path, metavar="CALIB", help="whose imatrix best gets")
    parser.add_argument("--programs", type=Path, help="the folder of llama-perplexity; else on PATH")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, help="of conversions")
    parser.add_argument("--at-once", type=int, default=2, help="files that are measured at the same time")
    parser.add_argument("--method", default="feedback")
    parser.add_argument("--lam", type=float, default=LAMBDA)
    parser.add_argument("--allow-requantize", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("compared"))
    given = parser.parse_args()
    given.kinds = () if given.no_calibrated else ("calibrated",)
    given.kinds += ("corrected",) if given.correct else ()
    if not given.kinds:
        parser.error("--no-calibrated wants --correct")
    return given


def _of_type(name: str) -> Recipe:
    other = _FALLBACK.get(name, "q4_0")
    chain = name if parse_type(name).block_size == _SMALLEST else f"{name} | {other}"
    text = f"token_embd|^output\\.weight = bf16\nffn_gate_inp = f32\n@default {chain}\n"
    return parse_recipe(text, name)


def _convert(given: argparse.Namespace, recipe: Recipe | Mix, kind: str) -> tuple[Path, float]:
    """Write a file, and the seconds of CPU that it took; one that is there is taken as it is."""
    path = given.output / f"{recipe.name.replace('/', '-')}-{kind}.gguf"
    if path.exists():
        return path, 0.0
    started = time.process_time()
    options = ConvertOptions(
        force=True, restart=True, threads=given.threads, allow_requantize=given.allow_requantize
    )
    ggplan.convert(_plan(given, recipe, kind), path, options)
    return path, time.process_time() - started


def _plan(given: argparse.Namespace, recipe: Recipe | Mix, kind: str) -> Plan:
    if kind == "best":
        imatrix = open_calibration(given.best or given.calibration).imatrix
        return make_plan(open_model(given.model), recipe, imatrix=imatrix, effort="best")
    is_corrected = kind == "corrected"
    feedback = Feedback(open_calibration(given.calibration), given.method, given.lam, is_corrected)
    model = open_model(given.correct, pre=given.pre) if is_corrected else open_model(given.model)
    return make_plan(model, recipe, feedback=feedback)


def _base(given: argparse.Namespace, text: Path) -> Path:
    """The logits of the model itself, for one text."""
    base: Path = given.output / f"{text.stem}-{given.chunks}.base"
    if not base.exists():
        part = base.with_suffix(".part")
        _perplexity(given, given.model, text, "--kl-divergence-base", str(part))
        part.rename(base)
    return base


def _divergence(given: argparse.Namespace, file: Path, text: Path, base: Path) -> tuple[float, float]:
    """The mean KL divergence of a file, and that which 0.1 % of the tokens exceed.

    What was measured once is kept in `measured` of the output's folder, by the digests of file and logits.
    """
    kept: Path = given.output / "measured"
    digests = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (file, base))
    key = " ".join(digests)
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else ():
        if line.startswith(key):
            mean, high = line.split()[-2:]
            return float(mean), float(high)
    found = _measure(given, file, text, base)
    with kept.open("a", encoding="utf-8") as out:
        out.write(f"{key} {found[0]} {found[1]}\n")
    return found


def _measure(given: argparse.Namespace, file: Path, text: Path, base: Path) -> tuple[float, float]:
    for _ in range(_TRIES):
        said = _perplexity(given, file, text, "--kl-divergence-base", str(base), "--kl-divergence")
        figures = {name: float(value) for name, value in _FIGURES.findall(said)}
        if len(figures) == 2:  # on a busy machine it may end before its last lines are printed
            return figures["Mean"], figures["99.9%"]
    raise SystemExit(f"llama-perplexity prints no KL divergence of {file}")


def _perplexity(given: argparse.Namespace, file: Path, text: Path, *options: str) -> str:
    """What llama-perplexity prints."""
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
    command += ["-t", "1"]  # more wait for one another where others use the machine
    env = dict(os.environ)
    if given.programs is not None:
        env["LD_LIBRARY_PATH"] = str(given.programs)
    done = subprocess.run(command, capture_output=True, check=False, env=env)
    if done.returncode:
        sys.stderr.write(done.stderr.decode("utf-8", "replace")[-2000:])
        raise SystemExit(f"llama-perplexity failed with {done.returncode}: {' '.join(command)}")
    return done.stdout.decode("utf-8", "replace")  # it prints tokens that are parts of characters


if __name__ == "__main__":
    sys.exit(main())
