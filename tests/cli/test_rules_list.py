"""`ggplan rules list`."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parent.parent / "arch"))

from tiny_checkpoints import read_case, write_case

from ggplan.cli import cli
from ggplan.errors import RecipeError
from ggplan.rules import shipped_recipes


def listed(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["rules", "list", *arguments])


def names(*arguments: str) -> list[str]:
    return [recipe["name"] for recipe in json.loads(listed(*arguments, "--json").output)["recipes"]]


def test_all_are_listed_by_family() -> None:
    assert sorted(names()) == sorted(shipped_recipes())
    output = "\n" + listed().output
    places = [output.index(f"\n{family} ") for family in ("deepseek2", "glm4moe", "qwen3moe")]
    assert places == sorted(places)
    assert "GLM-4.5-Air    81.32   6.323" in output


def test_those_of_a_family_and_those_for_a_model() -> None:
    assert names("GPT-OSS") == ["gpt-oss/quality", "gpt-oss/balanced", "gpt-oss/small"]
    assert {"glm4moe/128gb", "glm4moe/hq4_k", "moe-offload"} < set(names("glm-4.6"))
    assert "glm4moe/128gb" not in names("GLM-4.5-Air")
    assert names("DeepSeek-R1") == names("DeepSeek-V3")
    assert "Kimi-K2" not in listed("DeepSeek-R1").output.replace("kimi-k2", "")


def test_the_json_tells_what_the_recipe_tells() -> None:
    (recipe,) = [r for r in json.loads(listed("--json").output)["recipes"] if r["name"] == "glm4moe/hq4_k"]
    assert recipe["family"] == "glm4moe"
    assert recipe["target"] == "llama.cpp"
    assert recipe["models"][0].pop("tokens_per_second").keys() == {"low", "likely", "high"}
    assert recipe["models"][0] == {
        "model": "GLM-4.5-Air",
        "gib": 81.32,
        "bits_per_weight": 6.323,
        "ram_gib": 68.8,
        "ram_gib_per_token": 4.23,
        "gpu_gib": 7.8,
    }


def test_names_unknown_are_refused_with_the_nearest() -> None:
    found = listed("GLM-4.5-Aire")
    assert isinstance(found.exception, RecipeError)
    assert "the nearest is GLM-4.5-Air" in str(found.exception.hint)
    assert "families are" in str(getattr(listed("zzz").exception, "hint", ""))


@pytest.mark.parametrize("width", ["80", "100"])
def test_names_are_whole_on_a_narrow_terminal(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    output = listed("glm4moe").output
    assert "glm4moe/ik-iq4_k" in output
    assert max(map(len, output.splitlines())) <= int(width)


def test_the_path_of_a_model_stands_for_its_architecture(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "mine", read_case("glm4moe"))
    assert names(str(folder)) == names("glm4moe")
    other = write_case(tmp_path / "other", read_case("smollm3"))
    refused = listed(str(other))
    assert refused.exit_code == 1
    assert "no shipped recipe is for" in str(refused.exception)
    assert "whose architecture is smollm3" in str(refused.exception)
