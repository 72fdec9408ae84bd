"""The three lines under every plan, and the speeds of `ggplan rules list`."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ggplan
from ggplan.cli import cli
from ggplan.inventories import inventory
from ggplan.offload.completing import completed
from ggplan.offload.header import header_of
from ggplan.offload.placement import Wishes
from ggplan.offload.placing import place
from ggplan.offload.settings import Override
from ggplan.offload.usual import example, usual_rate, usual_reads
from ggplan.planning import in_memory
from ggplan.rules.library import library


def run(*arguments: str, home: Path | None = None) -> Result:
    environment = {"XDG_CONFIG_HOME": str(home or Path("/nowhere"))}
    return CliRunner().invoke(cli, list(arguments), env=environment)


def speed_line(output: str) -> str:
    (line,) = re.findall(r"^.* read per token: .*(?:\n    .*)*", output, re.MULTILINE)
    return " ".join(line.split())


def with_machine(folder: Path, text: str) -> Path:
    (folder / "ggplan").mkdir()
    (folder / "ggplan" / "machine.toml").write_text(text)
    return folder


def test_the_bandwidth_is_said_and_counts(tmp_path: Path) -> None:
    arguments = ("plan", "GLM-4.5-Air", "-r", "glm4moe/hq4_k")
    line = speed_line(run(*arguments).output)
    found = re.fullmatch(
        r"4\.23 GiB of RAM read per token: ([\d.]+) to ([\d.]+) tokens per second at 80 GB/s "
        r"\(GPU 936 GB/s\), an example: `ggplan machine --write` keeps yours",
        line,
    )
    assert found is not None
    told = json.loads(run(*arguments, "--json", "-q").stdout)["speed"]
    assert told["machine"] == "example"
    assert (told["ram_bandwidth"], told["gpu_bandwidth"]) == (80e9, 936e9)
    rate = told["tokens_per_second"]
    assert (f"{rate['low']:.1f}", f"{rate['high']:.1f}") == found.groups()
    home = with_machine(tmp_path, 'bandwidth = "400GB/s"\n[[gpu]]\nname = "x"\nmemory = "24GiB"\n')
    line = speed_line(run(*arguments, home=home).output)
    assert f"tokens per second at 400 GB/s (GPU 936 GB/s), of {home}/ggplan/machine.toml" in line
    mine = json.loads(run(*arguments, "--json", home=home).stdout)["speed"]
    assert mine["tokens_per_second"]["likely"] > 1.5 * rate["likely"]
    assert mine["machine"] == f"{home}/ggplan/machine.toml"


@pytest.mark.parametrize(
    ("text", "why"), [("bandwidht = 1\n", "bandwidht"), ('ram = "64GiB"\n', "it has no bandwidth of RAM")]
)
def test_a_machine_that_cannot_be_used_is_told_and_the_example_taken(
    text: str, why: str, tmp_path: Path
) -> None:
    home = with_machine(tmp_path, text)
    for arguments in (("plan", "GLM-4.5-Air", "-r", "Q8_0"), ("rules", "list", "GLM-4.5-Air")):
        found = run(*arguments, home=home)
        assert found.exit_code == 0
        assert "machine.toml is not used: " in found.output
        assert why in found.output
        assert "at 80 GB/s" in found.output
        assert "is not used" not in run(*arguments, "-q", home=home).output


def test_ram_is_that_of_size_cpu_and_the_speed_of_the_same_bytes() -> None:
    for model, recipe in (("GLM-4.5-Air", "glm4moe/hq4_k"), ("Qwen3-30B-A3B", "qwen3moe/small")):
        plan = ggplan.make_plan(inventory(model), recipe)
        memory = in_memory(plan)
        reads = usual_reads(header_of(plan))
        assert memory.ram_per_token is not None
        assert reads.host.weight_bytes == pytest.approx(memory.ram_per_token, rel=1e-4)


def test_a_placement_with_all_experts_in_ram_is_as_fast() -> None:
    """The speed under a plan is that of `fit` on a GPU that has no room for experts."""
    header = completed(header_of(ggplan.make_plan(inventory("Qwen3-235B-A22B"), "Q8_0")))
    machine = example()
    settings = Wishes(context=32768, micro_batch=2048, pins=(Override("_exps", "CPU"),))
    placed = place(header, machine, settings)
    assert len(placed.in_ram) == 94
    assert usual_rate(header, machine).likely == pytest.approx(placed.generation.likely, rel=1e-6)


def test_the_list_says_what_plans_say() -> None:
    listed = {e["name"]: e for e in json.loads(run("rules", "list", "gpt-oss", "--json").output)["recipes"]}
    for entry in (e for e in library() if e.family == "gpt-oss"):
        for told in listed[entry.name]["models"]:
            plan = json.loads(run("plan", told["model"], "-r", entry.name, "--json").output)
            likely = plan["speed"]["tokens_per_second"]["likely"]
            # Sizes in a recipe's head have three digits, and GPUs one behind the point.
            assert told["tokens_per_second"]["likely"] == pytest.approx(likely, rel=0.02)


def test_the_list_has_the_bandwidths_below_and_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = run("rules", "list", "GLM-4.5-Air").output
    assert "tok/s" in output
    assert "tok/s at 80 GB/s (GPU 936 GB/s), an example" in output
    assert max(map(len, output.splitlines())) <= 80


def bare_map(folder: Path, tensors: list[str]) -> Path:
    """An inventory of names and shapes alone."""
    lines = []
    for tensor in tensors:
        name, rows, columns = re.fullmatch(r"(\S+) \((\d+), (\d+)\)", tensor).groups()  # type: ignore[union-attr]
        n = int(rows) * int(columns)
        shape = f"shape=({rows}, {columns}):dtype=f16:elements={n}:bytes={2 * n}"
        lines.append(f"x.gguf:{'ab' * 32}:{name}:{shape}\n")
    path = folder / "bare.map"
    path.write_text("".join(lines))
    return path


def test_a_dense_model_reads_the_gpu() -> None:
    output = run("plan", "Llama-3.1-8B", "-r", "Q8_0").output
    gpu = re.search(r"^GPU ([\d.]+ GiB): all else$", output, re.MULTILINE)
    assert gpu is not None
    assert speed_line(output).startswith(f"{gpu[1]} of GPU memory read per token: ")
    assert re.search(r"^RAM [\d.]+ (MiB|GiB): lookup tables$", output, re.MULTILINE)


def test_a_model_that_cannot_be_reckoned_says_why(tmp_path: Path) -> None:
    """An inventory of bare names has no sizes of heads."""
    path = bare_map(tmp_path, ["token_embd.weight (100, 256)", "blk.0.attn_q.weight (256, 256)"])
    found = run("plan", str(path))
    assert found.exit_code == 0, found.output
    assert "tokens per second are not known, " in found.output
    told = json.loads(run("plan", str(path), "--json", "-q").stdout)["speed"]
    assert told["tokens_per_second"] is None
    assert told["why"]


def test_a_plan_with_its_speed_of_1800_tensors_takes_half_a_second() -> None:
    plan = ggplan.make_plan(inventory("GLM-4.6"), "glm4moe/hq4_k")
    assert len(plan.tensors) > 1700
    machine = example()
    usual_rate(header_of(plan), machine)  # patterns are compiled once
    before = time.process_time()
    plan = ggplan.make_plan(inventory("GLM-4.6"), "glm4moe/hq4_k")
    usual_rate(header_of(plan), machine)
    assert time.process_time() - before < 0.5
