"""Findings of the linter on the command line: which are told, and how: as text, JSON, annotations of a GitHub
workflow, or SARIF.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ggplan.cli.options import as_one

if TYPE_CHECKING:
    from ggplan.linting import Report, Selection
    from ggplan.rules import Diagnostic, Edit, Severity

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SHOWN = 200  # findings
_GITHUB = {"error": "error", "warning": "warning", "note": "notice"}
_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True, slots=True)
class FindingOptions:
    """The values of `finding_options`."""

    select: tuple[str, ...]
    ignore: tuple[str, ...]
    notes: bool | None

    @property
    def selection(self) -> Selection:
        """The codes that are told."""
        from ggplan.errors import RecipeError
        from ggplan.linting import lint_rules, selection

        try:
            return selection(self.select, self.ignore, lint_rules())
        except RecipeError as error:
            raise click.UsageError(f"{error.message}; {error.hint}") from None

    @property
    def shows_notes(self) -> bool | None:
        """Whether notes are shown; None if they are summed up. Who selects codes wants to see them."""
        return True if self.notes is None and self.select else self.notes


def finding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose findings, as the argument `findings: FindingOptions`."""
    command = as_one("findings", FindingOptions)(command)
    options = (
        click.option(
            "--select", multiple=True, metavar="CODES",
            help="Tell these findings alone, by codes or their first letters: GP1, or GP103,GP2. Errors that "
            "keep a recipe from being read are always told.",
        ),
        click.option(
            "--ignore", multiple=True, metavar="CODES",
            help="Do not tell these; of --select and --ignore the longer code decides.",
        ),
        click.option(
            "--notes/--no-notes", default=None,
            help="Show every note, or none [default: several are summed up in one line].",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def print_findings(report: Report, *, notes: bool | None = None, err: bool = False) -> None:
    """What the linter found, as a compiler shows it, the first 200; a note takes one line.

    Parameters
    ----------
    notes
        Show all notes, or none; None sums several up in one line.
    err
        Print to stderr.
    """
    from ggplan.rules import render

    stream = sys.stderr if err else sys.stdout
    color = (stream.isatty() and not os.environ.get("NO_COLOR")) or bool(os.environ.get("FORCE_COLOR"))
    notes_found = [d for d in report.diagnostics if d.severity == "note"]
    is_summed = notes is None and len(notes_found) > 1
    hides_notes = is_summed or notes is False
    told = [d for d in report.diagnostics if not (hides_notes and d.severity == "note")]
    for finding in told[:_SHOWN]:
        if finding.severity != "note":
            shown = render(finding, report.source_line(finding), color=color)
            click.echo(shown + "\n", err=err, color=color)
        else:
            click.echo(_in_one_line(finding), err=err)
    if hidden := told[_SHOWN:]:
        n_errors = sum(finding.severity == "error" for finding in hidden)
        errors = f", {n_errors:,} of them errors" if n_errors else ""
        all_ = "`--json` of `ggplan plan` and `ggplan rules check` lists all"
        click.echo(f"{len(hidden):,} more are not shown{errors}; {all_}\n", err=err)
    if is_summed:
        click.echo(notes_in_words(notes_found), err=err)


def _in_one_line(finding: Diagnostic) -> str:
    from ggplan.text import printable

    where = printable(finding.file) + (f":{finding.line}:{finding.column}" if finding.line else "")
    place = f"{where}: " if where else ""
    return f"{finding.severity}[{finding.code}]: {place}{printable(finding.message)}"


def notes_in_words(notes: Sequence[Diagnostic]) -> str:
    """Several notes in one line: `note[GP103, GP109]: ...`, with the option that shows them."""
    from ggplan.linting import lint_rules

    counts = Counter(note.code for note in notes)
    titles = {code: rule.title for code, rule in lint_rules().items()}
    told = [f"{titles[code]} ({n:,})" if n > 1 else titles[code] for code, n in sorted(counts.items())]
    return f"note[{', '.join(sorted(counts))}]: {'; '.join(told)}. --notes shows all {len(notes):,}"


def counted(found: Iterable[Diagnostic]) -> dict[Severity, int]:
    """How many findings there are of each severity."""
    counts = Counter(d.severity for d in found)
    return {kind: counts[kind] for kind in ("error", "warning", "note")}


def in_words(counts: dict[Severity, int]) -> str:
    """`1 error, 2 warnings`; "" where there are none."""
    return ", ".join(f"{n:,} {kind}{'s' * (n > 1)}" for kind, n in counts.items() if n)


def findings_json(report: Report) -> list[dict[str, object]]:
    """What the linter found; spans of edits end before `end_column`, a deleted line where the next begins."""
    return [
        {
            "code": d.code,
            "severity": d.severity,
            "message": d.message,
            "file": d.file,
            "line": d.line,
            "column": d.column,
            "length": d.length,
            "source": report.source_line(d),
            "help": d.help,
            "cost_bytes": d.cost_bytes,
            "fix": None
            if d.fix is None
            else {"safe": d.fix.safe, "edits": [_edit_json(edit) for edit in d.fix.edits]},
        }
        for d in report.diagnostics
    ]


def _edit_json(edit: Edit) -> dict[str, object]:
    return {
        "file": edit.file,
        "line": edit.line,
        "column": edit.column,
        "end_line": edit.line + (edit.length is None),
        "end_column": 1 if edit.length is None else edit.column + edit.length,
        "text": edit.text,
    }


def print_github(reports: Iterable[Report], *, notes: bool | None) -> None:
    """Workflow commands, one a finding, which GitHub shows at the lines of a pull request.

    `::error file=FILE,line=N,col=N,endColumn=N,title=TITLE::MESSAGE`, as in "Workflow commands for GitHub
    Actions". Notes are notices; they are left out unless they are asked for, for GitHub shows ten.
    """
    from ggplan.linting import lint_rules

    titles = {code: rule.title for code, rule in lint_rules().items()}
    for report in reports:
        for d in report.diagnostics:
            if d.severity == "note" and not notes:
                continue
            place = {"file": _relative(d.file)}
            if d.line:
                end = d.column + max(d.length, 1)
                place |= {"line": str(d.line), "col": str(d.column), "endColumn": str(end)}
            place["title"] = f"{d.code}: {titles[d.code]}"
            properties = ",".join(
                f"{name}={_escaped(value, in_property=True)}" for name, value in place.items()
            )
            message = f"{d.message}\nhelp: {d.help}" if d.help else d.message
            click.echo(f"::{_GITHUB[d.severity]} {properties}::{_escaped(message)}")


def _escaped(text: str, *, in_property: bool = False) -> str:
    from ggplan.text import printable

    text = "%0A".join(printable(line).replace("%", "%25") for line in text.split("\n"))
    return text.replace(":", "%3A").replace(",", "%2C") if in_property else text


def sarif(reports: Iterable[Report]) -> dict[str, object]:
    """The findings as a log of SARIF 2.1.0 (OASIS), with the fixes and the pages of the codes."""
    from ggplan.linting import lint_rules
    from ggplan.version import __version__

    rules = lint_rules()
    indices = {code: i for i, code in enumerate(rules)}
    results = [_result(d, indices[d.code]) for report in reports for d in report.diagnostics]
    driver = {
        "name": "ggplan",
        "version": __version__,
        "rules": [
            {
                "id": code,
                "shortDescription": {"text": rule.title},
                "fullDescription": {"text": rule.why},
                "help": {"text": rule.why, "markdown": rule.page},
                "defaultConfiguration": {"level": rule.severity},
            }
            for code, rule in rules.items()
        ],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(d: Diagnostic, index: int) -> dict[str, object]:
    place: dict[str, object] = {"artifactLocation": {"uri": _uri(d.file)}}
    if d.line:
        end = d.column + max(d.length, 1)
        place["region"] = {"startLine": d.line, "startColumn": d.column, "endColumn": end}
    result: dict[str, object] = {
        "ruleId": d.code,
        "ruleIndex": index,
        "level": d.severity,
        "message": {"text": d.message},
        "locations": [{"physicalLocation": place}] if d.file else [],
    }
    if d.fix is not None:
        by_file: dict[str, list[Edit]] = {}
        for edit in d.fix.edits:
            by_file.setdefault(edit.file, []).append(edit)
        changes = [
            {"artifactLocation": {"uri": _uri(file)}, "replacements": [_replacement(e) for e in edits]}
            for file, edits in by_file.items()
        ]
        result["fixes"] = [{"description": {"text": d.help or d.message}, "artifactChanges": changes}]
    return result


def _replacement(edit: Edit) -> dict[str, object]:
    region: dict[str, object] = {"startLine": edit.line, "startColumn": edit.column}
    if edit.length is None:
        region |= {"endLine": edit.line + 1, "endColumn": 1}
    else:
        region["endColumn"] = edit.column + edit.length
    replacement: dict[str, object] = {"deletedRegion": region}
    return replacement | ({"insertedContent": {"text": edit.text}} if edit.text else {})


def _relative(file: str) -> str:
    """A path as a repository has it: from here, with `/`."""
    from pathlib import Path

    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.as_posix() if file else ""


def _uri(file: str) -> str:
    from pathlib import Path
    from urllib.parse import quote

    shown = _relative(file)
    return Path(shown).as_uri() if Path(shown).is_absolute() else quote(shown)
