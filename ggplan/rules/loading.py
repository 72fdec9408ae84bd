"""Recipes from files, and the recipes that ship with ggplan.

Shipped recipes are text files, `<family>/<name>.recipe`, named without the ending: `glm4moe/hq4_k`. They
stand in the package's folder `tensor_rules`; in a source tree, where that is not built, in the folder of
that name beside the package.

What `@include` and `@base` name is looked for beside the file they stand in, and never outside the folder of
the recipe that was asked for, symbolic links resolved: a recipe from a stranger reads nothing else. Where
there is no such file, a shipped recipe of the name will do.

A file records the recipe it was made by. The texts of `@include` and `@base` are recorded by the names by
which the recipe reaches them from its own folder, with no word of where that folder was.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePath

from ggplan.errors import RecipeError
from ggplan.rules.diagnostics import Diagnostic, InvalidRecipeError, invalid_recipe
from ggplan.rules.draft import Follow, FollowError
from ggplan.rules.parser import MAX_BYTES, parse_recipe, too_large
from ggplan.rules.recipe import Recipe
from ggplan.standard_input import EMPTY_NAME_HINT, NAME, SHOWN, read_standard_input
from ggplan.substitutes import find_substitute
from ggplan.text import printable, text_encoding

_ENDING = ".recipe"
_DEPTH = 3  # folders below tensor_rules that are searched


def load_recipe(name_or_path: str | Path, architecture: str = "") -> Recipe:
    """Read a recipe: a file, one of `shipped_recipes()` by its name, or standard input for `-`.

    A file that exists goes before a shipped recipe of the same name; a `Path` is always a file.

    Parameters
    ----------
    architecture
        Of the model it is for: where there is no such recipe, the nearest of the model's own family is named.

    Raises
    ------
    RecipeError
        If there is no such file or recipe, the file cannot be read, or its text has errors.
    """
    text, name, follow = recipe_text(name_or_path, architecture)
    return parse_recipe(text, name, follow=follow)


def recipe_text(name_or_path: str | Path, architecture: str = "") -> tuple[str, str, Follow]:
    """The text of a recipe that `load_recipe` would read, what messages call it, and how it draws in others.

    Raises
    ------
    RecipeError
        If there is no such file or recipe, or it is not text.
    """
    name = os.fspath(name_or_path)
    if not name:
        raise RecipeError("the name of the recipe is empty", hint=EMPTY_NAME_HINT)
    if name_or_path == NAME:
        return _decode(read_standard_input(MAX_BYTES, RecipeError), SHOWN), SHOWN, following(SHOWN)
    known = name.removesuffix(_ENDING).replace(os.sep, "/")
    if isinstance(name_or_path, str) and known in _shipped() and not _is_file(name):
        file = f"{known}{_ENDING}"
        return _decode(_shipped()[known].read_bytes(), file), file, _follow_shipped
    data = _read(name, look_up=isinstance(name_or_path, str), architecture=architecture)
    return _decode(data, name), name, following(name)


def shipped_file(name: str) -> str:
    """The path of a recipe that ships with ggplan, to copy it from."""
    return str(_shipped()[name.removesuffix(_ENDING).replace(os.sep, "/")])


def following(recipe: str) -> Follow:
    """How the recipe in this file finds what it includes and inherits."""
    folder = os.path.realpath(os.path.dirname(recipe))

    def follow(target: str, file: str) -> tuple[str, str]:
        _check_target(target)
        if file in _shipped_files():
            return _follow_shipped(target, file)
        path = os.path.normpath(os.path.join(os.path.dirname(file), target))
        if os.path.commonpath((folder, os.path.realpath(path))) != folder:
            raise FollowError(f"`{printable(target)}` is outside the folder of the recipe", "copy it there")
        if not _is_file(path) and (known := target.removesuffix(_ENDING)) in _shipped():
            return f"{known}{_ENDING}", _shipped()[known].read_text("utf-8")
        try:
            return path, _decode(_read(path, look_up=False), path)
        except InvalidRecipeError as error:
            found = error.diagnostics[0]
            near = difflib.get_close_matches(os.path.basename(target), _files_beside(path), n=1)
            help = f"the nearest file is `{printable(near[0])}`" if near else found.help
            instead = posixpath.join(posixpath.dirname(target), near[0]) if near else ""
            raise FollowError(f"`{printable(target)}`: {found.message}", help, instead) from None

    return follow


def _follow_shipped(target: str, file: str) -> tuple[str, str]:
    _check_target(target)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
    if path.startswith(".."):
        raise FollowError(f"`{printable(target)}` is outside the folder of the recipes")
    for known in (path, f"{target.removesuffix(_ENDING)}{_ENDING}"):
        found = _folder().joinpath(*known.split("/"))
        if found.is_file():
            return known, found.read_text("utf-8")
    raise FollowError(f"there is no `{printable(path)}` among the shipped recipes")


def _check_target(target: str) -> None:
    if target.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", target) or "\\" in target:
        help = "name it from the folder of the recipe, with `/` between folders"
        raise FollowError(f"`{printable(target)}` is not a relative path", help)


def _files_beside(path: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.dirname(path) or "."))[:1_000]
    except OSError:
        return []


def shipped_recipes() -> tuple[str, ...]:
    """The names of the recipes that ship with ggplan, sorted."""
    return tuple(_shipped())


def record_parts(recipe: Recipe) -> str:
    """The texts that a recipe includes and inherits, as JSON: {name: text}; "" where there are none."""
    folder = os.path.dirname(recipe.file)
    named = {_name_from(folder, file): text for file, text in recipe.parts}
    return json.dumps(named, ensure_ascii=False, sort_keys=True) if named else ""


def follow_recorded(parts: str) -> Follow:
    """How a recorded recipe finds what it includes.

    Raises
    ------
    ValueError
        If `parts` is not what `record_parts` gives.
    """
    texts = json.loads(parts) if parts else {}
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("the recorded parts of the recipe are no texts")

    def follow(target: str, file: str) -> tuple[str, str]:
        folder = posixpath.dirname(file) if file in texts else ""
        beside = posixpath.normpath(posixpath.join(folder, target))
        for name in (beside, f"{target.removesuffix(_ENDING)}{_ENDING}"):
            if name in texts:
                return name, texts[name]
        raise FollowError(f"`{printable(target)}` is not recorded beside the recipe")

    return follow


def _name_from(folder: str, file: str) -> str:
    if file.removesuffix(_ENDING) in shipped_recipes():
        return file
    return PurePath(os.path.relpath(file, folder or ".")).as_posix()


@cache
def _folder() -> Path:
    # Not by `importlib.resources`, which imports what unpacks wheels, in a hundredth of a second.
    installed = Path(__file__).parents[1] / "tensor_rules"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "tensor_rules"


@cache
def _shipped() -> dict[str, Path]:
    return dict(sorted(_recipes_in(_folder(), "", _DEPTH)))


def _shipped_files() -> set[str]:
    return {f"{name}{_ENDING}" for name in _shipped()}


def _recipes_in(folder: Path, prefix: str, depth: int) -> Iterator[tuple[str, Path]]:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name.endswith(_ENDING) and entry.is_file():
            yield prefix + entry.name.removesuffix(_ENDING), entry
        elif depth and entry.is_dir():
            yield from _recipes_in(entry, f"{prefix}{entry.name}/", depth - 1)


def _is_file(name: str) -> bool:
    try:
        return os.path.isfile(name)
    except ValueError:  # a NUL in the name
        return False


def _read(path: str, *, look_up: bool, architecture: str = "") -> bytes:
    """The bytes of a regular file, at most `MAX_BYTES` of them."""
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise _missing(path, look_up, architecture) from None
        raise _unreadable(path, _reason(error)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise _unreadable(path, "it is a folder", "name one recipe in it")
        if not stat.S_ISREG(mode):
            raise _unreadable(path, "it is not a regular file", "save the recipe as a file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, _reason(error)) from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise invalid_recipe([too_large(path)])
    if (found := find_substitute(data, path)) is not None:
        raise _unreadable(path, f"it is {found.what}", found.hint)
    return data


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _decode(data: bytes, name: str) -> str:
    _, encoding = text_encoding(data)
    if encoding != "utf-8":
        what = f"the file is {encoding.upper()[:6]}"  # whatever the order of its bytes
        raise invalid_recipe([Diagnostic("GP010", "error", what, name, help="save it as UTF-8")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(data, name, error) from None


def _not_utf8(data: bytes, name: str, error: UnicodeDecodeError) -> InvalidRecipeError:
    before = data[: error.start].decode("utf-8")
    line = before.count("\n") + 1
    column = len(before.removeprefix("\ufeff").rpartition("\n")[2]) + 1
    message = f"the byte 0x{data[error.start]:02x} is not UTF-8"
    found = Diagnostic("GP010", "error", message, name, line, column, 1, "save the file as UTF-8")
    lines = data.decode("utf-8", "replace").removeprefix("\ufeff").split("\n")
    return invalid_recipe([found], lines)


def _unreadable(path: str, reason: str, help: str = "") -> InvalidRecipeError:
    return invalid_recipe(
        [Diagnostic("GP012", "error", f"cannot read the recipe: {reason}", path, help=help)]
    )


def _missing(path: str, look_up: bool, architecture: str) -> InvalidRecipeError:
    names = shipped_recipes()
    available = "`ggplan rules list` tells which are shipped"
    if not look_up:
        found = Diagnostic("GP012", "error", "there is no such recipe file", path)
        return invalid_recipe([found])
    own = (name for name, named in _architectures().items() if named == architecture)
    near = _beside(path) or (_near(path, tuple(own)) if architecture else []) or _near(path, names)
    help = f"the nearest is `{printable(near[0])}`; {available}" if near else available
    message = "there is neither a file nor a shipped recipe of this name"
    return invalid_recipe([Diagnostic("GP012", "error", message, path, help=help)])


@cache
def _architectures() -> dict[str, str]:
    """What the `@arch` of each shipped recipe says; "" of those for any model."""
    texts = {name: file.read_text("utf-8") for name, file in _shipped().items()}
    named = {name: re.search(r"^@arch +(\S+)", text, re.MULTILINE) for name, text in texts.items()}
    return {name: found[1] if found else "" for name, found in named.items()}


def _beside(path: str) -> list[str]:
    """The recipe file beside this path whose name is most like it: `my.recipe` for `my`."""
    folder, _, name = path.rpartition("/")
    files = [file for file in _files_beside(path) if file.endswith(_ENDING)]
    by_stem = {file.removesuffix(_ENDING): file for file in files}
    similar = difflib.get_close_matches(name.removesuffix(_ENDING)[:100], by_stem, n=1, cutoff=0.8)
    return [f"{folder}/{by_stem[s]}" if folder else by_stem[s] for s in similar]


def _near(name: str, names: tuple[str, ...]) -> list[str]:
    """Shipped recipes with a similar name, or with a similar last part in any family."""
    wanted = name.lower().removesuffix(_ENDING)
    if len(wanted) > 100:
        return []
    tails = {known.rpartition("/")[2]: known for known in reversed(names)}
    similar = difflib.get_close_matches(wanted.rpartition("/")[2], tails, n=1)
    return difflib.get_close_matches(wanted, names, n=1) or [tails[tail] for tail in similar]
