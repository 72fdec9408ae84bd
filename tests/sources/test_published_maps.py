"""Tensor maps as people publish them: fields that come and go, sizes counted in other ways."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ggplan.errors import CheckpointError
from ggplan.ggml_types import TYPES, GgmlType
from ggplan.planning import make_plan
from ggplan.sources.inventory import open_inventory

CASES = Path(__file__).parent.parent / "data" / "cases"
SHA = "ab" * 32
FILED = [type_ for type_ in TYPES if not type_.internal]


def line(name: str, shape: tuple[int, ...], type_: str, n_bytes: int, *more: str) -> str:
    """A line of a map; the shape is ggml's, ne0 first."""
    dims = f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"
    fields = [f"shape={dims}", f"dtype={type_}", f"elements={math.prod(shape)}", f"bytes={n_bytes}", *more]
    return ":".join(["m-SPECIAL_TENSOR-00002-of-00004.gguf", SHA, name, *fields])


def written(tmp_path: Path, *lines: str, end: str = "\n") -> Path:
    path = tmp_path / "tensors.map"
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


@pytest.mark.parametrize(("name", "n_tensors"), [("imatrix-field", 3), ("imatrix-field-first", 2)])
def test_the_imatrix_field_is_read_and_named_once(name: str, n_tensors: int) -> None:
    model = open_inventory(CASES / f"{name}.map")
    assert len(model.tensors) == n_tensors
    (note,) = model.notes
    assert "names the importance matrix cdcdcdcdcdcd for 1 tensor: its hash alone" in note
    assert make_plan(model, "moe-offload").tensor_bytes > 0


@pytest.mark.parametrize("type_", FILED, ids=str)
@pytest.mark.parametrize("spelling", [str.lower, str.upper, str])
def test_a_map_of_each_type_opens_with_and_without_row_scales(
    tmp_path: Path, type_: GgmlType, spelling: type[str]
) -> None:
    shape = (2 * type_.block_size, 4 * type_.row_group, 3)
    whole = type_.tensor_bytes(shape[::-1])
    blocks = whole - type_.row_extra_bytes * shape[1] * shape[2]
    for stated in {whole, blocks}:
        lines = [line(f"blk.{i}.ffn_up_exps.weight", shape, spelling(type_.name), stated) for i in range(2)]
        model = open_inventory(written(tmp_path, *lines))
        assert [t.n_bytes for t in model.tensors] == [whole, whole]
        assert len(model.notes) == (stated != whole)
        if model.notes:
            assert (
                "less for the scales of rows of 2 tensors, the first blk.0.ffn_up_exps.weight"
                in model.notes[0]
            )
            assert model.notes[0].endswith("ggplan plans with its own sizes")


@pytest.mark.parametrize(
    ("type_", "shape", "stated"),
    [
        ("f32", (1,), 32),  # gemma-4's layer_output_scale
        ("f32", (7,), 32),
        ("f16", (1,), 64),
        ("i32", (3,), 16),
        ("q8_0", (32, 1), 64),
        ("iq2_ks", (256, 1), 96),  # 70 bytes without the scale of the row
    ],
)
def test_padded_sizes_are_taken_and_noted_once(
    tmp_path: Path, type_: str, shape: tuple[int, ...], stated: int
) -> None:
    lines = [line(f"blk.{i}.layer_output_scale.weight", shape, type_, stated) for i in range(3)]
    model = open_inventory(written(tmp_path, *lines))
    assert all(t.n_bytes < stated for t in model.tensors)
    assert [note for note in model.notes if "of padding as part of 3 tensors, the first blk.0." in note]


def test_each_kind_of_difference_has_its_own_note(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        line("blk.0.layer_output_scale.weight", (1,), "f32", 32),
        line("blk.0.attn_q.weight", (4096, 1024), "iq1_kt", 917504, f"imatrix={SHA}"),
        line("blk.0.attn_k.weight", (4096, 1024), "iq1_kt", 917504, f"imatrix={SHA}"),
        line("blk.0.attn_norm.weight", (4096,), "f32", 16384),
    )
    assert list(open_inventory(path).notes) == [
        f"{path} counts 8.00 KiB less for the scales of rows of 2 tensors, the first blk.0.attn_q.weight; "
        "ggplan plans with its own sizes",
        f"{path} counts 28 B of padding as part of tensor blk.0.layer_output_scale.weight; "
        "ggplan plans with its own sizes",
        f"{path} names the importance matrix abababababab for 2 tensors: its hash alone, "
        "which ggplan does not use",
    ]


def test_unknown_fields_are_noted_once_by_name_with_the_line(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        line("a.weight", (4,), "f32", 16),
        line("b.weight", (4,), "f32", 16, "author=\x1b[2Jme", "seen"),
        line("c.weight", (4,), "f32", 16, "author=you", "imatrix="),
    )
    model = open_inventory(path)
    assert [t.name for t in model.tensors] == ["a.weight", "b.weight", "c.weight"]
    assert f"{path}:2: the field 'author' is not known and is not used" in model.notes
    assert f"{path}:2: the field 'seen' is not known and is not used" in model.notes
    assert sum("is not known" in note for note in model.notes) == 2


def test_fields_may_stand_in_any_order_and_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    swapped = f"f.gguf:{SHA.upper()}:a.weight:bytes=16:imatrix={SHA}:elements=4:dtype=F32:shape=(4)"
    path = written(tmp_path, "\ufeff" + swapped, "", line("b.weight", (4, 1), "f32", 16), end="\r\n")
    assert [t.shape for t in open_inventory(path).tensors] == [(4,), (1, 4)]


@pytest.mark.parametrize(
    ("stated", "type_", "shape"),
    [
        (15, "f32", (4,)),
        (17, "f32", (4,)),
        (33, "q8_0", (32, 1)),
        (139, "iq4_ks", (256, 4)),
        (0, "f32", (4,)),
    ],
)
def test_a_size_that_nothing_explains_is_refused(
    tmp_path: Path, stated: int, type_: str, shape: tuple[int, ...]
) -> None:
    path = written(tmp_path, line("a.weight", (4,), "f32", 16), line("b.weight", shape, type_, stated))
    with pytest.raises(CheckpointError, match=rf"tensors.map:2: {type_} takes \d+ bytes, not {stated}$"):
        open_inventory(path)


@pytest.mark.parametrize("field", ["shape=(4,)", "dtype=f32", "elements=4", "bytes=16"])
def test_a_line_that_lacks_or_repeats_a_field_is_none(tmp_path: Path, field: str) -> None:
    good = line("b.weight", (4,), "f32", 16)
    for bad in (good.replace(f":{field}", ""), f"{good}:{field}"):
        path = written(tmp_path, line("a.weight", (4,), "f32", 16), bad)
        with pytest.raises(CheckpointError, match=r"tensors\.map:2: this is not a line of a tensor map"):
            open_inventory(path)
