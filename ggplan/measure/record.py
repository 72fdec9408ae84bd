"""The record: what is known of a model's quantizations, as one JSON file that can be kept, merged and drawn.

    {
      "schema": "ggplan.record/1",
      "model": {"name": "demo-model", "architecture": "glm4moe", "n_weights": 4736512, "url": ""},
      "quantizations": [
        {
          "name": "hq4_k",
          "file": {"name": "demo-hq4_k.gguf", "sha256": "...", "n_bytes": 3690592},
          "bpw": 6.187,
          "recipe": {"name": "glm4moe/hq4_k", "sha256": "..."},
          "imatrix": "", "author": "", "url": "", "note": "",
          "parts": [{"role": "attention", "type": "q8_0", "n_bytes": 557056, "n_weights": 524288}],
          "measurements": [
            {
              "text": {"name": "eval.txt", "sha256": "..."}, "use": "choose",
              "n_ctx": 512, "n_chunks": 30, "n_tokens": 7650, "base": "bf16",
              "engine": "llama-perplexity", "build": "b11434", "hardware": "AMD EPYC, 2 threads",
              "date": "2026-11-22",
              "metrics": {"ppl": {"value": 23.2076, "error": 0.4741, "method": "unpaired tokens"}}
            }
          ],
          "speeds": [{"n_kv": 0, "pp": 1024.0, "tg": 31.2, "engine": "llama-sweep-bench"}]
        }
      ]
    }

A metric's `error` is one standard error. `method` says of what: *paired chunks* (differences on the same
tokens, their scatter taken over chunks, so that it stands correlation within a chunk), *paired tokens* (as
llama-perplexity prints behind its ± where a base is given: tokens taken as independent), *unpaired chunks*
and *unpaired tokens* (without a base: they measure the text far more than the quantization).

`use` is "choose" for the text a mix was chosen by, "held out" for one that had no say in it. Measurements
belong on one axis only if their conditions (`Measurement.conditions`) are the same.

Unknown keys are refused, so that a slip of the pen is not a silent loss; absent optional ones are "" or
empty. `docs/record.schema.json` is the same as a JSON schema.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from ggplan.errors import MeasureError
from ggplan.text import printable

SCHEMA = "ggplan.record/1"
MAX_BYTES = 64 << 20

ErrorMethod = Literal["paired chunks", "paired tokens", "unpaired chunks", "unpaired tokens", "none"]
Use = Literal["choose", "held out", ""]

METRICS = {
    "ppl": "perplexity",
    "delta_ppl": "perplexity minus the base's",
    "delta_ln_ppl": "ln(perplexity / the base's): the mean loss of log-probability per token, in nats",
    "kld_mean": "mean KL divergence from the base, nats per token",
    "kld_median": "median KL divergence",
    "kld_90": "90 % of tokens have a smaller KL divergence",
    "kld_99": "99 % of tokens have a smaller KL divergence",
    "kld_999": "99.9 % of tokens have a smaller KL divergence",
    "kld_max": "the largest KL divergence",
    "delta_p_mean": "mean change of the right token's probability",
    "delta_p_rms": "root mean square change of the right token's probability",
    "same_top": "share of tokens at which the most likely token is the base's",
}
"""Names of metrics and what they say. Shares and probabilities are fractions, not per cent."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number and its standard error; `error` is None where `method` is "none"."""

    value: float
    error: float | None = None
    method: ErrorMethod = "none"


@dataclass(frozen=True, slots=True)
class Text:
    """The text something was measured on."""

    name: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Quality of one quantization on one text, by one engine."""

    text: Text
    n_ctx: int
    n_chunks: int
    n_tokens: int
    engine: str
    metrics: Mapping[str, Metric]
    base: str = ""
    build: str = ""
    hardware: str = ""
    use: Use = ""
    date: str = ""

    @property
    def conditions(self) -> tuple[str, int, int, str, str]:
        """What must be equal for two measurements to be compared: text, context, chunks, engine, build."""
        return (self.text.sha256 or self.text.name, self.n_ctx, self.n_chunks, self.engine, self.build)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second with `n_kv` tokens already in the cache: reading a prompt (pp), writing (tg)."""

    n_kv: int
    pp: float | None = None
    tg: float | None = None
    engine: str = ""
    build: str = ""
    hardware: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes and weights of all tensors of one role and type."""

    role: str
    type: str
    n_bytes: int
    n_weights: int


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The file that was measured; `n_bytes` is of all its parts if it is split."""

    name: str = ""
    sha256: str = ""
    n_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RecipeFacts:
    """The recipe a file was made by."""

    name: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Quantization:
    """One quantization of a model. `bpw` is bits per weight over all tensors, 0 where it is not known."""

    name: str
    file: FileFacts = FileFacts()
    bpw: float = 0.0
    recipe: RecipeFacts = RecipeFacts()
    imatrix: str = ""
    author: str = ""
    url: str = ""
    note: str = ""
    parts: tuple[Part, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    speeds: tuple[Speed, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Whose quantizations they are."""

    name: str
    architecture: str = ""
    n_weights: int = 0
    url: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of one model's quantizations."""

    model: ModelFacts
    quantizations: tuple[Quantization, ...] = field(default=())


def load_record(path: str | Path) -> Record:
    """Read a record.

    Raises
    ------
    MeasureError
        If the file cannot be read or is not a record, naming the file and the place in it.
    """
    path = Path(path)
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MeasureError(f"cannot read {shown}: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise MeasureError(f"{shown} is larger than any record ({MAX_BYTES >> 20} MiB)")
    try:
        return record_from_json(json.loads(raw.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise MeasureError(f"{shown} is not a record: {error}") from error


def save_record(record: Record, path: str | Path) -> None:
    """Write a record: first beside the target, then renamed, so that a record is never half a record.

    Raises
    ------
    MeasureError
        If the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    text = json.dumps(record_to_json(record), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise MeasureError(f"cannot write {printable(str(path))}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def merge(old: Record, new: Record) -> Record:
    """`old` with what `new` knows better.

    Quantizations are the same by name; a measurement of the same conditions, and a speed at the same place,
    is replaced by the newer; facts that the newer leaves empty stay.

    Raises
    ------
    MeasureError
        If the records are of two models.
    """
    if old.model.name != new.model.name:
        raise MeasureError(f"records of {printable(old.model.name)} and of {printable(new.model.name)}")
    merged = {q.name: q for q in old.quantizations}
    for q in new.quantizations:
        merged[q.name] = _merged(merged[q.name], q) if q.name in merged else q
    return Record(_filled(old.model, new.model), tuple(merged.values()))


def _merged(old: Quantization, new: Quantization) -> Quantization:
    same_file = not old.file.sha256 or not new.file.sha256 or old.file.sha256 == new.file.sha256
    if not same_file:  # another file under the old name: what was measured of the old one is not its own
        return new
    measurements = {m.conditions: m for m in (*old.measurements, *new.measurements)}
    speeds = {(s.n_kv, s.engine, s.build, s.hardware): s for s in (*old.speeds, *new.speeds)}
    return dataclasses.replace(
        _filled(old, new), measurements=tuple(measurements.values()), speeds=tuple(speeds.values())
    )


_Facts = TypeVar("_Facts", Quantization, ModelFacts)


def _filled(old: _Facts, new: _Facts) -> _Facts:
    """`new`, its empty fields taken from `old`."""
    known = {f.name: getattr(old, f.name) for f in dataclasses.fields(new)}
    empty = {f.name: f.default for f in dataclasses.fields(new)}
    kept = {name: value for name, value in known.items() if getattr(new, name) == empty[name]}
    return dataclasses.replace(new, **kept)


CSV_COLUMNS = (
    "model", "name", "n_bytes", "bpw", "text", "use", "n_ctx", "n_chunks", "n_tokens", "engine", "build",
    "metric", "value", "error", "method",
)  # fmt: skip


def record_to_csv(record: Record) -> str:
    """The record's measurements as a table of one metric a line, for those who plot elsewhere."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    for q in record.quantizations:
        for m in q.measurements:
            facts = [record.model.name, q.name, q.file.n_bytes, f"{q.bpw:.4f}", m.text.name, m.use, m.n_ctx,
                     m.n_chunks, m.n_tokens, m.engine, m.build]  # fmt: skip
            for name, metric in m.metrics.items():
                error = "" if metric.error is None else f"{metric.error:.6g}"
                table.writerow([*facts, name, f"{metric.value:.9g}", error, metric.method])
    return out.getvalue()


def record_to_json(record: Record) -> dict[str, Any]:
    """The record as JSON values."""
    body = _without_defaults(record)
    return {"schema": SCHEMA, **body}


def record_from_json(value: object) -> Record:
    """A record from JSON values.

    Raises
    ------
    ValueError
        Naming the place that does not fit.
    """
    members = _members(value, "the file")
    schema = members.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f'"schema" is {printable(str(schema))[:60]!r}, not "{SCHEMA}"')
    record: Record = _parsed(Record, members, "the file")
    names = [q.name for q in record.quantizations]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ValueError(f"two quantizations are named {printable(twice)!r}")
    return record


def _without_defaults(value: object) -> Any:
    """JSON of dataclasses; fields that hold their default are left out."""
    if dataclasses.is_dataclass(value):
        members = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
        return {name: _without_defaults(v) for name, (v, default) in members.items() if v != default}
    if isinstance(value, Mapping):
        return {key: _without_defaults(v) for key, v in value.items()}
    if isinstance(value, tuple):
        return [_without_defaults(v) for v in value]
    return value


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place} is not a text")
    return value


def _count(value: object, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{place} is not a count")
    return value


def _number(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{place} is not a number")
    return float(value)


def _maybe_number(value: object, place: str) -> float | None:
    return None if value is None else _number(value, place)


def _one_of(*allowed: str) -> Callable[[object, str], str]:
    def parse(value: object, place: str) -> str:
        if value not in allowed:
            raise ValueError(f"{place} is none of {', '.join(map(repr, allowed))}")
        return str(value)

    return parse


def _list_of(kind: type) -> Callable[[object, str], tuple[Any, ...]]:
    def parse(value: object, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{place} is not a list")
        return tuple(_parsed(kind, item, f"{place}[{i}]") for i, item in enumerate(value))

    return parse


def _metrics(value: object, place: str) -> dict[str, Metric]:
    members = _members(value, place)
    unknown = next((name for name in members if name not in METRICS), None)
    if unknown is not None:
        raise ValueError(f"{place} has an unknown metric {printable(unknown)[:60]!r}")
    return {name: _parsed(Metric, v, f"{place}.{name}") for name, v in members.items()}


_FIELD_PARSERS: dict[tuple[type, str], Callable[[object, str], Any]] = {
    (Record, "quantizations"): _list_of(Quantization),
    (Quantization, "parts"): _list_of(Part),
    (Quantization, "measurements"): _list_of(Measurement),
    (Quantization, "speeds"): _list_of(Speed),
    (Measurement, "metrics"): _metrics,
    (Measurement, "use"): _one_of("choose", "held out", ""),
    (Metric, "method"): _one_of(*get_args(ErrorMethod)),
}
_PARSERS: dict[str, Callable[[object, str], Any]] = {
    "str": _text,
    "int": _count,
    "float": _number,
    "float | None": _maybe_number,
}
_NESTED = {c.__name__: c for c in (ModelFacts, FileFacts, RecipeFacts, Text)}


def _members(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is not an object")
    return dict(value)


def _parsed(kind: type, value: object, place: str) -> Any:
    """A dataclass from JSON, every field checked."""
    members = _members(value, place)
    arguments = {}
    for f in dataclasses.fields(kind):
        if f.name not in members:
            if f.default is dataclasses.MISSING:
                raise ValueError(f'{place} has no "{f.name}"')
            continue
        inner = f"{place}.{f.name}"
        raw, annotation = members.pop(f.name), str(f.type)
        if (kind, f.name) in _FIELD_PARSERS:
            arguments[f.name] = _FIELD_PARSERS[kind, f.name](raw, inner)
        elif annotation in _NESTED:
            arguments[f.name] = _parsed(_NESTED[annotation], raw, inner)
        else:
            arguments[f.name] = _PARSERS[annotation](raw, inner)
    if members:
        raise ValueError(f"{place} has an unknown key {printable(next(iter(members)))[:60]!r}")
    return kind(**arguments)


def quantizations_by_size(quantizations: Iterable[Quantization]) -> list[Quantization]:
    """Largest first, as tables show them."""
    return sorted(quantizations, key=lambda q: (-q.file.n_bytes, -q.bpw, q.name))
