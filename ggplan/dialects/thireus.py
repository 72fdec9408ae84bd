r"""Recipes of Thireus' GGUF Tool Suite: `^PATTERN$=TYPE` line by line, `#` comments, every tensor named.

They are valid recipes of ggplan (see `docs/recipes.md`), so importing one checks it and adds a heading; its
comments, sizes and checksums are kept.
"""

from __future__ import annotations

from ggplan.dialects.llama_quantize import flat_rules
from ggplan.dialects.source import MAX_RULES, Imported, Source, imported_text
from ggplan.model import Model
from ggplan.planning import Assignment
from ggplan.rules import Recipe, parse_recipe


def import_(source: Source, name: str, model: Model | None) -> Imported:
    """Import a list of rules, one a line, with comments."""
    n_rules = 0
    for number, line in enumerate(source.text.split("\n"), 1):
        rule = line.partition("#")[0].strip()
        if not rule:
            continue
        n_rules += 1
        if n_rules > MAX_RULES:
            raise source.fault(number, f"a recipe may hold {MAX_RULES:,} rules")
        pattern, equals, type_ = (part.strip() for part in rule.rpartition("="))
        if not (pattern and equals) or pattern.startswith("@"):
            raise source.fault(number, f"`{rule[:80]}` is not a rule `PATTERN=TYPE`")
        source.pattern(pattern, number)
        source.type(type_, number)
    if not parse_recipe(source.text, source.file).rules:
        raise source.fault(0, "there are no rules")
    body = source.text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n").split("\n")
    head = [f"@arch {model.architecture}"] if model is not None and model.architecture else []
    what = "a recipe of Thireus' GGUF Tool Suite"
    return Imported("thireus", imported_text(source, what, name, body, head=head))


def export(recipe: Recipe | Assignment, model: Model) -> tuple[str, list[str]]:
    """A recipe that names every tensor of the model."""
    lines = [f"## {recipe.name}, written out for {model.path.name} by ggplan".replace("\n", " ")]
    for pattern, type_, _ in flat_rules(
        recipe, model, "the GGUF Tool Suite", "ik_llama.cpp", everything=True
    ):
        lines.append(f"{pattern}={type_.name}")
    return "\n".join(lines) + "\n", []
