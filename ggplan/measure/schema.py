"""The record's JSON schema, read off its dataclasses so that the two cannot part ways."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from ggplan.measure import record as r

_SCALARS: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer", "minimum": 0},
    "float": {"type": "number"},
    "float | None": {"type": ["number", "null"]},
    "ErrorMethod": {"enum": list(get_args(r.ErrorMethod))},
    "Use": {"enum": list(get_args(r.Use))},
}


def record_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of the files that `save_record` writes."""
    schema = _object(r.Record)
    schema["properties"] = {"schema": {"const": r.SCHEMA}, **schema["properties"]}
    schema["required"] = ["schema", *schema["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Quantizations of one model: their files, what they lose, how fast they are",
        **schema,
    }


def _object(kind: type) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    return {
        "type": "object",
        "description": (kind.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip(),
        "properties": {f.name: _value(str(f.type)) for f in fields},
        "required": needed,
        "additionalProperties": False,
    }


def _value(annotation: str) -> dict[str, Any]:
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if annotation.startswith("tuple["):
        return {"type": "array", "items": _value(annotation.removeprefix("tuple[").removesuffix(", ...]"))}
    if annotation == "Mapping[str, Metric]":
        metric = _object(r.Metric)
        described = {name: {**metric, "description": words} for name, words in r.METRICS.items()}
        return {"type": "object", "properties": described, "additionalProperties": False}
    return _object(getattr(r, annotation))
