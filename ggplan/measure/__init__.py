"""Measure quantizations: perplexity and KL divergence by a real llama.cpp, kept as records.

An engine runs the files; a result holds the figures and the scores of every token:

engine = external_engine("llama-perplexity", ["-ngl", "99"])        # or embedded_engine()
texts = [TextFile(Path("wiki.test.raw"))]
with open_record("air.json") as kept:
    result = measure(["air-hq4_k.gguf"], texts, "air-bf16.gguf", engine, into=kept.record)
    kept.add(result.record, result.scores)
"""

from ggplan.measure.engines import Engine, embedded_engine, external_engine
from ggplan.measure.guard import Contender, Disagreement, Lead, Tie, disagreements, lead, ties
from ggplan.measure.measuring import MeasureOptions, MeasureResult, TextFile, Watched, largest, measure
from ggplan.measure.record import (
    METRICS,
    Base,
    Measurement,
    Metric,
    Quantization,
    Record,
    merge,
    record_to_csv,
)
from ggplan.measure.record_file import OpenRecord, kept_scores, load_record, open_record, save_record
from ggplan.measure.scores import TokenScores
from ggplan.measure.statistics import difference, metrics_of
from ggplan.measure.subjects import Subject, open_subjects

__all__ = [
    "METRICS",
    "Base",
    "Contender",
    "Disagreement",
    "Engine",
    "Lead",
    "MeasureOptions",
    "MeasureResult",
    "Measurement",
    "Metric",
    "OpenRecord",
    "Quantization",
    "Record",
    "Subject",
    "TextFile",
    "Tie",
    "TokenScores",
    "Watched",
    "difference",
    "disagreements",
    "embedded_engine",
    "external_engine",
    "kept_scores",
    "largest",
    "lead",
    "load_record",
    "measure",
    "merge",
    "metrics_of",
    "open_record",
    "open_subjects",
    "record_to_csv",
    "save_record",
    "ties",
]
