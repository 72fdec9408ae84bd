"""Figures and limits at the edge of what can be: none ends in infinity, and none is taken for nothing."""

from pathlib import Path

import numpy as np
import pytest

import ggplan
from ggplan.allocation import OptimizeOptions
from ggplan.allocation.budget import bound_text
from ggplan.allocation.measured_errors import sample_of
from ggplan.allocation.recipe_text import Gap, gap_in_words
from ggplan.errors import MeasureError, PlanError
from ggplan.ggml_types import F32
from ggplan.model import RowSource, TensorInfo


@pytest.fixture(scope="module")
def model() -> ggplan.Model:
    return ggplan.open_model("Qwen3-8B")


@pytest.mark.parametrize("figure", ["-0.001", "-0.0001"])
def test_a_figure_of_nothing_is_no_loss_of_nothing(figure: str, model: ggplan.Model, tmp_path: Path) -> None:
    path = tmp_path / "kld.csv"
    path.write_text(
        f"tensor,type,kld\nblk.0.attn_q.weight,iq2_xs,{figure}\nblk.1.attn_q.weight,iq2_xs,0.001\n"
    )
    answer = ggplan.optimize(model, OptimizeOptions(size=5 << 30, table=path))
    types = {t.name: t.type.name for t in answer.plan.tensors}
    assert answer.damages["blk.0.attn_q.weight"] > 0
    assert types["blk.0.attn_q.weight"] != "iq2_xxs"
    assert (
        "Thireus, the GGUF Tool Suite and its contributors" in answer.recipe.text
    )  # the others are the prior's
    assert any("1 figure is 0 or less" in note for note in answer.notes)


@pytest.mark.parametrize("figure", ["1e308", "2e6", "-1e300"])
def test_a_divergence_that_cannot_be_is_refused(figure: str, model: ggplan.Model, tmp_path: Path) -> None:
    table, curve = tmp_path / "kld.csv", tmp_path / "kld_results.csv"
    table.write_text(f"tensor,type,kld\noutput.weight,q4_K,{figure}\n")
    curve.write_text(f"QTYPE,group0\nq4_K,{figure}\n")
    with pytest.raises(MeasureError, match=r"line 2, column kld: .* cannot be"):
        ggplan.optimize(model, OptimizeOptions(size=5 << 30, table=table))
    with pytest.raises(MeasureError, match=r"line 2, column group0: .* cannot be"):
        ggplan.optimize(model, OptimizeOptions(size=5 << 30, curve=curve))


@pytest.mark.parametrize("bpw", [1e300, 1e7, float("inf")])
def test_bits_that_cannot_be_are_refused(bpw: float, model: ggplan.Model) -> None:
    with pytest.raises(PlanError, match="bits per weight cannot be"):
        ggplan.optimize(model, OptimizeOptions(bpw=bpw))


@pytest.mark.parametrize(
    ("bpw", "said"),
    [
        (4.1230549, "4.123055"),
        (4.5061716447531355, "4.506172"),
        (4.5, "4.5"),
        (100.0, "100"),
        (4.123454, "4.123454"),
    ],
)
def test_a_promise_is_rounded_to_where_it_holds(bpw: float, said: str, model: ggplan.Model) -> None:
    recipe = ggplan.optimize(model, OptimizeOptions(bpw=bpw)).recipe
    assert f"@assert bpw <= {said}\n" in recipe.text
    assert bound_text(8.1234567, up=False) == "8.123456"


def test_a_gap_that_is_not_known_is_no_number() -> None:
    assert gap_in_words(Gap(None, None), OptimizeOptions()).startswith("not known")
    assert "12 %" in gap_in_words(Gap(0.12, 0.12), OptimizeOptions())


@pytest.mark.parametrize("n_experts", [1, 8, 64, 128, 256])
def test_rows_of_a_sample_lie_everywhere_in_their_experts(n_experts: int) -> None:
    n_rows = 96
    shape = (n_experts, n_rows, 32)
    numbers = np.arange(1, n_experts * n_rows + 1, dtype=np.float32)
    rows = RowSource(F32, shape, lambda a, b: np.repeat(numbers[a:b, None], 32, 1))
    found = sample_of(TensorInfo("blk.0.ffn_up_exps.weight", shape, F32, "here", "F32", rows=rows), None)
    assert found is not None
    taken = np.concatenate([part[0][:, 0] for part in found.parts]).astype(int) - 1
    assert len(set(taken.tolist())) == 64
    assert len(set((taken // n_rows).tolist())) == min(n_experts, 64)
    places = np.sort(taken % n_rows)
    assert places[0] < n_rows / 10
    assert places[-1] > 0.9 * n_rows
    assert np.diff(places).max() <= n_rows / 8
    for part, own in zip(found.parts, found.numbers, strict=True):
        assert part[0][:, 0].astype(int).tolist() == [number + 1 for number in own]
