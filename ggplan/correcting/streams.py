"""Two streams of hidden states, of the original model and of the quantized one, layer by layer.

The quantized stream starts from the embedding as a reader of the output will find it, and each layer of it is
corrected for what it is given there (see `layer`). Nothing depends on the number of threads: torch works with
one in batches of one size, and sums have one order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggplan.correcting.embedding import put_embedding
from ggplan.correcting.encoding import fixed_names, require_correctable, tensors_of_layer, unrun
from ggplan.correcting.kept import Corrected, KeptLayers
from ggplan.correcting.layer import ORIGINAL, QUANTIZED, CorrectOptions, Layer
from ggplan.correcting.needs import threads_within
from ggplan.forward.building import open_checkpoint_model, require_transformers
from ggplan.forward.running import (
    TokenRun,
    one_torch_thread,
    return_freed_memory,
)
from ggplan.planning import Plan
from ggplan.reshaping import forms_of
from ggplan.sources.huggingface import open_checkpoint


def correct(
    plan: Plan,
    tokens: NDArray[np.int64],
    folder: Path,
    run: str,
    options: CorrectOptions,
    *,
    progress: Callable[[int], None] = lambda n_bytes: None,
) -> Corrected:
    """The blocks of a plan's layers, corrected.

    Parameters
    ----------
    plan
        Of a Hugging Face folder.
    tokens
        (windows, T): the text of the calibration.
    folder
        Where finished layers are kept; made if it is not there.
    run
        The digest of all that the blocks depend on.
    progress
        Called with the bytes of blocks that were made, or are there, one call at a time.

    Raises
    ------
    ConversionError
        If the plan is of no such folder, a layer does not fit into the memory, or other work is in the
        folder.
    CheckpointError
        If transformers does not know the checkpoint, or the use of a matrix is not known.
    """
    return_freed_memory()
    with one_torch_thread():
        return _correct(plan, tokens, folder, run, options, progress)


def _correct(
    plan: Plan,
    tokens: NDArray[np.int64],
    folder: Path,
    run: str,
    options: CorrectOptions,
    progress: Callable[[int], None],
) -> Corrected:
    require_correctable(plan)
    model = open_checkpoint_model(open_checkpoint(plan.model.path), forms_of(plan.model))
    n_layers = len(model.layers)
    n_threads = threads_within(plan, model, tokens.shape, options.threads, options.memory)
    notes: tuple[str, ...] = ()
    if n_threads < options.threads:
        enough = f"{n_threads:,} of {options.threads:,} threads"
        notes = (f"the memory was enough to correct layers with {enough}; give more with --memory",)
    options = replace(options, threads=n_threads)
    kept = KeptLayers(folder, run)
    kept.open(restart=options.restart)
    planned = {t.name: t for t in plan.tensors}
    first = kept.n_done(n_layers)
    for layer in range(first):
        progress(sum(t.n_bytes for t in tensors_of_layer(plan, layer).values()))
    if first < n_layers:
        model.fill_outside()
        fixed = fixed_names(plan)
        token_run = TokenRun(model, tokens, options.threads, lambda name: name in fixed)
        if not first:
            token_run.start(kept.states(0, ORIGINAL))
            is_other = put_embedding(plan, model, options.threads)
            token_run.start(kept.states(0, QUANTIZED))
            if is_other:
                model.fill_outside()
        for layer in range(first, n_layers):
            work = Layer(token_run, plan, layer, kept, options, progress)
            kept.finish(layer, work.correct(), work.left)
            del work  # its weights and blocks
            model.empty(layer)
        for stream in (ORIGINAL, QUANTIZED):
            kept.states(n_layers, stream).unlink(missing_ok=True)
    found = kept.corrected(range(n_layers), planned)
    more = {t.name: "its layer is not run, as it predicts further tokens" for t in unrun(plan, n_layers)}
    return replace(found, left={**found.left, **more}, notes=notes)


def engine_versions() -> dict[str, str]:
    """The versions of torch and transformers; raises CheckpointError where one is missing."""
    torch, transformers = require_transformers()
    return {"torch": torch.__version__, "transformers": transformers.__version__}
