"""Forms that ggplan does not read: refused by their names, whether a config or only tensors show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade_safetensors import bf16, write_safetensors

from ggplan.errors import CheckpointError
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors

FLOATS, BYTES = np.ones((4, 4), "f4"), np.ones((4, 4), "u1")
INTS, SHORTS = np.ones((4, 4), "i4"), np.ones((4, 4), "i2")
ONE = bf16(np.ones(1))

FORMS = {
    "EXL3": {"m.trellis": SHORTS, "m.suh": FLOATS, "m.svh": FLOATS},
    "QTIP": {"m.trellis": SHORTS, "m.SU": FLOATS, "m.SV": FLOATS},
    "EXL2": {"m.q_weight": INTS, "m.q_scale": INTS, "m.q_scale_max": FLOATS, "m.q_groups": SHORTS},
    "QuIP#": {"m.Qidxs": SHORTS, "m.SU": FLOATS},
    "AQLM": {"m.codes": SHORTS, "m.codebooks": FLOATS, "m.scales": FLOATS},
    "VPTQ": {"m.indices": INTS, "m.centroids.weight": FLOATS, "m.weight_scale": FLOATS},
    "SpQR": {"m.dense_weights": INTS, "m.row_offsets": INTS, "m.col_vals": INTS},
    "HIGGS": {"m.weight": SHORTS, "m.scales": FLOATS, "m.tables": FLOATS, "m.tables2": FLOATS},
    "FP-Quant": {"m.qweight": BYTES, "m.scales": BYTES, "m.forward_hadamard_matrix": FLOATS},
    "quanto": {"m.weight._data": BYTES, "m.weight._scale": FLOATS},
    "EETQ": {"m.weight": np.ones((4, 4), "i1"), "m.weight_scales": FLOATS},
    "Marlin": {"m.B": INTS, "m.s": FLOATS},
    "sparse-bitmask": {"m.weight.compressed": FLOATS, "m.weight.bitmask": BYTES},
    "marlin-24": {"m.weight_packed": INTS, "m.scale_packed": FLOATS, "m.meta": SHORTS},
    "NVFP4-CSF": {"m.weight": BYTES, "m.weight_scale.nvfp4_csf_fixed": BYTES},
    "SVDQuant": {"m.weight": BYTES, "m.svdquant_lora_a": FLOATS, "m.svdquant_lora_b": FLOATS},
    "MLX": {"m.weight": ("U32", INTS), "m.scales": FLOATS, "m.biases": FLOATS},
    "humming": {"m.weight": INTS, "m.weight_scale": FLOATS},
    "BitNet": {"m.weight": BYTES, "m.weight_scale": ONE},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_tensors_show(form: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t.safetensors", {**FORMS[form], "norm.weight": FLOATS[0]})
    with pytest.raises(CheckpointError, match=f"is of the form {form}.* does not read") as error:
        join_tensors(read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(Path("folder"), {}))
    assert "original checkpoint" in error.value.hint


METHODS = [
    "exl3", "exl2", "bitnet", "quark", "aqlm", "vptq", "spqr", "higgs", "humming", "eetq", "quanto",
    "fp_quant", "sinq", "fouroversix", "metal", "gemma", "gguf", "quip", "modelopt_new",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_a_config_names(method: str, tmp_path: Path) -> None:
    """Even where the tensors look like a form that is read: quark writes fp8 with `weight_scale` too."""
    tensors = {"m.weight": ("F8_E4M3", BYTES), "m.weight_scale": np.ones((), "f4")}
    write_safetensors(tmp_path / "t.safetensors", tensors)
    config = QuantizationConfig(Path("folder"), {"quant_method": method, "bits": 4})
    with pytest.raises(CheckpointError, match=f"folder is quantized by {method}, which ggplan does not read"):
        join_tensors(read_tensors(tmp_path / "t.safetensors"), config)


CT = {"quant_method": "compressed-tensors"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "says checkpoint_format marlin"),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "bitblas"},
            "says checkpoint_format bitblas",
        ),
        ({**CT, "format": "marlin-24", "config_groups": {}}, "says format marlin-24"),
        ({**CT, "format": "sparse-24-bitmask", "config_groups": {}}, "says format sparse-24-bitmask"),
        ({**CT, "config_groups": {"0": {"format": "mxfp6-pack-quantized"}}}, "mxfp6-pack-quantized"),
        ({"quant_method": "auto-round", "data_type": "mx_int4"}, "says data_type mx_int4"),
        (
            {"quant_method": "auto-round", "extra_config": {"m": {"data_type": "mx_int"}}},
            "says data_type mx_int",
        ),
    ],
)
def test_layouts_that_a_config_names(config: dict[str, object], said: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t.safetensors", {"m.weight": FLOATS})
    with pytest.raises(CheckpointError, match=said):
        join_tensors(read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(Path("folder"), config))


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq", "torchao"])
def test_a_config_that_no_tensor_bears_out(method: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t.safetensors", {"m.weight": FLOATS})
    with pytest.raises(CheckpointError, match=f"by {method}, which ggplan does not find in any of") as error:
        join_tensors(
            read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(Path("f"), {"quant_method": method})
        )
    assert "take quantization_config out of config.json" in error.value.hint


INT8 = {"m.weight": np.ones((4, 4), "i1"), "m.weight_scale": FLOATS[0]}


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        (
            {"quant_method": "modelopt", "quant_algo": "W8A16"},
            INT8,
            r"modelopt \(W8A16\), and 'm.weight' holds I8",
        ),
        (
            {"quant_method": "gptq", "bits": 4},
            {"m.weight_packed": INTS, "m.weight_scale": FLOATS},
            "gptq, and 'm.weight_packed' holds I32 codes",
        ),
    ],
)
def test_codes_of_another_kind_than_the_config_names(
    config: dict[str, object], tensors: dict[str, object], said: str, tmp_path: Path
) -> None:
    write_safetensors(tmp_path / "t.safetensors", tensors)
    with pytest.raises(CheckpointError, match=said):
        join_tensors(read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(Path("folder"), config))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors"])
def test_plain_weights_under_a_config_of_quantized_ones_are_noted(method: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t.safetensors", {"m.weight": FLOATS})
    values: dict[str, object] = {"quant_method": method}
    if method == "compressed-tensors":
        weights = {"num_bits": 4, "type": "int", "strategy": "channel"}
        values |= {"format": "pack-quantized", "config_groups": {"g": {"weights": weights}}}
    notes: list[str] = []
    stored = read_tensors(tmp_path / "t.safetensors")
    assert list(join_tensors(stored, QuantizationConfig(Path("f"), values), notes=notes)) == ["m.weight"]
    [note] = notes
    assert f"quantized by {method}, but none are" in note


@pytest.mark.parametrize("factor", ["pre_quant_scale", "smooth_scale"])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8"])
def test_factors_of_columns_beside_8_bits(factor: str, dtype: str, tmp_path: Path) -> None:
    codes = ("F8_E4M3", BYTES) if dtype == "F8_E4M3" else np.ones((4, 4), "i1")
    tensors = {"m.weight": codes, "m.weight_scale": np.ones((), "f4"), f"m.{factor}": FLOATS[0]}
    write_safetensors(tmp_path / "t.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"'m.{factor}' is of the form {dtype} with a factor for each"):
        join_tensors(read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(Path("f"), {}))


@pytest.mark.parametrize(
    "tensors",
    [
        {"m.scale": FLOATS[0], "m.B": FLOATS, "m.weight_scale": FLOATS, "x.indices": INTS},
        {"m.weight": FLOATS, "m.scales": FLOATS[0], "m.codebooks": FLOATS},
        {"layer_scale.weight": FLOATS[0], "bitmask": BYTES, "weight_scales": FLOATS},
    ],
)
def test_names_that_other_models_have(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_safetensors(tmp_path / "t.safetensors", tensors)
    joined = join_tensors(read_tensors(tmp_path / "t.safetensors"), QuantizationConfig(Path("folder"), {}))
    assert sorted(joined) == sorted(tensors)
