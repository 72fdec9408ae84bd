"""What commands do with a checkpoint that is odd, unfinished or of an unknown tokenizer."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parent.parent / "arch"))

from folder_variants import VARIANTS
from tiny_checkpoints import read_case, write_case

import ggplan
from ggplan.cli import cli
from ggplan.errors import Error
from ggplan.planning.layout import encode_header


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer llama.cpp does not know."""
    return write_case(tmp_path / "model", read_case("mistral"))


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> Path:
    """Its GGUF."""
    path = tmp_path / "made.gguf"
    ggplan.convert(ggplan.make_plan(ggplan.open_model(folder, pre="glm4")), path)
    return path


UNKNOWN = "llama.cpp does not know this tokenizer"


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "{}"),
        ("plan", "{}", "-r", "Q4_K_M"),
        ("rules", "from", "{}"),
        ("rules", "check", "{recipe}", "-m", "{}"),
        ("rules", "explain", "blk.0.attn_q.weight", "-r", "{recipe}", "-m", "{}"),
        ("rules", "export", "{recipe}", "-m", "{}", "--dialect", "llama-quantize"),
        ("rules", "new", "--from", "{}"),
        ("diff", "{}", "{}"),
        ("verify", "{made}", "--against", "{}"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_what_needs_no_tokenizer_goes_on_with_a_note(
    folder: Path, made: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    recipe = tmp_path / "my.recipe"
    recipe.write_text("@arch llama\nattn = q8_0\nffn_ = q4_0\n@default q8_0\n")
    found = run(
        *(
            a.replace("{recipe}", str(recipe)).replace("{made}", str(made)).replace("{}", str(folder))
            for a in arguments
        )
    )
    assert found.exit_code in (0, 1), found.output
    assert not isinstance(found.exception, Error)
    assert f"note: {folder}/tokenizer.json: {UNKNOWN}" in found.stderr
    assert "--pre NAME" in found.stderr


def test_convert_needs_the_name_and_takes_no_other(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    unnamed = run("convert", folder, output)
    assert isinstance(unnamed.exception, Error)
    assert UNKNOWN in unnamed.exception.message
    assert "--pre NAME" in unnamed.exception.hint
    assert "note:" not in unnamed.stderr
    misspelt = run("convert", folder, output, "--pre", "glm-4")
    assert isinstance(misspelt.exception, Error)
    assert misspelt.exception.hint == "the nearest is glm4"
    assert not output.exists()
    assert run("convert", folder, output, "--pre", "glm4").exit_code == 0


def test_verify_finds_a_name_that_llama_cpp_does_not_know(made: Path) -> None:
    assert run("verify", made).exit_code == 0
    data = made.read_bytes()
    made.with_name("made.gguf.sha256").unlink()
    made.write_bytes(data.replace(b"\x04\0\0\0\0\0\0\0glm4", b"\x04\0\0\0\0\0\0\0glm9"))
    found = run("verify", made)
    assert found.exit_code == 1
    assert "tokenizer.ggml.pre is 'glm9', which llama.cpp does not know; the nearest is glm" in found.output


def test_stray_files_are_noted(tmp_path: Path) -> None:
    folder = VARIANTS["index_and_stray"].write(tmp_path / "model")
    for command in (("inspect", folder), ("plan", folder), ("convert", folder, tmp_path / "a.gguf")):
        found = run(*command, "--pre", "glm4")
        assert found.exit_code == 0
        assert found.stderr.count("not read: model.safetensors; model.safetensors.index.json") == 1
    quiet = run("convert", folder, tmp_path / "b.gguf", "--pre", "glm4", "-q")
    assert "not read" not in quiet.stderr
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_file_that_is_cut_short(made: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(made.read_bytes()[:30_000])
    whole = run("inspect", made).stdout.splitlines()[1:]
    shown = run("inspect", cut)
    assert isinstance(shown.exception, Error)  # which the program prints, and exits with 1
    assert "it is truncated: it has 30,000 bytes and should have" in shown.exception.message
    assert shown.stdout.splitlines()[1:] == whole
    meant = run("inspect", cut, "--header-only")
    assert meant.exit_code == 0
    assert meant.stdout.splitlines()[1:] == whole
    assert meant.stderr.count("truncated") == 1
    for command in (
        ("plan", cut, "-r", "Q4_K_M"),
        ("rules", "from", cut),
        ("diff", cut, made),
        ("chart", cut, "--kind", "types", "-o", tmp_path / "types.svg"),
    ):
        refused = run(*command)
        assert refused.exit_code != 0
        found = run(*command, "--header-only")
        assert found.exit_code == 0, (command, found.output)
        assert found.stderr.count("truncated") == 1
    rules = [run("rules", "from", file, "--header-only", "--name", "x").stdout for file in (cut, made)]
    assert rules[0].replace("cut.gguf", "made.gguf") == rules[1]
    refused = run("convert", cut, tmp_path / "new.gguf")
    assert "truncated" in str(refused.exception)
    assert not (tmp_path / "new.gguf").exists()


def test_one_safetensors_file(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    found = run("inspect", path, "--tensors")
    assert found.exit_code == 0
    assert "model.layers.0.self_attn.q_proj.weight" in found.stdout
    assert "BF16" in found.stdout
    listing = json.loads(run("inspect", path, "--json").stdout)
    assert listing["schema"] == "ggplan/safetensors@1"
    assert {"name": "model.norm.weight", "shape": [64], "dtype": "BF16", "bytes": 128} in listing["tensors"]
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:20_000])
    shown = run("inspect", cut)
    assert "the file is truncated: it has 20,000 bytes" in str(shown.exception)
    assert run("inspect", cut, "--header-only").exit_code == 0
    for command in (("plan", path), ("convert", path, tmp_path / "a.gguf")):
        assert "is one file of a Hugging Face checkpoint" in str(run(*command).exception)


def test_an_error_is_printed_once_in_one_style(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unittest import mock

    from ggplan.cli import main

    with (
        mock.patch.object(sys, "argv", ["ggplan", "convert", str(folder), "x.gguf"]),
        pytest.raises(SystemExit) as left,
    ):
        main()
    assert left.value.code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {folder}/tokenizer.json: {UNKNOWN}")
    assert second.startswith("help: name it with --pre NAME, e.g. glm4")


def test_a_matrix_of_one_row_has_one_dimension_in_the_header() -> None:
    """As `ggml_n_dims` counts them when llama-quantize writes a file."""
    shapes = {"a": (1, 64), "b": (1, 1, 32), "c": (4, 1), "d": (1, 3, 8), "e": (8,), "f": (1,), "g": ()}
    header = encode_header({}, [(name, shape, 0, 0) for name, shape in shapes.items()])
    n_dims = {"a": 1, "b": 1, "c": 2, "d": 2, "e": 1, "f": 1, "g": 1}
    at = 24
    for name, expected in n_dims.items():
        assert header[at + 8 : at + 9] == name.encode()
        assert int.from_bytes(header[at + 9 : at + 13], "little") == expected, name
        at += 13 + 8 * expected + 12


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "model.gguf"
    link.symlink_to(tmp_path / "blobs" / "4d4d")
    done = run("inspect", link)
    assert done.exit_code == 1
    assert f"{link} is a link to {tmp_path}/blobs/4d4d, where there is nothing" in str(done.exception)
    assert "the nearest is" not in str(done.exception)


def test_standard_input_that_is_closed() -> None:
    command = f"{shlex.quote(sys.executable)} -m ggplan inspect - <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "standard input is closed" in done.stderr
