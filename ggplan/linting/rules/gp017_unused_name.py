r"""A `@let` that nothing uses.

GP017: nothing uses a name
    A `@let` that nothing uses is left over, or its name is misspelt where it was meant.
    - @let MOE = {1..46}
    + @let MOE = {1..46}
    + blk\.${MOE}\.ffn_up_exps\.weight = q4_K
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.rules.draft import deleting


class UnusedName(Finding):
    """The name of a `@let`."""

    name: str
    says = "nothing uses `{f.name}`"
    advice = "delete the line"


def check(case: Case) -> Iterator[UnusedName]:
    for name, at in case.recipe.unused:
        yield UnusedName(at, name, fixes=(deleting(at.file, at.line, safe=True),))


GP017 = LintRule("GP017", "warning", check, needs_model=False)
