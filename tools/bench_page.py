"""What the benchmarks share: the machine's name, and their places in docs/performance.md."""

from __future__ import annotations

import os
import platform
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def machine() -> str:
    """The processor, how many of it, and what runs the code."""
    import importlib.metadata

    import llvmlite.binding

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return (
        f"{name} ({llvmlite.binding.get_host_cpu_name()}), {len(os.sched_getaffinity(0))} CPUs, "
        f"Python {platform.python_version()}, Numba {importlib.metadata.version('numba')}"
    )


def write_table(name: str, text: str) -> None:
    """Put `text` between the page's `<!-- name -->` and `<!-- /name -->`."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    if not rest or not after:
        raise SystemExit(f"{PAGE} has no place for {name}")
    PAGE.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
