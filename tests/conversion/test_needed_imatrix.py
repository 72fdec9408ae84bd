"""A type that ggml cannot encode without importance is refused without, before a byte is written."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import ggplan
import ggplan.stock
from ggplan.cli import cli
from ggplan.errors import PlanError
from ggplan.ggml_types import TYPES
from ggplan.linting import check_plan
from ggplan.planning import Plan
from ggplan.planning.importance import importance_refusal

RNG = np.random.default_rng(0)
WEIGHTS = {
    name: RNG.standard_normal((4, 256), np.float32)
    for name in ("token_embd.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight")
}
IQ1_S = "ffn = iq1_s\n@default f32\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, weights in WEIGHTS.items():
        writer.add_tensor(name, weights)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def imatrix_of(folder: Path, *names: str) -> tuple[Path, NDArray[np.float32]]:
    path = folder / "imatrix.gguf"
    sums = np.exp(RNG.standard_normal((1, 256))).astype(np.float32)
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["calib.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name in names:
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    finish(writer)
    return path, sums[0]


def plan_of(source: Path, recipe: str, imatrix: Path | None = None) -> Plan:
    return ggplan.make_plan(
        ggplan.open_model(source),
        ggplan.parse_recipe(recipe),
        imatrix=None if imatrix is None else ggplan.load_imatrix(imatrix),
    )


def found(plan: Plan, code: str) -> list[tuple[str, str]]:
    return [(d.severity, d.message) for d in check_plan(plan).diagnostics if d.code == code]


def refusal(plan: Plan) -> str:
    error = importance_refusal(plan)
    return "" if error is None else error.message


def test_without_an_imatrix(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, IQ1_S)
    assert "2 tensors" in refusal(plan)
    assert refusal(plan).endswith("iq1_s cannot be encoded without an imatrix")
    ((severity, message),) = found(plan, "GP204")
    assert severity == "note"
    assert message.startswith("2 tensors (blk.0.ffn_")
    assert message.endswith("iq1_s cannot be encoded without an imatrix")
    with pytest.raises(PlanError, match=r"^2 tensors \(blk\.0\.ffn_.*: iq1_s cannot be encoded") as caught:
        ggplan.convert(plan, tmp_path / "out.gguf")
    assert "--imatrix" in (caught.value.hint or "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.gguf"]


def test_the_plan_tells_that_it_cannot_be_carried_out(source: Path, tmp_path: Path) -> None:
    (tmp_path / "my.recipe").write_text(IQ1_S)
    done = CliRunner().invoke(cli, ["plan", str(source), "-r", str(tmp_path / "my.recipe")])
    assert done.exit_code == 0
    assert "error: `ggplan convert` refuses this: 2 tensors (blk.0.ffn_" in done.stderr
    assert "help: give one with --imatrix" in done.stderr
    assert done.stderr.count("cannot be encoded") == 1


def test_with_an_imatrix_that_lacks_a_tensor(source: Path, tmp_path: Path) -> None:
    path, _ = imatrix_of(tmp_path, "blk.0.ffn_up.weight")
    plan = plan_of(source, IQ1_S, path)
    assert refusal(plan) == (
        "blk.0.ffn_down.weight: no entry in imatrix.gguf; iq1_s cannot be encoded without importance"
    )
    ((severity, message),) = found(plan, "GP206")
    assert severity == "warning"
    assert message.startswith("`blk.0.ffn_down.weight`: no entry in imatrix.gguf; ")
    with pytest.raises(PlanError, match=r"ffn_down.weight: no entry in imatrix\.gguf; iq1_s cannot"):
        ggplan.convert(plan, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_nextn_blocks_want_a_rule_not_an_imatrix(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    names = ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight", "blk.1.nextn.eh_proj.weight")
    writer = gguf.GGUFWriter(source, "glm4moe")
    for name in names:
        writer.add_tensor(name, WEIGHTS["blk.0.ffn_up.weight"])
    finish(writer)
    path, _ = imatrix_of(tmp_path, "blk.0.ffn_up.weight")
    for order, where in (("first", "above"), ("last", "below")):
        plan = plan_of(source, f"@order {order}\n.* = iq1_s\n", path)
        (told,) = [d for d in check_plan(plan).diagnostics if d.code == "GP206"]
        assert told.message.startswith("2 tensors (blk.1.ffn_up.weight, blk.1.nextn.eh_proj.weight)")
        for hint in (told.help, getattr(importance_refusal(plan), "hint", "")):
            assert hint.startswith("no imatrix has data for nextn blocks")
            assert f"write a rule for them {where} the others, such as `@role nextn = q8_0`" in hint
    # With the rule there is nothing to refuse.
    plan = plan_of(source, "@role nextn = q8_0\n.* = iq1_s\n", path)
    assert importance_refusal(plan) is None
    # Others are told apart from them: these want another imatrix.
    plan = plan_of(source, ".* = iq1_s\n", imatrix_of(tmp_path, "output.weight")[0])
    helps = [d.help for d in check_plan(plan).diagnostics if d.code == "GP206"]
    assert len(helps) == 2
    assert any("of this very model" in help for help in helps)
    assert any("nextn" in help for help in helps)


def test_with_an_imatrix(source: Path, tmp_path: Path) -> None:
    path, importance = imatrix_of(tmp_path, "blk.0.ffn_up.weight", "blk.0.ffn_down.weight")
    plan = plan_of(source, IQ1_S, path)
    assert not found(plan, "GP204")
    assert not found(plan, "GP206")
    ggplan.convert(plan, tmp_path / "out.gguf")
    written = {t.name: t.data.tobytes() for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for name in ("blk.0.ffn_up.weight", "blk.0.ffn_down.weight"):
        assert written[name] == ggplan.quantize(WEIGHTS[name], "iq1_s", importance).tobytes()


def test_what_llama_quantize_refuses_is_warned_of_and_written(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, "ffn = iq1_m\ntoken_embd = iq1_m\n")
    ((severity, message),) = found(plan, "GP204")
    assert severity == "note"
    assert refusal(plan) == ""
    assert "token_embd" not in message
    assert message.endswith("llama-quantize refuses iq1_m without an imatrix; the weights will be useless")
    ggplan.convert(plan, tmp_path / "out.gguf")

    path, _ = imatrix_of(tmp_path, "blk.0.ffn_up.weight", "token_embd.weight")
    plan = plan_of(source, "ffn = iq1_m\ntoken_embd = iq1_m\n", path)
    ((severity, message),) = found(plan, "GP206")
    assert severity == "warning"
    assert message.startswith("`blk.0.ffn_down.weight`: no entry in imatrix.gguf; llama-quantize refuses")


def test_a_stock_mix_is_refused_where_llama_quantize_refuses_it(source: Path, tmp_path: Path) -> None:
    mix = ggplan.find_mix("IQ3_XXS")
    plan = ggplan.make_plan(ggplan.open_model(source), mix.purely())
    assert refusal(plan).endswith("llama-quantize refuses iq3_xxs without an imatrix")
    with pytest.raises(PlanError, match="llama-quantize refuses iq3_xxs without an imatrix"):
        ggplan.convert(plan, tmp_path / "out.gguf")


def test_what_is_copied_needs_no_imatrix(source: Path, tmp_path: Path) -> None:
    path, _ = imatrix_of(tmp_path, "blk.0.ffn_up.weight", "blk.0.ffn_down.weight")
    ggplan.convert(plan_of(source, IQ1_S, path), tmp_path / "first.gguf")
    plan = plan_of(tmp_path / "first.gguf", IQ1_S)
    assert not found(plan, "GP204")
    ggplan.convert(plan, tmp_path / "second.gguf")
    assert (tmp_path / "second.gguf").exists()


def test_types_of_ik_llama_cpp_are_named_as_such(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, "ffn = iq2_k\n@default f32\n")
    ((_, message),) = found(plan, "GP208")
    assert message.endswith("ggplan cannot write iq2_k (a type of ik_llama.cpp)")
    with pytest.raises(PlanError, match=r"cannot write iq2_k \(a type of ik_llama\.cpp\)") as caught:
        ggplan.convert(plan, tmp_path / "out.gguf")
    assert f"rules export '<recipe>' --dialect ik_llama.cpp -m {source}" in caught.value.hint
    assert "--dialect ik_llama.cpp" in caught.value.hint


def test_the_list_of_types_tells() -> None:
    lines = CliRunner().invoke(cli, ["types"]).output.splitlines()
    needing = {line.split()[0] for line in lines if "with an imatrix only" in line}
    assert needing == {t.name for t in TYPES if t.requires_imatrix and t.encodable}


def test_the_way_for_a_checkpoint_names_its_pre_tokenizer() -> None:
    demo = Path(ggplan.__file__).parent / "demo_model"
    recipe = ggplan.parse_recipe("ffn_(gate|up)_exps = iq4_k\n@default q8_0\n")
    plan = ggplan.make_plan(ggplan.open_model(demo, pre="glm4"), recipe)
    ((_, message),) = found(plan, "GP215")
    assert f"`ggplan convert {demo} bf16.gguf --pre glm4`" in message
