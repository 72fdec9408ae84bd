"""Write `ggplan/quants/formats/grids.txt` from llama.cpp's `ggml/src/ggml-common.h`.

    python tools/make_grids.py path/to/llama.cpp

The header has each point of a grid as one number whose bytes are the coordinates;
`ggplan/quants/formats/grids.py` says what is kept of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parent.parent / "ggplan" / "quants" / "formats" / "grids.txt"
# The name in the header, coordinates in a point, and bits that the number of a coordinate's level takes.
GRIDS = {
    "iq2_xxs": ("iq2xxs_grid", 8, 2),
    "iq2_xs": ("iq2xs_grid", 8, 2),
    "iq2_s": ("iq2s_grid", 8, 2),
    "iq3_xxs": ("iq3xxs_grid", 4, 3),
    "iq3_s": ("iq3s_grid", 4, 3),
    "iq1_s": ("iq1s_grid", 8, 2),
}


def main(llama_cpp: Path) -> None:
    """Write all grids, an empty line between them: a line with name and levels, then lines of points."""
    header = (llama_cpp / "ggml" / "src" / "ggml-common.h").read_text(encoding="utf-8")
    paragraphs = []
    for name, (table, size, bits) in GRIDS.items():
        body = re.search(rf"GGML_TABLE_BEGIN\(\w+, {table}, \w+\)(.*?)GGML_TABLE_END", header, re.S)
        if body is None:
            raise SystemExit(f"{table} is not in this header")
        numbers = [int(word, 16) for word in re.findall(r"0x[0-9a-f]+", body[1])]
        points = np.array([list(number.to_bytes(size, "little")) for number in numbers]).astype(np.int8)
        levels, index = np.unique(points, return_inverse=True)
        packed = (index.reshape(points.shape) << (bits * np.arange(size))).sum(axis=1)
        lines = [" ".join([name, *map(str, levels)])]
        for start in range(0, len(packed), 20):
            lines.append(" ".join(f"{point:04x}" for point in packed[start : start + 20]))
        paragraphs.append("\n".join(lines))
    TARGET.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
