"""Configs of integers as published models have them, and as their tools write them: every key is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_safetensors import bf16, write_safetensors
from packing import packed

from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors

ZEROS = np.zeros((8, 128), int)
GPTQ = {
    "qweight": packed(ZEROS, 4, "dense").T,
    "qzeros": packed(np.full((1, 8), 7), 4, "dense"),
    "scales": np.ones((1, 8), np.float16),
}
AWQ = {
    "qweight": packed(ZEROS.T, 4, "interleaved"),
    "qzeros": packed(np.full((1, 8), 7), 4, "interleaved"),
    "scales": np.ones((1, 8), np.float16),
}
PACKED = {
    "weight_packed": packed(ZEROS, 4, "dense"),
    "weight_scale": bf16(np.ones((8, 1))),
    "weight_shape": np.array([8, 128]),
}
PACKED_32 = {**PACKED, "weight_scale": bf16(np.ones((8, 4)))}
BYTES = {"weight": np.zeros((8, 128), np.int8), "weight_scale": bf16(np.ones((8, 1)))}


def compressed(size: int | None, **more: object) -> dict[str, Any]:
    weights = {
        "actorder": None, "block_structure": None, "dynamic": False, "group_size": size, "num_bits": 4,
        "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": True, "type": "int",
    }  # fmt: skip
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group}, "format": "pack-quantized", "ignore": ["lm_head"],
        "kv_cache_scheme": None, "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "global_compression_ratio": None, **more,
    }  # fmt: skip


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, object], str]] = {
    "Kimi-K2.5": (
        compressed(32, ignore=["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                               r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]), PACKED_32, "q4_0",
    ),
    "GLM-4.6-AWQ": (
        compressed(128, version="0.12.3", sparsity_config={}, transform_config={}, moe_sparsity_config=None),
        PACKED, "q4_0",
    ),
    "W8A8": (
        {"quant_method": "compressed-tensors", "format": "int-quantized", "version": "0.9.4",
         "sparsity_config": {"format": "dense", "global_sparsity": 0.1, "ignore": []},
         "config_groups": {"group_0": {
             "targets": ["Linear"],
             "input_activations": {"num_bits": 8, "dynamic": True, "strategy": "token"},
             "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
         }}},
        BYTES, "q8_0",
    ),
    "Qwen3-235B-A22B-GPTQ-Int4": (
        {"bits": 4, "checkpoint_format": "gptq", "damp_percent": 0.01, "desc_act": False, "group_size": 128,
         "model_file_base_name": None, "model_name_or_path": None, "quant_method": "gptq",
         "static_groups": False, "sym": True, "true_sequential": True}, GPTQ, "q4_0",
    ),
    "optimum": (
        {"batch_size": 1, "bits": 4, "block_name_to_quantize": None, "cache_block_outputs": True,
         "damp_percent": 0.1, "dataset": None, "desc_act": False, "exllama_config": {"version": 1},
         "group_size": 128, "max_input_length": None, "model_seqlen": None,
         "module_name_preceding_first_block": None, "modules_in_block_to_quantize": None,
         "pad_token_id": None, "quant_method": "gptq", "sym": True, "tokenizer": None,
         "true_sequential": True, "use_cuda_fp16": False, "use_exllama": True}, GPTQ, "q4_0",
    ),
    "GPTQModel": (
        {"bits": 4, "checkpoint_format": "gptq", "desc_act": False, "format": "gptq", "group_size": 128,
         "lm_head": False, "meta": {"act_group_aware": True, "quantizer": ["gptqmodel:5.0.0"]},
         "pack_dtype": "int32", "quant_method": "gptq", "sym": True,
         "dynamic": {r"-:.*mlp\.gate$": {}, r"+:.*down_proj": {"bits": 8, "group_size": 32}}}, GPTQ, "q4_0",
    ),
    "Qwen3-8B-AWQ": (
        {"backend": "autoawq", "bits": 4, "do_fuse": False, "exllama_config": None, "fuse_max_seq_len": None,
         "group_size": 128, "modules_to_fuse": None, "modules_to_not_convert": None, "quant_method": "awq",
         "version": "gemm", "zero_point": True}, AWQ, "q5_0",
    ),
    "AWQ by GPTQModel": (
        {"bits": 4, "checkpoint_format": "gemm", "desc_act": False, "format": "gemm", "group_size": 128,
         "lm_head": False, "meta": {}, "pack_dtype": "int32", "quant_method": "awq", "sym": True,
         "zero_point": True}, AWQ, "q5_0",
    ),
    "AutoRound": (
        {"amp": True, "autoround_version": "0.5.1", "batch_size": 8, "bits": 4, "data_type": "int",
         "dataset": "NeelNanda/pile-10k", "enable_minmax_tuning": True, "enable_norm_bias_tuning": False,
         "enable_quanted_input": True, "extra_config": {"model.layers.0.mlp.gate": {
             "bits": 16, "data_type": "float", "sym": False}},
         "gradient_accumulate_steps": 1, "group_size": 128, "iters": 200, "low_gpu_mem_usage": False,
         "lr": 0.005, "minmax_lr": 0.005, "nsamples": 128, "packing_format": "auto_round:auto_gptq",
         "quant_method": "auto-round", "scale_dtype": "torch.float16", "seqlen": 2048, "sym": True,
         "to_quant_block_names": None}, GPTQ, "q4_0",
    ),
    "AutoRound, older": (
        {"backend": "auto_round:gptq:exllamav2", "bits": 4, "data_type": "int", "group_size": 128,
         "quant_method": "intel/auto-round", "sym": True, "autoround_version": "0.3.1"}, GPTQ, "q4_0",
    ),
    "AutoRound in AWQ's layout": (
        {"autoround_version": "0.9.0", "bits": 4, "block_name_to_quantize": "model.layers",
         "data_type": "int",
         "group_size": 128, "packing_format": "auto_round:auto_awq", "quant_method": "auto-round",
         "sym": False}, AWQ, "q5_0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name: str, tmp_path: Path) -> None:
    config, tensors, moved = PUBLISHED[name]
    path = tmp_path / "t.safetensors"
    write_safetensors(path, {f"m.{part}": values for part, values in tensors.items()})
    tensor = join_tensors(read_tensors(path), QuantizationConfig(tmp_path, config))["m.weight"]
    assert tensor.rows is not None
    assert tensor.rows.fault() == ""
    assert tensor.codes is not None
    assert tensor.codes.dtype.name == moved
    assert len(set(tensor.rows.read(0, 8).reshape(-1).tolist())) == 1
