"""`ggplan fit` from a shell: what it prints, its exit codes, and its answers about other people's lines."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import gguf
import numpy as np
import pytest
from memory_rows import headers, write_header
from program import run

from ggplan.metadata import MetadataType, scalar
from ggplan.offload.command_traps import TRAPS
from ggplan.offload.commands import parse_command
from ggplan.offload.header import Header

AIR = ("fit", "GLM-4.5-Air", "-r", "glm4moe/hq4_k", "-q")
HOME = (*AIR, "--cards", "3090", "--ram", "128G", "--bandwidth", "80G", "--cores", "16")
GPT = ("fit", "gpt-oss-20b", "-r", "gpt-oss/small", "-q")
LLAMA = ("fit", "Llama-3.1-8B", "-r", "Q4_K_M", "-q")
DEEPSEEK = ("fit", "DeepSeek-V3", "-r", "deepseek2/hq4_k", "-q")


def test_the_answer_for_24_gb_and_128_gb() -> None:
    done = run(*HOME)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "GLM-4.5-Air, llama.cpp b11434: fits" in done.stdout
    assert "blocks have routed experts in RAM" in done.stdout
    assert "streamed to CUDA0 for prompts, one tensor at a time: blk." in done.stdout
    assert "tokens per second" in done.stdout
    assert "llama-server -m GLM-4.5-Air.gguf -c 32768" in done.stdout
    assert "llama-bench -m GLM-4.5-Air.gguf" in done.stdout


def test_json_has_what_the_table_has() -> None:
    found = json.loads(run(*HOME, "--json").stdout)
    assert found["fits"]
    assert [d["name"] for d in found["devices"]] == ["CUDA0", "host"]
    gpu = found["devices"][0]
    assert gpu["left"] == gpu["memory"] - gpu["margin"] - gpu["weights"] - gpu["context"] - gpu["compute"]
    settings = parse_command(shlex.join(found["command"]))
    assert (settings.context, settings.micro_batch) == (found["context"], found["micro_batch"])
    assert parse_command(shlex.join(found["measure"])).program == "llama-bench"
    assert found["generation"]["low"] < found["generation"]["likely"] < found["generation"]["high"]


def test_wishes() -> None:
    done = run(
        *HOME, "--ctx", "16k", "--kv-type", "q8_0", "--ubatch", "1024", "--slots", "2", "--output", "sh",
        "--pin", r"blk\.2\..*_exps=CUDA0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/sh\nexec llama-server ")
    found = parse_command(done.stdout.split("exec ")[1].replace(' "$@"', ""))
    assert (found.context, found.micro_batch, found.slots) == (16384, 1024, 2)
    assert found.cache_k.name == found.cache_v.name == "q8_0"
    assert found.overrides[0].device == "CUDA0"


def test_ik_llama_and_what_each_option_does() -> None:
    done = run(*HOME, "--engine", "ik_llama.cpp", "--explain")
    assert done.returncode == 0, done.stderr
    assert "--no-mmap" in done.stdout
    assert "llama-sweep-bench" in done.stdout
    assert "one thread a core" in done.stdout


def test_explanations_are_no_wider_than_the_terminal() -> None:
    shown = run(*HOME, "--explain", COLUMNS="60").stdout.split("llama-server -m")[1].split("measure it")[0]
    assert "\n  -ngl 99         all layers on the GPU" in shown
    why = [line for line in shown.split("\n\n", 1)[1].splitlines() if not line.startswith("  -ot")]
    assert why
    assert max(map(len, why)) <= 60


def test_a_script_of_a_planned_file_does_not_guess_its_folder(tmp_path: Path) -> None:
    assert " -m GLM-4.5-Air.gguf " in run(*HOME, "--output", "sh").stdout
    path = tied_model(tmp_path / "small.gguf")
    done = run("fit", "small.gguf", "-q", "--gpus", "0", "--output", "sh", folder=tmp_path)
    assert f" -m {path.resolve()} " in done.stdout


def test_a_service() -> None:
    done = run(*HOME, "--output", "systemd")
    assert "\nExecStart=/usr/bin/env llama-server " in done.stdout
    assert done.stdout.endswith("WantedBy=default.target\n")


def test_what_does_not_fit_exits_1_and_its_way_out_fits() -> None:
    wish = ("--vram", "16G", "--ram", "128G", "-c", "128k")
    done = run(*AIR, *wish)
    assert done.returncode == 1
    assert "does not fit" in done.stdout
    assert "CUDA0 is short of" in done.stdout
    assert "llama-server" not in done.stdout
    found = json.loads(run(*AIR, *wish, "--json").stdout)
    assert not found["fits"]
    assert found["shortages"][0]["device"] == "CUDA0"
    offered = [way["options"] for way in found["ways_out"] if way["options"]]
    assert offered
    again = run(*AIR, "--vram", "16G", "--ram", "128G", "-c", "128k", *offered[0].split())
    assert again.returncode == 0, again.stdout


def test_a_script_of_what_does_not_fit_is_none() -> None:
    done = run(*AIR, "--vram", "8G", "--ram", "128G", "--output", "sh")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: CUDA0 is short of")


def test_no_gpu() -> None:
    done = run(*LLAMA, "--ram", "32G", "--gpus", "0", "--json")
    assert [d["name"] for d in json.loads(done.stdout)["devices"]] == ["host"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ctx", "many"), "no number of tokens"),
        (("--kv-type", "q7"), "no type of a KV cache"),
        (("--kv-type", "q8_0,q8_0,q8_0"), "one type"),
        (("--pin", "exps"), "without `=`"),
        (("--pin", "exps=cuda0"), "unknown buffer type"),
        (("--gpus", "3"), "the machine has 1"),
        (("--command", "llama-server", "--check", "llama-server"), "two questions"),
        (("--check", "llama-server", "--output", "sh"), "--output sh"),
        (("--json", "--output", "sh"), "two forms"),
        (("--command", "llama-server", "--ctx", "8k"), "--ctx: --command says that itself"),
        (("--check", "llama-server", "--pin", "a=CPU", "--explain"), "--pin, --explain: --check says"),
    ],
)
def test_wrong_usage(options: tuple[str, ...], message: str) -> None:
    done = run(*HOME, *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_command_is_reckoned_by_device() -> None:
    line = "llama-server -ngl 99 -ncmoe 40 -c 32768 -np 1 -fit off -lm none"
    found = json.loads(run(*AIR, "--command", line, "--gpus", "1", "--json").stdout)
    assert [d["name"] for d in found["devices"]] == ["CUDA0", "host"]
    assert found["devices"][0]["context"] == 46 * 32768 * 2 * 8 * 128 * 2
    assert found["streamed"]["tensor"].endswith("_exps.weight")
    none = json.loads(run(*AIR, "--command", line, "--gpus", "0", "--json").stdout)
    assert [d["name"] for d in none["devices"]] == ["host"]
    text = run(*AIR, "--command", f"{line} -dev none --mmproj p.gguf", "--gpus", "1")
    assert "CUDA0" not in text.stdout
    assert "note: `--mmproj`: the projector's own memory is not reckoned" in text.stderr


def test_devices_keep_their_names_and_overrides_mean_them() -> None:
    line = "llama-server -c 4096 -np 1 -ngl 99 -fit off -ot '_exps=CUDA1'"
    both = json.loads(run(*AIR, "--command", line, "--gpus", "2", "--json").stdout)["devices"]
    one = json.loads(run(*AIR, "--command", f"{line} -dev CUDA1", "--gpus", "2", "--json").stdout)["devices"]
    turned = json.loads(
        run(*AIR, "--command", f"{line} -dev CUDA1,CUDA0 -ts 1,0", "--gpus", "2", "--json").stdout
    )["devices"]
    assert [d["name"] for d in one] == ["CUDA1", "host"]
    assert one[0]["weights"] == both[0]["weights"] + both[1]["weights"]
    assert [d["name"] for d in turned] == ["CUDA1", "CUDA0", "host"]
    assert [d["weights"] for d in turned] == [one[0]["weights"], 0, one[1]["weights"]]
    done = run(*AIR, "--command", f"{line} -dev CUDA0", "--gpus", "2")
    assert done.returncode == 1
    assert "-dev leaves this device out" in done.stderr
    checked = run(*AIR, "--check", f"{CPU} -dev CUDA0", "--vram", "24G,24G", "--ram", "512G", "--json")
    assert "FC204" not in [t["code"] for t in json.loads(checked.stdout)["traps"]]


def test_a_default_that_costs_little_is_a_note() -> None:
    # Windows of 128 tokens for 4 slots are 6 MiB of gpt-oss-20b, those of 1,024 are 663 MiB of gemma-3-27b.
    line = "llama-server -hf ggml-org/gpt-oss-20b-GGUF --ctx-size 32768 --jinja -ub 2048 -b 2048"
    done = run(*GPT, "--check", line, "--vram", "32G", "--ram", "64G")
    assert done.returncode == 0, done.stdout
    assert "note FC307" in done.stdout


def test_the_usual_line_of_ik_llama_for_deepseek() -> None:
    line = "llama-server -m x -c 32768 -ctk q8_0 -mla 3 -fa on -amb 512 -ngl 63 -ot exps=CPU --no-mmap -t 16"
    done = run(
        *DEEPSEEK, "--engine", "ik_llama.cpp", "--check", line, "--vram", "48G", "--ram", "1T", "--json"
    )
    assert json.loads(done.stdout)["traps"] == []
    done = run(*DEEPSEEK, "--engine", "ik_llama.cpp", "--command", line, "--gpus", "1", "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("llama-server --no-mmap", "`--no-mmap` no longer exists in llama.cpp"),
        ("llama-server -c 512 -ot exps=CUDA1", "there is no device CUDA1"),
        ("llama-server -c 512 -dev CUDA7", "-dev CUDA7: there is no such device"),
        ("rm -rf /", "`rm` is no program of llama.cpp"),
    ],
)
def test_a_command_that_cannot_be_reckoned(line: str, message: str) -> None:
    done = run(*AIR, "--command", line, "--gpus", "1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}" if message[0] == "`" else "error: ")
    assert message in done.stderr


GOOD = "llama-server -m x.gguf -c 32768 -np 1 -ngl 99 -fit off -fa on -ub 512 -cram 0 -lm none"
CPU = f"{GOOD} -ncmoe 47"
# For each trap: the model, the line, the machine.
LINES = {
    "FC101": (AIR, f"{CPU} --ctx-sice 3", "24G"),
    "FC102": (AIR, f"{CPU} -rtr", "24G"),
    "FC103": (AIR, f"{CPU} --mlock", "24G"),
    "FC104": (AIR, CPU.replace("32768", "32k"), "24G"),
    "FC105": (AIR, f"{CPU} -t", "24G"),
    "FC106": (AIR, f"{CPU} -ot 'blk.{{1,2}}.ffn=CPU'", "24G"),
    "FC107": (AIR, f"{CPU} -ot exps=CUDA1", "24G"),
    "FC108": (AIR, f"{CPU} -c 4096", "24G"),
    "FC109": (AIR, "llama-bench -m x.gguf -ngl 99 -ncmoe 47 -ub 512,2048 -lm none", "24G"),
    "FC201": (AIR, f"{GOOD} -ot blk1.*exps=CPU -cmoe", "24G"),
    "FC202": (AIR, f"{GOOD} -cmoe -ot 'blk\\.1\\..*exps=CUDA0'", "24G"),
    "FC203": (AIR, f"{GOOD} -ot 'blk\\.1.*exps=CUDA0' -cmoe", "48G"),
    "FC204": (AIR, CPU, "24G,24G"),
    "FC205": (AIR, CPU.replace("-ngl 99", "-ngl 47"), "24G"),
    "FC206": (LLAMA, f"{GOOD} -ncmoe 3", "24G"),
    "FC207": (AIR, f"{CPU} -ts 3,1", "24G"),
    "FC301": (AIR, GOOD, "24G"),
    "FC302": (AIR, CPU, None),
    "FC303": (AIR, CPU.replace(" -cram 0", ""), "24G"),
    "FC304": (AIR, "llama-server -m x.gguf -ngl 99 -cmoe -np 1 -cram 0 -lm none", "24G"),
    "FC305": (AIR, "llama-server -m x.gguf -cmoe -c 4096 -np 1 -cram 0 -lm none", "24G"),
    "FC307": (GPT, GOOD.replace("-np 1 ", ""), "24G"),
    "FC309": (AIR, CPU.replace("-ub 512", "-ub 4096"), "24G"),
    "FC310": (AIR, CPU.replace("-lm none", "-lm mmap"), "24G"),
    "FC311": (AIR, f"{CPU} --no-host", "24G"),
    "FC312": (AIR, f"{CPU} -t 64", "24G"),
    "FC401": (DEEPSEEK, f"{CPU} -ctk q8_0", "48G"),
    "FC402": (AIR, f"{CPU} -ctk iq4_nl -ctv iq4_nl", "24G"),
    "FC403": (AIR, f"{CPU} -ctv q8_0 -ctk q8_0".replace("-fa on ", "-fa off "), "48G"),
    "FC404": (AIR, f"{CPU} -ctk q8_0", "24G"),
    "FC406": (AIR, CPU.replace("-fa on", "-fa off"), "48G"),
}


@pytest.mark.parametrize("code", sorted(LINES))
def test_each_trap_is_found(code: str) -> None:
    model, line, vram = LINES[code]
    if vram is None:  # just less than what it takes with the tensor that is streamed
        found = json.loads(run(*model, "--command", line, "--gpus", "1", "--json").stdout)
        gpu = found["devices"][0]
        taken = gpu["weights"] + gpu["context"] + max(gpu["compute"], 1)
        vram = f"{taken + (1 << 30) - 1000}B"
    ram = "78G" if code == "FC303" else "512G"
    done = run(*model, "--check", line, "--vram", vram, "--ram", ram, "--cores", "16", "--json")
    traps = {t["code"]: t for t in json.loads(done.stdout)["traps"]}
    assert code in traps, done.stdout
    assert traps[code]["remedy"]
    assert "\n" not in traps[code]["message"] + traps[code]["remedy"]
    is_fault = any(t["severity"] != "note" for t in traps.values())
    assert done.returncode == int(is_fault)


def test_every_trap_has_a_line() -> None:
    # The others are of no model that ships as an inventory: see below.
    assert set(TRAPS) - set(LINES) == {"FC306", "FC308", "FC405"}


def test_the_page_lists_every_trap() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fitting.md").read_text(encoding="utf-8")
    assert [f"| {code} | {about} |" for code, about in TRAPS.items()] == [
        line for line in page.splitlines() if line.startswith("| FC")
    ]


def test_a_good_line_has_no_fault_and_one_of_our_own_has_none() -> None:
    machine = ("--vram", "24G", "--ram", "128G")
    done = run(*AIR, "--check", CPU, *machine)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no faults in the command line" in done.stderr
    own = run(*AIR, *machine, "--output", "sh").stdout.split("exec ")[1].replace(' "$@"', "")
    done = run(*AIR, "--check", own, *machine)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_line_for_gpus_that_are_not_here_is_checked_all_the_same() -> None:
    line = f"{CPU} -ctk iq4_nl -ctv iq4_nl"
    done = run(*AIR, "--gpus", "0", "--check", line)
    assert done.returncode == 1
    assert "FC402" in done.stdout
    done = run(*AIR[:-1], "--gpus", "0", "--check", CPU)
    assert "checked for 1 of unknown size" in done.stderr
    done = run(*AIR[:-1], "--command", CPU, "--gpus", "0")
    assert "no GPU is stated, so all is in RAM" in done.stderr


def test_traps_are_told_with_their_lines() -> None:
    line = "llama-server -m x.gguf -c 4096 -np 1 -fit off \\\n  -ngl 99 -cmoe -cram 0 \\\n  --no-mmap"
    done = run(*AIR, "--check", line, "--vram", "24G", "--ram", "128G")
    assert done.returncode == 1
    assert (
        "line 3: error FC103: `--no-mmap` no longer exists in llama.cpp\n    write -lm none\n" in done.stdout
    )
    assert "1 fault in the command line" in done.stderr


def test_an_option_in_the_place_of_a_value_is_read_itself() -> None:
    done = run(*AIR, "--check", f"{CPU} -fa --no-mmap -fmoe -sm row -b", "--vram", "24G,24G", "--ram", "128G")
    assert "FC104: `-fa --no-mmap`: --no-mmap is not on, off or auto" in done.stdout
    assert "FC103: `--no-mmap` no longer exists" in done.stdout
    assert "FC102: `-fmoe` was an option of ik_llama.cpp" in done.stdout
    assert "FC105: `-b` has no value\n    write a whole number after it" in done.stdout
    assert "-sm row is reckoned as -sm layer" in done.stderr


def test_an_image_of_the_server_stands_for_it() -> None:
    image = "docker run --gpus all -v /m:/m ghcr.io/ggml-org/llama.cpp:server-cuda"
    machine = ("--vram", "24G", "--ram", "128G")
    done = run(*AIR, "--check", CPU.replace("llama-server", image), *machine)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_blank_behind_a_backslash_is_told() -> None:
    done = run(
        *AIR, "--check", "llama-server -m x.gguf \\\n -c 4096 \\ \n -ngl 99", "--vram", "24G", "--ram", "64G"
    )
    assert done.returncode == 1
    assert "line 2 of the command ends in `\\` and a blank" in done.stderr


def test_four_slots_that_hardly_cost_are_no_fault() -> None:
    line = GOOD.replace("-np 1 ", "")
    options = ("--vram", "24G", "--ram", "128G", "--json")
    traps = {t["code"]: t for t in json.loads(run(*GPT, "--check", line, *options).stdout)["traps"]}
    assert traps["FC307"]["severity"] == "note"


def test_latent_attention_of_ik_llama_takes_the_type_of_keys_alone() -> None:
    line = "llama-server -ngl 99 -ctk q8_0 -mla 3 -fa on -c 32768 -np 1 -ot exps=CPU"
    options = (*DEEPSEEK, "--gpus", "1", "--engine", "ik_llama.cpp", "--json", "--command")
    one, both = (json.loads(run(*options, text).stdout) for text in (line, f"{line} -ctv q8_0"))
    assert one["devices"] == both["devices"]
    done = run(*DEEPSEEK, "--gpus", "1", "--command", line.replace("-mla 3 ", ""))
    assert done.returncode == 1
    assert "`--kv-type q8_0`, or `-ctk q8_0 -ctv q8_0`" in done.stderr


def test_what_is_worth_a_second_thought_is_noted(tmp_path: Path) -> None:
    path = tied_model(tmp_path / "small.gguf")
    for context, is_long in (("4k", False), ("128k", True)):
        done = run("fit", str(path), "-q", "--vram", "8G", "--ram", "8G", "--ctx", context)
        assert ("trained with 4,096 tokens" in done.stdout) == is_long
    done = run(*LLAMA, "--vram", "48G", "--ram", "64G", "--kv-type", "q8_0,q5_1")
    assert "keys in q8_0 and values in q5_1" in done.stdout
    done = run(*LLAMA, "--vram", "48G", "--ram", "64G", "--ctx", "64k", "--slots", "4", "--explain")
    assert "each of 4 conversations has 16,384 tokens" in done.stdout
    assert "after 16,384 tokens" in done.stdout


def test_what_can_never_fit_is_told_in_bits() -> None:
    done = run(*DEEPSEEK, "--vram", "24G", "--ram", "64G")
    assert done.returncode == 1
    assert "if it fitted:" in done.stdout
    assert "bits a weight, and iq2_xxs takes 2.1" in " ".join(done.stdout.split())


def tied_model(path: Path, n_vocab: int = 320) -> Path:
    """A small Llama whose output is its table of tokens; heads of 16, which q8_0 does not divide."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(4096)
    shapes = {"token_embd.weight": (n_vocab, 64), "output_norm.weight": (64,)}
    for block in range(2):
        rows = {"attn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64),
                "attn_output": (64, 64), "ffn_norm": (64,), "ffn_gate": (128, 64), "ffn_up": (128, 64),
                "ffn_down": (64, 128)}  # fmt: skip
        shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in rows.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_and_its_first_bytes(tmp_path: Path) -> None:
    file = tied_model(tmp_path / "a model.gguf")
    done = run("fit", file, "--vram", "8G", "--ram", "16G", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"][:3] == ["llama-server", "-m", str(file)]
    part = tmp_path / "part.gguf"
    part.write_bytes(file.read_bytes()[:4000])
    again = run("fit", part, "--vram", "8G", "--ram", "16G", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["devices"] == json.loads(done.stdout)["devices"]
    assert "note: " in again.stderr
    assert "it is truncated" in again.stderr
    part.write_bytes(file.read_bytes()[:1000])
    assert run("fit", part, "--vram", "8G", "--ram", "16G").returncode == 1


def test_a_tied_output_and_heads_that_no_block_divides(tmp_path: Path) -> None:
    file = tied_model(tmp_path / "tied.gguf")
    line = "llama-server -c 512 -np 1 -ngl 99 -fit off -fa on -cram 0 -ctk q8_0 -ctv q8_0"
    done = run("fit", file, "--check", line, "--vram", "8G", "--ram", "16G", "--json")
    found = {t["code"]: t["severity"] for t in json.loads(done.stdout)["traps"]}
    assert found == {"FC308": "note", "FC405": "error"}
    assert done.returncode == 1
    line = line.replace("-c 512 ", "").replace("q8_0", "f16")
    done = run("fit", file, "--check", line, "--vram", "8G", "--ram", "16G", "--json")
    traps = json.loads(done.stdout)["traps"]
    assert [t["code"] for t in traps] == ["FC306", "FC308"]
    assert "4,096 tokens" in traps[0]["message"]


def split_set(folder: Path) -> list[Path]:
    """A model in two files, each its header alone."""
    whole = headers("models")["Qwen3-8B.q4km"]
    half = len(whole.tensors) // 2
    found = []
    for i, tensors in enumerate((whole.tensors[:half], whole.tensors[half:])):
        metadata = dict(whole.metadata) if not i else {}
        metadata |= {
            "split.no": scalar(MetadataType.UINT16, i),
            "split.count": scalar(MetadataType.UINT16, 2),
        }
        metadata["split.tensors.count"] = scalar(MetadataType.INT32, len(whole.tensors))
        path = folder / f"q-{i + 1:05}-of-00002.gguf"
        found.append(write_header(Header("q", metadata, tensors), path))
    return found


def test_of_a_split_set_all_files_count_and_the_first_is_named(tmp_path: Path) -> None:
    first, second = split_set(tmp_path)
    machine = ("-q", "--cards", "3090", "--ram", "64G", "-c", "8k", "--json")
    whole = headers("models")["Qwen3-8B.q4km"]
    for given in (first, second, tmp_path):
        done = run("fit", str(given), *machine)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["command"][1:3] == ["-m", str(first)]
        assert sum(d["weights"] for d in found["devices"]) >= sum(t.n_bytes for t in whole.tensors)
    planned = json.loads(run("fit", str(first), "-r", "Q4_K_M", *machine).stdout)
    assert planned["command"][1:3] == ["-m", "q-planned.gguf"]
    second.unlink()
    done = run("fit", str(first), *machine)
    assert done.returncode == 1
    assert "1 of 2 files of the set are missing" in done.stderr
    assert "--header-only" not in done.stderr
    done = run("fit", str(first), "-q", "--command", "llama-server -c 512", "--gpus", "1")
    assert done.returncode == 1
