"""check_recipe: everything there is to say about a recipe, in the order of its lines.

1. The text is parsed. Errors in it are collected, each repaired in a copy as well as can be guessed (a line
   beyond repair is left out), and the copy is used from here on: one slip does not hide another.
2. The recipe meets names and shapes: those of a model, or of the shipped inventory that it is for.
3. Findings that other findings explain are dropped: where a misspelt rule matches nothing, the tensors it
   was meant for are not also reported as uncovered. To know, all fixes are applied to one more copy.
4. `@assert` and `@test` are judged on that copy too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggplan.checking import coverage, matching, promises, reach, shapes
from ggplan.checking.case import Case, make_case
from ggplan.checking.subject import subject_of
from ggplan.checking.workspace import Workspace
from ggplan.model import Model
from ggplan.planning.fallback import table_of
from ggplan.rules import Diagnostic, Edit, Fix, InvalidRecipeError, Recipe
from ggplan.rules.fixing import apply_fixes
from ggplan.rules.loading import recipe_text
from ggplan.rules.recipe import split_lines

MANY_RULES = 2_000
_COSTS = 8  # findings whose cost is told
_ROUNDS = 30  # of repairs of syntax; one round finds all errors but those of the text as a whole


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes
    ----------
    file
        The recipe, as messages name it.
    texts
        The text of the recipe and of each file it draws in, by name.
    model
        What it was checked against, or None: its syntax alone.
    diagnostics
        In the order of the lines.
    """

    file: str
    texts: dict[str, str]
    model: Model | None
    diagnostics: tuple[Diagnostic, ...]

    def source_line(self, finding: Diagnostic) -> str:
        """The line a finding is about, for `render`."""
        lines = split_lines(self.texts.get(finding.file, ""))
        return lines[finding.line - 1] if 0 < finding.line <= len(lines) else ""

    @property
    def clean(self) -> bool:
        """Whether nothing but notes was found."""
        return all(d.severity == "note" for d in self.diagnostics)

    def fixed(self, *, unsafe: bool = False) -> tuple[dict[str, str], int]:
        """The texts that change when the fixes are applied, safe ones or all, and how many were."""
        fixes = [d.fix for d in self.diagnostics if d.fix is not None and (unsafe or d.fix.safe)]
        applied = apply_fixes(self.texts, dict.fromkeys(fixes))
        return applied.texts, applied.count


def check_recipe(name_or_path: str | Path, model: Model | None = None) -> Report:
    """Check a recipe against a model, or against the shipped inventory that it is for.

    Raises
    ------
    RecipeError
        If the file cannot be read at all.
    """
    text, file, follow = recipe_text(name_or_path)
    return check_text(Workspace(file, follow, {file: text}, model))


def check_text(space: Workspace) -> Report:
    """Check the text of a workspace, against its model where it has one."""
    original = dict(space.texts)
    recipe, syntax, repaired = _parse(space)
    if recipe is not None:
        # Files that were drawn in; fixes may touch them too.
        for part, text in recipe.parts:
            original.setdefault(part, text)
    if space.model is None and recipe is not None:
        space.model = subject_of(recipe)
    if recipe is None or space.model is None:
        return Report(space.file, original, space.model, _sorted([*syntax, *_about_text(recipe)], space.file))
    syntax = [_best_repair(d, original, space) for d in syntax]
    space.texts = {**original, space.file: space.texts[space.file]}
    if syntax:
        recipe, repaired = _repair_again(space, original, syntax, recipe, repaired)
    case = make_case(space.model, recipe, table_of(recipe))
    found = [d for d in _findings(case, space) if (d.file, d.line) not in repaired or d.line == 0]
    space.trials = min(space.trials, _COSTS)
    found = [_with_cost(d, case, space) for d in found]
    return Report(space.file, original, space.model, _sorted([*syntax, *found], space.file))


def _parse(space: Workspace) -> tuple[Recipe | None, list[Diagnostic], set[tuple[str, int]]]:
    """The recipe with its errors mended, the errors, and the lines that were touched.

    The workspace then holds the mended text. None where an error is beyond one line of the recipe itself.
    """
    syntax: list[Diagnostic] = []
    touched: set[tuple[str, int]] = set()
    for _ in range(_ROUNDS):
        try:
            return space.parse({}), syntax, touched
        except InvalidRecipeError as error:
            new = [d for d in error.diagnostics if (d.file, d.line) not in touched]
            syntax += new
            again = [d for d in error.diagnostics if (d.file, d.line) in touched]
            if any(d.file != space.file or not d.line or d.code == "GP009" for d in (*new, *again)):
                break
            _mend(space, new, again)
            touched |= {(d.file, d.line) for d in new}
    return None, syntax, touched


def _mend(space: Workspace, errors: Sequence[Diagnostic], again: Sequence[Diagnostic]) -> None:
    """Apply the fixes of errors to the workspace's text; empty the lines that have none or need another."""
    lines = space.texts[space.file]
    for finding in errors:
        if finding.fix is None:
            lines = _without_line(lines, space.file, finding.line)
    for finding in again:
        lines = _without_line(lines, space.file, finding.line)
    fixes = [d.fix for d in errors if d.fix is not None]
    # A deleted line would move those below it: empty it instead.
    kept = [_in_place(fix, lines) for fix in fixes]
    applied = apply_fixes({space.file: lines}, kept)
    space.texts[space.file] = applied.texts.get(space.file, lines)


def _in_place(fix: Fix, text: str) -> Fix:
    lines = split_lines(text)
    edits = tuple(
        Edit(e.file, e.line, 1, len(lines[e.line - 1]), "") if e.length is None else e for e in fix.edits
    )
    return Fix(edits, fix.safe)


def _without_line(text: str, file: str, line: int) -> str:
    length = len(split_lines(text)[line - 1])
    return apply_fixes({file: text}, [Fix((Edit(file, line, 1, length, ""),), safe=True)]).texts[file]


def _best_repair(finding: Diagnostic, texts: dict[str, str], space: Workspace) -> Diagnostic:
    """The finding with that of its remedies which gives a pattern the model's names match."""
    if not finding.others or finding.fix is None:
        return finding
    for fix in (finding.fix, *finding.others):
        (edit,) = fix.edits
        line = split_lines(texts[edit.file])[edit.line - 1]
        alone = line[: edit.column - 1] + edit.text + line[edit.column - 1 + (edit.length or 0) :]
        trial = Workspace(finding.file, None, {finding.file: alone}, space.model, trials=1)
        case = trial.tried([])
        if case is not None and case.recipe.rules and case.members[0]:
            return replace(finding, fix=fix, help=f"write `{edit.text}`", others=())
    return replace(finding, others=())


def _repair_again(
    space: Workspace,
    original: dict[str, str],
    syntax: Sequence[Diagnostic],
    recipe: Recipe,
    touched: set[tuple[str, int]],
) -> tuple[Recipe, set[tuple[str, int]]]:
    """The recipe mended with the remedies that were chosen by the model's names."""
    first = space.texts[space.file]
    space.texts[space.file] = original[space.file]
    again, _, lines = _parse_with(space, syntax)
    if again is None:
        space.texts[space.file] = first
        return recipe, touched
    return again, lines


def _parse_with(
    space: Workspace, chosen: Sequence[Diagnostic]
) -> tuple[Recipe | None, list[Diagnostic], set[tuple[str, int]]]:
    _mend(space, [d for d in chosen if d.line and d.file == space.file], ())
    recipe, left, touched = _parse(space)
    return recipe, left, touched | {(d.file, d.line) for d in chosen}


def _findings(case: Case, space: Workspace) -> list[Diagnostic]:
    """All that names and shapes say."""
    if len(case.recipe.rules) > MANY_RULES:
        return _main_findings(case, space)
    gaps = list(coverage.about_gaps(case))
    shadowed = list(matching.about_shadowed(case, space))
    found = [
        *_about_text(case.recipe),
        *_about_architecture(case),
        *matching.about_dead(case, space),
        *shadowed,
        *reach.about_digits(case, space),
        *(d for d in reach.about_crossing(case, space) if not _explains(shadowed, d)),
        *reach.about_dots(case),
        *reach.about_lowering(case),
        *(d for d, _ in gaps),
        *shapes.about_shapes(case),
    ]
    mended = space.tried([d.fix for d in found if d.fix is not None])
    covered = frozenset(t for _, left in gaps for t in left)
    if mended is not None:
        covered |= frozenset(case.uncovered()) - frozenset(mended.uncovered())
    uncovered = list(coverage.about_uncovered(case, space, covered))
    found += uncovered
    if uncovered and uncovered[0].fix is not None:
        mended = space.tried([d.fix for d in found if d.fix is not None]) or mended
    found += _broken_promises(case, mended)
    found += matching.about_partly_shadowed(case)
    found += matching.about_order(case)
    return _once_a_line(found)


def _main_findings(case: Case, space: Workspace) -> list[Diagnostic]:
    """The findings about a recipe of very many rules, without those that look at each pattern."""
    space.trials = 0
    message = f"more than {MANY_RULES:,} rules: what single patterns look like was not checked"
    return [
        *_about_text(case.recipe),
        *_about_architecture(case),
        *matching.about_dead(case, space),
        *matching.about_shadowed(case, space),
        *shapes.about_shapes(case),
        *coverage.about_uncovered(case, space, frozenset()),
        *_broken_promises(case, None),
        Diagnostic("GP009", "note", message, case.recipe.file),
    ]


def _explains(shadowed: Sequence[Diagnostic], crossing: Diagnostic) -> bool:
    """Whether a rule is reported as shadowed, with the remedy that ends this crossing."""
    place = (crossing.file, crossing.line)
    return any(d.fix and any((e.file, e.line) == place for e in d.fix.edits) for d in shadowed)


def _broken_promises(case: Case, mended: Case | None) -> Iterator[Diagnostic]:
    """Promises that are broken, and stay so once all else is mended."""
    later = {o.text: o.finding for o in promises.outcomes(mended)} if mended else {}
    for outcome in promises.outcomes(case):
        if outcome.finding is not None and (mended is None or later.get(outcome.text) is not None):
            yield outcome.finding


def _about_text(recipe: Recipe | None) -> Iterator[Diagnostic]:
    """GP017: texts of `@let` that nothing uses."""
    for name, at in recipe.unused if recipe else ():
        fix = Fix((Edit(at.file, at.line, 1, None, ""),), safe=True)
        message = f"nothing uses `{name}`"
        yield Diagnostic(
            "GP017", "warning", message, at.file, at.line, at.column, at.length, "delete the line", fix
        )


def _about_architecture(case: Case) -> Iterator[Diagnostic]:
    recipe, model = case.recipe, case.model
    if not recipe.architecture or not model.architecture or recipe.architecture == model.architecture:
        return
    message = f"the recipe is for {recipe.architecture}, the model is {model.architecture}"
    for number, line in enumerate(split_lines(recipe.text), start=1):
        words = line.split("#")[0].split()
        if words[:2] == ["@arch", recipe.architecture]:
            column = line.index(recipe.architecture) + 1
            length = len(recipe.architecture)
            fix = Fix((Edit(recipe.file, number, column, length, model.architecture),), safe=False)
            help = f"choose another recipe, or write `@arch {model.architecture}`"
            yield Diagnostic("GP209", "warning", message, recipe.file, number, column, length, help, fix)
            return
    yield Diagnostic("GP209", "warning", message, recipe.file, help="choose another recipe")


def _once_a_line(found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Without findings that a worse one of the same pattern makes idle: a dead rule has no other fault."""
    dead = {(d.file, d.line) for d in found if d.code in ("GP101", "GP102", "GP104")}
    about_reach = ("GP105", "GP106", "GP107", "GP111")
    slips = {(d.file, d.line) for d in found if d.code == "GP111"}
    return [
        d
        for d in found
        if not (d.code in ("GP105", "GP107", "GP103") and (d.file, d.line) in dead)
        and not (d.code in ("GP101", "GP102", "GP103", "GP104") and (d.file, d.line) in slips)
        and not (d.code in about_reach and d.code != "GP111" and (d.file, d.line) in slips)
    ]


def _with_cost(finding: Diagnostic, case: Case, space: Workspace) -> Diagnostic:
    """The finding with the bytes its mending would save or add, where it changes any type."""
    if finding.fix is None or finding.fix.safe or finding.cost_bytes is not None:
        return finding
    if finding.code not in ("GP101", "GP102", "GP104", "GP105", "GP106", "GP107", "GP111", "GP203"):
        return finding
    tried = space.tried([finding.fix])
    return replace(finding, cost_bytes=(case.n_bytes() - tried.n_bytes()) or None) if tried else finding


def _sorted(found: Sequence[Diagnostic], file: str) -> tuple[Diagnostic, ...]:
    """In the order of the text: the recipe's own lines first, what is about the file as a whole last."""
    return tuple(sorted(found, key=lambda d: (d.file != file, d.file, d.line == 0, d.line, d.column, d.code)))
