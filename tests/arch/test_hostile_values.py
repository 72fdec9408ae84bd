"""Whatever value stands at whatever place of a folder's JSON: a model comes of it, or one sentence."""

import copy
import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import read_case, write_case

from ggplan.arch import to_gguf
from ggplan.errors import CheckpointError
from ggplan.model import Model
from ggplan.sources.huggingface import open_checkpoint

VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 3, 7, 320, 10**9, 1 << 40, 1 << 70]),
    st.sampled_from([0.5, -1.5, 1e300, float("inf"), "", "x", "3", "\x00\x1b", "<sop>", "é" * 3]),
    st.sampled_from([[], [0], [[]], [None], ["a", "b"], {}, {"a": 1}, {"type": "x"}, [{"type": "BPE"}]]),
)
CASES = (
    *("glm4moe_mtp", "llama_tied", "deepseek_v2_lite", "qwen3moe_fused", "mixtral"),
    *("gpt_oss", "glm_dsa_mtp", "glm4v", "qwen3vlmoe", "gemma3_vision", "phi4_long"),
    *("gemma4_moe", "step35_mtp", "llama4_seeing", "mistral4", "hunyuan_moe", "phi_pieces"),
)


def places(document: object, path: tuple = ()) -> list[tuple]:
    """The way to each value, but only into the first few items of what is long."""
    found = [path] if path else []
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in list(items)[:40]:
        found += places(value, (*path, key))
    return found


def replaced(document: dict, path: tuple, value: object) -> dict:
    changed = copy.deepcopy(document)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def opened(folder: Path) -> Model | CheckpointError:
    try:
        return to_gguf(open_checkpoint(folder), pre="glm4")
    except CheckpointError as error:
        return error


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *product(["config.json"], CASES),
        # All cases have one tokenizer: those whose families differ in what they make of it, or that have
        # settings of their own.
        *product(["tokenizer.json"], ["glm4moe_mtp", "llama_tied", "gpt_oss", "gemma3_vision", "phi4_long"]),
        *product(["tokenizer_config.json"], ["glm4moe_mtp", "llama_tied", "gemma3_vision"]),
        *product(["tokenizer_config.json"], ["qwen3vlmoe", "phi4_long"]),
        *product(["generation_config.json"], CASES[:2]),  # every family reads it alike
    ],
)
def test_any_value_at_any_place(tmp_path: Path, case: str, name: str) -> None:
    folder = write_case(tmp_path, read_case(case))
    path = folder / name
    document = json.loads(path.read_text()) if path.exists() else {"top_k": 1, "temperature": 1.0}

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.sampled_from(places(document)), VALUES)
    def check(place: tuple, value: object) -> None:
        path.write_text(json.dumps(replaced(document, place, value)))
        outcome = opened(folder)
        if isinstance(outcome, CheckpointError):
            assert not {"\n", "\x1b"} & set(outcome.message)
            assert len(outcome.message) < 800
        else:
            assert all(tensor.n_weights > 0 for tensor in outcome.tensors)
            assert all(value.decode() is not None for value in outcome.metadata.values())

    check()
