"""Bands whose ends are chosen: against all ways to cut small chains, and against a type for each layer."""

from __future__ import annotations

import itertools
import random

import pytest
from allocation.measured import fit_prior

import ggplan
from ggplan.allocation.banding import solve_bands
from ggplan.allocation.candidates import Candidate, TensorChoices
from ggplan.allocation.grouping import chains_of
from ggplan.allocation.solving import Shortfall
from ggplan.ggml_types import BF16, parse_type
from ggplan.model import TensorInfo
from ggplan.planning import Role

TYPES = [parse_type(name) for name in ("iq2_xs", "q4_K", "q8_0")]


def choice(kind: str, layer: int, sensitivity: float, size: int) -> TensorChoices:
    tensor = TensorInfo(f"blk.{layer}.{kind}.weight", (size, 256), BF16, "here", "BF16")
    errors = (0.09, 0.005, 0.00003)
    candidates = tuple(
        Candidate(t, t.tensor_bytes(tensor.shape), sensitivity * e)
        for t, e in zip(TYPES, errors, strict=True)
    )
    return TensorChoices(tensor, Role.ATTENTION, candidates)


def n_bands(types: tuple[int, ...]) -> int:
    return 1 + sum(a != b for a, b in itertools.pairwise(types))


@pytest.mark.parametrize("seed", range(12))
def test_bands_are_as_good_as_all_ways_to_cut(seed: int) -> None:
    draw = random.Random(seed)
    bands = draw.choice([1, 2, 3])
    layers = range(5)
    choices = [
        choice(kind, layer, draw.lognormvariate(0, 1.5), size)
        for kind, size in (("attn_q", draw.randint(8, 60)), ("attn_output", draw.randint(8, 60)))
        for layer in layers
    ]
    chains = chains_of(choices, harmonised=())
    assert [len(chain.layers) for chain in chains] == [5, 5]
    costs = [[[list(map(float, group.n_bytes)) for group in chain.layers]] for chain in chains]
    least, most = (sum(pick(group.n_bytes) for c in chains for group in c.layers) for pick in (min, max))
    limit = float(draw.randint(least, most))
    cuts = [types for types in itertools.product(range(3), repeat=5) if n_bands(types) <= bands]
    sums = [
        [
            (
                sum(group.n_bytes[t] for group, t in zip(chain.layers, types, strict=True)),
                sum(group.damages[t] for group, t in zip(chain.layers, types, strict=True)),
            )
            for types in cuts
        ]
        for chain in chains
    ]
    best = min(a[1] + b[1] for a in sums[0] for b in sums[1] if a[0] + b[0] <= limit)
    found = solve_bands(chains, costs, [limit], bands)
    assert not isinstance(found, Shortfall)
    assert sum(g.n_bytes[t] for g, t in zip(found.groups, found.chosen, strict=True)) <= limit
    assert found.bound <= best * (1 + 1e-9)
    assert found.damage <= best * 1.001
    assert found.gap < 0.003
    for chain in chains:
        members = {m.tensor.name for group in chain.layers for m in group.members}
        assert sum(g.members[0].tensor.name in members for g in found.groups) <= bands


@pytest.mark.parametrize("bpw", [2.8, 4.5])
def test_three_bands_of_a_large_model_are_as_good_as_each_layer_for_itself(bpw: float) -> None:
    model = ggplan.open_model("Qwen3-30B-A3B")
    banded, free = (
        ggplan.optimize(model, ggplan.OptimizeOptions(bpw=bpw, bands=bands)) for bands in (3, None)
    )
    assert banded.gap < 0.005
    assert free.gap < 0.005
    assert banded.damage <= free.damage * 1.01
    assert len(banded.recipe.rules) < 40


def test_the_prior_of_other_families_is_near_the_optimum(tmp_path_factory: pytest.TempPathFactory) -> None:
    """At 2.8 and 4.5 bits per weight; `tools/fit_prior.py FOLDER --report` has all models and budgets."""
    from allocation.measured import all_unpacked

    tool = fit_prior()
    models = {m.model: m for m in tool.read_folder(all_unpacked(tmp_path_factory.mktemp("tables")))}
    assert len(models) == 17
    at_most = {
        "GLM-4.5-Air": 1.15,
        "Kimi-K2-Thinking": 1.1,
        "Qwen3.5-35B-A3B": 1.12,
        "Qwen3-4B-Instruct-2507": 1.45,
    }
    families = {models[name].family for name in at_most}
    for family in families:
        prior = tool.fit([m for m in models.values() if m.family != family])
        for name in (name for name in at_most if models[name].family == family):
            scales = tool.scales_by_prior(tool.model_of(models[name]), prior)
            for bpw in (2.8, 4.5):
                assert tool.damage_over_optimum(models[name], scales, bpw) < at_most[name], (name, bpw)


def test_the_prior_of_other_families_is_good_for_all_models_but_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Free for each tensor; by one curve of errors, and by each model's own KL divergence as a whole."""
    from statistics import median

    from allocation.measured import all_unpacked

    tool = fit_prior()
    models = tool.read_folder(all_unpacked(tmp_path_factory.mktemp("tables")))
    ratios = {m.model: tool.relaxed_ratios(m, prior) for m, prior in tool.left_out(models)}
    assert len(ratios) == 17
    noise = ratios.pop("Qwen3-VL-235B-A22B-Instruct")  # signals of a quarter of the floor
    for by in (0, 1):
        found = [pair[by] for pairs in ratios.values() for pair in pairs]
        assert median(found) < 1.12
        assert max(found) < 1.4
        assert max(pair[by] for pair in noise) < 2.8


def test_the_shipped_prior_is_what_the_tool_fits(tmp_path_factory: pytest.TempPathFactory) -> None:
    from allocation.measured import all_unpacked

    tool = fit_prior()
    models = tool.read_folder(all_unpacked(tmp_path_factory.mktemp("tables")))
    path = tmp_path_factory.mktemp("fitted") / "prior.csv"
    tool.write(tool.fit(models), models, path)
    fitted, shipped = (
        [line.rpartition(",") for line in text.splitlines() if not line.startswith("#")][1:]
        for text in (path.read_text(), tool.OUTPUT.read_text())
    )
    assert [line[0] for line in fitted] == [line[0] for line in shipped]
    assert [float(line[2]) for line in fitted] == pytest.approx(
        [float(line[2]) for line in shipped], abs=0.002
    )


@pytest.mark.parametrize("seed", [4, 9, 11])
def test_limits_that_just_one_choice_of_bands_keeps_are_kept(seed: int) -> None:
    """Of three rows: options that are good at some price need not be those that fit all rows together."""
    draw = random.Random(seed)
    sizes = [[draw.randint(1, 40) for _ in range(5)] for _ in range(2)]
    chains = chains_of(
        [
            choice(kind, layer, draw.lognormvariate(0, 1), size)
            for kind, own in zip(("attn_q", "attn_output"), sizes, strict=True)
            for layer, size in enumerate(own)
        ],
        harmonised=(),
    )
    costs = [
        [[[float(draw.randint(0, 40)) for _ in TYPES] for _ in range(5)] for _ in range(3)] for _ in chains
    ]
    cuts = [types for types in itertools.product(range(3), repeat=5) if n_bands(types) <= 3]
    sums = [
        [[sum(row[layer][t] for layer, t in enumerate(types)) for row in cost] for types in cuts]
        for cost in costs
    ]
    # The limits are what the pair uses whose most used row is used least.
    pairs = ([x + y for x, y in zip(a, b, strict=True)] for a in sums[0] for b in sums[1])
    limits = min(pairs, key=max)
    found = solve_bands(chains, costs, limits, 3)
    assert not isinstance(found, Shortfall)
    assert found.bound <= found.damage * (1 + 1e-9)
