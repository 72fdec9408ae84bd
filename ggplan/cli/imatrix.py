"""`ggplan imatrix`: look into importance matrices, merge them, compare them with a model."""

from __future__ import annotations

import click

from ggplan.cli.lazy import LazyGroup

COMMANDS = {
    "inspect": "ggplan.cli.imatrix_commands:inspect_command",
    "merge": "ggplan.cli.imatrix_commands:merge_command",
    "check": "ggplan.cli.imatrix_commands:check_command",
}

_EPILOG = """\b
Examples:
  ggplan imatrix inspect imatrix.gguf              what each expert saw
  ggplan imatrix merge a.gguf b.gguf -o ab.gguf    add two up, by their counts
  ggplan imatrix merge old.dat -o new.gguf         from .dat to GGUF
  ggplan imatrix check imatrix.gguf GLM-4.5-Air    does it fit the model?
"""


@click.group(
    "imatrix",
    cls=LazyGroup,
    homes=COMMANDS,
    epilog=_EPILOG,
    short_help="Inspect, merge and check imatrix files.",
)
def imatrix_group() -> None:
    """Look into importance matrices, merge them, and compare them with a model.

    An imatrix is a file of llama-imatrix, in the GGUF form or the legacy one (.dat), or the imatrix.gguf of a
    calibration. `ggplan calibrate --imatrix-only` makes one.
    """
