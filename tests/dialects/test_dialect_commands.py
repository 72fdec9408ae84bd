"""`ggplan rules import` and `export` as a user meets them."""

import subprocess
from pathlib import Path

import program

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return program.run("rules", *arguments, stdin=stdin)


def test_there_and_back(tmp_path: Path) -> None:
    done = run("export", "glm4moe/hq4_k", "--dialect", "llama-quantize", "-m", "GLM-4.5-Air")
    assert done.returncode == 0
    assert r"^blk\.([1-3][0-9]?|4[0-5]?|[5-9])\.ffn_(gate|up)_exps\.weight$=q4_K" in done.stdout.splitlines()
    assert "--tensor-type-file" in done.stderr
    recipe = tmp_path / "back.recipe"
    back = run("import", "-", "--name", "BACK", "-o", recipe, stdin=done.stdout)
    assert back.returncode == 0
    assert "@name BACK" in recipe.read_text()
    again = run("import", "-", "-o", recipe, stdin=done.stdout)
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_a_predicate_needs_no_file() -> None:
    assert "@name mixed_3_6" in run("import", "mixed_3_6", "-m", "Qwen3-8B").stdout


def test_what_is_not_taken_over_is_said_twice() -> None:
    case = ROOT / "tests" / "data" / "cases" / "prune-and-override.txt"
    done = run("import", case)
    assert done.returncode == 0
    for option in ("--prune-layers", "--override-kv", "--exclude-weights"):
        assert f"# Note: {option}: " in done.stdout
        assert f"note: {option}: " in done.stderr


def test_faults_are_one_message() -> None:
    done = run("import", "-", stdin="attn_(?=q)=q8_0\n")
    assert done.returncode == 1
    assert "look-around" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("export", "glm4moe/hq4_k", "--dialect", "mlx", "-m", "GLM-4.5-Air")
    assert done.returncode == 1
    assert "no mixed predicate" in done.stderr
