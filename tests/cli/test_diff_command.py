"""`ggplan diff` and `ggplan rules from` as a user meets them: output and exit code."""

import importlib.resources
import json
import subprocess
from pathlib import Path

import program
import pytest

import ggplan
from ggplan.planning import mix_types, recipe_from_types, recipe_of
from ggplan.stock import find_mix

SHA = "0123456789abcdef" * 4
TENSORS = {
    "token_embd.weight": ("256, 100", "q4_K"),
    "output.weight": ("256, 100", "q6_K"),
    "output_norm.weight": ("256,", "f32"),
    "blk.0.attn_q.weight": ("256, 64", "q4_K"),
    "blk.0.attn_v.weight": ("256, 64", "q6_K"),
    "blk.1.attn_q.weight": ("256, 64", "q4_K"),
    "blk.1.attn_v.weight": ("256, 64", "q4_K"),
    "blk.0.ffn_down_exps.weight": ("352, 256, 4", "q8_0"),
    "blk.1.ffn_down_exps.weight": ("352, 256, 4", "q5_0"),
    "blk.0.ffn_gate_inp.weight": ("256, 4", "f32"),
    "blk.1.ffn_gate_inp.weight": ("256, 4", "f32"),
}
EXPECTED = r"""
^output\.weight$                              = q6_K
^blk\.0\.(attn_v|ffn_down_exps)\.weight$      = q6_K | q8_0
^blk\.\d+\.ffn_gate_inp\.weight$              = f32

@default q4_K | q5_0
"""


def run(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return program.run(*arguments, folder=folder, COLUMNS="120")


@pytest.fixture
def tensor_map(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.map"
    lines = []
    for name, (shape, type_) in TENSORS.items():
        dims = [int(n) for n in shape.split(",") if n]
        n = 1
        for dim in dims:
            n *= dim
        size = ggplan.parse_type(type_).tensor_bytes(tuple(reversed(dims)))
        lines.append(f"f:{SHA}:{name}:shape=({shape}):dtype={type_.lower()}:elements={n}:bytes={size}\n")
    path.write_text("".join(lines))
    return path


def said(text: str) -> list[str]:
    """Rules and default, without comments and padding."""
    lines = [" ".join(line.partition("#")[0].split()) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("@recipe", "@name", "@arch"))]


def test_rules_from_writes_the_shortest_exact_recipe(tensor_map: Path, tmp_path: Path) -> None:
    done = run("rules", "from", tensor_map)
    assert done.returncode == 0, done.stderr
    assert said(done.stdout) == said(EXPECTED)
    assert done.stdout == recipe_from_types(ggplan.open_model(tensor_map)).text
    assert "# 2 tensors" in done.stdout
    target = tmp_path / "own.recipe"
    assert run("rules", "from", tensor_map, "-o", target, "--name", "mine").returncode == 0
    assert "@name mine\n" in target.read_text()
    again = run("rules", "from", tensor_map, "-o", target)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run("diff", tensor_map, target).returncode == 0


def test_rules_from_writes_a_mix_out(tensor_map: Path) -> None:
    done = run("rules", "from", tensor_map, "--mix", "iq4_xs", "--with-imatrix")
    assert done.returncode == 0, done.stderr
    model = ggplan.open_model(tensor_map)
    recipe = recipe_of(model, mix_types(model, find_mix("IQ4_XS"), has_imatrix=True))
    assert done.stdout == recipe.text
    assert "@name IQ4_XS\n" in done.stdout
    unknown = run("rules", "from", tensor_map, "--mix", "Q9_K_M")
    assert unknown.returncode == 2
    assert "Q4_K_M" in unknown.stderr


def test_diff_tells_same_from_different_and_from_trouble(tensor_map: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "my.recipe"
    recipe.write_text("@default q8_0\n")
    same = run("diff", "Q8_0", recipe, "-m", tensor_map)
    assert (same.returncode, "no difference" in same.stdout) == (0, True), same.stderr
    differs = run("diff", "Q4_K_M", recipe, "-m", tensor_map)
    assert differs.returncode == 1, differs.stderr
    assert "routed experts" in differs.stdout
    assert "q4_K" in differs.stdout
    listed = run("diff", "Q4_K_M", recipe, "-m", tensor_map, "--all")
    assert all(name in listed.stdout for name in TENSORS)
    for trouble in (
        ["diff", "Q4_K_M", "Q8_0"],
        ["diff", "nothing.gguf", "Q8_0", "-m", tensor_map],
        ["diff", "Q8_0", "Q8_0", "-m", "nothing.map"],
    ):
        done = run(*trouble)
        assert done.returncode == 2, trouble
        assert "Traceback" not in done.stderr
        assert "rror" in done.stderr


def test_diff_compares_plans_and_prints_json(tensor_map: Path, tmp_path: Path) -> None:
    for name in ("Q8_0", "Q6_K"):
        assert run("plan", tensor_map, "-r", name, "-o", tmp_path / f"{name}.json").returncode == 0
    done = run("diff", "Q8_0.json", "Q6_K.json", "--json", folder=tmp_path)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["schema"] == "ggplan/diff@1"
    changed = {t["name"]: (t["before"]["type"], t["after"]["type"]) for t in document["tensors"]}
    assert changed["blk.0.attn_q.weight"] == ("q8_0", "q6_K")
    assert "blk.0.ffn_down_exps.weight" not in changed  # rows of 352: q8_0 either way


def test_a_mix_is_a_recipe(tensor_map: Path, tmp_path: Path) -> None:
    plan = run("plan", tensor_map, "-r", "q4_k_m", "--json")
    assert plan.returncode == 0, plan.stderr
    document = json.loads(plan.stdout)
    assert document["recipe"]["name"] == "Q4_K_M"
    pure = json.loads(run("plan", tensor_map, "-r", "Q4_K_M", "--pure", "--json").stdout)
    types = {t["name"]: t["type"] for t in pure["tensors"]}
    assert types["output.weight"] == types["blk.0.attn_v.weight"] == "q4_K"
    wrong = run("plan", tensor_map, "--pure")
    assert wrong.returncode == 2
    assert "Q4_K_M" in wrong.stderr
    # A file of that name goes before the mix.
    (tmp_path / "Q4_K_M").write_text("@name own\n@default q8_0\n")
    own = run("plan", tensor_map, "-r", "Q4_K_M", "--json", folder=tmp_path)
    assert json.loads(own.stdout)["recipe"]["name"] == "own"


def test_types_lists_the_mixes() -> None:
    assert "Q4_K_M" in run("types").stdout
    mixes = {mix["name"]: mix for mix in json.loads(run("types", "--json").stdout)["mixes"]}
    assert mixes["IQ2_S"] == {"name": "IQ2_S", "file_type": 28, "type": "iq2_xs"}


def test_a_mix_that_needs_an_imatrix_is_planned_but_not_written_without(tmp_path: Path) -> None:
    model = Path(str(importlib.resources.files("ggplan") / "demo_model"))
    planned = run("plan", model, "-r", "Q2_K_S", "--pre", "glm4")
    assert planned.returncode == 0, planned.stderr
    assert "note[GP204]" in planned.stderr
    assert "error: `ggplan convert` refuses this" in planned.stderr
    done = run("convert", model, tmp_path / "out.gguf", "-r", "Q2_K_S", "--pre", "glm4")
    assert done.returncode == 1
    assert "without an imatrix" in done.stderr
    assert not list(tmp_path.iterdir())
