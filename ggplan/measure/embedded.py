"""llama.cpp inside Python: logits of every scored token through llama-cpp-python's low-level API.

It feeds the model exactly what llama-perplexity does (b11434): the text is cut into chunks of n_ctx tokens,
the first token of each is replaced by BOS if the model needs one, as many chunks as fit into a batch of
2048 tokens are run together, and the second half of each gives logits. So the figures are the same.

This runs in a process of its own, because llama.cpp aborts the whole process on some damaged files:

    python -m ggplan.measure.embedded REQUEST.json

It prints one JSON object a line: {"chunks": [done, of]} for progress, {"failed": message, "hint": ...} if it
fails. At the end the scores are in the file that the request names.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggplan.errors import Error, MeasureError
from ggplan.measure.base_logits import (
    LONGER_TEXT,
    MAX_ADDED_TOKENS,
    MIN_CHUNKS,
    BaseLogits,
    ChunkedText,
    write_base_logits,
)
from ggplan.measure.scores import join_scores, score_chunk
from ggplan.text import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 2048
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


class EmbeddedModel:
    """A GGUF loaded by llama-cpp-python.

    Parameters
    ----------
    path
        The GGUF, the first of its parts if it is split.
    n_ctx
        Tokens of a chunk.
    threads
        Threads of llama.cpp, or None for its default.
    n_gpu_layers
        Layers on the GPU, if llama-cpp-python was built for one.
    more
        More members of `llama_context_params`. The model keeps them, since llama.cpp calls what they are.

    Raises
    ------
    MeasureError
        If llama-cpp-python is missing, or llama.cpp refuses the file.
    """

    def __init__(
        self,
        path: str | Path,
        n_ctx: int,
        *,
        threads: int | None = None,
        n_gpu_layers: int = 0,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self._api = api = llama_cpp_module()
        self._said: list[str] = []
        self._log = api.llama_log_callback(self._on_log)
        api.llama_log_set(self._log, ctypes.c_void_p())
        api.llama_backend_init()
        shown = printable(Path(path).name)
        options = api.llama_model_default_params()
        options.n_gpu_layers = n_gpu_layers
        # Repacked weights run through AMX, which crashes on some virtual machines; results are the same.
        options.use_extra_bufts = False
        self._model = api.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise MeasureError(f"llama.cpp cannot load {shown}: {self._last_lines()}")
        self._vocab = api.llama_model_get_vocab(self._model)
        self.n_ctx = n_ctx
        self.n_vocab: int = api.llama_vocab_n_tokens(self._vocab)
        self._n_sequences = max(1, _BATCH // n_ctx)
        context = api.llama_context_default_params()
        context.n_ctx = self._n_sequences * n_ctx
        context.n_batch = min(_BATCH, context.n_ctx)
        context.n_seq_max = self._n_sequences
        if threads:
            context.n_threads = context.n_threads_batch = threads
        self._more = dict(more or {})
        for name, value in self._more.items():
            setattr(context, name, value)
        self._context = api.llama_init_from_model(self._model, context)
        if not self._context:
            raise MeasureError(f"llama.cpp cannot run {shown}: {self._last_lines()}")

    def _on_log(self, level: int, text: bytes, user_data: object) -> None:
        if level == _ERROR and text:
            self._said.append(text.decode("utf-8", "replace").strip())

    def _last_lines(self) -> str:
        return printable("; ".join(self._said[-2:])) or "it does not say why"

    def chunked(self, text: bytes, n_chunks: int | None) -> ChunkedText:
        """Cut a text into chunks.

        Raises
        ------
        MeasureError
            If it is shorter than two chunks.
        """
        tokens = self.tokens(text)
        n_whole = len(tokens) // self.n_ctx
        if n_whole < MIN_CHUNKS:
            raise MeasureError(
                f"the text has {len(tokens)} tokens, which is less than two chunks of {self.n_ctx}",
                hint=LONGER_TEXT,
            )
        n = min(n_whole, n_chunks or n_whole)
        return ChunkedText(self.n_ctx, self.n_vocab, tokens[: n * self.n_ctx].reshape(n, self.n_ctx))

    def tokens(self, text: bytes) -> NDArray[np.int32]:
        """The tokens of a text, without a newline at its end, as llama.cpp's tools read a file.

        Raises
        ------
        MeasureError
            If llama.cpp cannot cut it.
        """
        text = text.removesuffix(b"\n")
        room = len(text) + MAX_ADDED_TOKENS
        tokens = (ctypes.c_int32 * room)()
        found = self._api.llama_tokenize(self._vocab, text, len(text), tokens, room, True, False)
        if found < 0:
            raise MeasureError("the text cannot be cut into tokens")
        return np.ctypeslib.as_array(tokens)[:found].copy()

    def as_run(self, chunks: NDArray[np.int32]) -> NDArray[np.int32]:
        """Chunks (n, n_ctx) as the model gets them: each begins with BOS, if the model has one."""
        if not self._api.llama_vocab_get_add_bos(self._vocab):
            return chunks
        chunks = chunks.copy()
        chunks[:, 0] = self._api.llama_vocab_bos(self._vocab)
        return chunks

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self._api.llama_model_n_layer(self._model))

    def logits(self, chunked: ChunkedText) -> Iterator[NDArray[np.float32]]:
        """Logits of each chunk's scored positions, (n_scored, n_vocab); valid until the next is asked for.

        Raises
        ------
        MeasureError
            If llama.cpp fails.
        """
        for start in range(0, chunked.n_chunks, self._n_sequences):
            yield from self._run(chunked, range(start, min(start + self._n_sequences, chunked.n_chunks)))

    def run(self, chunks: NDArray[np.int32]) -> Iterator[int]:
        """Run chunks (n, n_ctx) with the outputs of every token; yields how many were run.

        All tokens, since llama.cpp leaves out of its last layer what no output needs.

        Raises
        ------
        MeasureError
            If llama.cpp fails.
        """
        for start in range(0, len(chunks), self._n_sequences):
            some = chunks[start : start + self._n_sequences]
            for _ in self._decode(some, 0):
                pass
            yield len(some)

    def _run(self, chunked: ChunkedText, chunks: range) -> Iterator[NDArray[np.float32]]:
        n_ctx, first = self.n_ctx, self.n_ctx // 2
        parts: list[NDArray[np.float32]] = []
        for n_outputs in self._decode(chunked.tokens[chunks.start : chunks.stop], first):
            if n_ctx > _BATCH and n_outputs:
                parts.append(self._outputs(0, n_outputs).copy())
        if parts:
            yield np.concatenate(parts)[: chunked.n_scored]
            return
        for i in range(len(chunks)):
            yield self._outputs(i * (n_ctx - first), chunked.n_scored)

    def _decode(self, chunks: NDArray[np.int32], first: int) -> Iterator[int]:
        """Run chunks (n, n_ctx) together, batch by batch, with outputs from position `first` on.

        Yields how many outputs a batch has.
        """
        api, n_ctx = self._api, self.n_ctx
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        batch = api.llama_batch_init(min(_BATCH, chunks.size), 0, 1)
        try:
            for begin in range(0, n_ctx, _BATCH):
                end = min(begin + _BATCH, n_ctx)
                n_outputs = self._fill(batch, chunks, begin, end, first)
                if api.llama_decode(self._context, batch):
                    raise MeasureError(f"llama.cpp failed: {self._last_lines()}")
                yield n_outputs
        finally:
            api.llama_batch_free(batch)

    def _fill(self, batch: Any, chunks: NDArray[np.int32], begin: int, end: int, first: int) -> int:
        """Put positions `begin` up to `end` of the chunks into the batch; returns the number of outputs."""
        add_bos = self._api.llama_vocab_get_add_bos(self._vocab)
        bos = self._api.llama_vocab_bos(self._vocab)
        n = n_outputs = 0
        for sequence, chunk in enumerate(chunks):
            for position in range(begin, end):
                token = bos if add_bos and position == 0 else int(chunk[position])
                batch.token[n] = token
                batch.pos[n] = position
                batch.n_seq_id[n] = 1
                batch.seq_id[n][0] = sequence
                batch.logits[n] = position >= first
                n_outputs += position >= first
                n += 1
        batch.n_tokens = n
        return n_outputs

    def _outputs(self, first: int, n: int) -> NDArray[np.float32]:
        """Rows `first` up to `first + n` of the batch's outputs, as a view of llama.cpp's own memory."""
        pointer = self._api.llama_get_logits(self._context)
        whole = np.ctypeslib.as_array(pointer, shape=(first + n, self.n_vocab))
        return whole[first:]

    def close(self) -> None:
        """Free the model."""
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


def build() -> str:
    """The build of llama.cpp, for the record.

    Raises
    ------
    MeasureError
        If llama-cpp-python is missing.
    """
    return str(llama_cpp_module().__version__)


def is_installed() -> bool:
    """Whether llama-cpp-python is installed and loads."""
    return not why_missing()


def why_missing() -> str:
    """Why the engine cannot be used: it is not installed, or does not load; "" if it can be used."""
    try:
        llama_cpp_module()
    except MeasureError as error:
        return error.message
    return ""


def llama_cpp_module() -> Any:
    """llama-cpp-python.

    Raises
    ------
    MeasureError
        If it is missing or does not load.
    """
    other = "or name a llama-perplexity with --engine PATH"
    try:
        import llama_cpp
    except Exception as error:  # its own loader raises RuntimeError, AttributeError and OSError
        if not _is_found():
            raise MeasureError(
                f"the embedded engine needs llama-cpp-python ({error})",
                hint=f"pip install 'ggplan[measure]', {other}",
            ) from error
        reason = printable(" ".join(str(error).split()))[:300] or type(error).__name__
        raise MeasureError(
            f"llama-cpp-python is installed, but does not load: {reason}",
            hint="build it again: pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python,"
            f" {other}",
        ) from error
    return llama_cpp


def _is_found() -> bool:
    """Whether llama-cpp-python is installed, whatever becomes of importing it."""
    try:
        return importlib.util.find_spec("llama_cpp") is not None
    except (ImportError, ValueError):  # a None in its place in sys.modules
        return False


def end_with_caller() -> None:
    """End this process, which `engines.run_apart` started, when its caller is gone, however that was ended.

    A caller that is killed closes the pipe. Otherwise this process would go on for hours, and write into a
    folder in which the same command, given again, is at work.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Carry out the request; returns the exit code."""
    try:
        _score(json.loads(Path(arguments[0]).read_text("utf-8")))
    except Error as error:
        _say(failed=error.message, hint=error.hint)
        return 1
    return 0


def _score(request: dict[str, Any]) -> None:
    model = EmbeddedModel(
        request["model"], request["n_ctx"], threads=request["threads"], n_gpu_layers=request["n_gpu_layers"]
    )
    text = Path(request["text"]).read_bytes()
    base = BaseLogits(request["base"]) if request["base"] else None
    if base is None:
        chunked = model.chunked(text, request["n_chunks"])
    else:
        chunked = base.chunked
        own = model.chunked(text, chunked.n_chunks)
        if own.n_vocab != chunked.n_vocab or not np.array_equal(own.tokens, chunked.tokens):
            raise MeasureError(
                f"{request['base']} is of another text or of a model with another tokenizer",
                hint="measure the base model again",
            )
    chunks = model.logits(chunked)
    if request["keep_logits"]:
        chunks = write_base_logits(request["keep_logits"], chunked, chunks)
    scores = []
    for i, logits in enumerate(chunks):
        rows = base.rows(i, 0, chunked.n_scored) if base else None
        scores.append(score_chunk(logits, chunked.targets[i], rows))
        _say(chunks=[i + 1, chunked.n_chunks])
    join_scores(scores).save(request["scores"])


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    end_with_caller()
    sys.exit(main(sys.argv[1:]))
