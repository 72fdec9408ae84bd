"""Files that stand for others, or end too early: every reader names what they are, and the way out."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from handmade_gguf import gguf, record
from handmade_safetensors import write_safetensors
from program import run

import ggplan
from ggplan.allocation.sensitivity_tables import read_sensitivities
from ggplan.charts.tensors import read_plan
from ggplan.conversion.manifest import read_manifest
from ggplan.errors import CheckpointError, Error, TruncatedError
from ggplan.measure.base_logits import is_base_logits
from ggplan.measure.parsing import parse_files
from ggplan.measure.record_file import load_record
from ggplan.measure.subjects import read_state
from ggplan.sources.gguf import open_gguf
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.json_files import load_object
from ggplan.sources.safetensors import read_file, read_tensors

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 4976698672\n"
ONES = np.ones((2, 4), np.float32)


def folder(path: Path) -> Path:
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def shard(path: Path) -> object:
    return read_tensors(path)


def index(path: Path) -> object:
    write_safetensors(path.parent / "model.safetensors", {"a": ONES})
    path.rename(path.parent / "model.safetensors.index.json")
    return open_checkpoint(folder(path.parent))


READERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": shard,
    "index": index,
    "model.gguf": open_gguf,
    "config.json": load_object,
    "pytorch_model.bin": lambda path: open_checkpoint(folder(path.parent)),
    "imatrix.dat": ggplan.load_imatrix,
    "imatrix.gguf": ggplan.load_imatrix,
    "model.map": ggplan.open_model,
    "x.gguf.sha256": read_manifest,
    "table.csv": read_sensitivities,
    "record.json": load_record,
    "plan.json": read_plan,
    "a.log": parse_files,
}
WHOLE = {"table.csv": "table of sensitivities", "record.json": "record", "plan.json": "plan", "a.log": "log"}
"""What is read at once, and what it is called."""


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", [POINTER, POINTER.replace("\n", "\r\n")], ids=["LF", "CRLF"])
def test_a_git_lfs_pointer_is_named_by_every_reader(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    with pytest.raises(Error, match="is a Git LFS pointer, not the file of 4,976,698,672 bytes") as caught:
        READERS[name](path)
    assert caught.value.hint == f"run `git lfs pull` in {tmp_path}"
    assert str(caught.value).count("Git LFS pointer") == 1


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_read_whole_is_not_larger_than_any(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate((1 << 40) - 1)  # without blocks on the disk
    with pytest.raises(Error) as caught:
        READERS[name](path)
    assert re.fullmatch(rf"{path} is larger than any {WHOLE[name]} \((64|256) MiB\)", caught.value.message)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_read_whole_is_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(Error) as caught:
        READERS[name](tmp_path / name)
    assert caught.value.message == f"cannot read {tmp_path / name}: No such file or directory"
    (tmp_path / name).mkdir()
    with pytest.raises(Error, match=rf"^{tmp_path / name} is (a folder|not a file)"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("read", [parse_files, load_record, read_plan])
def test_a_pipe_is_read_once_something_writes_and_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    monkeypatch.setattr("ggplan.substitutes.WAIT_FOR_WRITER", 0.05)
    with pytest.raises(Error, match="a named pipe, and nothing writes into it"):
        read(path)
    monkeypatch.undo()
    text = "## M-Q8_0.gguf\nFinal estimate: PPL = 8.1890 +/- 0.06369\n"
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(path.write_text, text)
        if read is parse_files:
            (found,) = parse_files([path])
            assert found.quantizations[0].name == "M-Q8_0"
        else:
            with pytest.raises(Error):
                read(path)
        assert written.result() == len(text)


def test_what_is_read_twice_is_no_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert not is_base_logits(path)
    with pytest.raises(Error, match="pipe is no file") as caught:
        read_state(path)
    assert caught.value.hint == "save it as one: it is read more than once"


def test_a_web_page_is_no_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"\n <!DOCTYPE html>\n<html><body>Sign in</body></html>" + bytes(9000))
    with pytest.raises(CheckpointError, match="is a web page"):
        open_gguf(path)


def test_what_only_begins_like_a_pointer_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version https://git-lfs.github.com/spec/v1": 1}')
    assert load_object(tmp_path / "a.json")


def test_a_safetensors_file_that_is_cut_short(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": ONES, "b": ONES, "c": ONES})
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-40])
    said = rf"it has {size - 40:,} bytes and should have {size:,}; it ends within tensor 'b'"
    with pytest.raises(TruncatedError, match=said):
        read_tensors(path)
    tensors, truncated = read_file(path)
    assert list(tensors) == ["a", "b", "c"]
    assert truncated is not None
    with pytest.raises(TruncatedError, match=said):
        open_checkpoint(folder(tmp_path))
    assert list(open_checkpoint(tmp_path, header_only=True).tensors) == ["a", "b", "c"]


def two_tensors() -> bytes:
    records = [record("token_embd.weight", (32, 2), 0, 0), record("blk.0.ffn_up.weight", (32, 4), 8, 256)]
    return gguf([], records, bytes(256 + 4 * 34 + 24))


@pytest.mark.parametrize(("kept", "where"), [(300, "token_embd.weight"), (40, "blk.0.ffn_up.weight")])
def test_a_gguf_file_that_is_cut_short(tmp_path: Path, kept: int, where: str) -> None:
    path = tmp_path / "model.gguf"
    whole = two_tensors()
    path.write_bytes(whole[: len(whole) - kept])
    should = len(whole) - 24  # the padding after the last tensor may be missing
    sizes = f"it has {len(whole) - kept:,} bytes and should have {should:,}"
    said = rf"within tensor '{where}'; it is truncated: {sizes}"
    with pytest.raises(TruncatedError, match=said) as caught:
        open_gguf(path)
    assert "--header-only reads what its header says" in caught.value.hint
    model = ggplan.open_model(path, header_only=True)
    assert [(t.name, t.shape, t.type.name) for t in model.tensors] == [
        ("token_embd.weight", (2, 32), "f32"),
        ("blk.0.ffn_up.weight", (4, 32), "q8_0"),
    ]
    assert model.obstacle is not None
    with pytest.raises(TruncatedError, match=said):
        ggplan.convert(ggplan.make_plan(model), tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_a_header_that_is_cut_short_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(two_tensors()[:60])
    with pytest.raises(CheckpointError, match="the file ends within its header"):
        ggplan.open_model(path, header_only=True)


def test_a_whole_file_read_for_its_header_can_be_converted(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(two_tensors())
    assert ggplan.open_model(path, header_only=True).obstacle is None


def test_the_first_file_of_a_set_alone(tmp_path: Path) -> None:
    from handmade_gguf import U16, U32, pair

    def part(number: int, name: str) -> bytes:
        keys = [
            pair("split.no", U16, struct.pack("<H", number)),
            pair("split.count", U16, struct.pack("<H", 2)),
            pair("split.tensors.count", U32, struct.pack("<I", 2)),
        ]
        return gguf(keys, [record(name, (32, 2), 0, 0)], bytes(256))

    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(part(0, "a.weight"))
    with pytest.raises(TruncatedError, match=r"1 of 2 files of the set are missing: m-00002-of-00002\.gguf"):
        open_gguf(path)
    alone = open_gguf(path, header_only=True)
    assert [tensor.name for tensor in alone.tensors] == ["a.weight"]
    assert isinstance(alone.obstacle, TruncatedError)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(part(1, "b.weight"))
    whole = open_gguf(path, header_only=True)
    assert [tensor.name for tensor in whole.tensors] == ["a.weight", "b.weight"]
    assert whole.obstacle is None


@pytest.mark.parametrize(
    "command",
    [
        ("rules", "check", "FILE"), ("rules", "import", "FILE"),
        ("inspect", "FILE"), ("chart", "FILE", "-o", "x.svg"),
        ("plan", "Qwen3-8B", "-r", "FILE"), ("verify", "x.gguf", "--manifest", "FILE"),
        ("measure", "--parse", "FILE"),
    ],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
def test_a_git_lfs_pointer_is_named_by_every_command(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / ("a.log" if "--parse" in command else "a.recipe")
    path.write_text(POINTER)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    done = run(*(str(path) if word == "FILE" else word for word in command), folder=tmp_path)
    assert done.returncode == 1
    assert "a Git LFS pointer, not the file of 4,976,698,672 bytes" in done.stderr + done.stdout
    assert "git lfs pull" in done.stderr + done.stdout
