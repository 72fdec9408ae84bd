"""Measure quantizations: perplexity and KL divergence by a real llama.cpp, kept as records.

An engine runs the files; a result holds the figures, and the scores of every token:

    >>> import ggplan
    >>> result = ggplan.measure.measure(["tiny-q4_K.gguf"], "eval.txt", base="tiny-bf16.gguf")
    >>> for quantization in result.record.quantizations:
    ...     for measurement in quantization.measurements:
    ...         print(quantization.name, sorted(measurement.metrics)[-1])
    bf16 ppl
    q4_K same_top

It is the llama-perplexity on the PATH that runs them, else llama-cpp-python; `external_engine` names another
one, with its options. A record keeps what was measured, beside all that was measured before:

    >>> with ggplan.measure.open_record("tiny.json") as kept:
    ...     _ = kept.add(result.record, result.scores)
    >>> [q.name for q in ggplan.measure.load_record("tiny.json").quantizations]
    ['bf16', 'q4_K']

Logs and tables of earlier runs are read by `parse_files`, which gives an entry for each run in them.
"""

from ggplan.measure.engines import Engine, default_engine, embedded_engine, external_engine
from ggplan.measure.guard import Contender, Disagreement, Lead, Tie, disagreements, lead, ties
from ggplan.measure.measuring import MeasureOptions, MeasureResult, TextFile, Watched, largest, measure
from ggplan.measure.parsing import parse_files
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
from ggplan.measure.sizes import with_sizes
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
    "default_engine",
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
    "parse_files",
    "record_to_csv",
    "save_record",
    "ties",
    "with_sizes",
]
