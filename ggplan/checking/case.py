"""Case: one recipe on one model, and what findings are made of: what matches, and what is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggplan.model import Model, TensorInfo
from ggplan.planning import FallbackTable, Fitted, decide, fit
from ggplan.rules import Blocks, Recipe, Rule, roles_of


@dataclass(frozen=True, slots=True)
class Case:
    """A recipe's decisions on a model.

    Attributes
    ----------
    decisions
        One for each tensor, in the model's order.
    members
        For each rule the indices of the tensors it matches.
    decided
        For each rule the indices of those it decides.
    """

    model: Model
    recipe: Recipe
    blocks: Blocks
    decisions: tuple[Fitted, ...]
    members: tuple[frozenset[int], ...]
    decided: tuple[frozenset[int], ...]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The model's tensors."""
        return self.model.tensors

    def rules(self) -> Sequence[tuple[int, Rule]]:
        """The rules that stand in the recipe's own files, with their index; not those that it inherits."""
        rules = self.recipe.rules
        return list(enumerate(rules[: len(rules) - self.recipe.n_inherited]))

    def roles(self, index: int) -> tuple[str, ...]:
        """The roles of a tensor."""
        return roles_of(self.tensors[index].name, self.blocks)

    def uncovered(self) -> list[int]:
        """The tensors that no rule and no `@default` decides and that could be quantized."""
        return [
            i
            for i, d in enumerate(self.decisions)
            if d.decision.reason == "kept" and d.decision.protected is None
        ]

    def n_bytes(self) -> int:
        """Bytes of all tensors as decided."""
        return sum(d.type.tensor_bytes(d.tensor.shape) for d in self.decisions)


def make_case(model: Model, recipe: Recipe, table: FallbackTable) -> Case:
    """Decide the model's tensors by the recipe.

    Raises
    ------
    RecipeError
        If matching takes too long.
    """
    decisions = fit(model, decide(model, recipe), table)
    together: dict[tuple[int, ...], list[int]] = {}  # the tensors of a role are matched by the same rules
    decided: dict[int, list[int]] = {}
    for i, decision in enumerate(decisions):
        together.setdefault(decision.decision.matching, []).append(i)
        if decision.decision.rule is not None:
            decided.setdefault(decision.decision.rule, []).append(i)
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
        decisions,
        tuple(joined(groups.get(rule, [])) for rule in range(n_rules)),
        tuple(frozenset(decided.get(rule, ())) for rule in range(n_rules)),
    )
