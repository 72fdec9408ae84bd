"""reproduce: make a file again from its checkpoint and its own records, and compare.

Four steps, each of which says what differs:

    inputs      the recorded hashes (`ggplan.inputs`) against those of the checkpoint and the imatrix
    plan        made again from the recorded recipe and choices
    bytes       header, tensors, padding: the whole file against the plan
    weights     for a tensor that differs: does the checkpoint hold the weights that the manifest recorded?

The last step distinguishes two causes: the file was changed or its encoders were faulty, or this is not the
checkpoint it was made from. For a file of another version of ggplan, the keys that version wrote are
compared.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.conversion import ConvertOptions, convert
from ggplan.conversion.correction import is_corrected
from ggplan.conversion.input_hashes import input_hashes, recorded_inputs
from ggplan.conversion.listing import Listing
from ggplan.conversion.source_hash import has_source_hash, source_hash_of
from ggplan.model import Model
from ggplan.planning import Plan
from ggplan.planning.guidance import SecondMoments
from ggplan.planning.provenance import INPUTS, PLAN
from ggplan.planning.splits import split_plan
from ggplan.sources.files import file_size, read_at
from ggplan.text import printable
from ggplan.verification.exactness import plan_again, reshaped_as
from ggplan.verification.faults import HEADER, Fault
from ggplan.verification.renamed import open_files
from ggplan.verification.verifying import verify
from ggplan.verification.workers import Progress

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix

_RUN_WEIGHTS = 1 << 18


@dataclass(frozen=True, slots=True)
class InputDifference:
    """An input whose hash is not the recorded one; a missing hash is ""."""

    name: str
    recorded: str
    found: str


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of making a file again.

    Attributes
    ----------
    files
        The file, or those of its split set.
    n_tensors, n_bytes
        The number of tensors and bytes that were compared.
    plan
        The plan that was made again.
    inputs
        Inputs that differ; None if the file does not record any.
    faults
        The differences between the file and its plan; empty if every byte is equal.
    output
        The new file, if one was asked for.
    notes
        What is no fault: that a file is listed under another name, or that llama.cpp needs other names.
    """

    files: tuple[Path, ...]
    n_tensors: int
    n_bytes: int
    plan: Plan
    inputs: tuple[InputDifference, ...] | None
    faults: tuple[Fault, ...]
    output: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether checkpoint and recipe give this file, byte for byte."""
        return not self.faults and not self.inputs


def reproduce(
    path: str | Path,
    checkpoint: Model,
    *,
    imatrix: Imatrix | None = None,
    calibration: SecondMoments | None = None,
    output: str | Path | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Make a file that ggplan wrote again, and compare the two byte for byte.

    Parameters
    ----------
    path
        The file, or any of its split set.
    checkpoint
        The checkpoint it was made from.
    imatrix, calibration
        The importance matrix, or the calibration, that was used.
    output
        A path to write the new file to; for a split set, its files.
    force
        Replace `output` if it exists.

    Raises
    ------
    PlanError
        If the file does not say how it was made, or was made with an imatrix or a calibration and it is not
        given.
    CheckpointError
        If a file cannot be opened.
    ConversionError
        If `output` cannot be written.
    """
    path = Path(path)
    written = open_files(path).model
    if calibration is not None and imatrix is None:
        imatrix = calibration.imatrix
    checkpoint, imatrix = reshaped_as(written, checkpoint, imatrix)
    plan = plan_again(written, checkpoint, imatrix=imatrix, calibration=calibration)
    inputs = _differing_inputs(written, checkpoint, imatrix)
    found = verify(path, plan=plan, threads=threads, progress=progress)
    # Keys that differ only because inputs differ: the inputs are reported instead.
    implied = (INPUTS, PLAN) if inputs else ()
    # Infinite weights that the plan keeps are not faults.
    kept = ("value",) if plan.nonfinite == "keep" else ()
    faults = [f for f in found.faults if f.key not in implied and f.kind not in kept]
    if not faults and not inputs:
        faults += _header_faults(path, written, plan)
    if found.listing is not None:
        faults = _with_causes(faults, found.listing, plan)
    made = None
    if output is not None:
        like = written if len(written.files) > 1 else None
        # A corrected layer takes what it needs, with as many threads as were asked for.
        memory = sys.maxsize if is_corrected(plan) else None
        made = convert(
            plan,
            output,
            ConvertOptions(threads, memory, allow_requantize=True, force=force, split_like=like),
            progress=progress,
        ).path
    return Reproduction(
        found.files, found.n_tensors, found.n_bytes, plan, inputs, tuple(faults), made, found.notes
    )


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
    """Headers with the plan's keys and tensors but other bytes: in another order, or at other offsets."""
    headers = open_files(path).headers
    parts = split_plan(plan, like=written) if len(headers) > 1 else (plan,)
    if len(parts) != len(headers):
        return [Fault(HEADER, "bytes", f"{len(headers)} files, the plan gives {len(parts)}", path.name)]
    faults = []
    for header, part in zip(headers, parts, strict=True):
        # The two programs that write split sets order the keys in different ways; both orders are accepted.
        splits = {key: value for key, value in header.metadata.items() if key in _SPLITS}
        own = {key: value for key, value in part.metadata.items() if key not in _SPLITS}
        part = dataclasses.replace(part, metadata={**own, **splits} if len(headers) > 1 else own)
        expected = part.header
        if file_size(header.path) != part.file_bytes or read_at(header.path, 0, len(expected)) != expected:
            faults.append(Fault(HEADER, "bytes", "its bytes are not the plan's", header.path.name))
    return faults


_SPLITS = ("split.no", "split.count", "split.tensors.count")


def _with_causes(faults: list[Fault], listing: Listing, plan: Plan) -> list[Fault]:
    """The faults; with other bytes, also whether the checkpoint has the weights of the manifest."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    explained = []
    for fault in faults:
        tensor = planned.get(fault.where)
        if fault.kind == "bytes" and tensor is not None and has_source_hash(tensor):
            listed = listing.tensors.get(tensor.name)
            recorded = listed and listed.sources.get(printable(tensor.name))
            if recorded:
                same = source_hash_of(tensor, _RUN_WEIGHTS) == recorded
                cause = "though its weights are" if same else "and its weights in the checkpoint are not"
                message = f"{fault.message}, {cause} those it was made of, by the manifest"
                fault = dataclasses.replace(fault, message=message)
        explained.append(fault)
    return explained


def describe_input(difference: InputDifference, checkpoint: Path) -> str:
    """A sentence about an input that differs."""
    where = printable(str(checkpoint))
    what = {
        "tensors": "the names, shapes or types of the tensors",
        "metadata": "the metadata",
        "imatrix": "the imatrix",
    }.get(difference.name, printable(difference.name))
    if not difference.found:
        return f"{what} is recorded, but is not in {where}"
    if not difference.recorded:
        return f"{what} is in {where}, but is not recorded"
    verb = "are" if difference.name == "tensors" else "is"
    return f"{what} {verb} not what the file was made from"
