"""Recipes from files and by name."""

import hashlib
import os
from pathlib import Path

import pytest

from ggplan.errors import RecipeError
from ggplan.rules import InvalidRecipeError, load_recipe, shipped_recipes

AVAILABLE = "`ggplan rules list` tells which are shipped"


def refusal(name: str | Path) -> str:
    with pytest.raises(InvalidRecipeError) as caught:
        load_recipe(name)
    assert caught.value.diagnostics[0].severity == "error"
    return str(caught.value)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mix.recipe"
    data = b"\xef\xbb\xbfattn = q8_0 # \xe2\x80\x94\r\n"
    file.write_bytes(data)
    for given in (file, str(file)):
        recipe = load_recipe(given)
        assert recipe.name == "mix"
        assert recipe.sha256 == hashlib.sha256(data).hexdigest()
        assert recipe.text.encode() == data
        assert recipe.rules[0].file == str(file)
        assert recipe.rules[0].where == "mix.recipe:1"


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mix\udcff\n.recipe"
    file.write_text("a = q8_0")
    assert load_recipe(file).name == r"mix\udcff\n"
    file.write_text("a = q9_0")
    assert refusal(file).isascii()


def test_a_shipped_recipe_by_name() -> None:
    recipe = load_recipe("glm4moe/hq4_k")
    assert recipe.name == "HQ4_K"
    assert recipe.file == "glm4moe/hq4_k.recipe"
    assert load_recipe("glm4moe/hq4_k.recipe") == recipe


def test_a_file_goes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glm4moe" / "hq4_k").mkdir(parents=True)
    assert load_recipe("glm4moe/hq4_k").name == "HQ4_K"
    (tmp_path / "glm4moe" / "hq4_k.recipe").write_text("a = q8_0")
    assert load_recipe("glm4moe/hq4_k.recipe").name == "hq4_k"


def test_an_unknown_name_is_told_the_nearest() -> None:
    assert refusal("glm4moe/hq4k") == (
        "error[GP012]: there is neither a file nor a shipped recipe of this name\n"
        " --> glm4moe/hq4k\n"
        f"  = help: the nearest is `glm4moe/hq4_k`; {AVAILABLE}"
    )
    assert f"help: {AVAILABLE}" in refusal("zzz")
    assert "nearest is `deepseek2/hq4_k`" in refusal("HQ4_K")
    assert "/hq4_k`; " in refusal("mix/hq4k")


@pytest.mark.parametrize("name", ["a\0b", "x" * 10_000, "/dev/null/x", "no/../such", "../../etc"])
def test_impossible_names_are_refused(name: str) -> None:
    assert "GP012" in refusal(name)


def test_an_empty_name_is_told_as_such() -> None:
    with pytest.raises(RecipeError, match="the name of the recipe is empty"):
        load_recipe("")


def test_a_path_is_never_a_shipped_name() -> None:
    assert "there is no such recipe file" in refusal(Path("glm4moe/hq4_k"))


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "it is a folder" in refusal(tmp_path)
    assert "it is a folder" in refusal(str(tmp_path))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "it is not a regular file" in refusal(fifo)
    assert "it is not a regular file" in refusal("/dev/zero")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "big.recipe"
    with file.open("wb") as out:
        out.truncate(1 << 40)
    assert refusal(file).startswith("error[GP009]: the recipe is larger than 1 MiB")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "bad.recipe"
    file.write_bytes(b"a = q8_0\nb\xc3\xa4\xff = q8_0\n")
    assert refusal(file) == (
        "error[GP010]: the byte 0xff is not UTF-8\n"
        f" --> {file}:2:3\n"
        "  |\n"
        "2 | b\u00e4\ufffd = q8_0\n"
        "  |   ^\n"
        "  = help: save the file as UTF-8"
    )
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):  # of the second and third without a mark
        file.write_bytes("attn_ = q8_0\n@default é".encode(encoding))
        what = encoding.upper()[:6]
        assert refusal(file) == f"error[GP010]: the file is {what}\n --> {file}\n  = help: save it as UTF-8"
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "control character U+0003" in refusal(file)


def test_errors_in_a_file_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.recipe"
    file.write_text("a = b\n")
    assert f" --> {file}:1:5" in refusal(file)


def test_shipped_names_are_sorted_and_all_load() -> None:
    assert list(shipped_recipes()) == sorted(shipped_recipes())
    assert {"deepseek2/hq4_k", "glm4moe/hq4_k", "moe-offload", "qwen3moe/hq4_k"} < set(shipped_recipes())
    for name in shipped_recipes():
        assert load_recipe(name).rules


def test_errors_are_recipe_errors() -> None:
    with pytest.raises(RecipeError):
        load_recipe("zzz")
