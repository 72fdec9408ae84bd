"""The command line: parse arguments, call the library, print. No logic lives here.

A command's module is imported when the command is asked for. It imports click alone at the top, and what the
command needs when it runs, so that `ggplan --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType

import click

from ggplan.cli.lazy import LazyGroup
from ggplan.errors import Error
from ggplan.text import printable
from ggplan.version import __version__

_HELP = """Plan and write mixed-precision GGUF files.

A recipe gives every tensor of a model a type by ordered regex rules, the first match wins:

\b
    _norm\\.weight$              = f32
    attn_                       = q8_0
    ffn_(gate|up)_exps\\.weight$ = q4_K
    ffn_down_exps\\.weight$      = q6_K | q8_0   # q8_0 where rows do not divide by 256

ggplan shows what the file will cost and writes it in one pass, with llama.cpp's own bytes.

\b
Examples:
  ggplan demo                                              try it on a small built-in model
  ggplan plan GLM-4.5-Air -r glm4moe/hq4_k                 what would it cost?
  ggplan convert GLM-4.5-Air air.gguf -r my.recipe         write it
"""


_COMMANDS = {
    "chart": "ggplan.cli.chart:chart_command",
    "convert": "ggplan.cli.convert:convert_command",
    "demo": "ggplan.cli.demo:demo_command",
    "diff": "ggplan.cli.diff:diff_command",
    "inspect": "ggplan.cli.inspect:inspect_command",
    "measure": "ggplan.cli.measure:measure_command",
    "plan": "ggplan.cli.plan:plan_command",
    "reproduce": "ggplan.cli.reproduce:reproduce_command",
    "rules": "ggplan.cli.rules:rules_group",
    "types": "ggplan.cli.types:types_command",
    "verify": "ggplan.cli.verify:verify_command",
}


@click.group(
    cls=LazyGroup,
    homes=_COMMANDS,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ggplan")
def cli() -> None:
    pass


def main() -> None:
    """Run the command line; exit 0 done, 1 the work failed, 2 wrong usage, 130 interrupted."""
    signal.signal(signal.SIGTERM, _terminated)
    # Numba compiles nothing but kernels here: see `quants.compiling`.
    os.environ.setdefault("NUMBA_OPT", "0")
    try:
        cli.main(prog_name="ggplan", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except Error as error:
        _say(error.message if error.is_rendered else f"error: {error.message}")
        if error.hint:
            _say(f"help: {error.hint}")
        sys.exit(1)
    except BrokenPipeError:
        # The reader of the pipe has ended (`ggplan types | head`): exit without a message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = f" ({printable(str(error.filename))})" if error.filename else ""
        _say(f"error: {error.strerror or error}{name}")
        sys.exit(1)
    except MemoryError:
        _say("error: out of memory")
        sys.exit(1)
    except Exception as error:
        if os.environ.get("GGPLAN_TRACEBACK"):
            traceback.print_exc()
        _say(f"error: a bug in ggplan: {type(error).__name__}: {printable(str(error))}")
        _say("help: please report it, with the traceback that GGPLAN_TRACEBACK=1 prints")
        sys.exit(1)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


def _say(line: str) -> None:
    click.echo(line, err=True)
