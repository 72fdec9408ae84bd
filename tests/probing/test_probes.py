"""Probes: what an engine says of groups of tensors, kept once, and the recipes and predictions made of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from weighing_engine import N_CTX, StoppedError, weighing_engine, write_model

import ggplan
from ggplan.allocation import OptimizeOptions, answer_of, prepare, scales_by_probes
from ggplan.allocation.prior import REFERENCE_ERROR
from ggplan.allocation.probes import Probe, Probes, probe_groups
from ggplan.allocation.scales import scales_by_prior
from ggplan.allocation.type_errors import Errors
from ggplan.errors import MeasureError, PlanError
from ggplan.probing import ProbeOptions, load_probes, probe
from ggplan.probing.record import identity_of

SMALL = ProbeOptions(n_ctx=N_CTX, n_chunks=40)
SENSITIVITIES = {
    "token_embd": 0.01, "output": 0.4, "attn_q": 0.05, "ffn_down": 0.12, "ffn_up": 0.02, "ffn_gate": 0.02,
}  # fmt: skip


def weights_of(seed: int = 1) -> dict[str, np.ndarray]:
    """A model of four layers whose ffn_down has rows of 352 weights, which q2_K does not hold."""
    draw = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (40, 256), "output_norm.weight": (256,), "output.weight": (40, 256)}
    for layer in range(4):
        shapes |= {
            f"blk.{layer}.attn_q.weight": (64, 256),
            f"blk.{layer}.ffn_gate.weight": (64, 256),
            f"blk.{layer}.ffn_up.weight": (64, 256),
            f"blk.{layer}.ffn_down.weight": (33, 352),
        }
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


WEIGHTS = weights_of()
TRUE = {name: SENSITIVITIES.get(name.removesuffix(".weight").split(".")[-1], 0.0) for name in WEIGHTS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ggplan.Model:
    return ggplan.open_model(write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", WEIGHTS))


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    found = []
    for seed, name in enumerate(("prose.txt", "code.txt")):
        path = tmp_path / name
        path.write_bytes(bytes(np.random.default_rng(seed).integers(33, 90, 40 * N_CTX, np.uint8)))
        found.append(path)
    return found


@pytest.fixture
def log() -> list[dict[str, str]]:
    return []


@pytest.fixture
def engine(log: list[dict[str, str]]):
    return weighing_engine(WEIGHTS, TRUE, log)


def test_every_group_is_probed_alone_and_all_together_once(model, texts, engine, log, tmp_path) -> None:
    record = probe(model, texts[:1], tmp_path / "tiny.probes.json", engine, options=SMALL)
    groups = {g.name: set(g.tensors) for g in probe_groups(model)}
    assert sorted(groups) == [
        "attn_q 0-1", "attn_q 2-3", "ffn_down 0-1", "ffn_down 2-3", "ffn_gate+up 0-1", "ffn_gate+up 2-3",
        "output", "token_embd",
    ]  # fmt: skip
    base, *runs = log
    assert set(base.values()) == {"f32"}
    changed = [{name for name, type_ in run.items() if type_ == "q2_K"} for run in runs]
    fits = {n for n in WEIGHTS if "ffn_down" not in n}
    assert changed[:-1] == [names & fits for names in groups.values()]  # ffn_down's errors are in f32
    assert {t for n, t in runs[-1].items() if n in fits and "norm" not in n} == {"q5_K"}
    assert {t for n, t in runs[-1].items() if "ffn_down" in n} == {"q5_1"}
    assert [p.name for p in record.probes] == [*groups, "all"]
    for entry in record.probes[:-1]:
        assert all(0.05 < error < 0.1 for error in entry.errors.values()), entry.name
    assert not (tmp_path / "tiny.probes.work").exists()


def test_scales_are_the_sensitivities_and_the_forecast_is_the_divergence(
    model, texts, engine, tmp_path
) -> None:
    record = probe(model, texts, tmp_path / "p.json", engine, options=SMALL)
    scales = scales_by_probes(model, record.as_probes("p.json"))
    ratios = {
        group.name: sum(scales.values[n] for n in group.tensors) / sum(TRUE[n] for n in group.tensors)
        for group in probe_groups(model)
    }
    middle = float(np.median(list(ratios.values())))
    assert all(0.85 < ratio / middle < 1.15 for ratio in ratios.values()), ratios
    assert scales.level.flips < 0.005  # no tokens are routed here
    errors = Errors("measured", record.errors)
    problem = prepare(model, OptimizeOptions(bpw=4.0), scales=scales, errors=errors)
    answer = answer_of(problem)
    out = tmp_path / "out.gguf"
    ggplan.convert(answer.plan, out)
    result = ggplan.measure.measure(
        [out], texts[0], model.path, engine, ggplan.measure.MeasureOptions(n_ctx=N_CTX)
    )
    kld = next(q for q in result.record.quantizations if q.name == "out").measurements[0].metrics["kld"]
    assert answer.forecast.kld == pytest.approx(kld.value, rel=0.15)
    assert "8 probes by weighing on prose.txt, code.txt" in answer.recipe.text


def test_a_killed_run_continues_and_its_record_is_that_of_a_whole_one(model, texts, log, tmp_path) -> None:
    whole, halved = tmp_path / "whole.json", tmp_path / "halved.json"
    probe(model, texts, whole, weighing_engine(WEIGHTS, TRUE, log), options=SMALL)
    n_runs = len(log)
    log.clear()
    stopping = weighing_engine(WEIGHTS, TRUE, log, stop=lambda: len(log) == 5)
    with pytest.raises(StoppedError):
        probe(model, texts, halved, stopping, options=SMALL)
    kept = load_probes(halved)
    assert sum(kept.is_complete(p) for p in kept.probes) == 0
    assert sum(len(kept.measurements(p)) for p in kept.probes) == 4
    probe(model, texts, halved, weighing_engine(WEIGHTS, TRUE, log), options=SMALL)
    assert len(log) == n_runs  # nothing was run twice, the base neither
    assert halved.read_bytes() == whole.read_bytes()
    log.clear()
    again = probe(model, texts, halved, weighing_engine(WEIGHTS, TRUE, log), options=SMALL)
    assert not log
    assert again == load_probes(whole)
    assert halved.read_bytes() == whole.read_bytes()


def test_a_record_of_other_probes_is_refused(model, texts, engine, log, tmp_path) -> None:
    path = tmp_path / "p.json"
    probe(model, texts[:1], path, engine, options=SMALL)
    before = path.read_bytes()
    log.clear()
    other = ggplan.open_model(write_model(tmp_path / "other.gguf", weights_of(2)))
    for arguments, said in (
        ((model, texts[1:]), "other texts: prose.txt"),
        ((model, texts), "other texts"),
        ((other, texts[:1]), "other weights of this model"),
    ):
        with pytest.raises(MeasureError, match=said):
            probe(*arguments, path, engine, options=SMALL)
    with pytest.raises(MeasureError, match="40 chunks of 16 tokens"):
        probe(model, texts[:1], path, engine, options=ProbeOptions(n_ctx=N_CTX, n_chunks=20))
    assert path.read_bytes() == before
    assert not log
    probe(other, texts[:1], path, engine, options=ProbeOptions(n_ctx=N_CTX, n_chunks=20, force=True))
    assert load_probes(path).conditions.n_chunks == 20
    assert load_probes(path).model == identity_of(other)


def test_noisy_probes_are_drawn_to_the_prior(model) -> None:
    prior = scales_by_prior(model)
    groups = probe_groups(model)

    def probes(error: float, factor: float) -> Probes:
        made = []
        for i, group in enumerate(groups):
            errors = dict.fromkeys(group.tensors, 0.07)
            kld = sum(prior.values[n] for n in group.tensors) * (factor if i == 0 else 1.0)
            made.append(Probe(group.name, errors, kld, kld * (error if i == 0 else 0.01)))
        return Probes(tuple(made), None, "test")

    name = groups[0].tensors[0]
    sure = scales_by_probes(model, probes(0.1, 10.0)).values[name]
    noisy = scales_by_probes(model, probes(1.0, 10.0)).values[name]
    none = scales_by_probes(model, probes(0.1, 1.0)).values[name]
    assert sure == pytest.approx(10 * none)
    assert noisy == pytest.approx(none * 10 ** (1 - 1 / 1.5), rel=1e-6)


def test_probes_without_a_figure_leave_the_prior_and_say_so(model) -> None:
    groups = probe_groups(model)
    made = [Probe(g.name, dict.fromkeys(g.tensors, 0.07), 0.1, 0.001) for g in groups]
    made[0] = Probe(groups[0].name, made[0].errors, float("nan"), float("nan"))
    scales = scales_by_probes(model, Probes(tuple(made), None, "test"))
    assert any(groups[0].name in note for note in scales.notes)
    assert all(scales.values[n] > 0 for n in groups[0].tensors)
    nothing = [Probe(p.name, p.errors, 0.0, 0.0) for p in made]
    with pytest.raises(PlanError, match="no probe has a KL divergence"):
        scales_by_probes(model, Probes(tuple(nothing), None, "test"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(schema="ggplan.probes/2"), "ggplan.probes/1"),
        (lambda r: r.pop("errors"), "has no 'errors'"),
        (lambda r: r["probes"][0].update(extra=1), "unknown 'extra'"),
        (lambda r: r["probes"][0]["errors"].update(x=-1), "no relative error"),
        (lambda r: r["probes"].append(r["probes"][0]), "two probes"),
        (lambda r: r["conditions"].update(n_ctx=0), "n_ctx"),
        (lambda r: r["measured"].update(schema="ggplan.record/99"), "its version is 99"),
    ],
)
def test_a_damaged_record_is_refused_with_the_place(change, said: str, probed: Path, tmp_path) -> None:
    value = json.loads(probed.read_text())
    change(value)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(value))
    with pytest.raises(MeasureError, match=r"bad\.json is no record of probes") as found:
        load_probes(path)
    assert said in found.value.message


@pytest.fixture(scope="module")
def probed(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probed")
    text = folder / "a.txt"
    text.write_bytes(bytes(np.random.default_rng(5).integers(33, 90, 4 * N_CTX, np.uint8)))
    probe(model, [text], folder / "p.json", weighing_engine(WEIGHTS, TRUE, []), options=SMALL)
    return folder / "p.json"


@pytest.mark.parametrize("flips", [0.0, 0.015])
def test_flips_are_told_apart_from_damage(model, flips: float) -> None:
    groups = probe_groups(model)
    damage = {n: (i + 1) * 1e-3 for i, g in enumerate(groups) for n in g.tensors}

    def probed(name: str, tensors: tuple[str, ...], error: float) -> Probe:
        total = sum(damage[n] for n in tensors) * error / 0.07
        return Probe(name, dict.fromkeys(tensors, error), total + flips * total**0.5, 1e-6)

    every = tuple(n for g in groups for n in g.tensors)
    made = Probes(
        tuple(probed(g.name, g.tensors, 0.07) for g in groups), probed("all", every, 0.0012), "test"
    )
    scales = scales_by_probes(model, made)
    assert scales.level.flips == pytest.approx(flips, abs=1e-9)
    for group in groups:
        found = sum(scales.values[n] for n in group.tensors) * 0.07 / REFERENCE_ERROR
        assert found == pytest.approx(sum(damage[n] for n in group.tensors), rel=1e-6)


def test_an_empty_folder_is_taken_and_one_left_by_a_kill_removed(model, texts, engine, log, tmp_path) -> None:
    work, path, kept = tmp_path / "work", tmp_path / "p.json", tmp_path / "kept"
    work.mkdir()
    options = ProbeOptions(n_ctx=N_CTX, n_chunks=40, work=work)
    stopping = weighing_engine(WEIGHTS, TRUE, log, stop=lambda: len(log) == 5)
    with pytest.raises(StoppedError):
        probe(model, texts[:1], path, stopping, options=options)
    shutil.copytree(work, kept, symlinks=True)
    probe(model, texts[:1], path, engine, options=options)
    assert not work.exists()
    kept.rename(work)  # as if the last figure was there, and then the power went
    log.clear()
    probe(model, texts[:1], path, engine, options=options)
    assert not log
    assert not work.exists()
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    probe(model, texts[:1], path, engine, options=options)
    assert (work / "mine.txt").exists()


def test_an_engine_with_other_options_is_another_engine(model, texts, engine, log, tmp_path) -> None:
    path = tmp_path / "p.json"
    stopping = weighing_engine(WEIGHTS, TRUE, log, stop=lambda: len(log) == 5)
    with pytest.raises(StoppedError):
        probe(model, texts[:1], path, replace(stopping, options=("-ngl", "99")), options=SMALL)
    with pytest.raises(MeasureError, match="another engine, weighing -ngl 99"):
        probe(model, texts[:1], path, engine, options=SMALL)
    probe(model, texts[:1], path, replace(engine, options=("-ngl", "99")), options=SMALL)
    assert load_probes(path).conditions.engine == "weighing -ngl 99"
