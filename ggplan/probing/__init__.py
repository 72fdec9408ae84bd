"""Probing: sensitivities measured by a real engine, and recipes judged by it.

record.py      the file that the figures are kept in       files.py       the shards and links that are run
running.py     `probe`: measure what is missing            simulated.py   a low type where rows do not hold it
verifying.py   `verify_allocation`: the recipe's file beside a stock mix and a uniform type
holdout.py     `hold_out`: a calibrated file beside the same types without, on texts that were not used
"""

from ggplan.probing.holdout import HeldOut, hold_out
from ggplan.probing.record import ProbeRecord, load_probes
from ggplan.probing.running import ProbeOptions, Watcher, probe
from ggplan.probing.verifying import Contender, Verified, contenders, verify_allocation

__all__ = [
    "Contender",
    "HeldOut",
    "ProbeOptions",
    "ProbeRecord",
    "Verified",
    "Watcher",
    "contenders",
    "hold_out",
    "load_probes",
    "probe",
    "verify_allocation",
]
