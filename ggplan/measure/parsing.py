"""Logs of earlier runs and published tables of any known kind, as records.

Each run and each row is an entry of its own, named by what stands before it: a heading, a command line, the
file that the loader opened. What names nothing is called after its file. Entries of several files become one
only if they do not measure the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ggplan import standard_input
from ggplan.errors import MeasureError
from ggplan.measure import logs, tables
from ggplan.measure.entries import Entry, Known, joined_runs
from ggplan.measure.log_lines import base_name, folder_of, without_ending
from ggplan.measure.log_runs import Log, Run
from ggplan.measure.prefixes import without_prefixes
from ggplan.measure.record import (
    UNNAMED,
    FileFacts,
    Measurement,
    Quantization,
    Record,
    Text,
    begin_merge,
)
from ggplan.measure.record_json import is_record, record_from_json
from ggplan.measure.table_rows import UNKNOWN_TEXT, unread_words
from ggplan.substitutes import find_substitute, read_limited
from ggplan.text import decode_text, nearest, printable

_MAX_BYTES = 256 << 20
_TOOLS = re.compile(r"^(?:perplexity|ppl|kld|sweep-bench|llama-bench|bench)[._-]", re.IGNORECASE)
_SHOWN = 6
_FIRST_LINES, _LONGEST = 200, 2000
_SENSITIVITIES = re.compile(r"""\s*"?(?:QTYPE|tensor|model)"?\s*[,;\t]""", re.IGNORECASE)
_FIGURES = re.compile(r"\b(?:ppl|perplexity|kld)\b", re.IGNORECASE)

Note = Callable[[str], None]
"""Called with a sentence about something that was read but is not in the records."""


def parse_files(
    paths: str | Path | Sequence[str | Path],
    *,
    model_name: str | None = None,
    text: Text = UNKNOWN_TEXT,
    note: Note | None = None,
) -> list[Record]:
    """Read logs of llama-perplexity, llama-bench and sweep-bench, model cards and published tables.

    Parameters
    ----------
    paths
        The files; "-" is standard input.
    model_name
        The model's name in the record, whatever a file calls it; of a file of several models, the one to
        take.
    text
        The text that llama-perplexity was run on; its log names it only where the command line is part of it.
    note
        Called with what is left out and why: a run without a result, a row without a figure.

    Returns
    -------
    One record for each model that is named.

    Raises
    ------
    MeasureError
        If a file is none of these, damaged, or has no result.
    """
    known = Known()
    for given in [paths] if isinstance(paths, str | Path) else paths:
        is_input = given == standard_input.NAME
        path = Path("stdin" if is_input else given)
        _read(path, text, model_name, note, known, is_input=is_input)
    return [merging.record() for merging in known.records.values()]


def _read(
    path: Path, text: Text, model_name: str | None, note: Note | None, known: Known, *, is_input: bool
) -> None:
    """Add the records that a file, or standard input, gives to those known."""
    shown = standard_input.SHOWN if is_input else printable(str(path))

    def told(said: str) -> None:
        if note is not None:
            note(f"{shown}: {said}")

    if is_input:
        raw = standard_input.read_standard_input(_MAX_BYTES, MeasureError)
        if (other := find_substitute(raw, path)) is not None:
            raise MeasureError(f"{shown} is {other.what}", hint=other.hint)
    else:
        raw = read_limited(path, _MAX_BYTES, "log", MeasureError)
    try:
        found = _parse(raw, path, text, told)
        if isinstance(found, Record):
            model = replace(found.model, name=model_name or found.model.name)
            known.add(replace(found, model=model))
            return
        for name, entries in _by_model(found, model_name, told).items():
            known.add_entries(name or UNNAMED, joined_runs(entries, told), path.stem, told)
    except MeasureError as error:
        raise MeasureError(f"{shown}: {error.message}", hint=error.hint) from None


def _parse(raw: bytes, path: Path, text: Text, told: Note) -> Record | list[Entry]:
    """What the bytes of a file hold."""
    content = without_prefixes(decode_text(raw))
    if content.lstrip().startswith(("{", "[")) and (found := _json(content, told)) is not None:
        return found
    table: tables.TableRows | None = None
    if tables.is_record_csv(content):
        table = tables.parse_record_csv(content)
    elif tables.is_results_csv(content):
        table = tables.parse_results_csv(content, path.stem)
    elif tables.is_thireus_database(content):
        table = tables.parse_thireus_database(content)
    if table is not None:
        return _entries_of(table, told)
    log = logs.read_log(content)
    if not log.runs:
        raise _nothing(content, log, printable(str(path)))
    for left in log.left_out:
        told(f"line {left.line}: {left.why}; it is left out")
    entries = [_entry(run, path, text) for run in log.runs]
    unnamed = [str(e.line) for e in entries if not e.is_named]
    if len(unnamed) > 1:
        more = ", …" if len(unnamed) > _SHOWN else ""
        told(
            f"{len(unnamed)} runs name no file (lines {', '.join(unnamed[:_SHOWN])}{more});"
            " they are called after this one and numbered"
        )
    return entries


def _entries_of(table: tables.TableRows, told: Note) -> list[Entry]:
    """The entries of a table, after telling what is left out of it."""
    if table.unread:
        where = f"line {table.line}: " if table.line else ""
        told(f"{where}{unread_words(table.unread)}; it is left out")
    for at, why in table.left_out:
        told(f"{table.place} {at}: {why}; the {'row' if table.place == 'line' else 'point'} is left out")
    for at, what in table.cells_left_out:
        told(f"{table.place} {at}: {what}; it is left out")
    if not table.rows:
        raise MeasureError("no row of the table has a figure")
    return [Entry(p.model, p.quantization, line=p.line) for p in table.rows]


def _json(content: str, told: Note) -> Record | list[Entry] | None:
    """The records, points or tests that a text of JSON holds; None of a text of JSON lines."""
    values = tables.json_documents(content)
    if values and all(map(is_record, values)):
        try:
            first, *others = map(record_from_json, values)
            merging = begin_merge(first)
        except ValueError as error:
            raise MeasureError(str(error)) from None
        for other in others:
            merging.add(other)
        return merging.record()
    if len(values) != 1 or _is_benchmark(values[0]):
        return None
    return _entries_of(tables.parse_chart_data(values[0]), told)


def _is_benchmark(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(isinstance(i, dict) and ("avg_ts" in i or "speed_pp" in i) for i in items)


def _nothing(content: str, log: Log, shown: str) -> MeasureError:
    """Why a text has no result."""
    rerun = "run it again, or leave the file out"
    if len(log.left_out) == 1:
        return MeasureError(f"line {log.left_out[0].line}: {log.left_out[0].why}", hint=rerun)
    if log.left_out:
        named = "; ".join(f"line {left.line}: {left.why}" for left in log.left_out[:_SHOWN])
        return MeasureError(f"none of its {len(log.left_out)} runs has a result: {named}", hint=rerun)
    if log.is_of_llama_cpp:
        return MeasureError("is a log of llama.cpp that ends before any result", hint=rerun)
    if _SENSITIVITIES.match(tables.first_line(content)):
        return MeasureError(
            "is a table without results of whole files, as tables of sensitivities are",
            hint=f"`ggplan inspect {shown}` shows it",
        )
    if missing := _lacking(content):
        return MeasureError(
            missing, hint="a table has a row for each file, and columns like quant, size, PPL, mean KLD"
        )
    return MeasureError(
        "is no log or table that ggplan knows",
        hint="it reads logs of llama-perplexity, llama-bench and llama-sweep-bench, model cards, and tables"
        " (markdown, CSV, tabs or `;`) with a row for each file: a column of names (quant, name, file) and"
        " one of figures (PPL, mean KLD); Thireus' tables are such",
    )


def _lacking(content: str) -> str:
    """What a table lacks that has a heading of figures in its first lines, or ""."""
    for number, line in enumerate(content.split("\n")[:_FIRST_LINES], 1):
        row = line.strip().strip("|").split("|") if "|" in line else tables.cells_of(line)
        cells = [cell.strip() for cell in row]
        named = [printable(cell)[:40] for cell in cells if _FIGURES.search(cell)]
        if len(cells) < 2 or not named or len(line) > _LONGEST:
            continue
        what = f"line {number}: a table"
        if cells[0] in named:
            return f"{what} with {cells[0]} in a row and a column for each file, not the other way round"
        if len(named) > 1:
            return f"{what} with several columns of figures ({', '.join(named)}), none of them known"
        return f"{what} without a column of names that is known, or without one of figures"
    return ""


def _entry(run: Run, path: Path, text: Text) -> Entry:
    """The entry of a run in a text."""
    if run.row is not None:
        return Entry(run.facts.model, run.row, line=run.line)
    facts, quality = run.facts, run.quality
    is_path = run.name.endswith(".gguf")
    file = base_name(run.name) if is_path else facts.file
    name = facts.name or _name_of(run.name) or without_ending(file)
    measurements: tuple[Measurement, ...] = ()
    if quality is not None:
        on = Text(facts.text) if facts.text and text == UNKNOWN_TEXT else text
        # A card does not say by which engine.
        engine = "llama-perplexity" if run.is_log or not facts.name else ""
        measurements = (
            Measurement(
                on, quality.n_ctx, quality.n_chunks, quality.n_tokens, engine, quality.metrics,
                build=quality.build,
            ),
        )  # fmt: skip
    quantization = Quantization(
        (name or _name_of(path.stem)) + (f" ({run.settings})" if run.settings else ""),
        FileFacts(file, n_bytes=run.n_bytes or facts.n_bytes),
        facts.bpw,
        measurements=measurements,
        speeds=tuple(replace(s, build=s.build or facts.build) for s in run.speeds),
    )
    folder = folder_of(run.name) if is_path else facts.folder
    return Entry(facts.model, quantization, bool(name), run.line, is_run=True, folder=folder)


def _name_of(name: str) -> str:
    """`kld.glm4moe-tiny.Q4_K_M` and `m/glm4moe-tiny.Q4_K_M.gguf` → `glm4moe-tiny.Q4_K_M`."""
    return _TOOLS.sub("", without_ending(base_name(name) if name.endswith(".gguf") else name))


def _by_model(found: list[Entry], wanted: str | None, told: Note) -> dict[str, list[Entry]]:
    """The entries that a file gives, by model; with the name that was asked for."""
    by_model: dict[str, list[Entry]] = {}
    for entry in found:
        by_model.setdefault(entry.model, []).append(entry)
    named = [name for name in by_model if name]
    if wanted is not None and wanted in named and len(named) > 1:
        others = [name for name in named if name != wanted]
        verb = "are" if len(others) > 1 else "is"
        told(f"{_words(others)} {verb} left out, only {printable(wanted)} is taken")
        if "" in by_model:
            runs = _words([entry.quantization.name for entry in by_model[""]])
            told(f"{runs}: no model is named, so it is left out, only {printable(wanted)} is taken")
        return {wanted: by_model[wanted]}
    if wanted is not None and len(named) > 1:
        like = nearest(wanted, named)
        raise MeasureError(
            f"it is of several models ({_words(named)}), none of which is called {printable(wanted)}",
            hint=f"did you mean {printable(like)}?" if like else "",
        )
    if wanted is not None:
        for name in (name for name in named if name != wanted):
            told(f"its model {printable(name)} is recorded as {printable(wanted)}")
        return {wanted: found}
    if "" in by_model and len(named) == 1:
        # Runs of one model, of which not all logs name it.
        return {named[0]: found}
    return by_model


def _words(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more
