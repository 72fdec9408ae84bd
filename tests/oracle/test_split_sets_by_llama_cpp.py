"""Split sets and manifests, judged by llama.cpp's own programs."""

import importlib.resources
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ggplan

pytestmark = pytest.mark.oracle

TEXT = Path(__file__).parents[2] / "ggplan" / "demo_model" / "joshua.txt"


@pytest.fixture(scope="module")
def program(llama_cpp: Path) -> Callable[..., str]:
    def run(name: str, *arguments: str | Path) -> str:
        path = llama_cpp / "build" / "bin" / name
        assert path.exists(), "run tools/install-oracles"
        done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo = Path(str(importlib.resources.files("ggplan") / "demo_model"))
    path = tmp_path_factory.mktemp("whole") / "demo.gguf"
    model = ggplan.open_model(demo, pre="glm4")
    ggplan.convert(ggplan.make_plan(model, ggplan.load_recipe("glm4moe/hq4_k")), path)
    return path


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("--split-max-size", "3M"), {"split_max_bytes": 3_000_000}),
        (("--split-max-size", "4M"), {"split_max_bytes": 4_000_000}),
        (("--split-max-size", "1G"), {"split_max_bytes": 10**9}),
        (("--split-max-tensors", "1"), {"split_max_tensors": 1}),
        (("--split-max-tensors", "7"), {"split_max_tensors": 7}),
    ],
)
def test_sets_are_those_of_llama_gguf_split(
    program: Callable[..., str], whole: Path, tmp_path: Path, theirs: tuple[str, str], ours: dict[str, int]
) -> None:
    plan = ggplan.make_plan(ggplan.open_model(whole))
    # A copy without a recipe says less in its metadata than the original; the copy is what is split.
    ggplan.convert(plan, tmp_path / "copy.gguf")
    program("llama-gguf-split", "--split", *theirs, tmp_path / "copy.gguf", tmp_path / "theirs")
    result = ggplan.convert(plan, tmp_path / "ours.gguf", ggplan.ConvertOptions(**ours))
    expected = sorted(tmp_path.glob("theirs-*.gguf"))
    assert [path.name.replace("ours", "theirs") for path in result.paths] == [path.name for path in expected]
    for path, other in zip(result.paths, expected, strict=True):
        assert path.read_bytes() == other.read_bytes()


def test_keeping_the_sources_files_is_what_llama_quantize_does(
    program: Callable[..., str], whole: Path, tmp_path: Path
) -> None:
    program("llama-gguf-split", "--split", "--split-max-size", "3M", whole, tmp_path / "in")
    first = tmp_path / "in-00001-of-00003.gguf"
    program("llama-quantize", "--keep-split", first, tmp_path / "theirs", "COPY")
    model = ggplan.open_model(first)
    result = ggplan.convert(
        ggplan.make_plan(model), tmp_path / "ours.gguf", ggplan.ConvertOptions(split_like=model)
    )
    for path in result.paths[1:]:  # the first has the metadata, in which each names itself
        assert path.read_bytes() == path.with_name(path.name.replace("ours", "theirs")).read_bytes()


def test_llama_cpp_runs_a_set_as_it_runs_one_file(
    program: Callable[..., str], whole: Path, tmp_path: Path
) -> None:
    plan = ggplan.make_plan(ggplan.open_model(whole))
    first = ggplan.convert(plan, tmp_path / "set.gguf", ggplan.ConvertOptions(split_max_bytes=2_000_000)).path
    assert perplexity(program, first) == perplexity(program, whole)


def perplexity(program: Callable[..., str], path: Path) -> str:
    """The final estimate; on a busy machine the program sometimes ends well without having printed it."""
    for _ in range(8):
        said = program("llama-perplexity", "-m", path, "-f", TEXT, "-c", "128", "--chunks", "2", "-t", "1")
        if found := re.search(r"Final estimate: PPL = ([\d.]+)", said):
            return found[1]
    raise AssertionError(said[-2000:])


def test_llama_gguf_hash_agrees_with_manifests(
    program: Callable[..., str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ggplan.make_plan(ggplan.open_model(whole))
    result = ggplan.convert(plan, tmp_path / "set.gguf", ggplan.ConvertOptions(split_max_tensors=20))
    monkeypatch.chdir(tmp_path)
    for path in result.paths:
        assert "Success" in program("llama-gguf-hash", "--check", result.manifest.name, path.name)
    damaged = bytearray(result.path.read_bytes())
    damaged[-100] ^= 1
    result.path.write_bytes(damaged)
    with pytest.raises(AssertionError, match="Mismatch"):
        program("llama-gguf-hash", "--check", result.manifest.name, result.path.name)
