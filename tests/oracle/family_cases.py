"""The cases of `families`, found without importing torch: every function there that is not private.

`GOLDENS` of a file names those whose goldens the default suite has (`tools/make_goldens.py`).
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
GOLDENS = tuple(
    sorted(
        case
        for body in _FILES.values()
        for node in body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "GOLDENS"
        for case in ast.literal_eval(node.value)
    )
)
