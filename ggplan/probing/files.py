"""The files of probes: a set of shards, twins of some of them, and folders of links.

    WORK/base/m-00001-of-00014.gguf ...     the model, one shard for each group; the first has all else
    WORK/low/m-00002-of-00014.gguf ...      the twins of the groups, in the low type
    WORK/all/...                            the twins in q5_K
    WORK/ffn_down_exps_0-15/...             links: to the shards, but for one group to its twin

llama.cpp opens a set by the names of its files, and every header says of how many files the set is; so any
mixture of twins is a model. All weights are written three times at most, not once for each probe.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.allocation.measured_errors import Progress, error_between, errors_of_tensors
from ggplan.allocation.probes import ALL, LOW, ProbeGroup
from ggplan.allocation.type_errors import type_error
from ggplan.conversion import ConvertOptions, convert
from ggplan.errors import MeasureError
from ggplan.ggml_types import F16, GgmlType, parse_type
from ggplan.measure.outputs import write_whole
from ggplan.model import Model, TensorInfo
from ggplan.planning import Plan, lay_out, make_plan, types_by_hand
from ggplan.planning.assignment import Decision
from ggplan.planning.fitting import fitted
from ggplan.planning.protection import kept_type
from ggplan.planning.splits import split_by_names, split_path
from ggplan.probing.record import ALL_TENSORS
from ggplan.probing.simulated import simulated
from ggplan.rules import parse_recipe
from ggplan.text import format_bytes, printable

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_MARK = "ggplan-probes.json"
_NAME = "m.gguf"
_SMALL = 1e-4
Written = Callable[[int], None]
"""Called with bytes that were written."""


@dataclass(frozen=True, slots=True)
class ProbePlans:
    """What the files of probes are made of.

    Attributes
    ----------
    groups
        Those that are probed.
    base, low, all
        The plans of the shards, in order: the first is that of all tensors of no group. Twins of it are not
        written.
    """

    groups: tuple[ProbeGroup, ...]
    base: tuple[Plan, ...]
    low: tuple[Plan, ...]
    all: tuple[Plan, ...]

    @property
    def n_bytes(self) -> int:
        """Of all files that are written."""
        return sum(p.file_bytes for p in (*self.base, *self.low[1:], *self.all[1:]))


def plans_of(
    model: Model, groups: Sequence[ProbeGroup], imatrix: Imatrix | None, base: str = ""
) -> ProbePlans:
    """The plans of the shards and their twins.

    Parameters
    ----------
    model
        As it is settled.
    base
        The type of the base; "" for the types of the model.
    """
    parts = [(), *(group.tensors for group in groups)]
    names = {name for part in parts for name in part}
    plan = make_plan(model, parse_recipe(f"@default {base}\n", "base") if base else None)
    low_model = replace(
        model,
        tensors=tuple(
            simulated(t, parse_type(LOW), imatrix)
            if t.name in names and not _holds(t, parse_type(LOW))
            else t
            for t in model.tensors
        ),
    )
    low = {t.name: LOW for t in model.tensors if t.name in names and _holds(t, parse_type(LOW))}
    kept = {t.name: _exact(t.type) for t in plan.tensors if t.name in names and t.name not in low}
    low_plan = lay_out(low_model, types_by_hand(low_model, {**kept, **low}, LOW), imatrix=imatrix)
    fine = lay_out(
        model,
        types_by_hand(model, {t.name: _fine(t) for t in model.tensors if t.name in names}, ALL),
        imatrix=imatrix,
    )
    return ProbePlans(tuple(groups), *(split_by_names(p, parts) for p in (plan, low_plan, fine)))


def _fine(tensor: TensorInfo) -> GgmlType:
    """The type in the probe of all: q5_K, what llama.cpp puts in its place, or a coarser one that it has."""
    if tensor.type.is_quantized and type_error(tensor.type.name) >= type_error(ALL):
        return tensor.type
    found = fitted(tensor, Decision(parse_type(ALL), "optimiser"), "llama.cpp")
    return found.type if found.fault is None else kept_type(tensor)


def _exact(type_: GgmlType) -> GgmlType:
    """The type that simulated weights are stored in: the base's, or f16 where that adds to their errors."""
    return F16 if type_.is_quantized and type_error(type_.name) > _SMALL else type_


def _holds(tensor: TensorInfo, type_: GgmlType) -> bool:
    return type_.fits(tensor.n_columns)


def errors_of_probes(
    plans: ProbePlans,
    imatrix: Imatrix | None,
    more: Mapping[str, Sequence[GgmlType]],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, Mapping[str, float]]]:
    """The errors that the tensors of each probe have, by name of the probe; and those of all types measured.

    Parameters
    ----------
    more
        By tensor, types whose errors are wanted besides.
    """
    tensors = {t.name: t.tensor for part in plans.base[1:] for t in part.tensors}
    low = {t.name: t for part in plans.low[1:] for t in part.tensors}
    fine = {t.name: t.type for part in plans.all[1:] for t in part.tensors}
    wanted = []
    for name, tensor in tensors.items():
        types = [low[name].type] if low[name].type.is_quantized else []
        wanted.append((tensor, tuple(dict.fromkeys((*more.get(name, ()), *types, fine[name])))))
    found = errors_of_tensors(wanted, imatrix, threads=threads, progress=progress)
    errors: dict[str, dict[str, float]] = {}
    for group in plans.groups:
        own = errors[group.name] = {}
        for name in group.tensors:
            planned = low[name]
            if planned.tensor.rows is tensors[name].rows:
                own[name] = found.get(name, {}).get(LOW, 0.0)
            else:
                own[name] = error_between(tensors[name], planned.tensor.rows, imatrix)
    errors[ALL_TENSORS] = {name: found.get(name, {}).get(fine[name].plain.name, 0.0) for name in tensors}
    return errors, found


def _mark_of(key: Mapping[str, object]) -> str:
    return json.dumps(key, indent=1, sort_keys=True)


def remove_left(folder: Path, key: Mapping[str, object]) -> None:
    """Remove the folder of a run with this key that was stopped before it did so itself."""
    with contextlib.suppress(OSError, ValueError):
        if (folder / _MARK).read_text("utf-8") == _mark_of(key):
            shutil.rmtree(folder, ignore_errors=True)


class ProbeFiles:
    """The folder of the files, in which what is missing is written.

    Parameters
    ----------
    folder
        Made, empty, or of an earlier run with the same `key`.
    key
        What the files depend on.
    force
        Remove another run's.

    Raises
    ------
    MeasureError
        If the folder cannot be made, is something else's, or another run's.
    """

    def __init__(
        self, folder: Path, plans: ProbePlans, key: Mapping[str, object], *, force: bool = False
    ) -> None:
        self.folder, self._plans = folder, plans
        mark = folder / _MARK
        text = _mark_of(key)
        shown = printable(str(folder))
        try:
            if not folder.exists() or not any(folder.iterdir()):
                folder.mkdir(exist_ok=True)
                write_whole(mark, text.encode())
            if not mark.exists():
                raise MeasureError(
                    f"{shown} is there, and is no folder of probes", hint="name another one with --work"
                )
            if mark.read_text("utf-8") != text and force:
                shutil.rmtree(folder)
                folder.mkdir()
                write_whole(mark, text.encode())
            if mark.read_text("utf-8") != text:
                raise MeasureError(
                    f"the files in {shown} are of other probes",
                    hint="remove the folder, or name another one with --work",
                )
        except (OSError, ValueError) as error:
            raise MeasureError(f"cannot use {shown}: {error}") from error
        room = shutil.disk_usage(folder).free
        missing = sum(
            p.file_bytes for kind in ("base", "low", "all") for n, p in self._shards(kind)
            if not self._shard(kind, n).exists()
        )  # fmt: skip
        if missing > room:
            raise MeasureError(
                f"the files of the probes need {format_bytes(missing)}, and {shown} has room for"
                f" {format_bytes(room)}",
                hint="name a folder with more room with --work, or probe with `--probe-base q8_0`",
            )
        self.missing = missing

    def write(self, *, threads: int | None = None, progress: Written | None = None) -> None:
        """Write the shards that are missing; a stopped run's are continued. Raises as `convert` does."""
        options = ConvertOptions(threads=threads, allow_requantize=True)
        for kind in ("base", "low", "all"):
            (self.folder / kind).mkdir(exist_ok=True)
            for number, plan in self._shards(kind):
                path = self._shard(kind, number)
                if not path.exists():
                    convert(plan, path, options, progress=progress, resumed=progress)

    @property
    def base(self) -> Path:
        """The first file of the base."""
        return self._shard("base", 0)

    def logits(self, text_sha256: str) -> Path:
        """Where the base's log-probabilities of a text are kept."""
        return self.folder / f"base-{text_sha256[:16]}.logits"

    def probe(self, name: str) -> Path:
        """The first file of a probe, whose links are made where they are missing."""
        n = len(self._plans.base)
        slug = re.sub(r"[^A-Za-z0-9.+-]+", "_", name)
        at = 1 + next((i for i, g in enumerate(self._plans.groups) if g.name == name), -1)
        folder = self.folder / f"probe-{at:03d}-{slug}"
        folder.mkdir(exist_ok=True)
        for number in range(n):
            kind = "base"
            if number and name == ALL_TENSORS:
                kind = "all"
            elif number and number == at:
                kind = "low"
            link = split_path(folder / f"{slug}.gguf", number, n)
            with contextlib.suppress(FileExistsError):
                os.symlink(os.path.relpath(self._shard(kind, number), folder), link)
        return split_path(folder / f"{slug}.gguf", 0, n)

    def remove(self) -> None:
        """Remove the folder with all that was written in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _shards(self, kind: str) -> list[tuple[int, Plan]]:
        plans = {"base": self._plans.base, "low": self._plans.low, "all": self._plans.all}[kind]
        return [(number, plan) for number, plan in enumerate(plans) if number or kind == "base"]

    def _shard(self, kind: str, number: int) -> Path:
        return split_path(self.folder / kind / _NAME, number, len(self._plans.base))
