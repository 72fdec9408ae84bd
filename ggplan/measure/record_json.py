"""The record as JSON: its form, its schema, and the migrations of older forms.

    {
      "schema": "ggplan.record/3",
      "model": {"name": "demo-model", "architecture": "glm4moe", "n_weights": 4736512, "url": ""},
      "quantizations": [
        {
          "name": "hq4_k",
          "file": {"name": "demo-hq4_k.gguf", "sha256": "...", "n_bytes": 3690592, "shards": []},
          "bpw": 6.187,
          "recipe": {"name": "glm4moe/hq4_k", "sha256": "..."},
          "imatrix": "", "author": "", "url": "", "note": "",
          "parts": [{"role": "attention", "type": "q8_0", "n_bytes": 557056, "n_weights": 524288}],
          "measurements": [
            {
              "text": {"name": "eval.txt", "sha256": "..."}, "use": "choose",
              "n_ctx": 512, "n_chunks": 30, "n_tokens": 7650, "n_nan": 0,
              "base": {"name": "bf16", "sha256": "...", "logits": ""},
              "engine": "llama-perplexity", "build": "b11434", "hardware": "AMD EPYC, 2 threads",
              "date": "2026-11-22",
              "metrics": {"ppl": {"value": 23.2076, "error": 0.4741, "method": "unpaired tokens"}}
            }
          ],
          "speeds": [{"n_kv": 0, "pp": 1024.0, "tg": 31.2, "engine": "llama-sweep-bench"}]
        }
      ]
    }

`use` is "choose" for the text a mix is chosen by, "held out" for one that was not used to choose. Unknown
keys are refused, so that a misspelt one is not lost in silence; absent optional ones are "", 0 or empty.
`docs/record.schema.json` is the JSON schema, which is generated from the dataclasses of `record`.

The number in "schema" is the version of the form. An older record goes through the migrations from its number
on, each of which turns one version into the next:

1  metrics "kld_mean", "kld_90", "kld_99", "kld_999"; a base is named, not known by its digest
2  metrics "kld", "kld90", "kld99", "kld999"
3  a base is {"name", "sha256", "logits"}; a file's digest occurs once; "n_nan" and "shards"
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from ggplan.measure import record as r
from ggplan.text import printable

VERSION = 3
_SCHEMA = "ggplan.record/"


def record_to_json(record: r.Record) -> dict[str, Any]:
    """The record as JSON values."""
    return {"schema": f"{_SCHEMA}{VERSION}", **_without_defaults(record)}


def is_record(value: object) -> bool:
    """Whether JSON values are marked as a record, of any version."""
    return isinstance(value, dict) and str(value.get("schema", "")).startswith(_SCHEMA)


def record_from_json(value: object) -> r.Record:
    """A record from JSON values of this version or an older one.

    Raises
    ------
    ValueError
        With the place that is wrong.
    """
    members = _members(value, "the file")
    schema = str(members.pop("schema", None))
    found = re.fullmatch(re.escape(_SCHEMA) + r"([1-9][0-9]{0,3})", schema)
    if found is None:
        raise ValueError(f'"schema" is {printable(schema)[:60]!r}, not "{_SCHEMA}{VERSION}"')
    if int(found[1]) > VERSION:
        raise ValueError(f"its version is {found[1]}, and this ggplan reads versions up to {VERSION}")
    for version in range(int(found[1]), VERSION):
        members = _MIGRATIONS[version](members)
    record: r.Record = _parsed(r.Record, members, "the file")
    _check_unique("are named", [q.name for q in record.quantizations])
    _check_unique("have the digest", [q.file.sha256 for q in record.quantizations if q.file.sha256])
    return record


def _check_unique(what: str, values: list[str]) -> None:
    twice = next((value for value, count in Counter(values).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two quantizations {what} {printable(twice)!r}")


# Migrations get JSON objects whose form is not checked yet. They leave unexpected values to the reader.


def _to_2(record: dict[str, Any]) -> dict[str, Any]:
    """Name the metrics of KL divergence as charts do."""
    new_names = {"kld_mean": "kld", "kld_90": "kld90", "kld_99": "kld99", "kld_999": "kld999"}

    def renamed(measurement: dict[str, Any]) -> dict[str, Any]:
        metrics = measurement.get("metrics")
        if not isinstance(metrics, dict):
            return measurement
        return measurement | {"metrics": {new_names.get(name, name): v for name, v in metrics.items()}}

    return _with_measurements(record, renamed)


def _to_3(record: dict[str, Any]) -> dict[str, Any]:
    """Identify bases by digests, and join the entries of one file under two names."""
    digests = {str(q.get("name")): _digest(q) for q in _objects(record, "quantizations")}

    def with_base(measurement: dict[str, Any]) -> dict[str, Any]:
        name = measurement.get("base")
        if not isinstance(name, str):
            return measurement
        known = {"name": name, "sha256": digests.get(name, "")}
        return measurement | {"base": {key: value for key, value in known.items() if value}}

    record = _with_measurements(record, with_base)
    quantizations = list(_objects(record, "quantizations"))
    known = [d for d in map(_digest, quantizations) if d]
    if len(set(known)) == len(known) or len(quantizations) < len(record["quantizations"]):
        return record
    merged: dict[object, dict[str, Any]] = {}
    for i, q in enumerate(quantizations):
        merged[_digest(q) or i] = _joined(merged.get(_digest(q), {}), q)
    return record | {"quantizations": list(merged.values())}


def _digest(quantization: dict[str, Any]) -> str:
    file = quantization.get("file")
    digest = file.get("sha256") if isinstance(file, dict) else ""
    return digest if isinstance(digest, str) else ""


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One quantization from two entries; of equal conditions, the later entry's measurement is kept."""
    lists: dict[str, Any] = {}
    for key, facts in (
        ("measurements", ("text", "n_ctx", "n_chunks", "engine", "build", "base")),
        ("speeds", ("n_kv", "engine", "build", "hardware")),
    ):
        entries = [*_objects(old, key), *_objects(new, key)]
        by_conditions = {json.dumps([e.get(f) for f in facts], sort_keys=True): e for e in entries}
        lists |= {key: list(by_conditions.values())} if entries else {}
    return new | old | lists


def _objects(parent: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    items = parent.get(key)
    return (item for item in (items if isinstance(items, list) else ()) if isinstance(item, dict))


def _with_measurements(
    record: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The record with every measurement changed."""

    def each(items: Any, of: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
        return [of(i) if isinstance(i, dict) else i for i in items] if isinstance(items, list) else items

    def changed(q: dict[str, Any]) -> dict[str, Any]:
        return q | {"measurements": each(q["measurements"], change)} if "measurements" in q else q

    if "quantizations" not in record:
        return record
    return record | {"quantizations": each(record["quantizations"], changed)}


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2, 2: _to_3}


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
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= r.MAX_COUNT:
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


def _list_of(parse_item: Callable[[object, str], Any]) -> Callable[[object, str], tuple[Any, ...]]:
    def parse(value: object, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{place} is not a list")
        return tuple(parse_item(item, f"{place}[{i}]") for i, item in enumerate(value))

    return parse


def _object_of(kind: type) -> Callable[[object, str], Any]:
    return lambda value, place: _parsed(kind, value, place)


def _metrics(value: object, place: str) -> dict[str, r.Metric]:
    members = _members(value, place)
    unknown = next((name for name in members if name not in r.METRICS), None)
    if unknown is not None:
        raise ValueError(f"{place} has an unknown metric {printable(unknown)[:60]!r}")
    return {name: _parsed(r.Metric, v, f"{place}.{name}") for name, v in members.items()}


# How a field is read, by its type as the dataclass writes it.
_PARSERS: dict[str, Callable[[object, str], Any]] = {
    "str": _text,
    "int": _count,
    "float": _number,
    "float | None": _maybe_number,
    "Use": _one_of(*get_args(r.Use)),
    "ErrorMethod": _one_of(*get_args(r.ErrorMethod)),
    "Mapping[str, Metric]": _metrics,
    "tuple[str, ...]": _list_of(_text),
    **{f"tuple[{c.__name__}, ...]": _list_of(_object_of(c))
       for c in (r.Quantization, r.Part, r.Measurement, r.Speed)},
    **{c.__name__: _object_of(c) for c in (r.ModelFacts, r.FileFacts, r.RecipeFacts, r.Text, r.Base)},
}  # fmt: skip


def _members(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is not an object")
    return dict(value)


def _parsed(kind: type, value: object, place: str) -> Any:
    """A dataclass from JSON, every field checked."""
    members = _members(value, place)
    arguments = {}
    for f in dataclasses.fields(kind):
        if f.name in members:
            arguments[f.name] = _PARSERS[str(f.type)](members.pop(f.name), f"{place}.{f.name}")
        elif f.default is dataclasses.MISSING:
            raise ValueError(f'{place} has no "{f.name}"')
    if members:
        raise ValueError(f"{place} has an unknown key {printable(next(iter(members)))[:60]!r}")
    return kind(**arguments)


_SCALARS: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer", "minimum": 0},
    "float": {"type": "number"},
    "float | None": {"type": ["number", "null"]},
    "ErrorMethod": {"enum": list(get_args(r.ErrorMethod))},
    "Use": {"enum": list(get_args(r.Use))},
}


def record_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the files that `save_record` writes."""
    schema = _object_schema(r.Record)
    schema["properties"] = {"schema": {"const": f"{_SCHEMA}{VERSION}"}, **schema["properties"]}
    schema["required"] = ["schema", *schema["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Quantizations of one model: their files, what they lose, how fast they are",
        **schema,
    }


def _object_schema(kind: type) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    return {
        "type": "object",
        "description": (kind.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip(),
        "properties": {f.name: _value_schema(str(f.type)) for f in fields},
        "required": needed,
        "additionalProperties": False,
    }


def _value_schema(annotation: str) -> dict[str, Any]:
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if annotation.startswith("tuple["):
        item = annotation.removeprefix("tuple[").removesuffix(", ...]")
        return {"type": "array", "items": _value_schema(item)}
    if annotation == "Mapping[str, Metric]":
        metric = _object_schema(r.Metric)
        described = {name: {**metric, "description": words} for name, words in r.METRICS.items()}
        return {"type": "object", "properties": described, "additionalProperties": False}
    return _object_schema(getattr(r, annotation))
