"""Write the goldens of tests/arch: what llama.cpp's converter makes of tiny checkpoints.

    python tools/make_goldens.py [CASE...] [tokenizers]

For each case (all those that `GOLDENS` of a file in `tests/oracle/families` names, or the given ones alone),
transformers makes a random tiny model (`tests/oracle/reference_models.py`). The tool keeps its
config and the names, types and shapes of its tensors: `tests/data/hf/CASE.json`. The checkpoint is then
written with weights that any machine can make (`tests/arch/tiny_checkpoints.py`) and converted by llama.cpp.
Of the result it keeps the keys and the hash of each tensor's bytes: `tests/data/goldens/CASE.json`. Run it
when the pinned llama.cpp changes, read the differences, and commit them.

Needs what `tools/install-oracles` installs; llama.cpp's source tree is the one GGPLAN_LLAMA_CPP names, or the
one it keeps.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORACLE = ROOT / "tests" / "oracle"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "arch"), str(ORACLE)]

from family_cases import GOLDENS  # noqa: E402
from folder_variants import VARIANTS as FOLDERS  # noqa: E402
from tiny_checkpoints import (  # noqa: E402
    DATA,
    OPTIONS,
    OUTTYPES,
    golden_keys,
    golden_summary,
    golden_tensors,
    read_case,
    write_case,
)
from tokenizer_variants import BASE, VARIANTS  # noqa: E402

from ggplan.sources.gguf import open_gguf  # noqa: E402
from ggplan.sources.safetensors import read_tensors  # noqa: E402

KEPT_FILES = ("README.md", "generation_config.json", "added_tokens.json")


def find_llama_cpp() -> Path:
    if named := os.environ.get("GGPLAN_LLAMA_CPP"):
        return Path(named)
    cache = Path(os.environ.get("GGPLAN_ORACLES") or Path.home() / ".cache" / "ggplan-oracles")
    return next(cache.glob("llama.cpp-*"))


def describe(folder: Path) -> dict:
    """A checkpoint without its weights."""
    shards = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = read_tensors(path)
        shards[path.name] = {name: [t.dtype, list(t.shape)] for name, t in sorted(tensors.items())}
    config = json.loads((folder / "config.json").read_text())
    files = {name: (folder / name).read_text() for name in KEPT_FILES if (folder / name).exists()}
    for name in ("tokenizer_config.json", "tokenizer.json"):
        text = (folder / name).read_text()
        if text != (DATA / "hf" / name).read_text():
            files[name] = text
    pieces = (folder / "tokenizer.model").exists()  # always the small ones
    return {"config": config, "files": files, "shards": shards} | ({"pieces": True} if pieces else {})


def pretty(value: object, indent: int = 0) -> str:
    """JSON with every value that fits into a line on one line."""
    flat, pad = json.dumps(value), " " * (indent + 1)
    if len(flat) + indent <= 100 or not isinstance(value, dict | list):
        return flat
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + pretty(v, indent + 1) for v in value) + "\n" + pad[1:] + "]"
    items = [f"{pad}{json.dumps(k)}: {pretty(v, indent + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(items) + "\n" + pad[1:] + "}"


def main() -> None:
    llama_cpp = find_llama_cpp()
    named = sys.argv[1:]
    cases = [name for name in named if name != "tokenizers"] if named else GOLDENS
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if cases:
            subprocess.run(
                [sys.executable, ORACLE / "reference_models.py", work / "models", *cases], check=True
            )
        jobs = []

        def job(folder: Path, outtype: str | None = None) -> None:
            outtype = outtype or OUTTYPES.get(folder.name, "bf16")
            output = f"{folder}.gguf"
            jobs.append({"folder": str(folder), "output": output, "outtype": outtype, "pre": "glm4"})
            jobs[-1]["options"] = OPTIONS.get(folder.name, [])

        for case in cases:
            (DATA / "hf" / f"{case}.json").write_text(pretty(describe(work / "models" / case)) + "\n")
            job(write_case(work / "tiny" / case, read_case(case)))
        is_whole = cases is GOLDENS
        for variant in VARIANTS if is_whole or "tokenizers" in named else ():
            folder = write_case(work / "tokenizers" / variant.__name__, read_case(BASE))
            variant(folder)
            job(folder)
        for name, of_folder in FOLDERS.items() if is_whole else ():
            job(of_folder.write(work / "folders" / name), of_folder.outtype)
        (work / "jobs.json").write_text(json.dumps(jobs))
        subprocess.run(
            [sys.executable, ORACLE / "run_converter.py", llama_cpp, work / "jobs.json"], check=True
        )
        for case in cases:
            model = open_gguf(work / "tiny" / f"{case}.gguf")
            golden = {"keys": golden_keys(model), "tensors": golden_tensors(model)}
            (DATA / "goldens" / f"{case}.json").write_text(pretty(golden) + "\n")
        if not (is_whole or "tokenizers" in named):
            return
        tokenizers = {
            v.__name__: golden_keys(open_gguf(work / "tokenizers" / f"{v.__name__}.gguf")) for v in VARIANTS
        }
        (DATA / "goldens" / "tokenizers.json").write_text(pretty(tokenizers) + "\n")
        if not is_whole:
            return
        folders = {name: golden_summary(open_gguf(work / "folders" / f"{name}.gguf")) for name in FOLDERS}
        (DATA / "goldens" / "variants.json").write_text(pretty(folders) + "\n")


if __name__ == "__main__":
    main()
