"""Parse the output of llama.cpp's own tools: llama-perplexity, llama-bench, llama-sweep-bench.

None of them but llama-bench has a format meant for machines, and the forms differ between builds and forks:

- `Final estimate: PPL = 4.6273 +/- 0.02805`, in newer ik_llama.cpp `PPL over 565 chunks for n_ctx=512 = ...`;
  strided runs (`--ppl-stride`) end with `[n]ppl,` of the last chunk.
- the blocks of `--kl-divergence`; `±` may have become `+/-` or `_`, `Δp` `Dp` or `?p` on the way through
  a terminal, and old builds print `99.0%` where they mean 99.9 %.
- llama-bench as markdown, CSV, JSON or JSON lines; sweep-bench (ik_llama.cpp) as markdown or JSON lines.

Lines may begin with a time and a level. All patterns are linear and searched for line by line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ggplan.errors import MeasureError
from ggplan.measure.record import Metric, Speed

_NUMBER = r"(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
_ERROR = rf"(?:\s*(?:±|\+/-|_|\?)\s*{_NUMBER})?"
FINAL = re.compile(rf"Final estimate: PPL(?: over (\d+) chunks for n_ctx=(\d+))? = {_NUMBER} \+/- {_NUMBER}")
_STARTS = re.compile(
    r"(?:calculating perplexity|computing) over (\d+) chunks(?:, n_ctx=(\d+))?(?:, batch_size=\d+)?"
)
_CHUNK = re.compile(r"\[(\d+)\](\d+\.\d+),")
_MODEL = re.compile(r"loaded meta data with .* from (\S+\.gguf)")
_NAME = re.compile(r"general\.name str\s+= ([^\r\n]{1,100})")
_BUILD = re.compile(r"(?:build(?:_info)?[:=] ?|version: )([^\r\n]{1,80})")
_KLD_LINES: tuple[tuple[str, re.Pattern[str], float], ...] = tuple(
    (name, re.compile(rf"^{start}\s*:\s*{_NUMBER}{_ERROR}"), scale)
    for name, start, scale in (
        ("ppl", r"Mean PPL\(Q\)", 1),
        ("delta_ln_ppl", r"Mean ln\(PPL\(Q\)/PPL\(base\)\)", 1),
        ("delta_ppl", r"Mean PPL\(Q\)-PPL\(base\)", 1),
        ("kld", r"Mean\s+KLD", 1),
        ("kld_max", r"Maximum KLD", 1),
        ("kld999", r"99\.9%\s+KLD", 1),
        ("kld99", r"99\.0%\s+KLD", 1),
        ("kld90", r"90\.0%\s+KLD", 1),
        ("kld_median", r"Median\s+KLD", 1),
        ("delta_p_mean", r"Mean\s+\S{1,2}p", 0.01),
        ("delta_p_rms", r"RMS \S{1,2}p", 0.01),
        ("same_top", r"Same top p", 0.01),
    )
)


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


@dataclass(frozen=True, slots=True)
class NamedSpeed:
    """One line of a benchmark; `model` is the model as the line names it, or ""."""

    model: str
    n_bytes: int
    speed: Speed


def model_name_in(text: str) -> str:
    """The model's name, where the loader printed the metadata; else ""."""
    found = _NAME.search(text)
    return found[1].strip() if found else ""


def is_perplexity_log(text: str) -> bool:
    """Whether llama-perplexity printed this."""
    return bool(_STARTS.search(text) or FINAL.search(text) or "====== Perplexity statistics" in text)


def parse_perplexity_log(text: str) -> PerplexityRun:
    """The run in a log of llama-perplexity: plain, strided or with `--kl-divergence`.

    Raises
    ------
    MeasureError
        If the log ends before the result: the last chunk of an unfinished run is not a result.
    """
    started, final = _STARTS.search(text), FINAL.search(text)
    n_chunks = int(started[1]) if started else int(final[1] or 0) if final else 0
    n_ctx = int((started and started[2]) or (final and final[2]) or 0)
    model, build = _MODEL.search(text), _BUILD.search(text)
    metrics = _kld_block(text)
    if not metrics and final:
        metrics = {"ppl": Metric(float(final[3]), float(final[4]), "unpaired tokens")}
    chunks = _CHUNK.findall(text)
    if not metrics and "strided perplexity" in text and chunks and int(chunks[-1][0]) == n_chunks:
        metrics = {"ppl": Metric(float(chunks[-1][1]))}
    if not metrics:
        at = f" after chunk {chunks[-1][0]} of {n_chunks}" if chunks else ""
        raise MeasureError(f"the log ends{at} before its result", hint="run llama-perplexity again")
    return PerplexityRun(
        metrics, n_ctx, n_chunks, model[1] if model else "", build[1].strip() if build else ""
    )


def _kld_block(text: str) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    begun = False
    for line in text.splitlines():
        begun = begun or "====== Perplexity statistics" in line
        if not begun:
            continue
        for name, pattern, scale in _KLD_LINES:
            found = pattern.match(line.strip())
            if found is None:
                continue
            # Builds before 2025 print two lines `99.0%`: the first is the 99.9th percentile.
            key = "kld999" if name == "kld99" and "kld99" not in metrics and _is_old(text) else name
            key = "kld99" if key == "kld999" and "kld999" in metrics else key
            metrics[key] = _metric(name, found, scale)
    return metrics


def _is_old(text: str) -> bool:
    return len(re.findall(r"^99\.0%\s+KLD", text, re.MULTILINE)) > 1


def _metric(name: str, found: re.Match[str], scale: float) -> Metric:
    value = round(scale * float(found[1]), 9)
    if found[2] is None:
        return Metric(value)
    error = round(scale * float(found[2]), 9)
    return Metric(value, error, "unpaired tokens" if name == "ppl" else "paired tokens")


def parse_sweep_bench(text: str) -> list[Speed]:
    """The lines of a llama-sweep-bench run, markdown or JSON lines; [] for any other text."""
    speeds = []
    for row in _tables(text):
        if "N_KV" in row and "S_PP t/s" in row:
            speeds.append(_speed(row["N_KV"], row["S_PP t/s"], row.get("S_TG t/s")))
    for item in _json_lines(text):
        if "n_kv" in item and "speed_pp" in item:
            speeds.append(_speed(item["n_kv"], item["speed_pp"], item.get("speed_tg")))
    return speeds


def _speed(n_kv: object, pp: object, tg: object) -> Speed:
    try:
        return Speed(
            int(str(n_kv)), float(str(pp)), None if tg is None else float(str(tg)), "llama-sweep-bench"
        )
    except ValueError as error:
        raise MeasureError(f"a line of the benchmark is not numbers: {error}") from None


def parse_llama_bench(text: str) -> list[NamedSpeed]:
    """The tests of a llama-bench run in any of its forms but SQL; [] for any other text."""
    return [*_bench_markdown(text), *_bench_items(text)]


def _bench_markdown(text: str) -> Iterator[NamedSpeed]:
    for row in _tables(text):
        if "test" not in row or "t/s" not in row or "model" not in row:
            continue
        test = re.match(r"(pp|tg) ?(\d+)(?: @ d(\d+))?$", row["test"])
        value = re.match(_NUMBER, row["t/s"])
        if test is None or value is None:
            continue  # `pp512+tg128` mixes both
        size = re.match(rf"{_NUMBER} ([KMG])iB", row.get("size", ""))
        n_bytes = int(float(size[1]) * 1024 ** ("KMG".index(size[2]) + 1)) if size else 0
        rate = float(value[1])
        yield NamedSpeed(row["model"], n_bytes, _bench_speed(test[1], int(test[3] or 0), rate))


def _bench_items(text: str) -> Iterator[NamedSpeed]:
    items: list[Mapping[str, object]] = list(_json_lines(text))
    if not items and text.lstrip().startswith("["):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            whole = []
        items = [item for item in whole if isinstance(item, dict)]
    if not items and "build_commit" in text:
        start = text.index("build_commit")
        items = list(csv.DictReader(io.StringIO(text[start:])))
    for item in items:
        if "avg_ts" not in item:
            continue
        try:
            n_prompt, n_gen = int(str(item.get("n_prompt", 0))), int(str(item.get("n_gen", 0)))
            depth, rate = int(str(item.get("n_depth", 0))), float(str(item["avg_ts"]))
            n_bytes = int(str(item.get("model_size", 0)))
        except ValueError as error:
            raise MeasureError(f"a test of the benchmark is not numbers: {error}") from None
        if bool(n_prompt) == bool(n_gen):
            continue
        speed = _bench_speed("pp" if n_prompt else "tg", depth, rate)
        build = f"{item.get('build_number', '')} ({item.get('build_commit', '')})"
        hardware = str(item.get("gpu_info") or item.get("cpu_info") or "")
        named = Speed(speed.n_kv, speed.pp, speed.tg, speed.engine, build, hardware)
        yield NamedSpeed(str(item.get("model_filename", "")), n_bytes, named)


def _bench_speed(test: str, depth: int, rate: float) -> Speed:
    pp, tg = (rate, None) if test == "pp" else (None, rate)
    return Speed(depth, pp, tg, "llama-bench")


def merge_speeds(speeds: Sequence[Speed]) -> tuple[Speed, ...]:
    """One entry for each number of cached tokens: llama-bench gives reading and writing on two lines."""
    merged: dict[tuple[int, str, str, str], Speed] = {}
    for s in speeds:
        place = (s.n_kv, s.engine, s.build, s.hardware)
        old = merged.get(place, s)
        pp, tg = (s.pp if s.pp is not None else old.pp), (s.tg if s.tg is not None else old.tg)
        merged[place] = Speed(s.n_kv, pp, tg, s.engine, s.build, s.hardware)
    return tuple(merged.values())


def _tables(text: str) -> Iterator[dict[str, str]]:
    """The rows of all markdown tables, by heading."""
    headings: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        if not (line.startswith("|") and line.endswith("|")):
            headings = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not headings:
            headings = cells
        elif len(cells) == len(headings) and not set(line) <= set("|-: "):
            yield dict(zip(headings, cells, strict=True))


def _json_lines(text: str) -> Iterator[dict[str, object]]:
    for line in text.splitlines():
        if line.startswith("{") and line.rstrip().endswith("}"):
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(item, dict):
                yield item
