#!/usr/bin/env python
r"""The whole chain beside llama-quantize's mixes: optimize, calibrate and convert --correct at a mix's bytes.

    python tools/compare_chain.py MODEL --out FOLDER --calibrate a.txt b.txt --text c.txt --held-out d.txt \
        [--mixes Q2_K Q4_K_M] [--pre glm4] [--engine LLAMA_PERPLEXITY] [--probe-text e.txt] [--note CAVEAT]

MODEL is a checkpoint in bf16, `demo-model` the one that ships. For each mix three files are written by the
command line, as anybody would: the mix with the calibration's imatrix, which is llama-quantize's file; the
recipe of `ggplan optimize` for the mix's own number of bytes, with the same imatrix; and that recipe with
`--calibration --correct`. All are measured against bf16, on two texts that neither recipes nor blocks were
chosen by. It prints the commands and a table of KL divergences, each also as a part of the mix's; writes
`ppl_graphs/NAME.svg`, `ppl_graphs/data/NAME.json` and `NAME.csv`; and exits 1 if a file has more bytes than
its mix or a corrected one loses more than --at-most of what the mix loses.

FOLDER keeps everything, and what is there is not made again: a run that is stopped goes on. Delete the
FOLDER when ggplan's bytes change.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.resources
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ggplan.charts.points import panels
from ggplan.charts.quality import draw_panels
from ggplan.measure import kept_scores, load_record, open_subjects, record_to_csv, save_record
from ggplan.measure.record import Measurement, Quantization, Record
from ggplan.measure.record_file import Scores

ROOT = Path(__file__).parent.parent
GRAPHS = ROOT / "ppl_graphs"
MIXES = ("Q2_K", "IQ3_XS", "Q3_K_M", "Q4_K_M")
KINDS = {
    "": "llama.cpp's mix with an imatrix",
    "optimised": "ggplan optimize",
    "corrected": "ggplan optimize, calibrate, convert --correct",
}
"""What is in the names of the files, and what the chart calls it."""


def main() -> int:
    """Make, measure, draw; 1 if a file is too large or loses too much."""
    asked = _arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    path, record = measured(asked, written(asked))
    scores = kept_scores(path)
    record = replace(record, quantizations=tuple(map(named, record.quantizations)))
    keep(asked, record, scores)
    return 0 if report(record, scores, asked.at_most) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="of the record and the chart [default: MODEL-chain]")
    parser.add_argument("--note", default="", help="a caveat for the chart")
    parser.add_argument("--pre", help="the pre-tokenizer's name")
    parser.add_argument("--calibrate", nargs="+", required=True, help="texts to calibrate on")
    parser.add_argument("--tokens", default="32k", help="of them")
    parser.add_argument("--text", required=True, help="a text to judge on")
    parser.add_argument("--held-out", required=True, help="a second one, of another kind")
    parser.add_argument("--chunks", type=int, default=16, help="of each text to judge on")
    parser.add_argument("--probe-text", nargs="*", default=[], help="probe on these before optimizing")
    parser.add_argument("--mixes", nargs="*", default=MIXES)
    parser.add_argument("--engine", default="embedded", help="a llama-perplexity")
    parser.add_argument("--threads", default="2", help="of the engine")
    parser.add_argument("--at-most", type=float, default=0.25)
    asked = parser.parse_args()
    if asked.model == "demo-model":
        asked.model, asked.pre = str(importlib.resources.files("ggplan") / "demo_model"), "glm4"
        asked.name = asked.name or "demo-model-chain"
    asked.name = asked.name or f"{Path(asked.model).name}-chain"
    return asked


def ggplan(*arguments: str | Path) -> None:
    """Run a command of ggplan's, and show it."""
    print("$", shlex.join(["ggplan", *map(str, arguments)]), flush=True)
    subprocess.run([sys.executable, "-m", "ggplan", *map(str, arguments)], check=True)


def written(asked: argparse.Namespace) -> list[Path]:
    """The bf16 file, the mixes and what is made of their bytes."""
    opened = [asked.model] + (["--pre", asked.pre] if asked.pre else [])
    base, calibration = asked.out / "bf16.gguf", asked.out / "calibration"
    if not base.exists():
        ggplan("convert", opened[0], base, *opened[1:], "-q")
    if not (calibration / "calibration.json").exists():
        texts = [part for text in asked.calibrate for part in ("--text", text)]
        ggplan("calibrate", *opened, *texts, "--tokens", asked.tokens, "-o", calibration, "-q")
    files = [base]
    for mix in asked.mixes:
        stock, recipe = asked.out / f"{mix}.gguf", asked.out / f"{mix}.recipe"
        optimised, corrected = (asked.out / f"{mix}-{kind}.gguf" for kind in ("optimised", "corrected"))
        by_imatrix, by_all = ["--imatrix", calibration], ["--calibration", calibration, "--correct"]
        if not stock.exists():
            ggplan("convert", opened[0], stock, *opened[1:], "-r", mix, *by_imatrix, "-q")
        if not recipe.exists():
            size = str(stock.stat().st_size)
            ggplan("optimize", *opened, "--size", size, *by_imatrix, *_probing(asked), "-o", recipe)
        for file, how in ((optimised, by_imatrix), (corrected, by_all)):
            if not file.exists():
                ggplan("convert", opened[0], file, *opened[1:], "-r", recipe, *how, "-q")
        files += [stock, optimised, corrected]
    return files


def _probing(asked: argparse.Namespace) -> list[str | Path]:
    if not asked.probe_text:
        return []
    texts = [part for text in asked.probe_text for part in ("--text", text)]
    return ["--probe", "--probes", asked.out / "probes.json", *texts, "--chunks", "8",
            "--engine", asked.engine]  # fmt: skip


def measured(asked: argparse.Namespace, files: list[Path]) -> tuple[Path, Record]:
    """The path of the record of all measurements, and of it these files on these texts."""
    path: Path = asked.out / f"{asked.name}.json"
    subjects = open_subjects(files)
    found = [] if not path.exists() else _asked_for(asked, load_record(path))
    known = {q.file.sha256 for q in found if len(q.measurements) == 2}
    missing = [s.path for s in subjects[1:] if s.sha256 not in known]
    if missing:
        ggplan(
            "measure", *missing, "--base", files[0], "--text", asked.text, "--held-out", asked.held_out,
            "--chunks", str(asked.chunks), "--engine", asked.engine, "-t", asked.threads, "--record", path,
            "--model-name", Path(asked.model).name, "-q",
        )  # fmt: skip
    record = load_record(path)
    by_digest = {q.file.sha256: q for q in _asked_for(asked, record)}
    return path, replace(record, quantizations=tuple(by_digest[s.sha256] for s in subjects))


def _asked_for(asked: argparse.Namespace, record: Record) -> list[Quantization]:
    """The files of a record, with their measurements on these texts, in the order of the texts."""
    digests = [hashlib.sha256(Path(text).read_bytes()).hexdigest() for text in (asked.text, asked.held_out)]
    found = []
    for q in record.quantizations:
        own = {m.text.sha256: m for m in q.measurements if m.n_chunks == asked.chunks}
        found.append(replace(q, measurements=tuple(own[d] for d in digests if d in own)))
    return found


def named(quantization: Quantization) -> Quantization:
    """With a name for the chart, and with what made it for an author."""
    mix, _, kind = quantization.file.name.removesuffix(".gguf").partition("-")
    if mix == "bf16":
        return quantization
    return replace(quantization, name=f"{mix} {kind}".strip(), author=KINDS[kind])


def keep(asked: argparse.Namespace, record: Record, scores: Scores) -> None:
    """Draw the chart, and write record and table beside it."""
    title = f"{record.model.name}: the same bytes, three ways"
    drawing = draw_panels(panels([record], scores=scores), title=title, note=asked.note)
    drawing.save(GRAPHS / f"{asked.name}.svg")
    path = GRAPHS / "data" / f"{asked.name}.json"
    save_record(record, path)
    path.with_suffix(".csv").write_text(record_to_csv(record), "utf-8")


def report(record: Record, scores: Scores, at_most: float) -> bool:
    """Print the table; whether every file keeps to its mix's bytes and to the bar."""
    files = {q.name: q for q in record.quantizations}
    keeps = True
    print("| mix | file | bytes | bpw | text | KLD | 99.9 % | of the mix's |")
    print("|---|---|---:|---:|---|---:|---:|---:|")
    for mix in (q for q in record.quantizations if q.author == KINDS[""]):
        for kind in KINDS:
            own = files.get(f"{mix.name} {kind}".strip())
            if own is None:
                continue
            keeps &= own.file.n_bytes <= mix.file.n_bytes
            for m, of_mix in zip(own.measurements, mix.measurements, strict=True):
                kld = m.metrics["kld"]
                ratio, error = _ratio((own, m), (mix, of_mix), scores)
                keeps &= kind != "corrected" or ratio <= at_most
                print(
                    f"| {mix.name} | {kind or 'mix'} | {own.file.n_bytes:,} | {own.bpw:.3f} | {m.text.name}"
                    f" | {kld.value:.5f} ± {kld.error or 0:.5f} | {m.metrics['kld999'].value:.3f}"
                    f" | {ratio:.3f} ± {error:.3f} |"
                )
    return keeps


_Measured = tuple[Quantization, Measurement]


def _ratio(own: _Measured, mix: _Measured, scores: Scores) -> tuple[float, float]:
    """What part of the mix's KL divergence a file has, and its standard error, paired by tokens."""
    below = mix[1].metrics["kld"].value
    ratio = own[1].metrics["kld"].value / below
    a, b = scores(*own), scores(*mix)
    if own is mix or a is None or b is None or a.comparison is None or b.comparison is None:
        return ratio, 0.0
    use = a.finite & b.finite
    off = a.comparison.kld.astype(np.float64) - ratio * b.comparison.kld.astype(np.float64)
    by_chunk = np.where(use, off, 0.0).sum(axis=1) / use.sum(axis=1)
    return ratio, float(by_chunk.std(ddof=1) / np.sqrt(len(by_chunk))) / below


if __name__ == "__main__":
    sys.exit(main())
