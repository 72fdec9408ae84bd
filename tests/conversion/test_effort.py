"""`--effort best`: other bytes, as many of them, recorded, and less far from the source."""

import importlib.resources
from pathlib import Path

import numpy as np
from click.testing import CliRunner

import ggplan
from ggplan.cli import cli

DEMO = str(importlib.resources.files("ggplan") / "demo_model")


def test_best_effort_costs_no_byte_and_loses_less(tmp_path: Path) -> None:
    model = ggplan.open_model(DEMO, pre="glm4")
    recipe = ggplan.parse_recipe("ffn_up_exps = q4_K\n@default q8_0")
    files = {}
    for effort in ("default", "best"):
        plan = ggplan.make_plan(model, recipe, effort=effort)
        files[effort] = ggplan.open_model(ggplan.convert(plan, tmp_path / f"{effort}.gguf").path)
    default, best = files["default"], files["best"]
    assert "ggplan.effort" not in default.metadata
    assert best.metadata["ggplan.effort"].decode() == "best"
    assert best.metadata["general.file_type"].decode() == default.metadata["general.file_type"].decode()
    name = "blk.1.ffn_up_exps.weight"
    source = next(t for t in model.tensors if t.name == name)
    rows = source.rows.read_float32(0, source.n_rows)
    errors = {}
    for effort, file in files.items():
        tensor = next(t for t in file.tensors if t.name == name)
        assert tensor.type.name == "q4_K"
        errors[effort] = float(np.square(tensor.rows.read_float32(0, tensor.n_rows) - rows).sum())
    assert errors["best"] < 0.98 * errors["default"]


def test_the_command_line_asks_for_it(tmp_path: Path) -> None:
    recipe, out = tmp_path / "r.recipe", tmp_path / "x.gguf"
    recipe.write_text("attn_q = q4_0\n")
    run = CliRunner()
    model = [DEMO, "--pre", "glm4"]
    done = run.invoke(cli, ["convert", *model, str(out), "-r", str(recipe), "--effort", "best"])
    assert done.exit_code == 0, done.output
    assert ggplan.open_model(out).metadata["ggplan.effort"].decode() == "best"
    proof = run.invoke(cli, ["verify", str(out), "--exact", "--against", *model])
    assert proof.exit_code == 0, proof.output
    assert run.invoke(cli, ["plan", *model, "--effort", "most"]).exit_code == 2
