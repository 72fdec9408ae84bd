"""Standard input as a file: `-` where a name is asked for. It can be read once."""

from __future__ import annotations

import sys

from ggplan.errors import Error

NAME = "-"
"""What stands for standard input where a name is asked for."""
SHOWN = "<stdin>"
"""What messages call it."""
EMPTY_NAME_HINT = "if it is a variable of the shell, it is not set"
"""What is probably wrong where a name is empty."""


def read_standard_input(limit: int, error: type[Error]) -> bytes:
    """All of standard input, as bytes.

    Raises
    ------
    error
        If it is empty, as it is when it is read a second time, or has more than `limit` bytes.
    """
    if sys.stdin is None:  # it was closed before the program began
        raise error("standard input is closed", hint="pipe something into it, or name a file")
    data = sys.stdin.buffer.read(limit + 1)
    if not data:
        raise error("standard input is empty", hint="`-` can be given once, with something piped into it")
    if len(data) > limit:
        raise error(f"standard input has more than {limit:,} bytes", hint="save it and name the file")
    return data
