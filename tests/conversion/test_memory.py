"""Conversions in processes of their own take no more memory than they are allowed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_up_calibration import write_model

from ggplan import make_plan, open_model
from ggplan.calibration import Calibration
from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.run import begin
from ggplan.conversion.guides import Guides, beyond_a_hessian
from ggplan.conversion.pace import choose_pace, default_memory
from ggplan.errors import PlanError
from ggplan.planning import Feedback, Plan
from ggplan.quants.prepared import search_bytes

N, ROWS, EXPERTS, TOKENS = 1024, 64, 16, 300
HESSIAN = 4 * N * N
Q, GATE, UP = "blk.0.attn_q.weight", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"
SHAPES = {Q: (ROWS, N), GATE: (EXPERTS, ROWS, N), UP: (EXPERTS, ROWS, N)}
MEASURED = """
from ggplan.cli import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        print("peak", next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with seventeen inputs of 1024 columns."""
    path = tmp_path_factory.mktemp("memory") / "in.gguf"
    rng = np.random.default_rng(0)
    return write_model(path, {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()})


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Its inputs are kept as rows."""
    rng = np.random.default_rng(1)
    n = TOKENS * EXPERTS
    run = begin(
        tmp_path_factory.mktemp("memory") / "calib",
        {"texts": [{"name": "a.txt", "sha256": "5" * 64}], "tokens": n, "n_ctx": TOKENS},
    )
    assert not isinstance(run, Calibration)
    run.write_tokens(np.zeros((EXPERTS, TOKENS), np.int32))
    shared = Activation("attn_norm", N, (Q,))
    experts = Activation("ffn_norm", N, (), (GATE, UP), EXPERTS, 1)
    collected = LayerCollector(0, [shared, experts], n)
    for expert in range(EXPERTS):
        x = rng.standard_normal((TOKENS, N), np.float32) + rng.standard_normal((TOKENS, 1), np.float32)
        collected.add("attn_norm", x)
        collected.add("ffn_norm", x, np.full((TOKENS, 1), expert, np.int32))
    collected.write(run.folder, run.digest)
    return run.finish(run.finished([0]).values(), {})


def peak(*arguments: object) -> int:
    """The most memory, in bytes, that a conversion has held."""
    command = [sys.executable, "-c", MEASURED, "convert", *map(str, arguments), "--force", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("peak ")[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has held at most")
def test_moments_fit_into_the_budget_and_a_hessian_a_thread(
    model: Path, calibration: Calibration, tmp_path: Path
) -> None:
    (tmp_path / "a.recipe").write_text("@default q4_K\n")
    threads, memory = 8, 26 << 20  # eight inputs at once would take 88 MiB, and their rows 29
    common = [model, tmp_path / "out.gguf", "-r", tmp_path / "a.recipe"]
    by_calibration = [*common, "--calibration", calibration.path, "-t", threads, "--memory", memory]
    peak(*by_calibration)  # kernels that are compiled take memory too
    program = peak(*common, "-t", 1, "--memory", "1M")
    assert peak(*by_calibration) <= program + memory + threads * HESSIAN


def planned(model: Path, calibration: Calibration) -> Plan:
    return make_plan(open_model(model), "Q4_K_M", feedback=Feedback(calibration))


@pytest.mark.parametrize("threads", [1, 2, 8, 64])
@pytest.mark.parametrize("memory", [17 << 20, 40 << 20, 64 << 20, 1 << 28, 1 << 33])
def test_the_pace_counts_moments(model: Path, calibration: Calibration, threads: int, memory: int) -> None:
    """Besides a Hessian, moments of n columns are another and three runs of 256 rows."""
    plan = planned(model, calibration)
    pace = choose_pace(plan, threads, memory)
    one = HESSIAN + 3 * 4 * 256 * N
    assert one <= pace.moments <= pace.n_threads * one
    rows = max(16 * N, pace.chunk_weights)
    waiting = pace.n_in_flight - pace.n_threads
    assert pace.moments + pace.n_threads * rows * search_bytes(N) + waiting * rows * 4 <= memory
    assert 1 <= pace.n_threads <= threads
    if pace.n_threads < threads:  # one input, and small chunks
        assert pace.moments < 2 * one
        assert pace.chunk_weights <= 1 << 18
    if memory == 1 << 33:
        assert (pace.n_threads, pace.moments) == (threads, threads * one)


def test_memory_that_is_too_small_for_moments_is_refused_with_what_will_do(
    model: Path, calibration: Calibration
) -> None:
    plan = planned(model, calibration)
    with pytest.raises(PlanError, match=r"second moments need .* besides a Hessian") as refused:
        choose_pace(plan, 4, 1 << 20)
    needed = int(refused.value.hint.split("--memory ")[1].split("M")[0])
    assert choose_pace(plan, 4, needed << 20).n_threads == 1
    with pytest.raises(PlanError):
        choose_pace(plan, 4, (needed - 1) << 20)


def test_more_memory_is_the_default_with_a_calibration(model: Path, calibration: Calibration) -> None:
    assert default_memory(planned(model, calibration)) > default_memory(make_plan(open_model(model), "Q8_0"))


@pytest.mark.parametrize("n_inputs", [1, 2, 4])
def test_no_more_moments_are_held_than_there_is_room_for(
    model: Path, calibration: Calibration, n_inputs: int
) -> None:
    """Threads with moments of other inputs wait; what several threads use is made once."""
    plan = planned(model, calibration)
    assert plan.feedback is not None
    guides = Guides(plan.feedback, 4, n_inputs * beyond_a_hessian(N))
    gate = next(t for t in plan.tensors if t.name == GATE)
    lock, in_use, most = threading.Lock(), [0] * EXPERTS, 0

    def work(expert: int) -> int:
        nonlocal most
        with guides.prepared(gate, expert * ROWS) as prepared:
            with lock:
                in_use[expert] += 1
                most = max(most, sum(map(bool, in_use)))
            time.sleep(0.02)
            with lock:
                in_use[expert] -= 1
            return id(prepared)

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(work, [0, 0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 3, 3, 3, 3, 3]))
    assert most <= n_inputs
    assert len(set(made[:4])) == 1
