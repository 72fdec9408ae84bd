"""Workspace: the texts a recipe is made of, and what the recipe would be were a fix applied.

A remedy is only worth offering if it helps. So candidates are tried: the fix is applied to the text, the
text is read again, and the decisions it leads to are compared. Trying costs some milliseconds each, so a
check tries only so many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ggplan.checking.case import Case, make_case
from ggplan.errors import RecipeError
from ggplan.model import Model
from ggplan.planning.fallback import table_of
from ggplan.rules import Fix, InvalidRecipeError, Recipe, dead_rules, parse_recipe, shadowed_rules
from ggplan.rules.draft import Follow, FollowError
from ggplan.rules.fixing import apply_fixes

MAX_TRIALS = 32
_LARGEST_TRIED = 500_000  # lines times tensors; larger recipes get the first remedy untried


@dataclass(slots=True)
class Workspace:
    """A recipe's texts, and the model it is judged by.

    Attributes
    ----------
    texts
        The recipe's own text and those it draws in, by file name.
    trials
        How many more remedies may be tried.
    """

    file: str
    follow: Follow | None
    texts: dict[str, str]
    model: Model | None = None
    trials: int = MAX_TRIALS
    _cases: dict[tuple[str, ...], Case | None] = field(default_factory=dict)

    def parse(self, changed: Mapping[str, str]) -> Recipe:
        """The recipe with these texts in place of its own.

        Raises
        ------
        RecipeError
            If they do not parse.
        """
        texts = {**self.texts, **changed}

        def follow(target: str, file: str) -> tuple[str, str]:
            if self.follow is None:
                raise FollowError("a recipe without a file cannot draw in others", "save it as a file")
            found, text = self.follow(target, file)
            return found, texts.get(found, text)

        return parse_recipe(texts[self.file], self.file, follow=follow)

    def tried(self, fixes: Iterable[Fix]) -> Case | None:
        """The case that these fixes lead to; None where they do not parse, or no more may be tried."""
        if self.model is None or self.trials <= 0:
            return None
        n_lines = sum(text.count("\n") + 1 for text in self.texts.values())
        if n_lines * len(self.model.tensors) > _LARGEST_TRIED:
            return None
        applied = apply_fixes(self.texts, fixes)
        key = tuple(f"{file}\0{text}" for file, text in sorted(applied.texts.items()))
        if key not in self._cases:
            self.trials -= 1
            try:
                recipe = self.parse(applied.texts)
                self._cases[key] = make_case(self.model, recipe, table_of(recipe))
            except (InvalidRecipeError, RecipeError):
                self._cases[key] = None
        return self._cases[key]

    def best(self, fixes: Sequence[Fix]) -> Fix | None:
        """The fix that leaves the fewest idle rules and uncovered tensors; the first of equals."""
        if len(fixes) < 2:
            return fixes[0] if fixes else None
        scores = [(_faults(case), i) for i, fix in enumerate(fixes) if (case := self.tried([fix]))]
        return fixes[min(scores)[1]] if scores else fixes[0]


def _faults(case: Case) -> int:
    matches = [d.decision.matching for d in case.decisions]
    dead = dead_rules(case.recipe, matches)
    shadowed = shadowed_rules(case.recipe, matches, [d.decision.rule for d in case.decisions])
    return 10 * (len(dead) + len(shadowed)) + len(case.uncovered())
