"""The shipped inventories against what is known of the published files."""

import sys
from importlib import resources
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "planning"), str(TESTS.parent / "tools")]

import make_inventories  # noqa: E402
from glm_4_5_air import tensors as glm_4_5_air  # noqa: E402

from ggplan.errors import CheckpointError  # noqa: E402
from ggplan.inventories import inventories, inventories_of, inventory, names_of_inventories  # noqa: E402
from ggplan.rules import Blocks, roles_of  # noqa: E402

# Tensors and GiB of the published bf16 (gpt-oss: mxfp4) files.
PUBLISHED = {
    "GLM-4.5-Air": (803, 205.811),
    "GLM-4.5": (1761, 667.598),
    "GLM-4.6": (1759, 664.707),
    "DeepSeek-V3": (1086, 1250.084),
    "gpt-oss-120b": (687, 60.868),
    "MiniMax-M2": (809, 426.060),
    "Llama-3.1-8B": (292, 14.958),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    tensors = inventory(name).tensors
    n_tensors, gib = PUBLISHED[name]
    assert len(tensors) == len({t.name for t in tensors}) == n_tensors
    assert sum(t.n_bytes for t in tensors) / 2**30 == pytest.approx(gib, abs=5e-4)


def test_an_inventory_is_the_model_to_the_shape() -> None:
    assert {(t.name, t.shape, t.type.name) for t in inventory("GLM-4.5-Air").tensors} == set(glm_4_5_air())


@pytest.mark.parametrize("name", inventories())
def test_an_inventory_is_whole(name: str) -> None:
    model = inventory(name)
    blocks = Blocks.of(t.name for t in model.tensors)
    arch = model.architecture
    assert model.metadata[f"{arch}.block_count"].decode() == blocks.count
    assert name in inventories_of(arch)
    assert all(roles_of(t.name, blocks) for t in model.tensors)
    heads = model.metadata[f"{arch}.attention.head_count"].decode()
    assert isinstance(heads, int)


def test_names_lead_to_inventories_in_any_case() -> None:
    assert inventory("deepseek-r1") == inventory("DeepSeek-V3")
    assert names_of_inventories()["Qwen3-Coder-30B-A3B"] == "Qwen3-30B-A3B"
    with pytest.raises(CheckpointError, match=r"no inventory of GLM-4\.5-Fire") as caught:
        inventory("GLM-4.5-Fire")
    assert "GLM-4.5-Air" in caught.value.hint


def test_the_files_are_what_the_tool_makes() -> None:
    data = resources.files("ggplan.inventories") / "data"
    assert {f.name for f in data.iterdir()} == {f"{name}.txt" for name in make_inventories.MODELS}
    for name, config in make_inventories.MODELS.items():
        assert (data / f"{name}.txt").read_text("utf-8") == make_inventories.text(config)
