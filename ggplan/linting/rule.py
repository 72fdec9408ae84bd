"""LintRule and Finding: what a rule of the linter is made of.

A rule is one module in `ggplan.linting.rules` with at least one `LintRule`: its page, and a check, which
looks at a `Case` and gives findings. A finding is a value with the facts. It words them itself, and knows
how to mend what it found. The engine (`ggplan.linting.engine`) finds the modules and does everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, FrozenInstanceError, dataclass, replace
from inspect import get_annotations
from typing import TYPE_CHECKING, ClassVar, dataclass_transform

from ggplan.rules import Fix, Location, Severity

if TYPE_CHECKING:
    from ggplan.linting.case import Case
    from ggplan.linting.trials import Trials


@dataclass_transform(frozen_default=True)
class _Value:
    """A base whose subclasses are frozen values with the annotations as fields, like dataclasses.

    A program that lints imports dozens of findings. What `dataclass` generates for each takes a millisecond,
    and for all of them a tenth of the time until `ggplan convert` writes its first row.
    """

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = get_annotations(cls).items()
        cls._fields += tuple(name for name, kind in own if not str(kind).startswith(("ClassVar", "KW_ONLY")))

    if not TYPE_CHECKING:  # a type checker derives it from the fields

        def __init__(self, *values, **named):
            # Those with a default are given by name.
            required = [name for name in self._fields if not hasattr(type(self), name)]
            facts = dict(zip(required, values, strict=False), **named)
            if len(values) > len(required) or not set(required) <= facts.keys() <= set(self._fields):
                raise TypeError(f"{type(self).__name__} takes {', '.join(self._fields)}")
            self.__dict__.update(facts)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._facts().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Value) and type(self) is type(other) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash((type(self), *self._facts().values()))

    def _facts(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self._fields}


class Finding(_Value):
    """What a rule found at one place. Each kind is a subclass that holds the facts, and words of them.

    Attributes
    ----------
    at
        Where; line 0 is the file as a whole.
    fixes
        The edits that may mend it, the likeliest first; of several, the best is found by trying.
    says
        What is wrong, in one line that stands alone, with `{f.name}` for a fact.
    advice
        What to write instead, or "", likewise.
    """

    at: Location
    _: KW_ONLY
    fixes: tuple[Fix | None, ...] = ()
    says: ClassVar[str] = ""
    advice: ClassVar[str] = ""

    @property
    def message(self) -> str:
        """What is wrong."""
        return self.says.format(f=self)

    def help(self, fix: Fix | None) -> str:
        """What to write instead; `fix` is what `fix` gave."""
        return self.advice.format(f=self)

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        """The edits that mend it, if any."""
        return trials.best([fix for fix in self.fixes if fix is not None])

    @property
    def cost_bytes(self) -> int | None:
        """What it costs in bytes of the file, where the facts tell it exactly."""
        return None

    @property
    def explains(self) -> frozenset[int]:
        """The tensors that have no rule because of it."""
        return frozenset()

    @property
    def also_at(self) -> tuple[Location, ...]:
        """Further lines that it is about: a rule that yields to this one's is silent on them too."""
        return ()


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
    check
        Gives the findings; None for an error that the parser raises.
    yields_to
        Codes whose findings on the same line, or with a fix that edits it, explain this one: it is dropped.
    needs_model
        Whether names and shapes are looked at, not the text alone.
    reads_patterns
        Whether each pattern is looked at; not done in recipes of very many rules.
    when_mended
        Whether it is asked last, and told only of what stays when all other findings are mended.
    needs_imatrix
        Whether it looks at an importance matrix, which only plans have.
    about_comments
        Whether it looks at what comments have silenced, and so is asked after all others.
    shows_cost
        Whether the engine computes what the mistake costs, by what the types weigh once it is mended.
    title, why, example, instead
        The page, which stands in the module's docstring; see `with_page`.
    """

    code: str
    severity: Severity
    check: Callable[[Case], Iterable[Finding]] | None = None
    yields_to: tuple[str, ...] = ()
    needs_model: bool = True
    reads_patterns: bool = False
    when_mended: bool = False
    needs_imatrix: bool = False
    about_comments: bool = False
    shows_cost: bool = False
    title: str = ""
    why: str = ""
    example: str = ""
    instead: str = ""

    @property
    def page(self) -> str:
        """Its page as Markdown."""
        parts = [f"## {self.code}: {self.title}", self.why]
        if self.example:
            parts.append(f"```text\n{self.example}\n```")
        if self.instead:
            parts.append(f"{'Instead' if self.example else 'Write'}:\n\n```recipe\n{self.instead}\n```")
        return "\n\n".join(parts) + "\n"

    def with_page(self, docstring: str) -> LintRule:
        """The rule with its page out of a docstring: title, what it means, a recipe that is wrong (`-`),
        right (`+`).

        GP017: nothing uses a name
            A `@let` that nothing uses is left over.
            - @let MOE = {1..46}

        Raises
        ------
        ValueError
            If the docstring has no such page.
        """
        _, found, rest = docstring.partition(f"\n{self.code}: ")
        title, *lines = rest.partition("\n\n")[0].strip().split("\n") if found else [""]
        lines = [line.strip() for line in lines]
        parts: dict[str, list[str]] = {"- ": [], "+ ": [], "": []}
        for line in lines:
            mark = line[:2] if line[:2] in parts else ""
            parts[mark].append(line[len(mark) :])
        why, wrong, right = " ".join(parts[""]), "\n".join(parts["- "]), "\n".join(parts["+ "])
        if not title or not why:
            raise ValueError(
                f"the module's docstring has no page of {self.code}: it opens with a line of its own; "
                f"below stand `{self.code}: TITLE` and, indented, what it means"
            )
        return replace(self, title=title, why=why, example=wrong, instead=right)
