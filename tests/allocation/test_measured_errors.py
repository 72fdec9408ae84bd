"""Errors of types measured on rows: what the encoders leave, weighed by the imatrix, the same every time."""

from pathlib import Path

import gguf
import numpy as np
import pytest

import ggplan
from ggplan.allocation import OptimizeOptions, answer_of, measured_errors, prepare
from ggplan.allocation.measured_errors import errors_of_tensors
from ggplan.allocation.type_errors import TABLE, type_error
from ggplan.ggml_types import parse_type

TYPES = ("q2_K", "q4_K", "q8_0")


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    shapes = {
        "token_embd.weight": (300, 256),
        "output.weight": (300, 256),
        "blk.0.ffn_up_exps.weight": (4, 16, 256),
        "blk.0.attn_norm.weight": (256,),
    }
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory: pytest.TempPathFactory) -> ggplan.Model:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ggplan.open_model(path)


def imatrix_of(path: Path, importance: np.ndarray, counts: list[int]):
    """An imatrix with an entry for the experts: (4, 256) mean squares, and the tokens of each."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    sums = (importance * np.array(counts, np.float32)[:, None]).astype(np.float32)
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", sums)
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array(counts, np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ggplan.load_imatrix(path)


def left_by(rows: np.ndarray, type_: str, importance: np.ndarray | None = None) -> tuple[float, float]:
    """The weighted squared error of encoding rows, and their own weighted squares."""
    encoded = ggplan.quantize(rows, type_, None if type_ == "q8_0" else importance)
    error = ggplan.dequantize(encoded, type_).astype(np.float64) - rows
    weight = np.ones(rows.shape[-1]) if importance is None else importance
    return float((error**2 @ weight).sum()), float((rows.astype(np.float64) ** 2 @ weight).sum())


def test_all_rows_of_a_small_tensor_give_its_error(model, weights) -> None:
    tensor = next(t for t in model.tensors if t.name == "blk.0.ffn_up_exps.weight")
    types = [parse_type(name) for name in TYPES]
    found = errors_of_tensors([(tensor, types)], None)[tensor.name]
    for name in TYPES:
        lost, own = left_by(weights[tensor.name].reshape(-1, 256), name)
        assert found[name] == pytest.approx(lost / own, rel=1e-6)
        assert found[name] == pytest.approx(type_error(name), rel=0.6)


def test_a_sample_of_a_larger_one_is_close_and_threads_change_nothing(model, weights) -> None:
    work = [(t, [parse_type(name) for name in TYPES]) for t in model.tensors if "norm" not in t.name]
    found = errors_of_tensors(work, None, threads=1)
    assert found == errors_of_tensors(work, None, threads=3)
    assert list(found) == [t.name for t, _ in work]
    for name in TYPES:
        lost, own = left_by(weights["output.weight"], name)
        assert found["output.weight"][name] == pytest.approx(lost / own, rel=0.06)
        assert found["output.weight"][name] != lost / own


def test_experts_count_by_their_tokens_and_columns_by_their_importance(model, weights, tmp_path) -> None:
    importance = np.random.default_rng(4).uniform(0.01, 9, (4, 256)).astype(np.float32)
    counts = [900, 0, 90, 10]
    imatrix = imatrix_of(tmp_path / "im.gguf", importance, counts)
    tensor = next(t for t in model.tensors if t.name == "blk.0.ffn_up_exps.weight")
    entry = imatrix.entries[tensor.name].for_tensor(tensor.shape)
    found = errors_of_tensors([(tensor, [parse_type("q4_K"), parse_type("iq2_xs")])], imatrix)[tensor.name]
    for name in ("q4_K", "iq2_xs"):
        parts = [left_by(weights[tensor.name][i], name, entry[i]) for i in range(4)]
        lost = sum(n * part[0] for n, part in zip(counts, parts, strict=True))
        own = sum(n * part[1] for n, part in zip(counts, parts, strict=True))
        assert found[name] == pytest.approx(lost / own, rel=1e-5)


def test_what_cannot_be_measured_is_as_far_from_the_table_as_what_can(model) -> None:
    problem = prepare(model, OptimizeOptions(bpw=5.0, types=("iq2_xs", "q4_K", "q8_0")))
    errors = measured_errors(problem.choices)
    output = next(t for t in model.tensors if t.name == "output.weight")
    ratios = [errors.of(output, parse_type(name)) / type_error(name) for name in ("q4_K", "q8_0")]
    assert 1 not in ratios
    assert errors.of(output, parse_type("iq2_xs")) == pytest.approx(  # which takes an imatrix
        TABLE.of(output, parse_type("iq2_xs")) * sum(ratios) / 2
    )
    again = answer_of(prepare(model, OptimizeOptions(bpw=5.0), errors=errors))
    assert "measured on 64 rows of each of 3 tensors, without an imatrix" in again.recipe.text
    inventory = prepare(ggplan.open_model("Qwen3-8B"), OptimizeOptions(bpw=5.0))
    assert not measured_errors(inventory.choices).measured


def test_rows_that_are_not_finite_are_left_out(tmp_path) -> None:
    rows = np.random.default_rng(5).standard_normal((8, 256)).astype(np.float32)
    spoilt = rows.copy()
    spoilt[3, 7] = np.nan
    found = []
    for name, values in (("good", np.delete(rows, 3, 0)), ("spoilt", spoilt)):
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("output.weight", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        tensor = ggplan.open_model(path).tensors[0]
        found.append(errors_of_tensors([(tensor, [parse_type("q4_K")])], None)["output.weight"]["q4_K"])
    assert found[0] == found[1]


def test_types_that_need_an_imatrix_are_given_only_to_what_it_knows(model, tmp_path) -> None:
    importance = np.ones((4, 256), np.float32)
    imatrix = imatrix_of(tmp_path / "im.gguf", importance, [9, 9, 9, 9])
    options = OptimizeOptions(bpw=3.0, types=("iq2_xs", "q2_K"))

    def smallest(**more) -> dict[str, str]:
        choices = prepare(model, options, **more).choices
        return {c.tensor.name: c.candidates[0].type.name for c in choices if not c.fixed}

    by_default = smallest()
    assert by_default == {
        "token_embd.weight": "q2_K", "output.weight": "q2_K", "blk.0.ffn_up_exps.weight": "iq2_xs",
    }  # fmt: skip
    assert smallest(imatrix=imatrix) == by_default
    other = ggplan.load_imatrix(tmp_path / "im.gguf")
    object.__setattr__(other, "entries", {})
    assert set(smallest(imatrix=other).values()) == {"q2_K"}
