"""Random budgets of memory and speed on shipped inventories: does every answer fit, and what is refused?

    python tools/check_budgets.py [N [SEED]]

Of each budget one line: what was asked, and the answer's size, gap and seconds of processor time, or what
cannot be met. Every answer is placed again by `ggplan.place` and must fit and be as fast as asked; of what is
refused, the machine with a little more of what is short must be enough where that alone is short.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import ggplan
from ggplan.allocation import OptimizeOptions, Target, optimize
from ggplan.errors import PlanError
from ggplan.ggml_types import F16, parse_type
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.placement import Wishes

INVENTORIES = ("GLM-4.5-Air", "Qwen3-30B-A3B", "gpt-oss-20b", "Qwen3-8B", "MiniMax-M2")
MOST_GAP = 0.005
_GIB = 1 << 30


@dataclass(frozen=True)
class Asked:
    """One budget."""

    model: str
    target: Target
    options: OptimizeOptions

    def __str__(self) -> str:
        machine, wishes, tps = self.target.machine, self.target.wishes, self.target.min_tps
        gpus = "+".join(f"{gpu.memory / _GIB:g}" for gpu in machine.gpus) or "no GPU"
        ram = "" if machine.ram is None else f" ram {machine.ram / _GIB:g}"
        return (
            f"{self.model}: vram {gpus}{ram} ctx {wishes.context} kv {wishes.cache_k.name}"
            + ("" if tps is None else f" tps {tps:g}")
            + ("" if self.options.bpw is None else f" bpw {self.options.bpw:g}")
        )


def budgets(n: int, seed: int) -> Iterator[Asked]:
    """Random budgets, of which most can be met."""
    draw = random.Random(seed)
    sizes = {name: ggplan.open_model(name).n_weights / 2 / _GIB for name in INVENTORIES}  # of four bits
    for number in range(n):
        model = INVENTORIES[number % len(INVENTORIES)]
        size = sizes[model]
        vram = round(size * draw.choice([0.0, 0.15, 0.3, 0.5, 0.9, 1.4]) + draw.choice([2, 4, 8]))
        whole = draw.choice([0.8, 1.0, 1.3, 1.8]) * size + 6
        ram = None if draw.random() < 0.1 else max(round(whole - vram * draw.choice([0.0, 1.0])), 5)
        bandwidth = draw.choice([936e9, 504e9, None])
        cards = [vram] if draw.random() < 0.8 else [vram - vram // 3, vram // 3]
        if draw.random() < 0.1:
            cards = []
        gpus = tuple(Gpu("", round(n_gib * _GIB), bandwidth) for n_gib in cards if n_gib)
        machine = Machine(
            gpus, None if ram is None else ram * _GIB, draw.choice([40e9, 80e9, 200e9]),
            draw.choice([None, 8, 16, 32]),
        )  # fmt: skip
        kind = draw.choice([F16, parse_type("q8_0")])
        wishes = Wishes(draw.choice([4096, 16384, 32768]), kind, kind)
        fast = 2.0 ** draw.uniform(0, 6) if draw.random() < 0.5 else None
        target = Target(machine, wishes, fast and round(fast, 1))
        bpw = round(draw.uniform(3, 7), 1) if draw.random() < 0.2 else None
        bands = draw.choice([3, 3, 3, 2])
        yield Asked(model, target, OptimizeOptions(bpw=bpw, target=target, bands=bands))


def check(asked: Asked) -> str:
    """What came of a budget.

    Raises
    ------
    AssertionError
        If an answer does not keep to it.
    """
    model = ggplan.open_model(asked.model)
    begin = time.process_time()
    try:
        answer = optimize(model, asked.options)
    except PlanError as error:
        seconds = time.process_time() - begin
        if not any(word in error.message for word in ("short of", "--min-tps", "--bpw")):
            raise AssertionError(error.message) from error
        return f"refused ({seconds:.1f} s): {error.message}"
    seconds = time.process_time() - begin
    placement = ggplan.place(answer.plan, asked.target.machine, asked.target.wishes)
    assert placement.fits, placement.shortages
    tps = placement.generation.likely
    assert asked.target.min_tps is None or tps >= asked.target.min_tps, tps
    assert asked.options.bpw is None or answer.plan.bits_per_weight <= asked.options.bpw
    assert answer.gap <= MOST_GAP, answer.gaps
    return (
        f"{answer.plan.bits_per_weight:.2f} bpw, {tps:.1f} tok/s, gap {100 * answer.gap:.2g} % "
        f"(anywhere {'?' if answer.gaps.anywhere is None else f'{100 * answer.gaps.anywhere:.2g} %'}), "
        f"{seconds:.1f} s, {len(answer.notes)} notes"
    )


def main() -> None:
    """Check as many budgets as are asked for."""
    n, seed = (int(given) for given in [*sys.argv[1:], *("100", "1")[len(sys.argv) - 1 :]])
    failed = 0
    for asked in budgets(n, seed):
        try:
            print(f"{asked}: {check(asked)}", flush=True)
        except AssertionError as error:
            failed += 1
            print(f"{asked}: FAILED {error}", flush=True)
    print(f"{n - failed} of {n} keep to their budgets or say what is short")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
