"""Results of llama-perplexity, line by line.

The forms differ between builds and forks:

- `Final estimate: PPL = 4.6273 +/- 0.02805`, in newer ik_llama.cpp `PPL over 565 chunks for n_ctx=512 = ...`;
  strided runs (`--ppl-stride`) end with `[n]ppl,` of the last chunk.
- `--kl-divergence` prints a row for each chunk, with the figures of all chunks so far, and then three blocks
  of statistics. `±` may have become `+/-`, `_`, `?` or two characters of a wrong encoding, `Δp` likewise; old
  builds print `99.0%` where they mean 99.9 %.

What follows a start belongs to it only if it continues it: chunks have successive numbers, the statistics
come in their order, and both forms of a result repeat what the last chunk said. So a log that was cut short
and one that lost its beginning do not become one run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ggplan.measure.log_lines import Facts, Line
from ggplan.measure.record import Metric

_NUMBER = r"(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|-?(?i:nan(?:\([a-z]{1,8}\))?|inf))"
_ERROR = rf"(?:\s*(?:\+/-|[^\s\d.,%-]{{1,3}})\s*{_NUMBER})?"
FINAL = re.compile(
    rf"Final estimate: PPL(?: over (\d{{1,9}}) chunks for n_ctx=(\d{{1,9}}))? = {_NUMBER}{_ERROR}"
)
_STARTS = re.compile(
    r"(calculating perplexity|computing) over (\d{1,9}) chunks(?:, n_ctx=(\d{1,9}))?(?:, batch_size=\d+)?"
)
# As people write a result on a card.
_CARD_RESULT = re.compile(
    rf"[^\w\n]{{0,20}}(?:(?:final|mean|wiki(?:text|\.test)?)[ -]{{1,2}})?(?:ppl|perplexity)[\s*`]{{0,9}}[=:]"
    rf"[\s*`]{{0,9}}{_NUMBER}{_ERROR}",
    re.IGNORECASE,
)
_CHUNK = re.compile(r"\[(\d{1,9})\](\d+\.\d+|-?nan(?:\([a-z]{1,8}\))?|-?inf),")
_CHUNKS = re.compile(rf"(?:{_CHUNK.pattern})+\s*")
_LONGEST_ROW = 400
_ROW = re.compile(r"^\s*(\d{1,7})\s")
_ROW_FIGURE = re.compile(_NUMBER + _ERROR)
_BLOCK = re.compile(r"=== (Perplexity|KL divergence|Token probability) statistics")
_BLOCKS = ("Perplexity", "KL divergence", "Token probability")
_QUANTILE = re.compile(rf"^(?:Maximum|\d+\.\d%|Median|Minimum)\s+KLD\s*:\s*{_NUMBER}")
_KLD_LINES: tuple[tuple[str, re.Pattern[str], float, int], ...] = tuple(
    (name, re.compile(rf"^{start}\s*:\s*{_NUMBER}{_ERROR}"), scale, block)
    for name, start, scale, block in (
        ("ppl", r"Mean PPL\(Q\)", 1, 0),
        ("delta_ln_ppl", r"Mean ln\(PPL\(Q\)/PPL\(base\)\)", 1, 0),
        ("delta_ppl", r"Mean PPL\(Q\)-PPL\(base\)", 1, 0),
        ("kld", r"Mean\s+KLD", 1, 1),
        ("kld_max", r"Maximum KLD", 1, 1),
        ("kld999", r"99\.9%\s+KLD", 1, 1),
        ("kld99", r"99\.0%\s+KLD", 1, 1),
        ("kld90", r"90\.0%\s+KLD", 1, 1),
        ("kld_median", r"Median\s+KLD", 1, 1),
        ("", r"Minimum KLD", 1, 1),
        ("delta_p_mean", r"Mean\s+[^\sK]{1,4}p", 0.01, 2),
        ("delta_p_rms", r"RMS [^\s]{1,4}p", 0.01, 2),
        ("same_top", r"Same top p", 0.01, 2),
    )
)
_ORDER = {name: place for place, (name, *_) in enumerate(_KLD_LINES)}
# The columns of a chunk's row, and the factor from the metric to them.
_COLUMNS = (("ppl", 1), ("delta_ln_ppl", 1), ("kld", 1), ("delta_p_rms", 100), ("same_top", 100))
# The last chunk and the result print one number with four digits.
_LAST_DIGIT = 1.01e-4
_DIGITS = 4
# Perplexities are printed with six digits, and people round them to three.
_RATIO_TOLERANCE = 1e-3
_OVERFLOW = "weights or activations overflow"
_OTHER_SCORES = re.compile(r"(hellaswag|winogrande|multiple[ _]choice)[ _]score")


@dataclass(frozen=True, slots=True)
class PerplexityRun:
    """One run of llama-perplexity."""

    metrics: Mapping[str, Metric]
    n_ctx: int
    n_chunks: int
    model_file: str = ""
    build: str = ""

    @property
    def n_tokens(self) -> int:
        """Scored tokens, where the context is known."""
        return self.n_chunks * (self.n_ctx - 1 - self.n_ctx // 2) if self.n_ctx else 0


@dataclass(slots=True)
class OpenPerplexity:
    """A run whose lines are being read.

    Attributes
    ----------
    line
        Where it starts.
    started
        Whether its start was seen; without it there is only a result.
    chunk, value
        The number of the last chunk and the perplexity up to it.
    is_torn
        Whether its first chunks are missing.
    row
        The figures of a divergence run's last row, as printed.
    block
        The block of statistics that is being read, -1 before the first.
    last
        The place of the last line of statistics in their order.
    wrong
        Why the lines are not of one run, or "".
    """

    line: int
    facts: Facts
    n_chunks: int = 0
    n_ctx: int = 0
    started: bool = False
    is_divergence: bool = False
    is_strided: bool = False
    chunk: int = 0
    value: float | None = None
    is_torn: bool = False
    row: tuple[str, ...] = ()
    block: int = -1
    last: int = -1
    quantile: float = float("inf")
    metrics: dict[str, Metric] = field(default_factory=dict)
    wrong: str = ""
    is_done: bool = False

    def unfinished(self) -> str:
        """Why there is no result, or ""."""
        if self.wrong:
            return self.wrong
        if self.is_done:
            return ""
        if self.block >= 0:
            # A pasted result may leave out the last blocks; a log has them all.
            pasted = not self.row and not self.started
            ends = (_ORDER["delta_ppl"], _ORDER[""])
            return (
                ""
                if pasted and self.last in ends
                else "the log ends within its statistics, before its result"
            )
        if self.started and not self.chunk and not self.is_divergence:
            return "the log has no chunk of its run (standard output has them, so keep it too: `2>&1`)"
        if self.value is not None and not math.isfinite(self.value):
            return f"its perplexity is not a number (nan or inf) after chunk {self.chunk}: {_OVERFLOW}"
        at = f" after chunk {self.chunk}" if self.chunk else ""
        of = f" of {self.n_chunks}" if self.chunk and self.n_chunks else ""
        return f"the log ends{at}{of} before its result"

    def result(self) -> PerplexityRun:
        """The result of a finished run."""
        metrics = {name: m for name, m in self.metrics.items() if name}
        return PerplexityRun(metrics, self.n_ctx, self.n_chunks, self.facts.file, self.facts.build)


def is_start(line: str) -> bool:
    """Whether a line is the start of a run."""
    return " over " in line and _STARTS.search(line) is not None


def start_of(line: Line, facts: Facts, *, is_strided: bool) -> OpenPerplexity:
    """The run that begins at this line (`is_start`)."""
    found = _STARTS.search(line.text)
    assert found is not None
    return OpenPerplexity(
        line.number, facts, int(found[2]), int(found[3] or 0), started=True,
        is_divergence=found[1] == "computing", is_strided=is_strided,
    )  # fmt: skip


def other_score(line: str) -> str:
    """`HellaSwag` and the like, where a line begins such a run of llama-perplexity; else ""."""
    found = _OTHER_SCORES.search(line[:200]) if "score" in line else None
    return found[1] if found else ""


def is_result(line: str) -> bool:
    """Whether a line belongs to a result or to the chunks before it."""
    return "Final estimate: PPL" in line or bool(
        ("===" in line and _BLOCK.search(line)) or (line.startswith("[") and _CHUNK.match(line))
    )


def is_chunks(line: str) -> bool:
    """Whether a line has chunks and nothing else."""
    return _CHUNKS.fullmatch(line) is not None


def card_result(line: Line) -> Line | None:
    """The line as llama-perplexity prints it, where a person wrote only `PPL = 4.8 +/- 0.02`; else None."""
    found = _CARD_RESULT.match(line.text[:_LONGEST_ROW])
    if found is None or re.match(r"[.,]?\d", line.text[found.end() :]):
        return None
    error = f" +/- {found[2]}" if found[2] else ""
    return Line(line.number, f"Final estimate: PPL = {found[1]}{error}", line.time, is_open=False)


def feed(run: OpenPerplexity, line: Line) -> bool:
    """Take a line into a run; False where it is a line of another run, and this one ends before it.

    A line that has nothing of a result is taken by every run.
    """
    text = line.text
    if "Final estimate" in text and (found := FINAL.search(text)) is not None:
        return _feed_final(run, found, line)
    if text.startswith("[") and (chunks := _CHUNK.findall(text)):
        return _feed_chunks(run, chunks)
    if run.is_divergence or run.block >= 0:
        if _ROW.match(text) and run.block < 0:
            return _feed_row(run, text)
        if "===" in text and (found := _BLOCK.search(text)) is not None:
            return _feed_block(run, _BLOCKS.index(found[1]))
        if run.block >= 0:
            return _feed_statistic(run, text.strip(), is_open=line.is_open)
        return True
    if "===" in text and (found := _BLOCK.search(text)) is not None:
        if run.started or run.chunk:
            return False
        return _feed_block(run, _BLOCKS.index(found[1]))
    return True


def is_stray(line: Line) -> bool:
    """Whether a line is of statistics or chunks, though no run is open: its run lost its beginning."""
    text = line.text.strip()
    if text.startswith(("M", "R", "S", "9")) and any(pattern.match(text) for _, pattern, _, _ in _KLD_LINES):
        return True
    return text[:1].isdigit() and bool(row_of(line))


def row_of(line: Line) -> tuple[str, ...]:
    """The figures of a row of a divergence run, () of another line."""
    figures = _row_figures(line.text)
    return figures if len(figures) == len(_COLUMNS) else ()


def _is_cut(run: OpenPerplexity, found: re.Match[str], line: Line) -> bool:
    """Whether a final estimate is cut: llama.cpp prints four digits of it and five of its error.

    What another log's first line was appended to shows by a digit after a number. A person may have rounded
    the result on a card, which has no chunks.
    """
    value, error = (len((text or "").partition(".")[2]) for text in (found[3], found[4]))
    if "n" in found[3].lower():
        return False
    if re.match(r"\.?\d", line.text[found.end() :]):
        return True
    shown = f"{run.value:.4f}" if run.value is not None else ""
    if value < _DIGITS and shown != found[3] and shown.startswith(found[3]):
        return True
    if run.started or run.chunk:
        is_torn = bool(found[4]) and "n" not in found[4] and error <= _DIGITS
        return is_torn or (line.is_open and (value < _DIGITS or error <= _DIGITS))
    return line.is_open and not found[4] and value < _DIGITS


def _feed_final(run: OpenPerplexity, found: re.Match[str], line: Line) -> bool:
    if not (run.is_divergence or run.block >= 0 or run.is_strided) and _is_cut(run, found, line):
        run.is_done, run.wrong = True, "the log is cut within its last line"
        return True
    n_chunks, n_ctx, value = int(found[1] or 0), int(found[2] or 0), float(found[3].partition("(")[0])
    contradicts = (
        run.is_divergence
        or run.block >= 0
        or run.is_strided
        or (n_chunks and run.n_chunks and n_chunks != run.n_chunks)
        or (n_ctx and run.n_ctx and n_ctx != run.n_ctx)
        or (run.started and run.chunk != run.n_chunks)
        or (run.value is not None and abs(run.value - value) > _LAST_DIGIT)
    )
    if contradicts:
        return False
    run.n_chunks, run.n_ctx = run.n_chunks or n_chunks or run.chunk, run.n_ctx or n_ctx
    run.metrics["ppl"] = _metric("ppl", found[3], found[4], 1)
    run.is_done = True
    if not math.isfinite(value):
        run.wrong = f"its perplexity is not a number (nan or inf): {_OVERFLOW}"
    elif value < 1:
        run.wrong = f"its perplexity {found[3]} cannot be: none is below 1"
    return True


def _feed_chunks(run: OpenPerplexity, chunks: list[tuple[str, str]]) -> bool:
    numbers = [int(number) for number, _ in chunks]
    successive = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    follows = numbers[0] == run.chunk + 1 or not (run.chunk or run.started)
    beyond = run.n_chunks and numbers[-1] > run.n_chunks
    if run.is_divergence or run.block >= 0 or not follows or beyond:
        return False
    run.is_torn = run.is_torn or numbers[0] != run.chunk + 1
    run.chunk, run.value = numbers[-1], float(chunks[-1][1].partition("(")[0])
    if not successive:
        run.wrong = "the numbers of its chunks do not follow each other, so lines of several runs are mixed"
    if run.is_strided and run.chunk == run.n_chunks:
        run.metrics["ppl"] = Metric(run.value)
        run.is_done = True
    return True


def _row_figures(text: str) -> tuple[str, ...]:
    found = _ROW.match(text)
    if found is None or len(text) > _LONGEST_ROW:
        return ()
    figures = [(m[1], m[2]) for m in _ROW_FIGURE.finditer(text[found.end() :])]
    return tuple(value for value, _ in figures) if all(error for _, error in figures[:3]) else ()


def _feed_row(run: OpenPerplexity, text: str) -> bool:
    figures = _row_figures(text)
    if len(figures) != len(_COLUMNS):
        return True
    number = int(text.split()[0])
    if number != run.chunk + 1 or (run.n_chunks and number > run.n_chunks):
        return False
    run.chunk, run.row = number, figures
    return True


def _feed_block(run: OpenPerplexity, block: int) -> bool:
    if block != run.block + 1:
        return False
    lacks_chunks = run.chunk != run.n_chunks if run.n_chunks else run.started and not run.row
    if block == 0 and lacks_chunks:
        return False
    run.block = block
    return True


def _feed_statistic(run: OpenPerplexity, text: str, *, is_open: bool) -> bool:
    for name, pattern, scale, block in _KLD_LINES:
        found = pattern.match(text)
        if found is None:
            continue
        place = _ORDER[name]
        if name == "kld99" and run.last == place and "kld999" not in run.metrics:
            # Builds before 2025 print two lines `99.0%`: the first is the 99.9th percentile.
            run.metrics["kld999"] = run.metrics["kld99"]
        elif place <= run.last or block != run.block:
            return False
        run.last = place
        run.metrics[name] = _metric(name, found[1], found[2], scale)
        if contradiction := _contradiction(run, name):
            run.wrong = contradiction
        if is_open and not re.search(r"\.\d{3} ?%$" if block == len(_BLOCKS) - 1 else r"\.\d{6}$", text):
            run.wrong = "the log is cut within its last line"
        break
    if (found := _QUANTILE.match(text)) is not None:
        value = float(found[1].partition("(")[0])
        if value > run.quantile:
            run.wrong = "its percentiles are not in order, so statistics of several runs are mixed"
        run.quantile = value
    if run.last == _ORDER["same_top"]:
        run.is_done = True
        if not run.wrong and not all(math.isfinite(m.value) for m in run.metrics.values()):
            run.wrong = f"its statistics are not numbers (nan or inf): {_OVERFLOW}"
    return True


def _contradiction(run: OpenPerplexity, name: str) -> str:
    """Whether a figure of the statistics is not the last chunk's, which prints it with fewer digits."""
    for (column, factor), shown in zip(_COLUMNS, run.row, strict=False):
        digits = len(shown.partition(".")[2])
        if column == name and abs(run.metrics[name].value * factor - float(shown)) > 1.01 * 10.0**-digits:
            return "its statistics are not those of the chunks above them, so several runs are mixed"
    if name == "delta_ppl" and {"ppl", "delta_ln_ppl"} <= run.metrics.keys():
        ppl, ratio, delta = (run.metrics[n].value for n in ("ppl", "delta_ln_ppl", "delta_ppl"))
        if ppl > 0 and ppl > delta and abs(math.log(ppl / (ppl - delta)) - ratio) > _RATIO_TOLERANCE:
            return "its perplexities and their ratio do not go together, so several runs are mixed"
    return ""


def _metric(name: str, value: str, error: str | None, scale: float) -> Metric:
    number = round(scale * float(value.partition("(")[0]), 9)
    if error is None or not math.isfinite(float(error.partition("(")[0])):
        return Metric(number)
    spread = round(scale * float(error.partition("(")[0]), 9)
    return Metric(number, spread, "unpaired tokens" if name == "ppl" else "paired tokens")
