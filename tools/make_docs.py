"""Make the parts of the documentation that ggplan itself prints.

    python tools/make_docs.py [families | fitting | optimizing]

- docs/plan.svg: `ggplan plan` on GLM-4.5-Air's names and shapes with the README's own recipe.
- docs/commands.md: every command's --help.
- docs/diagnostics.md: the pages of the codes that `ggplan rules check` finds.
- docs/models.md: the tables of the families of models, from `ggplan/arch/families`, and of quantized forms,
  from `ggplan/sources/schemes`; `families` makes them alone.
- docs/fitting.md: what its examples print, and docs/fit.svg; `fitting` makes them alone.
- docs/optimizing.md: what its examples print, docs/frontier.svg and docs/damage.svg; `optimizing` makes them
  alone.
- docs/record.schema.json: the schema of records of measurements.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "planning"), str(ROOT / "tests" / "oracle")]

import glm_4_5_air  # noqa: E402
from family_cases import UNLOADABLE  # noqa: E402
from terminal_svg import terminal_svg  # noqa: E402

from ggplan.measure.record_json import record_schema  # noqa: E402
from ggplan.sources.inventory import inventory_json  # noqa: E402

WIDTH = 100
WIDE = 120  # of tables in examples


def main() -> None:
    for page in ("fitting", "optimizing"):
        if sys.argv[1:] in ([], [page]):
            write_examples(ROOT / "docs" / f"{page}.md")
    if sys.argv[1:] in ([], ["families"]):
        write_families()
    if sys.argv[1:]:
        return
    (ROOT / "docs" / "plan.svg").write_text(plan_picture(), encoding="utf-8")
    (ROOT / "docs" / "commands.md").write_text(commands_page(), encoding="utf-8")
    (ROOT / "docs" / "diagnostics.md").write_text(diagnostics_page(), encoding="utf-8")
    schema = json.dumps(record_schema(), indent=1, ensure_ascii=False) + "\n"
    (ROOT / "docs" / "record.schema.json").write_text(schema, encoding="utf-8")


def write_examples(page: Path) -> None:
    """Run the commands of a page's ```console blocks, and write what they print on stdout below each.

    The files they write come into the page's folder.
    """
    parts = re.split(r"(?<=^```console\n)(.*?)(?=^```$)", page.read_text("utf-8"), flags=re.M | re.S)
    for at in range(1, len(parts), 2):
        parts[at] = example_output(re.findall(r"^\$ ((?:.*\\\n)*.*)$", parts[at], re.MULTILINE), page.parent)
    page.write_text("".join(parts), encoding="utf-8")


def example_output(commands: list[str], folder: Path) -> str:
    """Commands with `$ ` before them, each with what it prints, whatever machine has a file here."""
    found = []
    for command in commands:
        arguments = [sys.executable, "-m", "ggplan", *shlex.split(command)[1:]]
        environment = os.environ | {
            "COLUMNS": str(WIDE), "NO_COLOR": "1", "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": "/nowhere"
        }  # fmt: skip
        done = subprocess.run(
            arguments, capture_output=True, text=True, check=False, cwd=folder, env=environment
        )
        if done.returncode not in (0, 1) or not done.stdout:
            raise SystemExit(f"{command}: {done.stderr}")
        printed = done.stdout.replace(f"{folder.resolve()}/", "/models/")
        lines = [line.rstrip() for line in printed.splitlines()]
        found.append("\n".join([f"$ {command}", *lines]).rstrip() + "\n")
    return "\n".join(found)


def commands_page() -> str:
    """The page of all commands, as their --help prints it."""
    from ggplan.cli import cli

    parts = ["# Commands\n\nMade from `--help` by `tools/make_docs.py`.\n"]
    for command in (["ggplan"], *commands_of(cli, ["ggplan"])):
        printed = run([*command[1:], "--help"], str(ROOT), FORCE_COLOR="")
        parts.append(f"## {' '.join(command)}\n\n```text\n{printed.rstrip()}\n```\n")
    return "\n".join(parts)


def commands_of(group: click.Group, path: list[str]) -> Iterator[list[str]]:
    """Every command below a group, as one types it; groups before their commands."""
    context = click.Context(group)
    for name in sorted(group.list_commands(context)):
        yield [*path, name]
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_of(command, [*path, name])


def diagnostics_page() -> str:
    """The page of all codes, as `ggplan rules check --explain` prints them."""
    from ggplan.linting import lint_rules

    head = [
        "# Diagnostics of recipes\n\nMade by `tools/make_docs.py`; `ggplan rules check --explain` prints "
        "one.\n\n| code | what is wrong |\n|---|---|"
    ]
    rules = lint_rules().values()
    rows = [f"| [{rule.code}](#{anchor(rule.code, rule.title)}) | {rule.title} |" for rule in rules]
    return "\n".join([*head, *rows, "", *(rule.page for rule in rules)])


def anchor(code: str, title: str) -> str:
    """What GitHub calls the heading of a page."""
    return re.sub(r"[^a-z0-9 _-]", "", f"{code}: {title}".lower()).replace(" ", "-")


def write_families() -> None:
    """Put the tables of families and of quantized forms between their marks in docs/models.md."""
    page = ROOT / "docs" / "models.md"
    text = page.read_text(encoding="utf-8")
    for name, table in (("families", families_table()), ("forms", forms_table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{table}{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def forms_table() -> str:
    """A row for each way of storing weights quantized: its name, and the first sentence of its module."""
    from ggplan.sources.schemes import SCHEMES

    rows = []
    for scheme in SCHEMES:
        sentence = " ".join((scheme.__doc__ or "").partition("\n\n")[0].split())
        where = str(scheme.__name__).replace(".", "/")
        rows.append(f"| {scheme.NAME} | {sentence} | [`{where}.py`](../{where}.py) |\n")
    return "| form | what it is | its tensors, byte by byte |\n| --- | --- | --- |\n" + "".join(rows)


def families_table() -> str:
    """A row for each GGUF architecture: its models, the classes of transformers that it is made of, and the
    tiny models that are compared with what llama.cpp's converter makes of them.

    The models are those that the family's module has for it in `MODELS`, or stand before the colon in its
    docstring where it has one architecture.
    """
    from ggplan.arch.families import families

    cases = compared_models()
    rows = []
    for module in families():
        docstring = (module.__doc__ or "").partition(":")[0].replace("\n", " ")
        names = sorted({architecture.name for architecture in module.CLASSES.values()})
        for name in names:
            models = docstring if len(names) == 1 else module.MODELS[name]
            classes = [f"`{key}`" for key, known in module.CLASSES.items() if known.name == name]
            columns = [f"`{name}`", models, ", ".join(sorted(classes)), ", ".join(cases.get(name, []))]
            rows.append(f"| {' | '.join(columns)} |\n")
    head = "| architecture | models | classes | compared |\n| --- | --- | --- | --- |\n"
    return head + "".join(sorted(rows))


def compared_models() -> dict[str, list[str]]:
    """The goldens of each architecture, by its name."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests" / "data" / "goldens").glob("*.json")):
        keys = json.loads(path.read_text(encoding="utf-8")).get("keys", {})
        if "general.architecture" in keys:
            bytes_alone = " (bytes alone)" if path.stem in UNLOADABLE else ""
            found.setdefault(keys["general.architecture"][1], []).append(path.stem + bytes_alone)
    return found


def plan_picture() -> str:
    """What `ggplan plan` prints, as a picture."""
    with tempfile.TemporaryDirectory() as folder:
        inventory, recipe = Path(folder) / "GLM-4.5-Air", Path(folder) / "air.recipe"
        inventory.write_text(json.dumps(inventory_json(glm_4_5_air.model())), encoding="utf-8")
        recipe.write_text(readme_recipe(), encoding="utf-8")
        printed = run(["plan", inventory.name, "-r", recipe.name], folder)
    command = "ggplan plan GLM-4.5-Air -r air.recipe"
    return terminal_svg(f"$ {command}\n{printed}", command, "Sizes of GLM-4.5-Air by class and by type.")


def readme_recipe() -> str:
    """The recipe shown in the README, so that picture and text cannot part."""
    (found,) = re.findall(r"```\n(# GLM-4\.5-Air.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return str(found)


def run(arguments: list[str], folder: str, **extra: str) -> str:
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "PYTHONPATH": str(ROOT)} | extra
    command = [sys.executable, "-m", "ggplan", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
