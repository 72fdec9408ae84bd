"""How a model is opened: the options that every command has which opens one, and the way from name to model.

--pre, --converter, --header-only                                how it is read
--mtp, --prune-layers, --keep-experts, --fuse, --split           what of it is taken (`ggplan.cli.shaping`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import as_one, note
from ggplan.cli.shaping import ShapingOptions, shaping_options
from ggplan.text import format_bytes

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix
    from ggplan.model import Model


@dataclass(frozen=True, slots=True)
class OpeningOptions:
    """The values of `opening_options`."""

    pre: str | None
    converter: str | None
    header_only: bool
    shaping: ShapingOptions

    @property
    def given(self) -> tuple[str, ...]:
        """The options that say something."""
        named = {"--pre": self.pre, "--converter": self.converter, "--header-only": self.header_only}
        return *(option for option, value in named.items() if value), *self.shaping.given

    def refuse_without(self, model: object, where: str = "-m") -> None:
        """Refuse them where no model is named for them: `where` says how one is named."""
        if self.given and not model:
            verb = "is" if len(self.given) == 1 else "are"
            raise click.UsageError(f"{', '.join(self.given)} {verb} for the model of {where}")

    def open(
        self,
        name: str,
        imatrix: Imatrix | None = None,
        *,
        weights: bool = False,
        convertible: bool = False,
        quiet: bool = False,
    ) -> tuple[Model, Imatrix | None]:
        """The model that a name stands for, as the options make it, and its imatrix; its notes go to stderr.

        Parameters
        ----------
        weights
            Refuse what has no weights.
        convertible
            Refuse a model that cannot be converted.
        """
        from ggplan.naming import model_named

        note_converter(self.converter, quiet=quiet)
        model = model_named(
            name, pre=self.pre, header_only=self.header_only, weights=weights, converter=self.converter
        )
        if convertible and model.obstacle is not None:
            raise model.obstacle
        note_model(model, quiet=quiet)
        return self.shaping.apply_noted(model, imatrix, quiet=quiet)

    def open_noted(
        self, name: str, imatrix: Imatrix | None = None, *, weights: bool = False, quiet: bool = False
    ) -> Model:
        """The model alone, with the scales of its codes read."""
        return with_scales_read(self.open(name, imatrix, weights=weights, quiet=quiet)[0], quiet=quiet)

    def each(self, names: Sequence[str]) -> tuple[OpeningOptions, ...]:
        """The options for each of several names: the converter reads folders, and other models are opened."""
        folders = [Path(name).is_dir() for name in names]
        if self.converter is not None and not any(folders):
            raise click.UsageError("--converter reads a Hugging Face folder, and none is named")
        return tuple(self if is_folder else replace(self, converter=None) for is_folder in folders)


def opening_options(
    *, header_only: bool = True, imatrix: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options as the argument `opening: OpeningOptions`.

    Parameters
    ----------
    header_only
        Whether the command reads no weights, so that `--header-only` is one of them.
    imatrix
        Whether the command has `--imatrix`, whose counts say which experts to keep.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = as_one("shaping", ShapingOptions)(as_one("opening", OpeningOptions)(command))
        options = (*shaping_options(imatrix=imatrix), pre_option, converter_option)
        for option in reversed((*options, header_only_option) if header_only else options):
            command = option(command)
        return command if header_only else _reading_all(command)

    return decorate


def _reading_all(command: Callable[..., Any]) -> Callable[..., Any]:
    import functools

    @functools.wraps(command)
    def called(**arguments: Any) -> Any:
        return command(**arguments, header_only=False)

    return called


def pre_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--pre`: the pre-tokenizer, where the tokenizer is not recognised."""
    return click.option(
        "--pre", metavar="NAME",
        help="The pre-tokenizer's name in llama.cpp, where the tokenizer is not recognised.",
    )(command)  # fmt: skip


def converter_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--converter`: a tree of llama.cpp whose converter reads the checkpoint."""
    return click.option(
        "--converter", type=click.Path(), metavar="DIR",
        help="A tree of llama.cpp, whose converter reads an architecture that ggplan does not know.",
    )(command)  # fmt: skip


def header_only_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--header-only`, for commands that read no weights."""
    return click.option(
        "--header-only",
        is_flag=True,
        help="Also read a file that is cut short, or a set of which files are missing: no weights are read.",
    )(command)


def with_scales_read(model: Model, *, most: float = 0, quiet: bool = False) -> Model:
    """The model as `convert` has it: a tensor whose scales its type does not hold is decoded.

    Scales and zero points on a server, which may be gigabytes, are read only if they are `most` bytes at
    most; else a note says so.
    """
    from ggplan.planning.settling import bytes_to_read, count_open, settle

    n_unread = count_open(model)
    if not n_unread:
        return model
    from ggplan.sources.remote import is_remote

    if any(is_remote(path) for path in model.files) and (n_bytes := bytes_to_read(model)) > most:
        note(
            f"the scales of {n_unread:,} quantized tensors are on the server and are not read here "
            f"({format_bytes(n_bytes)}); `ggplan convert` reads them, decodes a tensor whose scales its type "
            "does not hold, and takes the type that its zero points need",
            quiet=quiet,
        )
        return model
    from ggplan.cli.progress import tensors_bar

    with tensors_bar("reading scales", quiet=quiet) as progress:
        return settle(model, progress)


def note_converter(converter: str | None, *, quiet: bool = False) -> None:
    """Tell that llama.cpp's converter is started, which takes seconds."""
    if converter is not None:
        note(f"starting llama.cpp's converter in {converter}", quiet=quiet)


def note_model(model: Model, *, quiet: bool = False) -> None:
    """Tell on stderr what a user should know of a model, and what would keep it from being converted."""
    from ggplan.errors import TokenizerError

    note(*model.notes, quiet=quiet)
    if (obstacle := model.obstacle) is not None:
        mendable = isinstance(obstacle, TokenizerError) and obstacle.hint
        hint = f"; to convert it, {obstacle.hint}" if mendable else "; `ggplan convert` refuses it"
        note(f"{obstacle.message}{hint}", quiet=quiet)


def open_source_of(checkpoint: str, file: str, pre: str | None, converter: str | None, quiet: bool) -> Model:
    """The checkpoint; if its tokenizer is not recognised, with the pre-tokenizer that the file names.

    Only then: a fact that can be found without the file is never taken from it.
    """
    from ggplan.errors import TokenizerError
    from ggplan.naming import model_named
    from ggplan.verification.exactness import text_of
    from ggplan.verification.renamed import open_files

    note_converter(converter, quiet=quiet)
    source = model_named(checkpoint, pre=pre, weights=True, converter=converter)
    if isinstance(unknown := source.obstacle, TokenizerError):
        recorded = None if pre else text_of(open_files(Path(file)).model.metadata, "tokenizer.ggml.pre")
        if recorded is None:
            raise unknown
        source = model_named(checkpoint, pre=recorded, weights=True, converter=converter)
        note(f"the pre-tokenizer is the recorded one, {recorded}", quiet=quiet)
    if source.obstacle is not None:
        raise source.obstacle
    note_model(source, quiet=quiet)
    return source
