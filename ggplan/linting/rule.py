"""LintRule and Finding: what a rule of the linter is made of.

A rule is one module in `ggplan.linting.rules` with at least one `LintRule`: its page, and a check, which
looks at a `Case` and gives findings. A finding is a value with the facts. It words them itself, and knows
how to mend what it found. The engine (`ggplan.linting.engine`) finds the modules and does everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.rules import Fix, Location, Severity

if TYPE_CHECKING:
    from ggplan.linting.case import Case
    from ggplan.linting.trials import Trials


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found at one place. Each kind is a subclass that holds the facts and words them.

    Attributes
    ----------
    at
        Where; line 0 is the file as a whole.
    """

    at: Location

    @property
    def message(self) -> str:
        """What is wrong, in one line that stands alone."""
        raise NotImplementedError

    def help(self, fix: Fix | None) -> str:
        """What to write instead, or ""; `fix` is what `fix` gave."""
        return ""

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        """The edits that mend it; several may be tried, within what `trials` allows."""
        return None

    @property
    def cost_bytes(self) -> int | None:
        """What it costs in bytes of the file, where the facts tell it exactly."""
        return None

    @property
    def explains(self) -> frozenset[int]:
        """The tensors that have no rule because of it."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class LintRule:
    """A code: what it means, and how it is found.

    Attributes
    ----------
    code
        GP0xx is the text of a recipe, GP1xx rules that meet the names of a model, GP2xx types that meet its
        shapes, GP3xx what a recipe demands of itself. A code never changes its meaning and is never used
        again.
    severity
        An error: the recipe cannot do what it says. A warning: it hardly does what was meant. A note: a fact
        that one should know, and no mistake.
    title, why, example, instead
        The page: what is wrong, why it matters, and lines of a recipe with the mistake and without.
    check
        Gives the findings; None for an error that the parser raises.
    yields_to
        Codes whose findings on the same line, or with a fix that edits it, explain this one: it is then
        dropped.
    needs_model
        Whether names and shapes are looked at, not the text alone.
    reads_patterns
        Whether each pattern is looked at; not done in recipes of very many rules.
    when_mended
        Whether it is asked last, and told only of what stays when all other findings are mended.
    shows_cost
        Whether the engine reckons what the mistake costs, by what the types weigh once it is mended.
    """

    code: str
    severity: Severity
    title: str
    why: str
    example: str = ""
    instead: str = ""
    check: Callable[[Case], Iterable[Finding]] | None = None
    yields_to: tuple[str, ...] = ()
    needs_model: bool = True
    reads_patterns: bool = False
    when_mended: bool = False
    shows_cost: bool = False

    @property
    def page(self) -> str:
        """Its page as Markdown."""
        parts = [f"## {self.code}: {self.title}", self.why]
        if self.example:
            parts.append(f"```text\n{self.example}\n```")
        if self.instead:
            parts.append(f"{'Instead' if self.example else 'Write'}:\n\n```recipe\n{self.instead}\n```")
        return "\n\n".join(parts) + "\n"
