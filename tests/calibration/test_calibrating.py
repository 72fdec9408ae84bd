"""`calibrate` and its command: settings, shares of texts, going on after a stop. The engine runs nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filling import StubEngine, collected
from full_disk import small_files
from program import run

import ggplan
from ggplan import calibrating
from ggplan.calibrating import CalibrateOptions, calibrate, calibrate_imatrix
from ggplan.calibration import Calibration
from ggplan.calibration.collecting import Activation, Taken, chunks_of
from ggplan.calibration.engines import LlamaCpp, LlamaCppOptions, Progress
from ggplan.calibration.run import WORKING_MODEL, Run, locked
from ggplan.calibration.shipped import shipped_holdouts, shipped_texts
from ggplan.cli.progress import ChunkLines
from ggplan.errors import CalibrationError, CheckpointError, ImatrixError
from ggplan.forward.running import TokenRun
from ggplan.imatrix import load_imatrix

DEMO = Path(ggplan.__file__).parent / "demo_model"


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """Two texts of 10 and 3 chunks of 32."""
    paths = [tmp_path / "prose.txt", tmp_path / "code.txt"]
    paths[0].write_text("a" * 330)
    paths[1].write_text("b" * 96)
    return paths


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StubEngine:
    """The engine that runs nothing, in the place of llama.cpp."""
    stub = StubEngine([], 32)
    monkeypatch.setitem(calibrating.ENGINES, "llama.cpp", stub.entered)
    return stub


def test_a_run_that_was_stopped_goes_on_and_makes_the_same(
    tmp_path: Path, texts: list[Path], engine: StubEngine
) -> None:
    options = CalibrateOptions(n_ctx=32)
    whole = calibrate(DEMO, texts, tmp_path / "whole", options)
    engine.written, engine.fails_after = [], 2
    with pytest.raises(KeyboardInterrupt):
        calibrate(DEMO, texts, tmp_path / "c", options)
    assert engine.written == [0, 1]
    engine.written, engine.fails_after = [], None
    assert calibrate(DEMO, texts, tmp_path / "c", options).digest == whole.digest
    assert engine.written == [2]
    for path in whole.path.iterdir():
        assert (tmp_path / "c" / path.name).read_bytes() == path.read_bytes()
    engine.written = []
    assert calibrate(DEMO, texts, tmp_path / "c", options).digest == whole.digest
    assert engine.written == []
    (tmp_path / "c" / "layer-001.safetensors").unlink()  # of a whole folder: made again
    assert calibrate(DEMO, texts, tmp_path / "c", options).digest == whole.digest
    assert engine.written == [1]
    damaged = tmp_path / "c" / "layer-002.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-9] ^= 1
    damaged.write_bytes(data)
    engine.written = []
    assert calibrate(DEMO, texts, tmp_path / "c", options).digest == whole.digest
    assert engine.written == [2], "a flipped bit is found, and that layer alone is made again"


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (None, r"cannot write .*layer-001.safetensors: File too large"),
        (errno.ENOSPC, r"cannot write .*c: No space left on device .help: free some space there: fin"),
    ],
)
def test_a_full_disk_keeps_the_layers_that_are_there(
    tmp_path: Path, texts: list[Path], engine: StubEngine, limit: int | None, told: str
) -> None:
    """In the library that writes a layer's file, and where an engine writes what it needs itself."""
    options, folder = CalibrateOptions(n_ctx=32), tmp_path / "c"
    whole = calibrate(DEMO, texts, tmp_path / "whole", options)

    class Filling(StubEngine):
        def collect(self, taken: Taken, layers: Sequence[int | None], run: Run, progress: Progress) -> None:
            super().collect(taken, layers[:1], run, progress)
            if limit is not None:
                raise OSError(limit, os.strerror(limit))
            with small_files(100):
                collected(416, layers[1]).write(run.folder, run.digest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(calibrating.ENGINES, "llama.cpp", Filling([], 32).entered)
        with pytest.raises(CalibrationError, match=told) as error:
            calibrate(DEMO, texts, folder, options)
    assert "finished layers are kept, and the same call makes the others" in error.value.hint
    assert not list(folder.glob("*.part")) + list(folder.glob(".tmp*"))
    engine.written = []
    assert calibrate(DEMO, texts, folder, options).digest == whole.digest
    assert engine.written == [1, 2]


def test_a_disk_that_is_full_at_the_end_keeps_all_layers(
    tmp_path: Path, texts: list[Path], engine: StubEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, folder = CalibrateOptions(n_ctx=32), tmp_path / "c"
    finish = Run.finish

    def full(self: Run, *given: object) -> Calibration:
        with small_files(1000):
            return finish(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "finish", full)
    with pytest.raises(ImatrixError, match="cannot write") as error:
        calibrate(DEMO, texts, folder, options)
    monkeypatch.setattr(Run, "finish", finish)
    assert "all layers are kept; the same call makes what is missing" in error.value.hint
    engine.written = []
    calibrate(DEMO, texts, folder, options)
    assert engine.written == []


def test_hidden_states_that_do_not_fit_leave_no_part(tmp_path: Path) -> None:
    """torch's are written by `forward`; the error has the name of the file."""
    tokens = TokenRun(None, np.zeros((1, 8), np.int64), 1, lambda name: False)  # type: ignore[arg-type]
    path = tmp_path / "states-000.f32"
    with small_files(100), pytest.raises(OSError, match="File too large") as error:
        tokens.write(path, iter([np.zeros((1, 8, 64), np.float32)]))
    assert error.value.filename == str(path)
    assert not list(tmp_path.iterdir())
    tokens.write(path, iter([np.ones((1, 8, 64), np.float32)]))
    assert path.stat().st_size == 4 * 8 * 64


def test_what_engines_leave_when_they_are_killed_is_removed(
    tmp_path: Path, texts: list[Path], engine: StubEngine
) -> None:
    options, folder = CalibrateOptions(n_ctx=32), tmp_path / "c"
    whole = {path.name for path in calibrate(DEMO, texts, folder, options).path.iterdir()}
    left = ("states-0123456789abcdef-003.f32", "layer-001.safetensors.part", WORKING_MODEL)
    for name in (*left, f"{WORKING_MODEL}.part", "model.gguf"):
        (folder / name).write_text("left")
    calibrate(DEMO, texts, folder, options)
    assert {path.name for path in folder.iterdir()} == whole | {"model.gguf"}, "which may be a user's"


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"caf\xe9 " * 100, "is not UTF-8: byte 0xe9 at 3"),
        (b"a\0b" * 100, "is no text: it has zero bytes"),
        (b"short", "has 5 bytes, and a chunk is of 32 tokens"),
    ],
)
def test_texts_and_folder_are_looked_at_before_an_engine_is_started(
    tmp_path: Path, texts: list[Path], monkeypatch: pytest.MonkeyPatch, raw: bytes, told: str
) -> None:
    """A model is converted for llama.cpp, into the folder."""
    monkeypatch.setitem(calibrating.ENGINES, "llama.cpp", lambda *given: pytest.fail("it was started"))
    texts[1].write_bytes(raw)
    options, folder = CalibrateOptions(n_ctx=32), tmp_path / "c"
    with pytest.raises(CalibrationError, match=told):
        calibrate(DEMO, texts, folder, options)
    folder.mkdir()
    (folder / "model.gguf").write_text("precious")
    with pytest.raises(CalibrationError, match="is not empty and has no calibration"):
        calibrate(DEMO, texts[:1], folder, options)
    assert (folder / "model.gguf").read_text() == "precious"


def test_a_damaged_layer_of_a_run_that_was_stopped_is_made_again(
    tmp_path: Path, texts: list[Path], engine: StubEngine
) -> None:
    options = CalibrateOptions(n_ctx=32)
    whole = calibrate(DEMO, texts, tmp_path / "whole", options)
    engine.written, engine.fails_after = [], 2
    with pytest.raises(KeyboardInterrupt):
        calibrate(DEMO, texts, tmp_path / "c", options)
    damaged = tmp_path / "c" / "layer-000.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-9] ^= 1
    damaged.write_bytes(data)
    engine.written, engine.fails_after = [], None
    assert calibrate(DEMO, texts, tmp_path / "c", options).digest == whole.digest
    assert engine.written == [0, 2]


@pytest.mark.parametrize("n_layers", [0, 1])
def test_a_run_that_fails_leaves_what_it_has_done_and_nothing_else(
    tmp_path: Path, texts: list[Path], engine: StubEngine, n_layers: int
) -> None:
    engine.fails_after, engine.error = n_layers, CheckpointError("m: transformers' X cannot be run")
    for _ in range(2):
        done = run("calibrate", DEMO, "--text", texts[0], "--ctx", "32", "-o", tmp_path / "c", "-q")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "error: m: transformers' X cannot be run\n"
    there = [entry.name for entry in (tmp_path / "c").iterdir()] if (tmp_path / "c").exists() else []
    assert "layer-000.safetensors" in there if n_layers else not there


def test_two_runs_are_kept_out_of_one_folder(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    with locked(tmp_path / "c"), pytest.raises(CalibrationError, match="another run is filling"):
        calibrate(DEMO, texts, tmp_path / "c", CalibrateOptions(n_ctx=32))
    assert not (tmp_path / "c").exists(), "a folder that stays empty is removed"
    calibrate(DEMO, texts, tmp_path / "c", CalibrateOptions(n_ctx=32))


def test_an_engine_apart_ends_with_its_caller(tmp_path: Path) -> None:
    """A caller that is killed closes the pipe, of which the engine's process reads the end."""
    code = "import time; from ggplan.measure.embedded import end_with_caller as e; e(); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 1


def test_provenance(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    found = calibrate(DEMO, texts, tmp_path / "c", CalibrateOptions(n_ctx=32, n_chunks=5)).provenance
    assert found["engine"] == {"name": "llama.cpp", "build": "0"}
    assert [(t["name"], t["chunks"]) for t in found["texts"]] == [("prose.txt", 3), ("code.txt", 2)]
    assert (found["chunks"], found["tokens"], found["n_ctx"]) == (5, 160, 32)
    assert found["model"]["architecture"] == "glm4moe"
    moved = calibrate(DEMO, texts, tmp_path / "d", CalibrateOptions(n_ctx=32, n_chunks=5, memory=1 << 20))
    assert moved.digest == ggplan.open_calibration(tmp_path / "c").digest  # no path, date or memory in it


def test_the_text_that_ships(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    options = CalibrateOptions(n_ctx=32, n_chunks=10)
    found = calibrate(DEMO, ["default", texts[0]], tmp_path / "c", options).provenance["texts"]
    names = ["prose.txt", "default/prose", "default/code", "default/markup", "default/languages"]
    assert [(t["name"], t["chunks"]) for t in found] == [(name, 2) for name in names]
    kept_apart = {hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped_holdouts().values()}
    assert len(kept_apart) == 4
    assert not kept_apart & {t["sha256"] for t in found}
    for part, path in shipped_texts().items():
        held_out = shipped_holdouts()[part.replace("/", "/holdout-")].read_text()
        pages = [page for page in held_out.split("\n\n") if len(page) > 200]
        assert pages, part
        assert not [page for page in pages if page in path.read_text()], part


@pytest.mark.parametrize(
    ("limit", "shares"),
    [
        ({}, [10, 3]),
        ({"n_chunks": 2}, [1, 1]),
        ({"n_chunks": 4}, [2, 2]),
        ({"n_chunks": 9}, [6, 3]),
        ({"n_chunks": 99}, [10, 3]),
        ({"n_tokens": 64}, [1, 1]),
        ({"n_tokens": 95}, [1, 1]),
        ({"n_tokens": 96}, [2, 1]),
    ],
)
def test_texts_have_equal_shares_of_a_limit(
    tmp_path: Path, texts: list[Path], engine: StubEngine, limit: dict[str, int], shares: list[int]
) -> None:
    found = calibrate(DEMO, texts, tmp_path / "c", CalibrateOptions(n_ctx=32, **limit)).provenance
    assert [t["chunks"] for t in found["texts"]] == shares


@pytest.mark.parametrize(
    ("limit", "names", "told"),
    [
        ({"n_chunks": 1}, ["prose.txt", "code.txt"], r"1 chunk is less than one for each of the 2 texts"),
        ({"n_tokens": 63}, ["prose.txt", "code.txt"], r"63 tokens are less .*2 texts .*at least 64 with"),
        ({"n_tokens": 31}, ["prose.txt"], r"31 tokens are less than a chunk of 32 \(.*at least 32 with"),
        ({"n_chunks": 3}, ["default"], r"3 chunks are less .*4 texts default/prose, .*at least 4 with"),
        ({"n_tokens": 100}, ["prose.txt", "default"], r"for each of the 5 texts .*at least 160 with"),
    ],
)  # fmt: skip
def test_a_limit_that_leaves_a_text_out_is_refused(
    tmp_path: Path, texts: list[Path], engine: StubEngine, limit: dict[str, int], names: list[str], told: str
) -> None:
    """What no chunk is run of is as if it had not been named."""
    options = CalibrateOptions(n_ctx=32, **limit)
    given = [name if name == "default" else tmp_path / name for name in names]
    with pytest.raises(CalibrationError, match=told):
        calibrate(DEMO, given, tmp_path / "c", options)
    assert not (tmp_path / "c").exists()
    with pytest.raises(CalibrationError, match=told):
        calibrate_imatrix(DEMO, given, tmp_path / "i.gguf", options)
    assert not (tmp_path / "i.gguf").exists()


def test_tokens_are_taken_from_all_over_a_text_and_chunks_from_its_beginning(
    tmp_path: Path, texts: list[Path], engine: StubEngine
) -> None:
    """A text may go from one kind to the next: its beginning alone would be one kind."""
    calibrate(DEMO, texts, tmp_path / "c", CalibrateOptions(n_ctx=32, n_tokens=160))
    assert engine.taken == [[0, 3, 6], [0, 1]]
    calibrate(DEMO, texts, tmp_path / "d", CalibrateOptions(n_ctx=32, n_chunks=5))
    assert engine.taken == [[0, 1, 2], [0, 1]]
    calibrate(DEMO, texts, tmp_path / "e", CalibrateOptions(n_ctx=32))
    assert engine.taken == [list(range(10)), [0, 1, 2]]


def test_chunks_are_cut_by_their_numbers() -> None:
    texts = [np.arange(11, dtype=np.int32), np.arange(100, 107, dtype=np.int32)]
    assert chunks_of(texts, [[0, 2], [1]], 3).tolist() == [[0, 1, 2], [6, 7, 8], [103, 104, 105]]


def test_what_cannot_be_run_is_refused(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    options = CalibrateOptions(n_ctx=32)
    (short := tmp_path / "short.txt").write_text("a" * 31)
    with pytest.raises(CalibrationError, match=r"short.txt has 31 tokens, which is less than a chunk of 32"):
        calibrate(DEMO, [*texts, short], tmp_path / "c", options)
    (one := tmp_path / "one.txt").write_text("a" * 40)
    with pytest.raises(CalibrationError, match="less than two chunks"):
        calibrate(DEMO, [one], tmp_path / "c", options)
    (again := tmp_path / "again.txt").write_bytes(texts[0].read_bytes())
    with pytest.raises(CalibrationError, match=r"again.txt and .*prose.txt are one text"):
        calibrate(DEMO, [*texts, again], tmp_path / "c", options)
    (wide := tmp_path / "wide.txt").write_text("a" * 400, "utf-16")
    with pytest.raises(CalibrationError, match=r"wide.txt is text in utf-16"):
        calibrate(DEMO, [wide], tmp_path / "c", options)
    with pytest.raises(CalibrationError, match="no text"):
        calibrate(DEMO, [], tmp_path / "c", options)
    with pytest.raises(CalibrationError, match=r"cannot read .*none.txt"):
        calibrate(DEMO, [tmp_path / "none.txt"], tmp_path / "c", options)
    with pytest.raises(CalibrationError, match="there is no engine abacus"):
        calibrate(DEMO, texts, tmp_path / "c", CalibrateOptions(engine="abacus"))  # type: ignore[arg-type]


def test_an_imatrix_alone(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    options = CalibrateOptions(n_ctx=32)
    for name in ("i.gguf", "i.dat"):
        path = calibrate_imatrix(DEMO, texts, tmp_path / name, options)
        assert len(load_imatrix(path).entries) == 8
    with pytest.raises(CalibrationError, match="exists"):
        calibrate_imatrix(DEMO, texts, tmp_path / "i.gguf", options)


def test_layers_are_collected_in_as_many_passes_as_the_memory_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ggplan.measure.embedded.build", lambda: "0")
    monkeypatch.setattr("ggplan.measure.embedded.why_missing", lambda: "")
    layers = (0, 1, 2, None)
    inputs = [
        {"layer": layer, "leader": "", "n_sources": 1, "n_uses": 1,
         "first": 0, "last": 0, "first_weight": "a", "n_first": 1,
         "activation": {"name": "x", "n_columns": 1024, "tensors": ["a"], "expert_tensors": [],
                        "n_slices": 1, "n_routes": 0, "has_own_rows": False, "rows_per_token": 1}}
        for layer in layers
    ]  # fmt: skip
    one = Activation("x", 1024, ("a",)).memory(10_000)
    for memory, passes in [(one, 4), (2 * one, 2), (3 * one, 2), (4 * one, 1)]:
        found = LlamaCpp(Path("m"), LlamaCppOptions((), (), 512, memory, None, False))
        found._inputs = inputs
        groups = found.passes(10_000, layers)
        assert len(groups) == passes
        assert [layer for group in groups for layer in group] == list(layers)
    found = LlamaCpp(Path("m"), LlamaCppOptions((), (), 512, one - 1, None, False))
    found._inputs = inputs
    with pytest.raises(CalibrationError, match="the inputs of layer 0 take 8"):
        found.passes(10_000, layers)


def test_the_command(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    asked = ["calibrate", DEMO, "--text", texts[0], "--text", texts[1], "--ctx", "32", "-o", tmp_path / "c"]
    engine.fails_after = 2
    stopped = run(*asked)
    assert stopped.returncode == 130
    assert "interrupted: 2 of 3 layers are kept" in stopped.stderr
    engine.fails_after = None
    done = run(*asked)
    assert done.returncode == 0, done.stderr
    assert "3 layers, 24 tensors, 416 tokens in 13 chunks of 32" in done.stdout
    assert "blk.*.ffn_down_exps.weight" in done.stdout
    assert "9 of 36 matrices of experts saw no token (blk.0.ffn_down_exps.weight: 3;" in done.stderr
    told = json.loads(run(*asked, "--json", "-q").stdout)
    assert told["digest"] == ggplan.open_calibration(tmp_path / "c").digest
    assert len(told["coverage"]) == 24
    other = run(*asked[:4], "--ctx", "32", "-o", tmp_path / "c")
    told = "another calibration: the texts differ" in other.stderr
    assert (other.returncode, told) == (1, True), other.stderr
    again = run(*asked[:4], "--ctx", "32", "-o", tmp_path / "c", "--force", "-q")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_what_of_the_texts_is_run_is_told(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    asked = ["calibrate", DEMO, "--text", texts[0], "--text", texts[1]]
    equal = run(*asked, "--ctx", "32", "--chunks", "6", "-o", tmp_path / "equal")
    whole = run(*asked, "--ctx", "32", "-o", tmp_path / "whole")
    assert "no more" not in equal.stderr + whole.stderr
    short = run(*asked, "--ctx", "32", "--tokens", "320", "-o", tmp_path / "short")
    told = (
        "code.txt has 3 chunks and no more, and 7 of another text are run: what it stands for counts for less"
    )
    assert told in " ".join(short.stderr.split())
    assert "was trained on" not in short.stderr
    texts[0].write_text("a" * 20_000)
    engine.n_ctx = 4096
    asked = ["calibrate", DEMO, "--text", texts[0], "--ctx", "4096", "-o", tmp_path / "long"]
    assert "the model was trained on 2,048 tokens, and a chunk has 4,096 (--ctx)" in run(*asked).stderr


def test_a_model_without_an_output_matrix_has_no_input_of_it(
    tmp_path: Path, texts: list[Path], engine: StubEngine
) -> None:
    options = CalibrateOptions(n_ctx=32, process_output=True)
    model = ggplan.open_model(DEMO, pre="glm4", weights=True)
    found = calibrate(model, texts, tmp_path / "untied", options)
    assert found.provenance["process_output"] is True
    tied = replace(model, tensors=tuple(t for t in model.tensors if t.name != "output.weight"))
    found = calibrate(tied, texts, tmp_path / "tied", options)
    assert found.provenance["process_output"] is False


def test_a_folder_that_cannot_be_made(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    with pytest.raises(CalibrationError, match=r"cannot make the folder .*nowhere/c: No such file") as told:
        calibrate(DEMO, texts, tmp_path / "nowhere" / "c", CalibrateOptions(n_ctx=32))
    assert "that is there and can be written to" in told.value.hint


def test_a_line_a_minute_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0, 30, 61, 90, 130, 10_000])
    lines = ChunkLines("running the texts", clock=lambda: next(seconds))
    for done in (2, 3, 4, 5, 6, 7):
        lines(done, 400)
    assert capsys.readouterr().err.splitlines() == [
        "running the texts: 4 of 400 chunks, 3 h 22 min left",
        "running the texts: 6 of 400 chunks, 3 h 34 min left",
        "running the texts: 7 of 400 chunks, 218 h 20 min left",
    ]


def test_the_command_for_an_imatrix(tmp_path: Path, texts: list[Path], engine: StubEngine) -> None:
    asked = [
        "calibrate",
        DEMO,
        "--text",
        texts[0],
        "--ctx",
        "32",
        "--imatrix-only",
        "-o",
        tmp_path / "i.gguf",
    ]
    done = run(*asked)
    assert done.returncode == 0, done.stderr
    assert "one text: uses of the model" in done.stderr
    assert load_imatrix(tmp_path / "i.gguf").chunk_count == 10
    assert run(*asked).returncode == 1
    assert run(*asked, "--force", "--format", "dat").returncode == 0
    assert (tmp_path / "i.gguf").read_bytes()[:4] != b"GGUF"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "--text is missing"),
        (["--text", "a", "--tokens", "64k", "--chunks", "3"], "give --tokens or --chunks, not both"),
        (["--text", "a", "--format", "dat"], "--format is for --imatrix-only"),
    ],
)
def test_wrong_usage(tmp_path: Path, more: list[str], told: str) -> None:
    done = run("calibrate", DEMO, "-o", tmp_path / "c", *more)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
