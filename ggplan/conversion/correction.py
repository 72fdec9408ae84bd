"""`--correct`: layers are encoded for what the quantized layers before them give, then written like others.

The blocks are made before anything else (see `ggplan.correcting`), in a folder beside the output, which is
removed when the output is complete. A run that was stopped goes on with the layer it was in.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggplan.conversion.inputs import input_states
from ggplan.conversion.journal import NO_SOURCE
from ggplan.errors import PlanError
from ggplan.planning import Plan
from ggplan.planning.embedding import EMBEDDING
from ggplan.quants.revisions import FEEDBACK_REVISION
from ggplan.sources.files import shown
from ggplan.sources.safetensors import library_io_errors
from ggplan.version import __version__

if TYPE_CHECKING:
    from ggplan.conversion.unfinished import UnfinishedOutput
    from ggplan.correcting import Corrected


def is_corrected(plan: Plan) -> bool:
    """Whether a plan's layers are corrected."""
    return plan.feedback is not None and plan.feedback.corrected


def layers_folder(output: Path) -> Path:
    """Where finished layers are kept until an output is complete."""
    return output.with_name(f"{output.name}.layers")


def remove_layers(output: Path) -> None:
    """Remove the layers of an output that is complete, or given up; a folder of others stays."""
    folder = layers_folder(output)
    if folder.is_dir() and _is_ours(folder):
        shutil.rmtree(folder, ignore_errors=True)


def kept_layers(output: Path) -> int:
    """How many layers of an unfinished output have a file."""
    from ggplan.correcting import layer_files

    folder = layers_folder(output)
    return len(layer_files(folder)) if folder.is_dir() and _is_ours(folder) else 0


def _is_ours(folder: Path) -> bool:
    from ggplan.correcting import is_ours

    return is_ours(folder)


def check_correctable(plan: Plan, output: Path) -> None:
    """Refuse a plan that cannot be corrected, or an output whose layers have no place.

    Raises
    ------
    PlanError, ConversionError, CheckpointError, CalibrationError
        Saying why.
    """
    from ggplan.correcting import engine_versions, refuse_foreign, require_correctable

    require_correctable(plan)
    _tokens_of(plan)
    engine_versions()
    refuse_foreign(layers_folder(output))


def _tokens_of(plan: Plan) -> NDArray[np.int32]:
    """The tokens that the calibration ran, of which the model has all."""
    assert plan.feedback is not None
    calibration = plan.feedback.calibration
    tokens = np.asarray(calibration.tokens_of_run())
    if tokens.ndim != 2 or not tokens.size:
        raise PlanError(
            f"{shown(calibration.path)} has no tokens, which correction runs through the model again",
            hint="make it again with `ggplan calibrate`",
        )
    n_known = next((t.tensor.shape[0] for t in plan.tensors if t.name == EMBEDDING), None)
    strange = tokens[(tokens < 0) | (tokens >= n_known)] if n_known is not None else tokens[:0]
    if strange.size:
        raise PlanError(
            f"{shown(calibration.path)} was made with the token {strange[0]}, and the model has {n_known:,}",
            hint="use a calibration of this very model",
        )
    return tokens


def correct_plan(
    plan: Plan,
    folder: Path,
    *,
    threads: int,
    memory: int | None,
    restart: bool = False,
    progress: Callable[[int], None] = lambda n_bytes: None,
) -> Corrected:
    """The blocks of a plan's layers.

    Parameters
    ----------
    plan
        With the hashes of its inputs, and a calibration.
    folder
        Where finished layers are kept.
    progress
        Called with the bytes of blocks that were made, or are there.

    Raises
    ------
    PlanError
        If the calibration does not have its tokens, or has some that the model does not have.
    ConversionError, CheckpointError
        As `ggplan.correcting.correct`.
    OSError
        If the folder, which it names, cannot be written.
    """
    from ggplan.correcting import CorrectOptions, correct, engine_versions

    assert plan.feedback is not None
    calibration = plan.feedback.calibration
    tokens = _tokens_of(plan)
    depends = {
        "ggplan": __version__,
        "header": hashlib.sha256(plan.header).hexdigest(),
        "inputs": sorted(
            (path.name, str(state))
            for path, state in input_states(plan).items()
            if path.parent != calibration.path
        ),
        "calibration": calibration.digest,
        "lam": repr(float(plan.feedback.lam)),
        "tokens": hashlib.sha256(np.ascontiguousarray(tokens, "<i4").data).hexdigest(),
        "encoders": FEEDBACK_REVISION,
        "engine": engine_versions(),
    }
    run = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    feedback = plan.feedback
    options = CorrectOptions(threads, memory, feedback.lam, feedback.method, restart)
    try:
        with library_io_errors():
            return correct(plan, tokens.astype(np.int64), folder, run, options, progress=progress)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from error


def take_corrected(work: UnfinishedOutput, corrected: Corrected) -> int:
    """Have the blocks of corrected layers written; returns how many bytes of them are not yet in the output.

    The manifest has no hash of their source, so that `--reuse` does not take them: they depend on more.
    The journal says so of each, so that a run that finds all of them written needs no layers.
    """
    left = 0
    for part in work.parts:
        for tensor in part.plan.tensors:
            if (blocks := corrected.blocks.get(tensor.name)) is not None:
                key = part.number, tensor.name
                work.reused[key] = blocks
                work.sources.pop(key, None)
                work.known_sources[key] = NO_SOURCE
                left += tensor.n_bytes - work.hashes[key].done
    return left
