"""Correction and calibration by transformers' modules, on random tiny models."""

import os
from pathlib import Path

import numpy as np
import pytest

from ggplan import convert, make_plan, open_model
from ggplan.calibration.torch_engine import TorchOptions, collect_layers
from ggplan.correcting import Corrected, CorrectOptions, correct
from ggplan.correcting.embedding import put_embedding
from ggplan.errors import ConversionError
from ggplan.forward import running
from ggplan.forward.building import open_checkpoint_model
from ggplan.planning import Plan
from ggplan.quants import dequantize
from ggplan.reshaping import Reshaping, reshape
from ggplan.rules import parse_recipe
from ggplan.sources.gguf import open_gguf
from ggplan.sources.huggingface import open_checkpoint

pytestmark = pytest.mark.oracle

RUN = "a" * 64


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(running, "BATCH_TOKENS", 100)


def tokens() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (5, 48))


def plan_of(folder: Path, types: str = "q4_0") -> Plan:
    return make_plan(open_model(folder, pre="glm4"), parse_recipe(f"@default {types}\n"))


def options(threads: int = 1) -> CorrectOptions:
    return CorrectOptions(threads, 1 << 30)


def all_bytes(corrected: Corrected) -> dict[str, bytes]:
    return {name: bytes(rows.read_bytes(0, rows.n_rows)) for name, rows in corrected.blocks.items()}


@pytest.mark.parametrize("case", ["glm4moe"])
def test_threads_and_kills_change_no_byte(reference_models: Path, tmp_path: Path, case: str) -> None:
    plan = plan_of(reference_models / case)
    once = all_bytes(correct(plan, tokens(), tmp_path / "once", RUN, options()))
    assert all(name.startswith("blk.") for name in once)
    assert len(once) == sum(t.type.is_quantized and "blk." in t.name for t in plan.tensors)
    calls, seen, stop = 0, 0, 0

    def killed(n_bytes: int) -> None:
        nonlocal calls, seen
        calls, seen = calls + 1, seen + n_bytes
        if calls == stop:
            raise KeyboardInterrupt

    for each in (1, 30):
        calls, stop = 0, each
        with pytest.raises(KeyboardInterrupt):
            correct(plan, tokens(), tmp_path / "killed", RUN, options(2), progress=killed)
    calls, stop, seen = 0, -1, 0
    again = correct(plan, tokens(), tmp_path / "killed", RUN, options(2), progress=killed)
    assert all_bytes(again) == once
    assert seen == sum(map(len, once.values())), "progress counts every byte, of layers that were there too"


@pytest.mark.parametrize("case", ["glm4moe"])
def test_too_little_memory_takes_fewer_threads_or_is_refused(
    reference_models: Path, tmp_path: Path, case: str
) -> None:
    """The refusal says how much one thread needs; the bytes are the same."""
    plan = plan_of(reference_models / case)
    with pytest.raises(ConversionError, match="correcting a layer takes") as refused:
        correct(plan, tokens(), tmp_path / "none", RUN, CorrectOptions(4, 1 << 20))
    assert not (tmp_path / "none").exists()
    needed = int(refused.value.hint.split("--memory ")[1].split("M")[0]) << 20
    few = correct(plan, tokens(), tmp_path / "few", RUN, CorrectOptions(4, needed))
    assert "1 of 4 threads" in few.notes[0]
    many = correct(plan, tokens(), tmp_path / "many", RUN, CorrectOptions(2, 1 << 30))
    assert not many.notes
    assert all_bytes(few) == all_bytes(many)


@pytest.mark.parametrize("case", ["llama", "glm4moe", "deepseek_v3", "gpt_oss", "phi4", "llama4"])
def test_corrected_blocks_come_nearer_to_the_originals_states(
    reference_models: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last layer gives, with and without correction, against the original model's."""
    from ggplan.correcting import kept, layer, targets

    finished: dict[str, np.ndarray] = {}
    remove = kept.KeptLayers.finish

    def keeping(self: kept.KeptLayers, number: int, *rest: object) -> None:
        for stream in ("original", "quantized"):
            finished[stream] = np.fromfile(self.states(number + 1, stream), np.float32)
        remove(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(kept.KeptLayers, "finish", keeping)
    plan = plan_of(reference_models / case)
    correct(plan, tokens(), tmp_path / "with", RUN, options())
    corrected = distance(finished)

    def unmoved(quantized: np.ndarray, original: np.ndarray, *more: object) -> targets.Correction:
        return targets.correction(quantized, quantized)

    monkeypatch.setattr(layer, "correction", unmoved)
    correct(plan, tokens(), tmp_path / "without", RUN, options())
    assert 0 < corrected < 0.75 * distance(finished)


def test_the_quantized_stream_starts_from_the_embedding_of_the_output(
    reference_models: Path, tmp_path: Path
) -> None:
    model = open_model(reference_models / "glm4moe", pre="glm4")
    plan = make_plan(model, parse_recipe("@default q4_0\n"), effort="best")
    convert(plan, tmp_path / "o.gguf")
    stored = next(t.rows for t in open_gguf(tmp_path / "o.gguf").tensors if t.name == "token_embd.weight")
    assert stored is not None
    filled = open_checkpoint_model(open_checkpoint(reference_models / "glm4moe"))
    filled.fill_outside()
    assert put_embedding(plan, filled, 2)
    found = filled.model.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(found, stored.read_float32(0, stored.n_rows))
    filled.fill_outside()
    assert not np.array_equal(found, filled.model.get_input_embeddings().weight.detach().numpy())


@pytest.mark.parametrize("case", ["llama4", "hunyuan_moe", "nemotron_h_moe", "qwen3_5_moe_mtp"])
def test_every_matrix_of_a_layer_is_corrected_or_said_why_not(
    reference_models: Path, tmp_path: Path, case: str
) -> None:
    """Experts that are given all tokens, as many routes as a layer says, mamba, linear attention."""
    plan = plan_of(reference_models / case)
    found = correct(plan, tokens(), tmp_path / "layers", RUN, options())
    quantized = {t.name for t in plan.tensors if t.type.is_quantized and t.name.startswith("blk.")}
    assert quantized == {*found.blocks, *found.left}
    assert not found.blocks.keys() & found.left.keys()
    mtp = {name for name in quantized if name.startswith("blk.4.")} if case == "qwen3_5_moe_mtp" else set()
    assert found.left.keys() == mtp
    assert all("predicts further tokens" in why for why in found.left.values())


@pytest.mark.parametrize("case", ["qwen3_5_moe_mtp"])
def test_joined_matrices_are_corrected_as_their_parts_are(
    reference_models: Path, tmp_path: Path, case: str
) -> None:
    model = open_model(reference_models / case, pre="glm4")
    recipe = parse_recipe("@default q4_0\n")
    joined, _ = reshape(model, Reshaping(mtp="drop", fuse=("gate-up",)))
    whole = correct(make_plan(joined, recipe), tokens(), tmp_path / "joined", RUN, options())
    assert not whole.left
    collected = collect_layers(joined, tokens(), tmp_path, RUN, TorchOptions(1, 1 << 30))
    assert "blk.3.ffn_gate_up_exps.weight" in {name for layer in collected for name in layer.sums()}
    parts = all_bytes(correct(make_plan(model, recipe), tokens(), tmp_path / "parts", RUN, options()))
    for layer in range(4):
        rows = whole.blocks[f"blk.{layer}.ffn_gate_up_exps.weight"]
        experts = np.frombuffer(bytes(rows.read_bytes(0, rows.n_rows)), np.uint8).reshape(rows.shape[0], -1)
        named = (parts[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up"))
        both = [np.frombuffer(part, np.uint8).reshape(rows.shape[0], -1) for part in named]
        np.testing.assert_array_equal(experts, np.concatenate(both, axis=1))


@pytest.mark.parametrize("case", ["gpt_oss_mxfp4"])
def test_stored_bytes_stay(reference_models: Path, tmp_path: Path, case: str) -> None:
    """What the plan copies has no error to make good, and would get one."""
    model = open_model(reference_models / case, pre="glm4")
    plan = make_plan(model, parse_recipe("@default q4_0\n_exps = keep\n"))
    copied = {t.name for t in plan.tensors if t.is_copied and t.type.is_quantized}
    assert len(copied) >= 3
    found = correct(plan, tokens(), tmp_path / "layers", RUN, options())
    assert found.blocks
    assert not copied & {*found.blocks, *found.left}


def distance(states: dict[str, np.ndarray]) -> float:
    moved = states["quantized"] - states["original"]
    return float((moved**2).sum() / (states["original"] ** 2).sum())


@pytest.mark.parametrize("case", ["glm4moe"])
def test_the_inputs_of_an_engine_are_those_of_the_whole_model(
    reference_models: Path, tmp_path: Path, case: str
) -> None:
    """Second moments against hooks on transformers' own model."""
    import torch
    from transformers import AutoModelForCausalLM

    from ggplan.quants.linear_algebra import second_moments

    folder = reference_models / case
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    seen: dict[str, list[np.ndarray]] = {}
    names = {"self_attn.o_proj": "attn_output", "mlp.shared_experts.down_proj": "ffn_down_shexp"}
    for hf, name in names.items():
        whole.model.layers[2].get_submodule(hf).register_forward_pre_hook(
            lambda module, args, name=name: seen.setdefault(name, []).append(
                args[0].reshape(-1, args[0].shape[-1]).numpy()
            )
        )
    with torch.inference_mode():
        whole(input_ids=torch.from_numpy(tokens()), use_cache=False)
    model = open_model(folder, pre="glm4")
    collected = list(collect_layers(model, tokens(), tmp_path, RUN, TorchOptions(2, 1 << 30)))
    assert [each.layer for each in collected] == [0, 1, 2]
    sums = collected[2].sums()
    for name, rows in seen.items():
        wanted = second_moments(np.concatenate(rows)).diagonal() * tokens().size
        np.testing.assert_allclose(sums[f"blk.2.{name}.weight"].squares.reshape(-1), wanted, rtol=1e-3)
    experts = sums["blk.2.ffn_down_exps.weight"]
    assert experts.counts.sum() == 2 * tokens().size
    matrices = {t.name for t in model.tensors if len(t.shape) > 1 and t.name.startswith("blk.2.")}
    assert set(sums) == matrices
    assert not list(tmp_path.iterdir()), "hidden states are removed"


@pytest.mark.parametrize("case", ["llama"])
def test_a_run_that_is_stopped_before_a_layer_is_written_collects_it_again(
    reference_models: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    model = open_model(reference_models / case, pre="glm4")
    how = TorchOptions(1, 1 << 30)
    stopped = collect_layers(model, tokens(), tmp_path, RUN, how)
    whole = {
        each.layer: each.sums()
        for each in collect_layers(model, tokens(), tmp_path_factory.mktemp("whole"), RUN, how)
    }
    assert next(stopped).layer == 0
    assert next(stopped).layer == 1  # and is killed before it is written
    done = {0}
    again = collect_layers(model, tokens(), tmp_path, RUN, how, is_done=lambda layer: layer in done)
    found = {each.layer: each.sums() for each in again}
    assert list(found) == [1, 2]
    for layer, sums in found.items():
        for name, each in sums.items():
            np.testing.assert_array_equal(each.squares, whole[layer][name].squares)


@pytest.mark.parametrize("case", ["gpt_oss"])
def test_what_is_put_back_is_what_a_reader_finds(
    reference_models: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module's parameters after a layer is corrected, against the decoded blocks."""
    from ggplan.correcting import layer

    checked = 0
    put_back = layer.Layer._put_uncorrected

    def checking(self: layer.Layer) -> None:
        nonlocal checked
        put_back(self)
        for name, blocks in self.blocks.items():
            planned = self.planned[name]
            weights = dequantize(blocks, planned.type).reshape(-1, *planned.tensor.shape[-2:])
            for matrix, places in zip(weights, self.structure.places[name], strict=True):
                for place in places:
                    there = self.parameters[place.parameter]
                    there = there[place.slice] if there.ndim == 3 else there
                    there = there.T if place.transposed else there
                    found = there[np.ix_(place.rows, place.columns)]
                    np.testing.assert_array_equal(found, matrix[place.gguf_rows])
                    checked += 1

    monkeypatch.setattr(layer.Layer, "_put_uncorrected", checking)
    correct(plan_of(reference_models / case), tokens(), tmp_path / "layers", RUN, options())
    assert checked > 20
