"""`ggplan chart` from a shell: what it takes, what it chooses by itself, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_mixes import MIXES

import ggplan
from ggplan.cli import cli
from ggplan.measure import save_record
from ggplan.measure.parsing import parse_files
from ggplan.measure.sizes import with_sizes
from ggplan.planning.export import plan_json

LOGS = Path(__file__).parent.parent / "data" / "logs"
SWEEP = LOGS / "sweep-bench.GLM-4.5-Air_16384_4096.txt"
PERPLEXITY = LOGS / "perplexity.glm4moe-tiny.bf16.txt"
KLD = LOGS / "kld.glm4moe-tiny.Q4_K_M.txt"


def chart(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["chart", *map(str, arguments)])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


def refused(*arguments: object) -> ggplan.Error:
    with pytest.raises(ggplan.Error) as caught:
        CliRunner().invoke(cli, ["chart", *map(str, arguments)], catch_exceptions=False)
    return caught.value


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.svg"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A small file with weights, converted from the demo model."""
    import importlib.resources

    model = ggplan.open_model(str(importlib.resources.files("ggplan") / "demo_model"), pre="glm4")
    path = tmp_path / "glm4moe-tiny.Q4_K_M.gguf"
    ggplan.convert(ggplan.make_plan(model, ggplan.parse_recipe("@default q8_0", "q8_0")), path)
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    save_record(MIXES, tmp_path / "air.json")
    return tmp_path / "air.json"


def test_a_log_without_perplexity_is_drawn_against_context(out: Path) -> None:
    said = chart(SWEEP, "-o", out)
    assert "note: no perplexity or KL divergence is in it, so this is --kind context" in said
    assert "speed against context" in out.read_text("utf-8")
    error = refused(SWEEP, "-o", out, "--kind", "quality")
    assert "no measurement" in error.message
    assert "--kind context" in str(error.hint)


@pytest.mark.parametrize("kind", ["types", "parts"])
def test_models_plans_and_files_are_drawn(tmp_path: Path, out: Path, gguf: Path, kind: str) -> None:
    plan = ggplan.make_plan(ggplan.open_model(gguf), ggplan.parse_recipe("@default q4_0", "four"))
    (tmp_path / "plan.json").write_text(json.dumps(plan_json(plan)))
    for arguments, type_ in (
        ([gguf], "q8_0"),
        ([tmp_path / "plan.json"], "q4_0"),
        ([gguf, "-r", "Q5_K_M"], "q5_K"),
        (["GLM-4.5-Air", "-r", "glm4moe/small"], "iq3_s"),
    ):
        chart(*arguments, "-o", out, "--kind", kind)
        assert f">{type_}</text>" in out.read_text("utf-8")


def test_types_are_what_a_model_is_drawn_by(out: Path) -> None:
    chart("GLM-4.5-Air", "-r", "glm4moe/hq4_k", "-o", out)
    assert "HQ4_K: types by layer" in out.read_text("utf-8")


def test_parts_of_several_recipes_and_records_share_a_chart(out: Path, kept: Path) -> None:
    chart("GLM-4.5-Air", "-r", "glm4moe/hq4_k", "-r", "glm4moe/small", "-o", out, "--kind", "parts")
    text = out.read_text("utf-8")
    assert ">HQ4_K</text>" in text
    assert ">small</text>" in text
    chart(kept, "GLM-4.5-Air", "-o", out, "--kind", "parts")
    assert ">hq4_k</text>" in out.read_text("utf-8")


def test_logs_get_sizes(out: Path, gguf: Path) -> None:
    error = refused(KLD, "-o", out)
    assert "no point has a size" in error.message
    assert "--gguf FILE" in str(error.hint)
    chart(KLD, "-o", out, "--size", "glm4moe-tiny.Q4_K_M=17.5MiB")
    assert "17.5 MiB" in out.read_text("utf-8")
    chart(KLD, "-o", out, "--gguf", gguf)
    text = out.read_text("utf-8")
    assert f"{gguf.stat().st_size / 2**20:.3g} MiB" in text
    assert "bits per weight" in text


def test_sizes_of_nothing_are_refused(out: Path, gguf: Path, tmp_path: Path) -> None:
    assert "no quantization is called Q4" in refused(KLD, "-o", out, "--size", "Q4=17MiB").message
    assert "NAME=" in chart(KLD, "-o", out, "--size", "17MiB", code=2)
    other = gguf.rename(tmp_path / "other.gguf")
    error = refused(KLD, PERPLEXITY, "-o", out, "--gguf", other)
    assert "other.gguf has the name of no quantization" in error.message


def test_a_file_gives_its_log_all_that_it_knows(gguf: Path) -> None:
    (found,) = with_sizes(parse_files([KLD]), {}, [("", gguf)])
    (quantization,) = found.quantizations
    assert quantization.file.n_bytes == gguf.stat().st_size
    assert quantization.bpw == pytest.approx(8.55, abs=0.01)
    assert {part.type for part in quantization.parts} == {"q8_0", "f32"}
    assert found.model.n_weights == sum(t.n_weights for t in ggplan.open_model(gguf).tensors)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-r", "glm4moe/hq4_k"], "-r applies to a model"),
        (["-r", "glm4moe/hq4_k", "--kind", "quality"], "-r belongs to --kind parts and --kind types"),
        (["-r", "glm4moe/hq4_k", "--kind", "parts"], "-r applies to a model"),
        (["--kind", "parts", "--metric", "kld"], "--metric belongs to --kind quality"),
        (["--kind", "context", "--x", "bpw"], "--x belongs to --kind quality"),
        (["--kind", "context", "--mixed"], "--mixed belongs to --kind quality"),
        (["--kind", "types", "--text", "a"], "--text belongs to --kind quality"),
    ],
)
def test_an_unused_option_is_refused(kept: Path, out: Path, arguments: list[str], said: str) -> None:
    assert said in chart(kept, "-o", out, *arguments, code=2)
    assert not out.exists()


def test_the_wrong_kind_points_at_the_right_one(kept: Path, out: Path, gguf: Path) -> None:
    error = refused(kept, "-o", out, "--kind", "types")
    assert "air.json is no model, inventory or plan" in error.message
    assert "--kind quality, context and parts" in str(error.hint)
    error = refused(gguf, "-o", out, "--kind", "quality")
    assert "is a model or a plan" in error.message
    assert "--kind types or --kind parts" in str(error.hint)


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": [{"name": "a", "shape": [0], "type": "q8_0", "class": "other"}]},
        {"tensors": [{"name": "a", "shape": [33], "type": "q8_0", "class": "other"}]},
        {"tensors": [{"name": "a", "shape": [32], "type": "q9_9", "class": "other"}]},
        {"tensors": [{"name": "a", "shape": [32], "type": "q8_0", "class": "nonsense"}]},
        {"tensors": [{"name": "a"}]},
        {"tensors": 3},
        {"model": None},
    ],
)
def test_a_damaged_plan_is_named(tmp_path: Path, out: Path, change: dict[str, Any]) -> None:
    whole = {"schema": "ggplan/plan@1", "model": {"path": "m"}, "recipe": None, "tensors": []}
    (tmp_path / "plan.json").write_text(json.dumps(whole | change))
    error = refused(tmp_path / "plan.json", "-o", out, "--kind", "parts")
    assert "plan.json is not a whole plan" in error.message
    assert not out.exists()
