"""Both engines against llama-perplexity's own output, on the demo model."""

import importlib.resources
import os
import stat
import subprocess
from pathlib import Path

import pytest

import ggplan
from ggplan.errors import MeasureError
from ggplan.measure import Engine, MeasureOptions, TextFile, embedded_engine, external_engine, measure
from ggplan.measure.logs import read_log
from ggplan.measure.statistics import token_errors

pytestmark = pytest.mark.oracle

TEXT = Path(__file__).parents[2] / "ggplan" / "demo_model" / "joshua.txt"
QUIET = {"LLAMA_ARG_REPACK": "0"}  # AMX, which the repacked weights are for, dies under some virtual machines
MIXES = ("q8_0", "q4_K", "q2_K")
# The last digit that is printed, and by how many of them a figure may be off: by rounding alone, or by the
# 16-bit codes through which the external engine's figures come, whose largest errors are at the rim.
PRINTED = {"delta_p_mean": 1e-5, "delta_p_rms": 1e-5, "same_top": 1e-5}
STEPS = {"embedded": 1.5, "external": 200}
N_CHUNKS = 6


@pytest.fixture(scope="module")
def programs(llama_cpp: Path) -> Path:
    return llama_cpp / "build" / "bin"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixes")
    model = ggplan.open_model(str(importlib.resources.files("ggplan") / "demo_model"), pre="glm4")
    made = {}
    for name in ("bf16", *MIXES):
        made[name] = folder / f"demo-{name}.gguf"
        ggplan.convert(ggplan.make_plan(model, ggplan.parse_recipe(f"@default {name}")), made[name])
    return made


@pytest.fixture(scope="module")
def engines(programs: Path) -> dict[str, Engine]:
    os.environ.setdefault("LLAMA_CPP_LIB_PATH", str(programs))
    os.environ |= QUIET
    return {
        "embedded": embedded_engine(threads=1),
        "external": external_engine(str(programs / "llama-perplexity"), ["-t", "1"]),
    }


def their_own(programs: Path, files: dict[str, Path], folder: Path) -> dict[str, str]:
    """What llama-perplexity prints for the base and each mix; its lost last lines are asked for again."""
    kept = folder / "their.kld"
    common = ["-f", TEXT, "--kl-divergence-base", kept, "-t", "1", "--chunks", str(N_CHUNKS)]

    def run(*command: str | Path) -> str:
        for _ in range(40):
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
                env=os.environ | QUIET,
            )  # fmt: skip
            if "Final estimate" in done.stdout or "Same top p:" in done.stdout:
                return done.stdout
        raise AssertionError("llama-perplexity loses its last lines again and again")

    program = programs / "llama-perplexity"
    said = {"bf16": run(program, "-m", files["bf16"], *common)}
    for name in MIXES:
        said[name] = run(program, "-m", files[name], "--kl-divergence", *common)
    return said


@pytest.mark.parametrize("kind", ["embedded", "external"])
def test_figures_equal_llama_perplexitys(
    kind: str, engines: dict[str, Engine], programs: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    printed = their_own(programs, files, tmp_path)
    result = measure(
        [files[name] for name in MIXES],
        [TextFile(TEXT)],
        files["bf16"],
        engines[kind],
        MeasureOptions(n_chunks=N_CHUNKS),
    )
    assert result.base.name == "bf16"
    for quantization in result.record.quantizations:
        (run,) = read_log(printed[quantization.name]).runs
        theirs = run.quality
        assert theirs is not None
        ours = quantization.measurements[0]
        assert (ours.n_chunks, ours.n_tokens) == (theirs.n_chunks, theirs.n_tokens)
        for name, metric in theirs.metrics.items():
            off = abs(ours.metrics[name].value - metric.value)
            digit = 1e-4 if quantization.name == "bf16" else PRINTED.get(name, 1e-6)
            assert off <= STEPS[kind] * digit, (quantization.name, name, off)
        errors = token_errors(result.scores[quantization.file.sha256, ours.text.sha256])
        for name, error in errors.items():
            if theirs.metrics.get(name) and theirs.metrics[name].error is not None:
                assert error == pytest.approx(theirs.metrics[name].error, rel=0.01, abs=2e-5), name


def fake(folder: Path, script: str) -> str:
    """A program beside llama-perplexity that misbehaves first."""
    path = folder / "llama-perplexity"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_crash_is_run_again_without_repacking(
    programs: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_ARG_REPACK", raising=False)
    real = programs / "llama-perplexity"
    engine = external_engine(
        fake(tmp_path, f'[ "$LLAMA_ARG_REPACK" = 0 ] || exit 139\nexec {real} "$@"'), ["-t", "1"]
    )
    result = measure([files["q8_0"]], [TextFile(TEXT)], files["bf16"], engine, MeasureOptions(n_chunks=2))
    assert any("LLAMA_ARG_REPACK=0" in note for note in result.notes)
    assert "kld" in result.record.quantizations[1].measurements[0].metrics


def test_a_lost_last_line_costs_no_second_run(programs: Path, files: dict[str, Path], tmp_path: Path) -> None:
    real, runs = programs / "llama-perplexity", tmp_path / "runs"
    script = f"""
[ "$1" = --version ] && exec {real} "$@"
echo run >> {runs}
{real} "$@" 2>&1 | grep -v Final
"""
    lost, whole = (
        measure(
            [files["q8_0"]],
            [TextFile(TEXT)],
            files["bf16"],
            external_engine(program, ["-t", "1"]),
            MeasureOptions(n_chunks=2),
        )
        for program in (fake(tmp_path, script), str(real))
    )
    assert len(runs.read_text().splitlines()) == 2
    assert any("last line" in note for note in lost.notes)
    for one, other in zip(lost.record.quantizations, whole.record.quantizations, strict=True):
        ppl, printed = (q.measurements[0].metrics["ppl"] for q in (one, other))
        assert ppl.value == pytest.approx(printed.value, rel=1e-5)
        assert ppl.error == printed.error


def test_an_engine_that_stops_early_is_run_again(
    programs: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    real, cut = programs / "llama-perplexity", tmp_path / "cut"
    script = f"""
if [ "$1" = --version ] || [ -e {cut} ]; then exec {real} "$@"; fi
touch {cut}
echo "[1]4.5,"
"""
    engine = external_engine(fake(tmp_path, script), ["-t", "1"])
    result = measure([files["q8_0"]], [TextFile(TEXT)], files["bf16"], engine, MeasureOptions(n_chunks=2))
    assert any("before its last chunk" in note for note in result.notes)


def test_a_lost_reason_is_asked_for_again(programs: Path, files: dict[str, Path], tmp_path: Path) -> None:
    real, lost, short = programs / "llama-perplexity", tmp_path / "lost", tmp_path / "short.txt"
    script = f"""
if [ "$1" = --version ] || [ -e {lost} ]; then exec {real} "$@"; fi
touch {lost}
{real} "$@" 2>&1 | grep -v "E perplexity"
"""
    short.write_text("In the beginning " * 70)  # enough bytes, so that only an engine can tell
    engine = external_engine(fake(tmp_path, script), ["-t", "1"])
    with pytest.raises(MeasureError, match=r"two chunks|too short"):
        measure([files["q8_0"]], [TextFile(short)], files["bf16"], engine)
    assert lost.exists()


@pytest.mark.parametrize("kind", ["embedded", "external"])
def test_what_llama_cpp_cannot_do_is_told_in_its_words(
    kind: str, engines: dict[str, Engine], files: dict[str, Path], tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("In the beginning " * 70)  # enough bytes, so that only an engine can tell
    with pytest.raises(MeasureError, match=r"two chunks|too short"):
        measure([files["q8_0"]], [TextFile(short)], files["bf16"], engines[kind])
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(files["q8_0"].read_bytes()[:-40_000])
    with pytest.raises(ggplan.Error, match=r"damaged\.gguf"):
        measure([damaged], [TextFile(TEXT)], files["bf16"], engines[kind], MeasureOptions(n_chunks=2))
    assert not list(tmp_path.glob("*.part"))


def test_kept_log_probabilities_serve_again(
    engines: dict[str, Engine], files: dict[str, Path], tmp_path: Path
) -> None:
    kept = tmp_path / "base.logits"
    texts, options = [TextFile(TEXT)], MeasureOptions(n_chunks=3, keep_logits=kept)
    first = measure([files["q4_K"]], texts, files["bf16"], engines["embedded"], options)
    again = measure([files["q4_K"]], texts, kept, engines["embedded"])
    last, before = (r.record.quantizations[-1].measurements[0].metrics for r in (again, first))
    assert last == before
