"""reproduce: make a file again from its checkpoint and what it says of itself, and compare.

Four steps, each of which says what differs:

    inputs      the recorded hash of each (`ggplan.inputs`) against those of the checkpoint and the imatrix
    plan        made anew from the recorded recipe and choices
    bytes       header, tensors, padding: all of the file against what the plan gives
    weights     of a tensor that differs: are its weights those it was made of, by the manifest?

The last tells a file that was tampered with, or encoders that went wrong, from a checkpoint that is not the
one. A file of another version of ggplan is judged by the keys that version had.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.conversion import convert
from ggplan.conversion.input_hashes import input_hashes, recorded_inputs
from ggplan.conversion.source_hash import has_source_hash, source_hash_of
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.planning import Plan
from ggplan.planning.provenance import INPUTS, PLAN
from ggplan.planning.splits import split_plan
from ggplan.sources.files import file_size, read_at
from ggplan.sources.gguf import open_gguf, read_set
from ggplan.text import printable
from ggplan.verification.checksums import find_manifest
from ggplan.verification.exactness import plan_again
from ggplan.verification.faults import HEADER, Fault
from ggplan.verification.verifying import verify
from ggplan.verification.workers import Progress

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_RUN_WEIGHTS = 1 << 18


@dataclass(frozen=True, slots=True)
class InputDifference:
    """An input that is not the recorded one; "" for a hash where there is none."""

    name: str
    recorded: str
    found: str


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of making a file again.

    Attributes
    ----------
    files
        The file, or those of its split set.
    n_tensors, n_bytes
        What was compared.
    plan
        The plan that was made anew.
    inputs
        Inputs that differ; None where the file does not record any.
    faults
        Where the file differs from what its plan gives; empty where every byte is equal.
    output
        The file that was written anew, if one was wanted.
    """

    files: tuple[Path, ...]
    n_tensors: int
    n_bytes: int
    plan: Plan
    inputs: tuple[InputDifference, ...] | None
    faults: tuple[Fault, ...]
    output: Path | None = None

    @property
    def is_equal(self) -> bool:
        """Whether the file is what its checkpoint and its recipe give, byte for byte."""
        return not self.faults and not self.inputs


def reproduce(
    path: str | Path,
    checkpoint: Model,
    *,
    imatrix: Imatrix | None = None,
    output: str | Path | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Make a file of ggplan's again, and compare it byte for byte.

    Parameters
    ----------
    path
        The file, or any of its split set.
    checkpoint
        What it was made from.
    imatrix
        The importance matrix that was used.
    output
        Write the new file here too; of a split set, its files.
    force
        Replace `output` if it exists.

    Raises
    ------
    PlanError
        If the file does not say how it was made, or was made with an imatrix and none is given.
    CheckpointError
        If a file cannot be opened.
    ConversionError
        If `output` cannot be written.
    """
    path = Path(path)
    written = open_gguf(path)
    plan = plan_again(written, checkpoint, imatrix=imatrix)
    inputs = _differing_inputs(written, checkpoint, imatrix)
    found = verify(path, plan=plan, threads=threads, progress=progress)
    # What follows from inputs that differ is said of them.
    implied = {f"the key {key} differs from the plan's" for key in (INPUTS, PLAN)} if inputs else set()
    # Weights that were kept as they are may be infinite.
    kept = ("value",) if plan.nonfinite == "keep" else ()
    faults = [f for f in found.faults if f.message not in implied and f.kind not in kept]
    if not faults and not inputs:
        faults += _header_faults(path, written, plan)
    faults = _with_causes(faults, path, plan)
    made = None
    if output is not None:
        like = written if len(written.files) > 1 else None
        made = convert(
            plan,
            output,
            threads=threads,
            allow_requantize=True,
            force=force,
            split_like=like,
            progress=progress,
        ).path
    return Reproduction(found.files, found.n_tensors, found.n_bytes, plan, inputs, tuple(faults), made)


def _differing_inputs(
    written: Model, checkpoint: Model, imatrix: Imatrix | None
) -> tuple[InputDifference, ...] | None:
    recorded = recorded_inputs(written.metadata)
    if recorded is None:
        return None
    found = input_hashes(checkpoint, imatrix)
    return tuple(
        InputDifference(name, recorded.get(name, ""), found.get(name, ""))
        for name in sorted(recorded.keys() | found.keys())
        if recorded.get(name) != found.get(name)
    )


def _header_faults(path: Path, written: Model, plan: Plan) -> list[Fault]:
    """Headers whose keys and tensors are the plan's, but not their bytes: another order, another place."""
    headers = read_set(path)
    parts = split_plan(plan, like=written) if len(headers) > 1 else (plan,)
    if len(parts) != len(headers):
        return [Fault(HEADER, "bytes", f"{len(headers)} files, the plan gives {len(parts)}", path.name)]
    faults = []
    for header, part in zip(headers, parts, strict=True):
        # The two programs that write split sets order their keys in two ways, and ggplan knows both.
        splits = {key: value for key, value in header.metadata.items() if key in _SPLITS}
        own = {key: value for key, value in part.metadata.items() if key not in _SPLITS}
        part = dataclasses.replace(part, metadata={**own, **splits} if len(headers) > 1 else own)
        due = part.header
        if file_size(header.path) != part.file_bytes or read_at(header.path, 0, len(due)) != due:
            faults.append(Fault(HEADER, "bytes", "its bytes are not the plan's", header.path.name))
    return faults


_SPLITS = ("split.no", "split.count", "split.tensors.count")


def _with_causes(faults: list[Fault], path: Path, plan: Plan) -> list[Fault]:
    """The faults; of tensors with other bytes, whether the weights they were made of are those there are."""
    headers = read_set(path) if faults else []
    try:
        manifest = find_manifest(headers, None) if headers else None
    except CheckpointError:
        manifest = None
    if manifest is None:
        return faults
    files = {record.name: header.path.name for header in headers for record in header.tensors}
    planned = {tensor.name: tensor for tensor in plan.tensors}
    told = []
    for fault in faults:
        tensor = planned.get(fault.where)
        if fault.kind == "bytes" and tensor is not None and has_source_hash(tensor):
            recorded = manifest.source_hash(files[tensor.name], tensor.name)
            if recorded is not None:
                same = source_hash_of(tensor, _RUN_WEIGHTS) == recorded
                cause = "though its weights are" if same else "and its weights in the checkpoint are not"
                message = f"{fault.message}, {cause} those it was made of, by the manifest"
                fault = dataclasses.replace(fault, message=message)
        told.append(fault)
    return told


def describe_input(difference: InputDifference, checkpoint: Path) -> str:
    """A sentence about an input that differs."""
    where = printable(str(checkpoint))
    what = {
        "tensors": "the names, shapes or types of the tensors",
        "metadata": "the metadata",
        "imatrix": "the imatrix",
    }.get(difference.name, printable(difference.name))
    if not difference.found:
        return f"{what} is recorded, and is not there in {where}"
    if not difference.recorded:
        return f"{what} is in {where}, and is not recorded"
    verb = "are" if difference.name == "tensors" else "is"
    return f"{what} {verb} not what the file was made from"
