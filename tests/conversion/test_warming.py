"""Encoders are compiled beside the first reads, and only those that a plan needs."""

import threading
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggplan
from ggplan import make_plan, open_model, parse_recipe
from ggplan.conversion import warming
from ggplan.conversion.warming import needed_encoders

RNG = np.random.default_rng(11)
RECIPE = "attn_q = q4_K\nattn_k = q8_0\nattn_v = f32\nffn = q4_K | q8_0\n@default q5_1\n"


def plan_of(path: Path) -> ggplan.Plan:
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("attn_q", "attn_k", "attn_v", "ffn_up", "attn_output"):
        weights = RNG.standard_normal((40, 256), np.float32)
        if name == "attn_q":
            bits = (weights.view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(
                f"blk.0.{name}.weight", bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16
            )
        else:
            writer.add_tensor(f"blk.0.{name}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return make_plan(open_model(path), parse_recipe(RECIPE, "test.recipe"))


def test_each_type_is_needed_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "source.gguf")
    types = [t.type.name for t in plan.tensors]
    assert sorted(types) == ["f32", "q4_K", "q4_K", "q5_1", "q8_0"]
    needed = {(t.type.name, False, t.name == "blk.0.attn_q.weight"): None for t in plan.tensors}
    found = [(type_.name, guided, is_bf16) for type_, guided, is_bf16 in needed_encoders(plan)]
    assert found == [encoder for encoder in needed if encoder[0] != "f32"]
    assert ("q4_K", False, True) in found
    assert ("q4_K", False, False) in found


def test_warming_ends_with_the_conversion(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "source.gguf")
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), warming.warming(plan):
        raise ZeroDivisionError
    for thread in threading.enumerate():
        if thread.name == "ggplan-warming":
            thread.join(60)
    assert threading.active_count() <= before
    ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(threads=2))
    assert (tmp_path / "out.gguf").stat().st_size == plan.file_bytes
