"""What other programs put before every line of a log: the time, a service's name, a process.

Docker, systemd, Kubernetes, GitHub Actions and `ts` do so:

    llama-1  | llama_model_loader: ...
    2025-09-01T10:00:01.123Z llama_model_loader: ...
    Sep 01 10:00:01 box llama-perplexity[123]: llama_model_loader: ...

It is taken away where most lines of a text have it.
"""

from __future__ import annotations

import re

from ggplan.errors import MeasureError
from ggplan.text import printable

_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_ZONE = r"(?: ?Z| ?UTC|[+-]\d\d:?\d\d)?"
_DAYS = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_MONTHS = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_STAMP = re.compile(
    r"\[?(?:"
    rf"\d{{4}}[-/]\d\d[-/]\d\d[T ]{_CLOCK}{_ZONE}"
    rf"|(?:{_DAYS} )?{_MONTHS} [ \d]?\d {_CLOCK}(?: \d{{4}})?"
    rf"|{_CLOCK}|\d{{10}}(?:\.\d{{1,9}})?(?=\])"
    r")\]?(?: std(?:out|err) [FP])?"
    r"(?: [\w.-]{1,64} [\w./@-]{1,64}\[\d{1,10}\]:)?(?:[ \t]|$)"
)
_SERVICE = re.compile(r"([\w.-]{1,64}) {0,64}\|(?: |$)")
_SAMPLE = 60


def without_prefixes(text: str) -> str:
    """The text without what stands before most of its lines; it keeps its number of lines.

    Raises
    ------
    MeasureError
        If lines of several services are mixed.
    """
    if services := _services(text):
        if len(services) > 1:
            names = ", ".join(printable(name) for name in sorted(services)[:4])
            raise MeasureError(
                f"holds lines of several services ({names}), mixed",
                hint="keep those of one: `docker compose logs SERVICE`",
            )
        text = _stripped(text, _SERVICE)
    return _stripped(text, _STAMP) if _has(text, _STAMP) else text


def _first_lines(text: str) -> list[str]:
    found: list[str] = []
    start = 0
    while len(found) < _SAMPLE and start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if line := text[start : min(end, start + 300)].strip():
            found.append(line)
        start = end + 1
    return found


def _has(text: str, prefix: re.Pattern[str]) -> bool:
    lines = _first_lines(text)
    return 2 * sum(prefix.match(line) is not None for line in lines) > len(lines)


def _services(text: str) -> set[str]:
    """The services whose names stand before the lines, padded to one width; empty for any other text."""
    lines = _first_lines(text)
    found = [_SERVICE.match(line) for line in lines]
    names = {match[1] for match in found if match}
    bars = {line.index("|") for line, match in zip(lines, found, strict=True) if match}
    is_every = len(lines) >= 3 and all(found) and len(bars) == 1
    return names if is_every and len(lines) >= 3 * len(names) else set()


def _stripped(text: str, prefix: re.Pattern[str]) -> str:
    lines = text.split("\n")
    return "\n".join(line[found.end() :] if (found := prefix.match(line)) else line for line in lines)
