"""`ggplan rules check`: what is wrong with a recipe, and what to write instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.options import (
    check_is_recipe,
    fallback_option,
    json_option,
    model_option,
    open_noted,
    quiet_option,
)

if TYPE_CHECKING:
    from ggplan.linting import Report
    from ggplan.planning import FallbackTable
    from ggplan.rules import Diagnostic

SCHEMA = "ggplan/check@1"
_FIX_ROUNDS = 10

_EPILOG = """\b
Examples:
  ggplan rules check my.recipe                     against the shipped inventory it is for
  ggplan rules check my.recipe -m GLM-4.5-Air      against a model
  ggplan rules check my.recipe --fix               mend what has only one meaning
  ggplan rules check --explain GP102               what a code means
"""


@click.command(
    "check", epilog=_EPILOG, short_help="Find what is wrong with recipes, and what to write instead."
)
@click.argument("recipes", nargs=-1, metavar="[RECIPE]...")
@model_option
@fallback_option
@click.option("--fix", is_flag=True, help="Apply the fixes that cannot change what was meant.")
@click.option("--unsafe-fixes", is_flag=True, help="With --fix: apply those too that may change types.")
@json_option("the findings")
@quiet_option
@click.option("--no-notes", is_flag=True, help="Leave out the notes.")
@click.option("--explain", "code", metavar="CODE", help="Print the page of a code, such as GP102, and exit.")
def check_command(
    recipes: tuple[str, ...],
    model_name: str | None,
    fallback: FallbackTable | None,
    fix: bool,
    unsafe_fixes: bool,
    as_json: bool,
    quiet: bool,
    no_notes: bool,
    code: str | None,
) -> None:
    """Check RECIPEs: their text, what their rules match, the types they give.

    Exits 0 if there is nothing to say but notes; 1 if there is more, or a recipe or the model cannot be read;
    2 for wrong usage.
    """
    if code is not None:
        _explain(code)
        return
    if not recipes:
        raise click.UsageError("name a recipe, or a code with --explain")
    from ggplan.linting import check_recipe

    if fix and "-" in recipes:
        raise click.UsageError("--fix changes files; standard input (`-`) is none")
    subject = open_noted(model_name, quiet=quiet) if model_name else None
    reports = []
    for recipe in recipes:
        check_is_recipe(recipe, quiet=quiet)
        report = check_recipe(recipe, subject, fallback=fallback)
        mended = 0
        if fix:
            for _ in range(_FIX_ROUNDS):
                texts, count = report.fixed(unsafe=unsafe_fixes)
                if not count:
                    break
                _write(texts)
                mended += count
                report = check_recipe(recipe, subject, fallback=fallback)
        reports.append((report, mended))
    if as_json:
        _print_json(reports)
    else:
        for report, mended in reports:
            _print(report.errors() if quiet else report, mended, no_notes=no_notes or quiet)
    if not all(report.clean for report, _ in reports):
        raise SystemExit(1)


def _explain(code: str) -> None:
    from ggplan.linting import lint_rules

    known = lint_rules()
    if code.upper() not in known:
        raise click.UsageError(f"there is no code {code!r}; codes are {', '.join(known)}")
    click.echo(known[code.upper()].page, nl=False)


def _write(texts: dict[str, str]) -> None:
    """Put new texts in place of files, each at once or not at all, with their mode."""
    import os
    import tempfile

    from ggplan.errors import RecipeError
    from ggplan.text import printable

    for name in texts:
        if not os.path.isfile(name):
            raise RecipeError(
                f"{printable(name)} ships with ggplan and is not changed", hint="copy it to a file"
            )
    for name, text in texts.items():
        path = os.path.realpath(name)
        handle, temporary = tempfile.mkstemp(prefix=".ggplan-", dir=os.path.dirname(path))
        try:
            with open(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, os.stat(path).st_mode & 0o777)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _print(report: Report, mended: int, *, no_notes: bool) -> None:
    from ggplan.cli.output import print_findings
    from ggplan.text import printable

    print_findings(report, notes=not no_notes)
    against = "its text alone" if report.model is None else printable(str(report.model.path))
    counts = _counts(report.diagnostics)
    told = ", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in counts.items() if n) or "nothing to say"
    fixes = [d.fix for d in report.diagnostics if d.fix is not None and d.severity != "note"]
    safe = sum(fix.safe for fix in fixes)
    click.echo(f"{printable(report.file)} against {against}: {told}")
    if mended:
        click.echo(f"{mended} mended")
    if safe:
        click.echo(f"{safe} can be mended with --fix")
    if len(fixes) > safe:
        click.echo(f"{len(fixes) - safe} can be mended with --fix --unsafe-fixes, which may change types")
    if report.model is None and not any(d.severity == "error" for d in report.diagnostics):
        click.echo(_how_to_name_a_model(report.architecture))


def _how_to_name_a_model(architecture: str) -> str:
    if not architecture:
        return "give a model with -m, or say in the recipe which it is for: `@arch glm4moe`"
    from ggplan.inventories import inventories, inventory
    from ggplan.text import nearest, printable

    near = nearest(architecture, {inventory(name).architecture for name in inventories()})
    known = f" (the nearest is `@arch {near}`)" if near else ""
    return f"no model of `@arch {printable(architecture)}` ships with ggplan{known}: give one with -m"


def _counts(found: tuple[Diagnostic, ...]) -> dict[str, int]:
    return {kind: sum(d.severity == kind for d in found) for kind in ("error", "warning", "note")}


def _print_json(reports: list[tuple[Report, int]]) -> None:
    from ggplan.cli.output import findings_json, print_json

    files = [
        {
            "file": report.file,
            "model": None if report.model is None else str(report.model.path),
            "clean": report.clean,
            "mended": mended,
            **_counts(report.diagnostics),
            "diagnostics": findings_json(report),
        }
        for report, mended in reports
    ]
    print_json({"schema": SCHEMA, "recipes": files})
