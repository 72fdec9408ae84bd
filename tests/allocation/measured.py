"""The published measurements of seventeen models, as `tools/fit_prior.py` reads and judges them.

Measured by Thireus, the GGUF Tool Suite and its contributors (github.com/Thireus/GGUF-Tool-Suite).
"""

from __future__ import annotations

import importlib.util
import lzma
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "tests" / "data" / "sensitivities"


def fit_prior() -> ModuleType:
    """The tool, as a module."""
    if "fit_prior" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fit_prior", ROOT / "tools" / "fit_prior.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["fit_prior"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["fit_prior"]


def unpacked(name: str, folder: Path) -> Path:
    """A table as a file of a folder."""
    path = folder / f"{name}.csv"
    path.write_bytes(lzma.decompress((TABLES / f"{name}.csv.xz").read_bytes()))
    return path


def all_unpacked(folder: Path) -> Path:
    """The folder with all tables in it."""
    for path in TABLES.glob("*.csv.xz"):
        unpacked(path.name.removesuffix(".csv.xz"), folder)
    return folder
