"""What the shipped recipes say of themselves: their first lines, in the form that `ggplan rules list` reads.

    # Quality: q4_K and q6_K experts beside q8_0 attention.
    #
    # (anything)
    #
    #   GLM-4.5-Air   80.65 GiB, 6.271 bpw; RAM 68.8 GiB, 4.23 of it per token; GPU 7.9 GiB

The first line is the summary, of one sentence. A line of three blanks and the name of an inventory tells
what the recipe gives for that model: the size of all tensors, their bits per weight, and where they go with
`llama.cpp -ngl 99 --cpu-moe` (`ggplan.planning.devices` has the definition). RAM holds the routed experts, of
which a token reads the few it is routed to, and the token embeddings; the GPU all else, which every token
reads. Neither counts the block that only predicts further tokens (nextn). Without experts no RAM is told.

`tools/make_library.py` writes these lines, and a test plans every recipe to see that they are true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.rules.loading import recipe_text, shipped_recipes

FIGURES = re.compile(
    r"^#   (?P<model>\S+) +(?P<size>\d+\.\d+) GiB, (?P<bpw>\d+\.\d+) bpw;"
    r"( RAM +(?P<ram>\d+\.\d+) GiB, +(?P<token>\d+\.\d+) of it per token;)? GPU +(?P<gpu>\d+\.\d+) GiB$",
    re.ASCII | re.MULTILINE,
)
_TARGET = re.compile(r"^@target +(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a recipe gives for one model; sizes in GiB.

    Attributes
    ----------
    size, bits_per_weight
        Of all tensors.
    ram
        Routed experts and token embeddings; None for a model without experts.
    ram_per_token
        What one token reads of it.
    gpu
        All else, read by every token.
    """

    model: str
    size: float
    bits_per_weight: float
    ram: float | None
    ram_per_token: float | None
    gpu: float


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """A recipe that ships with ggplan, by what its first lines say.

    Attributes
    ----------
    name
        What `load_recipe` takes: `glm4moe/hq4_k`.
    summary
        Its first line.
    target
        The engine whose types it uses.
    figures
        One for each model it is for.
    """

    name: str
    summary: str
    target: str
    figures: tuple[Figures, ...]

    @property
    def family(self) -> str:
        """The folder it is in; empty for a recipe that serves several families."""
        return self.name.rpartition("/")[0]


def library() -> tuple[ShippedRecipe, ...]:
    """All recipes that ship with ggplan, by family and then from the largest to the smallest."""
    entries = [_entry(name) for name in shipped_recipes()]
    return tuple(sorted(entries, key=lambda e: (not e.family, e.family, -_mean_bits(e), e.name)))


def _entry(name: str) -> ShippedRecipe:
    text, _, _ = recipe_text(name)
    summary = text.partition("\n")[0].lstrip("# ").strip()
    target = _TARGET.search(text)
    return ShippedRecipe(name, summary, target[1] if target else "llama.cpp", tuple(_figures(text)))


def _figures(text: str) -> Iterator[Figures]:
    for found in FIGURES.finditer(text):
        ram, token = found["ram"], found["token"]
        yield Figures(
            model=found["model"],
            size=float(found["size"]),
            bits_per_weight=float(found["bpw"]),
            ram=float(ram) if ram else None,
            ram_per_token=float(token) if token else None,
            gpu=float(found["gpu"]),
        )


def _mean_bits(entry: ShippedRecipe) -> float:
    return sum(f.bits_per_weight for f in entry.figures) / max(len(entry.figures), 1)
