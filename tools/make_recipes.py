"""Make the optimised recipes of tensor_rules/: of each measured model, the least loss on usual machines.

    python tools/make_recipes.py [NAME ...]     all, or those whose names contain one of these

writes `tensor_rules/FAMILY/MODEL-VRAM-RAMgb.recipe`, and if all are made, the table of predictions in
tensor_rules/README.md. Each is what `ggplan optimize MODEL --vram 24G --ram 64G -c 32k` gives, for a GPU
alone that with `--ram 8G --gpu-layers 999 --pin "blk.*=CUDA0"`, with the heading that recipes of this folder
have: keys and values in f16, and what `ggplan fit` leaves for the system. Afterwards
`python tools/make_library.py` writes the other figures.

The models are those of which single tensors were measured, and others with the same tensors. Left out are
machines on which the model does not fit at two bits, or fits at q8_0, where nothing is left to choose.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from make_library import with_figures

from ggplan.allocation import Optimized, OptimizeOptions, optimize
from ggplan.allocation.candidates import ENGINE_TYPES
from ggplan.allocation.forecast import Forecast, forecast_of
from ggplan.allocation.machine_rows import Target
from ggplan.allocation.prior import REFERENCE_ERROR
from ggplan.allocation.scales import scales_by_prior
from ggplan.allocation.type_errors import type_error
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.inventories import inventory
from ggplan.offload.known_machine import Stated, machine_for
from ggplan.offload.placement import Wishes
from ggplan.offload.settings import Override
from ggplan.planning import Plan, make_plan
from ggplan.planning.roles import Role, roles_in
from ggplan.rules import load_recipe, parse_recipe
from ggplan.rules.formatting import format_recipe
from ggplan.rules.library import ShippedRecipe, library

FOLDER = Path(__file__).parent.parent / "tensor_rules"
TABLE = re.compile(r"(?<=<!-- made by tools/make_recipes.py -->\n).*?(?=<!-- end -->)", re.DOTALL)
MARK = "Made by tools/make_recipes.py"
CONTEXT = 32_768
SYSTEM_ONLY = 8  # GiB of RAM beside a GPU that holds all blocks
ON_GPU = Override("blk.*", "CUDA0")
QUALITY, BALANCED = 5.5, 4.25  # the least bits per weight of these levels
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Made:
    """A recipe to make; `also` are models with the same tensors, `ram` is 0 for a GPU alone; in GiB."""

    model: str
    vram: int
    ram: int
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As `load_recipe` takes it."""
        sizes = f"{self.vram}-{self.ram}gb" if self.ram else f"{self.vram}gb"
        return f"{inventory(self.model).architecture}/{self.model.lower()}-{sizes}"

    @property
    def machine(self) -> str:
        """For people."""
        vram = f"{self.vram} GB of VRAM"
        return f"{vram} and {self.ram} GB of RAM" if self.ram else f"{vram} alone"


RECIPES = (
    Made("GLM-4.5-Air", 24, 64),
    *(Made("GLM-4.5", 24, ram, ("GLM-4.6", "GLM-4.7")) for ram in (96, 128, 192, 256)),
    *(Made("GLM-5", 24, ram) for ram in (192, 256)),
    *(Made("DeepSeek-V3", 24, ram) for ram in (192, 256)),
    Made("Kimi-K2", 24, 256),
    *(Made("Qwen3-235B-A22B", 24, ram) for ram in (64, 96, 128)),
    *(Made("Qwen3.5-397B-A17B", 24, ram) for ram in (96, 128, 192, 256)),
    *(Made("Qwen3.5-35B-A3B", vram, 0) for vram in (16, 24)),
    *(Made("Qwen3.5-27B", vram, 0) for vram in (16, 24)),
)


def main() -> None:
    wanted = sys.argv[1:] or [""]
    for made in RECIPES:
        if any(part in made.name for part in wanted):
            path = FOLDER / f"{made.name}.recipe"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text_of(made), "utf-8")
            print(made.name, flush=True)
    if sys.argv[1:]:
        return
    readme = FOLDER / "README.md"
    readme.write_text(TABLE.sub(lambda _: table(), readme.read_text("utf-8")), "utf-8")


def text_of(made: Made) -> str:
    """The text of a recipe."""
    answer = _optimized(made, ())
    level = level_of(answer.plan)
    if level != "Small":  # a machine that holds so many bits needs no type that wants an importance matrix
        free = [name for name in ENGINE_TYPES["llama.cpp"] if not needs_imatrix(parse_type(name))]
        answer = _optimized(made, tuple(free))
        level = level_of(answer.plan)
    text = format_recipe(_headed(made, level, answer))
    return with_figures(text, FOLDER, parse_recipe(text, made.name))


def _optimized(made: Made, types: tuple[str, ...]) -> Optimized:
    stated = Stated(vram=(made.vram * GIB,), ram=(made.ram or SYSTEM_ONLY) * GIB)
    machine, _ = machine_for(stated, {})
    wishes = Wishes(context=CONTEXT)
    if not made.ram:
        wishes = Wishes(context=CONTEXT, gpu_layers=999, pins=(ON_GPU,))
    options = OptimizeOptions(target=Target(machine, wishes), types=types, name=made.name.rpartition("/")[2])
    return optimize(inventory(made.model), options)


def level_of(plan: Plan) -> str:
    """The level of the library that a plan belongs to."""
    bits = plan.bits_per_weight
    return "Quality" if bits >= QUALITY else "Balanced" if bits >= BALANCED else "Small"


def _headed(made: Made, level: str, answer: Optimized) -> str:
    """The recipe's text with the first lines that recipes of the folder have."""
    head, _, rules = answer.recipe.text.partition("@recipe 1\n")
    needs = any(needs_imatrix(t.type) for t in answer.plan.tensors)
    forecast = answer.forecast
    summary = f"{level}: {made.model} on {made.machine}, optimised" + (
        "; needs an imatrix." if needs else "."
    )
    told = [
        f"The least loss for {made.machine} and {CONTEXT:,} tokens of context, by `ggplan optimize`. KL"
        f" divergence {forecast.kld:.2g} predicted, probably between {forecast.low:.2g} and"
        f" {forecast.high:.2g}: docs/optimizing.md says how far to believe that. Nothing was measured on it.",
        "",
        *(line for line in answer.scales.credit),
        f"{MARK}.",
    ]
    lines = [f"# {summary}", "#"]
    for line in told:
        lines += [f"# {part}" for part in textwrap.wrap(line, 106)] or ["#"]
    lines += ["#", *(f"#   {model} 0.00 GiB, 0.000 bpw; GPU 0.0 GiB" for model in (made.model, *made.also))]
    lines += [line for line in head.split("\n") if line.startswith("# ggplan: ignore-file")]
    tests = [f"@test {name} -> {type_}" for name, type_ in _samples(answer.plan)]
    if not made.ram:  # where tensors are pinned, `optimize` does not say so itself
        tests.insert(0, f"@assert fits(vram={made.vram}G, ram={SYSTEM_ONLY}G, ctx={CONTEXT >> 10}k)")
    return "\n".join([*lines, "@recipe 1", rules.rstrip("\n"), *tests]) + "\n"


def needs_imatrix(type_: GgmlType) -> bool:
    """Whether a type is not to be written without an importance matrix."""
    return type_.requires_imatrix or type_.expects_imatrix


def _samples(plan: Plan) -> Iterator[tuple[str, str]]:
    """Some tensors and their types."""
    types = {t.name: t.type.name for t in plan.tensors}
    n_blocks = 1 + max(int(found[1]) for name in types if (found := re.match(r"blk\.(\d+)\.", name)))
    for block in (n_blocks // 4, n_blocks // 2):
        for kind in ("ffn_up_exps", "ffn_down_exps", "ffn_up", "ffn_down", "attn_output"):
            if (name := f"blk.{block}.{kind}.weight") in types:
                yield name, types[name]
    if "output.weight" in types:
        yield "output.weight", types["output.weight"]


def predicted(plan: Plan) -> Forecast:
    """The forecast for any plan, by the prior and the table of errors."""
    scales, roles = scales_by_prior(plan.model), roles_in(plan.model)
    damage = sum(
        scales.values.get(t.name, 0.0) * type_error(t.type.name) / REFERENCE_ERROR
        for t in plan.tensors
        if t.type != t.tensor.type and roles[t.name] is not Role.NEXTN
    )
    return forecast_of(damage, scales.level)


def table() -> str:
    """Predictions of all recipes for the models that have optimised ones, by size."""
    head = "| model | recipe | GiB | bpw | KL divergence predicted | |\n|---|---|--:|--:|--:|---|"
    models = dict.fromkeys(made.model for made in RECIPES)
    shipped = library()
    return "\n".join([head, *(row for model in models for row in rows(model, shipped))]) + "\n"


def rows(model: str, shipped: Sequence[ShippedRecipe]) -> list[str]:
    """The rows of a model, the largest file first."""
    made = {one.name for one in RECIPES}
    found = []
    for entry in shipped:
        for figures in entry.figures:
            if figures.model == model and entry.target == "llama.cpp":
                plan = make_plan(inventory(model), load_recipe(entry.name))
                found.append((figures.size, figures.bits_per_weight, entry.name, predicted(plan).kld))
    return [
        f"| {model if i == 0 else ''} | `{name}` | {size:.2f} | {bits:.3f} | {kld:.2g} |"
        f" {'optimised' if name in made else 'by hand'} |"
        for i, (size, bits, name, kld) in enumerate(sorted(found, reverse=True))
    ]


if __name__ == "__main__":
    main()
