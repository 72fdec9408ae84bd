"""Outlier columns of a calibration, and the rules that are suggested for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from program import run

from ggplan import parse_recipe
from ggplan.calibration import Calibration, open_calibration
from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.outliers import outliers_of, suggested_rules
from ggplan.calibration.run import begin

N, TOKENS = 32, 200


def with_outliers(folder: Path) -> Calibration:
    """Two layers: q and k with two outliers, 90 % of the energy; down of experts, one with, one unseen."""
    run_ = begin(folder, {"texts": [], "tokens": TOKENS, "n_ctx": TOKENS})
    assert not isinstance(run_, Calibration)
    run_.write_tokens(np.zeros((1, TOKENS), np.int32))
    signs = np.where(np.random.default_rng(0).random((TOKENS, N)) < 0.5, -1, 1).astype(np.float32)
    for layer in (0, 3):
        names = [f"blk.{layer}.{name}.weight" for name in ("attn_q", "attn_k", "ffn_down_exps", "ffn_up")]
        listed = [
            Activation("attn_norm", N, (names[0], names[1])),
            Activation("glu", N, (), (names[2],), 3, 1, True, 1),
            Activation("ffn_norm", N, (names[3],)),
        ]
        collector = LayerCollector(layer, listed, TOKENS)
        wide = signs.copy()
        wide[:, 5] *= 7
        wide[:, 9] *= 15  # 49 + 225 of 274 + 30
        collector.add("attn_norm", wide)
        own = signs.copy()
        own[::2, 7] *= 8  # of expert 0: 64 of 64 + 31; of both experts 64 of 64 + 31 + 32
        routes = (np.arange(TOKENS, dtype=np.int32) % 2)[:, None]
        collector.add_own("glu", own, routes.reshape(-1))
        dead = signs.copy()
        dead[:, 3:] = 0  # most columns are zero, and none is an outlier
        collector.add("ffn_norm", dead)
        collector.write(folder, run_.digest)
    return run_.finish(run_.finished([0, 3]).values(), {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outliers") / "c"
    with_outliers(path)
    return path


def test_columns_beyond_tau_and_their_share(folder: Path) -> None:
    found = outliers_of(open_calibration(folder))
    assert [o.tensors[0] for o in found] == [
        "blk.0.attn_q.weight", "blk.3.attn_q.weight", "blk.0.ffn_down_exps.weight",
        "blk.3.ffn_down_exps.weight", "blk.0.ffn_up.weight", "blk.3.ffn_up.weight",
    ]  # fmt: skip
    attention, down, up = found[0], found[2], found[4]
    assert attention.tensors == ("blk.0.attn_q.weight", "blk.0.attn_k.weight")
    assert (attention.columns, attention.largest) == (((9, 5),), pytest.approx(15))
    assert attention.share == pytest.approx(274 / 304)
    assert (down.columns, down.left_out) == (((7,), (), ()), (2,))
    assert down.share == pytest.approx(64 / 127)
    assert (up.columns, up.share) == (((),), 0)
    assert outliers_of(open_calibration(folder), 10)[0].columns == ((9,),)
    with pytest.raises(ValueError, match="above 1"):
        outliers_of(open_calibration(folder), 1.0)


def test_suggested_rules_are_a_recipe(folder: Path) -> None:
    rules = suggested_rules(outliers_of(open_calibration(folder)))
    assert rules == [
        r"^blk\.(0|3)\.attn_k\.weight$ = q8_0",
        r"^blk\.(0|3)\.attn_q\.weight$ = q8_0",
        r"^blk\.(0|3)\.ffn_down_exps\.weight$ = q8_0",
    ]
    recipe = parse_recipe("\n".join([*rules, "@default q4_0", ""]))
    assert len(recipe.rules) >= 3
    weaker = suggested_rules(outliers_of(open_calibration(folder), 7.5))
    assert weaker[0] == r"^blk\.(0|3)\.attn_k\.weight$ = q8_0"
    assert suggested_rules(outliers_of(open_calibration(folder), 20)) == []


def test_the_command(folder: Path) -> None:
    done = run("calibrate", folder, "--outliers")
    assert done.returncode == 0, done.stderr
    assert "6 of 8 tensors have columns beyond 6 times the median" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "blk.0.attn_q.weight" in line)
    assert "90.1 %" in row
    assert r"^blk\.(0|3)\.attn_q\.weight$ = q8_0" in done.stdout.splitlines()
    assert "2 of 10 matrices with inputs of their own are left out" in done.stderr
    told = json.loads(run("calibrate", folder, "--outliers", "--tau", "10", "--json").stdout)
    assert told["tau"] == 10
    assert told["inputs"][0]["outliers"] == [[9]]
    assert told["digest"] == open_calibration(folder).digest


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--outliers", "-o", "x"], "--output is for a run; --outliers looks at one that is done"),
        (["--outliers", "--text", "a", "-t", "2"], "--text, --threads are for a run"),
        (["--text", "a", "-o", "x", "--tau", "5"], "--tau is for --outliers"),
        (["--text", "a"], "-o is missing"),
        (["--outliers", "--tau", "1"], "--tau"),
    ],
)
def test_wrong_usage(folder: Path, more: list[str], told: str) -> None:
    done = run("calibrate", folder, *more)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_what_is_no_calibration_is_refused(tmp_path: Path) -> None:
    done = run("calibrate", tmp_path, "--outliers")
    assert (done.returncode, "is not a calibration" in done.stderr) == (1, True), done.stderr
