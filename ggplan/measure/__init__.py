"""Measure quantizations: perplexity and KL divergence by a real llama.cpp, kept as records.

An engine runs the files, a result holds the figures and every token's scores:

engine = external_engine("llama-perplexity", ["-ngl", "99"])        # or embedded_engine()
result = measure(["air-hq4_k.gguf"], [TextFile(Path("wiki.test.raw"))], "air-bf16.gguf", engine)
save_record(result.record, "air.json")
"""

from ggplan.measure.engines import Engine, embedded_engine, external_engine
from ggplan.measure.guard import Disagreement, disagreements, ties
from ggplan.measure.measuring import Result, TextFile, measure
from ggplan.measure.record import (
    METRICS,
    Measurement,
    Metric,
    Quantization,
    Record,
    load_record,
    merge,
    record_to_csv,
    save_record,
)
from ggplan.measure.scores import TokenScores
from ggplan.measure.statistics import difference, metrics_of

__all__ = [
    "METRICS",
    "Disagreement",
    "Engine",
    "Measurement",
    "Metric",
    "Quantization",
    "Record",
    "Result",
    "TextFile",
    "TokenScores",
    "difference",
    "disagreements",
    "embedded_engine",
    "external_engine",
    "load_record",
    "measure",
    "merge",
    "metrics_of",
    "record_to_csv",
    "save_record",
    "ties",
]
