r"""Comments that silence findings: one that silences none, and one that cannot.

GP019: a comment ignores nothing
    `# ggplan: ignore CODE` silences the findings of a code on its line, or on the next where it has a line
    of its own; `# ggplan: ignore-file CODE` does in the whole file. This one silences none: what it was for
    is mended, or stands on another line; or it is not written so, and is not read (`# ggplan ignore GP102`).
    - ^output\.weight$ = q8_0  # ggplan: ignore GP102
    + ^output\.weight$ = q8_0

GP020: a comment ignores what cannot be ignored
    Such a comment names codes, each in full. A code that does not exist, a misspelt word, or a code of what
    keeps the recipe from being read (GP001 to GP016) would silently do nothing.
    - output\.weight = q8_0  # ggplan: ignore GP1O2
    + output\.weight = q8_0  # ggplan: ignore GP102
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.linting.case import Case
from ggplan.linting.ignoring import IgnoreComment, nearest_code
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import join
from ggplan.rules import Edit, Fix, Location
from ggplan.rules.draft import deleting, replacing
from ggplan.text import printable


class IdleComment(Finding):
    """The codes of which a comment silences no finding."""

    codes: tuple[str, ...]
    is_whole: bool
    line: int

    @property
    def message(self) -> str:
        if self.line < 0:
            return "no rule stands below this comment, so it ignores nothing"
        where = "in this file" if self.line == 0 else f"on line {self.line}"
        return f"there is no {join(self.codes, 'or')} {where} to ignore"

    def help(self, fix: Fix | None) -> str:
        return "delete the comment" if self.is_whole else f"leave out {join(self.codes)}"


class UnreadComment(Finding):
    """A comment that is written nearly as one that ignores, and how such a one begins."""

    begins: str
    says = "this comment ignores nothing: it does not begin with `{f.begins}`"
    advice = "write `# {f.begins}` and the codes"


class UnknownCode(Finding):
    """A word in the place of a code, and the code that is probably meant."""

    text: str
    near: str
    says = "`{f.text}` is no code"

    def help(self, fix: Fix | None) -> str:
        return f"the nearest is `{self.near}`" if self.near else "name a code as findings do, such as `GP102`"


class SyntaxCode(Finding):
    """A code of the parser's."""

    code: str
    says = "{f.code} cannot be ignored: such a line cannot be read"
    advice = "mend the line, and leave {f.code} out"


class NoCodes(Finding):
    """A comment that names no code."""

    says = "the comment names no code, so it ignores nothing"
    advice = "name the codes, such as `# ggplan: ignore GP103`"


class UnknownWord(Finding):
    """A word in the place of `ignore`."""

    text: str
    meant: str
    names_codes: bool
    says = "`ggplan: {f.text}` ignores nothing"

    def help(self, fix: Fix | None) -> str:
        return f"write `ggplan: {self.meant}`" + (
            "" if self.names_codes else " and the codes, such as `GP103`"
        )


def check_idle(case: Case) -> Iterator[IdleComment | UnreadComment]:
    for at, begins in case.unread_comments():
        yield UnreadComment(at, begins, fixes=(replacing(at, begins, safe=False),))
    for comment, codes in case.idle_codes:
        is_whole = len(codes) == len(comment.codes)
        fix = _without(comment, codes)
        yield IdleComment(comment.at, codes, is_whole, comment.line, fixes=(fix,))


def check_codes(case: Case) -> Iterator[Finding]:
    from ggplan.linting.engine import lint_rules

    rules = lint_rules()
    for comment in case.comments():
        if not comment.is_valid:
            # Without codes the right word would ignore nothing either.
            fixes = (replacing(comment.word, comment.meant, safe=True),) if comment.codes else ()
            text = printable(comment.word_text[:40])
            yield UnknownWord(comment.word, text, comment.meant, bool(comment.codes), fixes=fixes)
            continue
        if not comment.codes:
            yield NoCodes(comment.at)
        for text, at in comment.codes:
            rule = rules.get(text.upper())
            if rule is None:
                near = nearest_code(text, rules)
                nearest = (replacing(at, near, safe=False),) if near else ()
                yield UnknownCode(at, printable(text[:40]), near, fixes=nearest)
            elif rule.check is None:
                yield SyntaxCode(at, rule.code, fixes=(_without(comment, (text,)),))


def _without(comment: IgnoreComment, codes: tuple[str, ...]) -> Fix:
    """The fix that takes codes out of a comment, and the comment away where none is left."""
    at = comment.at
    left = [text for text, _ in comment.codes if text not in codes]
    if left:
        first, last = comment.codes[0][1], comment.codes[-1][1]
        span = Location(at.file, at.line, first.column, last.column + last.length - first.column)
        return replacing(span, ", ".join(left), safe=True)
    if comment.is_alone:
        return deleting(at.file, at.line, safe=True)
    return Fix((Edit(at.file, at.line, comment.after, at.column + at.length - comment.after, ""),), safe=True)


GP019 = LintRule("GP019", "note", check_idle, needs_model=False, about_comments=True)
GP020 = LintRule("GP020", "error", check_codes, needs_model=False)
