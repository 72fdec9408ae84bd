"""Ctrl-C and SIGTERM while a conversion runs.

The first signal asks for an orderly stop: chunks in work are finished, written bytes are recorded, one line
says how much is done, and the exit code is 130 or 143. The second ends the process at once, which loses only
the bytes not yet recorded.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click


@contextmanager
def orderly_stop() -> Iterator[None]:
    """Turn the first signal in the block into a `KeyboardInterrupt`, and that into an exit with a message."""
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as error:
        kept = "; ".join(getattr(error, "__notes__", ())) or "nothing was kept"
        click.echo(f"interrupted: {kept}", err=True)
        sys.exit(128 + (received[0] if received else signal.SIGINT))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
