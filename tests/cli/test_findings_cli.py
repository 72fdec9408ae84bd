"""How findings are told on the command line: notes, diffs, formats for machines, explanations."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import jsonschema
import pytest
from click.testing import CliRunner, Result

from ggplan.cli import cli

ROOT = Path(__file__).parents[2]
RECIPE = """# GLM-4.5-Air
output\\.weight = q8_0
attn_output\\.weight = iq4_nl
blk.1.attn_q = Q8O
attn_ = q6_K
@let OLD = 100%: x, y
@default q8_0
"""

# The required parts of SARIF 2.1.0 (OASIS, sarif-schema-2.1.0.json) for what a linter writes, and the bounds
# of its numbers.
TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
URI = {"type": "object", "required": ["uri"],
       "properties": {"uri": {"type": "string", "pattern": r"^[!-~]+$"}}}  # fmt: skip
REGION = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        name: {"type": "integer", "minimum": 1}
        for name in ("startLine", "startColumn", "endLine", "endColumn")
    },
}
FIX = {
    "type": "object",
    "required": ["artifactChanges"],
    "properties": {
        "description": TEXT,
        "artifactChanges": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["artifactLocation", "replacements"],
                "properties": {
                    "artifactLocation": URI,
                    "replacements": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["deletedRegion"],
                            "properties": {"deletedRegion": REGION, "insertedContent": TEXT},
                        },
                    },
                },
            },
        },
    },
}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id"],
                                            "properties": {
                                                "shortDescription": TEXT,
                                                "fullDescription": TEXT,
                                                "help": TEXT,
                                                "defaultConfiguration": {"properties": {"level": LEVEL}},
                                            },
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message", "ruleId"],
                            "properties": {
                                "message": TEXT,
                                "level": LEVEL,
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "fixes": {"type": "array", "items": FIX},
                                "locations": {
                                    "type": "array",
                                    "items": {
                                        "properties": {
                                            "physicalLocation": {
                                                "required": ["artifactLocation"],
                                                "properties": {"artifactLocation": URI, "region": REGION},
                                            }
                                        }
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("my recipe, 100%.recipe").write_text(RECIPE)
    return "my recipe, 100%.recipe"


def test_several_notes_take_one_line_that_says_how_to_see_them(recipe: str) -> None:
    done = run("rules", "check", recipe)
    (summed,) = [line for line in done.stdout.splitlines() if line.startswith("note")]
    assert re.fullmatch(r"note\[GP103, GP109, GP213\]: .*; .*; .*\. --notes shows all \d", summed)
    shown = run("rules", "check", recipe, "--notes").stdout
    assert {"note[GP103]", "note[GP109]", "note[GP213]"} <= set(
        re.findall(r"^note\[\w+\]", shown, re.MULTILINE)
    )
    assert "note[" not in run("rules", "check", recipe, "--no-notes").stdout
    # Who selects a code of notes wants to see them.
    assert "before this rule" in run("rules", "check", recipe, "--select", "GP103").stdout
    for command in ("plan", "convert"):
        assert "--notes" in run(command, "--help").stdout
    planned = run("plan", "GLM-4.5-Air", "-r", "moe-offload", "--notes").stderr
    assert "--notes" not in planned


def test_plan_takes_the_codes_too(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("ffn_down_exps = q6_K\nattn = q8_0\n@default q8_0\n")
    assert "[GP201]" in run("plan", "GLM-4.5-Air", "-r", path).stderr
    assert "[GP201]" not in run("plan", "GLM-4.5-Air", "-r", path, "--ignore", "GP2").stderr
    assert "[GP201]" not in run("plan", "GLM-4.5-Air", "-r", path, "--select", "GP1").stderr
    found = json.loads(run("plan", "GLM-4.5-Air", "-r", path, "--json", "--select", "GP201").stdout)
    assert {d["code"] for d in found["diagnostics"]} == {"GP201"}


def test_the_last_line_sums_up(recipe: str) -> None:
    last = run("rules", "check", recipe, "glm4moe/hq4_k").stdout.splitlines()[-1]
    assert last == (
        "found 1 error, 2 warnings in 2 recipes; 2 can be mended with --fix; "
        "1 more with --fix --unsafe-fixes, which may change types"
    )
    last = run("rules", "check", recipe, "--fix").stdout.splitlines()[-1]
    assert last == (
        "mended 3; 1 warning left; 1 can be mended with --fix --unsafe-fixes, which may change types"
    )
    done = run("rules", "check", "glm4moe/hq4_k", "glm4moe/balanced")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "2 recipes: nothing wrong")


def test_fix_says_what_it_did_and_what_it_deleted(recipe: str) -> None:
    lines = run("rules", "check", recipe, "--fix").stdout.splitlines()
    assert f"fixed {recipe}:4 GP002: `Q8O` is now `q8_0`" in lines
    assert f"fixed {recipe}:6 GP017: deleted `@let OLD = 100%: x, y`" in lines
    assert "@let" not in Path(recipe).read_text()


def test_diff_shows_and_writes_nothing(recipe: str) -> None:
    for options in (("--fix", "--diff"), ("--diff",)):
        done = run("rules", "check", recipe, *options)
        assert done.exit_code == 1
        # The tab tells `patch` that the blanks are part of the name.
        assert f"--- a/{recipe}\t\n+++ b/{recipe}\t\n" in done.stdout
        assert "-@let OLD = 100%: x, y\n" in done.stdout
        assert "--fix would mend 3 in 1 file; 1 warning would be left" in done.stderr
        assert Path(recipe).read_text() == RECIPE
    done = run("rules", "check", "glm4moe/hq4_k", "--diff")
    assert (done.exit_code, done.stdout) == (0, "")


def test_a_diff_into_a_pipe_is_one_that_patch_applies(recipe: str) -> None:
    path = Path("\u2066 two\tnames.recipe")
    path.write_bytes("# GLM-4.5-Air \u200b\u202e\u00a0 seen\r\nattn = Q8O\r\n@default q8_0\r\n".encode())
    command = [sys.executable, "-m", "ggplan", "rules", "check", str(path), recipe, "--diff"]
    for locale in ("C.UTF-8", "POSIX"):
        diff = subprocess.run(
            command,
            env={**os.environ, "LC_ALL": locale, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )
        assert diff.returncode == 1, diff.stderr
        dry = ["patch", "-p1", "--binary", "--dry-run"]
        assert subprocess.run(dry, input=diff.stdout, capture_output=True, check=False).returncode == 0
    done = subprocess.run(["patch", "-p1", "--binary"], input=diff.stdout, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    after = "# GLM-4.5-Air \u200b\u202e\u00a0 seen\r\nattn = q8_0\r\n@default q8_0\r\n"
    assert path.read_bytes() == after.encode()
    assert "Q8O" not in Path(recipe).read_text()


def test_a_diff_on_a_terminal_cannot_drive_it(recipe: str) -> None:
    import pty

    Path(recipe).write_text("# GLM-4.5-Air \u009b31m\u202e\nattn = Q8O\n@default q8_0\n")
    reading, writing = pty.openpty()
    try:
        command = [sys.executable, "-m", "ggplan", "rules", "check", recipe, "--diff"]
        subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=writing,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        shown = os.read(reading, 65536).decode()
    finally:
        os.close(reading)
        os.close(writing)
    assert "+attn = q8_0" in shown
    assert "\\u202e" in shown
    assert not {"\u009b", "\u202e"} & set(shown)


@pytest.mark.parametrize(
    "options",
    [["--unsafe-fixes"], ["--diff", "--json"], ["--json", "--output-format", "sarif"], ["--select", "GP9"],
     ["--ignore", "x"], ["--explain", "GP1O2"]],
)  # fmt: skip
def test_options_that_do_not_go_together_are_wrong_usage(recipe: str, options: list[str]) -> None:
    assert run("rules", "check", recipe, *options).exit_code == 2


def test_annotations_of_github_are_escaped(recipe: str) -> None:
    done = run("rules", "check", recipe, "--output-format", "github")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    first = re.fullmatch(r"::(\w+) (.*?)::(.*)", lines[0])
    assert first is not None
    properties = dict(part.split("=", 1) for part in first[2].split(","))
    assert {name: unquote(value) for name, value in properties.items()} == {
        "file": recipe,
        "line": "3",
        "col": "1",
        "endColumn": "20",
        "title": "GP102: a rule never decides",
    }
    assert first[1] == "warning"
    assert unquote(first[3]).startswith(
        "the rule never decides: line 2 takes all 47 tensors it matches\nhelp: "
    )
    notices = run("rules", "check", recipe, "--output-format", "github", "--notes").stdout
    assert "::notice " in notices
    assert "::error file=nowhere.recipe,title=GP012" in run(
        "rules", "check", "nowhere.recipe", recipe, "--output-format", "github"
    ).stdout  # fmt: skip


def test_sarif_has_what_its_schema_requires(recipe: str) -> None:
    arguments = ("rules", "check", recipe, "glm4moe/hq4_k", "nowhere.recipe", "--output-format", "sarif")
    done = run(*arguments)
    assert done.exit_code == 1
    log = json.loads(done.stdout)
    jsonschema.Draft202012Validator(SARIF).validate(log)
    (first_run,) = log["runs"]
    rules = first_run["tool"]["driver"]["rules"]
    results = first_run["results"]
    assert {r["ruleId"] for r in results} >= {"GP002", "GP102", "GP017", "GP012", "GP103"}
    assert all(rules[r["ruleIndex"]]["id"] == r["ruleId"] for r in results)
    (wrong_type,) = [r for r in results if r["ruleId"] == "GP002"]
    place = wrong_type["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "my%20recipe%2C%20100%25.recipe"
    assert place["region"] == {"startLine": 4, "startColumn": 16, "endColumn": 19}
    (change,) = wrong_type["fixes"][0]["artifactChanges"]
    assert change["replacements"] == [
        {
            "deletedRegion": {"startLine": 4, "startColumn": 16, "endColumn": 19},
            "insertedContent": {"text": "q8_0"},
        }
    ]
    (idle,) = [r for r in results if r["ruleId"] == "GP017"]
    (deleted,) = idle["fixes"][0]["artifactChanges"][0]["replacements"]
    assert deleted == {"deletedRegion": {"startLine": 6, "startColumn": 1, "endLine": 7, "endColumn": 1}}
    without = json.loads(run(*arguments, "--no-notes").stdout)["runs"][0]["results"]
    assert {r["level"] for r in without} == {"error", "warning"}


def test_json_tells_the_fixes_and_what_is_silenced(recipe: str) -> None:
    Path(recipe).write_text(RECIPE.replace("iq4_nl", "iq4_nl  # ggplan: ignore GP102"))
    (found,) = json.loads(run("rules", "check", recipe, "--json", "--fix").stdout)["recipes"]
    assert found["silenced"] == 1
    assert found["mended"] == 3
    assert [(f["code"], f["line"], f["kind"]) for f in found["fixes"]] == [
        ("GP002", 4, "changed"),
        ("GP017", 6, "deleted"),
        ("GP106", 4, "changed"),
    ]
    same = json.loads(run("rules", "check", recipe, "--output-format", "json").stdout)
    assert same["schema"] == "ggplan/check@1"
    assert "1 silenced by comments" in run("rules", "check", recipe).stdout


def test_a_recipe_that_cannot_be_read_does_not_hide_the_others(recipe: str) -> None:
    done = run("rules", "check", "nowhere.recipe", recipe)
    assert done.exit_code == 1
    assert "error[GP012]" in done.stderr
    assert "warning[GP102]" in done.stdout
    assert "found 2 errors, 2 warnings in 2 recipes" in done.stdout


EXPLAINED = "output = q8_0\nattn = q6_K\nattn_q = q4_K\nffn_down = q6_K\nnorm = f16\n"


def explained(*arguments: str) -> str:
    Path("x.recipe").write_text(EXPLAINED)
    return run("rules", "explain", *arguments, "-r", "x.recipe", "-m", "GLM-4.5-Air").stdout


def test_a_pattern_is_explained_by_who_wins_and_who_loses(recipe: str) -> None:
    told = explained("attn_q")
    assert told.splitlines() == [
        "attn_q matches 94 tensors of GLM-4.5-Air, 1.81 GiB as decided",
        "",
        "→ x.recipe:2  attn = q6_K",
        "    decides 47 (blk.{0..46}.attn_q.weight): q6_K",
        "    passes over 47 (blk.{0..46}.attn_q.bias), which are protected",
        "  x.recipe:3  attn_q = q4_K",
        "    loses 47 (blk.{0..46}.attn_q.weight) to x.recipe:2",
        "    passes over 47 (blk.{0..46}.attn_q.bias), which are protected",
        "  no rule decides",
        "    47 (blk.{0..46}.attn_q.bias): f32",
    ]
    assert explained("3").splitlines()[1:] == told.splitlines()[1:]
    assert explained("x.recipe:3") == explained("3")
    assert "decides 46 (blk.{1..46}.ffn_down_exps.weight): q8_0" in explained("@role experts.down")


def test_an_explanation_of_many_as_json(recipe: str) -> None:
    found = json.loads(explained("attn_(q|output)\\.weight", "--json"))
    assert found["schema"] == "ggplan/survey@1"
    assert len(found["tensors"]) == 94
    by_line = {rule["line"]: rule for rule in found["rules"]}
    assert by_line[1]["decides"]["blk.0.attn_output.weight"] == "q8_0"
    assert [lost["line"] for lost in by_line[2]["loses"]] == [1]
    assert by_line[2]["loses"][0]["tensors"][0] == "blk.0.attn_output.weight"
    assert by_line[3]["decides"] == {}
    assert found["kept"] == {}


def test_a_code_is_explained_without_a_recipe() -> None:
    done = run("rules", "explain", "gp103")
    assert done.stdout.startswith("## GP103: a rule loses tensors to other rules\n")
    assert run("rules", "explain", "GP999").exit_code == 2
    assert run("rules", "explain", "output.weight").exit_code == 2


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ("9", "has no rule on line 9\nhelp: its rules stand on lines 1 to 5"),
        ("blk[", "error[GP003]"),
        ("output.weigth", "the nearest is output.weight"),
    ],
)
def test_what_cannot_be_explained_is_said(recipe: str, subject: str, told: str) -> None:
    Path("x.recipe").write_text(EXPLAINED)
    done = subprocess.run(
        [sys.executable, "-m", "ggplan", "rules", "explain", subject, "-r", "x.recipe", "-m", "GLM-4.5-Air"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert told in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["plan"], ["rules", "check"], ["rules", "chek"], ["plan", "x", "--nosuch"],
     ["diff", "a.recipe", "nowhere", "-m", "GLM-4.5-Air"], ["plan", "GLM-4.5-Air", "-r", "nowhere"]],
)  # fmt: skip
def test_errors_have_one_style(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "a.recipe").write_text("attn = q9_9\n")
    done = subprocess.run(
        [sys.executable, "-m", "ggplan", *arguments],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert re.match(r"error(\[GP\d{3}\])?: ", done.stderr)
    assert len(re.findall(r"\berror\b", done.stderr, re.IGNORECASE)) == 1
