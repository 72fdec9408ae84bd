"""The record of probes: one JSON file a model, with all that a recipe needs, so that the engine is not.

    {
      "schema": "ggplan.probes/1",
      "model": {"name": "GLM-4.5-Air", "architecture": "glm4moe", "tensors": "SHA-256", "weights": "SHA-256"},
      "conditions": {
        "engine": "llama-perplexity", "build": "...", "n_ctx": 512, "n_chunks": 16, "base": "",
        "texts": [{"name": "a.txt", "sha256": "..."}], "imatrix": "SHA-256"
      },
      "probes": [{"name": "ffn_down_exps 0-15", "errors": {"blk.0.ffn_down_exps.weight": 0.069},
                  "sha256": "of its files"}],
      "errors": {"blk.0.ffn_down_exps.weight": {"q4_K": 0.0048}},
      "measured": {"schema": "ggplan.record/3", ...}
    }

The figures are an ordinary record of `ggplan measure`, in "measured". A probe belongs to its figures by the
digest of its files; while it has none, it is still to be measured. All probes of a record have the same
conditions, for their figures are compared.

`tensors` is the digest of all names and shapes, `weights` that of some rows of each tensor as float32: a
checkpoint and its bf16 GGUF file have the same. It is "" where there were no weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ggplan.allocation.probes import Probe, Probes
from ggplan.errors import MeasureError
from ggplan.measure import Measurement, Record
from ggplan.measure.outputs import write_whole
from ggplan.measure.record import Text
from ggplan.measure.record_json import record_from_json, record_to_json
from ggplan.model import Model
from ggplan.substitutes import read_limited
from ggplan.text import decode_text, printable

SCHEMA = "ggplan.probes/1"
ALL_TENSORS = "all"
"""The name of the probe of all tensors."""
_MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model was probed: see the module's docstring."""

    name: str
    architecture: str
    tensors: str
    weights: str


@dataclass(frozen=True, slots=True)
class ProbeConditions:
    """What all probes of a record have in common.

    Attributes
    ----------
    engine, build
        As in measurements; the engine with the options that it is given.
    n_ctx, n_chunks
        Tokens of a chunk, and how many chunks of each text at most.
    base
        The type of the base; "" for the model's own types.
    texts
        Each with its digest.
    imatrix
        The digest of the imatrix's file; "" without one.
    """

    engine: str
    build: str
    n_ctx: int
    n_chunks: int
    base: str
    texts: tuple[Text, ...]
    imatrix: str


@dataclass(frozen=True, slots=True)
class ProbeEntry:
    """A probe: its name, the errors of its tensors, and the digest of its files once it is measured."""

    name: str
    errors: Mapping[str, float]
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """A record of probes; its parts are those of the JSON."""

    model: Identity
    conditions: ProbeConditions
    probes: tuple[ProbeEntry, ...]
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measured: Record | None = None

    def measurements(self, entry: ProbeEntry) -> tuple[Measurement, ...]:
        """The figures of a probe, one for each text that it was measured on."""
        if not entry.sha256 or self.measured is None:
            return ()
        known = {text.sha256 for text in self.conditions.texts}
        return tuple(
            m
            for q in self.measured.quantizations
            if q.file.sha256 == entry.sha256
            for m in q.measurements
            if m.text.sha256 in known
        )

    def is_complete(self, entry: ProbeEntry) -> bool:
        """Whether a probe was measured on every text."""
        return len(self.measurements(entry)) == len(self.conditions.texts)

    def with_digest(self, name: str, sha256: str) -> ProbeRecord:
        """The record with the digest of the files of a probe."""
        entries = tuple(replace(p, sha256=sha256) if p.name == name else p for p in self.probes)
        return replace(self, probes=entries)

    def as_probes(self, name: str) -> Probes:
        """What the complete probes tell; `name` is what the record is called."""
        done = [self._probe(p) for p in self.probes if self.is_complete(p)]
        whole = next((p for p in done if p.name == ALL_TENSORS), None)
        groups = tuple(p for p in done if p is not whole)
        texts = ", ".join(printable(text.name) for text in self.conditions.texts)
        source = f"{len(groups)} probes by {printable(self.conditions.engine)} on {texts} ({printable(name)})"
        return Probes(groups, whole, source, self.errors)

    def _probe(self, entry: ProbeEntry) -> Probe:
        """The mean of the texts, by tokens."""
        found = [(m.metrics.get("kld"), m.n_tokens - m.n_nan) for m in self.measurements(entry)]
        total = sum(n for _, n in found)
        if not total or any(metric is None for metric, _ in found):
            return Probe(entry.name, entry.errors, math.nan, math.nan)
        figures = [(metric, n / total) for metric, n in found if metric is not None]
        kld = sum(part * metric.value for metric, part in figures)
        errors = [math.nan if metric.error is None else part * metric.error for metric, part in figures]
        return Probe(entry.name, entry.errors, kld, math.hypot(*errors))


def identity_of(model: Model) -> Identity:
    """Which model this is.

    Raises
    ------
    CheckpointError
        If rows cannot be read.
    """
    tensors, weights = hashlib.sha256(), hashlib.sha256()
    has_weights = False
    for tensor in sorted(model.tensors, key=lambda t: t.name):
        head = f"{tensor.name} {list(tensor.shape)}\n".encode()
        tensors.update(head)
        if tensor.rows is not None and tensor.n_rows:
            has_weights = True
            weights.update(head)
            for number in sorted({0, tensor.n_rows // 2, tensor.n_rows - 1}):
                start = number - number % tensor.rows.dtype.row_group
                rows = tensor.rows.read_float32(start, start + tensor.rows.dtype.row_group)
                weights.update(rows.astype("<f4").tobytes())
    found = model.metadata.get("general.name")
    name = found.decode() if found is not None else ""
    return Identity(
        name if isinstance(name, str) and name else model.path.name,
        model.architecture, tensors.hexdigest(), weights.hexdigest() if has_weights else "",
    )  # fmt: skip


def tensors_digest(model: Model) -> str:
    """`Identity.tensors` of a model, without reading a weight."""
    digest = hashlib.sha256()
    for tensor in sorted(model.tensors, key=lambda t: t.name):
        digest.update(f"{tensor.name} {list(tensor.shape)}\n".encode())
    return digest.hexdigest()


def save_probes(record: ProbeRecord, path: Path) -> None:
    """Write a record; one of this name is replaced as a whole.

    Raises
    ------
    MeasureError
        If it cannot be written.
    """
    members = {
        "schema": SCHEMA,
        "model": asdict(record.model),
        "conditions": asdict(record.conditions),
        "probes": [asdict(p) for p in record.probes],
        "errors": record.errors,
        "measured": None if record.measured is None else record_to_json(record.measured),
    }
    text = json.dumps(members, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode("utf-8", "backslashreplace"))


def load_probes(path: str | Path) -> ProbeRecord:
    """Read a record of probes.

    Raises
    ------
    MeasureError
        If the file cannot be read or is no such record; the message has the place in it.
    """
    raw = read_limited(path, _MAX_BYTES, "record of probes", MeasureError)
    try:
        return _record(json.loads(decode_text(raw, "strict")))
    except (ValueError, RecursionError) as error:
        raise MeasureError(
            f"{printable(str(path))} is no record of probes: {printable(str(error))}",
            hint="`ggplan optimize --probe` writes one",
        ) from error


def _record(value: object) -> ProbeRecord:
    top = _object(value, "the file", {"schema", "model", "conditions", "probes", "errors", "measured"})
    if top["schema"] != SCHEMA:
        raise ValueError(f'"schema" is {str(top["schema"])[:60]!r}, not "{SCHEMA}"')
    names = ("name", "architecture", "tensors", "weights")
    model = _object(top["model"], "model", set(names))
    asked = _object(
        top["conditions"], "conditions", {"engine", "build", "n_ctx", "n_chunks", "base", "texts", "imatrix"}
    )
    texts = [_object(t, "texts", {"name", "sha256"}) for t in _list(asked["texts"], "texts")]
    conditions = ProbeConditions(
        _text(asked["engine"], "engine"), _text(asked["build"], "build"),
        _count(asked["n_ctx"], "n_ctx"), _count(asked["n_chunks"], "n_chunks"), _text(asked["base"], "base"),
        tuple(Text(_text(t["name"], "texts"), _text(t["sha256"], "texts")) for t in texts),
        _text(asked["imatrix"], "imatrix"),
    )  # fmt: skip
    probes = tuple(_entries(_list(top["probes"], "probes")))
    errors = {
        name: _numbers(types, f"errors of {name}")
        for name, types in _object(top["errors"], "errors", None).items()
    }
    measured = None if top["measured"] is None else record_from_json(top["measured"])
    return ProbeRecord(
        Identity(*(_text(model[name], name) for name in names)), conditions, probes, errors, measured
    )


def _entries(values: list[Any]) -> Iterator[ProbeEntry]:
    seen: set[str] = set()
    for value in values:
        own = _object(value, "probes", {"name", "errors", "sha256"})
        name = _text(own["name"], "name")
        if name in seen:
            raise ValueError(f"two probes are called {name!r}")
        seen.add(name)
        yield ProbeEntry(name, _numbers(own["errors"], f"errors of {name}"), _text(own["sha256"], "sha256"))


def _object(value: object, place: str, keys: set[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no object")
    if keys is not None and value.keys() != keys:
        odd = sorted(value.keys() ^ keys)[0]
        raise ValueError(f"{place} {'has no' if odd in keys else 'has an unknown'} {odd!r}")
    return value


def _list(value: object, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{place} is no list")
    return value


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place} is no text")
    return value


def _count(value: object, place: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{place} is no number above 0")
    return value


def _numbers(value: object, place: str) -> dict[str, float]:
    found = _object(value, place, None)
    for number in found.values():
        if type(number) not in (int, float) or not 0 <= number < math.inf:
            raise ValueError(f"{place}: {str(number)[:40]} is no relative error")
    return {name: float(number) for name, number in found.items()}
