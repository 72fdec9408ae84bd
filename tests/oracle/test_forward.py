"""Checkpoints run layer by layer: against transformers' whole models, and weights against the GGUF's."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ggplan.arch import to_gguf
from ggplan.errors import CheckpointError
from ggplan.forward.building import open_checkpoint_model
from ggplan.forward.matrices import layer_places
from ggplan.forward.running import TokenRun, one_torch_thread
from ggplan.sources.huggingface import open_checkpoint

pytestmark = pytest.mark.oracle

# Dense and with experts, latent attention, sliding windows, fused matrices, sinks, arguments by token,
# linear attention, stacked experts that are run as a batch.
FAMILIES = (
    *(
        "llama",
        "qwen3",
        "qwen3moe",
        "glm4moe",
        "deepseek_v3",
        "gemma3",
        "mixtral",
        "gpt_oss",
        "olmoe",
        "phi4",
    ),
    *("gemma4_moe", "qwen3_next", "llama4"),
)
QUANTIZED = ("deepseek_v3_fp8", "gpt_oss_mxfp4")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")


def tokens(n_windows: int = 3, length: int = 80) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n_windows, length))


@pytest.mark.parametrize("case", FAMILIES)
def test_layer_by_layer_gives_the_whole_models_logits(
    reference_models: Path, tmp_path: Path, case: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = reference_models / case
    model = open_checkpoint_model(open_checkpoint(folder))
    model.fill_outside()
    with one_torch_thread():
        run = TokenRun(model, tokens(), 2, lambda name: False)
        run.start(tmp_path / "0")
        for layer in range(len(model.layers)):
            model.fill(layer)
            outputs = (output for _, output, _ in run.run(layer, run.states(tmp_path / f"{layer}")))
            run.write(tmp_path / f"{layer + 1}", outputs)
            model.empty(layer)
        last = torch.from_numpy(run.states(tmp_path / f"{len(model.layers)}")[0 : len(tokens())])
        ours = model.end(torch.from_numpy(tokens()), last)
        whole = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="eager"
        )
        with torch.inference_mode():
            theirs = whole(input_ids=torch.from_numpy(tokens()), use_cache=False).logits
    assert theirs.abs().max() > 0.5
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("case", [*FAMILIES, *QUANTIZED])
def test_every_matrix_of_the_gguf_is_found_in_the_modules(reference_models: Path, case: str) -> None:
    checkpoint = open_checkpoint(reference_models / case)
    model, gguf = open_checkpoint_model(checkpoint), to_gguf(checkpoint)
    last = len(model.layers) - 1
    places = layer_places(model, last)
    model.fill(last)
    parameters = {name: p.detach().numpy() for name, p in model.layers[last].named_parameters()}
    prefix = f"blk.{last}."
    matrices = [t for t in gguf.tensors if t.name.startswith(prefix) and len(t.shape) > 1 and t.shape[-1] > 8]
    assert len(matrices) >= 4
    for tensor in matrices:
        assert tensor.rows is not None
        weights = tensor.rows.read_float32(0, tensor.n_rows).reshape(-1, *tensor.shape[-2:])
        for wanted, of_slice in zip(weights, places[tensor.name.removeprefix(prefix)], strict=True):
            found = np.full(wanted.shape, np.nan, np.float32)
            for place in of_slice:
                matrix = parameters[place.parameter]
                matrix = matrix[place.slice] if matrix.ndim == 3 else matrix
                matrix = matrix.T if place.transposed else matrix
                found[place.gguf_rows] = matrix[np.ix_(place.rows, place.columns)]
            np.testing.assert_array_equal(found, wanted, tensor.name)


@pytest.mark.parametrize("case", ["glm_dsa", "gemma4"])
def test_layers_that_hand_on_more_than_states_are_refused(
    reference_models: Path, tmp_path: Path, case: str
) -> None:
    model = open_checkpoint_model(open_checkpoint(reference_models / case))
    model.fill_outside()
    with pytest.raises(CheckpointError, match="hand on more than their hidden states"):
        TokenRun(model, tokens(), 1, lambda name: False).start(tmp_path / "0")


def test_what_torch_refuses_is_told_in_a_line(reference_models: Path, tmp_path: Path) -> None:
    shutil.copytree(reference_models / "mixtral", folder := tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 1000}))
    model = open_checkpoint_model(open_checkpoint(folder))
    model.fill_outside()
    with one_torch_thread(), pytest.raises(CheckpointError, match=r"RuntimeError: .*out of range") as raised:
        TokenRun(model, tokens(), 1, lambda name: False).start(tmp_path / "0")
    assert "\n" not in raised.value.message
    whole = open_checkpoint_model(open_checkpoint(reference_models / "mixtral"))
    whole.fill_outside()
    with one_torch_thread(), pytest.raises(CheckpointError, match=r"cannot be run \(IndexError"):
        TokenRun(whole, tokens() + 10**6, 1, lambda name: False).start(tmp_path / "0")
