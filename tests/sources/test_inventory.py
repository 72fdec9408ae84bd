"""Models without weights: tensor maps and ggplan's own JSON."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from handmade_gguf import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from program import run

from ggplan.errors import CheckpointError, Error
from ggplan.ggml_types import TYPES, parse_type
from ggplan.metadata import MetadataType, array, boolean, float32, scalar, string, uint32
from ggplan.model import Model, TensorInfo
from ggplan.sources.gguf import open_gguf
from ggplan.sources.inventory import inventory_json, open_inventory

SHA = "0" * 64


def line(name: str, dims: str, type_: str, weights: int, n_bytes: int) -> str:
    return (
        f"m-00002-of-00804.gguf:{SHA}:{name}:shape=({dims}):dtype={type_}:elements={weights}:bytes={n_bytes}"
    )


MAP = [
    line("token_embd.weight", "4096, 151552", "bf16", 620756992, 1241513984),
    line("blk.0.attn_norm.weight", "4096,", "f32", 4096, 16384),
    line("blk.1.ffn_down_exps.weight", "1408, 4096, 128", "q8_0", 738197504, 784334848),
    line("blk.1.ffn_up_exps.weight", "4096, 1408, 128", "iq4_ks", 738197504, 392888320),
]


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "model.map"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_tensor_map(tmp_path: Path) -> None:
    model = open_inventory(written(tmp_path, "\n".join([*MAP, "", ""])))
    assert (model.kind, model.architecture, model.metadata) == ("inventory", "", {})
    assert all(t.rows is None and t.stored is None for t in model.tensors)
    assert [(t.name, t.shape, t.type.name) for t in model.tensors] == [
        ("token_embd.weight", (151552, 4096), "bf16"),
        ("blk.0.attn_norm.weight", (4096,), "f32"),
        ("blk.1.ffn_down_exps.weight", (128, 4096, 1408), "q8_0"),
        ("blk.1.ffn_up_exps.weight", (128, 1408, 4096), "iq4_ks"),
    ]
    assert model.tensors[0].origin == "m-00002-of-00804.gguf"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (MAP[1], "model.map:3: tensor 'blk.0.attn_norm.weight' is there twice"),
        ("a:b", "model.map:3: this is not a line of a tensor map"),
        (line("a", "4", "f32", 5, 16), "model.map:3: the shape has 4 elements, not 5"),
        (line("a", "4", "f32", 4, 15), "model.map:3: f32 takes 16 bytes, not 15"),
        (line("a", "4", "q9_0", 4, 16), "model.map:3: tensor 'a' has the unknown type 'q9_0'"),
        (line("a", "48", "q8_0", 48, 51), "model.map:3: tensor 'a' has rows of 48 weights"),
        (line("a" * 64, "4", "f32", 4, 16), "longer than 63 bytes"),
        (line("a", "9223372036854775807, 2", "f32", 0, 0), "impossible shape"),
        (line("a", "0, 9223372036854775807", "f32", 0, 0), "no weights"),
        (line("a", "1, 1, 1, 1, 1", "f32", 1, 4), "not a line"),
        (line("a", "-4", "f32", -4, -16), "not a line"),
        (line("a", "", "f32", 1, 4), "not a line"),
        (line("a", "4", "f32", 4, 16).replace(SHA, "xyz"), "not a line"),
    ],
)
def test_a_map_that_errs(tmp_path: Path, bad: str, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_inventory(written(tmp_path, "\n".join([*MAP[:2], bad])))
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"hello", b"\xff\xfe", b"PK\x03\x04", bytes(1000)])
def test_what_is_no_inventory(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match="is neither a GGUF file, a tensor map nor an inventory"):
        open_inventory(written(tmp_path, content))


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe is not a file but a named pipe"):
        open_inventory(tmp_path / "pipe")


METADATA = {
    "general.name": string("Über\x1b\n"),
    "a.count": uint32(47),
    "a.epsilon": float32(1e-5),
    "a.flag": boolean(True),
    "a.big": scalar(MetadataType.UINT64, 2**64 - 1),
    "a.small": scalar(MetadataType.INT8, -128),
    "a.double": scalar(MetadataType.FLOAT64, 0.1),
    "a.limits": array(MetadataType.FLOAT32, [math.inf, -math.inf, 0.5]),
    "a.heads": array(MetadataType.INT32, [8, 0, 8]),
    "a.words": array(MetadataType.STRING, ["x", ""]),
}


def reopened(tmp_path: Path, model: Model) -> Model:
    return open_inventory(written(tmp_path, json.dumps(inventory_json(model))))


def test_the_json_keeps_names_shapes_types_and_metadata(tmp_path: Path) -> None:
    tensors = tuple(
        TensorInfo(f"t.{type_}", (3, 2 * type_.block_size), type_, "somewhere", stored_as=type_.name.upper())
        for type_ in TYPES
    )
    tokens = array(MetadataType.STRING, ["t"] * 2000)
    model = Model(tmp_path, "gguf", "glm4moe", {**METADATA, "tokenizer.ggml.tokens": tokens}, tensors)
    again = reopened(tmp_path, model)
    assert (again.kind, again.architecture) == ("inventory", "glm4moe")
    assert again.metadata == METADATA
    facts = [[(t.name, t.shape, t.type, t.stored_as) for t in m.tensors] for m in (model, again)]
    assert facts[0] == facts[1]
    entry = inventory_json(model)["metadata"]["tokenizer.ggml.tokens"]
    assert entry == {"type": "array", "item_type": "string", "length": 2000}


def test_the_json_of_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_model())
    model = open_gguf(path)
    again = reopened(tmp_path, model)
    assert again.metadata == model.metadata
    assert [(t.name, t.shape, t.type) for t in again.tensors] == [
        (t.name, t.shape, t.type) for t in model.tensors
    ]


def test_a_nan_survives(tmp_path: Path) -> None:
    model = Model(tmp_path, "gguf", "a", {"x": float32(math.nan)}, ())
    value = reopened(tmp_path, model).metadata["x"].decode()
    assert isinstance(value, float)
    assert math.isnan(value)


TENSOR = {"name": "a", "shape": [2, 4], "type": "f32", "stored_as": "F32"}
SOUND = {"schema": "ggplan/inventory@1", "architecture": "a", "metadata": {}, "tensors": [TENSOR]}


def changed(**changes: object) -> dict[str, object]:
    return {**SOUND, "tensors": [{**TENSOR, **changes}]}


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ({}, "its schema is not 'ggplan/inventory@1'"),
        ({**SOUND, "schema": "ggplan/inventory@2"}, "its schema is not"),
        ({**SOUND, "tensors": {}}, "needs `tensors`"),
        ({**SOUND, "metadata": []}, "needs `tensors`"),
        ({**SOUND, "architecture": 1}, "needs `tensors`"),
        ({**SOUND, "tensors": [1]}, "tensor 0 is not an object"),
        ({**SOUND, "tensors": [TENSOR, TENSOR]}, "'a' is there twice"),
        (changed(name=1), "tensor 0 needs `name`"),
        (changed(type=None), "tensor 0 needs `name`"),
        (changed(stored_as=[]), "tensor 0 needs `name`"),
        (changed(shape=[]), "tensor 0 needs a `shape`"),
        (changed(shape=4), "tensor 0 needs a `shape`"),
        (changed(shape=[4.0]), "tensor 0 needs a `shape`"),
        (changed(shape=[-4]), "tensor 0 needs a `shape`"),
        (changed(shape=[True]), "tensor 0 needs a `shape`"),
        (changed(shape=[2**63]), "'a' has the impossible shape"),
        (changed(shape=[10**4000, 10**4000]), "'a' has the impossible shape"),
        (changed(shape=[1] * 5), "'a' has 5 dimensions"),
        (changed(shape=[2**62, 0]), "'a' has no weights"),
        (changed(type="q4_K"), "rows of 4 weights"),
        (changed(type="Q4_K_M"), "unknown type 'Q4_K_M'"),
        (changed(name="\x1b" * 64), "longer than 63 bytes"),
        ({**SOUND, "metadata": {"k": 1}}, "the metadata 'k' is not an object"),
        ({**SOUND, "metadata": {"k": {"type": "int33", "value": 1}}}, "unknown type 'int33'"),
        ({**SOUND, "metadata": {"k": {"type": ["x"], "value": 1}}}, "unknown type"),
        ({**SOUND, "metadata": {"k": {"type": "uint8", "value": 256}}}, "256 is not a valid uint8"),
        ({**SOUND, "metadata": {"k": {"type": "uint8", "value": True}}}, "is not a valid uint8: True"),
        ({**SOUND, "metadata": {"k": {"type": "bool", "value": 1}}}, "is not a valid bool: 1"),
        ({**SOUND, "metadata": {"k": {"type": "float32", "value": "1"}}}, "is not a valid float32"),
        ({**SOUND, "metadata": {"k": {"type": "float32", "value": 1e300}}}, "is not a valid float32"),
        ({**SOUND, "metadata": {"k": {"type": "string"}}}, "is not a valid string: None"),
        (
            {**SOUND, "metadata": {"k": {"type": "array", "item_type": "array", "value": []}}},
            "unknown type 'array'",
        ),
        ({**SOUND, "metadata": {"k": {"type": "array", "item_type": "int8", "value": 1}}}, "is not a list"),
    ],
)
def test_json_that_errs(tmp_path: Path, root: object, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_inventory(written(tmp_path, json.dumps(root)))
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@settings(max_examples=200, deadline=2000)
@given(data=st.data(), as_json=st.booleans())
def test_damage_is_refused_or_harmless(
    data: st.DataObject, as_json: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sound = json.dumps(SOUND) if as_json else "\n".join(MAP)
    content = bytearray(sound.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        tensors = open_inventory(path).tensors
    except Error as error:
        harmless = str(error).isprintable()
    else:
        harmless = all(t.n_bytes == t.type.tensor_bytes(t.shape) for t in tensors)
    assert harmless


def test_types_are_read_in_any_case(tmp_path: Path) -> None:
    model = open_inventory(written(tmp_path, line("a", "256", "Q4_k", 256, 144)))
    assert model.tensors[0].type is parse_type("q4_K")


def test_a_byte_order_mark_before_an_inventory(tmp_path: Path) -> None:
    text = json.dumps(inventory_json(open_inventory(written(tmp_path, MAP[0]))))
    marked = open_inventory(written(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert [t.name for t in marked.tensors] == ["token_embd.weight"]
    done = run("inspect", "-", "--json", stdin="\ufeff" + text)
    assert (done.returncode, json.loads(done.stdout)["tensors"][0]["name"]) == (0, "token_embd.weight")


def test_notes_of_a_map_are_summed_up(tmp_path: Path) -> None:
    lines = [
        line(f"blk.{n}.attn_norm.weight", "4096,", "f32", 4096, 16384) + f":imatrix={n:064x}:odd{n}=1"
        for n in range(40)
    ]
    notes = open_inventory(written(tmp_path, "\n".join(lines))).notes
    assert len([note for note in notes if "importance matri" in note]) == 1
    assert "names 40 importance matrices, the first 000000000000, for 40 tensors" in "\n".join(notes)
    assert "32 more fields are not known" in notes[-1]
    assert len(notes) == 10


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match="is empty"):
        open_inventory(written(tmp_path, content))
