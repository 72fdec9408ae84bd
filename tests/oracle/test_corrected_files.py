"""Files with corrected targets, by torch: proven again, in split sets, after kills. Tiny random models."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ggplan
from ggplan import ConvertOptions, convert, make_plan, open_model, parse_recipe
from ggplan.correcting.embedding import put_embedding
from ggplan.forward import running
from ggplan.forward.building import open_checkpoint_model
from ggplan.planning import Feedback, Plan
from ggplan.sources.huggingface import open_checkpoint
from ggplan.verification import plan_again, verify
from ggplan.verification.reproducing import reproduce

sys.path[:0] = [str(Path(__file__).parent.parent / name) for name in ("arch", "conversion")]
from fault_injection import FaultServer, fault_server, make_scenarios  # noqa: E402
from fault_kinds import campaign  # noqa: E402
from made_up_calibration import made_up  # noqa: E402
from tiny_checkpoints import read_case, write_case  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(running, "BATCH_TOKENS", 100)
    model = open_model(write_case(tmp_path / "tiny", read_case("glm4moe")), pre="glm4")
    tokens = np.random.default_rng(2).integers(0, 256, (5, 48))
    feedback = Feedback(made_up(tmp_path / "c", model, tokens), corrected=True)
    recipe = parse_recipe("ffn_down = iq4_nl\nattn_q = q8_0\n@default q4_0\n", "a.recipe")
    return make_plan(model, recipe, feedback=feedback)


def test_they_are_proven_again_and_never_reused(plan: Plan, tmp_path: Path) -> None:
    assert plan.feedback is not None
    calibration = plan.feedback.calibration
    whole = convert(plan, tmp_path / "whole.gguf", ConvertOptions(threads=1)).path
    parts = convert(plan, tmp_path / "s.gguf", ConvertOptions(threads=3, split_max_tensors=9)).paths
    assert len(parts) > 1
    one, several = open_model(whole), open_model(parts[0])
    assert plan.feedback.embedding, "the embedding is encoded for what reads it"
    filled = open_checkpoint_model(open_checkpoint(plan.model.path))
    filled.fill_outside()
    assert put_embedding(plan, filled, 2)
    embedding, written = filled.model.get_input_embeddings().weight.detach(), one["token_embd.weight"].rows
    assert written is not None
    assert np.array_equal(embedding.numpy(), written.read_float32(0, len(embedding))), "as correction has it"
    for tensor in one.tensors:
        here, there = tensor.stored, several[tensor.name].stored
        assert here is not None
        assert there is not None
        assert bytes(here.read_bytes(0, tensor.n_rows)) == bytes(there.read_bytes(0, tensor.n_rows))
    again = plan_again(one, plan.model, calibration=calibration)
    assert verify(whole, against=plan.model, plan=again).is_sound
    assert reproduce(parts[0], plan.model, calibration=calibration).is_equal
    data = bytearray(whole.read_bytes())
    data[-100] ^= 1
    whole.write_bytes(data)
    assert not reproduce(whole, plan.model, calibration=calibration).is_equal, "a changed block is found"
    plain = make_plan(plan.model, plan.recipe, feedback=Feedback(calibration))
    for wanted in (plan, plain):
        done = convert(wanted, tmp_path / "again.gguf", ConvertOptions(reuse=parts[0], force=True))
        assert done.reuse is not None
        assert not done.reuse.tensors
    assert ggplan.open_model(tmp_path / "again.gguf").metadata.get("ggplan.calibration.corrected") is None


@pytest.mark.parametrize("recipe", ["token_embd = q4_0\n@default keep\n", "^output = q4_0\n@default keep\n"])
def test_without_a_matrix_to_correct_it_is_the_file_of_the_calibration(
    plan: Plan, tmp_path: Path, recipe: str
) -> None:
    assert plan.feedback is not None
    read = []
    for corrected in (True, False):
        feedback = Feedback(plan.feedback.calibration, corrected=corrected)
        made = make_plan(plan.model, parse_recipe(recipe, "a.recipe"), feedback=feedback)
        found = open_model(convert(made, tmp_path / f"{corrected}.gguf").path)
        read.append({t.name: bytes(t.stored.read_bytes(0, t.n_rows)) for t in found.tensors if t.stored})
    assert read[0] == read[1]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with fault_server(with_torch=True) as running_server:
        yield running_server


def test_kills_change_no_byte_and_leave_nothing(server: FaultServer, tmp_path: Path) -> None:
    scenarios = {"corrected": make_scenarios(server, tmp_path / "scenarios")["corrected"]}
    counts = {"kill": 4, "kill_twice": 2, "kill_by_clock": 2, "damage": 2, "interrupt": 1}
    trials = list(campaign(server, scenarios, tmp_path, counts, seed=11))
    assert [wrong for _, _, wrong in trials if wrong] == []
