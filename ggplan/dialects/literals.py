"""Read values from JSON, YAML and Python texts, without running anything.

JSON and YAML give plain values. Python is read as a syntax tree: literals are kept, a call
`Int8Config(group=32)` becomes a dict with `_type`, `torch.int4` becomes its text, and a variable becomes the
value assigned to it above. The length of texts is limited, YAML aliases are refused (a few lines of them make
gigabytes), and too deep nesting is an error, found before the text is parsed (libyaml takes quadratic time).
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

import yaml  # type: ignore[import-untyped]

from ggplan.dialects.source import Source
from ggplan.text import printable

_MAX_CHARACTERS = 256 << 10
_MAX_VALUES = 100_000
_MAX_DEPTH = 200

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_config(source: Source) -> object:
    """The value of a JSON or YAML text; None where it is empty.

    Raises
    ------
    RecipeError
        If it is neither; the message has the place.
    """
    _check_size(source)
    if source.text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(source.text, object_pairs_hook=lambda pairs: unique_keys(source, pairs))
        except json.JSONDecodeError:
            pass  # YAML in flow style, or an error that YAML tells
        except (RecursionError, ValueError):
            raise source.fault(0, "the JSON is nested too deeply or holds a huge number") from None
    try:
        for event in yaml.parse(source.text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                raise source.fault(
                    event.start_mark.line + 1, "YAML aliases are not read", "write the value out"
                )
        return yaml.load(source.text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise source.fault(line, f"this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError):
        raise source.fault(0, "this is not YAML that ggplan reads") from None


def unique_keys(source: Source, pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of a JSON text; of a key that stands twice in it a reader would take one without a word.

    Raises
    ------
    RecipeError
        If a key occurs twice.
    """
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            message = f"`{printable(key[:80])}` occurs twice in one object"
            raise source.fault(source.line_of(f'"{key}"'), message, "take one of them out")
        found[key] = value
    return found


def read_python(source: Source) -> list[tuple[str, object]]:
    """The assignments and calls of a Python text: the name assigned to (or "") and the value, in order.

    Raises
    ------
    RecipeError
        If it is not Python; the message has the line.
    """
    _check_size(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\\." in plain strings
            tree = ast.parse(source.text.strip())
        reader = _Reader()
        return [(name, value) for node in tree.body for name, value in reader.statement(node)]
    except SyntaxError as error:
        raise source.fault(error.lineno or 0, f"this is not Python: {error.msg}") from None
    except (RecursionError, MemoryError, ValueError):
        raise source.fault(0, "the Python is nested too deeply") from None


def _check_size(source: Source) -> None:
    """Refuse texts that are too long or too deeply nested to be read quickly."""
    text = source.text
    if len(text) > _MAX_CHARACTERS:
        raise source.fault(0, f"the text has {len(text):,} characters; {_MAX_CHARACTERS:,} are read")
    depth = 0
    for found in re.finditer(r"[\[{]|[\]}]|^(?:[ \t]*[-?:] ){20}", text, re.M):
        depth = depth + 1 if found[0] in "[{" else max(0, depth - 1) if found[0] in "]}" else _MAX_DEPTH + 1
        if depth > _MAX_DEPTH:
            line = text.count("\n", 0, found.start()) + 1
            raise source.fault(line, f"the text is nested more than {_MAX_DEPTH} deep")


class _Reader:
    """Reads values from syntax trees, and keeps the variables assigned so far."""

    def __init__(self) -> None:
        self.names: dict[str, tuple[object, int]] = {}
        self.count = 0

    def statement(self, node: ast.stmt) -> list[tuple[str, object]]:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            before = self.count
            value = self.value(node.value)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [t.id for t in targets if isinstance(t, ast.Name)]
            for name in found:
                self.names[name] = (value, self.count - before)
            return [(found[0] if found else "", value)]
        if isinstance(node, ast.Expr):
            return [("", self.value(node.value))]
        return []

    def value(self, node: ast.expr) -> object:
        self.count += 1
        if self.count > _MAX_VALUES:
            raise ValueError
        match node:
            case ast.Constant():
                return node.value
            case ast.Dict():
                pairs = zip(node.keys, node.values, strict=True)
                return {self._key(key): self.value(value) for key, value in pairs if key is not None}
            case ast.List() | ast.Tuple() | ast.Set():
                return [self.value(element) for element in node.elts]
            case ast.UnaryOp(op=ast.USub()):
                inner = self.value(node.operand)
                return -inner if isinstance(inner, int | float) else None
            case ast.Name():
                value, size = self.names.get(node.id, (node.id, 1))
                self.count += size
                if self.count > _MAX_VALUES:
                    raise ValueError
                return value
            case ast.Attribute():
                return f"{self.value(node.value)}.{node.attr}"[:200]
            case ast.Call():
                called = str(self.value(node.func)).rpartition(".")[2]
                arguments = [self.value(argument) for argument in node.args]
                if called in ("OrderedDict", "dict") and arguments:
                    return _as_dict(arguments[0])
                keywords = {k.arg: self.value(k.value) for k in node.keywords if k.arg is not None}
                return {"_type": called, "_args": arguments, **keywords}
        return None

    def _key(self, node: ast.expr) -> object:
        key = self.value(node)
        return key if isinstance(key, str | int | float | bool | None) else str(type(key))


def _as_dict(value: object) -> object:
    if not isinstance(value, list):
        return value
    return {
        pair[0]: pair[1]
        for pair in value
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
    }
