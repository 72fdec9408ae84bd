"""`ggplan rules import`: what other tools' lists, scripts and configs say, as a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import force_option, model_option, note, output_option, quiet_option

if TYPE_CHECKING:
    from pathlib import Path

NAMES = (
    "llama-quantize",
    "ik_llama.cpp",
    "thireus",
    "compressed-tensors",
    "autoround",
    "torchao",
    "layer-types",
    "mlx",
    "gptq",
    "awq",
    "bitsandbytes",
    "modelopt",
    "fp8",
    "fbgemm_fp8",
    "mxfp4",
    "hqq",
    "quanto",
    "eetq",
)
WRITTEN = NAMES[:8]
"""The dialects that are written, too."""

_EPILOG = """\b
Examples:
  ggplan rules import tensor-types.txt -o my.recipe       llama-quantize's --tensor-type-file
  ggplan rules import README.md --block 2                 the second `custom="..."` of a model card
  ggplan rules import quant.bat -m Qwen3-8B               the command line of llama-quantize in a script
  ggplan rules import recipe.yaml -m GLM-4.5-Air          llm-compressor's, on Hugging Face names
  ggplan rules import config.json -m Qwen3-30B-A3B        GPTQ, AWQ, FP8, MLX, ... as the config says
  ggplan rules import mixed_3_6 -m Qwen3-8B               mlx-lm's mixed predicate
"""


@click.command("import", epilog=_EPILOG, short_help="Read what other tools write as a recipe.")
@click.argument("file")
@click.option("--dialect", type=click.Choice(NAMES), help="Whose text it is [default: seen from the text].")
@model_option
@opening_options()
@click.option(
    "--block",
    type=click.IntRange(1),
    metavar="N",
    help="Which of several lists or commands in one text, from 1.",
)
@click.option("--name", metavar="NAME", default="", help="What `@name` says [default: the file's name].")
@output_option("Write to this file.")
@force_option("the file of -o")
@quiet_option
def import_command(
    file: str,
    dialect: str | None,
    model_name: str | None,
    opening: OpeningOptions,
    block: int | None,
    name: str,
    output: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Read FILE, or standard input for `-`, and write the recipe that says the same.

    FILE is a list, a script or batch file, a thread, a model card or a config of another tool. What a recipe
    cannot say is an error; an option or key that is not taken over, or is said otherwise, stands as a note in
    its first lines and on stderr. Lists on Hugging Face names and on layers need -m.

    Exits 0; 1 if it cannot be read, said or written; 2 for wrong usage.
    """
    import os
    import re
    from pathlib import Path

    from ggplan.cli.output import write_new
    from ggplan.dialects import import_recipe
    from ggplan.errors import RecipeError
    from ggplan.rules.loading import recipe_text
    from ggplan.text import printable

    opening.refuse_without(model_name)
    if file == "-":
        text = recipe_text(file)[0]
    elif dialect in (None, "mlx") and file.startswith("mixed_") and not os.path.exists(file):
        text = file
    else:
        _refuse_gguf(Path(file))
        text = recipe_text(Path(file))[0]
    if dialect is None and re.search(r"^@(recipe|arch|default|name|target|let|role)\b", text, re.MULTILINE):
        raise RecipeError(
            f"{printable(file)} is a recipe of ggplan's already",
            hint="give it with -r, or look at it with `ggplan rules check`",
        )
    model = opening.open_noted(model_name, quiet=quiet) if model_name else None
    imported = import_recipe(text, file, dialect=dialect or "", name=name, model=model, block=block)
    write_new(imported.text, output, force=force, quiet=quiet)
    note(*imported.notes, quiet=quiet)


def _refuse_gguf(path: Path) -> None:
    """Refuse a GGUF file, whose types another command reads."""
    from ggplan.errors import RecipeError
    from ggplan.sources.files import begins_with
    from ggplan.text import printable

    if path.is_file() and begins_with(path, b"GGUF"):
        raise RecipeError(
            f"{printable(str(path))} is a GGUF file, not rules of another tool",
            hint=f"`ggplan rules from {printable(str(path))}` writes its types as a recipe",
        )
