"""What `calibrate` collects, against llama-imatrix on the same text; imatrix files, by llama.cpp's tools."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ggplan
from ggplan.calibrating import CalibrateOptions, calibrate, calibrate_imatrix
from ggplan.calibration.marks import differing
from ggplan.imatrix import load_sums, write_imatrix
from ggplan.imatrix.merging import Source, merged

pytestmark = pytest.mark.oracle

PACKAGE = Path(ggplan.__file__).parent
DEMO, TEXT = PACKAGE / "demo_model", PACKAGE / "demo_model" / "joshua.txt"
CHUNKS = 5
OPTIONS = CalibrateOptions(n_chunks=CHUNKS, threads=1)


@pytest.fixture(scope="module")
def programs(llama_cpp: Path) -> Path:
    folder = llama_cpp / "build" / "bin"
    assert (folder / "llama-imatrix").exists(), "run tools/install-oracles"
    os.environ.setdefault("LLAMA_CPP_LIB_PATH", str(folder))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in two types."""
    folder = tmp_path_factory.mktemp("models")
    model = ggplan.open_model(DEMO, pre="glm4")
    made = {}
    for name in ("bf16", "q8_0"):
        made[name] = folder / f"demo-{name}.gguf"
        ggplan.convert(ggplan.make_plan(model, ggplan.parse_recipe(f"@default {name}")), made[name])
    return made


@pytest.fixture(scope="module")
def theirs(
    programs: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """llama-imatrix's own files."""
    folder = tmp_path_factory.mktemp("theirs")
    made = {}
    for name, model in files.items():
        made[name] = folder / f"{name}.gguf"
        imatrix(programs, "-m", model, "-f", TEXT, "--chunks", str(CHUNKS), "--no-ppl", "-o", made[name])
    return made


def imatrix(programs: Path, *arguments: str | Path) -> None:
    command = [programs / "llama-imatrix", *arguments, "-t", "1", "--no-repack"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["bf16", "q8_0"])
def test_the_imatrix_is_llama_imatrixs(
    files: dict[str, Path], theirs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    ours = load_sums(calibrate_imatrix(files[name], [TEXT], tmp_path / "i.gguf", OPTIONS))
    their = load_sums(theirs[name])
    assert ours.names == their.names
    assert (ours.chunk_count, ours.chunk_size) == (their.chunk_count, their.chunk_size) == (CHUNKS, 512)
    for tensor in ours.names:
        a, b = ours.entries[tensor], their.entries[tensor]
        assert np.array_equal(a.counts, b.counts), tensor
        np.testing.assert_allclose(a.squares, b.squares, rtol=1e-4, err_msg=tensor)


def test_llama_quantize_takes_it(
    programs: Path, files: dict[str, Path], theirs: dict[str, Path], tmp_path: Path
) -> None:
    ours = calibrate_imatrix(files["bf16"], [TEXT], tmp_path / "i.gguf", OPTIONS)
    legacy = tmp_path / "i.dat"
    write_imatrix(load_sums(ours), legacy)
    for path in (ours, legacy):
        command = [
            programs / "llama-quantize",
            "--imatrix",
            path,
            files["bf16"],
            tmp_path / "q",
            "Q4_K_S",
            "1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert f"loaded {len(load_sums(ours).entries)} importance matrix entries" in done.stdout


def test_merging_and_changing_the_form_give_llama_imatrixs_bytes(
    programs: Path, theirs: dict[str, Path], tmp_path: Path
) -> None:
    both = list(theirs.values())
    ours = merged([Source(path.name, load_sums(path)) for path in both])
    for form in ("gguf", "dat"):
        command: list[str | Path] = ["-m", "none"]
        for path in both:
            command += ["--in-file", path]
        imatrix(programs, *command, "-o", tmp_path / f"their.{form}", "--output-format", form)
        write_imatrix(ours, tmp_path / f"our.{form}")
        assert (tmp_path / f"our.{form}").read_bytes() == (tmp_path / f"their.{form}").read_bytes()
    imatrix(
        programs, "-m", "none", "--in-file", tmp_path / "our.dat", "--in-file", both[0], "-o", tmp_path / "t"
    )
    sources = [Source(path.name, load_sums(path)) for path in (tmp_path / "our.dat", both[0])]
    write_imatrix(merged(sources), tmp_path / "o")
    assert (tmp_path / "o").read_bytes() == (tmp_path / "t").read_bytes()


def test_a_folder_is_the_same_whatever_stops_it(
    files: dict[str, Path], tmp_path: Path, programs: Path
) -> None:
    demo = ggplan.open_model(DEMO, pre="glm4")
    whole = calibrate(demo, [TEXT], tmp_path / "whole", OPTIONS)
    assert not list(whole.path.glob("model*"))
    for tensor, (_, which) in whole.inputs.items():
        sums = whole.imatrix.entries[tensor]
        for slice in range(which.n_slices):
            moments = whole.moments(tensor, slice)
            assert (moments is None) == (which.tokens[slice] == 0)
            if moments is not None and which.experts:
                np.testing.assert_allclose(
                    moments.matrix.diagonal(), sums.values[slice], rtol=0.01, atol=1e-6
                )
    assert differing(dict(whole.weights), demo) == []
    assert differing(dict(whole.weights), ggplan.open_model(files["bf16"])) == []
    command = [sys.executable, "-m", "ggplan", "calibrate", DEMO, "--pre", "glm4", "--text", TEXT]
    command += ["--chunks", str(CHUNKS), "-t", "1", "-q", "-o", tmp_path / "c", "--memory", "12M"]
    for seconds in (3, 6):
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == {
        path.name: path.read_bytes() for path in whole.path.iterdir()
    }
