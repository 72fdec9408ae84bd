"""`ggplan optimize`: the recipe that loses least within a budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.optimize_answers import AnswerOptions, answer_options
from ggplan.cli.optimize_machine import MachineWishes, machine_budget_options
from ggplan.cli.optimize_probes import ProbingOptions, probing_options
from ggplan.cli.options import (
    force_option,
    imatrix_option,
    json_option,
    note,
    output_option,
    quiet_option,
    recipe_of_name,
    recipe_or_mix_of_name,
)
from ggplan.cli.sizes import ByteCount, PositiveNumber
from ggplan.offload.known_machine import Stated

if TYPE_CHECKING:
    from ggplan.allocation import Optimized, OptimizeOptions
    from ggplan.allocation.explaining import Explained
    from ggplan.allocation.improving import Improved
    from ggplan.allocation.machine_rows import Target
    from ggplan.imatrix import Imatrix
    from ggplan.model import Model

    _Bands = click.ParamType[int]
else:
    _Bands = click.ParamType

SCHEMA = "ggplan.optimize/1"

_EPILOG = """\b
Examples:
  ggplan optimize GLM-4.5-Air --size 60G -o air.recipe       the least loss in 60 GiB
  ggplan optimize air.gguf --bpw 4.5                         print the recipe
  ggplan optimize hf://zai-org/GLM-4.5-Air --size 60G        of a checkpoint on the hub, by its headers
  ggplan optimize GLM-4.5-Air --max-kld 0.02                 the smallest file that keeps it
  ggplan optimize GLM-4.5-Air --vram 24G --ram 64G -c 32k    what fits a machine: weights, context, buffers
  ggplan optimize GLM-4.5-Air --cards 3090 --ram 64G --bandwidth 80G --cores 16 --min-tps 12
  ggplan optimize GLM-4.5-Air --bpw 4.5 --types q4_K,q5_K,q6_K,q8_0   k-quants alone
  ggplan optimize GLM-4.5 --size 150G --engine ik_llama.cpp  with the types of ik_llama.cpp
  ggplan optimize GLM-4.5-Air --size 60G --pin '^output\\.weight$=q8_0'   what must be so
  ggplan optimize GLM-4.5-Air --size 60G --base mine.recipe           what its rules name stays
  ggplan optimize GLM-4.5-Air --size 60G --table kld_results.csv      by measurements of this model
  ggplan optimize GLM-4.5-Air --size 60G --table kld_results.csv --curve group0/kld_results.csv
  ggplan optimize GLM-4.5-Air --size 60G --imatrix air.gguf  with errors measured on its weights
  ggplan optimize GLM-4.5-Air --size 60G --imatrix air.gguf --probe --text prose.txt --text code.txt \\
      --engine ~/llama.cpp/build/bin/llama-perplexity        by probes, kept in GLM-4.5-Air.probes.json
  ggplan optimize GLM-4.5-Air --size 48G --probes GLM-4.5-Air.probes.json     by these probes again
  ggplan optimize GLM-4.5-Air --size 60G --verify --text prose.txt    convert, and measure what is promised
  ggplan optimize GLM-4.5-Air --size 60G --bands free        each layer for itself
  ggplan optimize GLM-4.5-Air --size 60G --explain ffn_down_exps       why, and what a step up or down changes
  ggplan optimize GLM-4.5-Air --from Q4_K_M -o air.recipe    better than a mix at its bytes, and where
  ggplan optimize GLM-4.5-Air --pareto -o curve.csv          the best files of all sizes, and the stock mixes
  ggplan optimize GLM-4.5-Air --pareto --vram 24G --ram 64G  of all that fit a machine, with their speeds
  ggplan optimize GLM-4.5-Air --size 60G --json | jq .forecast
"""


class Bands(_Bands):
    """A number of bands, or `free`, which is 0: each layer its own."""

    name = "bands"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse an option's text."""
        text = str(value)
        if text == "free":
            return 0
        if not text.isdecimal() or not 1 <= int(text[:9]) <= 9_999:
            self.fail(f"'{text}' is neither a number of bands, 1 or more, nor free", param, ctx)
        return int(text)


@click.command("optimize", epilog=_EPILOG, short_help="Write the recipe that loses least within a budget.")
@click.argument("model")
@click.option(
    "--size", type=ByteCount(1024), metavar="SIZE",
    help="The most that the file may have, its header included: 60G, 60GiB, 60GB.",
)  # fmt: skip
@click.option("--bpw", type=PositiveNumber(), metavar="N", help="The most bits per weight.")
@click.option(
    "--max-kld", type=PositiveNumber(), metavar="NATS",
    help="The most predicted KL divergence: writes the smallest file that keeps it, within the other limits.",
)  # fmt: skip
@click.option(
    "--types", "type_names", metavar="TYPE,...",
    help="The types that may be given [default: those of the engine, from two bits to q8_0].",
)  # fmt: skip
@click.option(
    "--engine", "engines", multiple=True, metavar="ENGINE",
    help="llama.cpp or ik_llama.cpp: whose types, and whose fallbacks where rows do not hold one [default:"
    " llama.cpp]; a llama-perplexity, or `embedded`: what runs for --probe and --verify. Can be repeated.",
)  # fmt: skip
@click.option(
    "--pin", "pins", multiple=True, metavar="REGEX=TYPE",
    help="A rule that stands whatever it costs; the first that matches decides. Or REGEX=DEVICE (CPU, CUDA0,"
    " ...): tensors that must be there. Can be repeated.",
)  # fmt: skip
@click.option(
    "--base", metavar="RECIPE",
    help="A recipe whose rules stand, pins before them; what they do not name is optimised.",
)  # fmt: skip
@click.option(
    "--bands", type=Bands(), default="3", show_default=True, metavar="N|free",
    help="Bands of layers with types of their own, for each kind of tensor.",
)  # fmt: skip
@click.option(
    "--harmonise", "harmonised", multiple=True, metavar="WORD,...", default=("gate,up",), show_default=True,
    help="Kinds of tensors that differ by such a word get one type; `none` for no such. Can be repeated.",
)  # fmt: skip
@click.option(
    "--table", "table", type=click.Path(), metavar="CSV",
    help="Measurements of single tensors of this model, such as a kld_results.csv of the GGUF Tool Suite.",
)  # fmt: skip
@click.option(
    "--curve", "curve", type=click.Path(), metavar="CSV",
    help="The KL divergence of this whole model by type, such as group0/kld_results.csv: what the types do.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="The recipe's name [default: from the model and the budget].")
@machine_budget_options
@answer_options
@imatrix_option
@probing_options
@opening_options(imatrix=True)
@output_option("Write the recipe to this file.")
@force_option("the file of -o")
@json_option("the answer and the recipe's text")
@quiet_option
def optimize_command(
    model: str,
    size: int | None,
    bpw: float | None,
    max_kld: float | None,
    type_names: str | None,
    engines: tuple[str, ...],
    pins: tuple[str, ...],
    base: str | None,
    bands: int,
    harmonised: tuple[str, ...],
    table: str | None,
    curve: str | None,
    name: str | None,
    imatrix_path: str | None,
    stated: Stated,
    wished: MachineWishes,
    asked: AnswerOptions,
    probing: ProbingOptions,
    opening: OpeningOptions,
    output: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the recipe that loses least within a budget.

    MODEL is whatever `ggplan plan` takes. How much each tensor matters comes from a prior, by what a tensor
    is for and how deep it lies, from a table of measurements (--table), or from probes: --probe runs it with
    each group of tensors at a low type. Weights are read for --imatrix, --probe and --verify alone. The
    prior is fitted to measurements of Thireus, the GGUF Tool Suite and its contributors. How far the answer
    is from the best possible for these numbers is told; how far these numbers are from the truth,
    docs/optimizing.md says.

    Exits 0; 1 if the model cannot be read or no file is within the budget, with by how much; 2 for wrong
    usage, or if the file of -o exists.
    """
    import os

    from ggplan.allocation import OptimizeOptions, answer_of, prepare
    from ggplan.allocation.explaining import explain
    from ggplan.allocation.improving import improved, options_for
    from ggplan.allocation.pareto import N_POINTS, curve_of
    from ggplan.cli.opening import with_scales_read
    from ggplan.cli.optimize_answers import print_curve, print_explained, print_improved
    from ggplan.cli.optimize_machine import print_start, split_pins
    from ggplan.cli.optimize_probes import basis, print_verified, split_engines, verify
    from ggplan.cli.output import print_json, require_folder, write_new
    from ggplan.imatrix import load_imatrix
    from ggplan.text import printable

    asked.check(output, verify=probing.verify)
    device_pins, pins = split_pins(pins)
    is_for_machine = bool(device_pins) or wished.is_given(stated)
    is_limited = size is not None or bpw is not None or max_kld is not None or is_for_machine
    if not (is_limited or asked.pareto or asked.improved):
        raise click.UsageError(
            "give a budget: --size, --bpw, --max-kld, --min-tps or a machine (--vram, --ram, ...), or"
            " several; or --from or --pareto"
        )
    if output is not None and os.path.lexists(output) and not force:
        raise click.UsageError(f"{printable(output)} exists; --force replaces it")
    if output is not None:
        require_folder(output)
    types_of, program = split_engines(engines)
    probing.check(table, program, imatrix_path)
    imatrix = None if imatrix_path is None else load_imatrix(imatrix_path)
    opened, imatrix = opening.open(model, imatrix, weights=probing.needs_weights, quiet=quiet)
    found = with_scales_read(opened, quiet=quiet)
    target = wished.target(stated, types_of, device_pins, quiet=quiet) if is_for_machine else None
    options = OptimizeOptions(
        size=size,
        bpw=bpw,
        max_kld=max_kld,
        target=target,
        types=_words(type_names or ""),
        engine=types_of,
        pins=pins,
        base=None if base is None else recipe_of_name(base, found.architecture, quiet=quiet),
        bands=bands or None,
        harmonised=tuple(_words(words) for words in harmonised if words != "none"),
        table=table,
        curve=curve,
        name=" ".join((name or _name(found.path.name, size, bpw, max_kld, target)).split()).replace("#", "")
        or "optimized",
    )
    given = None
    if asked.improved is not None:
        recipe = recipe_or_mix_of_name(asked.improved, found.architecture, quiet=quiet)
        options, given = options_for(found, recipe, options)
    scales, errors = basis(
        found,
        lambda: prepare(found, options, imatrix=imatrix),
        imatrix,
        probing,
        program,
        force=force,
        quiet=quiet,
    )
    recorded = 0 if given is not None else _recorded(found, imatrix, imatrix_path)
    problem = prepare(found, options, scales=scales, errors=errors, imatrix=imatrix, recorded=recorded)
    if asked.pareto:
        best = curve_of(problem, asked.n_points or N_POINTS)
        note(*best.notes, quiet=quiet)
        print_curve(best, output, as_json=as_json, force=force, quiet=quiet)
        return
    better = None if given is None else improved(problem, given)
    answer = answer_of(problem) if better is None else better.answer
    explained = [one for wanted in asked.explained for one in explain(answer, wanted)]
    note(*answer.notes, quiet=quiet)
    if output is not None:
        write_new(answer.recipe.text, output, force=force, quiet=quiet)
    if as_json:
        print_json(_json(answer, better, explained))
    elif better is not None or explained:
        if better is not None:
            print_improved(better)
        print_explained(explained)
    elif output is None:
        click.echo(answer.recipe.text, nl=False)
    if not quiet and (as_json or output is not None or explained):
        click.echo(_told(answer, options), err=True)
        if answer.placement is not None:
            print_start(answer.placement, options.name)
    if probing.verify:
        verified = verify(problem, answer.recipe, imatrix, probing, program, quiet=quiet)
        print_verified(verified, probing.texts)


def _recorded(model: Model, imatrix: Imatrix | None, path: str | None) -> int:
    """The bytes that convert adds to the header: for the folder of a calibration those of --correct."""
    import os

    from ggplan.allocation.budget import recorded_bytes
    from ggplan.calibration import open_calibration
    from ggplan.planning import Feedback

    is_calibration = path is not None and os.path.isdir(path)
    return recorded_bytes(
        model, imatrix, Feedback(open_calibration(path), corrected=True) if path and is_calibration else None
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _name(
    model: str, size: int | None, bpw: float | None, max_kld: float | None, target: Target | None
) -> str:
    """`GLM-4.5-Air-60GiB`, `GLM-4.5-Air-4.5bpw`, `GLM-4.5-Air-kld0.02`, `GLM-4.5-Air-24+64GiB`."""
    from ggplan.text import format_bytes

    parts = [] if size is None else [format_bytes(size).replace(" ", "")]
    parts += [] if bpw is None else [f"{bpw:g}bpw"]
    parts += [] if max_kld is None else [f"kld{max_kld:g}"]
    if target is not None:
        machine = target.machine
        sizes = [gpu.memory for gpu in machine.gpus] + ([] if machine.ram is None else [machine.ram])
        parts += ["+".join(f"{n / 2**30:.3g}" for n in sizes) + "GiB"] if sizes else []
        parts += [] if target.min_tps is None else [f"{target.min_tps:g}tps"]
    stem = model
    for ending in (".gguf", ".map", ".json", ".txt"):
        stem = stem.removesuffix(ending)
    return "-".join((stem, *parts))


def _told(answer: Optimized, options: OptimizeOptions) -> str:
    from ggplan.allocation.recipe_text import gap_in_words
    from ggplan.text import format_bytes

    plan, forecast = answer.plan, answer.forecast
    return (
        f"file {format_bytes(plan.file_bytes)}, {plan.bits_per_weight:.3f} bpw; "
        f"KL divergence {forecast.kld:.2g} predicted ({forecast.low:.2g} to {forecast.high:.2g}); "
        f"{gap_in_words(answer.gaps, options)}"
    )


def _json(answer: Optimized, better: Improved | None, explained: list[Explained]) -> dict[str, Any]:
    from ggplan.allocation.explaining import explained_json
    from ggplan.allocation.improving import improved_json
    from ggplan.cli.optimize_machine import start_json

    plan = answer.plan
    more: dict[str, Any] = {} if better is None else {"improves": improved_json(better)}
    if explained:
        more["explained"] = [explained_json(one) for one in explained]
    return {
        "schema": SCHEMA,
        "name": answer.recipe.name,
        "recipe": answer.recipe.text,
        "file_bytes": plan.file_bytes,
        "tensor_bytes": plan.tensor_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "forecast": {
            "kld": answer.forecast.kld,
            "low": answer.forecast.low,
            "high": answer.forecast.high,
        },
        "damage": answer.damage,
        "gap": answer.gap if math.isfinite(answer.gap) else None,
        "gap_anywhere": answer.gaps.anywhere,
        "sensitivities": {"source": answer.scales.source, "credit": list(answer.scales.credit)},
        "notes": list(answer.notes),
        "tensors": [
            {"name": t.name, "type": t.type.name, "bytes": t.n_bytes, "damage": answer.damages[t.name]}
            for t in plan.tensors
            if t.name in answer.damages
        ],
        **({} if answer.placement is None else {"placement": start_json(answer.placement, answer.problem)}),
        **more,
    }
