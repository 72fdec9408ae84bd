"""`@assert fits(...)` and `@assert tokens_per_second`, in every command that obeys assertions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ggplan.cli import cli

BIG = "RAM is short of"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def recipe(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "a.recipe"
    path.write_text("\n".join(["@default q8_0", *(f"@assert {line}" for line in lines), ""]))
    return str(path)


def outcomes(tmp_path: Path, *lines: str, model: str = "GLM-4.5-Air") -> list[dict[str, object]]:
    found = run("rules", "test", recipe(tmp_path, *lines), "-m", model, "--json")
    return list(json.loads(found.output)["recipes"][0]["outcomes"])


def test_fits_says_what_fit_says(tmp_path: Path) -> None:
    one, two, three = outcomes(
        tmp_path,
        "fits(vram=24G, ram=128G, ctx=32k)",
        "fits(vram=24G, ram=64G, ctx=32k)",
        "fits(vram=24G+12G, ram=128G, ctx=32k, kv=q8_0, ub=512, slots=2)",
    )
    assert (one["holds"], two["holds"], three["holds"]) == (True, False, True)
    options = [
        ["--vram", "24G", "--ram", "128G"],
        ["--vram", "24G", "--ram", "64G"],
        ["--vram", "24G,12G", "--ram", "128G", "--kv-type", "q8_0", "--ubatch", "512", "--slots", "2"],
    ]
    common = ["fit", "GLM-4.5-Air", "-r", recipe(tmp_path), "-c", "32k", "--json", "-q", "--bandwidth", "80G"]
    for outcome, own in zip((one, two, three), options, strict=True):
        fitted = json.loads(run(*common, *own).output)
        assert fitted["fits"] is outcome["holds"]
        for shortage in fitted["shortages"]:
            assert f"short of {shortage['short'] / 2**30:.1f} GiB" in str(outcome["actual"])


def test_what_would_fit_is_offered_and_does(tmp_path: Path) -> None:
    found = run("rules", "check", recipe(tmp_path, "fits(vram=12G, ram=64G, ctx=128k)"), "-m", "GLM-4.5-Air")
    assert found.exit_code == 1
    assert "CUDA0 is short of" in found.output
    assert BIG in found.output
    instead = re.search(r"write `@assert (fits\(.*?\))`", found.output)
    assert instead is not None
    assert outcomes(tmp_path, instead[1])[0]["holds"] is True


def test_speed_is_that_under_the_plan(tmp_path: Path) -> None:
    plan = json.loads(run("plan", "GLM-4.5-Air", "-r", recipe(tmp_path), "--json").output)
    likely = plan["speed"]["tokens_per_second"]["likely"]
    low, high = f"tokens_per_second >= {likely - 0.01:.4f}", f"tokens_per_second >= {likely + 0.01:.4f}"
    held, broken = outcomes(tmp_path, low, high)
    assert (held["holds"], broken["holds"]) == (True, False)
    assert str(held["actual"]).startswith(f"{likely:.2f} (from ")


@pytest.mark.parametrize("home", ['[[gpu]]\nmemory = "8GiB"\n', 'bandwidth = "400GB/s"\nram = "8GiB"\n'])
def test_a_recipe_means_the_same_on_every_machine(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("tokens_per_second >= 5", "tokens_per_second(bandwidth=40G) >= 6", "fits(ram=128G)")
    before = outcomes(tmp_path, *lines)
    (tmp_path / "ggplan").mkdir()
    (tmp_path / "ggplan" / "machine.toml").write_text(home)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert outcomes(tmp_path, *lines) == before
    assert [outcome["holds"] for outcome in before] == [True, False, True]


def test_bandwidth_cores_and_placement_count(tmp_path: Path) -> None:
    lines = [
        "tokens_per_second(bandwidth=40G) >= 1",
        "tokens_per_second(bandwidth=80G) >= 1",
        "tokens_per_second(bandwidth=80G, vram=24G, ram=128G) >= 1",
        "tokens_per_second(bandwidth=80G, cores=2) >= 1",
        "tokens_per_second(bandwidth=80G, vram_bandwidth=300G) >= 1",
    ]
    slow, plain, placed, few, gpu = (
        float(str(outcome["actual"]).partition(" ")[0]) for outcome in outcomes(tmp_path, *lines)
    )
    assert slow < 0.6 * plain
    assert plain < placed
    assert few < plain
    assert gpu < plain


def test_what_does_not_fit_has_no_speed(tmp_path: Path) -> None:
    found = run(
        "rules", "check", recipe(tmp_path, "tokens_per_second(vram=24G, ram=64G) > 1"), "-m", "GLM-4.5-Air"
    )
    assert found.exit_code == 1
    assert "it is 0, as it does not fit: RAM is short of" in found.output


def test_a_speed_that_is_nearly_enough_has_all_its_digits(tmp_path: Path) -> None:
    (outcome,) = outcomes(tmp_path, "tokens_per_second >= 1")
    plan = json.loads(run("plan", "GLM-4.5-Air", "-r", recipe(tmp_path), "--json").output)
    likely = plan["speed"]["tokens_per_second"]["likely"]
    just_more = recipe(tmp_path, f"tokens_per_second >= {likely + 1e-6:.9f}")
    found = run("rules", "check", just_more, "-m", "GLM-4.5-Air")
    shown = re.search(r"it is ([\d.]+) \(", found.output)
    assert shown is not None
    assert float(shown[1]) < likely + 1e-6
    assert str(outcome["actual"]).startswith(f"{likely:.2f}")


def test_a_cache_that_no_engine_has_is_told(tmp_path: Path) -> None:
    found = run("rules", "check", recipe(tmp_path, "fits(vram=24G, kv=q4_K)"), "-m", "GLM-4.5-Air")
    assert found.exit_code == 1
    assert "cannot be told: kv=q4_K is no type of a KV cache" in found.output


def test_plan_and_convert_obey(tmp_path: Path) -> None:
    import ggplan

    model = Path(ggplan.__file__).parent / "demo_model"
    broken = recipe(tmp_path, "fits(ram=4G)")
    planned = run("plan", str(model), "-r", broken)
    assert planned.exit_code == 0
    assert "error[GP301]: fits(ram=4G) does not hold: RAM is short of" in planned.output
    output = tmp_path / "out.gguf"
    refused = run("convert", str(model), "--pre", "default", "-r", broken, str(output))
    assert refused.exit_code == 1
    assert not output.exists()
    held = recipe(tmp_path, "fits(ram=6G)", "tokens_per_second > 1")
    assert run("convert", str(model), "--pre", "default", "-r", held, str(output)).exit_code == 0
    assert output.exists()
