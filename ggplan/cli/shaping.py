"""The options that say what of a model is written, of every command that opens one (`ggplan.cli.opening`).

--mtp    --prune-layers    --keep-experts    --fuse    --split
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggplan.cli.options import note

if TYPE_CHECKING:
    from ggplan.imatrix import Imatrix
    from ggplan.model import Model
    from ggplan.reshaping import Form, Mtp

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?%?", re.ASCII)


class _Layers(click.ParamType[tuple[int, ...]]):
    """Layer numbers and ranges of them with commas between: `3,7`, `3-7`."""

    name = "layers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse them."""
        if isinstance(value, tuple):
            return value
        layers: set[int] = set()
        for word in str(value).split(","):
            low, dash, high = (part.strip() for part in word.partition("-"))
            ends = (low, high) if dash else (low, low)
            if not all(end.isascii() and end.isdecimal() and len(end) < 6 for end in ends):
                self.fail(f"{value!r} is not a list of layers such as 3,7 or 3-7", param, ctx)
            first, last = map(int, ends)
            if last < first:
                self.fail(
                    f"{value!r} is not a list of layers such as 3,7 or 3-7: {word.strip()} counts down",
                    param,
                    ctx,
                )
            layers.update(range(first, last + 1))
        return tuple(sorted(layers))


class _Forms(click.ParamType[tuple[str, ...]]):
    """Forms of fused tensors with commas between them: `gate-up,qkv`."""

    name = "forms"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Parse them."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        if wrong := [word for word in words if word not in ("gate-up", "qkv")]:
            self.fail(f"{wrong[0]!r} is no form of fused tensors: there are gate-up and qkv", param, ctx)
        return tuple(dict.fromkeys(words))


@dataclass(frozen=True, slots=True)
class ShapingOptions:
    """The values of `shaping_options`."""

    mtp: Mtp
    prune_layers: tuple[int, ...]
    keep_experts: str | None
    fuse: tuple[Form, ...]
    split: tuple[Form, ...]

    @property
    def given(self) -> tuple[str, ...]:
        """The options that say something."""
        named = {
            "--mtp": self.mtp != "keep", "--prune-layers": self.prune_layers,
            "--keep-experts": self.keep_experts, "--fuse": self.fuse, "--split": self.split,
        }  # fmt: skip
        return tuple(option for option, value in named.items() if value)

    def apply_noted(
        self, model: Model, imatrix: Imatrix | None = None, *, quiet: bool = False
    ) -> tuple[Model, Imatrix | None]:
        """As `apply`, and what was done goes to stderr."""
        n_notes = len(model.notes)
        model, imatrix = self.apply(model, imatrix)
        note(*model.notes[n_notes:], quiet=quiet)
        return model, imatrix

    def apply(self, model: Model, imatrix: Imatrix | None) -> tuple[Model, Imatrix | None]:
        """The model and its imatrix as these options make them; further notes of it say what was done."""
        named = self.keep_experts
        if self.mtp == "keep" and named is None and not (self.prune_layers or self.fuse or self.split):
            return model, imatrix
        from ggplan.reshaping import Reshaping, load_experts, reshape

        if self.mtp == "only" and (self.prune_layers or named is not None):
            raise click.UsageError("--mtp only writes no layers to prune and no experts to leave out")
        if both := set(self.fuse) & set(self.split):
            raise click.UsageError(f"--fuse and --split both name {', '.join(sorted(both))}")
        is_number = named is not None and _NUMBER.fullmatch(named) is not None
        if named is not None and is_number and not (named.isdecimal() and len(named) < 10):
            raise click.BadParameter(f"{named} is no number of experts", param_hint="'--keep-experts'")
        wishes = Reshaping(
            mtp=self.mtp,
            prune_layers=self.prune_layers,
            keep_experts=None if named is None else int(named) if is_number else load_experts(named),
            fuse=self.fuse,
            split=self.split,
        )
        return reshape(model, wishes, imatrix)


def _listed_only(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Refuse a number of experts where no imatrix says which."""
    if value is not None and value.isascii() and value.isdecimal():
        raise click.BadParameter("which experts stay is told here by a FILE that lists them")
    return value


def shaping_options(*, imatrix: bool) -> tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...]:
    """The decorators of the options; `imatrix` is whether the command has `--imatrix`."""
    by_counts = (
        "Keep N experts of each layer, those the --imatrix counts most often; or those that FILE lists"
    )
    experts = by_counts if imatrix else "Keep the experts that FILE lists"
    return (
        click.option(
            "--mtp", type=click.Choice(["keep", "drop", "only"]), default="keep", show_default=True,
            help="Blocks that only predict further tokens: write them, leave them out, or write them "
            "alone, as a draft model.",
        ),
        click.option(
            "--prune-layers", type=_Layers(), default=(), metavar="N,N-N",
            help="Leave these layers out and number the others anew: 3,7 or 3-7.",
        ),
        click.option(
            "--keep-experts", metavar="N|FILE" if imatrix else "FILE",
            callback=None if imatrix else _listed_only,
            help=f"{experts}, as lines `LAYER: 0 2 5-7` or as JSON.",
        ),
        click.option(
            "--fuse", type=_Forms(), default=(), metavar="FORM,FORM",
            help="Join tensors: gate-up of the experts, qkv of attention.",
        ),
        click.option(
            "--split", type=_Forms(), default=(), metavar="FORM,FORM",
            help="Cut such fused tensors apart.",
        ),
    )  # fmt: skip
