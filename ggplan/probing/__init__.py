"""Probing: sensitivities measured by a real engine, and recipes judged by it.

record.py      the file that the figures are kept in       files.py       the shards and links that are run
running.py     `probe`: measure what is missing            simulated.py   a low type where rows do not hold it
verifying.py   `verify_allocation`: the recipe's file beside a stock mix and a uniform type
"""

from ggplan.probing.record import ProbeRecord, load_probes
from ggplan.probing.running import ProbeOptions, Watcher, probe
from ggplan.probing.verifying import Contender, Verified, contenders, verify_allocation

__all__ = [
    "Contender",
    "ProbeOptions",
    "ProbeRecord",
    "Verified",
    "Watcher",
    "contenders",
    "load_probes",
    "probe",
    "verify_allocation",
]
