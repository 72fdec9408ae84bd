"""Starting a placement: the command that loads it so, one that measures it; a script or unit of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from ggplan.offload.allocation import HOST
from ggplan.offload.placement import Placement, shortages
from ggplan.offload.reckon import reckon
from ggplan.offload.settings import Settings
from ggplan.offload.writing import write_command

_LEAST_MEASURED = 64  # tokens of a micro-batch: smaller ones are no longer copied to a GPU
_SYSTEMD_PLAIN = re.compile(r"[\w@+=:,./-]+")


def server_command(placement: Placement, file: str) -> list[str]:
    """The words that start llama-server as placed.

    Raises
    ------
    CommandError
        If the engine has no option for a setting.
    """
    return write_command(placement.settings, file, placement.profile.engine)


def bench_settings(placement: Placement) -> Settings:
    """What measures it: the same settings for llama-bench, or for ik_llama.cpp's llama-sweep-bench.

    llama-bench holds the logits of every token of a micro-batch, where llama-server holds one a slot. Where a
    GPU has no room for that, the micro-batch is the largest that fits.
    """
    settings = replace(placement.settings, slots=None, host_cache_mib=None)
    if placement.profile.engine == "ik_llama.cpp":
        return replace(settings, program="llama-sweep-bench")
    settings = replace(settings, program="llama-bench", unified_cache=None)
    tokens = settings.micro_batch
    while tokens >= _LEAST_MEASURED:
        smaller = replace(settings, micro_batch=tokens)
        if placement.fits and not _is_short(placement, smaller):
            return smaller
        tokens //= 2
    return settings


def _is_short(placement: Placement, settings: Settings) -> bool:
    reckoning = reckon(placement.header, settings, placement.machine.gpus, placement.profile)
    return any(s.device != HOST for s in shortages(reckoning, placement.machine))


def bench_command(placement: Placement, file: str, settings: Settings | None = None) -> list[str]:
    """The words that measure it; `settings` are those of `bench_settings`, where they are known."""
    words = write_command(settings or bench_settings(placement), file, placement.profile.engine)
    return [*words, "-wb"] if placement.profile.engine == "ik_llama.cpp" else words


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
