"""`ggplan fit --compare`: one table of what-ifs, each as `ggplan fit` alone says it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

import ggplan
from ggplan.cli import cli
from ggplan.errors import PlanError
from ggplan.ggml_types import parse_type
from ggplan.inventories import inventory
from ggplan.offload.comparing import members, with_part_in
from ggplan.offload.header import header_of

MACHINE = ("--cards", "3090", "--ram", "128G", "--bandwidth", "80G", "--cores", "16")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["fit", *arguments])


def variants(*arguments: str) -> list[dict[str, object]]:
    found = run(*arguments, "--compare", "--json", "-q", *MACHINE)
    assert found.exception is None or found.exit_code == 1
    return list(json.loads(found.stdout)["variants"])


def test_recipes_and_contexts_are_combined_and_say_what_fit_says() -> None:
    found = variants("GLM-4.5-Air", "-r", "Q8_0", "-r", "glm4moe/hq4_k", "-c", "8k,128k", "--kv-type", "q8_0")
    labels = [row["variant"] for row in found]
    assert labels == [
        {"recipe": recipe, "context": context}
        for recipe in ("Q8_0", "glm4moe/hq4_k")
        for context in ("8,192", "131,072")
    ]
    alone = run(
        "GLM-4.5-Air", "-r", "glm4moe/hq4_k", "-c", "128k", "--kv-type", "q8_0", "--json", "-q", *MACHINE
    )
    told = json.loads(alone.stdout)
    for key in ("devices", "generation", "generation_full_context", "prompt", "fits", "shortages", "notes"):
        assert found[3][key] == told[key]
    assert {row["cache_k"] for row in found} == {"q8_0"}


def test_types_of_a_part() -> None:
    words = ["experts.down", "down_exps", "ffn_down_exps"]
    tables = [variants("GLM-4.5-Air", "-r", "Q8_0", "--role", f"{w}=q8_0,q5_0,q4_K") for w in words]
    sizes = [[row["tensor_bytes"] for row in table] for table in tables]
    assert sizes[0] == sizes[1] == sizes[2]
    weights = sum(t.n_weights for t in inventory("GLM-4.5-Air").tensors if ".ffn_down_exps.weight" in t.name)
    q8_0, q5_0, q4_k = (int(str(n)) for n in sizes[0])
    assert q8_0 - q5_0 == weights * (34 - 22) // 32
    assert q4_k == q5_0  # 256 does not divide rows of 1408: llama-quantize's fallback
    assert [row["variant"] for row in tables[0]] == [
        {"experts.down": "q8_0"}, {"experts.down": "q5_0"}, {"experts.down": "q4_K"}
    ]  # fmt: skip
    speeds = [row["generation"]["likely"] for row in tables[0]]  # type: ignore[index]
    assert speeds[0] < speeds[1]


def test_a_fallback_is_noted_once() -> None:
    arguments = (
        "GLM-4.5-Air",
        "-r",
        "Q8_0",
        "--compare",
        "--role",
        "down_exps=q4_K",
        "-c",
        "8k,16k",
        *MACHINE,
    )
    output = run(*arguments).stderr
    assert output.count("tensors of down_exps have rows of 1408, which q4_K does not divide: q5_0") == 1
    assert output.count("an inventory: ") == 1


def test_the_table() -> None:
    found = run("GLM-4.5-Air", "--compare", "-r", "Q8_0", "-c", "32k", "-c", "128k", *MACHINE)
    assert found.exit_code == 0
    lines = [line.split() for line in found.stdout.splitlines() if line.strip()]
    assert lines[1][:2] == ["context", "size"]
    assert "likely" in lines[1]
    assert lines[3][0] == "32,768"
    assert lines[3][-1] == "fits"
    assert " ".join(lines[4][-3:]) == "does not fit"
    assert any(cell.startswith("-") and cell[1].isdigit() for cell in lines[4])


def test_none_fits_exits_1() -> None:
    found = run(
        "GLM-4.5-Air", "--compare", "-r", "Q8_0", "-r", "bf16.recipe", "--vram", "24G", "--ram", "32G"
    )
    assert found.exit_code == 1  # bf16.recipe is no file
    found = run("GLM-4.5-Air", "--compare", "-r", "Q8_0", "-c", "8k,16k", "--vram", "24G", "--ram", "32G")
    assert found.exit_code == 1
    assert found.stdout.count("does not fit") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a.gguf", "b.gguf"), "FILE has 2 values; --compare compares them"),
        (("a.gguf", "-r", "Q8_0", "-r", "Q4_K_M"), "-r has 2 values"),
        (("a.gguf", "-c", "8k,16k"), "--ctx has 2 values"),
        (("a.gguf", "--role", "attention=q8_0"), "--role belongs to --compare"),
        (("a.gguf", "--compare", "--command", "llama-server"), "--compare goes with none of --command"),
        (("a.gguf", "--compare", "--output", "sh"), "--compare goes with none of"),
        (("GLM-4.5-Air", "-r", "Q8_0", "--compare", "--role", "attention"), "write PART=TYPE,TYPE"),
        (("GLM-4.5-Air", "-r", "Q8_0", "--compare", "--role", "attention=q9"), "q9"),
        (
            ("a.gguf", "--compare", "-c", ",".join(["8k"] * 65)),
            "these are 65 combinations; 64 can be compared",
        ),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    found = run(*arguments, "--ram", "64G", "--vram", "24G")
    assert found.exit_code == 2
    assert said in found.output


def test_parts_are_roles_or_names_and_others_are_refused_with_the_nearest() -> None:
    header = header_of(ggplan.make_plan(inventory("GLM-4.5-Air"), "Q8_0"))
    assert len(members(header, "attn_q")) == 47
    assert members(header, "experts") >= members(header, "ffn_down_exps") == members(header, "experts.down")
    with pytest.raises(PlanError, match="no matrices of ffn_donw_exps") as caught:
        members(header, "ffn_donw_exps")
    assert caught.value.hint == "the nearest is ffn_down_exps"
    changed, notes = with_part_in(header, "attention", parse_type("q6_K"))
    assert not notes
    types = {t.type.name for t in changed.tensors if ".attn_q.weight" in t.name}
    assert types == {"q6_K"}
    untouched = [t for t in changed.tensors if "attn" not in t.name]
    assert untouched == [t for t in header.tensors if "attn" not in t.name]
