"""The families of models, one module each: its tensors, its keys, the classes of transformers that have them.

A module here is found by itself; there is no list to add it to. It has `CLASSES`, the `Architecture` of each
class as `architectures` in config.json names it. Where models of one class have several architectures, the
class's own says by the config which one a model has (`variant`), and the others stand there under the class
and a word in brackets: `Mistral3ForConditionalGeneration (mistral4)`. `docs/models.md` says how a module is
written.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import ModuleType

from ggplan.arch.architecture import Architecture
from ggplan.arch.multimodal import model_class


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


def architecture_of(config: Mapping[str, object]) -> Architecture | None:
    """The architecture of the model with this config.json; None if ggplan does not read it."""
    return architectures().get(model_class(config) or "")
