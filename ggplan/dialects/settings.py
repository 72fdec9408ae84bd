"""Settings: a config that remembers which of its keys were read, so that none is dropped without a word.

A reader asks for the keys it knows. `left_out` says what it did not ask for: keys that are known to say
nothing of types (how weights were rounded, how they are packed, what becomes of activations), and keys that
ggplan does not know, each with its path and value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ggplan.text import printable

_LONGEST = 60
_SHOWN = 40

# Keys that no type depends on: of transformers, GPTQModel, AutoGPTQ, AutoAWQ, auto-round, compressed-tensors,
# llm-compressor, modelopt, bitsandbytes, hqq and torchao.
_NOT_OF_TYPES = """
    version format checkpoint_format pack_dtype packing_format backend meta
    meta.quantizer producer provider autoround_version quantization_status global_compression_ratio
    desc_act act_group_aware static_groups true_sequential damp_percent damp_auto_increment mse hyb_act
    dampening_frac block_size sequential_update sequential_targets offload_hessians observer observer_kwargs
    actorder dynamic_zp dataset tokenizer model nsamples seqlen iters lr minmax_lr amp batch_size
    gradient_accumulate_steps enable_quanted_input enable_minmax_tuning low_gpu_mem_usage low_cpu_mem_usage
    enable_torch_compile enable_norm_bias_tuning enable_alg_ext seed sampler train_bs device device_map
    scale_dtype zp_dtype super_bits super_group_size act_bits act_group_size act_sym act_dynamic act_data_type
    supported_types quant_lm_head_dtype trust_remote_code gguf_format_name
    use_exllama exllama_config max_input_length use_cuda_fp16 cache_block_outputs model_seqlen pad_token_id
    module_name_preceding_first_block model_file_base_name model_name_or_path is_marlin_format do_fuse
    modules_to_fuse fuse_max_seq_len input_activations output_activations activation_scheme
    activation_scale_ub activations kv_cache_scheme kv_cache_quant_algo kv_cache_quant_type scale_fmt fmt
    block_structure weight_block_size dequantize sparsity_config transform_config moe_sparsity_config
    bnb_4bit_compute_dtype bnb_4bit_quant_storage llm_int8_enable_fp32_cpu_offload llm_int8_has_fp16_weight
    llm_int8_threshold _load_in_4bit _load_in_8bit pre_quant_scale offload_meta optimize round_zero
    channel_wise view_as_float axis untie_embedding_weights set_inductor_config
    intx_choose_qparams_algorithm intx_packing_format packing_scale_dtype duo_scaling mappings
    smoothing_strength qformat_act
"""
_KNOWN = frozenset(_NOT_OF_TYPES.split())
_WHOSE = frozenset({"_type", "_args", "_version", "quant_method"})  # say what the config is
_IF_EMPTY_ONLY = frozenset({"sparsity_config", "transform_config", "moe_sparsity_config"})


class Settings:
    """An object or array of a config, and which of its keys were read.

    Parameters
    ----------
    values
        The object, or an array, whose keys are then its indices.
    path
        Where it stands in the config: `quantization_config.`, or "".
    """

    def __init__(self, values: Mapping[Any, object] | Sequence[object], path: str = "") -> None:
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        self._values: dict[str, object] = {str(key): value for key, value in pairs}
        self.path = path
        self._read: set[str] = set()
        self._inner: dict[str, Settings] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, *keys: str, default: object = None) -> object:
        """The value of the first of these keys that is there and not null; all of them count as read."""
        self._read.update(keys)
        return next((self._values[key] for key in keys if self._values.get(key) is not None), default)

    def peek(self, key: str) -> object:
        """The value of a key, which does not count as read by that."""
        return self._values.get(key)

    def inner(self, key: str) -> Settings | None:
        """The object or array at a key, whose own keys are still to be read; None for other values."""
        value = self._values.get(key)
        if not isinstance(value, Mapping | list | tuple):
            return None
        if key not in self._inner:
            self._inner[key] = Settings(value, f"{self.path}{key}.")
        return self._inner[key]

    def _unread(self) -> Iterator[tuple[str, str, object]]:
        """Key, path and value of all that was not read, and is not empty."""
        for key, value in self._values.items():
            if key in self._inner:
                yield from self._inner[key]._unread()
            elif key not in self._read and key not in _WHOSE and value not in (None, {}, [], ""):
                yield key, f"{self.path}{key}", value

    def left_out(self) -> list[str]:
        """Notes on the keys that were not read."""
        known: list[str] = []
        unknown: list[str] = []
        for key, path, value in self._unread():
            is_known = key in _KNOWN and key not in _IF_EMPTY_ONLY
            said = f"{_short(path.removeprefix(self.path))} = {_short(_text(value))}"
            (known if is_known else unknown).append(said)
        where = f"{printable(self.path.removesuffix('.'))}: " if self.path else ""
        notes = []
        if known:
            notes.append(f"{where}no type depends on {_list(known)}")
        if unknown:
            notes.append(f"{where}left out, as ggplan does not know it: {_list(unknown)}")
        return notes


def _text(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError, TypeError):
        return str(type(value).__name__)


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _list(said: Sequence[str]) -> str:
    more = f", and {len(said) - _SHOWN:,} more" if len(said) > _SHOWN else ""
    return ", ".join(said[:_SHOWN]) + more
