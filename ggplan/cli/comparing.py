"""`ggplan fit --compare`: a model under recipes, types of a part, types of keys and values, and contexts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import note

if TYPE_CHECKING:
    from ggplan.ggml_types import GgmlType
    from ggplan.offload.comparing import Compared, Variant
    from ggplan.offload.header import Header
    from ggplan.offload.machine import Machine
    from ggplan.offload.placement import Placement, Wishes
    from ggplan.offload.profiles import Profile

SCHEMA = "ggplan/compare@1"
MOST = 64  # variants: each takes some tenths of a second


@dataclass(frozen=True, slots=True)
class Varied:
    """What is given several times, each a way to have the model; with all others combined."""

    is_asked: bool
    models: tuple[str, ...]
    recipes: tuple[str, ...]
    parts: tuple[str, ...]
    kv_types: tuple[str, ...]
    contexts: tuple[int, ...]


def varying(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that --compare takes several of: all as the argument `varied`, the first as ever."""

    @functools.wraps(command)
    def called(**given: Any) -> Any:
        groups = given.pop("contexts")
        contexts = tuple(n for group in groups for n in group)
        varied = Varied(
            given.pop("compare"), given.pop("models"), given.pop("recipe_names"), given.pop("parts"),
            given.pop("kv_types"), contexts,
        )  # fmt: skip
        if not varied.is_asked:
            _refuse_several(varied, groups)
        return command(
            model=varied.models[0],
            # Of an option that is given again, the last counts, as in all commands.
            recipe_name=next(iter(varied.recipes), None),
            context=next(iter(contexts[-1:]), None),
            kv_type=next(iter(varied.kv_types[-1:]), None),
            varied=varied,
            **given,
        )

    return called


def _refuse_several(varied: Varied, contexts: tuple[tuple[int, ...], ...]) -> None:
    several = {"FILE": varied.models, "-r": varied.recipes, "--ctx": next(iter(contexts[-1:]), ())}
    for name, values in several.items():
        if len(values) > 1:
            raise click.UsageError(f"{name} has {len(values)} values; --compare compares them")
    if varied.parts:
        raise click.UsageError("--role belongs to --compare")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is varied, and the machine.

    Attributes
    ----------
    header_of
        The header of a file under a recipe; the last argument is whether its notes are known.
    wishes_of
        What is asked for with these types of keys and values, and this context.
    """

    varied: Varied
    header_of: Callable[[str, str | None, bool], Header]
    wishes_of: Callable[[str | None, int | None], Wishes]
    machine: Machine
    profile: Profile
    quiet: bool


def show_comparison(asked: Asked, *, as_json: bool) -> None:
    """One table of all variants; ends with exit code 1 where none of them fits."""
    compared = _compared(asked)
    if as_json:
        _print_json(compared, asked.machine, asked.profile)
    else:
        _print(compared, asked.profile, quiet=asked.quiet)
    if not any(one.placement.fits for one in compared):
        raise SystemExit(1)


def named_placements(asked: Asked) -> dict[str, Placement]:
    """Each variant's placement, by what sets it apart."""
    named: dict[str, Placement] = {}
    for one in _compared(asked):
        words = (v if key in ("file", "recipe") else f"{key} {v}" for key, v in one.variant.labels)
        named[", ".join(words) or one.placement.header.name] = one.placement
    return named


def _compared(asked: Asked) -> tuple[Compared, ...]:
    from ggplan.offload.comparing import compare

    return compare(list(_variants(asked)), asked.machine, asked.profile)


def _variants(asked: Asked) -> Iterator[Variant]:
    """All combinations, in the order given."""
    from ggplan.offload.comparing import Variant, with_part_in

    varied = asked.varied
    recipes: tuple[str | None, ...] = varied.recipes or (None,)
    caches: tuple[str | None, ...] = varied.kv_types or (None,)
    contexts: tuple[int | None, ...] = varied.contexts or (None,)
    parts = [_part(text) for text in varied.parts]
    n = len(varied.models) * len(recipes) * len(caches) * len(contexts)
    for _, types in parts:
        n *= len(types)
    if n > MOST:
        raise click.UsageError(f"these are {n:,} combinations; {MOST} can be compared")
    told: set[str] = set()
    for model, recipe in itertools.product(varied.models, recipes):
        # What is noted of a model is noted once, not for each recipe.
        plain = asked.header_of(model, recipe, model in told)
        told.add(model)
        for chosen in itertools.product(*(types for _, types in parts)):
            header = plain
            for (part, _), type_ in zip(parts, chosen, strict=True):
                header, notes = with_part_in(header, part, type_)
                note(*(text for text in notes if text not in told), quiet=asked.quiet)
                told |= set(notes)
            for cache, context in itertools.product(caches, contexts):
                labels = [("file", model)] if len(varied.models) > 1 else []
                labels += [("recipe", recipe)] if recipe is not None and len(recipes) > 1 else []
                labels += [(part, t.name) for (part, _), t in zip(parts, chosen, strict=True)]
                labels += [("KV", cache)] if cache is not None and len(caches) > 1 else []
                labels += [("context", f"{context:,}")] if context is not None and len(contexts) > 1 else []
                yield Variant(tuple(labels), header, asked.wishes_of(cache, context))


def _part(text: str) -> tuple[str, list[GgmlType]]:
    from ggplan.errors import TypeNameError
    from ggplan.ggml_types import parse_type

    part, equals, names = text.partition("=")
    if not equals or not part or not names:
        raise click.BadParameter("write PART=TYPE,TYPE, such as experts.down=q8_0,q5_0", param_hint="--role")
    try:
        return part.strip(), [parse_type(name.strip()) for name in names.split(",")]
    except TypeNameError as error:
        raise click.BadParameter(str(error), param_hint="--role") from error


def _print(compared: tuple[Compared, ...], profile: Profile, *, quiet: bool) -> None:
    from ggplan.cli.output import print_table
    from ggplan.cli.usual import figure, range_of
    from ggplan.offload.placement import placed_memory
    from ggplan.text import format_bytes, printable

    first = compared[0]
    headings = list(dict(first.variant.labels)) or ["file"]
    names = [device.name for device in first.placement.reckoning.devices]
    shown = ["RAM" if name == "host" else name for name in names]
    columns = [*((heading, "left") for heading in headings), ("size", "right")]
    for name in shown:
        columns += [(name, "right"), (f"{name} left", "right")]
    columns += [
        ("tok/s", "right"),
        ("likely", "right"),
        ("full", "right"),
        ("prompts", "right"),
        ("", "left"),
    ]
    rows = []
    for one in compared:
        placement = one.placement
        row = [printable(value) for _, value in one.variant.labels] or [printable(placement.header.name)]
        row.append(format_bytes(sum(t.n_bytes for t in placement.header.tensors)))
        for device, memory in zip(placement.reckoning.devices, placed_memory(placement), strict=True):
            left = None if memory is None else memory - device.total
            row += [format_bytes(device.total), "?" if left is None else signed(left)]
        row += [range_of(placement.generation).replace(" to ", "-"), figure(placement.generation.likely)]
        row += [figure(placement.generation_full.likely), figure(placement.prompt.likely)]
        row.append("fits" if placement.fits else "does not fit")
        rows.append(row)
    click.echo(f"{printable(first.placement.header.name)}, {profile.name}")
    least = ("prompts", "full", "tok/s", "size", *(f"{name} left" for name in reversed(shown)))
    print_table(columns, rows, least=least, quiet=quiet)


def signed(n_bytes: int) -> str:
    """Bytes that are left; with a minus those that lack."""
    from ggplan.text import format_bytes

    return format_bytes(n_bytes) if n_bytes >= 0 else f"-{format_bytes(-n_bytes)}"


def _print_json(compared: tuple[Compared, ...], machine: Machine, profile: Profile) -> None:
    from ggplan.cli.output import print_json
    from ggplan.cli.placing import placement_json

    rows = []
    for one in compared:
        placement = one.placement
        found = placement_json(placement, placement.header.name, ())
        kept = {
            key: value
            for key, value in found.items()
            if key not in ("command", "measure", "ways_out", "engine")
        }
        rows.append({
            "variant": dict(one.variant.labels),
            "cache_k": placement.settings.cache_k.name,
            "cache_v": placement.settings.cache_v.name,
            "tensor_bytes": sum(t.n_bytes for t in placement.header.tensors),
            **kept,
        })  # fmt: skip
    gpus = [{"name": g.name, "memory": g.memory, "bandwidth": g.bandwidth} for g in machine.gpus]
    stated = {"gpus": gpus, "ram": machine.ram, "bandwidth": machine.bandwidth, "cores": machine.cores}
    print_json({"schema": SCHEMA, "engine": profile.name, "machine": stated, "variants": rows})
