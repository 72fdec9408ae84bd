"""Case: a recipe on a model, and the facts that rules look at: what matches, what is decided, what it weighs.

The model may be a checkpoint or an inventory; `subject_of` finds the shipped inventory that a recipe is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ggplan.inventories import inventories_of, inventory, names_of_inventories
from ggplan.linting.ignoring import IgnoreComment, ignore_comments, unread_comments
from ggplan.model import Model, TensorInfo
from ggplan.planning import Assignment, FallbackTable, Fitted, decide, fit
from ggplan.rules import Blocks, Choice, Location, Recipe, Rule, parse_recipe, roles_of
from ggplan.rules.matching import recipe_steps
from ggplan.rules.steps import MAX_STEPS
from ggplan.stock import Mix

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

MANY_RULES = 2_000
NO_RECIPE = parse_recipe("", "")
"""Stands for the recipe where a mix, a file or nothing chose the types."""
_HEAD_LINES = 60
_LARGEST_TRIED = 200_000  # rules times tensors
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Case:
    """What a recipe, or what stands for one, gives a model.

    Attributes
    ----------
    recipe
        `NO_RECIPE` where none decided.
    fitted
        For each tensor, in the model's order, what was decided and the type it gets.
    members
        For each rule the indices of the tensors it matches.
    decided
        For each rule the indices of those it decides.
    mix
        The stock mix that decided, if one did.
    imatrix
        The importance matrix that is given, or None.
    guided
        Tensors that need no entry in it: what they are encoded for is known otherwise.
    mended
        The same case once everything found so far is mended; None where that was not tried.
    explained
        The tensors whose lack of a rule an earlier finding explains.
    idle_codes
        For each comment that silences findings, the codes of which it has silenced none, though they were
        looked for.
    """

    model: Model
    recipe: Recipe
    blocks: Blocks
    fitted: tuple[Fitted, ...]
    members: tuple[frozenset[int], ...]
    decided: tuple[frozenset[int], ...]
    mix: Mix | None = None
    imatrix: Imatrix | None = None
    guided: frozenset[str] = frozenset()
    mended: Case | None = None
    explained: frozenset[int] = frozenset()
    idle_codes: tuple[tuple[IgnoreComment, tuple[str, ...]], ...] = ()
    _takers: dict[frozenset[int], dict[int, int]] = field(default_factory=dict, compare=False)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The model's tensors."""
        return self.model.tensors

    @property
    def file(self) -> Location:
        """The recipe as a whole."""
        return Location(self.recipe.file, 0, 0, 1)

    def comments(self) -> tuple[IgnoreComment, ...]:
        """The comments that silence findings, of the recipe and of all it draws in."""
        return ignore_comments(self._texts())

    def unread_comments(self) -> Iterator[tuple[Location, str]]:
        """Where a comment is nearly one of these, and how it begins rightly."""
        return unread_comments(self._texts())

    def _texts(self) -> list[tuple[str, str]]:
        return [(self.recipe.file, self.recipe.text), *self.recipe.parts]

    @property
    def has_many_rules(self) -> bool:
        """Whether looking at each pattern would take too long."""
        return len(self.recipe.rules) > MANY_RULES

    def rules(self) -> Sequence[tuple[int, Rule]]:
        """The rules that stand in the recipe's own files, with their index; not those that it inherits."""
        rules = self.recipe.rules
        return list(enumerate(rules[: len(rules) - self.recipe.n_inherited]))

    def choices(self) -> Sequence[Choice]:
        """What these rules and `@default` choose."""
        default = self.recipe.default
        return [*(rule.choice for _, rule in self.rules()), *([default] if default is not None else [])]

    def choice(self, rule: int | None) -> Choice | None:
        """What a rule chooses, or `@default`."""
        return self.recipe.default if rule is None else self.recipe.rules[rule].choice

    def place(self, rule: int | None) -> Location:
        """Where that stands."""
        choice = self.choice(rule)
        return self.file if choice is None else choice.location

    def roles(self, index: int) -> tuple[str, ...]:
        """The roles of a tensor."""
        return roles_of(self.tensors[index].name, self.blocks)

    def grouped(self, key_of: Callable[[Fitted], _Key | None]) -> dict[_Key, list[int]]:
        """The tensors by a key, in the model's order; not those whose key is None."""
        groups: dict[_Key, list[int]] = {}
        for t, fitted in enumerate(self.fitted):
            if (key := key_of(fitted)) is not None:
                groups.setdefault(key, []).append(t)
        return groups

    def kept(self, *, protected: bool) -> list[int]:
        """The tensors, protected or others, that no rule and no `@default` of the recipe decides."""
        if self.recipe is NO_RECIPE:
            return []
        decisions = [f.decision for f in self.fitted]
        return [
            t
            for t, d in enumerate(decisions)
            if d.reason == "kept" and (d.protected is not None) == protected
        ]

    def uncovered(self) -> list[int]:
        """The tensors that no rule and no `@default` decides and that could be quantized."""
        return self.kept(protected=False)

    def takers(self, index: int) -> dict[int, int]:
        """The rules above that decide tensors which this rule matches, ascending, and how many each."""
        members = self.members[index]
        if members not in self._takers:  # many rules may match the same tensors
            found: dict[int, int] = {}
            for t in members:
                if (rule := self.fitted[t].decision.rule) is not None:
                    found[rule] = found.get(rule, 0) + 1
            self._takers[members] = dict(sorted(found.items()))
        return {rule: n for rule, n in self._takers[members].items() if rule < index}

    def is_shadowed(self, index: int) -> bool:
        """Whether rules above take tensors that a rule matches, and leave it none to decide."""
        return not self.decided[index] and bool(self.takers(index))

    def n_idle(self) -> int:
        """How many rules match nothing or never decide; to be overruled is what `@base` is for."""
        dead = sum(not members for members in self.members)
        return dead + sum(self.is_shadowed(i) for i, _ in self.rules())

    def n_bytes(self) -> int:
        """Bytes of all tensors as decided."""
        return sum(f.type.tensor_bytes(f.tensor.shape) for f in self.fitted)


def make_case(model: Model, recipe: Recipe, table: FallbackTable | None = None) -> Case:
    """What a recipe gives a model.

    Parameters
    ----------
    table
        Whose fallbacks; None for the engine that `@target` names.

    Raises
    ------
    RecipeError
        If matching may take too many steps.
    """
    return case_of(model, decide(model, recipe), table)


def case_of(
    model: Model,
    assignment: Assignment,
    table: FallbackTable | None = None,
    imatrix: Imatrix | None = None,
    guided: frozenset[str] = frozenset(),
) -> Case:
    """What an assignment gives a model, with an importance matrix where there is one."""
    recipe, fitted = assignment.recipe or NO_RECIPE, fit(model, assignment, table)
    together: dict[tuple[int, ...], list[int]] = {}  # the tensors of a role are matched by the same rules
    decided: dict[int, list[int]] = {}
    for t, decision in enumerate(f.decision for f in fitted):
        together.setdefault(decision.matching, []).append(t)
        if decision.rule is not None:
            decided.setdefault(decision.rule, []).append(t)
    groups: dict[int, list[int]] = {}
    for number, hits in enumerate(together):
        for rule in hits:
            groups.setdefault(rule, []).append(number)
    lists = list(together.values())
    sets: dict[tuple[int, ...], frozenset[int]] = {}  # rules that match the same tensors share one

    def joined(numbers: list[int]) -> frozenset[int]:
        key = tuple(numbers)
        if key not in sets:
            sets[key] = frozenset(i for number in numbers for i in lists[number])
        return sets[key]

    n_rules = len(recipe.rules)
    return Case(
        model,
        recipe,
        Blocks.of(t.name for t in model.tensors),
        fitted,
        tuple(joined(groups.get(rule, [])) for rule in range(n_rules)),
        tuple(frozenset(decided.get(rule, ())) for rule in range(n_rules)),
        assignment.mix,
        imatrix,
        guided,
    )


def subject_of(recipe: Recipe) -> Model | None:
    """The shipped inventory to check a recipe against, or None where it says nothing of its model.

    What its first lines name (`# Model name: GLM-4.5-Air`), within the architecture that `@arch` names. Of
    several, the one that leaves the fewest rules without a tensor and tensors without a rule.
    """
    mentioned = _mentioned(recipe)
    candidates = list(inventories_of(recipe.architecture)) if recipe.architecture else mentioned
    candidates = [name for name in candidates if name in mentioned] or candidates
    if not candidates:
        return None
    models = [inventory(name) for name in candidates]
    if len(models) == 1 or len(recipe.rules) * len(models[0].tensors) > _LARGEST_TRIED:
        return models[0]
    if sum(recipe_steps(recipe, [t.name for t in model.tensors]) for model in models) > MAX_STEPS:
        return models[0]
    return min(models, key=lambda model: _misfits(recipe, model))


def _mentioned(recipe: Recipe) -> list[str]:
    head = "\n".join(recipe.text.split("\n", _HEAD_LINES)[:_HEAD_LINES])
    text = f"{recipe.file}\n{head}".lower()
    found = {
        home: None
        for name, home in names_of_inventories().items()
        if re.search(rf"(?<![\w.-]){re.escape(name.lower())}(?![\w-]|\.\d)", text)
    }
    return list(found)


def _misfits(recipe: Recipe, model: Model) -> int:
    case = make_case(model, recipe)
    return sum(not members for members in case.members) + len(case.uncovered())
