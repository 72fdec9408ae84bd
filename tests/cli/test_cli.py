"""The command line as a user meets it: a process, its output, its exit code."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from program import run

from ggplan.ggml_types import TYPES

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ("plan", "convert", "inspect", "types", "demo", "verify", "reproduce", "completion")

SHA = "0123456789abcdef" * 4
MAP = f"""\
a.gguf:{SHA}:token_embd.weight:shape=(256, 100):dtype=bf16:elements=25600:bytes=51200
b.gguf:{SHA}:output_norm.weight:shape=(256,):dtype=f32:elements=256:bytes=1024
c.gguf:{SHA}:blk.0.attn_q.weight:shape=(256, 64):dtype=bf16:elements=16384:bytes=32768
d.gguf:{SHA}:blk.0.ffn_down_exps.weight:shape=(352, 256, 4):dtype=bf16:elements=360448:bytes=720896
"""


@pytest.fixture
def tensor_map(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.map"
    path.write_text(MAP)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my.recipe"
    path.write_text("attn = q8_0  # on the GPU\nexps = q6_K | q8_0\n@default bf16\n")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", rng.standard_normal((20, 64), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", rng.standard_normal((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_and_is_documented(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert f"ggplan {command}" in done.stdout
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", done.stdout))
    section = page.partition(f"## ggplan {command}\n")[2].partition("\n## ")[0]
    assert options == set(re.findall(r"--[a-z-]+", section)), "run tools/make_docs.py"


def test_help_answers_at_once() -> None:
    # The import test keeps heavy modules out; this keeps the whole start in sight, on a busy machine too.
    program = "import time\nfrom ggplan.cli import cli\n"
    program += "try:\n    cli.main(['--help'])\nfinally:\n    print(time.process_time())"
    times = []
    for _ in range(3):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(float(done.stdout.splitlines()[-1]))
    assert min(times) < 0.5  # 0.15 s where nothing else runs


def test_plan_prints_sizes_and_classes(tensor_map: Path, recipe: Path) -> None:
    done = run("plan", tensor_map, "-r", recipe)
    assert done.returncode == 0, done.stderr
    assert re.search(r"routed experts +1 +360 K", done.stdout)
    assert "q8_0" in done.stdout
    assert "4 tensors" in done.stdout
    assert "\x1b" not in done.stdout


def test_plan_lists_tensors_with_their_rule(tensor_map: Path, recipe: Path) -> None:
    done = run("plan", tensor_map, "-r", recipe, "--tensors")
    line = next(line for line in done.stdout.splitlines() if "attn_q" in line)
    assert "my.recipe:1" in line
    assert "q8_0" in line


def test_plan_as_json_and_as_a_file_are_the_same(tensor_map: Path, recipe: Path, tmp_path: Path) -> None:
    done = run("plan", tensor_map, "-r", recipe, "--json", "-o", tmp_path / "plan.json")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    assert plan == json.loads((tmp_path / "plan.json").read_text())
    assert plan["totals"]["tensors"] == 4


def test_an_inventory_plans_like_its_model(source: Path, tmp_path: Path) -> None:
    inventory = tmp_path / "source.json"
    inventory.write_text(run("inspect", source, "--json").stdout)
    plans = [
        json.loads(run("plan", path, "-r", "moe-offload", "--json").stdout) for path in (source, inventory)
    ]
    assert plans[0]["tensors"] == plans[1]["tensors"]


def test_strict_turns_a_fallback_into_an_error(tensor_map: Path, tmp_path: Path) -> None:
    (tmp_path / "r.recipe").write_text("@default q4_K\n")
    assert run("plan", tensor_map, "-r", tmp_path / "r.recipe").returncode == 0
    done = run("plan", tensor_map, "-r", tmp_path / "r.recipe", "--strict")
    assert done.returncode == 1
    assert "352 % 256 = 96" in done.stderr


def test_convert_writes_and_says_what(source: Path, tmp_path: Path) -> None:
    (tmp_path / "r.recipe").write_text("@default q8_0\n")
    target = tmp_path / "out.gguf"
    done = run("convert", source, target, "-r", tmp_path / "r.recipe", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == target.stat().st_size
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(target).tensors}
    assert types == {"token_embd.weight": "Q8_0", "blk.0.attn_q.weight": "Q8_0"}
    again = run("convert", source, target, "-r", tmp_path / "r.recipe")
    assert again.returncode == 1
    assert "--force" in again.stderr


def test_inspect_shows_types_metadata_and_tensors(source: Path) -> None:
    done = run("inspect", source, "--tensors", "--metadata")
    assert done.returncode == 0
    assert "blk.0.attn_q.weight" in done.stdout
    assert "general.architecture" in done.stdout
    assert "64 × 64" in done.stdout


def test_types_lists_what_can_be_written() -> None:
    told = json.loads(run("types", "--json").stdout)["types"]
    rows = [row for row in TYPES if not row.internal]
    assert [t["name"] for t in told] == [row.name for row in rows]
    for shown, row in zip(told, rows, strict=True):
        assert {key: getattr(row, key) for key in shown} == shown
    names = re.findall(r"^  (\w+) ", run("types").stdout.partition("mixes of types")[0], re.M)
    assert names == ["type", *(row.name for row in rows)]
    types = {t["name"]: t for t in told}
    assert types["q4_K"]["encodable"] is True
    assert types["q4_K"]["bits_per_weight"] == 4.5
    assert types["iq4_ks"]["engine"] == "ik_llama.cpp"
    assert "q8_1" not in types
    assert "q4_K" in run("types").stdout


def test_types_lists_those_that_are_named() -> None:
    told = json.loads(run("types", "IQ4_XS", "q4_K", "--json").stdout)
    assert [row["name"] for row in told["types"]] == ["iq4_xs", "q4_K"]
    assert told["mixes"] == []
    assert re.findall(r"^  (\w+) ", run("types", "q4_K").stdout, re.M) == ["type", "q4_K"]
    done = run("types", "q4_Q")
    assert done.returncode == 1
    assert "q4_Q" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "tells"),
    [
        (["plan"], 2, "Missing argument"),
        (["plan", "no-such-model"], 1, "does not exist"),
        (["plan", "{map}", "-r", "no-such-recipe"], 1, "no-such-recipe"),
        (["plan", "{map}", "--fallback", "other"], 2, "Invalid value"),
        (["convert", "{map}", "{folder}/x.gguf"], 1, "without weights"),
        (["convert", "{map}", "{folder}/x.gguf", "-t", "0"], 2, "Invalid value"),
        (["plan", "{map}", "--imatrix", "{map}"], 1, "tiny.map"),
        (["inspect", "{folder}"], 1, "config.json"),
        (["inspect", "/dev/null"], 1, "not a file"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_mistakes_get_one_clear_line(
    tensor_map: Path, tmp_path: Path, arguments: list[str], code: int, tells: str
) -> None:
    empty = tmp_path / "folder"
    empty.mkdir()
    done = run(*[a.format(map=tensor_map, folder=empty) for a in arguments])
    assert done.returncode == code
    assert tells in done.stderr
    assert "Traceback" not in done.stderr
    assert list(empty.iterdir()) == []


def test_a_recipe_error_is_shown_like_a_compilers(tensor_map: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.recipe"
    bad.write_text("attn = q8_0\nexps = Q4_K_M\n")
    done = run("plan", tensor_map, "-r", bad)
    assert done.returncode == 1
    assert "error[GP002]" in done.stderr
    assert "bad.recipe:2:8" in done.stderr
    assert "^^^^^^" in done.stderr


def test_names_from_files_cannot_drive_the_terminal(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.json"
    name = "blk.0.\x1b[31mattn\x07_q.weight"
    hostile.write_text(
        json.dumps(
            {
                "schema": "ggplan/inventory@1",
                "architecture": "x\x1b[2J",
                "metadata": {},
                "tensors": [{"name": name, "shape": [8, 250], "type": "bf16", "stored_as": "bf16"}],
            }
        )
    )
    (tmp_path / "r.recipe").write_text("attn = q4_K\n")
    for arguments in (
        ["plan", hostile, "--tensors", "-r", tmp_path / "r.recipe"],
        ["inspect", hostile, "--tensors"],
    ):
        done = run(*arguments, FORCE_COLOR="")
        assert "\x1b" not in done.stdout + done.stderr
        assert "\x07" not in done.stdout + done.stderr


def test_a_reader_that_leaves_is_no_error_message() -> None:
    program = f"{sys.executable} -m ggplan types --json | head -n 1"
    done = subprocess.run(program, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_conversion_leaves_no_file_of_that_name(tmp_path: Path, number: int, code: int) -> None:
    source, target = tmp_path / "large.gguf", tmp_path / "out.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    weights = np.random.default_rng(0).standard_normal((4096, 8192), np.float32)
    for i in range(8):
        writer.add_tensor(f"blk.{i}.attn_q.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "r.recipe").write_text("@default q2_K\n")
    command = [
        sys.executable,
        "-m",
        "ggplan",
        "convert",
        str(source),
        str(target),
        "-r",
        str(tmp_path / "r.recipe"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "out.gguf.part").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    # It ends with the kernel that it is compiling, which takes a minute on a busy machine.
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in errors
    # What was done by then is kept to go on with; nothing is, if nothing was.
    left = {p.name for p in tmp_path.iterdir()} - {"large.gguf", "r.recipe"}
    assert left in (set(), {"out.gguf.part", "out.gguf.part.journal"})


def test_a_disk_that_refuses_leaves_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    # The largest file the shell allows stands in for a full disk: 4 blocks of 1024 bytes.
    program = f"ulimit -f 4; exec {sys.executable} -m ggplan convert {source} {target}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: cannot write {target}: File too large\n"
    assert [p.name for p in tmp_path.iterdir()] == ["source.gguf"]


def test_demo_runs_offline_and_its_files_are_sound(tmp_path: Path) -> None:
    done = run("demo", "-o", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    files = {p.name: p.stat().st_size for p in (tmp_path / "demo").iterdir()}
    assert len(files) >= 3
    mixes = ("q2_K", "q4_K", "hq6_k", "q8_0", "bf16")
    sizes = [files[f"demo-{mix}.gguf"] for mix in mixes]
    assert sizes == sorted(sizes)
    types = {
        t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "demo" / "demo-hq6_k.gguf").tensors
    }
    assert types["blk.1.ffn_up_exps.weight"] == "Q6_K"
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.1.ffn_down_exps.weight"] == "Q8_0"  # rows of 64 do not divide by 256
    assert types["blk.1.attn_q.weight"] == "Q8_0"
    assert types["blk.1.ffn_gate_inp.weight"] == "F32"
    assert "llama-perplexity" in done.stdout
