r"""GP110: what llama-quantize's lower-casing of patterns changes: `\D`, `\S`, `\W` and `\B`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.linting.wording import part_of, rewritten
from ggplan.rules import Fix, Rule
from ggplan.rules.patterns import tokens

_INSTEAD = {r"\D": "[^0-9]", r"\S": "[^ ]", r"\W": "[^a-z0-9_]"}


@dataclass(frozen=True, slots=True)
class Lowered(Finding):
    """The escape that is lower-cased, and the pattern without it."""

    rule: Rule
    escape: str
    pattern: str

    @property
    def message(self) -> str:
        return f"llama-quantize lower-cases patterns: `{self.escape}` becomes `{self.escape.lower()}`"

    def help(self, fix: Fix | None) -> str:
        return f"write `{self.pattern}`" if fix else "leave it out"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        if self.pattern == self.rule.pattern:
            return None
        return rewritten(self.rule, self.pattern, safe=True)


def check(case: Case) -> Iterator[Lowered]:
    if case.recipe.target == "ik_llama.cpp":
        return
    for _, rule in case.rules():
        if rule.roles or rule.expanded:
            continue
        pieces = list(tokens(rule.pattern))
        hit = next((p for p in pieces if p[1] in (*_INSTEAD, r"\B")), None)
        if hit is not None:
            text = "".join(_INSTEAD.get(p[1], p[1]) for p in pieces)
            yield Lowered(part_of(rule, hit[2], len(hit[1])), rule, hit[1], text)


GP110 = LintRule(
    "GP110",
    "warning",
    "llama-quantize lower-cases the pattern",
    r"It turns `\D` into `\d`, which means the opposite. Write the set out.",
    r"blk\.\d+\.\D+_exps\.weight = q4_K",
    r"blk\.\d+\.[^0-9]+_exps\.weight = q4_K",
    check,
    reads_patterns=True,
)
