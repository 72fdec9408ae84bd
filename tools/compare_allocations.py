#!/usr/bin/env python
r"""Measure optimised recipes beside stock mixes and uniform types at exactly their bytes: a table.

    python tools/compare_allocations.py MODEL --imatrix FILE --text a.txt b.txt --engine LLAMA_PERPLEXITY \
        --out FOLDER [--probe-text c.txt d.txt]

For each rival (`--mixes`, `--types`) a recipe is made whose file has no more bytes than the rival's, once by
the prior, and with --probe-text once more by probes on those texts. All files are written from the same
weights with the same imatrix, and measured on the same tokens. FOLDER keeps the files, the probes and the
record of all figures, so a run that is stopped continues, and nothing is measured twice.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ggplan
from ggplan.allocation import (
    Optimized,
    OptimizeOptions,
    answer_of,
    measured_errors,
    prepare,
    scales_by_probes,
)
from ggplan.allocation.scales import Scales
from ggplan.allocation.type_errors import Errors
from ggplan.imatrix import Imatrix
from ggplan.measure import (
    Engine,
    MeasureOptions,
    Metric,
    Record,
    TextFile,
    embedded_engine,
    external_engine,
    kept_scores,
    measure,
    open_record,
    open_subjects,
)
from ggplan.measure.record import Measurement, Quantization
from ggplan.measure.statistics import difference
from ggplan.model import Model
from ggplan.planning import Plan, find_recipe, make_plan
from ggplan.probing import ProbeOptions, Watcher, probe

MIXES = ("Q2_K", "IQ3_XS", "Q3_K_M", "Q4_K_M", "Q5_K_M")
TYPES = ("q2_K", "iq3_xxs", "q3_K", "iq4_xs", "q4_K", "q5_K")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--pre", help="the pre-tokenizer's name")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts to judge on")
    parser.add_argument("--probe-text", type=Path, nargs="*", default=[], help="texts to probe on")
    parser.add_argument("--chunks", type=int, default=24, help="of each text to judge on")
    parser.add_argument("--probe-chunks", type=int, default=16, help="of each text to probe on")
    parser.add_argument("--mixes", nargs="*", default=MIXES)
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--engine", help="a llama-perplexity [default: the embedded engine]")
    parser.add_argument("--engine-args", default="", help="passed on to it")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(exist_ok=True)
    engine = external_engine(asked.engine, asked.engine_args.split()) if asked.engine else embedded_engine()
    model = ggplan.open_model(asked.model, pre=asked.pre)
    imatrix = ggplan.load_imatrix(asked.imatrix) if asked.imatrix else None
    bases: dict[str, tuple[Scales | None, Errors]] = {"prior": (None, errors_of(model, imatrix))}
    if asked.probe_text:
        path = asked.out / "probes.json"
        options = ProbeOptions(n_chunks=asked.probe_chunks)
        record = probe(model, asked.probe_text, path, engine, imatrix, options, watcher=Printing())
        bases["probes"] = scales_by_probes(model, record.as_probes(path.name)), bases["prior"][1]
    files, found = written(model, imatrix, [*asked.mixes, *asked.types], bases, asked.out)
    record_of_all = measured(files, asked.text, engine, asked.chunks, asked.out / "record.json")
    report(record_of_all, asked.out / "record.json", found, asked.text)


class Printing(Watcher):
    """Lines on standard output."""

    def running(self, name: str, done: int, of: int) -> None:
        """A line for each probe that is done."""
        if done == of:
            print(f"probe: {name}", flush=True)


def errors_of(model: Model, imatrix: Imatrix | None) -> Errors:
    return measured_errors(prepare(model, OptimizeOptions(bpw=8), imatrix=imatrix).choices, imatrix)


def plan_of(model: Model, name: str, imatrix: Imatrix | None) -> Plan:
    rival = (
        find_recipe(name) if name in MIXES or name.isupper() else ggplan.parse_recipe(f"@default {name}\n")
    )
    return make_plan(model, rival, imatrix=imatrix)


def written(
    model: Model,
    imatrix: Imatrix | None,
    rivals: Sequence[str],
    bases: dict[str, tuple[Scales | None, Errors]],
    folder: Path,
) -> tuple[list[Path], dict[str, tuple[Plan, dict[str, Optimized]]]]:
    """The base, each rival and each recipe at its bytes as files; and the plans and answers by rival."""
    plans = {"base": make_plan(model)}
    found: dict[str, tuple[Plan, dict[str, Optimized]]] = {}
    for name in rivals:
        plans[name] = plan_of(model, name, imatrix)
        answers = {}
        for kind, (scales, errors) in bases.items():
            options = OptimizeOptions(size=plans[name].file_bytes, name=f"{name} by {kind}")
            answers[kind] = answer_of(prepare(model, options, scales=scales, errors=errors, imatrix=imatrix))
            plans[f"{name}-{kind}"] = make_plan(model, answers[kind].recipe, imatrix=imatrix)
        found[name] = plans[name], answers
    paths = []
    for name, plan in plans.items():
        path = folder / f"{name}.gguf"
        if not path.exists() or path.stat().st_size != plan.file_bytes:
            ggplan.convert(plan, path, ggplan.ConvertOptions(allow_requantize=True, force=True))
        if plan.recipe is not None:
            path.with_suffix(".recipe").write_text(plan.recipe.text, "utf-8")
        paths.append(path)
    return paths, found


def measured(files: list[Path], texts: list[Path], engine: Engine, n_chunks: int, path: Path) -> Record:
    """All files on all texts; figures of the record are not measured again."""
    subjects = open_subjects(files)
    base, others = subjects[0], [replace(s, name=s.path.stem) for s in subjects[1:]]
    with open_record(path) as kept:
        record = kept.record
        for text in texts:
            known = {
                q.file.sha256
                for q in (record.quantizations if record is not None else ())
                for m in q.measurements
                if m.text.name == text.name and m.n_chunks == n_chunks
            }
            missing = [s for s in others if s.sha256 not in known]
            if not missing:
                continue
            logits = path.with_name(f"{text.name}-{n_chunks}.logits")
            if not logits.exists():
                how = MeasureOptions(n_chunks=n_chunks, model_name=files[0].parent.name, keep_logits=logits)
                record = kept.add(measure([], [TextFile(text)], base, engine, how).record)
            how = MeasureOptions(model_name=files[0].parent.name)
            for subject in missing:
                result = measure([subject], [TextFile(text)], logits, engine, how, into=record)
                record = kept.add(named(result.record, subject.path.stem), result.scores)
                print(f"measured: {subject.path.stem} on {text.name}", flush=True)
    assert record is not None
    return record


def named(record: Record, name: str) -> Record:
    return replace(record, quantizations=tuple(replace(q, name=name) for q in record.quantizations))


def report(
    record: Record, path: Path, found: dict[str, tuple[Plan, dict[str, Optimized]]], texts: list[Path]
) -> None:
    """The table: of each rival its KL divergence, and of each recipe at its bytes that as a part of it."""
    scores = kept_scores(path)
    files = {q.file.name.removesuffix(".gguf"): q for q in record.quantizations}

    def figure(name: str, text: Path) -> tuple[Quantization, Measurement, Metric]:
        q = files[name]
        m = next(m for m in q.measurements if m.text.name == text.name)
        return q, m, m.metrics["kld"]

    kinds = list(next(iter(found.values()))[1])
    names = [text.name for text in texts]
    heads = [f"{kind}: {what}" for kind in kinds for what in (*names, "both", "predicted / measured")]
    print("| rival | bpw | " + " | ".join(f"KLD {n}" for n in names) + " | " + " | ".join(heads) + " |")
    print("|---" * (2 + len(names) + len(heads)) + "|")
    for rival, (plan, answers) in found.items():
        own = [figure(rival, text) for text in texts]
        row = [rival, f"{plan.bits_per_weight:.3f}", *(f"{k.value:.4f}" for _, _, k in own)]
        for kind in kinds:
            logs, parts = [], []
            for text, (q, m, kld) in zip(texts, own, strict=True):
                q2, m2, kld2 = figure(f"{rival}-{kind}", text)
                ratio = kld2.value / kld.value
                a, b = scores(q, m), scores(q2, m2)
                error = difference(b, a, "kld") if a is not None and b is not None else None
                spread = "" if error is None or error.error is None else f" ± {error.error / kld.value:.2f}"
                row.append(f"{ratio:.2f}{spread}")
                logs.append(math.log(ratio))
                parts.append(f"{answers[kind].forecast.kld / kld2.value:.2f}")
            row += [f"**{math.exp(sum(logs) / len(logs)):.2f}**", " ".join(parts)]
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
