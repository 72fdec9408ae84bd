"""Exported lists, judged by llama-quantize itself: its `--dry-run` names the type of every tensor."""

import re
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

import ggplan
from ggplan.dialects import export_recipe
from ggplan.planning import decide, fit

pytestmark = pytest.mark.oracle

RECIPES = (
    "@role attention = q8_0\n@role experts.down = q6_K | q8_0\n@role experts = q4_K | q5_0\n@default bf16",
    "blk\\.{first 1}\\. = q8_0\nattn_(k|v) = q5_1\n.*shexp = bf16\n^output = q6_K | q5_0\n@default iq4_nl",
)


@pytest.mark.parametrize("text", RECIPES)
def test_llama_quantize_gives_what_the_recipe_does(
    text: str, llama_cpp: Path, convert: Callable, tmp_path: Path
) -> None:
    demo, source = Path(str(resources.files("ggplan") / "demo_model")), tmp_path / "bf16.gguf"
    convert([{"folder": demo, "output": source, "outtype": "bf16", "pre": "glm4"}])
    model = ggplan.open_model(source)
    recipe = ggplan.parse_recipe(text)
    types = tmp_path / "types.txt"
    types.write_text(export_recipe(recipe, model, "llama-quantize").text)
    program = llama_cpp / "build" / "bin" / "llama-quantize"
    command = [program, "--dry-run", "--tensor-type-file", types, source, tmp_path / "o.gguf", "Q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        if told := re.search(r"\] +(\S+) +- +\[.*?\], type = +(\w+),(?:.*?-> +[\d.]+ MiB +\((\w+)\))?", line):
            found[told[1]] = told[3] or told[2]
    wanted = {f.tensor.name: f.type.name for f in fit(model, decide(model, recipe), "llama.cpp")}
    assert {name: type_.lower() for name, type_ in found.items()} == {n: t.lower() for n, t in wanted.items()}
