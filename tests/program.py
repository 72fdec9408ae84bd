"""The command line, run in this process: its output and exit code, without the start of an interpreter.

`ggplan.cli.main` is what the installed program calls, so arguments, messages and exit codes are a user's.
What only a process of its own shows (signals, pipes, limits, imports) is tested with `subprocess`.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from ggplan.cli import main


def run(
    *arguments: str | Path, stdin: str = "", folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `ggplan` with these arguments in a folder, with additions to the environment."""
    command = ["ggplan", *map(str, arguments)]
    given, output, errors = (
        io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (stdin.encode(), b"", b"")
    )
    code: object = 0
    with (
        mock.patch.multiple(sys, argv=command, stdin=given, stdout=output, stderr=errors),
        mock.patch.dict(os.environ, environment),
        contextlib.chdir(folder or "."),
        _signals_kept(),
    ):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
    assert code is None or isinstance(code, int), code
    return subprocess.CompletedProcess(command, code or 0, _written(output), _written(errors))


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Let the handlers that the program sets go with it."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
