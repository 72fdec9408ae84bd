"""What `ggplan optimize` can answer besides a recipe: a whole curve, why, and what was wrong with another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import as_one

if TYPE_CHECKING:
    from ggplan.allocation.explaining import Explained, Step
    from ggplan.allocation.improving import Improved
    from ggplan.allocation.pareto import Curve

_MIN_POINTS, _MOST_POINTS = 2, 200
_CLOSE_POINTS = 15  # between fewer the curve is not straight enough to be read
_NAMES = 3  # patterns shown of one explanation


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """The values of `answer_options`."""

    improved: str | None
    explained: tuple[str, ...]
    pareto: bool
    n_points: int | None

    def check(self, output: str | None, *, verify: bool) -> None:
        """Refuse what does not go together."""
        if self.n_points is not None and not self.pareto:
            raise click.UsageError("--points is for --pareto")
        if not self.pareto:
            return
        for given, option in ((self.improved, "--from"), (self.explained, "--explain"), (verify, "--verify")):
            if given:
                raise click.UsageError(f"{option} is about one file, --pareto about all sizes")
        if output is not None and Path(output).suffix.lower() not in (".csv", ".json"):
            raise click.UsageError("-o of --pareto is a table: its name must end in .csv or .json")


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options as the argument `asked: AnswerOptions`."""
    command = as_one("asked", AnswerOptions)(command)
    for option in reversed(
        (
            click.option(
                "--from", "improved", metavar="RECIPE",
                help="Improve this recipe or mix, at its bytes and by its types unless others are given.",
            ),
            click.option(
                "--explain", "explained", multiple=True, metavar="TENSOR",
                help="Why a tensor (a name or a pattern) has its type, and what others would change, printed"
                " instead of the recipe. Can be repeated.",
            ),
            click.option(
                "--pareto", is_flag=True,
                help="The best files of all sizes and the stock mixes, instead of a recipe; -o for a table.",
            ),
            click.option(
                "--points", "n_points", type=click.IntRange(_MIN_POINTS, _MOST_POINTS), metavar="N",
                help="Sizes of --pareto [default: 20].",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def print_curve(curve: Curve, output: str | None, *, as_json: bool, force: bool, quiet: bool) -> None:
    """Write a curve as a table of a file's kind, and print it."""
    import json

    from ggplan.allocation.curve_files import curve_csv, curve_json
    from ggplan.cli.output import print_json, write_new

    if output is not None:
        is_csv = Path(output).suffix.lower() == ".csv"
        text = curve_csv(curve) if is_csv else json.dumps(curve_json(curve), indent=2) + "\n"
        write_new(text, output, force=force, quiet=quiet)
    if as_json:
        print_json(curve_json(curve))
    elif output is None or not quiet:
        _print_curve(curve)


def _print_curve(curve: Curve) -> None:
    from ggplan.cli.output import echo_wrapped, print_table
    from ggplan.text import format_bytes

    rows = [
        (
            format_bytes(p.file_bytes),
            f"{p.bits_per_weight:.3f}",
            f"{p.forecast.kld:.2g}",
            f"{p.forecast.low:.2g} to {p.forecast.high:.2g}",
            f"{100 * max(p.gap or 0.0, 1e-4):.2g} %",
            *((f"{p.tps:.1f}",) if p.tps is not None else ()),
        )
        for p in curve.points
    ]
    is_for_machine = any(p.tps is not None for p in curve.points)
    speed = [("tokens/s", "right")] if is_for_machine else []
    columns = [("file", "right"), ("bpw", "right"), ("KL divergence", "right"), ("probably", "right")]
    columns += [("above the best", "right"), *speed]
    print_table(columns, rows, "Best files" + is_for_machine * " that fit the machine" + ", predicted")
    mixes = []
    for p in curve.mixes:
        best = curve.kld_at(p.file_bytes)
        mixes.append(
            (
                p.name,
                format_bytes(p.file_bytes),
                f"{p.bits_per_weight:.3f}",
                f"{p.forecast.kld:.2g}",
                "" if best is None else f"{best:.2g}",
                "" if not best else f"{p.forecast.kld / best:.1f} times",
                *(("does not fit" if p.tps is None else f"{p.tps:.1f}",) if is_for_machine else ()),
            )
        )
    click.echo()
    columns = [("mix", "left"), ("file", "right"), ("bpw", "right"), ("KL divergence", "right")]
    titled = [*columns, ("best of its size", "right"), ("", "right"), *speed]
    print_table(titled, mixes, "Stock mixes with an imatrix, predicted")
    if len(curve.points) < _CLOSE_POINTS:
        click.echo()
        echo_wrapped(
            f"The best of a mix's size is read between {len(curve.points)} points, so it is too high by some"
            " percent; more --points bring it nearer."
        )
    click.echo()
    for line in curve.caveats:
        echo_wrapped(line)
    for line in (f"Predicted from: {curve.source}.", *curve.credit):
        click.echo(line)


def print_explained(found: list[Explained]) -> None:
    """Why tensors have their types."""
    from ggplan.cli.output import echo_wrapped, print_table
    from ggplan.text import format_bytes

    for number, one in enumerate(found):
        if number:
            click.echo()
        more = len(one.patterns) - _NAMES
        for pattern in one.patterns[:_NAMES]:
            click.echo(f"{pattern} = {one.type}")
        if more > 0:
            click.echo(f"and {more} patterns more")
        tensors = "1 tensor" if len(one.names) == 1 else f"{len(one.names):,} tensors"
        why = one.why[:1].upper() + one.why[1:] if one.why.startswith(("it ", "its ")) else one.why
        echo_wrapped(f"{tensors}, {format_bytes(one.n_bytes)}, {100 * one.share:.1f} % of the loss. {why}.")
        if len(one.steps) > 1:
            is_on_machine = any(s.tps is not None for s in one.steps)
            rows = [
                (
                    ">" if s.type == one.type else "",
                    s.type.name,
                    _more(s.n_bytes),
                    f"{s.kld:+.2g}" if s.n_bytes or s.damage else "",
                    *((_speed(s),) if is_on_machine else ()),
                )
                for s in one.steps
            ]
            columns = [("", "left"), ("as", "left"), ("file", "right"), ("KL divergence", "right")]
            print_table([*columns, ("tokens/s", "right")] if is_on_machine else columns, rows)


def _speed(step: Step) -> str:
    """More tokens per second, or what is short."""
    from ggplan.text import format_bytes

    if step.shortages:
        short = (
            f"{'RAM' if s.device == 'host' else s.device} {format_bytes(s.short)}" for s in step.shortages
        )
        return f"short of {', '.join(short)}"
    return f"{step.tps:+.2g}" if step.tps else ""


def _more(n_bytes: int) -> str:
    from ggplan.text import format_bytes

    if not n_bytes:
        return ""
    return f"{'+' if n_bytes > 0 else '-'}{format_bytes(abs(n_bytes))}"


def print_improved(found: Improved) -> None:
    """What a recipe was and what is better, by kind of tensor."""
    from ggplan.cli.output import print_table
    from ggplan.text import format_bytes

    before, answer = found.before, found.answer
    rows = []
    for kind in found.kinds:
        shares = [
            f"{100 * damage / total:.1f} %" if total else "0 %"
            for damage, total in zip(kind.damages, (before.damage, answer.damage), strict=True)
        ]
        rows.append(
            (
                kind.kind.removesuffix(".weight") or "blocks that draft",
                _counts(kind.types[0]),
                _counts(kind.types[1]),
                format_bytes(kind.n_bytes[0]),
                _more(kind.n_bytes[1] - kind.n_bytes[0]),
                *shares,
                f"{kind.damages[0]:.2g}",
                f"{kind.damages[1]:.2g}",
            )
        )
    columns = [
        ("tensors", "left"), ("before", "left"), ("after", "left"), ("bytes", "right"), ("more", "right"),
        ("loss", "right"), ("loss after", "right"), ("nats", "right"), ("nats after", "right"),
    ]  # fmt: skip
    least = ("nats", "nats after", "bytes", "more")
    print_table(columns, rows, least=least, wraps=("before", "after"))
    click.echo(
        f"{before.name}: {format_bytes(before.plan.file_bytes)}, {before.plan.bits_per_weight:.3f} bpw, KL"
        f" divergence {before.forecast.kld:.2g} predicted ({before.forecast.low:.2g} to"
        f" {before.forecast.high:.2g}); the best of these types: {format_bytes(answer.plan.file_bytes)},"
        f" {answer.plan.bits_per_weight:.3f} bpw, {answer.forecast.kld:.2g} ({answer.forecast.low:.2g} to"
        f" {answer.forecast.high:.2g})"
    )


def _counts(types: Mapping[str, int]) -> str:
    """`q4_K 66, q5_0 24`; of one type its name alone."""
    if len(types) == 1:
        return next(iter(types))
    return ", ".join(f"{name} {n}" for name, n in types.items())
