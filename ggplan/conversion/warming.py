"""Have the encoders of a plan ready when the first rows are.

On a machine's first run a kernel takes seconds to compile; on later ones it takes milliseconds to load. So a
thread goes through the types of the plan in the order of the file, while the conversion checks its inputs,
reserves space and reads; and it is at the second type while workers encode to the first. A worker that comes
too early waits for its own kernel only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from ggplan.conversion.chunks import takes_bf16
from ggplan.ggml_types import GgmlType
from ggplan.planning import Plan
from ggplan.planning.importance import uses_imatrix
from ggplan.quants import warm_up
from ggplan.quants.feedback import takes_moments, warm_up_feedback


def needed_encoders(plan: Plan) -> list[tuple[GgmlType, bool, bool]]:
    """The types that a plan encodes to, in the order of the file.

    Each with whether an imatrix guides it, and whether it is given bfloat16.
    """
    entries = plan.imatrix.entries if plan.imatrix is not None else {}
    found: dict[tuple[GgmlType, bool, bool], None] = {}
    for planned in plan.tensors:
        if not planned.is_copied and planned.tensor.n_weights:
            guided = planned.name in entries and uses_imatrix(planned.type, plan.effort)
            found[planned.type, guided, takes_bf16(planned)] = None
    return list(found)


@contextlib.contextmanager
def warming(plan: Plan) -> Iterator[None]:
    """Warm up the plan's encoders in a thread that takes up no new one after this block."""
    stop = threading.Event()

    effort = "default" if plan.effort == "default" else "best"

    def warm() -> None:
        for type_, guided, is_bf16 in needed_encoders(plan):
            if stop.is_set():
                return
            # An encoder that cannot be compiled fails again, with the tensor's name, where it is needed.
            with contextlib.suppress(Exception):
                if plan.feedback is not None and takes_moments(type_):
                    warm_up_feedback(type_)
                    continue
                warm_up([type_], with_imatrix=guided, effort=effort, bf16=is_bf16)

    # No daemon: the interpreter must not end while LLVM is at work.
    thread = threading.Thread(target=warm, name="ggplan-warming")
    thread.start()
    try:
        yield
    finally:
        stop.set()
