"""Who may import whom: only downwards in the flow, and nothing heavy on the way to `--help`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ggplan"

# A part may import the parts named here, and itself.
ALLOWED = {
    "errors": set(),
    "text": set(),
    "ggml_types": {"errors"},
    "metadata": {"errors"},
    "model": {"ggml_types", "metadata"},
    "quants": {"errors", "ggml_types"},
    "sources": {"errors", "text", "ggml_types", "metadata", "model", "quants"},
    "imatrix": {"errors", "text", "ggml_types", "metadata", "model", "sources"},
    "arch": {"errors", "text", "ggml_types", "metadata", "model", "sources"},
    "opening": {"errors", "text", "model", "sources", "arch", "inventories"},
    "inventories": {"errors", "text", "ggml_types", "metadata", "model"},
    "rules": {"errors", "text", "ggml_types"},
    "checking": {
        "", "errors", "text", "ggml_types", "metadata", "model", "inventories", "rules", "planning",
        "imatrix", "opening",
    },
    "stock": {"errors", "text", "ggml_types", "metadata", "model"},
    "recovering": {"text", "ggml_types"},
    "planning": {
        "", "errors", "text", "ggml_types", "metadata", "model", "sources", "rules", "imatrix", "stock",
        "recovering",
    },
    "dialects": {
        "errors", "text", "ggml_types", "metadata", "model", "sources", "arch", "rules", "stock",
        "recovering", "planning",
    },
    "comparing": {"errors", "text", "ggml_types", "model", "planning"},
    "conversion": {
        "", "errors", "text", "ggml_types", "metadata", "model", "sources", "imatrix", "planning", "quants",
    },
    "verification": {
        "", "errors", "text", "ggml_types", "metadata", "model", "sources", "opening", "rules", "imatrix",
        "planning", "conversion", "quants",
    },
    "measure": {
        "", "errors", "text", "ggml_types", "metadata", "model", "sources", "opening", "planning",
    },
    "charts": {"errors", "text", "ggml_types", "model", "planning", "measure"},
}  # fmt: skip
FREE = {"cli", "__init__", "__main__"}


def imported_parts(module: Path) -> set[str]:
    """The first-level parts of ggplan that a module imports, wherever in it; "" is ggplan itself."""
    parts = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        parts |= {
            name.partition("ggplan.")[2].split(".")[0] for name in names if name.split(".")[0] == "ggplan"
        }
    return parts


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_go_downwards(module: Path) -> None:
    part = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in FREE:
        return
    assert imported_parts(module) <= ALLOWED[part] | {part}


def test_nothing_imports_the_command_line() -> None:
    importers = [m for m in modules() if "cli" in imported_parts(m) and m.parent.name != "cli"]
    assert [m.name for m in importers] == ["__main__.py"]


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_modules_stay_small_and_open_with_a_docstring(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"numpy", "numba", "rich", "re2"}),
        (["types"], {"numpy", "numba"}),
    ],
)
def test_commands_import_late(arguments: list[str], absent: set[str]) -> None:
    program = (
        "import sys, click\n"
        "from ggplan.cli import cli\n"
        f"cli.main({arguments!r}, standalone_mode=False)\n"
        f"print('LOADED', sorted({absent!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_importing_the_library_loads_nothing_heavy() -> None:
    program = (
        "import sys, ggplan; print(sorted({'numpy', 'numba', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    import ggplan

    for name in ggplan.__all__:
        assert getattr(ggplan, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        ggplan.nonsense  # noqa: B018
