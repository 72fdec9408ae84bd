from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from ggplan.errors import CheckpointError
from ggplan.sources.json_files import load_object, parse_object

REFUSED = {
    "nothing": (b"", "not valid JSON"),
    "a list": (b"[1]", "not a JSON object"),
    "a number": (b"1", "not a JSON object"),
    "half": (b'{"a": 1', "not valid JSON"),
    "two": (b"{} {}", "not valid JSON"),
    "byte-order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "latin-1": (b'{"a": "\xe9"}', "not UTF-8"),
    "lone surrogate": (rb'{"a": "\ud800"}', "not UTF-8"),
    "repeated key": (b'{"a": 1, "a": 1}', "'a' occurs twice"),
    "repeated key inside": (b'{"a": [{"b\\u001b": 1, "b\\u001b": 2}]}', r"'b\x1b' occurs twice"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "depth": (b'{"a":' * 10**6, "nested too deeply"),
    "depth of lists": (b'{"a":' + b"[" * 10**6, "nested too deeply"),
    "number of a million digits": (b'{"a": 1' + b"0" * 10**6 + b"}", "not valid JSON"),
    "control character": (b'{"a": "\x1b"}', "not valid JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    content, said = REFUSED[case]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_object(path)
    message = str(caught.value)
    assert said in message
    assert "config.json" in message
    assert message.isprintable()


def test_taken() -> None:
    assert parse_object(rb'{"a": {"b": [1, 2.5, null, true]}, "c": "\ud83d\ude00"}', "x") == {
        "a": {"b": [1, 2.5, None, True]},
        "c": "😀",
    }
    # nvidia/Nemotron-H and other Mamba-like models have this in their config.json.
    assert parse_object(b'{"time_step_limit": [0.0, Infinity]}', "x") == {
        "time_step_limit": [0.0, float("inf")]
    }


def test_the_number_of_values_is_bounded_before_they_exist() -> None:
    content = b'{"a":[' + b"[]," * (1 << 24) + b"[]]}"
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="more than 16,777,216 JSON values"):
        parse_object(content, "x")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
