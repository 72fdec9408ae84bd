"""The command line: parse arguments, call the library, print. No logic lives here.

A command's module is imported when the command is asked for. It imports click alone at the top, and what the
command needs when it runs, so that `ggplan --help` answers at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from types import FrameType

import click

from ggplan.cli.completion import VARIABLE, offer_values
from ggplan.cli.lazy import LazyGroup
from ggplan.cli.trouble import say, say_error, say_usage_error
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

A MODEL is a path, the name of an inventory that ships with ggplan (GLM-4.5-Air), or `-`. A RECIPE is a path,
the name of a recipe that ships (glm4moe/hq4_k) or of one of llama-quantize's mixes (Q4_K_M), or `-`. A file
that exists is read, whatever else its name would be; `-` is standard input.

Exit codes: 0 done; 1 the work failed, or a check found a fault; 2 wrong usage; 130 interrupted.

\b
Examples:
  ggplan demo                                              try it on a small built-in model
  ggplan plan GLM-4.5-Air -r glm4moe/hq4_k                 what would it cost?
  ggplan convert GLM-4.5-Air air.gguf -r my.recipe         write it
"""


_COMMANDS = {
    "calibrate": "ggplan.cli.calibrate:calibrate_command",
    "chart": "ggplan.cli.chart:chart_command",
    "completion": "ggplan.cli.completion:completion_command",
    "convert": "ggplan.cli.convert:convert_command",
    "demo": "ggplan.cli.demo:demo_command",
    "diff": "ggplan.cli.diff:diff_command",
    "fit": "ggplan.cli.fit:fit_command",
    "imatrix": "ggplan.cli.imatrix:imatrix_group",
    "inspect": "ggplan.cli.inspect:inspect_command",
    "machine": "ggplan.cli.machine:machine_command",
    "measure": "ggplan.cli.measure:measure_command",
    "optimize": "ggplan.cli.optimize:optimize_command",
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
    """Run the command line; `ggplan.cli.trouble` has the exit codes."""
    signal.signal(signal.SIGTERM, _terminated)
    # What imports make stays. To look for garbage in it takes a twentieth of a short command's time.
    gc.set_threshold(100_000)
    # Numba compiles nothing but kernels here: see `quants.compiling`.
    os.environ.setdefault("NUMBA_OPT", "0")
    try:
        if VARIABLE in os.environ:
            offer_values(cli)
        cli.main(prog_name="ggplan", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        say_usage_error(error)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except Error as error:
        say_error(error)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of the pipe has ended (`ggplan types | head`): exit without a message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        say_error(error)
        sys.exit(1)
    except MemoryError:
        say("error: out of memory")
        sys.exit(1)
    except Exception as error:
        if os.environ.get("GGPLAN_TRACEBACK"):
            traceback.print_exc()
        say(f"error: a bug in ggplan: {type(error).__name__}: {printable(str(error))}")
        say("help: please report it, with the traceback that GGPLAN_TRACEBACK=1 prints")
        sys.exit(1)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)
