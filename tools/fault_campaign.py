"""Cause every kind of failure in conversions, many times, and print the results.

    python tools/fault_campaign.py [--seed N] [--scale PERCENT] [--torch] [--only SCENARIO]

Four scenarios (a GGUF, a sharded Hugging Face folder, a split set as output, a calibration), and with --torch
corrected targets, each converted again and again while it is killed, interrupted, refused disk space, or
finds its unfinished work damaged. After each trial the same command must end in the same bytes and leave
nothing else. `tests/conversion/test_faults.py` runs a small sample of the same trials.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "conversion"))

from fault_injection import fault_server, make_scenarios
from fault_kinds import TRIALS, Tally, campaign

COUNTS = {
    "kill": 140, "kill_twice": 30, "kill_by_clock": 30, "fail": 40, "fail_to_write": 30, "write_short": 10,
    "interrupt": 20, "interrupt_twice": 10, "damage": 30, "truncate_input": 20, "replace_old": 10,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=int, default=100, help="percent of the trials")
    parser.add_argument("--torch", action="store_true", help="corrected targets too, which need torch")
    parser.add_argument("--only", metavar="SCENARIO", help="one of the scenarios alone")
    arguments = parser.parse_args()
    counts = {name: max(3, count * arguments.scale // 100) for name, count in COUNTS.items()}
    started = time.monotonic()
    tallies = {name: Tally() for name in counts}
    with fault_server(with_torch=arguments.torch) as server, tempfile.TemporaryDirectory() as folder:
        scenarios = make_scenarios(server, Path(folder) / "scenarios")
        if arguments.only:
            scenarios = {arguments.only: scenarios[arguments.only]}
        for name, scenario, wrong in campaign(server, scenarios, Path(folder), counts, arguments.seed):
            tallies[name].n += 1
            if wrong:
                tallies[name].wrong.append(f"{scenario}: {wrong}")
                print(f"{name}: {scenario}: {wrong}", file=sys.stderr)
    print("| what | trials | right |\n| --- | ---: | ---: |")
    for name, tally in tallies.items():
        what = (TRIALS[name].__doc__ or name).split("\n")[0]
        print(f"| {what} | {tally.n} | {tally.n - len(tally.wrong)} |")
    n_trials = sum(tally.n for tally in tallies.values())
    n_wrong = sum(len(tally.wrong) for tally in tallies.values())
    print(f"\n{n_trials} trials in {time.monotonic() - started:.0f} s, {n_wrong} wrong")
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
