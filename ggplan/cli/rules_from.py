"""`ggplan rules from`: the shortest recipe that gives every tensor the type it has in a file."""

from __future__ import annotations

import click

from ggplan.cli.opening import OpeningOptions, opening_options
from ggplan.cli.options import force_option, output_option, quiet_option

_EPILOG = """\b
Examples:
  ggplan rules from published-UD-Q4_K_XL.gguf > theirs.recipe    how did they make it?
  ggplan rules from GLM-4.5-Air.q4_K.map -o air.recipe           from an inventory
  ggplan rules from GLM-4.5-Air --mix Q4_K_M                     llama-quantize's mix, written out
"""


@click.command("from", epilog=_EPILOG, short_help="Write the recipe that a file's types follow.")
@click.argument("model")
@click.option("--name", metavar="NAME", default="", help="The recipe's name [default: the file's].")
@click.option(
    "--mix", "mix_name", metavar="MIX", help="Not MODEL's own types, but those llama-quantize's mix gives it."
)
@click.option("--pure", is_flag=True, help="With --mix: its own type for every tensor, more bits for none.")
@click.option("--with-imatrix", is_flag=True, help="With --mix: as if there were an importance matrix.")
@opening_options()
@output_option("Write the recipe to this file.")
@force_option("the file of -o")
@quiet_option
def from_command(
    model: str,
    name: str,
    mix_name: str | None,
    pure: bool,
    with_imatrix: bool,
    opening: OpeningOptions,
    output: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Write the shortest recipe that gives every tensor the type it has in MODEL.

    MODEL is a GGUF file, an inventory (a file, or one that ships with ggplan), or a Hugging Face folder.
    The recipe is exact: before it is printed it is applied to the same names and shapes, and must give the
    same types.

    Exits 0; 1 if it cannot be read or written; 2 for wrong usage, or if the file of -o exists.
    """
    import os

    from ggplan.cli.output import write_new
    from ggplan.errors import RecipeError
    from ggplan.planning import mix_types, recipe_of, stored_types
    from ggplan.stock import MIXES, find_mix
    from ggplan.text import printable

    if mix_name is None and (pure or with_imatrix):
        raise click.UsageError("--pure and --with-imatrix belong to --mix")
    try:
        mix = None if mix_name is None else find_mix(mix_name)
    except RecipeError as error:
        known = ", ".join(m.name for m in MIXES)
        raise click.UsageError(f"{error.message}; {error.hint}; there are {known}") from None
    if output is not None and os.path.lexists(output) and not force:
        raise click.UsageError(f"{printable(output)} exists; --force replaces it")
    found = opening.open_noted(model, quiet=quiet)
    if mix is None:
        assignment = stored_types(found, name)
    else:
        assignment = mix_types(found, mix.purely() if pure else mix, has_imatrix=with_imatrix)
    write_new(recipe_of(found, assignment).text, output, force=force, quiet=quiet)
