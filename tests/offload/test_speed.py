"""Tokens per second: what makes them more, and what the range says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ggplan.offload.active import ActiveBytes, DeviceReads
from ggplan.offload.machine import Gpu, Learned, Machine
from ggplan.offload.profiles import IK_LLAMA_CPP, LLAMA_CPP
from ggplan.offload.settings import Settings
from ggplan.offload.speed import RATES, Rate, core_rate, generation, prompt

# Some 12 GB of experts in 90 blocks in RAM, of which a token uses 1 of 16, and 8 GB on the GPU.
_ACTIVE = ActiveBytes(
    {
        "host": DeviceReads({"q4_K": 4e9}, 0.0, 270, 0.0, 7e9),
        "CUDA0": DeviceReads({"q8_0": 8e9}, 1e9, 900, 8e9, 0.0, 1e9),
    },
    180, 0, 64_000_000_000, 64_000_000_000, 0, 0, 1 / 16, False, False, 123,
)  # fmt: skip
_CARD = Gpu("RTX 3090", 24 << 30, 936e9, 24e9, 142e12)
_MACHINE = Machine((_CARD,), 128 << 30, 80e9, 16)
_SETTINGS = Settings(context=32768)


def _written(active: ActiveBytes = _ACTIVE, machine: Machine = _MACHINE, **wishes: object) -> Rate:
    return generation(active, machine, LLAMA_CPP, replace(_SETTINGS, **wishes))  # type: ignore[arg-type]


def _read(active: ActiveBytes = _ACTIVE, machine: Machine = _MACHINE, **wishes: object) -> Rate:
    return prompt(active, machine, LLAMA_CPP, replace(_SETTINGS, **wishes))  # type: ignore[arg-type]


def test_a_range_with_its_causes() -> None:
    rate = _written()
    assert rate.low < rate.likely < rate.high
    assert sum(rate.seconds.values()) == pytest.approx(1 / rate.likely)
    assert rate.seconds["RAM"] == pytest.approx(4e9 / (0.80 * 80e9))
    assert set(rate.seconds) == {
        "RAM", "CUDA0", "cache of CUDA0", "steps on CUDA0", "steps on the CPU", "changes between CPU and GPU",
    }  # fmt: skip


def test_faster_parts_make_it_faster_but_not_in_proportion() -> None:
    twice = _written(machine=replace(_MACHINE, bandwidth=160e9))
    assert 1 < twice.likely / _written().likely < 2
    assert (
        _written(machine=replace(_MACHINE, gpus=(replace(_CARD, bandwidth=1792e9),))).likely
        > _written().likely
    )


def test_few_or_slow_cores_limit() -> None:
    fast = replace(_MACHINE, bandwidth=500e9, cores=64)
    assert _written(machine=replace(fast, cores=4)).likely < _written(machine=fast).likely
    assert _written(machine=fast, threads=4).likely == _written(machine=replace(fast, cores=4)).likely
    assert _written(machine=fast, threads=99).likely == _written(machine=fast).likely
    slow_type = replace(_ACTIVE, devices=_ACTIVE.devices | {"host": DeviceReads({"iq4_xs": 4e9}, 0.0, 270)})
    few = replace(fast, cores=8)
    assert "8 cores decode iq4_xs slower than RAM gives it" in _written(slow_type, few).reasons
    assert _written(slow_type, few).likely < _written(replace(_ACTIVE), few).likely


def test_measured_rates_take_the_place_of_those_of_all_machines() -> None:
    few = replace(_MACHINE, bandwidth=500e9, cores=4)
    slow = replace(few, rates={"q4_K": 1e9, "q4_0": 1e9, "iq4_xs": 0.5e9})
    assert _written(machine=slow).seconds["RAM"] == pytest.approx(4e9 / 4e9)
    assert core_rate("q4_k_r4", slow, IK_LLAMA_CPP) > core_rate("q4_K", slow, LLAMA_CPP) == 1e9
    assert core_rate("iq2_s", slow, LLAMA_CPP) < 0.5e9
    assert core_rate("q4_K", Machine(), LLAMA_CPP) > RATES["q4_K"]


def test_what_is_not_known_widens_the_range() -> None:
    known, unknown = _written(), _written(machine=Machine((Gpu("", 24 << 30),)))
    assert unknown.high / unknown.low > 1.5 * known.high / known.low
    assert any("bandwidth of RAM is not known" in reason for reason in unknown.reasons)
    assert any("bandwidth of CUDA0 is not known" in reason for reason in unknown.reasons)


def test_changes_between_gpus_cost() -> None:
    machine = replace(_MACHINE, gpus=(_CARD, _CARD))
    scattered = _written(replace(_ACTIVE, gpu_crossings=28), machine)
    assert scattered.likely < 0.95 * _written(machine=machine).likely
    assert any("two GPUs may be slower than one" in reason for reason in scattered.reasons)


def test_a_quantized_cache_is_read_slower_than_its_bytes_say() -> None:
    deep = {"CUDA0": DeviceReads({"q8_0": 8e9}, 6e9, 900, 8e9)}
    plain = replace(_ACTIVE, devices=deep)
    quantized = replace(plain, cache_is_quantized=True)
    assert _written(quantized).likely < _written(plain).likely
    assert _written(replace(quantized, cache_is_latent=True)).likely == _written(plain).likely


def test_prompts_are_streamed_from_32_tokens_on() -> None:
    assert "experts over PCIe" in _read(micro_batch=32).seconds
    assert "experts over PCIe" not in _read(micro_batch=31).seconds
    assert "experts over PCIe" not in _read(micro_batch=512, op_offload=False).seconds
    # ik_llama.cpp: tokens × used >= 32 × experts, here from 512 tokens on.
    for tokens, streams in ((511, False), (512, True)):
        rate = prompt(_ACTIVE, _MACHINE, IK_LLAMA_CPP, replace(_SETTINGS, micro_batch=tokens))
        assert ("experts over PCIe" in rate.seconds) == streams


def test_larger_micro_batches_are_faster_while_experts_are_streamed() -> None:
    small, large = _read(micro_batch=512), _read(micro_batch=4096)
    assert 3 < large.likely / small.likely < 8
    assert _read(load_mode="none").likely > 1.2 * small.likely
    assert any("mapped pages" in reason for reason in small.reasons)


def test_prompts_without_a_gpu_are_of_the_cores() -> None:
    alone = replace(_ACTIVE, devices={"host": DeviceReads({"q4_K": 12e9}, 0.0, 900, 8e9, 7e9)})
    few, many = (_read(alone, Machine((), None, 80e9, n)).likely for n in (4, 8))
    assert many == pytest.approx(2 * few)


def test_a_log_stretches_its_own_model_in_full_and_others_in_part() -> None:
    def with_log(file_bytes: int) -> Machine:
        return replace(_MACHINE, learned=Learned("bench.log", 1.2, 2.0, file_bytes))

    assert _written(machine=with_log(123)).likely == pytest.approx(_written().likely / 1.2)
    assert _read(machine=with_log(123)).likely == pytest.approx(_read().likely / 2)
    other = _written(machine=with_log(999))
    assert _written().likely / 1.2 < other.likely < _written().likely
    assert "learned from bench.log, a log of another file, so for a small part" in other.reasons
    same = _written(machine=with_log(123))
    assert same.high / same.low < other.high / other.low == pytest.approx(_written().high / _written().low)


def test_a_far_log_of_another_model_moves_little() -> None:
    far = replace(_MACHINE, learned=Learned("bench.log", 50.0, None, 999))
    assert _written(machine=far).likely > _written().likely / 1.3
    assert _read(machine=far).likely == _read().likely


def test_a_model_of_nothing_is_not_a_division_by_zero() -> None:
    nothing = replace(_ACTIVE, devices={}, host_crossings=0, experts_in_ram=0, streamable=0)
    assert _written(nothing).likely > 0
    assert _read(nothing).likely > 0


def test_other_matrices_in_ram_are_copied_for_prompts_too() -> None:
    # A dense model of which 18 GB are in RAM: the GPU reads them there, once for each micro-batch.
    devices = {
        "host": DeviceReads({"q4_K": 18e9}, 0.0, 270, 32e9, 0.0, 1e6),
        "CUDA0": DeviceReads({"q4_K": 22e9}, 0.0, 330, 39e9),
    }
    dense = replace(
        _ACTIVE, devices=devices, experts_in_ram=0, streamable=0, used_share=1.0,
        matrices_in_ram=18_000_000_000, streamable_matrices=18_000_000_000,
    )  # fmt: skip
    read = _read(dense, load_mode="none")
    assert read.seconds["weights over PCIe"] == pytest.approx(18e9 / 24e9)
    assert "CPU" not in read.seconds
    assert read.likely > 5 * _read(dense, op_offload=False).likely
    assert _read(dense, micro_batch=2048).likely > 1.3 * _read(dense).likely
    assert _read(dense, micro_batch=31).seconds["CPU"] > 0
    alone = replace(dense, devices={"host": devices["host"]})  # -ngl 0: the GPU has nothing else to do
    assert _read(alone).seconds["CUDA0"] > 0
    mapped = _read(dense)
    assert any("weights are copied from mapped pages" in reason for reason in mapped.reasons)
    assert mapped.likely < read.likely
