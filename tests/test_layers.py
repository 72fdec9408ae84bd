"""Who may import whom: only downwards in the flow, and nothing heavy on the way to `--help`."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ggplan"

# Each part, and what it may import besides itself. The order is the flow: a part imports only parts above it.
ALLOWED = {
    "version": set(),
    "errors": set(),
    "text": set(),
    "substitutes": {"errors", "text"},
    "standard_input": {"errors"},
    "ggml_types": {"errors"},
    "metadata": {"errors"},
    "quants": {"errors", "ggml_types"},
    "model": {"errors", "text", "ggml_types", "metadata", "quants"},
    "sources": {"version", "errors", "substitutes", "text", "ggml_types", "metadata", "model", "quants"},
    "imatrix": {"errors", "text", "ggml_types", "metadata", "model", "sources"},
    "arch": {"errors", "text", "ggml_types", "metadata", "model", "sources"},
    "inventories": {"errors", "text", "ggml_types", "metadata", "model"},
    "bridge": {"errors", "ggml_types", "model", "sources"},
    "reshaping": {"errors", "text", "ggml_types", "metadata", "model", "sources", "imatrix", "arch"},
    "opening": {"errors", "text", "standard_input", "model", "sources", "arch", "inventories", "bridge"},
    "rules": {"errors", "substitutes", "text", "standard_input", "ggml_types"},
    "stock": {"errors", "text", "ggml_types", "metadata", "model"},
    "recovering": {"text", "ggml_types"},
    "planning": {
        "version", "errors", "text", "ggml_types", "metadata", "model", "sources", "rules", "imatrix",
        "stock", "recovering",
    },
    "offload": {
        "version", "errors", "substitutes", "text", "ggml_types", "metadata", "model", "rules", "planning",
        "quants",
    },
    "allocation": {
        "errors", "substitutes", "text", "ggml_types", "model", "rules", "stock", "recovering", "planning",
        "offload", "imatrix", "quants",
    },
    "linting": {
        "errors", "text", "ggml_types", "model", "inventories", "rules", "imatrix", "stock", "planning",
        "offload",
    },
    "dialects": {
        "errors", "text", "ggml_types", "metadata", "model", "sources", "arch", "rules", "stock",
        "recovering", "planning",
    },
    "naming": {
        "errors", "text", "standard_input", "model", "sources", "opening", "inventories", "rules", "stock",
        "planning",
    },
    "comparing": {"errors", "text", "ggml_types", "model", "planning"},
    "measure": {
        "errors", "substitutes", "text", "standard_input", "ggml_types", "metadata", "model", "sources",
        "opening", "planning",
    },
    "forward": {"errors", "text", "ggml_types", "model", "sources", "arch"},
    "correcting": {
        "version", "errors", "text", "ggml_types", "metadata", "model", "sources", "reshaping", "planning",
        "quants", "forward",
    },
    "calibration": {
        "version", "errors", "text", "ggml_types", "metadata", "model", "sources", "imatrix", "quants",
        "reshaping", "planning", "measure", "forward",
    },
    "folding": {
        "errors", "text", "ggml_types", "model", "quants", "imatrix", "calibration",
    },
    "conversion": {
        "version", "errors", "text", "ggml_types", "metadata", "model", "sources", "imatrix", "planning",
        "quants", "correcting",
    },
    "verification": {
        "errors", "text", "ggml_types", "metadata", "model", "sources", "arch", "reshaping", "opening",
        "rules", "imatrix", "planning", "conversion", "quants", "calibration", "folding",
    },
    "probing": {
        "version", "errors", "substitutes", "text", "ggml_types", "metadata", "model", "sources", "rules",
        "imatrix", "stock", "planning", "allocation", "conversion", "measure", "quants",
    },
    "calibrating": {
        "version", "errors", "text", "ggml_types", "model", "sources", "opening", "imatrix", "planning",
        "stock", "calibration", "conversion",
    },
    "charts": {
        "errors", "substitutes", "text", "ggml_types", "model", "rules", "planning", "allocation", "offload",
        "measure",
    },
}  # fmt: skip
# The library's front imports whatever it names, the command line whatever it needs.
ALLOWED["__init__"] = set(ALLOWED)
ALLOWED["cli"] = set(ALLOWED) - {"__init__"}
ALLOWED["__main__"] = {"cli"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(module: Path) -> str:
    """`ggplan.rules.parser`; of a package's own module that of the package."""
    names = (PACKAGE.name, *module.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


NAMES = {name_of(module) for module in modules()}


@cache
def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@cache
def imports_of(module: Path) -> set[str]:
    """The modules of ggplan that a module imports, wherever in it: in functions and for type checks too."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & NAMES
            if names - NAMES:
                found.add(node.module or "")
    return found & NAMES


def part_of(name: str) -> str:
    """The first name below ggplan; "__init__" for ggplan itself, which no part may import."""
    return name.partition(".")[2].partition(".")[0] or "__init__"


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_go_downwards(module: Path) -> None:
    part = part_of(name_of(module))
    assert {part_of(name) for name in imports_of(module)} <= ALLOWED[part] | {part}


def test_the_table_of_parts_goes_downwards_too() -> None:
    parts = list(ALLOWED)
    assert set(parts) == {part_of(name) for name in NAMES}
    for at, part in enumerate(parts):
        assert ALLOWED[part] <= set(parts[:at])


def test_no_modules_import_each_other_in_a_circle() -> None:
    # A CycleError names the modules of a circle.
    TopologicalSorter({name_of(module): imports_of(module) for module in modules()}).prepare()


def test_nothing_imports_the_command_line() -> None:
    importers = [m for m in modules() if "ggplan.cli" in imports_of(m) and m.parent.name != "cli"]
    assert [m.name for m in importers] == ["__main__.py"]


@pytest.mark.parametrize("module", modules(), ids=lambda m: str(m.relative_to(PACKAGE)))
def test_modules_stay_small_and_open_with_a_docstring(module: Path) -> None:
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 500
    assert ast.get_docstring(parsed(module))


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
