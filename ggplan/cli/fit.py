"""`ggplan fit`: does a model fit a machine, how fast is it there, and how is it started."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ggplan.cli.comparing import Varied, varying
from ggplan.cli.machine_options import machine_options
from ggplan.cli.options import as_one, json_option, note
from ggplan.cli.planning import PlanningOptions, plan_from, planning_options
from ggplan.cli.sizes import TokenCounts
from ggplan.offload.known_machine import Stated

if TYPE_CHECKING:
    from ggplan.cli.comparing import Asked
    from ggplan.ggml_types import Engine, GgmlType
    from ggplan.offload.header import Header
    from ggplan.offload.machine import Machine
    from ggplan.offload.placement import Wishes

_EPILOG = """\b
Examples:
  ggplan fit air.gguf                                      on this machine
  ggplan fit air.gguf --cards 3090 --ram 128G              what goes where, how fast, the command
  ggplan fit air.gguf --vram 24G,12G --ram 64G -c 64k      two cards
  ggplan fit GLM-4.5-Air -r glm4moe/hq4_k                  a file that is not written yet
  ggplan fit air.gguf --engine ik_llama.cpp --explain      for ik_llama.cpp, every option explained
  ggplan fit air.gguf --output systemd > llama.service     as a service, or a script (--output sh)
  ggplan fit air.gguf --pin 'blk\\.1\\..*_exps=CUDA0'        some tensors where you want them
  ggplan fit air.gguf --check "llama-server -ngl 99 --cpu-moe -ub 4096 --no-mmap"
  ggplan fit GLM-4.5-Air --compare -r Q8_0 -r glm4moe/hq4_k -c 8k,32k,128k    what if
  ggplan fit GLM-4.5-Air -r Q8_0 --compare --role experts.down=q8_0,q5_1,q5_0,iq4_nl
  ggplan fit air.gguf --calibrate bench.log                learn from what was measured
  ggplan fit air.gguf --command "llama-server -ngl 99 -ncmoe 40 -c 32768" --gpus 1 --json
"""
Form = Literal["text", "sh", "json", "systemd"]


@dataclass(frozen=True, slots=True)
class WishOptions:
    """The values of the options that say how a model is to be loaded."""

    context: int | None
    kv_type: str | None
    ubatch: int | None
    slots: int
    gpu_layers: int | None
    pins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lines:
    """Command lines of others, the engine whose they are, and the log of a benchmark."""

    engine: Engine | None
    command: str | None
    check: str | None
    n_gpus: int | None
    log: Path | None


@click.command("fit", epilog=_EPILOG, short_help="Does it fit, how fast is it, how is it started?")
@click.argument("models", metavar="FILE", nargs=-1, required=True)
@varying
@as_one("wished", WishOptions)
@as_one("lines", Lines)
@planning_options(header_only=False, several=True)
@machine_options
@click.option("-c", "--ctx", "contexts", type=TokenCounts(), multiple=True, metavar="N",
              help="Tokens of context: 32k [default: as trained, at most 32k].")  # fmt: skip
@click.option("--kv-type", "kv_types", multiple=True, metavar="TYPE[,TYPE]",
              help="Type of keys and values: q8_0 [default: f16].")  # fmt: skip
@click.option("--ubatch", type=click.IntRange(1, 65536), metavar="N",
              help="Tokens of a prompt at a time [default: 512, or 2048 where it pays].")  # fmt: skip
@click.option("--slots", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N",
              help="Conversations at once.")  # fmt: skip
@click.option("--gpu-layers", type=click.IntRange(0, 999), metavar="N",
              help="Layers on the GPUs, from the end [default: all, or as many as fit].")  # fmt: skip
@click.option("--pin", "pins", multiple=True, metavar="REGEX=DEVICE",
              help="Tensors that must be on a device (CPU, CUDA0, ...); can be repeated.")  # fmt: skip
@click.option("--engine", type=click.Choice(["llama.cpp", "ik_llama.cpp"]),
              help="Whose command [default: llama.cpp].")  # fmt: skip
@click.option("--explain", is_flag=True, help="Say what each option of the command does, and why.")
@click.option("--output", "form", type=click.Choice(["text", "sh", "json", "systemd"]), default="text",
              help="Print a script, JSON or a systemd service [default: text].")  # fmt: skip
@click.option("--compare", is_flag=True, help="One table of all combinations of several FILEs, -r, --role, "
              "--kv-type and -c (8k,32k).")  # fmt: skip
@click.option("--role", "parts", multiple=True, metavar="PART=TYPE,...",
              help="With --compare, all matrices of a part in each of these types: experts.down=q8_0,q5_0; a "
              "role of recipes, or what tensors are called (down_exps, attn_q).")  # fmt: skip
@click.option("--command", metavar="LINE", help="Reckon what this command line allocates, and no other.")
@click.option("--check", metavar="LINE", help="Look for traps in this command line.")
@click.option("--gpus", "n_gpus", type=click.IntRange(0, 16), metavar="N",
              help="Use the first N GPUs alone; with --command, N of one size.")  # fmt: skip
@click.option("--calibrate", "log", type=click.Path(path_type=Path),
              metavar="LOG", help="Learn from a log of llama-bench or llama-sweep-bench, of the command that "
              "is printed or of --command, and keep it in the machine's file.")  # fmt: skip
@json_option("it all")
def fit_command(
    model: str, varied: Varied, wished: WishOptions, lines: Lines, planning: PlanningOptions, stated: Stated,
    explain: bool, form: Form, as_json: bool,
) -> None:  # fmt: skip
    """Say whether FILE fits a machine, how fast it is there, and how it is started.

    FILE is a GGUF, or its first bytes, or its address; with -r any model that a recipe is
    for, fitted as the plan has it. Nothing is loaded. A wish that does not fit is never changed: what is
    short is said, and the cheapest ways out. The machine is that of the options, else that which `ggplan
    machine --write` wrote, else this one.

    Exits 0; 1 if it does not fit (with --compare, none of them), or --check found a fault; 2 for wrong usage.
    """
    if as_json and form not in ("text", "json"):
        raise click.UsageError(f"--json and --output {form} are two forms: ask for one of them")
    form = "json" if as_json else form
    if varied.is_asked:
        _compare(varied, wished, lines, planning, stated, form, explain=explain)
        return
    if lines.command is not None and lines.check is not None:
        raise click.UsageError("--command and --check are two questions: ask one of them")
    if (lines.command or lines.check) and form in ("sh", "systemd"):
        raise click.UsageError(f"--output {form} is of a command that ggplan writes")
    if lines.log is None and (lines.command is not None or lines.check is not None):
        _refuse_wishes(wished, "--command" if lines.command is not None else "--check", explain=explain)
    header = planned_header(model, planning)
    if lines.log is not None:
        _learn(header, wished, lines, stated, quiet=planning.quiet)
        lines = replace(lines, command=None)
    if lines.command is not None:
        from ggplan.cli.fit_lines import show_reckoning

        show_reckoning(header, lines.command, lines.engine, lines.n_gpus, stated, as_json=form == "json")
        return
    machine = known_machine(stated, lines.n_gpus, quiet=planning.quiet)
    if lines.check is not None:
        from ggplan.cli.fit_lines import show_traps

        show_traps(header, lines.check, lines.engine, machine, as_json=form == "json")
        return
    engine: Engine = lines.engine or "llama.cpp"
    _place(header, machine, wishes_from(wished, engine), model, engine, form, explain=explain)


def _refuse_wishes(wished: WishOptions, option: str, *, explain: bool) -> None:
    """A line of somebody else's says itself what context it has, and so on."""
    plain = WishOptions(None, None, None, 1, None, ())
    names = ("--ctx", "--kv-type", "--ubatch", "--slots", "--gpu-layers", "--pin")
    fields = ("context", "kv_type", "ubatch", "slots", "gpu_layers", "pins")
    given = [n for n, f in zip(names, fields, strict=True) if getattr(wished, f) != getattr(plain, f)]
    given += ["--explain"] * explain
    if given:
        raise click.UsageError(f"{', '.join(given)}: {option} says that itself, in the line's own options")


def _compare(
    varied: Varied, wished: WishOptions, lines: Lines, planning: PlanningOptions, stated: Stated, form: Form,
    *, explain: bool,
) -> None:  # fmt: skip
    from ggplan.cli.comparing import show_comparison

    if lines.command or lines.check or lines.log or explain or form not in ("text", "json"):
        raise click.UsageError(
            "--compare goes with none of --command, --check, --calibrate, --explain and --output"
        )
    machine = known_machine(stated, lines.n_gpus, quiet=planning.quiet)
    asked = asked_of(varied, planning, wished, lines.engine or "llama.cpp", machine)
    show_comparison(asked, as_json=form == "json")


def asked_of(
    varied: Varied, planning: PlanningOptions, wished: WishOptions, engine: Engine, machine: Machine
) -> Asked:
    """What is compared, by the options of this command."""
    from ggplan.cli.comparing import Asked
    from ggplan.offload.profiles import PROFILES

    def header_of(model: str, recipe: str | None, is_known: bool) -> Header:
        quiet = planning.quiet or is_known
        return planned_header(model, replace(planning, recipe_name=recipe, quiet=quiet))

    def wishes_of(kv_type: str | None, context: int | None) -> Wishes:
        return wishes_from(replace(wished, kv_type=kv_type, context=context), engine)

    return Asked(varied, header_of, wishes_of, machine, PROFILES[engine], planning.quiet)


def _learn(header: Header, wished: WishOptions, lines: Lines, stated: Stated, *, quiet: bool) -> None:
    from ggplan.cli.learning import learn

    engine: Engine = lines.engine or "llama.cpp"
    if lines.check is not None or lines.n_gpus is not None or lines.log is None:
        raise click.UsageError("--calibrate goes with neither --check nor --gpus")
    _, notes = learn(header, lines.log, wishes_from(wished, engine), lines.command, engine, stated)
    note(*notes, quiet=quiet)


def planned_header(name: str, planning: PlanningOptions) -> Header:
    """The header of a file, or of the file that a plan would write.

    Raises
    ------
    MissingFilesError
        If files of a split set are not there.
    """
    from ggplan.errors import MissingFilesError, TruncatedError
    from ggplan.offload.completing import completed
    from ggplan.offload.header import header_of

    planning = replace(planning, opening=replace(planning.opening, header_only=True))
    if planning.recipe_name is None:
        # What is loaded where is all in the header, so a file that is its header alone will do.
        opened = planning.opening.open_noted(name, quiet=True)
        if isinstance(opened.obstacle, MissingFilesError):
            hint = "download at least the headers of the others: how large their tensors are is not known"
            raise MissingFilesError(opened.obstacle.message, hint=hint)
        if opened.kind == "gguf":
            if isinstance(opened.obstacle, TruncatedError):
                note(f"{opened.obstacle.message}; its header is all that is read", quiet=planning.quiet)
            return header_of(opened)
    plan = plan_from(name, planning)
    if isinstance(plan.model.obstacle, MissingFilesError):
        raise plan.model.obstacle
    header = header_of(plan)
    if plan.model.kind != "inventory":
        return header
    note(
        "an inventory: what its metadata lacks is read off the shapes of its tensors, so compute buffers may "
        "be some percent off",
        quiet=planning.quiet,
    )
    return completed(header)


def known_machine(stated: Stated, n_gpus: int | None, *, quiet: bool) -> Machine:
    """The machine that options state, or else that is known; of its GPUs the first `n_gpus`."""
    from dataclasses import replace

    from ggplan.offload.known_machine import machine_for

    machine, notes = machine_for(stated)
    note(*notes, quiet=quiet)
    if n_gpus is None:
        return machine
    if n_gpus > len(machine.gpus):
        raise click.UsageError(
            f"--gpus {n_gpus}: the machine has {len(machine.gpus)}; state them with --vram"
        )
    return replace(machine, gpus=machine.gpus[:n_gpus])


def _place(
    header: Header, machine: Machine, wishes: Wishes, name: str, engine: Engine, form: Form, *, explain: bool
) -> None:
    from ggplan.cli.output import print_json
    from ggplan.cli.placing import placement_json, print_placement
    from ggplan.offload.placing import place
    from ggplan.offload.profiles import PROFILES
    from ggplan.offload.starting import script, server_command, unit
    from ggplan.offload.ways_out import ways_out

    placement = place(header, machine, wishes, PROFILES[engine])
    path = _path(name, header)
    if form == "systemd" or (form == "sh" and os.path.exists(path)):  # they are started from anywhere
        path = os.path.abspath(path)  # but nobody knows yet where a planned file will be
    ways = ways_out(placement)
    if form == "json":
        print_json(placement_json(placement, path, ways))
    elif form == "text" or not placement.fits:
        print_placement(placement, path, ways, explain=explain, err=form != "text")
    elif form == "sh":
        click.echo(script(server_command(placement, path)), nl=False)
    else:
        click.echo(unit(server_command(placement, path), f"llama-server with {header.name}"), nl=False)
    if not placement.fits:
        raise SystemExit(1)


def _path(name: str, header: Header) -> str:
    """How the command calls the file: as it was given, or what a plan's file would be called."""
    from ggplan.sources.remote import is_address

    if is_address(name):
        name = name.rstrip("/").rsplit("/", 1)[-1].partition("?")[0].partition("@")[0]
    elif header.file and name != "-":
        name = header.file
    elif name == "-" or not Path(name).name.strip("."):  # `.` and `..`
        name = header.name or Path(name).resolve().name
    elif name.lower().endswith(".gguf"):  # what a plan makes of it is another file
        name = f"{re.sub(r'-[0-9]{5}-of-[0-9]{5}$', '', Path(name).stem)}-planned.gguf"
    name = name if name.lower().endswith(".gguf") else f"{name.rstrip('/').rsplit('/', 1)[-1]}.gguf"
    return re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", r"-00001\1", name)  # an engine is given the first


def wishes_from(wished: WishOptions, engine: Engine) -> Wishes:
    """What options ask for."""
    from ggplan.offload.placement import Wishes
    from ggplan.offload.settings import Override
    from ggplan.offload.values import BadValue, overrides_of

    pins: list[Override] = []
    for pin in wished.pins:
        try:
            pins += overrides_of(pin, "\n")
        except BadValue as bad:
            raise click.BadParameter(f"{pin} {bad.message}; {bad.hint}", param_hint="--pin") from bad
    key, value = _cache_types(wished.kv_type, engine)
    return Wishes(wished.context, key, value, wished.ubatch, wished.slots, wished.gpu_layers, tuple(pins))


def _cache_types(text: str | None, engine: Engine) -> tuple[GgmlType, GgmlType]:
    from ggplan.ggml_types import F16
    from ggplan.offload.values import BadValue, cache_type

    if text is None:
        return F16, F16
    names = text.split(",")
    if len(names) > 2:
        raise click.BadParameter("one type, or one of keys and one of values", param_hint="--kv-type")
    try:
        types = [cache_type(name.strip(), engine) for name in names]
    except BadValue as bad:
        raise click.BadParameter(f"{text} {bad.message}; {bad.hint}", param_hint="--kv-type") from bad
    return types[0], types[-1]
