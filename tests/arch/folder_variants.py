"""Folders as people have them: each variant is a small checkpoint, changed.

`tests/data/goldens/variants.json` holds what llama.cpp's converter makes of each (`tools/make_goldens.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiny_checkpoints import read_case, write_case, write_tensors

INDEX = "model.safetensors.index.json"
Change = Callable[[dict], object]


@dataclass(frozen=True)
class Variant:
    """A case, what is changed in it before it is written and after, and what the converter writes."""

    case: str
    spec: Change = lambda spec: None
    folder: Callable[[Path], object] = lambda folder: None
    outtype: str = "bf16"

    def write(self, folder: Path) -> Path:
        spec = read_case(self.case)
        self.spec(spec)
        write_case(folder, spec)
        self.folder(folder)
        return folder


def _renamed(new_name: Callable[[str], str]) -> Change:
    def change(spec: dict) -> None:
        for shard, tensors in spec["shards"].items():
            spec["shards"][shard] = {new_name(name): tensor for name, tensor in tensors.items()}

    return change


def _config(**values: object) -> Change:
    def change(spec: dict) -> None:
        for key, value in values.items():
            spec["config"].update({key: value}) if value is not None else spec["config"].pop(key, None)

    return change


def _without_head(spec: dict) -> None:
    for tensors in spec["shards"].values():
        tensors.pop("lm_head.weight", None)


def _stored_as(dtype: str, *words: str) -> Change:
    """Store the matrices, or the tensors whose names contain a word, in another type."""

    def change(spec: dict) -> None:
        for tensors in spec["shards"].values():
            for name, tensor in tensors.items():
                if any(word in name for word in words):
                    tensor[0] = dtype

    return change


def _scaled(
    dtype: str, suffix: str, scale: Callable[[list[int]], list[int]], more: tuple[str, ...] = ()
) -> Change:
    """8-bit floats with scales, and scales of activations beside them."""

    def change(spec: dict) -> None:
        for tensors in spec["shards"].values():
            for name in [name for name in tensors if name.endswith("_proj.weight")]:
                shape = tensors[name][1]
                tensors[name] = [dtype, shape]
                tensors[name + suffix] = ["F32", scale(shape)]
                tensors |= {name.removesuffix("weight") + other: ["F32", []] for other in more}

    return change


def _biased(*endings: str) -> Change:
    def change(spec: dict) -> None:
        for tensors in spec["shards"].values():
            for name in [n for n in tensors if n.endswith(endings) and ".experts." not in n]:
                dtype, shape = tensors[name]
                tensors[name.removesuffix("weight") + "bias"] = [dtype, shape[:1]]

    return change


def _all(*changes: Change) -> Change:
    def change(spec: dict) -> None:
        for one in changes:
            one(spec)

    return change


def _in_two_files(spec: dict) -> None:
    tensors = [item for shard in spec["shards"].values() for item in shard.items()]
    half = len(tensors) // 2
    spec["shards"] = {
        "model-00001-of-00002.safetensors": dict(tensors[:half]),
        "model-00002-of-00002.safetensors": dict(tensors[half:]),
    }


def _in_one_file(spec: dict) -> None:
    spec["shards"] = {
        "model.safetensors": {k: v for shard in spec["shards"].values() for k, v in shard.items()}
    }


def _stray(*names: str, index: bool = True) -> Callable[[Path], None]:
    """Files of weights that are no part of the model: one of its tensors, with other weights."""

    def change(folder: Path) -> None:
        for name in names:
            write_tensors(folder / name, {"model.embed_tokens.weight": ("F16", [320, 64])})
        if not index:
            (folder / INDEX).unlink()

    return change


def _misplaced(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    names = list(index["weight_map"])
    first, last = names[0], names[-1]
    index["weight_map"][first], index["weight_map"][last] = (
        index["weight_map"][last],
        index["weight_map"][first],
    )
    (folder / INDEX).write_text(json.dumps(index))


def _blanks(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    new = {name: name.replace("-", " ") for name in set(index["weight_map"].values())}
    index["weight_map"] = {tensor: new[name] for tensor, name in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    for old, name in new.items():
        (folder / old).rename(folder / name)


def _templates(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"a\r\nb\rc\n")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool use.jinja").write_bytes(b"x\r\ny\r\rz")
    _settings(folder, chat_template=None)


def _settings(folder: Path, **values: object) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def _inline_template(folder: Path) -> None:
    _settings(folder, chat_template="in JSON\r\nit stays\r")


def _card(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "README.md").write_text(f"---\n{text}---\n# x\n")


def _modelopt_file(folder: Path) -> None:
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    document = {"producer": {"name": "modelopt", "version": "0.30"}, "quantization": quantization}
    (folder / "hf_quant_config.json").write_text(json.dumps(document))


_PREFIX = "model."
_MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
_MODELOPT_MIXED = {
    **_MODELOPT,
    "quant_algo": "MIXED_PRECISION",
    "quantized_layers": {"model.layers.0.mlp.up_proj": {"quant_algo": "FP8"}},
}
_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}

VARIANTS = {
    "index_and_stray": Variant("llama", _in_two_files, _stray("model.safetensors")),
    "index_and_strays": Variant(
        "llama", _in_two_files, _stray("consolidated.safetensors", "model-00003-of-00003.safetensors")
    ),
    "index_misplaces": Variant("llama", _in_two_files, _misplaced),
    "blanks_in_names": Variant("llama", _in_two_files, _blanks),
    "no_index_and_strays": Variant(
        "llama", _in_two_files, _stray("consolidated.safetensors", "adapter.safetensors", index=False)
    ),
    "no_head": Variant("llama", _all(_without_head, _config(tie_word_embeddings=None))),
    "no_head_though_untied": Variant("qwen3", _all(_without_head, _config(tie_word_embeddings=False))),
    "no_head_of_glm": Variant("glm4moe", _without_head),
    "no_head_of_deepseek": Variant("deepseek_v3", _without_head),
    "no_prefix": Variant("llama", _renamed(lambda name: name.removeprefix(_PREFIX))),
    "no_prefix_qwen3": Variant("qwen3", _renamed(lambda name: name.removeprefix(_PREFIX))),
    "language_model": Variant("glm4moe", _renamed(lambda name: f"language_model.{name}")),
    "headless": Variant(
        "qwen3",
        _all(
            _without_head,
            _config(architectures=["Qwen3Model"]),
            _renamed(lambda name: name.removeprefix(_PREFIX)),
        ),
    ),
    "f64_norms": Variant("llama", _stored_as("F64", "norm")),
    "f64": Variant("llama", _stored_as("F64", ""), outtype="f32"),
    "longrope": Variant("qwen3", _config(rope_scaling=_LONGROPE, rope_parameters=None)),
    "su": Variant("qwen3moe", _config(rope_scaling={**_LONGROPE, "type": "su"}, rope_parameters=None)),
    "biases_of_qwen3": Variant(
        "qwen3", _all(_config(attention_bias=True), _biased("_proj.weight", "lm_head.weight"))
    ),
    "biases_of_deepseek": Variant(
        "deepseek_v3",
        _all(_config(attention_bias=True), _biased("q_a_proj.weight", "with_mqa.weight", "o_proj.weight")),
    ),
    "biases_that_are_not_there": Variant("llama", _config(attention_bias=True, mlp_bias=True)),
    "templates_from_windows": Variant("llama", _in_one_file, _templates),
    "template_in_json": Variant("llama", _in_one_file, _inline_template),
    "card_with_nulls": Variant(
        "llama", _in_one_file, _card("base_model:\n- \ndatasets: null\ntags:\nlanguage:\n- no\n- y\n")
    ),
    "card_with_empty_lists": Variant(
        "llama", _in_one_file, _card('base_models: []\ndataset_sources: x/y\ntags: ""\nlanguage: no\n')
    ),
    "card_with_objects": Variant(
        "llama",
        _in_one_file,
        _card("base_model:\n- {name: A, author: B, url: C}\n- 7\n- a/b\ndatasets: {name: x}\n"),
    ),
    "modelopt": Variant(
        "llama",
        _all(
            _config(quantization_config=_MODELOPT),
            _scaled("F8_E4M3", "_scale", lambda shape: [], ("input_scale",)),
        ),
    ),
    "modelopt_by_rows": Variant(
        "llama",
        _all(
            _config(quantization_config=_MODELOPT_MIXED),
            _scaled("F8_E4M3", "_scale", lambda shape: shape[:1], ("k_scale", "v_scale")),
        ),
    ),
    "modelopt_in_its_own_file": Variant(
        "llama", _scaled("F8_E4M3", "_scale", lambda shape: [1]), _modelopt_file
    ),
    "e5m2": Variant(
        "llama",
        _all(
            _config(quantization_config={"quant_method": "fp8", "weight_block_size": None}),
            _scaled("F8_E5M2", "_scale_inv", lambda shape: []),
        ),
    ),
}
