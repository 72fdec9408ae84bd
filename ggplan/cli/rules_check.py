"""`ggplan rules check`: what is wrong with a recipe, and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ggplan.cli.findings import FindingOptions, finding_options
from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import (
    check_is_recipe,
    fallback_option,
    model_option,
    note,
    quiet_option,
)

if TYPE_CHECKING:
    from ggplan.linting import Fixed, Report, Selection
    from ggplan.linting.fixing import AppliedFix
    from ggplan.model import Model
    from ggplan.planning import FallbackTable

SCHEMA = "ggplan/check@1"
_FORMATS = ("text", "json", "github", "sarif")

_EPILOG = """\b
Examples:
  ggplan rules check my.recipe                     against the shipped inventory it is for
  ggplan rules check my.recipe -m GLM-4.5-Air      against a model
  ggplan rules check my.recipe --fix               mend what has only one meaning, and say what was done
  ggplan rules check my.recipe --fix --diff        show what --fix would change
  ggplan rules check my.recipe --ignore GP106,GP2  without these findings
  ggplan rules check *.recipe --output-format github
  ggplan rules check --explain GP102               what a code means

A comment in the recipe silences a finding on its line, or on the next: `# ggplan: ignore GP103`; one in the
whole file: `# ggplan: ignore-file GP103`.
"""


@dataclass(frozen=True, slots=True)
class _FixOptions:
    """What is done with fixes."""

    fix: bool
    unsafe_fixes: bool
    diff: bool


@click.command(
    "check", epilog=_EPILOG, short_help="Find what is wrong with recipes, and what to write instead."
)
@click.argument("recipes", nargs=-1, metavar="[RECIPE]...")
@model_option
@opening_options()
@fallback_option
@click.option("--fix", is_flag=True, help="Apply the fixes that cannot change what was meant.")
@click.option(
    "--unsafe-fixes",
    is_flag=True,
    help="With --fix: apply those too that may change types or other files.",
)
@click.option("--diff", is_flag=True, help="Show what --fix would change, and write nothing.")
@finding_options
@click.option(
    "--output-format", "form", type=click.Choice(_FORMATS), default="text", show_default=True,
    help="Text, JSON, annotations of a GitHub workflow, or SARIF 2.1.0.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --output-format json.")
@quiet_option
@click.option("--explain", "code", metavar="CODE", help="Print the page of a code, such as GP102, and exit.")
def check_command(
    recipes: tuple[str, ...],
    model_name: str | None,
    opening: OpeningOptions,
    fallback: FallbackTable | None,
    fix: bool,
    unsafe_fixes: bool,
    diff: bool,
    findings: FindingOptions,
    form: str,
    as_json: bool,
    quiet: bool,
    code: str | None,
) -> None:
    """Check RECIPEs: their text, what their rules match, the types they give.

    Exits 0 if there is nothing to say but notes; 1 if there is more, with --diff a change, or if a recipe or
    the model cannot be read; 2 for wrong usage.
    """
    if code is not None:
        print_page(code)
        return
    if not recipes:
        raise click.UsageError("name a recipe, or a code with --explain")
    if as_json and form not in ("text", "json"):
        raise click.UsageError(f"--json and --output-format {form} exclude each other")
    form = "json" if as_json else form
    if diff and form != "text":
        raise click.UsageError(f"--diff prints a diff, not {form}")
    if unsafe_fixes and not (fix or diff):
        raise click.UsageError("--unsafe-fixes needs --fix or --diff")
    if fix and not diff and "-" in recipes:
        raise click.UsageError("--fix changes files; standard input (`-`) is none: --diff shows the changes")
    opening.refuse_without(model_name)
    subject = opening.open_noted(model_name, quiet=quiet) if model_name else None
    for recipe in recipes:
        check_is_recipe(recipe, quiet=quiet)
        if fix or diff:
            refuse_shipped(recipe, only_shown=diff, quiet=quiet)
    options = _FixOptions(fix, unsafe_fixes, diff)
    asked = _Asked(subject, findings.selection, fallback)
    done = [_checked(recipe, asked, options, form) for recipe in recipes]
    if diff:
        _print_diffs(done)
        return
    if form == "json":
        _print_json(done, notes=findings.notes)
    elif form == "github":
        from ggplan.cli.findings import print_github

        print_github([fixed.report for fixed in done], notes=findings.shows_notes)
    elif form == "sarif":
        from ggplan.cli.findings import sarif
        from ggplan.cli.output import print_json

        print_json(sarif([_without_notes(fixed.report, findings.notes) for fixed in done]))
    else:
        for fixed in done:
            _print(fixed, notes=findings.shows_notes, quiet=quiet)
        if not quiet:
            _print_summary(done)
    if not all(fixed.report.clean for fixed in done):
        raise SystemExit(1)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What recipes are checked against, and what is told of them."""

    model: Model | None
    selection: Selection
    fallback: FallbackTable | None


def _checked(recipe: str, asked: _Asked, options: _FixOptions, form: str) -> Fixed:
    """The recipe checked and, where that is asked for, mended; a file that cannot be read is an error too."""
    from ggplan.linting import Fixed, Report, check_recipe, fix_recipe
    from ggplan.rules import InvalidRecipeError

    try:
        if not (options.fix or options.diff):
            report = check_recipe(recipe, asked.model, asked.selection, fallback=asked.fallback)
            return Fixed(report, {}, {}, (), 0)
        fixed = fix_recipe(
            recipe, asked.model, asked.selection, fallback=asked.fallback, unsafe=options.unsafe_fixes
        )
    except InvalidRecipeError as error:
        if form == "text":
            click.echo(error.message, err=True)
        return Fixed(Report(recipe, {}, asked.model, error.diagnostics), {}, {}, (), 0)
    if fixed.texts and not options.diff:
        write_texts(fixed.texts)
    return fixed


def refuse_shipped(recipe: str, *, only_shown: bool = False, quiet: bool = False) -> None:
    """Refuse to change a recipe that ships with ggplan; where the changes are only shown, say so."""
    import shlex

    from ggplan.naming import kind_named
    from ggplan.rules.loading import shipped_file
    from ggplan.text import printable

    if kind_named(recipe) != "recipe":
        return
    told = f"{printable(recipe)} ships with ggplan and is not changed"
    copy = f"copy it first: `cp {shlex.quote(printable(shipped_file(recipe)))} my.recipe`"
    if not only_shown:
        raise click.UsageError(f"{told}; {copy}")
    note(f"{told}; {copy}", quiet=quiet)


def print_page(code: str) -> None:
    """Print what a code means; a code that does not exist is wrong usage."""
    click.echo(page_of(code), nl=False)


def page_of(code: str) -> str:
    """The page of a code; a code that does not exist is wrong usage."""
    from ggplan.linting import lint_rules
    from ggplan.linting.ignoring import nearest_code

    known = lint_rules()
    if code.upper() not in known:
        near = nearest_code(code, known)
        hint = f"the nearest is {near}" if near else f"codes are {', '.join(known)}"
        raise click.UsageError(f"there is no code {code!r}; {hint}")
    return known[code.upper()].page


def write_texts(texts: dict[str, str]) -> None:
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


def _print(fixed: Fixed, *, notes: bool | None, quiet: bool) -> None:
    """The findings of a recipe, what was mended, and a line that counts."""
    from ggplan.cli.findings import counted, in_words, print_findings
    from ggplan.text import printable

    report = fixed.report
    if not report.texts:  # it could not be read, which has been told
        return
    print_findings(report.errors() if quiet else report, notes=notes)
    if quiet:
        return
    for edit in fixed.applied:
        click.echo(f"fixed {printable(edit.file)}:{edit.line} {edit.code}: {_in_words(edit)}")
    against = "its text alone" if report.model is None else printable(str(report.model.path))
    told = in_words(counted(report.diagnostics)) or "nothing to say"
    silenced = f"; {report.n_silenced:,} silenced by comments" if report.n_silenced else ""
    click.echo(f"{printable(report.file)} against {against}: {told}{silenced}")
    if report.model is None and not any(d.severity == "error" for d in report.diagnostics):
        click.echo(_how_to_name_a_model(report.architecture))


def _in_words(edit: AppliedFix) -> str:
    from ggplan.text import printable

    if edit.kind in ("deleted", "moved"):
        return f"{edit.kind} `{printable(edit.before.strip())}`"
    if edit.kind == "added":
        lines = [line for line in edit.after.splitlines() if line.strip()]
        more = f" and {len(lines) - 1:,} more lines" if len(lines) > 1 else ""
        return f"added `{printable(lines[0].strip())}`{more}" if lines else "added an empty line"
    if not edit.after:
        return f"deleted `{printable(edit.before.strip())}`"
    if not edit.before:
        return f"inserted `{printable(edit.after.strip())}`"
    return f"`{printable(edit.before)}` is now `{printable(edit.after)}`"


def _print_summary(done: Sequence[Fixed]) -> None:
    """The last line: what was found in all recipes, what was mended, what can be."""
    from ggplan.cli.findings import counted, in_words

    reports = [fixed.report for fixed in done]
    found = [d for report in reports for d in report.diagnostics if d.severity != "note"]
    n_fixed = sum(fixed.n_fixes for fixed in done)
    if not found and not n_fixed:
        if len(done) > 1:
            click.echo(f"{len(done)} recipes: nothing wrong")
        return
    where = f" in {len(done)} recipes" if len(done) > 1 else ""
    told = in_words(counted(found))
    parts = [f"found {told}{where}" if told else f"nothing wrong is left{where}"]
    if n_fixed:
        parts = [f"mended {n_fixed:,}{where}", f"{told} left" if told else "nothing wrong is left"]
    fixes = [d.fix for d in found if d.fix is not None]
    safe, n_unsafe = sum(fix.safe for fix in fixes), sum(not fix.safe for fix in fixes)
    if safe:
        parts.append(f"{safe:,} can be mended with --fix")
    if n_unsafe:
        more = "more" if safe else "can be mended"
        files = " and other files" if _edits_other_files(reports) else ""
        parts.append(f"{n_unsafe:,} {more} with --fix --unsafe-fixes, which may change types{files}")
    click.echo("; ".join(parts))


def _edits_other_files(reports: Sequence[Report]) -> bool:
    """Whether a fix that is no safe one edits a file which a recipe draws in."""
    return any(
        edit.file != report.file
        for report in reports
        for d in report.diagnostics
        if d.fix is not None and not d.fix.safe and d.severity != "note"
        for edit in d.fix.edits
    )


def _print_diffs(done: Sequence[Fixed]) -> None:
    """The changes on stdout, a count on stderr; exits 1 if there is one, or what --fix cannot mend."""
    import sys

    from ggplan.cli.findings import counted, in_words
    from ggplan.text import printable

    text = "".join(fixed.diff() for fixed in done)
    if sys.stdout.isatty():
        shown = text.replace("\r\n", "\n")
        text = "".join(c if c in "\t\n" else printable(c) for c in shown)
    # Else as it is, in the bytes of a recipe: `patch` compares them.
    click.echo(text.encode(), nl=False)
    n_files = sum(len(fixed.texts) for fixed in done)
    left = [d for fixed in done for d in fixed.report.diagnostics if d.severity != "note"]
    told = f"; {in_words(counted(left))} would be left" if left else ""
    n_fixes = sum(fixed.n_fixes for fixed in done)
    files = f"{n_files} file{'s' * (n_files != 1)}"
    click.echo(
        f"--fix would mend {n_fixes:,} in {files}{told}" if n_files else f"nothing to mend{told}", err=True
    )
    if n_files or left:
        raise SystemExit(1)


def _how_to_name_a_model(architecture: str) -> str:
    if not architecture:
        return "give a model with -m, or say in the recipe which it is for: `@arch glm4moe`"
    from ggplan.inventories import inventories, inventory
    from ggplan.text import nearest, printable

    near = nearest(architecture, {inventory(name).architecture for name in inventories()})
    known = f" (the nearest is `@arch {near}`)" if near else ""
    return f"no model of `@arch {printable(architecture)}` ships with ggplan{known}: give one with -m"


def _without_notes(report: Report, notes: bool | None) -> Report:
    from dataclasses import replace

    if notes is not False:
        return report
    return replace(report, diagnostics=tuple(d for d in report.diagnostics if d.severity != "note"))


def _print_json(done: Sequence[Fixed], *, notes: bool | None) -> None:
    from dataclasses import asdict

    from ggplan.cli.findings import counted, findings_json
    from ggplan.cli.output import print_json

    files = [
        {
            "file": fixed.report.file,
            "model": None if fixed.report.model is None else str(fixed.report.model.path),
            "clean": fixed.report.clean,
            "mended": fixed.n_fixes,
            **counted(fixed.report.diagnostics),
            "silenced": fixed.report.n_silenced,
            "diagnostics": findings_json(_without_notes(fixed.report, notes)),
            "fixes": [asdict(edit) for edit in fixed.applied],
        }
        for fixed in done
    ]
    print_json({"schema": SCHEMA, "recipes": files})
