"""What the consumers make of an exported list, written from their documentation, with Python's `re`."""

import json
import re
import subprocess
from collections.abc import Callable

Chooser = Callable[[str], "str | None"]


def first_match(rules: list[tuple[str, str]]) -> Chooser:
    compiled = [(re.compile(pattern).search, type_) for pattern, type_ in rules]
    return lambda name: next((type_ for found, type_ in compiled if found(name)), None)


def last_match(rules: list[tuple[str, str]]) -> Chooser:
    return first_match(rules[::-1])


def tensor_type_file(text: str) -> list[tuple[str, str]]:
    """llama-quantize: tokens between blanks, split at the first `=`, the pattern lower-cased."""
    rules = [token.split("=", 1) for token in text.split()]
    return [(pattern.lower(), type_) for pattern, type_ in rules]


def custom_q(script: str) -> list[tuple[str, str]]:
    """ik_llama.cpp: what bash makes of the script, split at commas and then at `=`."""
    done = subprocess.run(
        ["bash", "-c", script + 'printf %s "$custom"'], capture_output=True, text=True, check=True
    )
    rules = [item.split("=") for item in done.stdout.split(",")]
    assert all(len(rule) == 2 for rule in rules)
    return [(pattern, type_) for pattern, type_ in rules]


def thireus(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.rsplit("=", 1)[0], line.rsplit("=", 1)[1]) for line in lines]


def loaded_json(text: str) -> object:
    return json.loads(text)
