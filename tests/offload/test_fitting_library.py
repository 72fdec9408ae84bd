"""Fitting through the library's front: `ggplan.place`, `ggplan.reckon`, and the chart of placements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import ggplan
from ggplan.charts import draw_fit
from ggplan.cli import cli
from ggplan.errors import ChartError, CommandError

GIB = 1 << 30
MACHINE = ggplan.Machine((ggplan.Gpu("", 24 * GIB),), ram=128 * GIB, bandwidth=80e9)
OPTIONS = ("--vram", "24G", "--ram", "128G", "--bandwidth", "80G")


def plan(recipe: str = "Q8_0") -> ggplan.Plan:
    return ggplan.make_plan(ggplan.open_model("GLM-4.5-Air"), recipe)


def test_place_says_what_fit_says() -> None:
    placement = ggplan.place(plan(), MACHINE, ggplan.Wishes(context=16384))
    found = CliRunner().invoke(
        cli, ["fit", "GLM-4.5-Air", "-r", "Q8_0", "-c", "16k", "--json", "-q", *OPTIONS]
    )
    told = json.loads(found.stdout)
    assert placement.fits is told["fits"] is True
    assert [d.weights for d in placement.reckoning.devices] == [d["weights"] for d in told["devices"]]
    assert placement.generation.likely == told["generation"]["likely"]


def test_reckon_reads_a_command_line() -> None:
    line = "llama-server -ngl 99 -ncmoe 40 -c 32768"
    reckoning = ggplan.reckon(plan(), line, gpus=1)
    found = CliRunner().invoke(
        cli, ["fit", "GLM-4.5-Air", "-r", "Q8_0", "--command", line, "--gpus", "1", "--json", "-q"]
    )
    told = json.loads(found.stdout)["devices"]
    assert [(d.name, d.weights, d.context, d.compute) for d in reckoning.devices] == [
        (d["name"], d["weights"], d["context"], d["compute"]) for d in told
    ]
    with pytest.raises(CommandError):
        ggplan.reckon(plan(), "llama-server --no-such-option")


def test_what_is_no_model_is_refused() -> None:
    for call in (
        lambda: ggplan.place("air.gguf", MACHINE),
        lambda: ggplan.reckon("air.gguf", "llama-server"),
    ):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"'air\.gguf' is not a plan or a model; ggplan\.open_model"):
            call()


def test_a_chart_has_every_part_with_its_size_and_the_speeds() -> None:
    placements = {
        "large": ggplan.place(plan(), MACHINE, ggplan.Wishes(context=32768)),
        "small": ggplan.place(plan("glm4moe/hq4_k"), MACHINE, ggplan.Wishes(context=32768)),
        "over": ggplan.place(plan(), MACHINE, ggplan.Wishes(context=131072)),
    }
    drawing = draw_fit(placements)
    assert drawing.title == "GLM-4.5-Air: does it fit, how fast is it"
    tips = list(drawing.titles.values())
    for name, placement in placements.items():
        gpu = placement.reckoning.devices[0]
        assert any(tip.startswith(f"{name}, CUDA0: weights") for tip in tips)
        assert any(tip.startswith(f"{name}, RAM: margin 4.00 GiB") for tip in tips)
        assert (gpu.total > 23 * GIB) is (name == "over")
    likely = placements["small"].generation.likely
    assert any(tip.startswith(f"small: {likely:.1f} t/s in an empty context") for tip in tips)
    assert not any(tip.startswith("over: ") for tip in tips)
    assert "Without a speed, as it does not fit: over." in drawing.description
    assert "RAM 128 GiB at 80 GB/s" in drawing.description
    svg = drawing.to_svg()
    assert svg == draw_fit(placements).to_svg()
    assert "GiB short" in svg
    assert "prefers-color-scheme: dark" in svg


def test_speeds_fall_with_depth_and_end_where_fit_says() -> None:
    from ggplan.offload.comparing import rates_by_depth

    placement = ggplan.place(plan(), MACHINE, ggplan.Wishes(context=32768))
    rates = [rate.likely for rate in rates_by_depth(placement, (0, 8192, 16384, 32768))]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == placement.generation.likely
    assert rates[-1] == placement.generation_full.likely


def test_placements_of_two_machines_are_not_drawn_together() -> None:
    other = ggplan.Machine((), ram=128 * GIB)
    one, two = ggplan.place(plan(), MACHINE), ggplan.place(plan(), other)
    with pytest.raises(ChartError, match="on different machines"):
        draw_fit({"a": one, "b": two})
    with pytest.raises(ChartError, match="from 1 to 8"):
        draw_fit({})
    assert "CUDA0" not in draw_fit(two).to_svg()


@pytest.mark.parametrize("suffix", [".svg", ".png", ".html"])
def test_the_command_draws(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"fit{suffix}"
    arguments = ["chart", "GLM-4.5-Air", "-r", "Q8_0", "-r", "glm4moe/hq4_k", "--kind", "fit", "-c", "32k"]
    found = CliRunner().invoke(cli, [*arguments, "-o", str(output), *OPTIONS, "--theme", "light"])
    assert found.exit_code == 0, found.output
    assert output.stat().st_size > 5000
    if suffix != ".png":
        assert "glm4moe/hq4_k" in output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["GLM-4.5-Air", "--kind", "types", "--vram", "24G"], "--vram belongs to --kind fit"),
        (["GLM-4.5-Air", "--kind", "fit", "--metric", "kld"], "--metric belongs to --kind quality"),
        (["GLM-4.5-Air", "--kind", "parts", "--kv-type", "q8_0"], "--kv-type belongs to --kind fit"),
    ],
)
def test_options_of_other_kinds_are_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(cli, ["chart", *arguments, "-o", str(tmp_path / "x.svg")])
    assert found.exit_code == 2
    assert said in found.output


def test_a_log_is_no_model(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("quant,size,kld\nQ8_0,24 GiB,0.01\n")
    found = CliRunner().invoke(
        cli, ["chart", str(log), "--kind", "fit", "-o", str(tmp_path / "x.svg"), *OPTIONS]
    )
    assert isinstance(found.exception, ChartError)
    assert "a.csv is no model" in str(found.exception)
