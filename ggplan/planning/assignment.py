"""Assignment: the type of each tensor of a model, and who chose it.

    blk.3.ffn_down_exps.weight   q6_K   rule 7 of the recipe
    blk.3.attn_norm.weight       f32    kept, because it is a norm
    output.weight                q6_K   the mix Q4_K_M

It has no bytes, offsets or engines: a type may be one that the tensor's rows cannot hold, and
`ggplan.planning.fitting` decides what is written then. Five functions make one:

    decide(model, recipe)         the rules of a recipe              ggplan.planning.decisions
    mix_types(model, mix)         what llama-quantize's mix gives    ggplan.planning.makers
    stored_types(model)           the types in a file                ggplan.planning.makers
    types_by_hand(model, types)   a table that the caller made       ggplan.planning.makers
    kept_types(model)             a conversion without quantizing    ggplan.planning.makers

and `lay_out` makes a `Plan` of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ggplan.errors import PlanError
from ggplan.ggml_types import GgmlType
from ggplan.rules import Keep, Recipe
from ggplan.stock import Mix
from ggplan.text import nearest, printable

Reason = Literal["rule", "default", "mix", "optimiser", "file", "hand", "kept"]
"""What chose a type: a rule, `@default`, a stock mix, the optimiser, a file's own types, the caller; or
nothing ("kept"), and the tensor is written as a plain conversion writes it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The type chosen for a tensor, and why.

    Attributes
    ----------
    type
        The chosen type. From a rule's chain, the first type that the tensor's shape allows, else the last.
    reason
        What chose it.
    protected
        Why llama-quantize would not quantize the tensor (see `ggplan.planning.protection`), or None.
    rule
        The index of the rule that decided, where one did.
    forced
        Whether the rule or `@default` that decided ends in `!`, and so holds for protected tensors too.
    matching
        The indices of all rules that match the tensor, ascending.
    passed_over
        Those of them that would decide if the tensor were not protected.
    keep
        The `keep` of the chain that was taken, if one was: `type` is the tensor's own, or the type of
        `keep(q4_1)`.
    fused
        Where rules for the tensor's other form decided (see `ggplan.planning.fused`): the names of that
        form, and the type that the rules ask for each.
    """

    type: GgmlType
    reason: Reason
    protected: str | None = None
    rule: int | None = None
    forced: bool = False
    matching: tuple[int, ...] = ()
    passed_over: tuple[int, ...] = ()
    keep: Keep | None = None
    fused: tuple[tuple[str, GgmlType], ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """The type of each tensor of a model, and why.

    Attributes
    ----------
    name
        The recipe's name, the mix's (`Q4_K_M`, `Q4_K_M pure`) or the file's; "" if every tensor keeps its
        type.
    decisions
        By the tensor's name.
    recipe
        The recipe whose rules decided, if rules did; `Decision.rule` is an index into its rules.
    mix
        The stock mix that decided, if one did.
    description
        One line on where the types come from, for the heading of a recipe that is written from them.
    """

    name: str
    decisions: Mapping[str, Decision]
    recipe: Recipe | None = None
    mix: Mix | None = None
    description: str = ""

    @property
    def keeps_types(self) -> bool:
        """Whether every tensor keeps its type, so that there is nothing to record."""
        if self.recipe is not None or self.mix is not None:
            return False
        return all(decision.reason == "kept" for decision in self.decisions.values())

    def decision(self, name: str) -> Decision:
        """The decision for one tensor.

        Raises
        ------
        PlanError
            If there is no tensor of this name; the hint names the nearest.
        """
        found = self.decisions.get(name)
        if found is None:
            raise unknown_tensor(name, self.decisions)
        return found

    def chosen_by(self, name: str) -> str:
        """What chose a tensor's type, for tables: `hq4_k.recipe:14`, `@default`, `Q4_K_M`, `kept`.

        Raises what `decision` raises.
        """
        decision = self.decision(name)
        match decision.reason:
            case "rule":
                assert self.recipe is not None
                assert decision.rule is not None
                return self.recipe.rules[decision.rule].where
            case "default":
                return "@default"
            case "hand":
                return "by hand"
            case "kept":
                return "kept"
        return self.name or decision.reason


def unknown_tensor(name: str, known: Mapping[str, object], whose: str = "the model") -> PlanError:
    """The error for a tensor's name that is not among the known ones."""
    near = nearest(name, known)
    hint = f"the nearest is {printable(near)}" if near else "`ggplan inspect` lists the tensors of a model"
    return PlanError(f"{whose} has no tensor {printable(name[:100])}", hint=hint)
