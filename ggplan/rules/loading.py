"""Recipes from files, and the recipes that ship with ggplan.

Shipped recipes are text files, `<family>/<name>.recipe`, named without the ending: `glm4moe/hq4_k`. They
stand in the package's folder `tensor_rules`; in a source tree, where that is not built, in the folder of
that name beside the package.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ggplan.rules.diagnostics import Diagnostic, InvalidRecipeError, invalid_recipe
from ggplan.rules.parser import MAX_BYTES, parse_recipe, too_large
from ggplan.rules.recipe import Recipe

_ENDING = ".recipe"
_DEPTH = 3  # folders below tensor_rules that are searched


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe: a file, or one of `shipped_recipes()` by its name.

    A file that exists goes before a shipped recipe of the same name; a `Path` is always a file.

    Raises
    ------
    RecipeError
        If there is no such file or recipe, the file cannot be read, or its text has errors.
    """
    name = os.fspath(name_or_path)
    shipped = _shipped()
    known = name.removesuffix(_ENDING).replace(os.sep, "/")
    if isinstance(name_or_path, str) and known in shipped and not _is_file(name):
        return _parse_bytes(shipped[known].read_bytes(), f"{known}{_ENDING}")
    return _parse_bytes(_read(name, look_up=isinstance(name_or_path, str)), name)


def shipped_recipes() -> tuple[str, ...]:
    """The names of the recipes that ship with ggplan, sorted."""
    return tuple(_shipped())


@cache
def _shipped() -> dict[str, Traversable]:
    installed = resources.files("ggplan") / "tensor_rules"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "tensor_rules"
    return dict(sorted(_recipes_in(folder, "", _DEPTH)))


def _recipes_in(folder: Traversable, prefix: str, depth: int) -> Iterator[tuple[str, Traversable]]:
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


def _read(path: str, *, look_up: bool) -> bytes:
    """The bytes of a regular file, at most `MAX_BYTES` of them."""
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise _missing(path, look_up) from None
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
    return data


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _parse_bytes(data: bytes, name: str) -> Recipe:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(data, name, error) from None
    return parse_recipe(text, name)


def _not_utf8(data: bytes, name: str, error: UnicodeDecodeError) -> InvalidRecipeError:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        found = Diagnostic("GP010", "error", "the file is UTF-16", name, help="save it as UTF-8")
        return invalid_recipe([found])
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


def _missing(path: str, look_up: bool) -> InvalidRecipeError:
    names = shipped_recipes()
    available = "shipped are " + ", ".join(f"`{name}`" for name in names)
    if not look_up:
        found = Diagnostic("GP012", "error", "there is no such recipe file", path)
        return invalid_recipe([found])
    near = _near(path, names)
    help = f"the nearest is `{near[0]}`; {available}" if near else available
    message = "there is neither a file nor a shipped recipe of this name"
    return invalid_recipe([Diagnostic("GP012", "error", message, path, help=help)])


def _near(name: str, names: tuple[str, ...]) -> list[str]:
    """Shipped recipes with a similar name, or with a similar last part in any family."""
    wanted = name.lower().removesuffix(_ENDING)
    if len(wanted) > 100:
        return []
    tails = {known.rpartition("/")[2]: known for known in reversed(names)}
    similar = difflib.get_close_matches(wanted.rpartition("/")[2], tails, n=1)
    return difflib.get_close_matches(wanted, names, n=1) or [tails[tail] for tail in similar]
