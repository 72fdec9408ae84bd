"""What `ggplan optimize` answers besides a recipe within bytes: the smallest file, why, better, all sizes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from program import run

import ggplan
from ggplan.allocation import explain, read_curve
from ggplan.allocation.forecast import damage_of, forecast_of
from ggplan.allocation.patterns import exact_patterns
from ggplan.allocation.prior import Level
from ggplan.errors import PlanError, RecipeError
from ggplan.linting.check import check_text
from ggplan.rules import match, parse_recipe

DEMO = Path(ggplan.__file__).parent / "demo_model"
SMALL = "gpt-oss-20b"
Options = ggplan.OptimizeOptions


@pytest.fixture(scope="module")
def model() -> ggplan.Model:
    return ggplan.open_model("Qwen3-8B")


@pytest.fixture(scope="module")
def answer(model: ggplan.Model) -> Any:
    return ggplan.optimize(model, Options(bpw=4.5))


@pytest.fixture(scope="module")
def curve(model: ggplan.Model) -> Any:
    return ggplan.pareto(model, n_points=6)


def says(*arguments: str | Path, code: int = 0) -> str:
    done = run("optimize", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


# The smallest file of a loss


@pytest.mark.parametrize("bands", [3, 1])
def test_the_smallest_file_that_keeps_a_kl_divergence(model: ggplan.Model, bands: int | None) -> None:
    found = ggplan.optimize(model, Options(max_kld=0.03, bands=bands))
    assert 0.028 < found.forecast.kld <= 0.03
    assert found.gap < 0.005
    # With so many bytes hardly a better one is to be had, and with fewer it is not kept.
    same, smaller = (
        ggplan.optimize(model, Options(bpw=factor * found.plan.bits_per_weight, bands=bands))
        for factor in (1 + 1e-9, 0.99)
    )
    assert same.forecast.kld == pytest.approx(found.forecast.kld, rel=0.005)
    assert smaller.forecast.kld > 0.03


def test_a_kl_divergence_beside_other_limits() -> None:
    said = says("Qwen3-8B", "--max-kld", "0.03", "--size", "4G", code=1)
    assert re.search(
        r"with a KL divergence of 0\.03, the smallest file is 4\.\d+ GiB, 0?\.?\d+ .iB above", said
    )
    assert "give a larger --max-kld" in said
    said = says("Qwen3-8B", "--max-kld", "0.03", "--bpw", "4", code=1)
    assert re.search(r"the smallest file has 4\.\d+ bpw, 0\.\d+ above the 4 of --bpw", said)
    assert "larger than the smallest possible" in says("Qwen3-8B", "--max-kld", "0.03", "--size", "6G")
    said = says("Qwen3-8B", "--max-kld", "0.0001", code=1)
    assert re.search(r"predicted KL divergence of 0\.000\d+, 0\.000\d+ above the 0\.0001", said)


@pytest.mark.parametrize("flips", [0.0, 0.02])
@pytest.mark.parametrize("kld", [1e-12, 0.003, 0.4, 7.0])
def test_the_damage_of_a_kl_divergence(flips: float, kld: float) -> None:
    level = Level(0.0, 0.3, flips)
    assert forecast_of(damage_of(kld, level), level).kld == pytest.approx(kld)


# What stands


def test_the_rules_of_a_base_recipe_stand(tmp_path: Path) -> None:
    base = tmp_path / "base.recipe"
    base.write_text(
        "@recipe 1\n@role attention = q8_0\n^output\\.weight$ = q6_K\n.* = q4_K!\n"
        "@default q4_K\n@assert bpw < 5\n".replace(".* = q4_K!\n", "ffn_down_exps = q6_K\n")
    )
    recipe = tmp_path / "my.recipe"
    pins = ["--pin", r"blk\.0\.attn_q = q5_K", "--pin", "attn_norm = f16"]
    said = says("GLM-4.5-Air", "--size", "70G", "--base", base, *pins, "-o", recipe)
    assert "1 tensor that base names are pinned to other types (blk.0.attn_q.weight: q5_K, not q8_0)" in said
    assert "the @default of base is not used" in said
    assert "1 @assert and @test line of base" in said
    glm = ggplan.open_model("GLM-4.5-Air")
    found = {t.name: t.type.name for t in ggplan.make_plan(glm, recipe).tensors}
    assert found["blk.0.attn_q.weight"] == "q5_K"
    assert {found[f"blk.{i}.attn_{k}.weight"] for i in range(1, 46) for k in "qkv"} == {"q8_0"}
    assert found["output.weight"] == "q6_K"
    # Rows of 1408 do not hold q6_K: the recipe names what is written, so that nothing falls back in it.
    assert {found[f"blk.{i}.ffn_down_exps.weight"] for i in range(1, 46)} == {"q8_0"}
    assert {found[f"blk.{i}.attn_norm.weight"] for i in range(46)} == {"f16"}
    assert "(rows of 1408 do not hold it)" in recipe.read_text()
    checked = run("rules", "check", recipe, "-m", "GLM-4.5-Air", "--notes")
    assert "nothing to say" in checked.stdout, checked.stdout
    assert run("rules", "test", recipe, "-m", "GLM-4.5-Air").returncode == 0


def test_blocks_that_draft_are_not_lowered_by_what_stands(tmp_path: Path) -> None:
    answered = json.loads(
        run("optimize", "GLM-4.5-Air", "--bpw", "5", "--pin", "attn_q = q4_K", "--json").stdout
    )
    found = {t["name"]: t["type"] for t in answered["tensors"]}
    assert found["blk.45.attn_q.weight"] == "q4_K"
    assert found["blk.46.attn_q.weight"] == "q8_0"
    assert any("would stand below q8_0" in note for note in answered["notes"])


def test_a_type_of_another_engine_cannot_stand() -> None:
    said = says("Qwen3-8B", "--bpw", "4", "--pin", "attn_q=iq4_ks", code=1)
    assert "--engine ik_llama.cpp" in said
    assert "--pin: attn_q = iq4_ks" in said


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
@pytest.mark.parametrize("bands", [1, None])
def test_a_check_finds_nothing(engine: str, bands: int | None) -> None:
    for name, bpw in ((SMALL, 5.0), ("Llama-3.1-8B", 3.6)):
        subject = ggplan.open_model(name)
        found = ggplan.optimize(subject, Options(bpw=bpw, engine=engine, bands=bands))
        report = check_text(found.recipe.text, "my.recipe", None, subject)
        assert [d.message for d in report.diagnostics] == []


def test_a_check_finds_nothing_of_a_quantized_source(tmp_path: Path) -> None:
    """Whose tensors are encoded again, which the recipe says itself."""
    found = json.loads(run("inspect", "Qwen3-8B", "--json").stdout)
    for tensor in found["tensors"]:
        tensor["type"] = "q6_K" if tensor["type"] == "bf16" else tensor["type"]
    (tmp_path / "q6.map").write_text(json.dumps(found))
    subject = ggplan.open_model(tmp_path / "q6.map")
    answer = ggplan.optimize(subject, Options(bpw=4))
    assert "are encoded again" in answer.recipe.text
    assert [d.message for d in check_text(answer.recipe.text, "my.recipe", None, subject).diagnostics] == []


# Patterns


def test_patterns_are_found_in_their_names_alone() -> None:
    names = [
        f"blk.{i}.{k}.weight"
        for i in range(12)
        for k in ("attn_q", "ffn_up", "ffn_gate")
        if i or k != "ffn_up"
    ]
    names += ["output.weight", "enc.blk.3.attn_q.weight", "enc.blk.4.attn_q.weight", "token_embd.weight"]
    for wanted in (
        names[:7],
        ["output.weight"],
        ["enc.blk.3.attn_q.weight", "blk.3.attn_q.weight"],
        [n for n in names if "ffn" in n and ".5." not in n],
        names,
    ):
        patterns = exact_patterns(wanted, names)
        hits = match(parse_recipe("".join(f"{p} = q8_0\n" for p in patterns), "x"), names)
        assert [n for n, found in zip(names, hits, strict=True) if found] == [n for n in names if n in wanted]
        assert all(len(found) <= 1 for found in hits)


def test_layers_of_encoders_are_bands_too() -> None:
    from ggplan.allocation.grouping import joined_kind
    from ggplan.allocation.patterns import split_name

    assert split_name("enc.blk.7.attn_q.weight") == ("enc.blk.", 7, "attn_q.weight")
    assert joined_kind("enc.blk.7.attn_q.weight", ()) == joined_kind("enc.blk.8.attn_q.weight", ())
    assert joined_kind("enc.blk.7.attn_q.weight", ()) != joined_kind("blk.7.attn_q.weight", ())
    for words in ("up", "gate", "gate_up", "up_gate"):
        assert joined_kind(f"blk.7.ffn_{words}_exps.weight", [("gate", "up")]) == "ffn_gate+up_exps.weight"
    assert joined_kind("blk.7.attn_qkv.weight", [("q", "k", "v")]) == "attn_qkv.weight"
    assert joined_kind("blk.7.attn_q_norm.weight", [("q", "k")]) == "attn_q+k_norm.weight"


# Why


def test_why_a_tensor_has_its_type(answer: Any) -> None:
    (found,) = explain(answer, "blk.7.ffn_down.weight")
    assert "blk.7.ffn_down.weight" in found.names
    own = next(step for step in found.steps if step.type == found.type)
    assert (own.n_bytes, own.damage, own.kld) == (0, 0.0, 0.0)
    assert [s.n_bytes for s in found.steps] == sorted(s.n_bytes for s in found.steps)
    assert all(s.kld > 0 for s in found.steps if s.damage > 0)
    assert "in this file a GiB is worth" in found.why
    # A step does what it says.
    step = found.steps[-1]
    changed = ggplan.optimize(
        answer.problem.model,
        Options(bpw=9, base=_with(answer, found.patterns, step.type.name)),
    )
    assert changed.forecast.kld - answer.forecast.kld == pytest.approx(step.kld)
    assert changed.plan.data_bytes - answer.plan.data_bytes == step.n_bytes


def _with(answer: Any, patterns: tuple[str, ...], type_: str) -> ggplan.Recipe:
    """The recipe with other types for some tensors, so that every tensor stands."""
    text = answer.recipe.text.replace(
        "@recipe 1\n", "@recipe 1\n" + "".join(f"{p} = {type_}\n" for p in patterns)
    )
    return ggplan.parse_recipe(text, "changed.recipe")


def test_why_others_have_theirs() -> None:
    wanted = [f"--explain={name}" for name in ("blk.46.attn_q.weight", "attn_norm", "output.weight")]
    said = says("GLM-4.5-Air", "--bpw", "5", "--pin", "^output=q6_K", *wanted)
    assert "only drafts tokens" in said
    assert "It is never quantized: it has one dimension" in said
    assert "It stands, by --pin: ^output = q6_K" in said
    assert "@recipe" not in said
    said = says("Qwen3-8B", "--bpw", "4", "--explain", "blk.7.ffn_donw.weight", code=1)
    assert "the nearest is blk.7.ffn_down.weight" in said


def test_a_pattern_that_is_none(answer: Any) -> None:
    with pytest.raises(RecipeError, match="never closed"):
        explain(answer, "(")
    with pytest.raises(PlanError, match="is in no tensor's name"):
        explain(answer, "nothing_of_this")


# Another recipe improved


@pytest.mark.parametrize("mix", ["Q4_K_M", "IQ3_XS"])
def test_a_mix_is_improved_at_its_own_bytes_and_types(model: ggplan.Model, mix: str) -> None:
    found = ggplan.improve(model, mix)
    assert found.answer.plan.file_bytes <= found.before.plan.file_bytes
    assert found.answer.forecast.kld < 0.9 * found.before.forecast.kld
    given = {t.type for t in found.before.plan.tensors}
    assert {t.type for t in found.answer.plan.tensors} <= given
    assert sum(k.damages[0] for k in found.kinds) == pytest.approx(found.before.damage)
    assert sum(k.damages[1] for k in found.kinds) == pytest.approx(found.answer.damage)
    assert "Improves        " + mix in found.answer.recipe.text


def test_what_was_improved_cannot_be_improved_again(model: ggplan.Model) -> None:
    once = ggplan.improve(model, "Q4_K_M").answer
    again = ggplan.improve(model, once.recipe)
    # The header of the file has the recipe's text, which is a line longer.
    assert again.answer.damage <= again.before.damage * 1.005
    assert again.answer.damage >= once.damage * 0.995


def test_what_changes_is_shown(tmp_path: Path) -> None:
    recipe = tmp_path / "better.recipe"
    said = says("Qwen3-8B", "--from", "Q4_K_M", "-o", recipe)
    assert re.search(r"attn_k +q4_K +q6_K", said)
    assert "Q4_K_M: 4.68 GiB, 4.905 bpw, KL divergence" in said
    assert "@recipe 1" in recipe.read_text()
    better = json.loads(
        run("optimize", "Qwen3-8B", "--from", "Q4_K_M", "--types", "q4_K,q5_K,q6_K", "--json").stdout
    )
    assert better["improves"]["name"] == "Q4_K_M"
    assert better["forecast"]["kld"] < better["improves"]["forecast"]["kld"]
    assert {k["kind"] for k in better["improves"]["kinds"]} >= {"ffn_gate+up.weight", "attn_v.weight"}


# All sizes


def test_the_curve_falls_and_no_mix_is_below_it(curve: Any) -> None:
    klds = [p.forecast.kld for p in curve.points]
    assert len(klds) == 6
    assert klds == sorted(klds, reverse=True)
    assert all(p.gap < 0.02 for p in curve.points)
    mixes = {p.name: p for p in curve.mixes}
    assert {"Q4_K_M", "Q2_K", "IQ3_XS", "Q8_0"} <= set(mixes)
    for mix in curve.mixes:
        best = curve.kld_at(mix.file_bytes)
        assert best is None or mix.forecast.kld > 0.95 * best, mix


def test_a_point_of_the_curve_is_what_optimize_gives(model: ggplan.Model, curve: Any) -> None:
    point = curve.points[2]
    found = ggplan.optimize(model, Options(size=point.file_bytes))
    assert found.forecast.kld == pytest.approx(point.forecast.kld, rel=0.02)


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_a_curve_is_read_as_it_was_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"curve.{ending}"
    said = says("Qwen3-8B", "--pareto", "--points", "3", "--size", "5G", "-o", path)
    assert "Best files, predicted" in said
    assert re.search(r"Q4_K_M +4\.68 GiB +4\.905", said)
    assert "Thireus, the GGUF Tool Suite and its contributors" in said
    found = read_curve(path)
    assert found.model == "Qwen3-8B"
    assert len(found.points) == 3
    assert found.points[-1].file_bytes <= 5 << 30
    assert found.n_weights == sum(t.n_weights for t in ggplan.open_model("Qwen3-8B").tensors)
    assert "Thireus" in " ".join(found.credit)
    if ending == "csv":
        rows = list(
            csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#"))
        )
        assert [row["name"] for row in rows[:3]] == ["optimized"] * 3


def test_a_damaged_curve(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    for text in (
        '{"schema": "ggplan.pareto/1"}',
        '{"schema": "ggplan.pareto/1", "points": 3}',
        "name,kld\n,\n",
        "",
    ):
        path.write_text(text)
        with pytest.raises(PlanError, match="is no whole curve"):
            read_curve(path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--pareto", "--from", "Q4_K_M"], "--from is about one file"),
        (["--pareto", "--explain", "output"], "--explain is about one file"),
        (["--pareto", "-o", "my.recipe"], "must end in .csv or .json"),
        (["--points", "5", "--bpw", "4"], "--points is for --pareto"),
        (["--pareto", "--points", "1"], "--points"),
        (["--max-kld", "0"], "--max-kld"),
    ],
)
def test_wrong_usage(arguments: list[str], told: str) -> None:
    assert told in says("Qwen3-8B", *arguments, code=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--pareto", "--max-kld", "0.1"], "asks for one file, not for a curve"),
        (["--bpw", "4", "--base", "missing.recipe"], "missing.recipe"),
        (["--bpw", "4", "--base", "Q4_K_M"], "Q4_K_M"),
        (["--from", "missing.recipe"], "missing.recipe"),
        (["--pareto", "--size", "1G"], "the smallest file is"),
    ],
)
def test_what_is_refused(arguments: list[str], told: str) -> None:
    assert told in says("Qwen3-8B", *arguments, code=1)


def test_a_model_with_nothing_to_choose(tmp_path: Path) -> None:
    """All tensors stand, or have one type that fits: the answer is that, or by how much it is too large."""
    everything = tmp_path / "all.recipe"
    everything.write_text(".* = q8_0\n")
    said = says(DEMO, "--size", "9M", "--base", everything, "--explain", "output.weight")
    assert "It stands, by all: .* = q8_0" in said
    assert "above the 2.00 MiB of --size" in says(DEMO, "--size", "2M", "--base", everything, code=1)
