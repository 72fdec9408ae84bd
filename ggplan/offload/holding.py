"""Holding: how much context an engine is told to hold, in cells, streams and tokens a batch.

    slots           sequences at once (`-np`)
    unified         all slots share one stream of `n_context` cells, else each has `n_context / slots`
    micro-batch     tokens of one graph, at most the batch, at most the context
    window cells    window × (slots of the stream) + micro-batch, in steps of 256: what slides is kept a
                    micro-batch longer, so that a batch sees its own past

Source: llama.cpp b11434, `src/llama-context.cpp` (the constructor), `src/llama-kv-cache-iswa.cpp`,
`tools/server/server.cpp`, `tools/perplexity/perplexity.cpp`; ik_llama.cpp 8337e4c, `src/llama.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.errors import CheckpointError
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.settings import Settings
from ggplan.text import printable

STEP = 256  # cells
MAX_SLOTS = 256  # LLAMA_MAX_SEQ


def padded(n: int, step: int) -> int:
    """The least multiple of `step` that is not less than `n`."""
    return -(-n // step) * step


@dataclass(frozen=True, slots=True)
class Holding:
    """What a context holds.

    Attributes
    ----------
    n_context
        Tokens of all slots together.
    n_cells
        Cells of one stream.
    n_streams
        Streams: 1 where slots share one, else one a slot.
    n_slots
        Sequences at once.
    n_tokens
        Tokens of a micro-batch.
    n_outputs
        Tokens of a micro-batch whose logits are kept.
    n_window_cells
        Cells of one stream where attention slides.
    n_planes
        Rows of recurrent state a slot: more than one where drafts may be taken back.
    """

    n_context: int
    n_cells: int
    n_streams: int
    n_slots: int
    n_tokens: int
    n_outputs: int
    n_window_cells: int
    n_planes: int


def holding_of(dimensions: Dimensions, settings: Settings, *, limits_outputs: bool = True) -> Holding:
    """What the context of `settings` holds; `limits_outputs` is the server's, of one output a slot.

    Raises
    ------
    CheckpointError
        If no context is asked for and the file does not say what the model was trained with.
    """
    asked = settings.context or dimensions.trained_context
    if not asked:
        raise CheckpointError(
            f"{printable(dimensions.architecture)}.context_length is missing, and no context is asked for",
            hint="say how many tokens (`-c 32768`)",
        )
    n_slots, unified = slots_of(settings)
    if settings.program == "llama-perplexity":
        # As many chunks at once as a batch has room for, each with the context that was asked for.
        n_slots = max(1, settings.batch // asked)
        asked *= n_slots
    n_slots = min(max(1, n_slots), MAX_SLOTS)
    # A batch is cut to the context before the context is rounded up.
    n_batch = min(asked, settings.batch)
    n_tokens = min(n_batch, settings.micro_batch or n_batch)
    n_context = padded(asked, STEP)
    n_cells = n_context if unified else padded(max(n_context // n_slots, 1), STEP)
    if not unified:
        n_context = n_cells * n_slots
    shared = n_slots if unified else 1
    window = padded(min(n_cells, dimensions.window * shared + n_tokens), STEP)
    n_outputs = n_tokens
    if settings.program == "llama-server" and limits_outputs:
        n_ahead = max(settings.n_drafted if settings.mtp else 0, settings.n_guessed)
        n_outputs = min(n_tokens, n_slots * (1 + n_ahead))
    return Holding(
        n_context,
        n_cells,
        1 if unified else n_slots,
        n_slots,
        n_tokens,
        n_outputs,
        n_cells if settings.full_window else window,
        1,
    )


def slots_of(settings: Settings) -> tuple[int, bool]:
    """Sequences at once, and whether they share one stream: the program's default where it is not set."""
    slots = settings.slots
    if slots is None or slots < 0:
        if settings.program == "llama-server":
            return 4, True
        slots = 1
    return slots, bool(settings.unified_cache)
