"""Figures of records on the terminal: tables of quality and of speed, ties and disagreements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggplan.measure import Measurement, MeasureResult, Metric, Quantization, Record
    from ggplan.measure.record import Speed

_SHOWN_DEPTHS = 4


def print_record(record: Record) -> None:
    """A table for each text (and context, engine) that something was measured on, the largest file first, and
    one of speeds.
    """
    from ggplan.cli.output import print_table
    from ggplan.measure.record import quantizations_by_size, text_names
    from ggplan.text import printable

    texts = text_names(record)
    groups: dict[tuple[object, ...], list[tuple[Quantization, Measurement]]] = {}
    for quantization in quantizations_by_size(record.quantizations):
        for measurement in quantization.measurements:
            groups.setdefault(measurement.conditions, []).append((quantization, measurement))
    for rows in groups.values():
        first = rows[0][1]
        use = f" ({first.use})" if first.use else ""
        shape = (
            f"{first.n_chunks} × {first.n_ctx} tokens, {first.n_tokens:,} scored" if first.n_tokens else ""
        )
        facts = [f"{texts[first.text]}{use}", shape, " ".join((first.engine, first.build)).strip()]
        title = f"{record.model.name} on " + ", ".join(printable(fact) for fact in facts if fact)
        columns = [c for c in _COLUMNS if any(c[1](q, m) for q, m in rows)]
        print_table(
            [(heading, "left" if heading == "name" else "right") for heading, _ in columns],
            ([cell(q, m) for _, cell in columns] for q, m in rows),
            title,
            least=("RMS Δp %", "same top %", "bpw", "99 % KLD", "ΔPPL %", "size"),
        )
        if len(rows) > 1 and any(m.n_nan for _, m in rows):
            click.echo(
                "note: a file's figures leave its NaN tokens out,"
                " so figures of two files may be over different tokens"
            )
    if any(q.speeds for q in record.quantizations):
        _print_speeds(record)


def _print_speeds(record: Record) -> None:
    """Tokens per second at some depths of each quantization, the first and the last among them."""
    from ggplan.cli.output import print_table
    from ggplan.text import printable

    rows = []
    for quantization in record.quantizations:
        speeds = sorted(quantization.speeds, key=lambda s: s.n_kv)
        for engine in dict.fromkeys((s.engine, s.build, s.hardware) for s in speeds):
            own = [s for s in speeds if (s.engine, s.build, s.hardware) == engine]
            for speed in _some(own):
                rate = [f"{r:.2f}" if r is not None else "" for r in (speed.pp, speed.tg)]
                name = quantization.name if speed is own[0] else ""
                rows.append([name, speed.engine, f"{speed.n_kv:,}", *rate])
    columns = [("name", "left"), ("engine", "left"), ("tokens in cache", "right")]
    columns += [("reading t/s", "right"), ("writing t/s", "right")]
    print_table(columns, rows, f"{printable(record.model.name)}: tokens per second", least=("engine",))


def _some(speeds: list[Speed]) -> list[Speed]:
    if len(speeds) <= _SHOWN_DEPTHS:
        return speeds
    last = len(speeds) - 1
    places = [round(i * last / (_SHOWN_DEPTHS - 1)) for i in range(_SHOWN_DEPTHS)]
    return [speeds[place] for place in places]


def _size(quantization: Quantization, _: Measurement) -> str:
    from ggplan.text import format_bytes

    return format_bytes(quantization.file.n_bytes) if quantization.file.n_bytes else ""


def _delta_percent(_: Quantization, measurement: Measurement) -> str:
    change = measurement.metrics.get("delta_ln_ppl")
    if change is None:
        return ""
    ratio = math.exp(change.value)
    value = f"{100 * (ratio - 1):+.2f}"
    return value if change.error is None else f"{value} ± {100 * ratio * change.error:.2f}"


def _metric(name: str, scale: float, digits: int) -> Callable[[Quantization, Measurement], str]:
    def cell(_: Quantization, measurement: Measurement) -> str:
        metric = measurement.metrics.get(name)
        return "" if metric is None else _with_error(metric, scale, digits)

    return cell


def _with_error(metric: Metric, scale: float, digits: int) -> str:
    value = f"{scale * metric.value:.{digits}f}"
    return value if metric.error is None else f"{value} ± {scale * metric.error:.{digits}f}"


_COLUMNS: tuple[tuple[str, Callable[[Quantization, Measurement], str]], ...] = (
    ("name", lambda q, _: q.name),
    ("size", _size),
    ("bpw", lambda q, _: f"{q.bpw:.3f}" if q.bpw else ""),
    ("PPL", _metric("ppl", 1, 4)),
    ("ΔPPL %", _delta_percent),
    ("KLD", _metric("kld", 1, 5)),
    ("99 % KLD", _metric("kld99", 1, 4)),
    ("RMS Δp %", _metric("delta_p_rms", 100, 2)),
    ("same top %", _metric("same_top", 100, 2)),
    ("NaN tokens", lambda _, m: f"{m.n_nan:,}" if m.n_nan else ""),
)


def print_guards(result: MeasureResult) -> None:
    """Print ties and disagreements, which must be known before one mix is called better."""
    from ggplan.measure import disagreements, ties
    from ggplan.text import printable

    for tie in ties(result.record.quantizations, result.scores_of):
        click.echo(
            f"note: {printable(tie.first)} and {printable(tie.second)} are a tie on"
            f" {printable(tie.measurement.text.name)}: they differ by less than one standard error"
        )
    for found in disagreements(result.record.quantizations, result.scores_of):
        how = "" if found.certain else ", though not by two standard errors"
        click.echo(
            f"warning: {printable(found.better_chosen)} wins on the text of choice, but"
            f" {printable(found.better_held_out)} on the held-out one{how}:"
            " the choice may be tuned to the text"
        )
