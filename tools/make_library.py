"""Write the figures of the shipped recipes: into their first lines, and the table of tensor_rules/README.md.

    python tools/make_library.py

A new recipe needs one line `#   NAME` for each inventory it is for; `ggplan/rules/library.py` has the format.
"""

from __future__ import annotations

import re
from pathlib import Path

from ggplan.inventories import inventories, inventory
from ggplan.planning import Plan, Role, make_plan
from ggplan.rules import load_recipe
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


def with_figures(text: str, path: Path) -> str:
    """The recipe's text with the figures of each model that its first lines name."""
    known = set(inventories())
    lines = text.split("\n")
    places = [i for i, line in enumerate(lines) if line.startswith("#   ") and line.split()[1] in known]
    models = [lines[i].split()[1] for i in places]
    width = max(map(len, models), default=0)
    told = [figures(make_plan(inventory(model), load_recipe(path))) for model in models]
    for i, model, (size, bpw, ram, token, gpu) in zip(places, models, told, strict=True):
        in_ram = f" RAM {ram:6.1f} GiB, {token:5.2f} of it per token;" if token else ""
        lines[i] = f"#   {model:<{width}} {size:7.2f} GiB, {bpw:.3f} bpw;{in_ram} GPU {gpu:5.1f} GiB"
    return "\n".join(lines)


def figures(plan: Plan) -> tuple[float, float, float, float, float]:
    """Size, bits per weight, RAM, RAM that a token reads, and GPU; sizes in GiB."""
    metadata, architecture = plan.model.metadata, plan.model.architecture
    used = metadata.get(f"{architecture}.expert_used_count")
    count = metadata.get(f"{architecture}.expert_count")
    share = int(str(used.decode())) / int(str(count.decode())) if used and count else 0.0
    loaded = [t for t in plan.tensors if t.role is not Role.NEXTN]
    experts = sum(t.n_bytes for t in loaded if "_exps." in t.name)  # gpt-oss has biases of experts
    ram = experts + sum(t.n_bytes for t in loaded if t.role is Role.EMBEDDINGS)
    gpu = sum(t.n_bytes for t in loaded) - ram
    size = plan.tensor_bytes
    return size / GIB, plan.bits_per_weight, ram / GIB, experts * share / GIB, gpu / GIB


def table() -> str:
    """The table of all recipes."""
    head = "| recipe | model | GiB | bpw | GiB of RAM a token reads | what it is |\n|---|---|--:|--:|--:|---|"
    return "\n".join([head, *(row for entry in library() for row in rows(entry))]) + "\n"


def rows(entry: ShippedRecipe) -> list[str]:
    """A row for each model; the name and the summary are in the first."""
    made = []
    for i, f in enumerate(entry.figures):
        name = f"[`{entry.name}`]({entry.name}.recipe)" if i == 0 else ""
        token = f"{f.ram_per_token:.2f}" if f.ram_per_token is not None else "all"
        summary = entry.summary if i == 0 else ""
        made.append(f"| {name} | {f.model} | {f.size:.2f} | {f.bits_per_weight:.3f} | {token} | {summary} |")
    return made


if __name__ == "__main__":
    main()
