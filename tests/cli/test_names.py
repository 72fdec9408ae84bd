"""One resolver of names, one set of options, one meaning of exit codes, in every command."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import click
import gguf
import numpy as np
import pytest

import ggplan
from ggplan.cli import cli, main
from ggplan.errors import CheckpointError, RecipeError
from ggplan.naming import PlanDocument, anything_named, kind_named, other_meaning
from ggplan.rules import Recipe
from ggplan.stock import Mix

SHA = "ab" * 32
MAP = "\n".join(
    f"m.gguf:{SHA}:{name}:shape=({dims}):dtype=bf16:elements={n}:bytes={2 * n}:imatrix={SHA}"
    for name, dims, n in (
        ("token_embd.weight", "256, 100", 25600),
        ("output.weight", "256, 100", 25600),
        ("blk.0.ffn_down.weight", "352, 256", 90112),
    )
)
RECIPE = "@arch llama\nffn = q6_K\n@default q8_0\n"


@dataclass(frozen=True, slots=True)
class Done:
    """How the program ended."""

    code: int
    out: str
    err: str


def run(*arguments: str | Path, stdin: str = "", folder: Path | None = None, columns: int = 140) -> Done:
    """Run the whole program in this process."""
    given, out, err = (io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8") for text in (stdin, "", ""))
    code: object = 0
    with (
        mock.patch.multiple(sys, argv=["ggplan", *map(str, arguments)], stdin=given, stdout=out, stderr=err),
        mock.patch.dict(os.environ, {"COLUMNS": str(columns)}),
        contextlib.chdir(folder or "."),
    ):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code or 0
        out.flush(), err.flush()
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    assert isinstance(code, int)
    return Done(code, *texts)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a map, a recipe and a GGUF file, and nothing called as a shipped model."""
    (tmp_path / "my.map").write_text(MAP)
    (tmp_path / "my.recipe").write_text(RECIPE)
    (tmp_path / "promise.recipe").write_text("@arch llama\n@default q8_0\n@assert bpw <= 2\n")
    writer = gguf.GGUFWriter(tmp_path / "my.gguf", "llama")
    for name in ("token_embd.weight", "blk.0.attn_q.weight"):
        writer.add_tensor(name, np.random.default_rng(0).standard_normal((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command, as one types it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield (*path, name)


def command_of(path: tuple[str, ...]) -> click.Command:
    found: click.Command = cli
    for name in path:
        assert isinstance(found, click.Group)
        following = found.get_command(click.Context(found), name)
        assert following is not None
        found = following
    return found


NO_FOLDER = "error: no folder ./GLM-4.5-Air; the name is also a shipped inventory, without weights\n"


@pytest.mark.parametrize(
    "command",
    [
        "convert GLM-4.5-Air out.gguf -r my.recipe",
        "verify GLM-4.5-Air",
        "verify my.gguf --against GLM-4.5-Air",
        "reproduce GLM-4.5-Air my.map",
        "reproduce my.gguf GLM-4.5-Air",
        "measure GLM-4.5-Air --text my.recipe",
        "measure my.gguf --base GLM-4.5-Air --text my.recipe",
    ],
)
def test_a_name_without_weights_is_refused_where_they_are_needed(here: Path, command: str) -> None:
    done = run(*command.split(), folder=here)
    assert done.code == 1
    assert done.err.startswith(NO_FOLDER), done.err
    assert "\nhelp: " in done.err
    assert not (here / "out.gguf").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "plan GLM-4.5-Air -r GLM-4.6",
            "GLM-4.6 is a model, the shipped inventory of this name, not a recipe",
        ),
        ("plan glm4moe/hq4_k", "glm4moe/hq4_k is a recipe that ships with ggplan, not a model"),
        ("inspect Q4_K_M", "Q4_K_M is one of llama-quantize's mixes, not a model"),
        ("verify Q4_K_M", "Q4_K_M is one of llama-quantize's mixes, not a model"),
        ("measure glm4moe/hq4_k --text x", "glm4moe/hq4_k is a recipe that ships with ggplan, not a model"),
        ("rules check Q4_K_M", "Q4_K_M is one of llama-quantize's mixes, not a recipe"),
        ("rules check GLM-4.6", "GLM-4.6 is a model, the shipped inventory of this name, not a recipe"),
        ("rules test Q4_K_M -m GLM-4.6", "Q4_K_M is one of llama-quantize's mixes, not a recipe"),
        ("rules explain a -r q4_k_m", "q4_k_m is one of llama-quantize's mixes, not a recipe"),
        ("rules export GLM-4.6 --dialect thireus", "GLM-4.6 is a model"),
        ("rules new -m moe-offload", "moe-offload is a recipe that ships with ggplan, not a model"),
        ("rules from Q8_0", "Q8_0 is one of llama-quantize's mixes, not a model"),
        ("chart Q8_0 --kind types -o a.svg", "Q8_0 is one of llama-quantize's mixes, not a model"),
        ("inspect GLM-4.5-Aire", "GLM-4.5-Aire does not exist"),
        ("inspect zai-org/GLM-4.5-Air", "zai-org/GLM-4.5-Air does not exist"),
    ],
)
def test_a_name_of_another_kind_is_refused_by_what_it_is(here: Path, command: str, said: str) -> None:
    done = run(*command.split(), folder=here)
    assert done.code == 1
    assert done.err.startswith(f"error: {said}"), done.err
    assert "\nhelp: " in done.err


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        ("inspect GLM-4.5-Aire", "GLM-4.5-Air"),
        ("inspect model.gguf", "modell.gguf"),
        ("diff Q4_K_Z Q8_0 -m my.map", "Q4_K_S"),
        ("plan my.map -r promises.recipe", "promise.recipe"),
        ("plan my.map -r my", "my.recipe"),
    ],
)
def test_the_nearest_name_is_told(here: Path, command: str, nearest: str) -> None:
    (here / "modell.gguf").touch()
    done = run(*command.split(), folder=here)
    assert done.code in (1, 2)
    assert nearest in done.err


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("plan - -r my.recipe", MAP),
        ("plan my.map -r -", RECIPE),
        ("inspect -", MAP),
        ("rules explain output.weight -r - -m my.map", RECIPE),
        ("rules explain output.weight -r my.recipe -m -", MAP),
        ("rules test - -m my.map", RECIPE),
        ("rules export - --dialect thireus -m my.map", RECIPE),
        ("rules from -", MAP),
        ("rules new -m -", MAP),
        ("rules import - --dialect llama-quantize", "output=q8_0\n"),
        ("rules fmt -", RECIPE),
        ("rules check - -m my.map", "ffn = q8_0\n@default q8_0\n"),
    ],
)
def test_standard_input_is_read_for_a_name(here: Path, command: str, given: str) -> None:
    done = run(*command.split(), stdin=given, folder=here)
    assert done.code == 0 or command.startswith("rules check"), done.err
    assert done.out
    assert "Traceback" not in done.err
    assert "bug" not in done.err
    empty = run(*command.split(), folder=here)
    assert empty.code == 1
    assert "standard input" in empty.err


def test_diff_reads_either_side_from_standard_input(here: Path) -> None:
    same = run("diff", "-", "my.recipe", "-m", "my.map", stdin=RECIPE, folder=here)
    assert same.code == 0, same.err
    plan = run("plan", "my.map", "-r", "my.recipe", "--json", folder=here).out
    for given in (plan, MAP):
        done = run("diff", "my.recipe", "-", "-m", "my.map", stdin=given, folder=here)
        assert done.code == (0 if given == plan else 1), done.err
    assert run("diff", "-", "my.map", stdin="\xff\0", folder=here).code == 2


def test_a_file_called_as_something_that_ships_is_read_and_it_is_said(here: Path) -> None:
    (here / "Q4_K_M").write_text(RECIPE)
    (here / "glm4moe").mkdir()
    (here / "glm4moe" / "hq4_k").write_text(RECIPE)
    commands = (
        "plan my.map -r NAME",
        "diff NAME Q8_0 -m my.map",
        "rules test NAME -m my.map",
        "rules check NAME -m my.map",
        "rules explain output.weight -r NAME -m my.map",
        "rules export NAME -m my.map --dialect thireus",
    )
    for name, kind in (("Q4_K_M", "one of llama-quantize's mixes"), ("glm4moe/hq4_k", "a recipe that ships")):
        for command in (command.replace("NAME", name).split() for command in commands):
            done = run(*command, folder=here)
            notes = [line for line in done.err.splitlines() if f"note: {name} is a file here" in line]
            assert len(notes) == 1, done.err
            assert kind in notes[0]
            assert "note:" not in run(*command, "-q", folder=here).err


def test_the_library_resolves_as_the_command_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    assert ggplan.open_model("glm-4.5-air").architecture == "glm4moe"
    assert ggplan.open_model("my.map").kind == "inventory"
    with pytest.raises(CheckpointError, match=r"^no folder \./GLM-4\.5-Air; the name is also a"):
        ggplan.open_model(Path("GLM-4.5-Air"))
    with pytest.raises(CheckpointError, match=r"my\.map is an inventory: names and shapes without weights"):
        ggplan.open_model("my.map", weights=True)
    assert isinstance(anything_named("Q4_K_M"), Mix)
    assert isinstance(anything_named("glm4moe/hq4_k"), Recipe)
    assert isinstance(anything_named("my.recipe"), Recipe)
    (here / "plan.json").write_text(json.dumps({"schema": "ggplan/plan@1", "tensors": []}))
    assert isinstance(anything_named("plan.json"), PlanDocument)
    (here / "rules").write_text(RECIPE)  # by what is in it, not by its ending
    assert isinstance(anything_named("rules"), Recipe)
    (here / "tensors.txt").write_text(MAP)
    assert anything_named("tensors.txt").kind == "inventory"  # type: ignore[union-attr]
    assert other_meaning("GLM-4.5-Air") == other_meaning("my.map") == ""


SPELLED = {
    "as_json": ["--json"],
    "quiet": ["-q", "--quiet"],
    "force": ["--force"],
    "model_name": ["-m", "--model"],
    "recipe_name": ["-r", "--recipe"],
    "imatrix_path": ["--imatrix"],
    "fallback": ["--fallback"],
    "pre": ["--pre"],
    "threads": ["-t", "--threads"],
    "output": ["-o", "--output"],
}
TEXTS = {("rules", name) for name in ("new", "from", "import", "export")} | {("plan",), ("reproduce",)}


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_options_are_spelled_and_explained_alike(path: tuple[str, ...]) -> None:
    options = {p.name: p for p in command_of(path).params if isinstance(p, click.Option) and not p.hidden}
    for name, option in options.items():
        if name == "model_name" and path in (("measure",), ("chart",)):  # the name of a model in a record
            continue
        assert name not in SPELLED or option.opts == SPELLED[name]
    if path in TEXTS:
        assert {"output", "force", "quiet"} <= set(options)
    assert "quiet" in options
    if path in (("chart",), ("demo",)):
        assert "force" in options
    if path[0] == "rules" and path[-1] in ("check", "explain", "test", "export"):
        assert {"fallback", "model_name"} <= set(options)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_says_what_the_exit_codes_mean_and_wrong_usage_is_2(path: tuple[str, ...]) -> None:
    said = " ".join(run(*path, "--help").out.split())
    assert "Exits 0" in said or "Exit codes: 0" in said
    assert "2 for wrong usage" in said or "2 wrong usage" in said
    done = run(*path, "--no-such-option")
    assert done.code == 2
    assert "error: No such option" in done.err
    assert "Error:" not in done.err


CODES = [
    (0, "plan my.map -r my.recipe"),
    (1, "plan my.map -r no.recipe"),
    (1, "plan my.map -r my.recipe --strict"),
    (0, "convert my.gguf out.gguf -r Q8_0"),
    (1, "convert my.gguf out.gguf -r no.recipe"),
    (1, "convert my.gguf my.gguf -r Q8_0"),
    (0, "inspect my.map"),
    (1, "inspect no.map"),
    (0, "verify my.gguf"),
    (1, "verify my.map"),
    (1, "reproduce my.gguf no-folder"),
    (2, "reproduce my.gguf my.gguf"),
    (0, "diff Q8_0 Q8_0 -m my.map"),
    (1, "diff Q8_0 Q4_0 -m my.map"),
    (2, "diff Q8_0 no.recipe -m my.map"),
    (1, "measure no.gguf --text my.recipe"),
    (1, "measure --parse my.recipe"),
    (0, "chart my.map --kind types -o a.svg"),
    (1, "chart my.recipe -o b.svg"),
    (0, "types"),
    (0, "rules list"),
    (1, "rules list no-such-model"),
    (0, "rules check glm4moe/hq4_k"),
    (1, "rules check no.recipe"),
    (0, "rules explain output.weight -r my.recipe -m my.map"),
    (1, "rules explain no.weight -r my.recipe -m my.map"),
    (0, "rules test my.recipe -m my.map"),
    (1, "rules test promise.recipe -m my.map"),
    (0, "rules fmt my.recipe"),
    (1, "rules fmt no.recipe"),
    (0, "rules new -m my.map"),
    (0, "rules new --from my.map"),
    (1, "rules new -m no.map"),
    (1, "rules new -m my.map -o my.recipe"),
    (0, "rules from my.map"),
    (2, "rules from my.map -o my.recipe"),
    (0, "rules from my.map -o my.recipe --force"),
    (1, "rules import my.gguf"),
    (0, "rules export my.recipe -m my.map --dialect thireus"),
    (1, "rules export my.recipe -m my.map --dialect thireus -o my.map"),
    (0, "rules export my.recipe -m my.map --dialect thireus -o my.map --force"),
    (1, "plan my.map -o my.recipe"),
    (0, "plan my.map -o my.recipe --force"),
]


@pytest.mark.parametrize(("code", "command"), CODES, ids=[command for _, command in CODES])
def test_exit_codes(here: Path, code: int, command: str) -> None:
    kept = (here / "my.recipe").read_text()
    done = run(*command.split(), folder=here)
    assert done.code == code, done.err
    if code and not command.startswith(("diff", "rules test")):
        assert "error" in done.err + done.out
    if "--force" not in command and "fmt" not in command:
        assert (here / "my.recipe").read_text() == kept
    assert not [p.name for p in here.iterdir() if p.name.startswith(".ggplan-")]


@pytest.mark.parametrize("quiet", [(), ("-q",)], ids=["", "-q"])
def test_convert_refuses_a_recipe_whose_promise_does_not_hold(here: Path, quiet: tuple[str, ...]) -> None:
    command = ["convert", "my.gguf", "out.gguf", "-r", "promise.recipe", *quiet]
    done = run(*command, folder=here)
    assert done.code == 1
    assert "error[GP301]" in done.err
    assert "error: nothing is written: the recipe has 1 error for this model\nhelp: " in done.err
    assert not (here / "out.gguf").exists()
    assert run(*command, "--no-assert", folder=here).code == 0
    assert (here / "out.gguf").exists()


def test_quiet_leaves_errors_alone_on_stderr(here: Path) -> None:
    assert "note:" in run("plan", "my.map", "-r", "my.recipe", folder=here).err
    assert run("plan", "my.map", "-r", "my.recipe", "-q", folder=here).err == ""
    assert "error[GP301]" in run("plan", "my.map", "-r", "promise.recipe", "-q", folder=here).err


@pytest.mark.parametrize(
    ("head", "option", "type_"),
    [("", (), "q5_1"), ("", ("--fallback", "ik"), "q6_0"), ("@target ik_llama.cpp\n", (), "q6_0"),
     ("@target ik_llama.cpp\n", ("--fallback", "llama.cpp"), "q5_1")],
)  # fmt: skip
def test_rules_commands_fall_back_as_plan_does(
    here: Path, head: str, option: tuple[str, ...], type_: str
) -> None:
    name = "blk.0.ffn_down.weight"
    text = f"{head}@arch llama\n@default q5_K\n@test {name} -> {type_}\n"
    (here / "r.recipe").write_text(text)
    planned = json.loads(run("plan", "my.map", "-r", "r.recipe", *option, "--json", folder=here).out)
    assert {t["name"]: t["type"] for t in planned["tensors"]}[name] == type_
    assert run("rules", "test", "r.recipe", "-m", "my.map", *option, folder=here).code == 0
    told = run("rules", "explain", name, "-r", "r.recipe", "-m", "my.map", *option, "--json", folder=here)
    assert json.loads(told.out)["type"] == type_
    assert "GP302" not in run("rules", "check", "r.recipe", "-m", "my.map", *option, folder=here).out
    dialect = ("--dialect", "ik_llama.cpp")
    out = run("rules", "export", "r.recipe", "-m", "my.map", *dialect, *option, folder=here).out
    assert f"={type_}" in next(line for line in out.splitlines() if "ffn_down" in line)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize(
    "command",
    ["plan GLM-4.5-Air -r glm4moe/hq4_k", "diff Q4_K_M glm4moe/hq4_k -m GLM-4.5-Air", "inspect GLM-4.5-Air"],
)
def test_names_of_classes_never_wrap_and_columns_that_go_are_told(command: str, width: int) -> None:
    done = run(*command.split(), columns=width)
    if not command.startswith("inspect"):
        for role in ("routed experts", "shared experts", "norms and small"):
            assert any(line.startswith(f"  {role} ") for line in done.out.splitlines()), done.out
    table = [line for line in done.out.splitlines() if line.startswith("  ")]
    assert max(map(len, table)) <= max(width, 44)
    lost = [line for line in done.err.splitlines() if line.startswith("note: left out for lack of width: ")]
    assert len(lost) <= (width < 120)
    if lost:
        enough = int(lost[0].partition("COLUMNS=")[2].split()[0])
        assert enough > width
        wide = run(*command.split(), columns=enough)
        assert "left out" not in wide.err


def test_every_tensor_keeps_its_name_on_one_line_at_60_columns() -> None:
    done = run("plan", "GLM-4.5-Air", "-r", "glm4moe/hq4_k", "--tensors", columns=60)
    assert "\n  blk.46.nextn.shared_head_norm.weight " in done.out
    assert max(map(len, done.out.splitlines())) <= 90


LOGS = Path(__file__).parent.parent / "data" / "logs"


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize(
    "command",
    [
        f"measure --parse {LOGS / 'kld.glm4moe-tiny.Q4_K_M.txt'}",
        "inspect GLM-4.5-Air --metadata",
        "types",
        "rules list",
    ],
)
def test_tables_fit_and_say_what_they_leave_out(command: str, width: int) -> None:
    done = run(*command.split(), columns=width)
    assert done.code == 0, done.err
    table = [line for line in done.out.splitlines() if line.startswith(("  ", " ─"))]
    assert table
    assert max(map(len, table)) <= max(width, 64)
    full = run(*command.split(), columns=240)
    assert "left out" not in full.err
    if width == 40 and not command.startswith("inspect"):
        assert "left out" in done.err


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("plan glm4moe/hq4_k", "give it with `-r glm4moe/hq4_k`"),
        ("convert Q4_K_M out.gguf", "give it with `-r Q4_K_M`"),
        ("inspect glm4moe/hq4_k", "`ggplan plan MODEL -r glm4moe/hq4_k`"),
        ("verify Q4_K_M", "`ggplan plan MODEL -r Q4_K_M`"),
        ("rules from glm4moe/hq4_k", "`ggplan plan MODEL -r glm4moe/hq4_k`"),
        ("rules from Q4_K_M", "`ggplan rules from MODEL --mix Q4_K_M`"),
        ("rules new -m Q4_K_M", "`ggplan plan MODEL -r Q4_K_M`"),
    ],
)
def test_a_remedy_names_an_option_that_the_command_has(here: Path, command: str, remedy: str) -> None:
    done = run(*command.split(), folder=here)
    assert f"help: {remedy}" in done.err, done.err


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("plan cut.gguf", "; --header-only reads"),
        ("rules from cut.gguf", "; --header-only reads"),
        ("diff cut.gguf my.gguf", "; --header-only reads"),
        ("chart cut.gguf --kind types -o a.svg", "; --header-only reads"),
        ("convert cut.gguf out.gguf", "; `ggplan inspect --header-only` reads"),
    ],
)
def test_the_remedy_for_a_file_that_is_cut_short_is_the_commands_own(
    here: Path, command: str, remedy: str
) -> None:
    (here / "cut.gguf").write_bytes((here / "my.gguf").read_bytes()[:20_000])
    done = run(*command.split(), folder=here)
    assert "truncated" in done.err
    assert remedy in done.err, done.err


def test_a_folder_of_several_gguf_models_is_refused(here: Path) -> None:
    folder = here / "several"
    folder.mkdir()
    whole = (here / "my.gguf").read_bytes()
    (folder / "one.gguf").write_bytes(whole)
    assert run("inspect", folder).code == 0
    for name in ("set-00001-of-00002.gguf", "set-00002-of-00002.gguf"):
        (folder / name).write_bytes(whole)
    for command in (("inspect", folder), ("convert", folder, here / "out.gguf")):
        done = run(*command)
        assert done.code == 1
        assert "holds 2 GGUF models: one.gguf, set-00001-of-00002.gguf" in done.err
    (folder / "one.gguf").unlink()
    (folder / "set-00001-of-00003.gguf").write_bytes(whole)  # of another set
    assert "holds 2 GGUF models" in run("inspect", folder).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", ""), "an argument is empty"),
        (("plan", "my.map", "-r", ""), "the value of -r is empty"),
        (("plan", "my.map", "--recipe="), "the value of --recipe is empty"),
        (("plan", "my.map", "--imatrix", ""), "the value of --imatrix is empty"),
        (("rules", "check", ""), "an argument is empty"),
        (("rules", "check", "my.recipe", "-m", ""), "the value of -m is empty"),
        (("verify", "my.gguf", "--against", ""), "the value of --against is empty"),
    ],
)
def test_an_empty_name_is_refused(here: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments, folder=here)
    assert done.code == 2
    assert f"error: {said}: if it is a variable of the shell, it is not set" in done.err


def test_the_library_refuses_an_empty_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    with pytest.raises(CheckpointError, match="the name of the model is empty"):
        ggplan.open_model("")
    with pytest.raises(RecipeError, match="the name of the recipe is empty"):
        ggplan.load_recipe("")
    with pytest.raises(RecipeError, match="the name of the recipe is empty"):
        ggplan.make_plan(ggplan.open_model("my.map"), "")


def test_a_folder_called_as_a_shipped_model_says_so(here: Path) -> None:
    (here / "GLM-4.5-Air").mkdir()
    done = run("plan", "GLM-4.5-Air", "-r", "Q4_K_M", folder=here)
    assert done.code == 1
    assert "holds no config.json and no GGUF file" in done.err
    assert "GLM-4.5-Air is also a shipped inventory" in done.err


def test_a_word_of_the_command_line_that_is_no_choice_is_one_line(here: Path) -> None:
    done = run("completion", folder=here)
    assert done.code == 2
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.err == f"{error}\nhelp: see `ggplan completion --help`\n"
    assert all(shell in error for shell in ("bash", "zsh", "fish"))


def test_a_chart_replaces_charts_alone(here: Path) -> None:
    for name, mine in (
        ("a.svg", b"<?xml version='1.0'?>\n<svg/>"),
        ("a.png", b"notes"),
        ("a.html", b"<html>"),
    ):
        (here / name).write_bytes(mine)
        command = ("chart", "my.map", "--kind", "types", "-o", name)
        done = run(*command, folder=here)
        assert done.code == 2
        assert f"-o would overwrite {name}, which is no chart of ggplan; --force replaces it" in done.err
        assert (here / name).read_bytes() == mine
        assert run(*command, "--force", folder=here).code == 0
        drawn = (here / name).read_bytes()
        assert run(*command, folder=here).code == 0  # its own is drawn anew
        assert (here / name).read_bytes() == drawn != mine


def test_the_demo_replaces_its_own_files_alone(here: Path) -> None:
    (here / "demo").mkdir()
    (here / "demo" / "demo-q8_0.gguf").write_text("mine")
    done = run("demo", "-o", "demo", folder=here)
    assert done.code == 2
    assert "demo/demo-q8_0.gguf is no file of the demo" in done.err
    assert (here / "demo" / "demo-q8_0.gguf").read_text() == "mine"


@pytest.mark.parametrize("command", ["rules list", "types"])
def test_quiet_leaves_out_what_was_left_out(here: Path, command: str) -> None:
    told = run(*command.split(), folder=here, columns=50)
    assert "left out for lack of width" in told.err
    quiet = run(*command.split(), "-q", folder=here, columns=50)
    assert (quiet.out, quiet.err) == (told.out, "")
    assert run("rules", "fmt", "my.recipe", "-q", folder=here).out == ""


@pytest.mark.parametrize("command", ["rules fmt", "rules check --fix", "rules fmt --check"])
def test_what_ships_is_not_changed_and_can_be_copied(here: Path, command: str) -> None:
    done = run(*command.split(), "glm4moe/hq4_k", folder=here)
    assert done.code == 2
    assert "glm4moe/hq4_k ships with ggplan and is not changed; copy it first: `cp " in done.err
    path = done.err.partition("`cp ")[2].partition(" my.recipe`")[0]
    assert Path(path).read_text("utf-8").lstrip().startswith(("#", "@"))
    shown = run("rules", "check", "--diff", "glm4moe/hq4_k", folder=here)
    assert shown.code == 0
    assert "note: glm4moe/hq4_k ships with ggplan" in shown.err


def test_a_diff_of_standard_input(here: Path) -> None:
    text = "@arch glm4moe\nattn_q.weight = q8_0\n@default bf16\n"
    (here / "dots.recipe").write_text(text)
    named = run("rules", "check", "dots.recipe", "--diff", folder=here)
    done = run("rules", "check", "-", "--diff", stdin=text, folder=here)
    assert done.code == named.code == 1
    assert done.out.replace("<stdin>", "dots.recipe") == named.out
    assert "+" in done.out
    assert "`-`" in run("rules", "check", "-", "--fix", stdin=text, folder=here).err


def test_the_page_of_a_code_as_json(here: Path) -> None:
    page = json.loads(run("rules", "explain", "gp102", "--json", folder=here).out)
    assert page["schema"] == "ggplan/page@1"
    assert page["code"] == "GP102"
    assert page["page"] == run("rules", "explain", "GP102", folder=here).out


def test_a_map_of_windows_and_an_empty_one(here: Path) -> None:
    (here / "utf16.map").write_text(MAP.replace("\n", "\r\n"), encoding="utf-16", newline="")
    for command in (("inspect",), ("plan",), ("rules", "from")):
        found, known = (run(*command, name, folder=here) for name in ("utf16.map", "my.map"))
        assert (found.code, found.out.replace("utf16", "my")) == (0, known.out)
    (here / "empty.map").write_bytes(b"\n")
    assert run("inspect", "empty.map", folder=here).err.startswith("error: empty.map is empty\n")


def test_what_import_does_not_read_is_told_by_what_it_is(here: Path) -> None:
    done = run("rules", "import", "my.gguf", folder=here)
    assert done.err.startswith("error: my.gguf is a GGUF file")
    assert "`ggplan rules from my.gguf`" in done.err
    assert "my.recipe is a recipe of ggplan's already" in run("rules", "import", "my.recipe", folder=here).err


def test_a_map_is_of_the_family_that_its_names_tell(here: Path) -> None:
    lines = [
        f"m.gguf:{SHA}:{t.name}:shape=({', '.join(map(str, t.shape[::-1]))}):dtype={t.type.name}"
        f":elements={t.n_weights}:bytes={t.n_bytes}"
        for t in ggplan.open_model("GLM-4.5-Air").tensors
    ]
    (here / "air.map").write_text("\n".join(lines))
    told = "air.map does not say its architecture; by the names of its tensors it is glm4moe"
    shown = run("inspect", "air.map", folder=here)
    assert shown.out.splitlines()[0].endswith("glm4moe") or "glm4moe" in shown.out
    assert told in shown.err
    assert "@arch glm4moe" in run("rules", "from", "air.map", folder=here).out
    piped = run("plan", "-", stdin="\n".join(lines), folder=here)
    assert "by the names of its tensors it is glm4moe" in piped.err
    # That they are the very tensors of a shipped inventory, which has metadata, is said; not of part of them.
    assert "they are those of GLM-4.5-Air, an inventory that is shipped with metadata" in piped.err
    assert "they are those of" not in run("plan", "-", stdin="\n".join(lines[:-1]), folder=here).err
    assert ggplan.open_model(here / "air.map").architecture == "glm4moe"
    assert ggplan.open_model(here / "my.map").architecture == ""


def test_a_faulty_pattern_is_shown_alone(here: Path) -> None:
    done = run("rules", "explain", "ffn_(down", "-r", "my.recipe", "-m", "my.map", folder=here)
    assert done.code == 1
    assert "1 | ffn_(down\n" in done.err
    assert "= f32" not in done.err


def test_what_convert_refuses_is_said_once(here: Path) -> None:
    writer = gguf.GGUFWriter(here / "wide.gguf", "llama")
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight", "output.weight"):
        writer.add_tensor(name, np.random.default_rng(0).standard_normal((64, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = run("convert", "wide.gguf", "out.gguf", "-r", "IQ2_XXS", folder=here)
    assert done.code == 1
    assert done.err.count("without an imatrix") == 1, done.err


@pytest.mark.parametrize("width", [60, 80])
def test_sensitivities_and_speeds_fit_the_terminal(here: Path, width: int) -> None:
    remark = "# mean KL divergence of M when this tensor alone is iq1_m_r4; columns are ne0, rows ne1"
    figures = "\n".join(f"blk.{n}.ffn_down_exps.weight,4096,1024,1,0.000{n + 1}" for n in range(9))
    (here / "kld.csv").write_text(f"{remark}\ntensor,columns,rows,slices,kld\n{figures}\n")
    sweeps = Path(__file__).parents[1] / "data" / "cases" / "two-sweeps.log"
    for command in (("inspect", "kld.csv"), ("measure", "--parse", str(sweeps))):
        done = run(*command, folder=here, columns=width)
        assert done.code == 0, done.err
        assert max(map(len, done.out.splitlines())) <= width, done.out


def test_no_file_is_called_by_a_name_with_a_null() -> None:
    assert kind_named("a\0b") == other_meaning("a\0b") == ""
    for ask in (anything_named, ggplan.open_model):
        with pytest.raises(CheckpointError, match=r"^a\\x00b does not exist"):
            ask("a\0b")
