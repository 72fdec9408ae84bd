"""Bytes that a token reads: of a small model, counted by hand."""

from __future__ import annotations

import pytest

from ggplan.ggml_types import F16, F32, GgmlType, parse_type
from ggplan.metadata import MetadataType, array, string, uint32
from ggplan.offload.active import ActiveBytes, active_bytes
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.header import Header, HeaderTensor
from ggplan.offload.machine import Gpu
from ggplan.offload.settings import Override, Settings
from ggplan.offload.weights import place_weights

_Q8_0, _Q4_K = parse_type("q8_0"), parse_type("q4_K")
_CARD = Gpu("", 24 << 30)
_EXPERTS = Override("_exps", "CPU")
_BLOCK = 512 * 512 * 2  # a matrix in f16
_EXPERT = 8 * 512 * 256 * 18 // 32  # eight experts of q4_K


def _tensor(name: str, kind: GgmlType, *shape: int) -> HeaderTensor:
    return HeaderTensor(name, kind, shape)


def _header(*, n_blocks: int = 2, tied: bool = False, **keys: int) -> Header:
    tensors = [_tensor("token_embd.weight", _Q8_0, 512, 1024), _tensor("output_norm.weight", F32, 512)]
    if not tied:
        tensors.append(_tensor("output.weight", _Q8_0, 512, 1024))
    for b in range(n_blocks):
        tensors += [
            _tensor(f"blk.{b}.attn_{part}.weight", F16, 512, 512) for part in ("q", "k", "v", "output")
        ]
        tensors.append(_tensor(f"blk.{b}.ffn_gate_inp.weight", F32, 512, 8))
        tensors += [_tensor(f"blk.{b}.ffn_{part}_exps.weight", _Q4_K, 512, 256, 8) for part in ("gate", "up")]
        tensors.append(_tensor(f"blk.{b}.ffn_down_exps.weight", _Q4_K, 256, 512, 8))
    facts = {
        "block_count": n_blocks, "embedding_length": 512, "attention.head_count": 8, "expert_count": 8,
        "attention.head_count_kv": 8, "expert_used_count": 2, "context_length": 4096, **keys,
    }  # fmt: skip
    metadata = {f"qwen3moe.{key.replace('__', '.')}": uint32(value) for key, value in facts.items()}
    return Header("tiny", {"general.architecture": string("qwen3moe"), **metadata}, tuple(tensors))


def _active(header: Header, *gpus: Gpu, depth: int = 0, **wishes: object) -> ActiveBytes:
    settings = Settings(context=4096, slots=1, **wishes)  # type: ignore[arg-type]
    dimensions = dimensions_of(header)
    weights = place_weights(header, dimensions, settings, gpus)
    return active_bytes(weights, dimensions, settings, depth=depth)


def test_experts_count_by_those_used() -> None:
    active = _active(_header(), _CARD, overrides=(_EXPERTS,))
    row = 512 * 34 // 32
    assert active.host.weights == {"q8_0": row, "q4_K": 2 * 3 * _EXPERT * 2 / 8}
    gpu = active.devices["CUDA0"]
    assert gpu.weights == {"f16": 8 * _BLOCK, "f32": 512 * 4 + 2 * 512 * 8 * 4, "q8_0": 1024 * row}
    assert (active.experts_in_ram, active.streamable) == (6 * _EXPERT, 6 * _EXPERT)
    assert active.used_share == 0.25
    assert gpu.multiplied == 8 * 512 * 512 + 2 * 512 * 8 + 512 * 1024
    assert active.host.multiplied_experts == 2 * 3 * 8 * 512 * 256 / 4


def test_a_way_there_and_back_for_each_block_with_experts_in_ram() -> None:
    assert _active(_header(), _CARD, overrides=(_EXPERTS,)).host_crossings == 4
    assert _active(_header(), _CARD).host_crossings == 0
    only_one = (Override(r"blk\.1\..*_exps", "CPU"),)
    assert _active(_header(), _CARD, overrides=only_one).host_crossings == 2
    down = (Override(r"blk\.1\.ffn_down_exps", "CPU"),)
    assert _active(_header(), _CARD, overrides=down).host_crossings == 2
    # Half of the blocks on the CPU: one change between them.
    assert _active(_header(), _CARD, gpu_layers=2).host_crossings == 1


def test_two_gpus() -> None:
    two = _active(_header(n_blocks=4), _CARD, _CARD)
    assert (two.gpu_crossings, two.host_crossings) == (1, 0)
    moved = (Override(r"blk\.0\..*_exps", "CUDA1"),)
    assert _active(_header(n_blocks=4), _CARD, _CARD, overrides=moved).gpu_crossings == 3


def test_a_tied_output_is_read_whole_where_it_is() -> None:
    table = 1024 * 512 * 34 // 32
    gpu = _active(_header(tied=True), _CARD)
    assert gpu.devices["CUDA0"].weights["q8_0"] == table
    assert gpu.host.weights["q8_0"] == table / 1024
    assert _active(_header(tied=True)).host.weights["q8_0"] == pytest.approx(table + table / 1024)


def test_the_cache_grows_with_depth() -> None:
    row = 2 * 512 * 2  # K and V in f16
    assert _active(_header(), _CARD).devices["CUDA0"].cache == 0
    assert _active(_header(), _CARD, depth=1000).devices["CUDA0"].cache == 2 * 1000 * row
    on_cpu = _active(_header(), _CARD, depth=1000, cache_on_gpu=False)
    assert (on_cpu.devices["CUDA0"].cache, on_cpu.host.cache) == (0, 2 * 1000 * row)
    quantized = _active(_header(), _CARD, depth=1000, cache_k=_Q8_0, cache_v=_Q8_0)
    assert quantized.devices["CUDA0"].cache == 2 * 1000 * row * 34 / 64
    assert quantized.cache_is_quantized


def test_blocks_of_mtp_are_not_read() -> None:
    whole, without = _header(n_blocks=3), _header(n_blocks=3, nextn_predict_layers=1)
    assert _active(without, _CARD).devices["CUDA0"].weights["f16"] == 8 * _BLOCK
    assert _active(whole, _CARD).devices["CUDA0"].weights["f16"] == 12 * _BLOCK
    assert _active(without, _CARD, mtp=True).devices["CUDA0"].weights["f16"] == 8 * _BLOCK


def test_a_window_ends_the_growth() -> None:
    header = _header()
    metadata = {k.replace("qwen3moe", "gpt-oss"): v for k, v in header.metadata.items()}
    metadata |= {"general.architecture": string("gpt-oss"), "gpt-oss.attention.sliding_window": uint32(128)}
    windowed = Header("tiny", metadata, header.tensors)
    row = 2 * 512 * 2
    assert _active(windowed, _CARD, depth=100).devices["CUDA0"].cache == 200 * row
    assert _active(windowed, _CARD, depth=1000).devices["CUDA0"].cache == 1128 * row


def test_state_is_read_and_written_at_any_depth() -> None:
    header = _header()
    metadata = {k.replace("qwen3moe", "jamba"): v for k, v in header.metadata.items()}
    metadata |= {
        "general.architecture": string("jamba"),
        "jamba.attention.head_count_kv": array(MetadataType.UINT32, [0, 8]),
        "jamba.ssm.conv_kernel": uint32(4), "jamba.ssm.inner_size": uint32(1024),
        "jamba.ssm.state_size": uint32(16),
    }  # fmt: skip
    hybrid = Header("tiny", metadata, header.tensors)
    state = 4 * (3 * 1024 + 16 * 1024)
    assert _active(hybrid, _CARD).devices["CUDA0"].cache == 2 * state
    assert _active(hybrid, _CARD, depth=10).devices["CUDA0"].cache == 2 * state + 10 * 2 * 512 * 2


def test_what_is_interleaved_for_the_cpu_is_not_streamed() -> None:
    def in_type(name: str) -> Header:
        kind = parse_type(name)
        tensors = tuple(
            HeaderTensor(t.name, kind if "_exps" in t.name else t.type, t.shape) for t in _header().tensors
        )
        return Header("tiny", _header().metadata, tensors)

    for name, streamed in (("q4_k_r4", False), ("iq4_k_r4", True), ("q4_K", True)):
        active = _active(in_type(name), _CARD, overrides=(_EXPERTS,))
        assert (active.streamable > 0) == streamed
        assert active.experts_in_ram > 0
    repacked = _active(_header(), _CARD, overrides=(_EXPERTS,), host_buffer=False)
    assert repacked.streamable == 0
