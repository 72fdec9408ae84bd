"""Tables of measurements, published and made by hand: what they do to the answer, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from allocation.measured import unpacked

import ggplan
from ggplan.allocation.curves import curve_of, errors_by_curve, scaled_to_curve
from ggplan.allocation.prior import REFERENCE_ERROR
from ggplan.allocation.scales import Scales, scales_by_prior, scales_by_table
from ggplan.allocation.sensitivity_tables import read_sensitivities
from ggplan.allocation.type_errors import Errors
from ggplan.errors import Error, PlanError
from ggplan.model import Model

QUERIES = [f"blk.{i}.attn_q.weight" for i in range(6)]


@pytest.fixture(scope="module")
def model() -> Model:
    return ggplan.open_model("Qwen3-8B")


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    return path


def scales(model: Model, path: Path) -> Scales:
    return scales_by_table(model, read_sensitivities(path), path.name)


@pytest.mark.parametrize(
    "text",
    [
        "tensor,type,kld\nblk.0.attn_q.weight,q2_K,0.5\n",
        "Tensor;QType;KLD\nblk.0.attn_q.weight;Q2_K;0.5\n",
        "type\ttensor_name\tmean_kld\nq2_k\tblk.0.attn_q.weight\t0.5\n",
        "name,kld,error,type\nblk.0.attn_q.weight,0.5,0.001,q2_K\nblk.1.attn_q.weight,NA,,q2_K\n",
        "# KLD\n\ntensor,Q2_K,q8_0\nblk.0.attn_q.weight,5e-1,n/a\n",
        "tensor,columns,rows,slices,type,kld\nblk.0.attn_q.weight,4096,4096,1,q2_K,0.5\n",
        "QTYPE,blk.0.attn_q.weight,blk.1.attn_q.weight\nq2_k,0.5,404\n",
        "\ufefftensor,type,kld\r\nblk.0.attn_q.weight,q2_K,0.5\r\n",
    ],
)
def test_spellings_of_one_table(tmp_path: Path, model: Model, text: str) -> None:
    path = tmp_path / "my_kld.csv"
    path.write_text(text, encoding="utf-8")
    found = scales(model, path)
    plain = table(tmp_path, "tensor,type,kld\nblk.0.attn_q.weight,q2_K,0.5\n")
    assert found.values == pytest.approx(scales(model, plain).values)
    assert "measurements of 1 tensors" in found.source


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tensor,type,kld\nblk.0.attn_q.weight,q2_K,0.5%\n", "is per cent, and a KL divergence is in nats"),
        (
            "tensor,type,kld\nblk.0.attn_q.weight,q2_K,0\nblk.1.attn_q.weight,q2_K,404\n",
            "no tensor of it was",
        ),
        ("tensor,type,kld\nblk.0.attn_q.weight,bf16,0.001\n", "no tensor of it was measured"),
        ("tensor,type,kld\nblk.0.attn_q.weight,iq1_bn,3.0\n", "no tensor of it was measured"),
        ("tensor,type,kld\nblk.40.attn_q.weight,q2_K,0.5\n", "it has no tensor of this model"),
        (
            "tensor,type,kld\nblk.0.attn_q.weight,q2_K,0.5\nblk.36.attn_q.weight,q2_K,0.5\n"
            "blk.37.attn_q.weight,q2_K,0.5\n",
            "2 of its 3 tensors are not in this model (blk.36.attn_q.weight, …)",
        ),
        (
            "tensor,columns,rows,type,kld\nblk.0.attn_q.weight,2560,4096,q2_K,0.5\n",
            "it is of another model: its blk.0.attn_q.weight is 4096 x 2560, and this model's 4096 x 4096",
        ),
        ("tensor,columns,type,kld\nblk.0.attn_q.weight,40.5,q2_K,0.5\n", "cannot have that shape"),
        ("tensor,type,kld,error\nblk.0.attn_q.weight,q2_K,0.5,-1\n", "-1 is no standard error"),
        ("tensor;type;kld\nblk.0.attn_q.weight;q2_K;0,5\n", "'0,5' is not a number"),
        ("tensor,type,kld,ppl\nblk.0.attn_q.weight,q2_K,0.5,7\n", "it has no figures, or several"),
        ("tensor,type,ppl\nblk.0.attn_q.weight,q2_K,7\n", "its figures are ppl of tensors"),
        ("QTYPE,bpw,group0\nq4_K,4.5,0.02\n# kld\n", "its figures are kld of models"),
        ("layer,type,kld\n0,q2_K,0.5\n", "its heading begins with none of QTYPE, tensor, model"),
    ],
)
def test_what_is_refused(tmp_path: Path, model: Model, text: str, says: str) -> None:
    with pytest.raises(Error) as error:
        scales(model, table(tmp_path, text))
    assert says in error.value.message
    assert "mine.csv" in error.value.message


def test_a_standard_error_says_how_far_a_figure_is_believed(tmp_path: Path, model: Model) -> None:
    """Two figures of 100 times the median: the one that is noise counts for less."""
    rows = [f"{name},q2_K,{0.5 if i < 2 else 0.005},{(0.001, 5.0)[i % 2]}" for i, name in enumerate(QUERIES)]
    found = scales(model, table(tmp_path, "tensor,type,kld,error\n" + "\n".join(rows) + "\n")).values
    assert found[QUERIES[0]] > 5 * found[QUERIES[1]]
    assert found[QUERIES[0]] == pytest.approx(100 * found[QUERIES[2]], rel=1e-6)


def test_a_type_at_which_a_tensor_falls_apart_does_not_decide(tmp_path: Path, model: Model) -> None:
    text = "tensor,type,kld\nblk.0.attn_q.weight,{},9\nblk.0.attn_q.weight,iq2_xs,0.01\n"
    curve = "QTYPE,group0\niq1_bn,14.0\nq2_K,0.07\nq4_K,0.0049\nq8_0,0.0\n"
    errors = errors_by_curve(curve_of(read_sensitivities(table(tmp_path, curve), figure="kld"), "", "curve"))
    coarse = read_sensitivities(table(tmp_path, text.format("iq1_bn")))
    plain = read_sensitivities(table(tmp_path, text.replace("blk.0.attn_q.weight,{},9\n", "")))
    assert (
        scales_by_table(model, coarse, "", errors).values == scales_by_table(model, plain, "", errors).values
    )


def test_a_curve_takes_the_place_of_the_errors_by_type(tmp_path: Path, model: Model) -> None:
    # A model that iq3_s ruins, and to which q4_K does little.
    path = tmp_path / "kld_results.csv"
    path.write_text(
        "QTYPE,group0\nbf16,0\nq2_K,0.5\niq3_s,0.9\nq3_K,0.12\nq4_K,0.01\nq8_0,0.001\niq2_bn,404\n"
    )
    options = {"bpw": 4.0, "types": ("q2_K", "iq3_s", "q3_K", "q4_K", "q8_0")}
    plain = ggplan.optimize(model, ggplan.OptimizeOptions(**options))
    own = ggplan.optimize(model, ggplan.OptimizeOptions(**options, curve=path))
    assert "iq3_s" in {t.type.name for t in plain.plan.tensors}
    assert "iq3_s" not in {t.type.name for t in own.plan.tensors}
    assert "KL divergence of the whole model at 5 types" in own.recipe.text
    assert any("far worse than its bits in this model: iq3_s" in found for found in own.notes)
    # Errors that were measured on the weights go first, and that is said.
    measured = Errors("measured", {t.name: {"q4_K": 0.005, "iq3_s": 0.018} for t in model.tensors})
    both = ggplan.optimize(model, ggplan.OptimizeOptions(**options, curve=path), errors=measured)
    assert not any("measured on the weights" in found for found in own.notes)
    (told,) = (found for found in both.notes if "measured on the weights" in found)
    assert "the level is used" in told
    assert "errors of q2_K, q3_K, q8_0;" in told
    # The level is the curve's: the whole model as q3_K has its KL divergence, less 0.9 of q8_0's.
    curve = curve_of(read_sensitivities(path), "Qwen3-8B", "curve")
    errors, of_all = errors_by_curve(curve), scaled_to_curve(scales_by_prior(model), curve, model)
    q3 = ggplan.ggml_types.parse_type("q3_K")
    sensitive = sum(of_all.values[t.name] for t in model.tensors if not t.name.endswith("norm.weight"))
    assert sensitive * errors.of_type(q3) / REFERENCE_ERROR == pytest.approx(0.12 - 0.0009)


def test_the_own_line_of_a_table_of_many_models(tmp_path: Path) -> None:
    tables = read_sensitivities(unpacked("whole-model", tmp_path))
    own = curve_of(tables, "GLM-4.5-Air.map", "whole-model.csv")
    assert own.damages["q4_K"] == pytest.approx(0.023768 - 0.9 * 0.004892)
    assert own.damages["iq4_xs_r8"] == pytest.approx(0.02764 - 0.9 * 0.004892)
    with pytest.raises(PlanError, match="it has no line of a model called GLM-9"):
        curve_of(tables, "GLM-9", "whole-model.csv")
    with pytest.raises(PlanError, match="not KL divergences of whole models"):
        curve_of(read_sensitivities(unpacked("GLM-4.5-Air", tmp_path)), "GLM-4.5-Air", "air.csv")


def test_inspect_tells_shapes_and_errors_as_before(tmp_path: Path) -> None:
    (found,) = read_sensitivities(
        table(tmp_path, "tensor,columns,rows,slices,type,kld,error\na.weight,64,32,8,q2_K,0.5,0.1\n")
    )
    (place,) = found.places
    assert (place.shape, dict(place.errors), dict(place.figures)) == (
        (8, 32, 64),
        {"q2_K": 0.1},
        {"q2_K": 0.5},
    )
    assert json.dumps(ggplan.allocation.sensitivities_json(found))
