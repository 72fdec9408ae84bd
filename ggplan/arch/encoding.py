"""Encode text by a stranger's tokenizer, and not wait for ever.

A tokenizer.json holds regular expressions for a backtracking matcher. Each of its attempts is bounded, but a
few cleverly written expressions still take minutes for a line of text. So the work is done in a thread of its
own, in Rust and without Python's lock, and given up on when it takes thousands of times what it should.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SECONDS = 3.0


def encoded(
    tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool = True
) -> list[list[int]]:
    """The ids of each text.

    Raises
    ------
    TimeoutError
        If it takes more than seconds. Whatever else the library raises is raised here too.
    """
    if not texts:
        return []
    found: list[list[int]] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            batch = tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
            found.extend(encoding.ids for encoding in batch)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="ggplan-tokenizer", daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"encoding a line of text takes more than {_SECONDS:.0f} seconds")
    if failures:
        raise failures[0]
    return found
