"""verify finds what is wrong with a file, says where, and finds nothing in a sound one."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from sound_files import WEIGHTS, write_converted, write_manifest, write_source, write_split

import ggplan
from ggplan.errors import CheckpointError, PlanError
from ggplan.sources.gguf_header import read_header
from ggplan.verification import HEADER, plan_again, verify


def place_of(path: Path, byte: int) -> str:
    """The tensor that a byte of a file belongs to, padding after it included, or the header."""
    header = read_header(path)
    places = [t.name for t in header.tensors if t.offset <= byte]
    return places[-1] if places else HEADER


def test_a_sound_file(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    found = verify(path)
    assert found.is_sound
    assert found.n_tensors == len(WEIGHTS)
    assert found.manifest == tmp_path / "out.gguf.sha256"
    assert found.files == (path,)
    (tmp_path / "out.gguf.sha256").unlink()
    assert verify(path).manifest is None


def test_converting_writes_the_hashes_of_what_is_there(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    by_convert = (tmp_path / "out.gguf.sha256").read_text().splitlines()
    of_contents = [line for line in by_convert if line.startswith(("sha256", "header-sha256"))]
    assert sorted(write_manifest(path).read_text().splitlines()) == sorted(of_contents)
    # The rest is about the source.
    assert {line.split()[0] for line in by_convert if line not in of_contents} == {"source-rows"}


def test_200_of_200_flipped_bits_are_found_where_they_are(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    sound = path.read_bytes()
    data_at = read_header(path).data_at
    dice = random.Random(1)
    # A third each in the header and anywhere; and all padding, which is little.
    ends = [(t.offset + t.n_bytes, -(-(t.offset + t.n_bytes) // 32) * 32) for t in read_header(path).tensors]
    padding = [byte for start, stop in ends for byte in range(start, stop)]
    bytes_ = [dice.randrange(data_at) for _ in range(80)] + [dice.choice(padding) for _ in range(20)]
    bytes_ += [dice.randrange(data_at, len(sound)) for _ in range(100)]
    places = {byte: place_of(path, byte) for byte in bytes_}
    for byte in bytes_:
        damaged = bytearray(sound)
        damaged[byte] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        assert places[byte] in {fault.where for fault in verify(path, threads=1).faults}, byte


def test_without_a_manifest_padding_and_scales_are_still_checked(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    (tmp_path / "out.gguf.sha256").unlink()
    sound = path.read_bytes()
    record = next(t for t in read_header(path).tensors if t.type.name == "q4_K")
    infinite = bytearray(sound)
    infinite[record.offset + 3 * 144 : record.offset + 3 * 144 + 4] = b"\x00\x3c\x00\x7c"
    path.write_bytes(infinite)
    (fault,) = verify(path).faults
    assert (fault.where, fault.kind) == (record.name, "scale")
    assert fault.message == "1 blocks have a scale that is not finite, the first at row 3, block 0"
    record = next(t for t in read_header(path).tensors if t.type.name == "f32")
    infinite = bytearray(sound)
    infinite[record.offset + 4 * 17 : record.offset + 4 * 18] = b"\x00\x00\xc0\x7f"
    path.write_bytes(infinite)
    (fault,) = verify(path).faults
    assert fault.message == "1 weights are not finite, the first at row 0, column 17"
    path.write_bytes(sound + b"x")
    (fault,) = verify(path).faults
    assert (fault.where, fault.message) == (HEADER, "1 bytes after the last tensor")
    path.write_bytes(sound[:-200])
    (fault,) = verify(path).faults
    assert "truncated" in fault.message


def test_scales_of_a_tensor_larger_than_a_piece(tmp_path: Path) -> None:
    rows = np.ones((40, 32 * 1024), np.float32)
    source = write_source(tmp_path / "s.gguf", {"blk.0.attn_q.weight": rows})
    path = tmp_path / "out.gguf"
    plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe("@default q8_0"))
    ggplan.convert(plan, path)
    (tmp_path / "out.gguf.sha256").unlink()
    record = read_header(path).tensors[0]
    with path.open("r+b") as file:
        for block in (39 * 1024 + 5, 40 * 1024 - 1):
            file.seek(record.offset + 34 * block)
            file.write(b"\x00\x7c")
    (fault,) = verify(path).faults
    assert fault.message == "2 blocks have a scale that is not finite, the first at row 39, block 5"


def test_a_split_set_is_one(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    manifest = write_manifest(paths[0])
    assert manifest.name == "set.gguf.sha256"
    for path in paths:
        found = verify(path)
        assert found.is_sound
        assert found.files == tuple(paths)
        assert found.manifest == manifest
    damaged = bytearray(paths[1].read_bytes())
    damaged[-1] ^= 1
    paths[1].write_bytes(damaged)
    (fault,) = verify(paths[0]).faults
    assert (fault.where, fault.file, fault.kind) == ("blk.1.attn_q.weight", paths[1].name, "checksum")
    paths[1].unlink()
    (fault,) = verify(paths[0]).faults
    assert "1 of 2 files of the set are missing" in fault.message


def test_tensors_that_only_one_side_has(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    manifest = tmp_path / "out.gguf.sha256"
    lines = manifest.read_text().splitlines()
    other = lines[0].replace("out.gguf:", "out.gguf:no.such.").replace("\x1b", "")
    manifest.write_text("\n".join([*lines[1:], other]))
    faults = {fault.where: fault.message for fault in verify(path).faults}
    assert len(faults) == 2
    assert "the manifest does not list it" in faults.values()
    assert "the manifest lists it, the file does not have it" in faults.values()
    manifest.write_text("nothing")
    with pytest.raises(CheckpointError, match="is not a manifest"):
        verify(path)
    with pytest.raises(CheckpointError, match="there is no manifest"):
        verify(path, manifest=tmp_path / "gone")


def test_a_manifest_of_a_file_hashed_by_its_path(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    lines = [line for line in (tmp_path / "out.gguf.sha256").read_text().splitlines() if "header" not in line]
    elsewhere = tmp_path / "theirs.txt"
    elsewhere.write_text("\n".join(line.replace("  out.gguf", f"  {path}") for line in lines))
    assert verify(path, manifest=elsewhere).is_sound


def test_errors_against_the_source_worst_first(tmp_path: Path) -> None:
    source, path = write_converted(tmp_path)
    errors = verify(path, against=ggplan.open_model(source)).errors
    assert [e.relative for e in errors] == sorted((e.relative for e in errors), reverse=True)
    by_name = {e.name: e for e in errors}
    assert by_name.keys() == WEIGHTS.keys()
    name = "blk.0.ffn_up_exps.weight"
    expected = ggplan.quantize_error(WEIGHTS[name].reshape(8, 256), "q4_K")
    found = by_name[name]
    assert found.rmse == pytest.approx(expected.rmse)
    assert found.relative == pytest.approx(expected.relative)
    assert found.largest == pytest.approx(expected.largest)
    assert (found.worst_row, found.type, found.source_type) == (expected.worst_row, "q4_K", "f32")
    assert found.worst_row_relative == pytest.approx(expected.worst_row_relative)
    decoded = ggplan.dequantize(ggplan.quantize(WEIGHTS[name], "q4_K"), "q4_K").reshape(-1).astype(np.float64)
    w = WEIGHTS[name].reshape(-1).astype(np.float64)
    assert found.cosine == pytest.approx(w @ decoded / np.linalg.norm(w) / np.linalg.norm(decoded))
    norm = by_name["output_norm.weight"]
    assert (norm.rmse, norm.relative, norm.cosine) == (0, 0, pytest.approx(1))


def test_a_row_that_should_be_zero_is_infinitely_wrong(tmp_path: Path) -> None:
    weights = {"blk.0.attn_q.weight": np.zeros((3, 32), np.float32)}
    source = write_source(tmp_path / "s.gguf", weights)
    weights["blk.0.attn_q.weight"][1, 5] = 1
    other = write_source(tmp_path / "o.gguf", weights)
    (error,) = verify(other, against=ggplan.open_model(source)).errors
    assert (error.worst_row, error.worst_row_relative, error.cosine) == (1, float("inf"), 0)
    (same,) = verify(source, against=ggplan.open_model(source)).errors
    assert (same.relative, same.worst_row_relative, same.cosine) == (0, 0, 1)


def test_another_model_is_a_fault(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    weights = dict(WEIGHTS)
    weights["blk.0.attn_q.weight"] = np.ones((7, 256), np.float32)
    del weights["token_embd.weight"]
    weights["blk.0.attn_k.weight"] = np.ones((7, 256), np.float32)
    other = write_source(tmp_path / "other.gguf", weights)
    faults = {(f.where, f.kind) for f in verify(path, against=ggplan.open_model(other)).faults}
    assert faults == {
        ("blk.0.attn_q.weight", "shape"),
        ("token_embd.weight", "missing"),
        ("blk.0.attn_k.weight", "missing"),
    }


@pytest.mark.parametrize("options", [{}, {"fallback": "ik"}, {"nonfinite": "zero"}])
def test_the_bytes_are_what_the_recorded_recipe_encodes(tmp_path: Path, options: dict[str, str]) -> None:
    # For q6_K's rows of 96 both engines fall back to q8_0; for q5_K's only ik_llama.cpp has another.
    recipe = "ffn_up_exps = q4_K\nffn_down_exps = q4_K\n@default q8_0\n"
    source, path = write_converted(tmp_path, recipe, **options)
    written, model = ggplan.open_model(path), ggplan.open_model(source)
    again = plan_again(written, model)
    assert (again.fallback, again.nonfinite) == (
        options.get("fallback", "llama.cpp"),
        options.get("nonfinite", "refuse"),
    )
    assert verify(path, plan=again).is_sound
    changed = bytearray(path.read_bytes())
    record = next(t for t in read_header(path).tensors if t.name == "blk.0.attn_q.weight")
    changed[record.offset + record.n_bytes - 1] ^= 1  # the last row, five by number
    path.write_bytes(changed)
    write_manifest(path)
    (fault,) = verify(path, plan=again).faults
    assert (fault.where, fault.message) == ("blk.0.attn_q.weight", "row 5 is not what the plan encodes")


def test_metadata_and_types_that_differ_from_the_plan(tmp_path: Path) -> None:
    source, path = write_converted(tmp_path)
    recipe = ggplan.parse_recipe("attn = q8_0\n@default f16", "other.recipe")
    plan = plan_again(ggplan.open_model(path), ggplan.open_model(source), recipe=recipe)
    faults = verify(path, plan=plan).faults
    assert "the key ggplan.recipe.text differs from the plan's" in {f.message for f in faults}
    assert "it is q5_K here and q8_0 by the plan" in {f.message for f in faults}


def test_a_file_that_does_not_say_how_it_was_made(tmp_path: Path) -> None:
    source, path = write_converted(tmp_path)
    with pytest.raises(PlanError, match="does not say how it was made"):
        plan_again(ggplan.open_model(source), ggplan.open_model(source))
    data = path.read_bytes().replace(b"attn = q5_K", b"attn = q4_K")
    path.write_bytes(data)
    with pytest.raises(PlanError, match="does not have its recorded hash"):
        plan_again(ggplan.open_model(path), ggplan.open_model(source))


def test_the_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    source, path = write_converted(tmp_path)
    damaged = bytearray(path.read_bytes())
    for record in read_header(path).tensors:
        damaged[record.offset] ^= 1
    path.write_bytes(damaged)
    model = ggplan.open_model(source)
    one, many = (verify(path, against=model, threads=n) for n in (1, 7))
    assert one == many
    assert {fault.where for fault in one.faults} == WEIGHTS.keys()


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    pieces: list[int] = []
    found = verify(path, progress=pieces.append)
    assert sum(pieces) == found.n_bytes == sum(t.n_bytes for t in read_header(path).tensors)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_not_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.gguf"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"x\.gguf"):
        verify(path)
