"""Budgets of a machine: every answer fits by `place`'s own reckoning, and what cannot be met is said."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from program import run

import ggplan
from ggplan.allocation import read_curve
from ggplan.offload.header import header_of
from ggplan.offload.placement import Wishes
from ggplan.offload.tensor_costs import TensorCosts

GIB = 1 << 30
MACHINE = ("--bandwidth", "80G", "--cores", "16")


@cache
def tool() -> ModuleType:
    """tools/check_budgets.py, which checks a hundred of them."""
    path = Path(__file__).parents[2] / "tools" / "check_budgets.py"
    spec = importlib.util.spec_from_file_location("check_budgets", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["check_budgets"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def random_budgets() -> list[Any]:
    return list(tool().budgets(100, 1))


def optimized(*arguments: str) -> dict[str, Any]:
    done = run("optimize", *arguments, "--json", "-q")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("number", [2, 3, 4, 12, 13, 17])
def test_a_random_budget_is_kept_or_refused_with_what_is_short(number: int) -> None:
    """`tools/check_budgets.py` checks all hundred; these are of small models."""
    assert tool().check(random_budgets()[number])


def test_the_gap_is_small_where_speed_decides_how_many_layers_are_on_gpus() -> None:
    """Of 8B weights on GPUs of 4 and 1 GB with 46.4 tokens per second."""
    assert tool().check(list(tool().budgets(29, 11))[28])


def test_the_gap_is_small_where_the_first_answer_fits_at_once_but_is_far_from_its_bound() -> None:
    """Few types fit rows of 2,880: with few nodes it is 15 % above the best, and told to be 41 % at most."""
    assert tool().check(list(tool().budgets(23, 404))[22])


@pytest.fixture(scope="module")
def air(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    recipe = tmp_path_factory.mktemp("air") / "air.recipe"
    done = run(
        "optimize", "GLM-4.5-Air", "--cards", "3090", "--ram", "64G", *MACHINE, "-c", "32k", "--min-tps", "8",
        "-o", recipe,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return recipe, done.stderr


def test_the_recipe_asserts_what_was_asked_and_the_check_agrees(air: tuple[Path, str]) -> None:
    recipe, _ = air
    text = recipe.read_text()
    assert "within 24.0 GiB of CUDA0 and 64.0 GiB of RAM and 8 tokens per second" in text
    assert "@assert fits(vram=24G, ram=64G, ctx=32k, ub=" in text
    assert re.search(
        r"@assert tokens_per_second\(.*bandwidth=80G, vram_bandwidth=936G, cores=16\) >= 8\n", text
    )
    checked = run("rules", "check", recipe, "-m", "GLM-4.5-Air", "--notes")
    assert "nothing to say" in checked.stdout, checked.stdout + checked.stderr


def test_fit_says_the_same(air: tuple[Path, str]) -> None:
    recipe, told = air
    done = run(
        "fit", "GLM-4.5-Air", "-r", recipe, "--cards", "3090", "--ram", "64G", *MACHINE, "-c", "32k", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["generation"]["likely"] >= 8
    assert f"speed: {found['generation']['likely']:.1f} tokens per second likely" in told
    flags = [word for word in found["command"] if word.startswith("-")]
    for flag in flags:
        assert flag in told
    # Little is left: the budget is used.
    assert all(0 <= device["left"] < GIB / 4 for device in found["devices"])


def test_what_cannot_be_met_is_said_with_how_much() -> None:
    done = run("optimize", "GLM-4.5-Air", "--vram", "24G", "--ram", "20G", *MACHINE, "-c", "32k")
    assert done.returncode == 1
    assert re.search(r"RAM is short of \d+(\.\d+)? [GM]iB: .* are needed, 16.0 GiB are there", done.stderr)
    done = run("optimize", "GLM-4.5-Air", "--vram", "8G", "--ram", "128G", *MACHINE, "-c", "32k")
    assert done.returncode == 1
    assert "CUDA0 is short of" in done.stderr
    # A way out is options of this very command.
    way = re.search(r"it would fit with (--kv-type q8_0|--ctx \d+|--ubatch \d+)", done.stderr)
    assert way is not None, done.stderr
    arguments = ["--vram", "8G", "--ram", "128G", *MACHINE, *way[1].split()]
    arguments += [] if "--ctx" in way[1] else ["-c", "32k"]
    assert run("optimize", "GLM-4.5-Air", *arguments, "-q").returncode == 0
    done = run("optimize", "Qwen3-8B", "--vram", "8G", "--ram", "16G", *MACHINE, "--min-tps", "9999")
    assert done.returncode == 1
    assert re.search(r"[\d.]+ tokens per second are likely at most, [\d.]+ below the 9999", done.stderr)


def test_a_faster_file_is_smaller_and_loses_more() -> None:
    machine = ["--cards", "3060", "--ram", "32G", *MACHINE, "-c", "8k", "--bands", "1"]
    slow = optimized("Qwen3-30B-A3B", *machine)
    likely = slow["placement"]["generation"]["likely"]
    fast = optimized("Qwen3-30B-A3B", *machine, "--min-tps", f"{1.3 * likely:.2f}")
    assert fast["placement"]["generation"]["likely"] >= 1.299 * likely
    assert fast["file_bytes"] < slow["file_bytes"]
    assert fast["damage"] > slow["damage"]
    assert fast["gap"] < 0.005


def test_several_limits_hold_together() -> None:
    answer = optimized("Qwen3-30B-A3B", "--vram", "12G", "--ram", "64G", *MACHINE, "--bpw", "5", "-c", "8k")
    assert 4.95 < answer["bits_per_weight"] <= 5
    assert answer["placement"]["fits"]
    assert "@assert bpw <= 5" in answer["recipe"]
    assert "@assert fits(vram=12G, ram=64G" in answer["recipe"]


def test_tensors_may_be_pinned_to_a_device() -> None:
    pins = ["--pin", r"blk\.1\..*_exps=CUDA0", "--bands", "1"]
    answer = optimized("Qwen3-30B-A3B", "--vram", "8G", "--ram", "24G", *MACHINE, "-c", "8k", *pins)
    assert answer["placement"]["fits"]
    assert 1 not in answer["placement"]["blocks_with_experts_in_ram"]
    assert any("conditions cannot say which tensors are pinned where" in note for note in answer["notes"])
    assert "@assert fits" not in answer["recipe"]


def test_fast_types_are_those_that_cores_decode_as_fast_as_they_read_ram() -> None:
    machine = ["--vram", "8G", "--ram", "9G", "--bandwidth", "80G", "-c", "8k", "--bands", "1"]
    plain = optimized("Qwen3-30B-A3B", *machine, "--cores", "8")
    fast = optimized("Qwen3-30B-A3B", *machine, "--cores", "8", "--fast-types")

    def of_experts(answer: dict[str, Any]) -> set[str]:
        return {t["type"] for t in answer["tensors"] if "_exps" in t["name"]}

    # Eight cores work iq3_xxs off at 48 GB/s, and read RAM at 64.
    slow = {"iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"}
    assert of_experts(plain) & slow
    assert not of_experts(fast) & slow
    done = run("optimize", "Qwen3-30B-A3B", *machine, "--fast-types", "--machine", "/dev/null")
    assert done.returncode in (1, 2)


def test_a_curve_for_a_machine_ends_with_the_best_file_for_it(tmp_path: Path) -> None:
    machine = ["--gpus", "0", "--ram", "10G", *MACHINE, "-c", "4k"]
    path = tmp_path / "curve.csv"
    done = run("optimize", "Qwen3-8B", *machine, "--pareto", "--points", "3", "-o", path)
    assert done.returncode == 0, done.stderr
    assert "Best files that fit the machine, predicted" in done.stdout
    assert "does not fit" in done.stdout
    curve = read_curve(path)
    assert all(point.tps for point in curve.points)
    assert curve.points[0].tps > curve.points[-1].tps
    best = optimized("Qwen3-8B", *machine)
    assert curve.points[-1].damage == pytest.approx(best["damage"], rel=0.005)
    assert curve.points[-1].tps == pytest.approx(best["placement"]["generation"]["likely"], rel=0.02)
    mixes = {mix.name: mix for mix in curve.mixes}
    assert mixes["Q8_0"].tps is None
    assert mixes["Q2_K"].tps is not None
    as_json = run("optimize", "Qwen3-8B", *machine, "--pareto", "--points", "2", "--json", "-q")
    assert as_json.returncode == 0, as_json.stderr
    assert json.loads(as_json.stdout)["points"][0]["tokens_per_second"] > 0
    done = run("optimize", "Qwen3-8B", "--gpus", "0", "--ram", "5G", *MACHINE, "--pareto")
    assert done.returncode == 1
    assert "RAM is short of" in done.stderr


def test_a_step_is_explained_in_tokens_per_second_too() -> None:
    machine = ["--gpus", "0", "--ram", "9G", *MACHINE, "-c", "4k"]
    found = optimized("Qwen3-8B", *machine, "--explain", "blk.7.ffn_down.weight")
    (one,) = found["explained"]
    own = next(step for step in one["steps"] if step["type"] == one["type"])
    assert own["tokens_per_second"] == 0
    smallest, largest = one["steps"][0], one["steps"][-1]
    assert smallest["tokens_per_second"] > 0
    assert largest["short"]["host"] > 0
    shown = run("optimize", "Qwen3-8B", *machine, "--explain", "blk.7.ffn_down.weight", "-q").stdout
    assert "tokens/s" in shown
    assert "short of RAM" in shown
    plain = run("optimize", "Qwen3-8B", "--bpw", "4.5", "--explain", "blk.7.ffn_down.weight", "-q").stdout
    assert "tokens/s" not in plain


def test_no_ram_at_all_is_said_to_be_impossible() -> None:
    for command in ("optimize", "fit"):
        done = run(command, "Qwen3-8B", "--vram", "24G", "--ram", "0")
        assert done.returncode == 2
        assert "always in RAM" in done.stderr
        assert "--gpu-layers 99" in done.stderr


def test_options_of_a_machine_are_never_ignored() -> None:
    done = run("optimize", "Qwen3-8B", "--vram", "8G", "--ram", "16G", "--gpus", "2")
    assert done.returncode == 2
    assert "--gpus 2: the machine has 1" in done.stderr
    done = run("optimize", "Qwen3-8B", "--vram", "8G", "--ram", "16G", "--pin", "attn=CUDA3")
    assert done.returncode == 1
    assert "there is no device CUDA3" in done.stderr


def test_costs_of_tensors_add_up_to_what_is_reckoned() -> None:
    """Bytes to the byte, seconds to the rounding; of tied embeddings too."""
    machine = ggplan.Machine((ggplan.Gpu("", 6 * GIB, 360e9),), 32 * GIB, 80e9, 8)
    for name, mix in (("Qwen3-30B-A3B", "Q4_K_M"), ("Qwen3-8B", "Q4_K_M")):
        plan = ggplan.make_plan(ggplan.open_model(name), mix)
        placement = ggplan.place(plan, machine, Wishes(8192))
        costs = TensorCosts(placement)
        sums: dict[str, int] = {}
        for tensor in header_of(plan).tensors:
            for device, n_bytes in costs.bytes_on(tensor).items():
                sums[device] = sums.get(device, 0) + n_bytes
        assert [sums.get(d.name, 0) for d in placement.reckoning.devices] == [
            d.weights for d in placement.reckoning.devices
        ]
        weights = sum(costs.seconds(tensor) for tensor in header_of(plan).tensors)
        of_weights = ("RAM", "CUDA0")
        reckoned = sum(placement.generation.seconds.get(cause, 0.0) for cause in of_weights)
        assert weights == pytest.approx(reckoned, rel=1e-9)
