"""`tools/compare_recipes.py`: recipes as the GGUF Tool Suite writes them, against the optimum of a table."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from allocation.measured import ROOT, fit_prior, unpacked

from ggplan.allocation import read_sensitivities
from ggplan.allocation.curves import curve_of, errors_by_curve
from ggplan.errors import PlanError

TYPES = ("iq1_m_r4", "iq2_ks", "q2_K", "iq3_xxs_r4", "iq4_ks", "iq5_k", "q6_K", "q8_0_r8", "q8_KV", "bf16")
HEAD = """\
## Quant mix recipe created using Thireus' GGUF Tool Suite - https://gguf.thireus.com/
## Model head & embeddings
^output_norm\\.weight$=f32
^token_embd\\.weight$=q6_K
^output\\.weight$=iq5_k
^blk\\.([0-9]|[1-3][0-9]|4[0-6])\\.attn_v\\.bias$=f32
^blk\\.46\\.nextn\\.eh_proj\\.weight$=iq4_xs
^per_layer_token_embd\\.weight$=q8_0
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    fit_prior()
    spec = importlib.util.spec_from_file_location("compare_recipes", ROOT / "tools" / "compare_recipes.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["compare_recipes"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def some_recipe(seed: int) -> str:
    draw = random.Random(seed)
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_(gate|up|down)_shexp", "ffn_gate_exps")
    kinds += ("ffn_up_exps", "ffn_down_exps", "ffn_(gate|up|down)")
    types = draw.sample(TYPES, 4)
    rules = [rf"^blk\.({draw.randrange(40)}|4[0-6])\.{kind}\.weight$={draw.choice(types)}" for kind in kinds]
    rules += [rf"^blk\.\d+\.{kind}\.weight$={draw.choice(types)}" for kind in kinds]
    return HEAD + "\n".join(rules) + "\n## THE END!\n"


def test_the_table_is_never_worse_than_a_recipe_and_the_prior_seldom(
    tool: ModuleType, tmp_path: Path
) -> None:
    """Random recipes of types of ik_llama.cpp, by the model's own curve and by the errors of types."""
    (table,) = read_sensitivities(unpacked("GLM-4.5-Air", tmp_path))
    curve = curve_of(read_sensitivities(unpacked("whole-model", tmp_path)), "GLM-4.5-Air", "curve")
    judges = [tool.judge_of(table, None, errors_by_curve(curve))]
    lower = 0
    path = tmp_path / "some.recipe"
    for seed in range(3):
        path.write_text(some_recipe(seed), encoding="utf-8")
        found = tool.compare(path, judges[0])
        assert found.optimum <= found.theirs
        assert found.optimum <= found.prior * (1 + 2e-4)  # what the solver leaves
        lower += found.prior < found.theirs
    assert lower == 3


def test_a_recipe_that_is_the_optimum_stays(tool: ModuleType, tmp_path: Path) -> None:
    (table,) = read_sensitivities(unpacked("GLM-4.5-Air", tmp_path))
    path = tmp_path / "one.recipe"
    path.write_text(r".*\.weight$=q6_K" + "\n", encoding="utf-8")  # one type; rows of 1408 get q8_0
    found = tool.compare(path, tool.judge_of(table, None))
    assert found.theirs >= found.optimum
    path.write_text(r".*\.weight$=bf16" + "\n", encoding="utf-8")
    found = tool.compare(path, tool.judge_of(table, None))
    assert (found.theirs, found.bits_per_weight) == (found.optimum, 16)


def test_recipes_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    (tmp_path / "alien.recipe").write_text("^blk\\.1\\.ffn_down\\.weight$=q4_K\n", encoding="utf-8")
    (tmp_path / "unknown.recipe").write_text(".*=iq1_bn\n", encoding="utf-8")
    (tmp_path / "good.recipe").write_text(HEAD + r".*\.weight$=iq4_ks" + "\n", encoding="utf-8")
    command = [sys.executable, ROOT / "tools" / "compare_recipes.py", tmp_path]
    done = subprocess.run(
        [*command, "--table", unpacked("GLM-4.5-Air", tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "it is of another model: 45" in done.stdout
    assert "left out: how large the error of iq1_bn is, is not known" in done.stdout
    assert "1 recipes, 2 left out" in done.stdout


def test_a_table_without_shapes_needs_a_model(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "kld_results.csv"
    path.write_text("QTYPE,blk.0.attn_q.weight\niq1_kt,0.5\n")
    with pytest.raises(PlanError, match="has no shapes"):
        tool.judge_of(*read_sensitivities(path), None)
