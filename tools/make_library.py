"""Write the figures of the shipped recipes: into their first lines, and the table of tensor_rules/README.md.

    python tools/make_library.py

A new recipe needs one line `#   NAME` for each inventory it is for; `ggplan/rules/library.py` has the format.
"""

from __future__ import annotations

import re
from pathlib import Path

from ggplan.inventories import inventories, inventory
from ggplan.planning import Plan, in_memory, make_plan
from ggplan.rules import Recipe, load_recipe
from ggplan.rules.library import ShippedRecipe, library

FOLDER = Path(__file__).parent.parent / "tensor_rules"
TABLE = re.compile(r"(?<=<!-- made by tools/make_library.py -->\n).*?(?=<!-- end -->)", re.DOTALL)
GIB = 2**30


def main() -> None:
    for path in sorted(FOLDER.rglob("*.recipe")):
        text = path.read_text("utf-8")
        path.write_text(with_figures(text, path), "utf-8")
    readme = FOLDER / "README.md"
    readme.write_text(TABLE.sub(lambda _: table(), readme.read_text("utf-8")), "utf-8")


def with_figures(text: str, path: Path, recipe: Recipe | None = None) -> str:
    """The text with the figures of each model that its first lines name; the recipe is that of `path`."""
    recipe = recipe or load_recipe(path)
    known = set(inventories())
    lines = text.split("\n")
    places = [i for i, line in enumerate(lines) if line.startswith("#   ") and line.split()[1] in known]
    models = [lines[i].split()[1] for i in places]
    width = max(map(len, models), default=0)
    told = [figures(make_plan(inventory(model), recipe)) for model in models]
    for i, model, (size, bpw, ram, token, gpu) in zip(places, models, told, strict=True):
        in_ram = f" RAM {ram:6.1f} GiB, {token:5.2f} of it per token;" if token else ""
        lines[i] = f"#   {model:<{width}} {size:7.2f} GiB, {bpw:.3f} bpw;{in_ram} GPU {gpu:5.1f} GiB"
    return "\n".join(lines)


def figures(plan: Plan) -> tuple[float, float, float | None, float | None, float]:
    """Size, bits per weight, RAM, RAM that a token reads, and GPU; sizes in GiB. No RAM without experts."""
    memory = in_memory(plan)
    per_token = memory.ram_per_token
    ram = (None, None) if per_token is None else (memory.ram / GIB, per_token / GIB)
    return plan.tensor_bytes / GIB, plan.bits_per_weight, *ram, memory.gpu / GIB


def table() -> str:
    """The table of all recipes."""
    head = "| recipe | model | GiB | bpw | GPU | RAM | of it per token | what it is |\n"
    head += "|---|---|--:|--:|--:|--:|--:|---|"
    return "\n".join([head, *(row for entry in library() for row in rows(entry))]) + "\n"


def rows(entry: ShippedRecipe) -> list[str]:
    """A row for each model; the name and the summary are in the first."""
    made = []
    for i, f in enumerate(entry.figures):
        name = f"[`{entry.name}`]({entry.name}.recipe)" if i == 0 else ""
        ram = f"{f.ram:.1f} | {f.ram_per_token:.2f}" if f.ram and f.ram_per_token else " | "
        size = f"{f.size:.2f} | {f.bits_per_weight:.3f} | {f.gpu:.1f} | {ram}"
        summary = entry.summary if i == 0 else ""
        made.append(f"| {name} | {f.model} | {size} | {summary} |")
    return made


if __name__ == "__main__":
    main()
