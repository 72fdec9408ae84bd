"""A process that scores one model with the embedded engine: `python -m ggplan.measure.worker REQUEST.json`.

It stands apart because llama.cpp aborts the whole process on some damaged files. It prints one JSON object a
line: {"chunks": [done, of]} as it goes on, {"failed": message, "hint": ...} when it must give up, and
{"done": {...}} at the end; the scores are in the file that the request names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ggplan.errors import Error, MeasureError
from ggplan.measure.base_logits import BaseLogits, write_base_logits
from ggplan.measure.embedded import EmbeddedModel, build
from ggplan.measure.scores import join, score_chunk


def main(arguments: list[str]) -> int:
    """Carry out the request; the exit code."""
    try:
        _say(done=_score(json.loads(Path(arguments[0]).read_text("utf-8"))))
    except Error as error:
        _say(failed=error.message, hint=error.hint)
        return 1
    return 0


def _score(request: dict[str, Any]) -> dict[str, Any]:
    model = EmbeddedModel(
        request["model"], request["n_ctx"], threads=request["threads"], n_gpu_layers=request["n_gpu_layers"]
    )
    text = Path(request["text"]).read_bytes()
    base = BaseLogits(request["base"]) if request["base"] else None
    if base is None:
        frame = model.frame(text, request["n_chunks"])
    else:
        frame = base.frame
        own = model.frame(text, frame.n_chunks)
        if own.n_vocab != frame.n_vocab or not np.array_equal(own.tokens, frame.tokens):
            raise MeasureError(
                f"{request['base']} is of another text or of a model with another tokenizer",
                hint="measure the base model again",
            )
    chunks = model.logits(frame)
    if request["keep_logits"]:
        chunks = write_base_logits(request["keep_logits"], frame, chunks)
    scores = []
    for i, logits in enumerate(chunks):
        rows = base.rows(i, 0, frame.n_scored) if base else None
        scores.append(score_chunk(logits, frame.targets[i], rows))
        _say(chunks=[i + 1, frame.n_chunks])
    join(scores).save(request["scores"])
    return {"build": build()}


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
