"""Logs of earlier runs and published tables of any known kind, as records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ggplan.errors import MeasureError
from ggplan.measure import logs, tables
from ggplan.measure.record import FileFacts, Measurement, ModelFacts, Quantization, Record, Text, merge
from ggplan.measure.record_json import is_record, record_from_json
from ggplan.text import printable

_MAX_BYTES = 256 << 20
_UNNAMED = "unnamed model"
_TOOLS = re.compile(r"^(?:perplexity|ppl|kld|sweep-bench|llama-bench|bench)[._-]", re.IGNORECASE)


def parse_files(
    paths: Sequence[Path], *, model_name: str | None = None, text: Text = tables.UNKNOWN_TEXT
) -> list[Record]:
    """Read logs of llama-perplexity, llama-bench and sweep-bench, model cards and published tables.

    Parameters
    ----------
    model_name
        The model of files that do not name one; of a database of several models, the one to take.
    text
        The text that llama-perplexity was run on; its log does not name it.

    Returns
    -------
    One record for each model that is named.

    Raises
    ------
    MeasureError
        If a file is none of these, or damaged.
    """
    records: dict[str, Record] = {}
    for path in paths:
        shown = printable(str(path))
        try:
            found = _parse_file(path, text)
        except MeasureError as error:
            raise MeasureError(f"{shown}: {error.message}", hint=error.hint) from None
        if isinstance(found, Record):
            _add(records, found)
            continue
        by_model: dict[str, list[Quantization]] = {}
        for item in found:
            by_model.setdefault(item.model or model_name or _UNNAMED, []).append(item.quantization)
        for model, quantizations in by_model.items():
            _add(records, Record(ModelFacts(model), _uniquely_named(quantizations)))
    if model_name in records:
        return [records[model_name]]
    return list(records.values())


def _add(records: dict[str, Record], new: Record) -> None:
    old = records.get(new.model.name)
    records[new.model.name] = merge(old, new) if old else new


def _parse_file(path: Path, text: Text) -> Record | list[tables.Published]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise MeasureError(f"cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_BYTES:
        raise MeasureError(f"is larger than any log ({_MAX_BYTES >> 20} MiB)")
    content = raw.decode("utf-8", "replace").replace("\r\n", "\n")
    if content.lstrip().startswith(("{", "[")):
        value = tables.chart_data_of(content)
        if is_record(value):
            try:
                return record_from_json(value)
            except ValueError as error:
                raise MeasureError(str(error)) from None
        if value is not None and not _is_benchmark(value):
            return list(tables.parse_chart_data(value))
    found = _published(content, path) or _benchmarks(content, path)
    if logs.is_perplexity_log(content) and not found:
        found = [_perplexity(content, path, text)]
    if not found:
        raise MeasureError(
            "is no log or table that ggplan knows",
            hint="it reads llama-perplexity, llama-bench, llama-sweep-bench, model cards and Thireus' tables",
        )
    return found


def _is_benchmark(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(i, dict) and ("avg_ts" in i or "speed_pp" in i) for i in items)


def _published(content: str, path: Path) -> list[tables.Published]:
    if tables.is_thireus_csv(content):
        return list(tables.parse_thireus_csv(content, path.stem))
    if tables.is_thireus_database(content):
        return list(tables.parse_thireus_database(content))
    return list(tables.parse_model_card(content)) if tables.is_model_card(content) else []


def _benchmarks(content: str, path: Path) -> list[tables.Published]:
    sweep = logs.parse_sweep_bench(content)
    if sweep:
        quantization = Quantization(_name_of(path.stem), speeds=logs.merge_speeds(sweep))
        return [tables.Published(logs.model_name_in(content), quantization)]
    by_model: dict[tuple[str, int], list[logs.NamedSpeed]] = {}
    for named in logs.parse_llama_bench(content):
        by_model.setdefault((named.model, named.n_bytes), []).append(named)
    return [
        tables.Published(
            "",
            Quantization(
                _name_of(Path(model).name) or _name_of(path.stem),
                FileFacts(n_bytes=n_bytes),
                speeds=logs.merge_speeds([named.speed for named in speeds]),
            ),
        )
        for (model, n_bytes), speeds in by_model.items()
    ]


def _perplexity(content: str, path: Path, text: Text) -> tables.Published:
    quality = logs.parse_perplexity_log(content)
    measurement = Measurement(
        text, quality.n_ctx, quality.n_chunks, quality.n_tokens, "llama-perplexity", quality.metrics,
        build=quality.build,
    )  # fmt: skip
    file = Path(quality.model_file).name
    name = _name_of(file or path.stem)
    quantization = Quantization(name, FileFacts(file), measurements=(measurement,))
    return tables.Published(logs.model_name_in(content), quantization)


def _name_of(stem: str) -> str:
    """`kld.glm4moe-tiny.Q4_K_M` and `glm4moe-tiny.Q4_K_M.gguf` → `glm4moe-tiny.Q4_K_M`."""
    return _TOOLS.sub("", stem.removesuffix(".gguf"))


def _uniquely_named(quantizations: Iterable[Quantization]) -> tuple[Quantization, ...]:
    """Quantizations with different names: author, bits per weight or a number are added to equal ones."""
    taken: dict[str, Quantization] = {}
    for q in quantizations:
        more = [f" ({q.author})" if q.author else "", f" {q.bpw:g}" if q.bpw else ""]
        names = [q.name, q.name + more[0], q.name + "".join(more)]
        names += [f"{names[-1]} #{i}" for i in range(2, len(taken) + 3)]
        name = next(n for n in names if n not in taken)
        taken[name] = replace(q, name=name)
    return tuple(taken.values())
