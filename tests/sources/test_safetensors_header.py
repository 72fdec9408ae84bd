"""The safetensors header: what is refused and what is taken, with the Rust library as the judge."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from handmade_safetensors import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from ggplan.errors import CheckpointError
from ggplan.sources.safetensors import read_tensors

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def one(data: bytes = bytes(4), **changes: object) -> bytes:
    """A file of one float32, with changes to its entry."""
    return safetensors({"a": {**ONE, **changes}}, data)


REFUSED = {
    "empty file": (b"", "0 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "header of 2^64 - 1 bytes": (safetensors({}, length=2**64 - 1), "18,446,744,073,709,551,615 bytes"),
    "header over the limit": (safetensors({}, length=100_000_001), "100,000,001 bytes"),
    "header past the end": (safetensors({}, length=3), "is truncated"),
    "empty header": (safetensors(b""), "not valid JSON"),
    "a list": (safetensors(b"[]"), "not a JSON object"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "not UTF-8"),
    "nested a million deep": (safetensors(b'{"a":' * 10**6), "nested too deeply"),
    "repeated name": (
        safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(4)),
        "'a' occurs twice",
    ),
    "metadata of numbers": (safetensors({"__metadata__": {"a": 1}}), "not an object of strings"),
    "metadata as a list": (safetensors({"__metadata__": []}), "not an object of strings"),
    "entry as a list": (safetensors({"a": ["F32", [1], [0, 4]]}, bytes(4)), "'a' lacks"),
    "no shape": (safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "'a' lacks"),
    "unknown dtype": (one(dtype="f32"), "unknown dtype 'f32'"),
    "dtype as a number": (one(dtype=5), "unknown dtype 5"),
    "negative dimension": (one(shape=[-1]), "impossible shape [-1]"),
    "dimension as a float": (one(shape=[1.0]), "impossible shape"),
    "dimension as a bool": (one(shape=[True]), "impossible shape"),
    "dimension of 2^64": (one(shape=[2**64]), "impossible shape"),
    "dimensions without end": (one(shape=[2**63] * 100_000), "impossible shape"),
    "product of 2^128": (one(shape=[2**63, 2**63, 4]), "takes 10,889,035,741,470,030"),
    "shape as text": (one(shape="11"), "impossible shape"),
    "three offsets": (one(data_offsets=[0, 4, 4]), "impossible data_offsets"),
    "offsets backwards": (one(data_offsets=[4, 0]), "impossible data_offsets"),
    "negative offset": (one(data_offsets=[-4, 0]), "impossible data_offsets"),
    "past the end": (one(data_offsets=[0, 4], data=bytes(3)), "the file is truncated"),
    "offsets of 2^63": (one(data_offsets=[2**63, 2**63 + 4]), "the file is truncated"),
    "too few bytes for the shape": (one(shape=[2]), "32 bits"),
    "half a byte": (one(dtype="F4", shape=[3], data=bytes(2), data_offsets=[0, 2]), "16 bits"),
    "hole": (safetensors({"a": {**ONE, "data_offsets": [4, 8]}}, bytes(8)), "leaves a hole"),
    "overlap": (
        safetensors(
            {"a": {**ONE, "shape": [2], "data_offsets": [0, 8]}, "b": {**ONE, "data_offsets": [4, 8]}},
            bytes(8),
        ),
        "'b' overlaps",
    ),
    "one place for two": (safetensors({"a": ONE, "b": ONE}, bytes(4)), "'b' overlaps"),
    "bytes to spare": (one(data=bytes(5)), "1 bytes that belong to no tensor"),
    "no weights in 2^62 rows": (
        safetensors({"a": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}}),
        "no weights",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    content, said = REFUSED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert said in message
    assert "bad.safetensors" in message
    assert message.isprintable()
    assert len(message) < 1000


ACCEPTED = {
    "no tensors": safetensors({}),
    "one": one(),
    "spaces around the header": safetensors(b"  " + json.dumps({"a": ONE}).encode() + b"   ", bytes(4)),
    "metadata": safetensors({"__metadata__": {"format": "pt"}, "a": ONE}, bytes(4)),
    "metadata of null": safetensors({"__metadata__": None, "a": ONE}, bytes(4)),
    "scalar": one(shape=[]),
    "no weights": safetensors({"a": {**ONE, "shape": [0, 7], "data_offsets": [4, 4]}, "b": ONE}, bytes(4)),
    "an unknown field": one(extra=[1]),
    "packed 4-bit": one(dtype="F4", shape=[8]),
    "a name of control characters": safetensors({"\x1b[2J": ONE}, bytes(4)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(ACCEPTED[case])
    with safe_open(path, "np") as theirs:
        assert list(read_tensors(path)) == list(theirs.keys())


def judged_sound(path: Path) -> bool:
    try:
        with safe_open(path, "np"):
            return True
    except SafetensorError:
        return False


BASE = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]},
    "b": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
    "c": {"dtype": "F8_E4M3", "shape": [2, 0, 3], "data_offsets": [28, 28]},
    "d": {"dtype": "F16", "shape": [2], "data_offsets": [28, 32]},
    "e": {"dtype": "F4", "shape": [2, 2], "data_offsets": [32, 34]},
}
TOKENS = [
    *(["0", "1", "-1", "4", "28", "34", "1.0", "true", "null", "[]", "{}", "[1]", ",", ":"]),
    '"x"',
    '"F32"',
    "18446744073709551616",
]
BYTES = b'0123456789,{}[]":ab \x00\xff\\'


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    """A sound file after changes to values, bytes, the header's length or the file's."""
    tokens = re.findall(r'"[^"]*"|\d+|.', json.dumps(BASE, separators=(",", ":")))
    for _ in range(draw(st.integers(0, 2))):
        tokens[draw(st.integers(0, len(tokens) - 1))] = draw(st.sampled_from(TOKENS))
    header = bytearray("".join(tokens).encode())
    for _ in range(draw(st.integers(0, 2))):
        header[draw(st.integers(0, len(header) - 1))] = draw(st.sampled_from(BYTES))
    length = draw(st.sampled_from([len(header)] * 20 + [0, len(header) - 1, len(header) + 1, 2**64 - 1]))
    content = safetensors(bytes(header), bytes(range(34)), length)
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


@settings(max_examples=400, deadline=2000)
@given(content=broken_files())
def test_verdicts_are_the_librarys(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    path.write_bytes(content)
    sound = judged_sound(path)
    try:
        read_tensors(path)
    except CheckpointError as error:
        agrees = not sound or "occurs twice" in str(error) or "no weights" in str(error)
    else:
        # The library takes no `-0` as a whole number; Python's parser makes it 0.
        agrees = sound or b"-0" in content
    assert agrees
