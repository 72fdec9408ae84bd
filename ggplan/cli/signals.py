"""What Ctrl-C and SIGTERM mean while a conversion runs.

The first asks for an orderly stop: chunks at work are finished, what was written is recorded, one line says
how far it came, and the exit code is 130 or 143. The second ends the process at once, which loses no more
than what was not yet recorded.
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
    """Make the first signal inside the block a `KeyboardInterrupt`, and of that an exit with a message."""
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
