"""Write the translations of all kernels: ggplan/quants/translated/*.zip.

    python tools/make_translations.py

Numba translates each kernel to LLVM's language twice, for processors with AVX-512 and for those with AVX2
(see `ggplan/quants/translations.py`). Run it when a module of ggplan/quants changed, and commit what it
writes. It takes two minutes, and a processor with AVX-512, since kernels are translated by calling them.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Numba's settings for the processors that LLVM has in mind when it decides what to unroll and in which order.
PROCESSORS = {
    "avx512.zip": {"NUMBA_CPU_NAME": "znver4", "NUMBA_CPU_FEATURES": "+avx512f"},
    "avx2.zip": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
}


def main() -> None:
    running = []
    for name, settings in PROCESSORS.items():
        command = [sys.executable, __file__, name]
        running.append(subprocess.Popen(command, env={**os.environ, **settings}))
    results = [process.wait() for process in running]
    if any(results):
        sys.exit("not all were written")


def make_archive(name: str) -> None:
    found = translated(call_all_kernels)
    import numba

    from ggplan.quants import translations

    place = translations.FOLDER / name
    place.parent.mkdir(exist_ok=True)
    translations.write_archive(place, found, numba.__version__)
    print(f"{name}: {len(found)} kernels, {place.stat().st_size / 1e6:.2f} MB")


def translated(call: Callable[[], None]) -> dict[str, str]:
    """What Numba makes of the kernels that are called, by the names of their entries in an archive."""
    with tempfile.TemporaryDirectory() as empty:
        os.environ["NUMBA_CACHE_DIR"] = empty  # before ggplan is imported: none is compiled yet
        from ggplan.quants import accelerate, compiling, translations

        found = {}

        def translate(function, types):
            text = compiling.translate(function, types)
            found[translations.entry_name(function, types)] = text
            return text

        accelerate.translation_of = translate
        call()
    return found


def call_all_kernels() -> None:
    """Call every kernel with all the types of arguments that it is made for."""
    import numpy as np

    from ggplan.ggml_types import TYPES
    from ggplan.quants import dequantize, efforts_of, warm_up
    from ggplan.quants.row_hash import hash_rows

    for type in (type for type in TYPES if type.encodable):
        for effort in efforts_of(type):
            for bf16 in (False, True) if type.is_quantized else (False,):
                for with_imatrix in (False, True):
                    warm_up([type], with_imatrix=with_imatrix, effort=effort, bf16=bf16)
    for type in (type for type in TYPES if type.decodable):
        dequantize(np.zeros((1, type.row_bytes(type.block_size)), np.uint8), type)
    for dtype in (np.float32, np.uint16):
        hash_rows(np.zeros((1, 256), dtype))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make_archive(sys.argv[1])
    else:
        main()
