"""Which moments the tensors of a reshaped model have: those of what they are, not of what they are called."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from program import run

import ggplan
from ggplan.calibration import Calibration, ReshapedCalibration
from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.marks import marks_of
from ggplan.calibration.run import begin
from ggplan.model import Model
from ggplan.planning import Feedback, Plan
from ggplan.reshaping import Reshaping, reshape

sys.path[:0] = [str(Path(__file__).parent.parent / name) for name in ("calibration", "reshaping")]
from filling import SETTINGS, collected, inputs  # noqa: E402
from small_models import write_model  # noqa: E402

N, EXPERTS, LAYERS, TOKENS = 32, 4, 4, 64
SHAPES = {
    "attn_q": (N, N), "attn_k": (N, N), "attn_v": (N, N), "ffn_gate_inp": (EXPERTS, N),
    "ffn_up_shexp": (N, N), "ffn_gate_exps": (EXPERTS, N, N), "ffn_up_exps": (EXPERTS, N, N),
    "ffn_down_exps": (EXPERTS, N, N),
}  # fmt: skip
KEYS = {
    "block_count": LAYERS, "expert_count": EXPERTS, "expert_used_count": 2, "attention.head_count": 4,
    "attention.head_count_kv": 4, "attention.key_length": 8, "attention.value_length": 8,
    "embedding_length": N,
}  # fmt: skip
KEPT = {layer: (0, 2, 3) if layer % 2 else (1, 2, 3) for layer in range(LAYERS)}
RECIPE = "@default q4_0\nffn_gate_inp = f32\n"


def source(path: Path, architecture: str, seed: int = 0) -> Model:
    shapes = {f"blk.{layer}.{name}.weight": s for layer in range(LAYERS) for name, s in SHAPES.items()}
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return ggplan.open_model(write_model(path, architecture, KEYS, weights))


def calibrated(folder: Path, model: Model, layers: int = LAYERS) -> Calibration:
    """A calibration of a model: each layer's inputs are others."""
    begun = begin(folder, SETTINGS | {"tokens": TOKENS})
    assert not isinstance(begun, Calibration)
    begun.write_tokens(np.arange(TOKENS, dtype=np.int32).reshape(1, -1))
    for layer in range(layers):
        collected(TOKENS, layer).write(folder, begun.digest)
    return begun.finish(begun.finished(range(layers)).values(), marks_of(model))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return source(tmp_path_factory.mktemp("models") / "m.gguf", "qwen35moe")


@pytest.fixture(scope="module")
def calibration(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrated(tmp_path_factory.mktemp("calibrations") / "c", model)


def planned(model: Model, wishes: Reshaping, calibration: Calibration) -> Plan:
    model, imatrix = reshape(model, wishes, calibration.imatrix)
    recipe = ggplan.parse_recipe(RECIPE)
    return ggplan.make_plan(model, recipe, imatrix=imatrix, feedback=Feedback(calibration))


def assert_same(plan: Plan, name: str, calibration: Calibration, old: str, slices: list[int]) -> None:
    """A tensor of the plan has the moments and importance of some slices of one in the calibration."""
    assert plan.feedback is not None
    fitted = plan.feedback.calibration
    name, old = f"blk.{name}.weight", f"blk.{old}.weight"
    assert fitted.tokens(name) == tuple(calibration.tokens(old)[e] for e in slices)
    for at, slice_ in enumerate(slices):
        ours, theirs = fitted.moments(name, at), calibration.moments(old, slice_)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            np.testing.assert_array_equal(ours.matrix, theirs.matrix)
    assert plan.imatrix is not None
    wanted = calibration.imatrix.entries[old]
    entry = plan.imatrix.entries[name]
    assert entry.name == name
    np.testing.assert_array_equal(entry.values.reshape(-1, N), wanted.values.reshape(-1, N)[slices])


ALL = [*range(EXPERTS)]


def test_pruned_layers_keep_their_own_inputs(model: Model, calibration: Calibration) -> None:
    plan = planned(model, Reshaping(prune_layers=(1,)), calibration)
    for new, old in ((0, 0), (1, 2), (2, 3)):
        assert_same(plan, f"{new}.attn_q", calibration, f"{old}.attn_q", [0])
        assert_same(plan, f"{new}.ffn_down_exps", calibration, f"{old}.ffn_down_exps", ALL)
    assert isinstance(plan.feedback.calibration, ReshapedCalibration)
    assert "layers after the pruned ones" in plan.feedback.calibration.notes[0]


def test_kept_experts_keep_their_own_inputs(model: Model, calibration: Calibration) -> None:
    plan = planned(model, Reshaping(prune_layers=(0,), keep_experts=KEPT), calibration)
    for new, old in ((0, 1), (1, 2), (2, 3)):
        for part in ("gate", "up", "down"):
            name = f"ffn_{part}_exps"
            assert_same(plan, f"{new}.{name}", calibration, f"{old}.{name}", list(KEPT[old]))
    calibration_ = plan.feedback.calibration
    gate, up, down = (calibration_.input_of(f"blk.1.ffn_{p}_exps.weight") for p in ("gate", "up", "down"))
    assert gate == up != down
    assert hash(gate) == hash(up)
    assert calibration_.layer_moments("blk.1.ffn_up_exps.weight") is not None
    assert len(calibration_.notes) == 2


def test_joined_tensors_have_the_input_of_their_parts(model: Model, calibration: Calibration) -> None:
    plan = planned(model, Reshaping(fuse=("gate-up", "qkv")), calibration)
    assert_same(plan, "2.ffn_gate_up_exps", calibration, "2.ffn_gate_exps", ALL)
    assert_same(plan, "2.attn_qkv", calibration, "2.attn_q", [0])
    assert not plan.feedback.calibration.notes


def test_cut_tensors_have_the_input_of_the_whole(model: Model, tmp_path: Path) -> None:
    """Of a model that was calibrated joined: whether it is cut here, or is another file."""
    joined = reshape(model, Reshaping(fuse=("gate-up",)))[0]
    name = "blk.1.ffn_gate_up_exps.weight"
    begun = begin(tmp_path / "c", SETTINGS | {"tokens": TOKENS})
    assert not isinstance(begun, Calibration)
    begun.write_tokens(np.zeros((1, TOKENS), np.int32))
    collector = LayerCollector(1, [Activation("ffn_norm", N, (), (name,), EXPERTS, 2)], TOKENS)
    shared, routes, _, _ = inputs(TOKENS)
    collector.add("ffn_norm", shared, routes)
    collector.write(begun.folder, begun.digest)
    own = begun.finish(begun.finished([1]).values(), marks_of(joined))
    for opened, wishes in ((model, Reshaping()), (joined, Reshaping(split=("gate-up",)))):
        plan = planned(opened, wishes, own)
        assert_same(plan, "1.ffn_up_exps", own, "1.ffn_gate_up_exps", ALL)
        assert plan.feedback.calibration.tokens("blk.1.ffn_down_exps.weight") == ()


def test_a_calibration_of_the_reshaped_model_is_used_as_it_is(model: Model, tmp_path: Path) -> None:
    """The marks of the weights tell, not the names: the same options went to `calibrate`."""
    wishes = Reshaping(prune_layers=(1,))
    own = calibrated(tmp_path / "c", reshape(model, wishes)[0], LAYERS - 1)
    plan = planned(model, wishes, own)
    assert_same(plan, "1.attn_q", own, "1.attn_q", [0])
    assert not plan.feedback.calibration.notes


def test_without_marks_that_agree_what_is_there_tells(model: Model, tmp_path: Path) -> None:
    """As of a model whose weights were rounded since: three layers cannot be those of four."""
    wishes = Reshaping(prune_layers=(1,))
    other = source(tmp_path / "other.gguf", "qwen35moe", seed=5)
    for layers, old in ((LAYERS, "2.attn_q"), (LAYERS - 1, "1.attn_q")):
        own = calibrated(tmp_path / f"{layers}", other, layers)
        assert_same(planned(model, wishes, own), "1.attn_q", own, old, [0])


def test_a_file_that_was_pruned_before(model: Model, calibration: Calibration, tmp_path: Path) -> None:
    """Its keys say what was done; the calibration is of the model that it was made of."""
    pruned = reshape(model, Reshaping(prune_layers=(1,), keep_experts=KEPT))[0]
    file = ggplan.convert(ggplan.make_plan(pruned), tmp_path / "pruned.gguf").path
    again = ggplan.open_model(file)
    plan = planned(again, Reshaping(), calibration)
    assert_same(plan, "1.ffn_down_exps", calibration, "2.ffn_down_exps", list(KEPT[2]))
    plan = planned(again, Reshaping(prune_layers=(0,)), calibration)
    assert_same(plan, "0.ffn_down_exps", calibration, "2.ffn_down_exps", list(KEPT[2]))


def test_a_file_that_was_pruned_and_then_calibrated(model: Model, tmp_path: Path) -> None:
    pruned = reshape(model, Reshaping(prune_layers=(1,)))[0]
    file = ggplan.convert(ggplan.make_plan(pruned), tmp_path / "pruned.gguf").path
    again = ggplan.open_model(file)
    own = calibrated(tmp_path / "own", again, LAYERS - 1)
    assert_same(planned(again, Reshaping(), own), "1.attn_q", own, "1.attn_q", [0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mtp", "drop"), ""),
        (("--fuse", "gate-up"), ""),
        (("--prune-layers", "1"), "the calibration is of the model with layer 1: the layers after the"),
        (("--keep-experts", "3"), "the calibration is of the model with all its experts"),
    ],
)
def test_the_commands(
    model: Model, calibration: Calibration, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    """What is written says how it was made, and is made again of the same calibration."""
    (tmp_path / "r.recipe").write_text(RECIPE)
    out, how = tmp_path / "out.gguf", ("--calibration", calibration.path)
    done = run("convert", model.path, out, "-r", tmp_path / "r.recipe", *how, *options)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.split())
    assert words in told
    assert ("the calibration is of" in told) == bool(words)
    assert "other weights" not in told
    assert "does not have it" not in told
    checked = run("reproduce", out, model.path, *how)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = run("verify", out, "--against", model.path, "--exact", *how)
    assert checked.returncode == 0, checked.stdout + checked.stderr
