r"""What llama-quantize's lower-casing of patterns changes: `\D`, `\S`, `\W` and `\B`.

GP110: llama-quantize lower-cases the pattern
    It turns `\D` into `\d`, which means the opposite. Write the set out.
    - blk\.\d+\.\D+_exps\.weight = q4_K
    + blk\.\d+\.[^0-9]+_exps\.weight = q4_K
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import part_of, rewritten
from ggplan.rules import Fix
from ggplan.rules.patterns import tokens

_INSTEAD = {r"\D": "[^0-9]", r"\S": "[^ ]", r"\W": "[^a-z0-9_]"}


class Lowered(Finding):
    """The escape that is lower-cased, and the pattern without it."""

    escape: str
    pattern: str

    @property
    def message(self) -> str:
        return f"llama-quantize lower-cases patterns: `{self.escape}` becomes `{self.escape.lower()}`"

    def help(self, fix: Fix | None) -> str:
        return f"write `{self.pattern}`" if fix else "leave it out"


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
            fix = rewritten(rule, text, safe=True) if text != rule.pattern else None
            yield Lowered(part_of(rule, hit[2], len(hit[1])), hit[1], text, fixes=(fix,))


GP110 = LintRule("GP110", "warning", check, reads_patterns=True)
