"""Threads and chunks under a budget of memory."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggplan import make_plan, open_model, parse_recipe
from ggplan.conversion.pace import choose_pace
from ggplan.planning import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One tensor with rows of 1024 weights."""
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 1024), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return make_plan(open_model(tmp_path / "in.gguf"), parse_recipe(".* = q8_0"))


@pytest.mark.parametrize("n_threads", [1, 2, 16, 64])
@pytest.mark.parametrize("memory", [1 << 15, 1 << 20, 1 << 26, 1 << 30, 1 << 34])
def test_chunks_become_smaller_before_threads_become_fewer(plan: Plan, n_threads: int, memory: int) -> None:
    roomy = choose_pace(plan, 1, 1 << 40)
    pace = choose_pace(plan, n_threads, memory)
    working = pace.n_threads * pace.chunk_weights * 24
    waiting = (pace.n_in_flight - pace.n_threads) * pace.chunk_weights * 4
    assert pace.n_threads == 1 or working + waiting <= memory
    assert 1 <= pace.n_threads <= n_threads
    assert pace.chunk_weights <= roomy.chunk_weights
    if pace.n_threads < n_threads:
        assert pace.chunk_weights <= roomy.chunk_weights // 8
    elif pace.chunk_weights < roomy.chunk_weights:
        assert n_threads * 28 * 2 * pace.chunk_weights > memory


def test_with_room_each_thread_has_whole_chunks(plan: Plan) -> None:
    roomy, crowd = choose_pace(plan, 1, 1 << 40), choose_pace(plan, 32, 1 << 30)
    assert crowd.n_threads == 32
    assert crowd.chunk_weights == roomy.chunk_weights
