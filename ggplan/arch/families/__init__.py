"""The families of models, one module each: its tensors, its keys, the classes of transformers that have them.

A module here is found by itself; there is no list to add it to. It has `CLASSES`, the `Architecture` of each
class as `architectures` in config.json names it. `docs/models.md` says how one is written.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import ModuleType

from ggplan.arch.architecture import Architecture


@cache
def families() -> tuple[ModuleType, ...]:
    """The modules, by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{name}") for name in names)


@cache
def architectures() -> Mapping[str, Architecture]:
    """The architecture of each class that ggplan reads, by the name in config.json.

    Raises
    ------
    RuntimeError
        If two modules have the same class.
    """
    found: dict[str, Architecture] = {}
    for family in families():
        classes: Mapping[str, Architecture] = family.CLASSES
        if twice := classes.keys() & found.keys():
            raise RuntimeError(f"{family.__name__} and another both have {', '.join(sorted(twice))}")
        found |= classes
    return dict(sorted(found.items()))
