"""Optimised recipes in llama.cpp: they lose less than a stock mix of their size, as much as was predicted."""

import os
from pathlib import Path

import pytest

import ggplan
from ggplan.allocation import OptimizeOptions, answer_of, measured_errors, prepare, scales_by_probes
from ggplan.measure import Engine, MeasureOptions, external_engine, measure
from ggplan.planning import find_recipe
from ggplan.probing import ProbeOptions, probe

pytestmark = pytest.mark.oracle

DEMO = Path(ggplan.__file__).parent / "demo_model"
TEXT = DEMO / "joshua.txt"
N_CHUNKS = 4
MIX = "Q4_K_M"


@pytest.fixture(scope="module")
def engine(llama_cpp: Path) -> Engine:
    os.environ["LLAMA_ARG_REPACK"] = "0"  # AMX, which the repacked weights are for, dies on some machines
    return external_engine(str(llama_cpp / "build" / "bin" / "llama-perplexity"), ["-t", "1"])


def test_less_is_lost_than_by_the_stock_mix_of_the_same_size(engine: Engine, tmp_path: Path) -> None:
    model = ggplan.open_model(DEMO, pre="glm4")
    mix = ggplan.make_plan(model, find_recipe(MIX))
    record = probe(model, [TEXT], tmp_path / "p.json", engine, options=ProbeOptions(n_chunks=N_CHUNKS))
    errors = measured_errors(prepare(model, OptimizeOptions(bpw=8.0)).choices)
    scales = scales_by_probes(model, record.as_probes("p.json"))
    options = OptimizeOptions(size=mix.file_bytes)
    by_prior = answer_of(prepare(model, options, errors=errors))
    by_probes = answer_of(prepare(model, options, scales=scales, errors=errors))
    files = {"base": ggplan.make_plan(model), "mix": mix, "prior": by_prior.plan, "probes": by_probes.plan}
    for name, plan in files.items():
        ggplan.convert(plan, tmp_path / f"{name}.gguf")
        assert plan.file_bytes <= mix.file_bytes or name == "base"
    paths = [tmp_path / f"{name}.gguf" for name in files]
    result = measure(paths[1:], TEXT, paths[0], engine, MeasureOptions(n_chunks=N_CHUNKS))
    kld = {
        q.file.name.removesuffix(".gguf"): q.measurements[0].metrics["kld"].value
        for q in result.record.quantizations
        if q.file.name != "base.gguf"
    }
    assert kld["prior"] < 0.7 * kld["mix"], kld
    assert kld["probes"] < 0.6 * kld["mix"], kld
    assert by_probes.forecast.kld == pytest.approx(kld["probes"], rel=0.25)
