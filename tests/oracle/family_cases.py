"""The cases of `families`, found without importing torch: every function there that is not private.

`GOLDENS` of a file names those whose goldens the default suite has (`tools/make_goldens.py`), `UNLOADABLE`
those that llama.cpp itself does not load, or gives no number of, whoever converts them.
"""

import ast
from pathlib import Path

_FILES = {path.stem: ast.parse(path.read_text()).body for path in Path(__file__).parent.glob("families/*.py")}
# The file of each case.
CASES = {
    node.name: file
    for file, body in sorted(_FILES.items())
    for node in body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
}


def _named(variable: str) -> tuple[str, ...]:
    """The cases that a variable of this name lists, in all files."""
    return tuple(
        sorted(
            case
            for body in _FILES.values()
            for node in body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == variable
            for case in ast.literal_eval(node.value)
        )
    )


GOLDENS = _named("GOLDENS")
UNLOADABLE = _named("UNLOADABLE")
