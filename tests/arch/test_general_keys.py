"""Names, sizes and sources of models, judged by the gguf package's own guesses."""

from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.arch.general_keys import general_keys
from ggplan.ggml_types import BF16
from ggplan.model import TensorInfo
from ggplan.sources.huggingface import HfCheckpoint

HUB_NAMES = [
    "GLM-4.5-Air",
    "GLM-4.6",
    "Qwen3-235B-A22B-Instruct-2507",
    "Qwen3-Coder-480B-A35B-Instruct",
    "Llama-3.1-8B-Instruct",
    "Meta-Llama-3-70B",
    "Mixtral-8x7B-Instruct-v0.1",
    "DeepSeek-R1-0528",
    "DeepSeek-V2-Lite-Chat",
    "Kimi-K2-Instruct",
    "bloom-7b1",
    "Yarn-Mistral-7b-128k",
    "phi-3-mini-4k-instruct",
    "SmolLM2-135M",
    "gpt-oss-20b-BF16",
    "a model with spaces",
    "model",
    "x",
    "7B",
    "-",
    "v1.0-v2.0-beta-Q4_K",
]


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, shape, BF16, "model.safetensors", "BF16")


def facts(path: Path, config: dict, tensors: list[TensorInfo]) -> dict[str, object]:
    keys = general_keys(HfCheckpoint(path, config, {}), "llama", tensors)
    return {key: value.decode() for key, value in keys.items()}


def judged(path: Path, config: dict, n_weights: int) -> dict[str, object]:
    """What the gguf package guesses from a folder's name and a hub name in config.json."""
    name = config.get("_name_or_path")
    found = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), {}, {"_name_or_path": name}, path, n_weights
    )
    keys = ("name", "version", "organization", "finetune", "basename", "size_label")
    return {f"general.{key}": getattr(found, key) for key in keys if getattr(found, key)}


def assert_as_judged(path: Path, config: dict, n_weights: int) -> None:
    ours = facts(path, config, [tensor("output.weight", n_weights, 1)])
    theirs = judged(path, config, n_weights)
    theirs.setdefault("general.size_label", gguf.size_label(n_weights, n_weights, 0, 0))
    theirs |= {"general.architecture": "llama", "general.type": "model"}
    assert ours == theirs


@pytest.mark.parametrize("name", HUB_NAMES)
@pytest.mark.parametrize("n_weights", [8_030_000_000, 135_000])
def test_a_folders_name(name: str, n_weights: int) -> None:
    assert_as_judged(Path("/models") / name, {}, n_weights)


@pytest.mark.parametrize(
    "hub_name", ["some-org/Base-7B-v0.2", "./Base-7B", "/home/me/models/Base-7B", "Base-3B"]
)
def test_the_hub_name_in_the_config(hub_name: str) -> None:
    assert_as_judged(Path("/models/GLM-4.5-Air-finetuned"), {"_name_or_path": hub_name}, 7_000_000_000)


WORDS = st.sampled_from(
    ["Base", "llama", "v2", "3.1", "7B", "8x7b", "A3B", "mini", "128k", "chat", "q8_0", "1M", "x2"]
)


@given(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from([1000, 7_000_000_000]))
def test_any_name(words: list[str], n_weights: int) -> None:
    assert_as_judged(Path("/models") / "-".join(words), {}, n_weights)


@given(st.integers(1, 1 << 45))
def test_size_labels(n_weights: int) -> None:
    label = facts(Path("/models/m"), {}, [tensor("output.weight", n_weights, 1)])["general.size_label"]
    assert label == gguf.size_label(n_weights, n_weights, 0, 0)


def test_the_size_label_of_experts() -> None:
    tensors = [tensor("blk.1.ffn_up_exps.weight", 128, 1408, 4096), tensor("token_embd.weight", 151552, 4096)]
    label = facts(Path("/models/m"), {}, tensors)["general.size_label"]
    assert label == gguf.size_label(0, 151552 * 4096, 1408 * 4096, 128)


CARD = """---
license: other
license_name: some-license
license_link: https://example.org/license
base_model: [zai-org/GLM-4.5-Air, "https://huggingface.co/org/Other-7B-v2", "https://example.org/model"]
datasets:
- org/data
language: [en, zh]
tags:
\t- moe
pipeline_tag: text-generation
---
Text.
"""


def test_the_model_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    found = facts(tmp_path, {}, [])
    assert found["general.license"] == "other"
    assert found["general.license.name"] == "some-license"
    assert found["general.license.link"] == "https://example.org/license"
    assert found["general.base_model.count"] == 3
    assert found["general.base_model.0.name"] == "GLM 4.5 Air"
    assert "general.base_model.0.version" not in found
    assert found["general.base_model.0.organization"] == "Zai Org"
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/zai-org/GLM-4.5-Air"
    assert found["general.base_model.1.repo_url"] == "https://huggingface.co/org/Other-7B-v2"
    assert found["general.base_model.1.version"] == "v2"
    assert found["general.base_model.1.name"] == "Other 7B v2"
    assert found["general.base_model.2.repo_url"] == "https://example.org/model"
    assert "general.base_model.2.name" not in found
    assert found["general.dataset.0.name"] == "Data"
    assert found["general.tags"] == ["moe", "text-generation"]
    assert found["general.languages"] == ["en", "zh"]


SILENT_CARDS = [
    "",
    "no front matter",
    "---\nlicense: mit",
    "---\n- a list\n---\n",
    "---\na: [\n---\n",
    "---\n{a: {a: }\n---\n",
    "---\n" + "[" * 5000 + "\n---\n",
    "---\nlicense: " + "m" * 70000 + "\n---\n",
    "---\nlicense: {a: b}\n---\n",
]


@pytest.mark.parametrize("card", SILENT_CARDS)
def test_a_card_that_says_nothing(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert "general.license" not in facts(tmp_path, {}, [])


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"top_k": "many", "temperature": NaN}', '{"top_k": 99999999999}']
)
def test_suggestions_for_sampling_that_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert not [key for key in facts(tmp_path, {}, []) if "sampling" in key]
