"""GP112: parts of a chain that nothing reaches."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import run

CHAINS = {
    "keep | keep": ("`keep` is never taken: `keep` before it", "keep"),
    "keep!": ("`!` changes nothing", "keep"),
    "keep(q4_1)!": ("`!` changes nothing", "keep(q4_1)"),
    "keep | keep(q4_1) | q8_0": ("`keep(q4_1)` is never taken: `keep` before it", "keep | q8_0"),
    "keep(q4_1) | q6_K | keep | q8_0": ("`keep` is never taken: `keep(q4_1)`", "keep(q4_1) | q6_K | q8_0"),
    "q8_0 | q6_K": ("`q6_K` is never taken: `q8_0` before it", "q8_0"),
    "bf16 | q8_0": ("`q8_0` is never taken: `bf16` before it", "bf16"),
    "bf16 | keep": ("`keep` is never taken: `bf16` before it", "bf16"),
    "q6_K | q4_K | q8_0!": ("`q4_K` is never taken: `q6_K` before it", "q6_K | q8_0!"),
}
SOUND = [
    "keep",
    "keep(q4_1) | q8_0",
    "keep | f16!",
    "q6_K | q8_0",
    "q6_K | keep",
    "keep | q8_0 | keep",
    "q8_0 | bf16",
]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_part_that_is_never_taken_is_found_and_taken_away(chain: str, tmp_path: Path) -> None:
    message, rest = CHAINS[chain]
    recipe = tmp_path / "r.recipe"
    recipe.write_text(f"ffn_down_exps\\.weight = {chain}\n@default q8_0\n")
    done = run("rules", "check", recipe)
    assert "GP112" in done.stdout
    assert message in done.stdout
    assert f"write `{rest}`" in done.stdout
    run("rules", "check", recipe, "--fix")
    assert recipe.read_text().splitlines()[0] == f"ffn_down_exps\\.weight = {rest}"


@pytest.mark.parametrize("chain", SOUND)
def test_parts_that_some_rows_take_are_no_finding(chain: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.recipe"
    recipe.write_text(f"ffn_down_exps\\.weight = {chain}\n@default q8_0\n")
    assert "GP112" not in run("rules", "check", recipe).stdout
