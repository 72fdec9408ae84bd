"""Starting a placement: the command that loads it so, one that measures it; a script or unit of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from ggplan.offload.placement import Placement
from ggplan.offload.writing import write_command

_SYSTEMD_PLAIN = re.compile(r"[\w@+=:,./-]+")


def server_command(placement: Placement, file: str) -> list[str]:
    """The words that start llama-server as placed.

    Raises
    ------
    CommandError
        If the engine has no option for a setting.
    """
    return write_command(placement.settings, file, placement.profile.engine)


def bench_command(placement: Placement, file: str) -> list[str]:
    """The words that measure it: llama-bench, or ik_llama.cpp's llama-sweep-bench, with the same settings."""
    settings = replace(placement.settings, slots=None, host_cache_mib=None)
    if placement.profile.engine == "ik_llama.cpp":
        return [*write_command(replace(settings, program="llama-sweep-bench"), file, "ik_llama.cpp"), "-wb"]
    return write_command(replace(settings, program="llama-bench", unified_cache=None), file, "llama.cpp")


def shown(words: Sequence[str], width: int = 100) -> str:
    """A command as one shell command, broken before options where it is longer than `width`."""
    groups = [shlex.join(group) for group in _grouped(words)]
    lines = [groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 3 > width:
            lines.append("    " + group)
        else:
            lines[-1] += " " + group
    return " \\\n".join(lines)


def _is_option(word: str) -> bool:
    return re.match(r"--?[A-Za-z]", word) is not None


def script(words: Sequence[str]) -> str:
    """A shell script that starts it; further options are passed on."""
    return f'#!/bin/sh\nexec {shown(words)} "$@"\n'


def unit(words: Sequence[str], description: str) -> str:
    """A systemd service that starts it.

    systemd has its own quoting (systemd.syntax(7), systemd.service(5)): backslashes are escapes, `%` begins a
    specifier and `$` a variable. Memory is locked or pinned without a limit.
    """
    line = " \\\n    ".join(" ".join(map(_systemd_quoted, group)) for group in _grouped(words))
    text = " ".join(description.split()).replace("%", "%%")
    return (
        f"[Unit]\nDescription={text}\nAfter=network.target\n\n"
        f"[Service]\nExecStart=/usr/bin/env {line}\nRestart=on-failure\nLimitMEMLOCK=infinity\n\n"
        "[Install]\nWantedBy=default.target\n"
    )


def _grouped(words: Sequence[str]) -> list[list[str]]:
    groups: list[list[str]] = []
    for word in words:
        if groups and not _is_option(word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _systemd_quoted(word: str) -> str:
    if _SYSTEMD_PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    # A line's end would begin a directive of its own.
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda c: f"\\x{ord(c[0]):02x}", escaped) + '"'
