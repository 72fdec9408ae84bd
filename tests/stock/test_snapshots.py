"""Every mix on every model of llama.cpp's snapshots gives the snapshot's types, by an ordinary recipe.

The recipe, the plan and what the linter says of it take four times as long as the types: each mix is planned
on a third of the models, and each model by a third of the mixes.
"""

import lzma
from functools import cache
from pathlib import Path

import pytest
from snapshot_models import PUBLISHED

from ggplan.ggml_types import BF16
from ggplan.linting import check_plan
from ggplan.planning import fit, make_plan
from ggplan.planning.makers import assign
from ggplan.planning.protection import protected_reason
from ggplan.stock import MIXES, find_mix

SNAPSHOTS = Path(__file__).parent.parent / "data" / "snapshots"
N_SECTIONS = 33  # all mixes but q1_0 and q2_0, which are younger than the snapshots


@cache
def snapshot(model: str) -> dict[str, tuple[str, dict[str, str]]]:
    """By mix the type of most tensors, and the tensors with another type."""
    sections: dict[str, tuple[str, dict[str, str]]] = {}
    others: dict[str, str] = {}
    text = lzma.decompress((SNAPSHOTS / f"{model}.schema.xz").read_bytes()).decode("utf-8")
    for line in text.splitlines():
        if line.startswith("["):
            name, _, default = line[1:].partition("] ")
            others = {}
            sections[name] = (default, others)
        elif line and not line.startswith("#"):
            tensor, _, type_ = line.rpartition(" ")
            others[tensor] = type_
    return sections


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_mixes_equal_the_snapshot(name: str) -> None:
    model = PUBLISHED[name].model()
    sections = snapshot(name)
    assert len(sections) == N_SECTIONS
    names = {t.name for t in model.tensors}
    for number, (mix_name, (default, others)) in enumerate(sections.items(), list(PUBLISHED).index(name)):
        assert others.keys() <= names
        mix = find_mix(mix_name)
        assert mix.type.name == default
        expected = {
            t.name: others.get(t.name, default)
            for t in model.tensors
            if protected_reason(t.name, len(t.shape)) is None
        }
        types = {f.tensor.name: f.type for f in fit(model, assign(model, mix))}
        assert {t: type_.name for t, type_ in types.items() if t in expected} == expected, mix_name
        assert all(types[t.name] == t.type for t in model.tensors if t.name not in expected)
        if number % 3:
            continue
        plan = make_plan(model, mix)
        assert {t.name: t.type for t in plan.tensors} == types
        assert plan.recipe is not None
        assert plan.recipe.name == mix_name
        assert len(plan.recipe.rules) <= 7
        assert plan.metadata["general.file_type"].decode() == mix.file_type
        assert {d.code for d in check_plan(plan).diagnostics} <= {"GP204", "GP208"}


@pytest.mark.parametrize("name", ["glm-4.6v", "qwen3-14b"])
def test_pure_mixes_give_one_type_and_its_fallbacks(name: str) -> None:
    model = PUBLISHED[name].model()
    for mix in MIXES:
        if mix.name == "Q1_0" and name == "glm-4.6v":
            continue  # rows of 10944 are not whole blocks of 128, and there is no fallback
        plan = make_plan(model, mix.purely())
        for t in plan.tensors:
            if t.tensor.type == BF16 and mix.type.fits(t.tensor.n_columns):
                assert t.type == mix.type
        assert plan.metadata["general.file_type"].decode() == mix.file_type
