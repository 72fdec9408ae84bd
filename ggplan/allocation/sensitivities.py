"""Sensitivities as values: how much a model loses when tensors get a type.

`ggplan.allocation.sensitivity_tables` reads them from the tables that are published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Figure = Literal["kld", "ppl", "dppl", "top_p"]
Of = Literal["tensor", "group", "model"]

FIGURES: dict[Figure, str] = {
    "kld": "mean KL divergence from the unquantized model, nats",
    "ppl": "perplexity",
    "dppl": "loss of perplexity from the unquantized model's, per cent",
    "top_p": "tokens whose most likely one is the unquantized model's, per cent",
}
"""What a figure is."""
SITUATIONS: dict[Of, str] = {
    "tensor": "of the model with this tensor alone at the type",
    "group": "of the model with the tensors of this group at the type",
    "model": "of the model with all tensors at the type",
}
"""What a figure is a figure of."""
SCHEMA = "ggplan.sensitivities/1"


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The figures of one tensor, one group, or the whole model.

    Attributes
    ----------
    name
        As the table calls it.
    pattern
        A regular expression, searched for in GGUF names, that finds its tensors.
    figures
        By the names of types.
    missing
        Types that the table marks as not measured.
    errors
        The standard errors of figures, where the table has them.
    shape
        The tensor's, rows last, without dimensions of 1; () where the table has none.
    """

    name: str
    pattern: str
    figures: Mapping[str, float]
    missing: tuple[str, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """A table of sensitivities.

    Attributes
    ----------
    figure
        What the figures are, a key of `FIGURES`.
    of
        What they are figures of, a key of `SITUATIONS`.
    places
        The tensors or groups, in the table's order.
    bpw
        Bits per weight of the whole model by type, where the table has them.
    model
        The model's name, where the table has it.
    remarks
        The comments of the table, which credit its authors.
    marks
        How many figures are marked as missing, by the mark.
    """

    figure: Figure
    of: Of
    places: tuple[Sensitivity, ...]
    bpw: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    remarks: tuple[str, ...] = ()
    marks: Mapping[str, int] = field(default_factory=dict)

    @property
    def types(self) -> tuple[str, ...]:
        """The types of the table, in its order."""
        return tuple(dict.fromkeys(t for place in self.places for t in (*place.figures, *place.missing)))

    def of_tensor(self, name: str) -> Mapping[str, float]:
        """The figures for a tensor, by type; {} where the table has none."""
        found = next((place for place in self.places if re.search(place.pattern, name)), None)
        return found.figures if found is not None else {}


def sensitivities_json(table: Sensitivities) -> dict[str, Any]:
    """The table as JSON values."""
    return {
        "schema": SCHEMA,
        "figure": table.figure,
        "of": table.of,
        "model": table.model,
        "remarks": list(table.remarks),
        "bpw": dict(table.bpw),
        "places": [
            {
                "name": place.name,
                "pattern": place.pattern,
                "figures": dict(place.figures),
                "missing": list(place.missing),
            }
            for place in table.places
        ],
    }
