"""`ggplan rules` as a user meets it: processes, output, exit codes, files."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import program
import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("check", "explain", "test", "fmt", "new", "list")
WRONG = "@arch glm4moe\noutput\\.weight = Q8_O\n^blk.1. = q8_0\n@default bf16\n"


def run(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return program.run("rules", *arguments, stdin=stdin, **environment)


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.recipe"
    path.write_text(WRONG)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_and_is_documented(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"ggplan rules {command}" in done.stdout
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", done.stdout))
    section = page.partition(f"## ggplan rules {command}\n")[2].partition("\n## ")[0]
    assert options == set(re.findall(r"--[a-z-]+", section)), "run tools/make_docs.py"


def test_check_tells_and_exits_one(wrong: Path) -> None:
    done = run("check", wrong, "-m", "GLM-4.5-Air")
    assert done.returncode == 1
    assert f"error[GP002]: unknown tensor type `Q8_O`\n --> {wrong}:2:18" in done.stdout
    assert "warning[GP106]" in done.stdout
    assert "can be mended with --fix" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert "\x1b[1;31merror" in run("check", wrong, FORCE_COLOR="1").stdout


def test_check_is_content_with_a_shipped_recipe() -> None:
    done = run("check", "glm4moe/hq4_k")
    assert done.returncode == 0
    assert done.stdout == "glm4moe/hq4_k.recipe against GLM-4.5-Air: nothing to say\n"


def test_check_as_json(wrong: Path) -> None:
    done = run("check", wrong, "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["schema"] == "ggplan/check@1"
    (recipe,) = document["recipes"]
    assert (recipe["clean"], recipe["model"]) == (False, "GLM-4.5-Air")
    first = recipe["diagnostics"][0]
    assert (first["code"], first["line"], first["column"], first["length"]) == ("GP002", 2, 18, 4)
    assert first["fix"]["safe"]
    # The edits are enough to mend the file by hand.
    (edit,) = first["fix"]["edits"]
    line = WRONG.splitlines()[edit["line"] - 1]
    mended = line[: edit["column"] - 1] + edit["text"] + line[edit["end_column"] - 1 :]
    assert mended == r"output\.weight = q8_0"


def test_fix_mends_what_is_safe_and_keeps_the_mode(wrong: Path) -> None:
    wrong.chmod(0o640)
    done = run("check", wrong, "--fix")
    assert done.returncode == 1
    text = wrong.read_text()
    assert "q8_0" in text
    assert "^blk.1." in text  # `blk.1.` takes blk.10 to blk.19 too: mending it changes types
    assert stat.S_IMODE(wrong.stat().st_mode) == 0o640
    done = run("check", wrong, "--fix", "--unsafe-fixes")
    assert done.returncode == 0, done.stdout
    assert r"^blk\.1\." in wrong.read_text()
    assert [p.name for p in wrong.parent.iterdir()] == ["wrong.recipe"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("options", [("check", "--fix", "--unsafe-fixes"), ("fmt",)])
def test_what_is_not_utf_8_is_refused_and_kept(
    tmp_path: Path, options: tuple[str, ...], encoding: str
) -> None:
    path = tmp_path / "own.recipe"
    path.write_bytes("attn_ = q4_K\r\n@defualt q8_0 # ü\r\n".encode(encoding))
    before = path.read_bytes()
    done = run(*options, path)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("error[GP010]") == 1
    assert path.read_bytes() == before


def test_fix_leaves_what_it_cannot_mend(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_bytes(b"\xff\xfe\x00")
    before = path.read_bytes()
    done = run("check", path, "--fix")
    assert done.returncode == 1
    assert path.read_bytes() == before
    assert "GP010" in done.stderr


def test_codes_are_explained() -> None:
    done = run("check", "--explain", "gp102")
    assert done.returncode == 0
    assert done.stdout.startswith("## GP102: a rule never decides\n")
    assert run("check", "--explain", "GP999").returncode == 2
    assert run("check").returncode == 2


def test_explain_shows_the_arithmetic() -> None:
    done = run("explain", "blk.7.ffn_down_exps.weight", "-r", "glm4moe/hq4_k", "-m", "GLM-4.5-Air")
    assert done.returncode == 0
    assert "q6_K: 1408 % 256 = 128, no whole blocks" in done.stdout
    assert "q8_0: 1408 % 32 = 0, whole blocks" in done.stdout
    assert "meant for RAM" in done.stdout
    assert "748 MiB, 8.5 bpw" in done.stdout


def test_explain_shows_every_rule_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("attn = q8_0\n@role attention = q6_K\nblk = q4_K\n@default bf16\n")
    done = run("explain", "blk.0.attn_output.weight", "-r", path, "-m", "GLM-4.5-Air", "--json")
    found = json.loads(done.stdout)
    assert [(r["pattern"], r["outcome"]) for r in found["rules"]] == [
        ("attn", "decides"),
        ("@role attention", "would match"),
        ("blk", "would match"),
        ("@default", "would match"),
    ]
    assert (found["type"], found["device"], found["bits_per_weight"]) == ("q8_0", "gpu", 8.5)
    done = run("explain", "blk.0.ffn_down.weight", "-r", path, "-m", "GLM-4.5-Air")
    assert "the fallback for q4_K: 10944 % 32 = 0" in done.stdout
    done = run("explain", "blk.0.attn_norm.weight", "-r", path, "-m", "GLM-4.5-Air")
    assert "passed over" in done.stdout
    assert "f32 by kept" in done.stdout
    done = run("explain", "blk.0.attn_outputs.weight", "-r", path, "-m", "GLM-4.5-Air")
    assert done.returncode == 1
    assert "the nearest is blk.0.attn_output.weight" in done.stderr


def test_a_recipe_that_names_no_model_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("a = q8_0\n")
    done = run("explain", "output.weight", "-r", path)
    assert done.returncode == 1
    assert "-m" in done.stderr
    done = run("check", path, "-m", "GLM-9000")
    assert done.returncode == 1
    assert "does not exist" in done.stderr


def test_fmt_lays_out_and_checks(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("a=Q8_0# why\nlonger=q4_k\n")
    done = run("fmt", "--check", path)
    assert done.returncode == 1
    assert path.read_text().startswith("a=Q8_0")
    assert run("fmt", path).returncode == 0
    assert path.read_text() == "a      = q8_0  # why\nlonger = q4_K\n"
    assert run("fmt", "--check", path).returncode == 0
    assert run("fmt", "-", stdin="a=q8_0").stdout == "a = q8_0\n"
    path.write_text("a = q9_0\n")
    assert run("fmt", path).returncode == 1
    assert path.read_text() == "a = q9_0\n"


@pytest.mark.parametrize("model", ["GLM-4.5-Air", "gpt-oss-20b", "Qwen3-8B"])
def test_new_writes_a_recipe_that_is_clean_and_holds(tmp_path: Path, model: str) -> None:
    path = tmp_path / "start.recipe"
    assert run("new", "--from", model, "-o", path).returncode == 0
    assert run("new", "--from", model, "-o", path).returncode == 1  # never overwritten
    tested = run("test", path, "-m", model)
    assert tested.returncode == 0, tested.stdout
    assert "8 of 8 hold" in tested.stdout
    assert run("fmt", "--check", path).returncode == 0
    assert run("new", "--from", model).stdout == path.read_text()


def test_new_recipes_have_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "start.recipe"
    run("new", "--from", "DeepSeek-V3", "-o", path)
    done = run("check", path, "-m", "DeepSeek-V3")
    assert done.returncode == 0, done.stdout


def test_test_fails_where_a_promise_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("@arch glm4moe\n@default q8_0\n@assert bpw <= 5\n@test output.weight -> q8_0\n")
    done = run("test", path, "-m", "GLM-4.5-Air")
    assert done.returncode == 1
    assert "FAILED  @assert bpw <= 5" in done.stdout
    assert "ok      @test output.weight -> q8_0" in done.stdout
    outcomes = json.loads(run("test", path, "--json").stdout)["recipes"][0]["outcomes"]
    assert [o["holds"] for o in outcomes] == [False, True]


def test_check_starts_quickly_and_loads_nothing_heavy(tmp_path: Path) -> None:
    rules = [rf"^blk\.{{{i}..46}}\.ffn_(gate|up|down)_exps\.weight$ = q8_0" for i in range(1, 47)]
    path = tmp_path / "sixty.recipe"
    path.write_text("\n".join([*rules, *(f"^x{i}$ = q8_0" for i in range(13)), "@default q8_0"]))
    program = (
        "import sys, time\n"
        "from ggplan.cli import cli\n"
        f"try:\n    cli.main(['rules', 'check', {str(path)!r}, '-m', 'GLM-4.5-Air'], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "print('LOADED', sorted({'numpy', 'numba', 'rich', 'yaml'} & set(sys.modules)), time.process_time())"
    )
    clean = tmp_path / "clean.recipe"
    clean.write_text(
        "\n".join(f"^blk\\.{i}\\. = q8_0" for i in range(47)) + "\n@role embeddings, output = q8_0\n"
    )
    times = []
    for recipe in (path, clean, clean, clean):
        done = subprocess.run(
            [sys.executable, "-c", program.replace(str(path), str(recipe))],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        last = done.stdout.splitlines()[-1]
        assert last.startswith("LOADED [] ")
        times.append(float(last.rpartition(" ")[2]))
    assert min(times[1:]) < 2  # 0.25 s of processor time where nothing else runs, 1 s where much does


def test_lists_of_many_rules_are_checked_in_time(tmp_path: Path) -> None:
    path = tmp_path / "long.recipe"
    path.write_text("\n".join(f"^blk\\.{i}\\.k{j}$ = q8_0" for i in range(47) for j in range(20)))
    begin = time.perf_counter()
    assert run("check", path, "-m", "GLM-4.5-Air").returncode == 1
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize("command", [("plan", "GLM-4.5-Air", "-r"), ("rules", "check", "-m", "GLM-4.5-Air")])
def test_of_very_many_findings_the_first_are_shown_and_the_rest_counted(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "x.recipe"
    dead = "".join(f"zzz{n} = q8_0\n" for n in range(1_000))
    path.write_text(f"{dead}@default q8_0\n@assert bpw <= 2\n")
    done = program.run(*command, path)
    told = done.stdout + done.stderr
    assert told.count("[GP101]") == 200
    (hidden,) = re.findall(r"(\d+) more are not shown, 1 of them errors", told)
    assert int(hidden) >= 801


def test_an_architecture_without_a_shipped_model_is_told_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("@arch glm4mo\nattn = q8_0\n@default q8_0\n")
    told = run("check", path).stdout
    assert "no model of `@arch glm4mo` ships with ggplan (the nearest is `@arch glm4moe`)" in told
    path.write_text("attn = q8_0\n@default q8_0\n")
    assert "say in the recipe which it is for" in run("check", path).stdout
