"""A recipe for another architecture than the model's, by what it says or by the names that its rules hold.

A tensor map says nothing of the architecture; then the names of its tensors tell, where a shipped inventory
has the same.

GP209: the recipe is for another architecture
    `@arch` names another than the model's, or the rules hold names of tensors that another family has;
    they may match nothing or the wrong tensors. Choose another recipe, or another model with `-m`.
    - @arch glm4
    + @arch glm4moe
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ggplan.inventories import architecture_of, inventories, inventory
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import join
from ggplan.rules import Fix, Location, match
from ggplan.rules.draft import replacing
from ggplan.rules.matching import recipe_steps
from ggplan.rules.recipe import split_lines
from ggplan.rules.steps import MAX_STEPS
from ggplan.text import nearest, printable

_FEWEST_IDLE = 2  # rules without a tensor that make one look for another family
_MOST_LOOKED_AT = 30  # such rules
_SHARE_IDLE = 0.25  # of all rules
_SHARE_EXPLAINED = 0.75  # of these rules, that another family has tensors for


class OtherArchitecture(Finding):
    """What `@arch` says, and what the model is, by its metadata or by the names of its tensors."""

    recipe: str
    model: str
    is_by_names: bool
    idle: tuple[Location, ...]

    @property
    def message(self) -> str:
        how = "has the tensors of" if self.is_by_names else "is"
        return f"the recipe is for {self.recipe}, the model {how} {self.model}"

    def help(self, fix: Fix | None) -> str:
        return "choose another recipe" + (f", or write `@arch {self.model}`" if fix else "")

    @property
    def also_at(self) -> tuple[Location, ...]:
        return self.idle


class UnknownArchitecture(Finding):
    """An `@arch` that llama.cpp does not know, and the one that is probably meant."""

    recipe: str
    near: str
    says = "no architecture of llama.cpp is called {f.recipe}"
    advice = "the nearest is `{f.near}`"


class OtherFamily(Finding):
    """Rules that match nothing here and would in models of another family.

    Attributes
    ----------
    n_rules
        All rules of the recipe.
    model
        What messages call the model.
    families
        The architectures that have tensors for most of these rules.
    idle
        The rules.
    """

    n_rules: int
    model: str
    families: tuple[str, ...]
    idle: tuple[Location, ...]

    @property
    def message(self) -> str:
        lines = ", ".join(str(at.line) for at in self.idle[:5]) + (", …" if len(self.idle) > 5 else "")
        told = f"{len(self.idle)} of {self.n_rules} rules (lines {lines}) match nothing in {self.model}"
        return f"{told}: they name tensors of {join(self.families, 'or')}"

    def help(self, fix: Fix | None) -> str:
        return "give another model with -m, or choose another recipe: `ggplan rules list` has them by family"

    @property
    def also_at(self) -> tuple[Location, ...]:
        return self.idle


def check(case: Case) -> Iterator[Finding]:
    recipe, model = case.recipe, case.model
    told = model.architecture or architecture_of(t.name for t in model.tensors)
    idle = [i for i, _ in case.rules() if not case.members[i]]
    asked = recipe.architecture
    if not asked:
        yield from _other_family(case, told, idle)
    elif told and asked != told and (model.architecture or asked in _shipped() or _misspelt(asked)):
        at = _place(case)
        # A slip of the pen; another architecture's name may be right, and the model the wrong one.
        fix = replacing(at, told, safe=_misspelt(asked) == told) if at.line else None
        places = tuple(case.recipe.rules[i].location for i in _alive_in(case, idle, asked))
        shown = (printable(asked), printable(told), not model.architecture)
        yield OtherArchitecture(at, *shown, places, fixes=(fix,))
    elif not told and (near := _misspelt(asked)):
        at = _place(case)
        fix = replacing(at, near, safe=False) if at.line else None
        yield UnknownArchitecture(at, printable(asked), near, fixes=(fix,))


def _other_family(case: Case, told: str, idle: list[int]) -> Iterator[OtherFamily]:
    n_rules = len(case.rules())
    if len(idle) < max(_FEWEST_IDLE, _SHARE_IDLE * n_rules):
        return
    alive = {name: _alive_in(case, idle, name) for name in _shipped() if name != told}
    most = max(map(len, alive.values()), default=0)
    if most < max(_FEWEST_IDLE, _SHARE_EXPLAINED * min(len(idle), _MOST_LOOKED_AT)):
        return
    families = tuple(name for name, rules in alive.items() if len(rules) == most)
    places = tuple(case.recipe.rules[i].location for i in alive[families[0]])
    model = printable(case.model.path.name) + (f", which is {printable(told)}" if told else "")
    yield OtherFamily(case.file, n_rules, model, families[:2], places)


def _alive_in(case: Case, idle: list[int], architecture: str) -> list[int]:
    """Those of some rules that match a tensor of a model of an architecture, if one ships."""
    looked_at = idle[:_MOST_LOOKED_AT]
    names = _shipped().get(architecture)
    if not names or not looked_at:
        return []
    tensors = [tensor.name for tensor in inventory(names[0]).tensors]
    recipe = replace(case.recipe, rules=tuple(case.recipe.rules[i] for i in looked_at))
    if recipe_steps(recipe, tensors) > MAX_STEPS // 10:
        return []
    hit = {n for hits in match(recipe, tensors) for n in hits}
    return [i for n, i in enumerate(looked_at) if n in hit]


def _shipped() -> dict[str, list[str]]:
    """The architectures of the shipped inventories, with their names."""
    found: dict[str, list[str]] = {}
    for name in inventories():
        found.setdefault(inventory(name).architecture, []).append(name)
    return found


def _misspelt(architecture: str) -> str:
    """The architecture that is meant, where llama.cpp knows none of this name and one that is like it."""
    if architecture in _shipped():
        return ""
    from gguf.constants import MODEL_ARCH_NAMES  # it imports numpy, which other checks do without

    known = set(MODEL_ARCH_NAMES.values())
    return "" if architecture in known else nearest(architecture, sorted(known))


def _place(case: Case) -> Location:
    """Where the recipe itself says so, or it as a whole."""
    named = case.recipe.architecture
    for number, line in enumerate(split_lines(case.recipe.text), start=1):
        if line.split("#")[0].split()[:2] == ["@arch", named]:
            return Location(case.recipe.file, number, line.index(named) + 1, len(named))
    return case.file


GP209 = LintRule("GP209", "warning", check)
