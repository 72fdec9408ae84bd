"""`ggplan demo`: all steps of the program on a small model that ships with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggplan.cli.options import force_option, quiet_option

if TYPE_CHECKING:
    from pathlib import Path

_EPILOG = """\b
Examples:
  ggplan demo
  ggplan demo -o /tmp/demo
"""
_PRE_TOKENIZER = "glm4"
_RECIPE = "hq6_k.recipe"
_TEXT = "joshua.txt"
_CHUNKS = 12
# The demo's recipe and, for comparison, one type for every tensor that may be quantized.
_MIXES = (
    ("bf16", "@default bf16"),
    ("q8_0", "@default q8_0"),
    ("hq6_k", None),
    ("q4_K", "@default q4_K"),
    ("q2_K", "@default q2_K"),
)


@click.command("demo", epilog=_EPILOG, short_help="Try it on a small built-in model, offline.")
@click.option(
    "-o", "--output", "folder", type=click.Path(), default="ggplan-demo", show_default=True,
    help="Folder for the GGUF files.",
)  # fmt: skip
@force_option("other files of the demo's names: without it, its own alone are written anew")
@quiet_option
def demo_command(folder: str, force: bool, quiet: bool) -> None:
    """Plan, convert and (with llama-cpp-python) measure a small built-in GLM-4.5-style MoE, offline.

    The model is trained (on the King James Bible and Python's documentation), so the files can be run
    and compared with llama.cpp.

    Exits 0; 1 if a file cannot be written; 2 for wrong usage.
    """
    import importlib.resources
    from pathlib import Path

    from ggplan.cli.convert import run_conversion
    from ggplan.cli.findings import print_findings
    from ggplan.cli.output import print_plan, print_table
    from ggplan.conversion import ConvertOptions
    from ggplan.linting import check_plan
    from ggplan.opening import open_model
    from ggplan.planning import make_plan
    from ggplan.rules import load_recipe, parse_recipe
    from ggplan.text import format_bytes, printable

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    if not force:
        _refuse_others(out)
    with importlib.resources.as_file(importlib.resources.files("ggplan") / "demo_model") as model_folder:
        model = open_model(model_folder, pre=_PRE_TOKENIZER)
        own = load_recipe(model_folder / _RECIPE)
        click.echo(
            "1. The plan: what the recipe makes of the model, before a weight is read. It is glm4moe/hq4_k\n"
            "   fitted to a model whose embeddings and output are nearly half of it: q8_0, not bf16.\n"
        )
        for rule in own.rules:
            click.echo(f"  {rule.pattern:<60} = {rule.choice.text}")
        click.echo()
        plan = make_plan(model, own)
        print_plan(plan)
        report = check_plan(plan)
        print_findings(report.errors() if quiet else report, err=True)
        click.echo("\n2. The conversion: from the checkpoint to each mix in one pass\n")
        rows = []
        for name, text in _MIXES:
            mix = make_plan(model, own if text is None else parse_recipe(text, name))
            result = run_conversion(
                mix, str(out / f"demo-{name}.gguf"), ConvertOptions(force=True), quiet=quiet
            )
            rows.append(
                [
                    str(result.path),
                    format_bytes(result.n_bytes),
                    f"{mix.bits_per_weight:.3f}",
                    f"{result.seconds:.1f} s",
                ]
            )
            click.echo(f"  wrote {printable(rows[-1][0])}")
    print_table([("file", "left"), ("size", "right"), ("bpw", "right"), ("took", "right")], rows,
                least=("took",))  # fmt: skip
    measured = _measure([out / f"demo-{name}.gguf" for name, _ in _MIXES], out)
    best = printable(str(out / "demo-hq6_k.gguf"))
    click.echo(
        ("4" if measured else "3") + ". Run them with llama.cpp\n\n"
        f'  llama-completion -m {best} -p "And it came to pass" -n 40 --no-warmup\n'
        f"  llama-perplexity -m {best} -f any-text.txt\n\n"
        "Then your own model:\n\n"
        "  ggplan plan MODEL -r glm4moe/hq4_k\n"
        "  ggplan convert MODEL OUT.gguf -r glm4moe/hq4_k\n"
        "  ggplan measure OUT.gguf --base BF16.gguf --text TEXT --record MODEL.json\n"
        "  ggplan chart MODEL.json -o MODEL.svg"
    )


def _refuse_others(out: Path) -> None:
    """Refuse a folder where files of another kind have the names of those that the demo writes."""
    from ggplan.charts.output import STARTS
    from ggplan.measure.outputs import is_of_another_kind
    from ggplan.text import printable

    starts = {f"demo-{name}.gguf": b"GGUF" for name, _ in _MIXES}
    for name, start in (starts | {"demo.json": b"{", "demo.svg": STARTS[".svg"]}).items():
        if is_of_another_kind(out / name, start):
            raise click.UsageError(
                f"{printable(str(out / name))} is no file of the demo; choose another folder with -o, or"
                " --force replaces it"
            )


def _measure(files: list[Path], out: Path) -> bool:
    """Measure the mixes and draw them, where the embedded engine is installed."""
    import importlib.resources

    from ggplan.charts import draw_quality
    from ggplan.cli.figures import print_record
    from ggplan.cli.measure import run_measurement
    from ggplan.measure import MeasureOptions, TextFile, embedded_engine, save_record
    from ggplan.measure.embedded import why_missing
    from ggplan.text import printable

    if why := why_missing():
        click.echo(
            f"   Not measured: {printable(why)}.\n   `pip install --no-cache-dir 'ggplan[measure]'` builds"
            " llama.cpp into Python; then this demo measures\n   the mixes and draws them.\n"
        )
        return False
    click.echo("3. The measurement: what each mix loses, by llama.cpp\n")
    with importlib.resources.as_file(importlib.resources.files("ggplan") / "demo_model" / _TEXT) as text:
        options = MeasureOptions(n_chunks=_CHUNKS, model_name="demo-model")
        result = run_measurement(files, [TextFile(text)], files[0], embedded_engine(), options)
    save_record(result.record, out / "demo.json")
    draw_quality(result.record, scores=result.scores_of).save(out / "demo.svg")
    print_record(result.record)
    click.echo(f"drawn in {printable(str(out / 'demo.svg'))}\n")
    return True
