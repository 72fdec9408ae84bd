"""`ggplan demo`: the whole program on a small model that ships with it."""

from __future__ import annotations

import click

_EPILOG = """\b
Examples:
  ggplan demo
  ggplan demo -o /tmp/demo
"""
_PRE_TOKENIZER = "glm4"
_SEED_RECIPE = "glm4moe/hq4_k"
# The seed recipe and, to compare it with, the same type for every tensor that may be quantized.
_MIXES = (
    ("bf16", "@default bf16"),
    ("q8_0", "@default q8_0"),
    ("hq4_k", None),
    ("q4_K", "@default q4_K"),
    ("q2_K", "@default q2_K"),
)


@click.command("demo", epilog=_EPILOG, short_help="Try it on a small built-in model, offline.")
@click.option(
    "-o", "--output", "folder", type=click.Path(), default="ggplan-demo", show_default=True,
    help="Folder for the GGUF files.",
)  # fmt: skip
def demo_command(folder: str) -> None:
    """Plan and convert a small built-in GLM-4.5-style MoE into several mixes, offline.

    The model is trained (on the King James Bible and Python's documentation), so the files can be run
    and compared with llama.cpp.
    """
    import importlib.resources
    from pathlib import Path

    from ggplan.cli.convert import run_conversion
    from ggplan.cli.output import print_diagnostics, print_plan, print_table
    from ggplan.opening import open_model
    from ggplan.planning import make_plan
    from ggplan.rules import load_recipe, parse_recipe
    from ggplan.text import format_bytes, printable

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with importlib.resources.as_file(importlib.resources.files("ggplan") / "demo_model") as model_folder:
        model = open_model(model_folder, pre=_PRE_TOKENIZER)
        seed = load_recipe(_SEED_RECIPE)
        click.echo("1. The plan: what the recipe makes of the model, before a weight is read\n")
        for rule in seed.rules:
            click.echo(f"  {rule.pattern:<60} = {rule.choice.text}")
        click.echo()
        plan = make_plan(model, seed)
        print_plan(plan)
        print_diagnostics(plan)
        click.echo(
            "\n2. The conversion: from the checkpoint to each mix in one pass (first runs compile kernels)\n"
        )
        rows = []
        for name, text in _MIXES:
            mix = make_plan(model, seed if text is None else parse_recipe(text, name))
            result = run_conversion(mix, str(out / f"demo-{name}.gguf"), None, False, True, False)
            rows.append(
                [
                    str(result.path),
                    format_bytes(result.n_bytes),
                    f"{mix.bits_per_weight:.3f}",
                    f"{result.seconds:.1f} s",
                ]
            )
            click.echo(f"  wrote {printable(rows[-1][0])}")
    print_table([("file", "left"), ("size", "right"), ("bpw", "right"), ("took", "right")], rows)
    best = printable(str(out / "demo-hq4_k.gguf"))
    click.echo(
        "3. Run them with llama.cpp\n\n"
        f'  llama-completion -m {best} -p "And it came to pass" -n 40 --no-warmup\n'
        f"  llama-perplexity -m {best} -f any-text.txt\n\n"
        "Then your own model:\n\n"
        "  ggplan plan MODEL -r glm4moe/hq4_k\n"
        "  ggplan convert MODEL OUT.gguf -r glm4moe/hq4_k"
    )
