"""Conversions that go by a calibration: which moments each tensor gets, equal bytes, and what is recorded."""

from __future__ import annotations

from itertools import starmap
from pathlib import Path

import gguf
import numpy as np
import pytest
from made_up_calibration import made_up, small_model, write_model
from program import run

import ggplan
from ggplan import make_plan, open_model, parse_recipe, parse_type
from ggplan.calibration import Calibration, open_calibration
from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.run import begin
from ggplan.conversion import pace, streaming, workers
from ggplan.conversion.guides import unguided
from ggplan.errors import CalibrationError, ConversionError, PlanError, QuantizationError
from ggplan.linting import check_plan
from ggplan.planning import Feedback, Plan, guidance
from ggplan.planning.guidance import readings_of_embedding
from ggplan.quants import prepared, quantize
from ggplan.quants.feedback import encode_with_moments
from ggplan.quants.linear_algebra import Moments, regularized
from ggplan.quants.matrix_moments import Reading, moments_of
from ggplan.verification import plan_again, verify
from ggplan.verification.reproducing import reproduce

N, EXPERTS, TOKENS = 256, 3, 90
Q, K, GATE, UP, DOWN, OUTPUT = (
    f"{name}.weight"
    for name in (
        "blk.0.attn_q", "blk.0.attn_k", "blk.0.ffn_gate_exps", "blk.0.ffn_up_exps", "blk.0.ffn_down_exps",
        "output",
    )
)  # fmt: skip
SHAPES = {Q: (40, N), K: (9, N), GATE: (EXPERTS, 32, N), UP: (EXPERTS, 32, N), DOWN: (EXPERTS, 24, 32)}
RECIPE = "ffn_down_exps = q5_0\n@default q4_K\n"
RNG = np.random.default_rng(5)
WEIGHTS = {name: RNG.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def calibrated(folder: Path, seed: int = 0, n_tokens: int = TOKENS) -> Calibration:
    """A calibration in which the last expert saw no token."""
    rng = np.random.default_rng(seed)
    run_ = begin(folder, {"texts": [{"name": "a.txt", "sha256": "5" * 64}], "tokens": n_tokens, "n_ctx": 30})
    assert not isinstance(run_, Calibration)
    run_.write_tokens(np.zeros((3, 30), np.int32))
    collector = LayerCollector(
        0,
        [
            Activation("attn_norm", N, (Q, K)),
            Activation("ffn_norm", N, (), (GATE, UP), EXPERTS, 1),
            Activation("glu", 32, (), (DOWN,), EXPERTS, 1, True, 1),
        ],
        n_tokens,
    )
    mixed = rng.standard_normal((n_tokens, 16)) @ rng.standard_normal((16, N))
    shared = (mixed + rng.standard_normal((n_tokens, N))).astype(np.float32)
    routes = rng.integers(0, EXPERTS - 1, (n_tokens, 1)).astype(np.int32)
    collector.add("attn_norm", shared)
    collector.add("ffn_norm", shared[::-1].copy(), routes)
    collector.add_own("glu", shared[:, :32].copy(), routes.reshape(-1))
    collector.write(folder, run_.digest)
    return run_.finish(run_.finished([0]).values(), {})


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrated(tmp_path_factory.mktemp("calibration") / "a")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "source.gguf"
    return write_model(path, {**WEIGHTS, OUTPUT: RNG.standard_normal((8, N), np.float32)})


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CHUNK_WEIGHTS", 16 * N)
    monkeypatch.setattr(streaming, "CHECKPOINT_BYTES", 4096)
    monkeypatch.setattr(workers, "_TICK_SECONDS", 0.001)


def plan_of(source: Path, calibration: Calibration, **how: object) -> Plan:
    feedback = Feedback(calibration, **how)
    return make_plan(open_model(source), parse_recipe(RECIPE, "a.recipe"), feedback=feedback)


@pytest.mark.parametrize("method", ["feedback", "gptq", "gptq:act-order"])
def test_no_row_of_a_file_is_worse_than_in_the_file_of_best_effort(
    source: Path, calibration: Calibration, tmp_path: Path, method: str
) -> None:
    """With so few tokens many rows are no better, and get the very blocks that best effort's file has."""
    recipe, model = parse_recipe("@default q2_K\nffn_down_exps = q5_1\n", "a.recipe"), open_model(source)
    feedback = Feedback(calibration, method=method)
    found, best = {}, {}
    for made, plan in (
        (found, make_plan(model, recipe, feedback=feedback)),
        (best, make_plan(model, recipe, imatrix=calibration.imatrix, effort="best")),
    ):
        ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(force=True))
        made.update({t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors})
    for name in (Q, K, GATE, UP, DOWN):
        values = WEIGHTS[name].reshape(-1, *SHAPES[name][-2:])
        for e, rows in enumerate(values):
            moments = calibration.moments(name, e) or calibration.layer_moments(name)
            if moments is None:
                continue
            hessian = regularized(moments).astype(np.float64)
            after, before = (
                ((left @ hessian) * left).sum(axis=1)
                for made in (found, best)
                for left in [rows - dequantized(made[name]).reshape(values.shape)[e]]
            )
            assert (after <= before * (1 + 1e-6)).all(), (name, e)


def dequantized(tensor: gguf.ReaderTensor) -> np.ndarray:
    return ggplan.dequantize(tensor.data, tensor.tensor_type.name).astype(np.float64)


def test_each_slice_has_its_own_moments(source: Path, calibration: Calibration, tmp_path: Path) -> None:
    plan = plan_of(source, calibration)
    ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(threads=2))
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for name, type_ in ((Q, "q4_K"), (K, "q4_K"), (GATE, "q4_K"), (UP, "q4_K"), (DOWN, "q5_0")):
        values = WEIGHTS[name].reshape(-1, *SHAPES[name][-2:])
        for e, rows in enumerate(values):
            moments = calibration.moments(name, e) or calibration.layer_moments(name)
            if moments is None:
                assert (name, e) == (DOWN, EXPERTS - 1)
                entry = calibration.imatrix.entries[name].for_tensor(SHAPES[name])
                expected = quantize(rows, type_, entry[e], effort="best")
            else:
                expected = np.empty((len(rows), parse_type(type_).row_bytes(rows.shape[1])), np.uint8)
                entry = calibration.imatrix.entries[name].for_tensor(SHAPES[name])
                importance = entry.reshape(len(values), -1)[e]
                encode_with_moments(rows, parse_type(type_), moments, expected, importance=importance)
            assert np.array_equal(tensors[name].reshape(len(values), len(rows), -1)[e], expected), (name, e)
    assert unguided(plan) == {
        f"1 of its {EXPERTS} experts saw no token": [DOWN, GATE, UP],
        "not in the calibration": [OUTPUT],
    }


NORMS = {
    f"blk.0.{name}_norm.weight": np.abs(RNG.standard_normal(N, np.float32)) + 0.2 for name in ("attn", "ffn")
}
EMBEDDING = "token_embd.weight"
TIED = "looked up, and it is the output matrix too or what else reads it is not known"
UNTIED = {EMBEDDING: RNG.standard_normal((50, N), np.float32), **WEIGHTS, **NORMS}


@pytest.mark.parametrize("recipe", ["@default q4_K\n", "token_embd = iq3_xxs\n@default q4_K\n"])
def test_the_embedding_is_encoded_for_the_matrices_that_read_it(
    calibration: Calibration, tmp_path: Path, recipe: str
) -> None:
    few = {name: RNG.standard_normal((shape[-2], 8)) for name, shape in SHAPES.items() if name != DOWN}
    thin = {name: (at @ RNG.standard_normal((8, N))).astype(np.float32) for name, at in few.items()}
    readers = {name: np.broadcast_to(thin[name], SHAPES[name]) for name in (Q, K, GATE, UP)}
    tensors = {**UNTIED, **readers, OUTPUT: UNTIED[EMBEDDING]}
    model = open_model(write_model(tmp_path / "untied.gguf", {k: v.copy() for k, v in tensors.items()}))
    parsed = parse_recipe(f"ffn_down_exps = q5_0\n{recipe}", "a.recipe")
    plan = make_plan(model, parsed, feedback=Feedback(calibration))
    assert unguided(plan)["not in the calibration"] == [OUTPUT]
    told = [d.message for d in check_plan(plan).diagnostics if d.code == "GP206"]
    assert told == [f"`{OUTPUT}`: no entry in imatrix.gguf; encoded without importance"]
    out = ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(threads=2)).path
    best = make_plan(model, parsed, imatrix=calibration.imatrix, effort="best")
    ggplan.convert(best, tmp_path / "best.gguf")

    # An error e of a row is W (norm * e) behind each matrix, and counts in parts of what the matrix gives.
    wanted = np.zeros((N, N))
    for name, matrix in readers.items():
        rows = matrix.reshape(-1, N).astype(np.float64)
        norm = NORMS["blk.0.attn_norm.weight" if name in (Q, K) else "blk.0.ffn_norm.weight"]
        moments = calibration.layer_moments(name) if name in (GATE, UP) else calibration.moments(name)
        assert moments is not None
        energy = (rows @ moments.matrix.astype(np.float64) * rows).sum()
        wanted += (rows * norm).T @ (rows * norm) / energy
    found = moments_of(starmap(Reading, readings_of_embedding(plan.feedback)), N)
    np.testing.assert_allclose(found.matrix, wanted * (N / np.trace(wanted)), rtol=1e-3, atol=1e-4)
    errors = []
    for path in (out, tmp_path / "best.gguf"):
        tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == EMBEDDING)
        left = UNTIED[EMBEDDING] - dequantized(tensor).reshape(-1, N)
        errors.append((left @ regularized(found).astype(np.float64) * left).sum(axis=1))
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all(), "no row is worse than by best effort"
    assert errors[0].sum() < 0.7 * errors[1].sum()

    again = plan_again(open_model(out), model, calibration=calibration)
    assert verify(out, against=model, plan=again).is_sound
    assert reproduce(out, model, calibration=calibration).is_equal
    reused = ggplan.convert(plan, tmp_path / "r.gguf", ggplan.ConvertOptions(reuse=out)).reuse
    assert reused is not None
    assert EMBEDDING not in reused.tensors, "the matrices that read it may be others"
    assert Q in reused.tensors
    assert (tmp_path / "r.gguf").read_bytes() == out.read_bytes()


def test_an_embedding_that_is_the_output_matrix_too_has_best_effort(
    calibration: Calibration, tmp_path: Path
) -> None:
    model = open_model(write_model(tmp_path / "tied.gguf", UNTIED))
    parsed = parse_recipe(RECIPE, "a.recipe")
    plan = make_plan(model, parsed, feedback=Feedback(calibration))
    assert unguided(plan)[TIED] == [EMBEDDING]

    untied = {**UNTIED, OUTPUT: UNTIED[EMBEDDING]}
    earlier = make_plan(
        open_model(write_model(tmp_path / "untied.gguf", untied)), parsed, feedback=Feedback(calibration)
    )
    earlier_file = ggplan.convert(earlier, tmp_path / "earlier.gguf").path
    options = ggplan.ConvertOptions(reuse=earlier_file)
    reused = ggplan.convert(plan, tmp_path / "r.gguf", options).reuse
    assert reused is not None
    assert Q in reused.tensors
    assert EMBEDDING not in reused.tensors, "there it was encoded for the matrices that read it"
    assert (tmp_path / "r.gguf").read_bytes() == ggplan.convert(plan, tmp_path / "o.gguf").path.read_bytes()


def test_experts_whose_hessians_are_kept_read_the_embedding_too(tmp_path: Path) -> None:
    """Of many tokens there is no input of all of them, but what each expert saw."""
    calibration = calibrated(tmp_path / "c", n_tokens=6000)
    assert calibration.layer_moments(UP) is None
    model = open_model(write_model(tmp_path / "m.gguf", {**UNTIED, OUTPUT: UNTIED[EMBEDDING]}))
    plan = make_plan(model, parse_recipe(RECIPE, "a.recipe"), feedback=Feedback(calibration))
    readings = list(starmap(Reading, readings_of_embedding(plan.feedback)))
    assert len(readings) == 4
    counts = calibration.tokens(UP)
    mean = sum(n * calibration.moments(UP, k).matrix.astype(np.float64) for k, n in enumerate(counts) if n)
    known = Moments((mean / sum(counts)).astype(np.float32), sum(counts))
    told = [r._replace(moments=lambda: known, slices=()) for r in readings[2:]]
    found, expected = moments_of(readings, N), moments_of([*readings[:2], *told], N)
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found.matrix, moments_of(readings[:2], N).matrix, rtol=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30])
def test_what_reads_the_embedding_must_be_finite(
    calibration: Calibration, tmp_path: Path, value: float
) -> None:
    norms = dict.fromkeys(NORMS, np.full(N, value, np.float32))
    model = open_model(write_model(tmp_path / "m.gguf", {**UNTIED, **norms, OUTPUT: UNTIED[EMBEDDING]}))
    recipe = parse_recipe(RECIPE, "a.recipe")
    plan = make_plan(model, recipe, feedback=Feedback(calibration), nonfinite="keep")
    if value:
        which = r"one of the matrices" if np.isfinite(value) else r"blk\.0\.attn_q\.weight"
        with pytest.raises(QuantizationError, match=rf"token_embd\.weight: {which}, which reads it") as told:
            ggplan.convert(plan, tmp_path / "out.gguf")
        assert "keep the tensor in a float type" in told.value.hint
        assert not (tmp_path / "out.gguf").exists()
        return
    out = ggplan.convert(plan, tmp_path / "out.gguf").path
    found = next(t for t in gguf.GGUFReader(out).tensors if t.name == EMBEDDING)
    left = (UNTIED[EMBEDDING] - dequantized(found).reshape(-1, N)) ** 2
    best = UNTIED[EMBEDDING] - ggplan.dequantize(quantize(UNTIED[EMBEDDING], "q4_K", effort="best"), "q4_K")
    assert (left.sum(axis=1) <= (best**2).sum(axis=1) * (1 + 1e-6)).all(), "all columns count alike"


def test_readers_of_the_embedding_are_read_as_they_are_written(
    calibration: Calibration, tmp_path: Path
) -> None:
    files = []
    for name, value in (("nan", np.nan), ("zero", 0.0)):
        tensors = {k: v.copy() for k, v in {**UNTIED, OUTPUT: UNTIED[EMBEDDING]}.items()}
        tensors[Q][3, 5] = tensors["blk.0.ffn_norm.weight"][2] = value
        model = open_model(write_model(tmp_path / f"{name}.gguf", tensors))
        plan = make_plan(
            model, parse_recipe(RECIPE, "a.recipe"), feedback=Feedback(calibration), nonfinite="zero"
        )
        files.append(ggplan.convert(plan, tmp_path / f"{name}.out.gguf").path)
    embeddings = [next(t for t in gguf.GGUFReader(f).tensors if t.name == EMBEDDING).data for f in files]
    np.testing.assert_array_equal(*embeddings)


@pytest.mark.parametrize(("threads", "chunk"), [(1, 1), (2, 40 * N), (4, 16 * N)])
def test_the_same_bytes_whatever_the_threads_chunks_and_stops(
    source: Path,
    calibration: Calibration,
    tmp_path: Path,
    threads: int,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(source, calibration)
    whole = ggplan.convert(plan, tmp_path / "whole.gguf", ggplan.ConvertOptions(threads=1)).path
    left = 9000 * threads

    def stop(n_bytes: int) -> None:
        nonlocal left
        left -= n_bytes
        if left < 0:
            raise KeyboardInterrupt

    out = tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt):
        ggplan.convert(plan, out, ggplan.ConvertOptions(threads=1), progress=stop)
    monkeypatch.setattr(pace, "CHUNK_WEIGHTS", chunk)
    again = plan_of(source, open_calibration(calibration.path))
    assert ggplan.convert(again, out, ggplan.ConvertOptions(threads=threads)).resumed_bytes > 0
    assert out.read_bytes() == whole.read_bytes()


def test_another_calibration_is_another_file(source: Path, calibration: Calibration, tmp_path: Path) -> None:
    other = calibrated(tmp_path / "b", seed=1)
    out = tmp_path / "out.gguf"

    def stop(n_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ggplan.convert(plan_of(source, calibration), out, ggplan.ConvertOptions(threads=1), progress=stop)
    for plan, told in (
        (plan_of(source, other), "the calibration"),
        (plan_of(source, calibration, lam=0.3), "the option lam was 0.1 and is 0.3"),
        (plan_of(source, calibration, method="gptq"), "the option method"),
    ):
        with pytest.raises(ConversionError, match=told):
            ggplan.convert(plan, out)
    made = {
        ggplan.convert(plan, tmp_path / f"{number}.gguf").path.read_bytes()
        for number, plan in enumerate(
            [
                plan_of(source, calibration),
                plan_of(source, other),
                plan_of(source, calibration, lam=0.3),
                plan_of(source, calibration, method="gptq"),
            ]
        )
    }
    assert len(made) == 4


def test_a_damaged_calibration_is_found_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    calibration, out = calibrated(tmp_path / "c"), tmp_path / "out.gguf"
    plan = plan_of(source, calibration)
    data = bytearray((tmp_path / "c" / "layer-000.safetensors").read_bytes())
    data[-9] ^= 1
    (tmp_path / "c" / "layer-000.safetensors").write_bytes(data)
    with pytest.raises(CalibrationError, match=r"layer-000.safetensors is damaged"):
        ggplan.convert(plan, out)
    assert not list(tmp_path.glob("out.gguf*"))


def test_it_is_made_again_from_its_records(source: Path, calibration: Calibration, tmp_path: Path) -> None:
    out = ggplan.convert(plan_of(source, calibration, lam=0.1234567891), tmp_path / "out.gguf").path
    written, model = open_model(out), open_model(source)
    recorded = {key: value.decode() for key, value in written.metadata.items() if ".calibration." in key}
    assert recorded["ggplan.calibration.sha256"] == calibration.digest
    assert recorded["ggplan.calibration.lam"] == "0.1234567891"
    assert recorded["ggplan.calibration.method"] == "feedback"
    assert recorded["ggplan.calibration.tokens"] == TOKENS
    plan = plan_again(written, model, calibration=calibration)
    assert verify(out, plan=plan).is_sound
    assert reproduce(out, model, calibration=calibration).is_equal
    with pytest.raises(PlanError, match="was made with the calibration"):
        plan_again(written, model)
    with pytest.raises(PlanError, match="was made with the calibration"):
        plan_again(written, model, calibration=calibrated(tmp_path / "other", seed=2))
    plain = ggplan.convert(make_plan(model, "Q8_0"), tmp_path / "plain.gguf").path
    with pytest.raises(PlanError, match="not made with a calibration"):
        plan_again(open_model(plain), model, calibration=calibration)


def test_the_commands(source: Path, calibration: Calibration, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out.gguf", tmp_path / "a.recipe"
    recipe.write_text(RECIPE)
    folder = str(calibration.path)
    done = run("convert", source, out, "-r", recipe, "--calibration", folder)
    assert done.returncode == 0
    told = f"note: {OUTPUT}: not in the calibration; it is encoded with effort best, without"
    assert f"{told} importance" in done.stderr
    assert "`ggplan calibrate --process-output` has output.weight too" in done.stderr
    assert "saw no token" in done.stderr
    assert "no effect" not in done.stderr
    idle = run("convert", source, tmp_path / "idle.gguf", "--calibration", folder)
    assert "the calibration has no effect: the plan encodes no tensor to a quantized type" in idle.stderr
    assert run("verify", out, "--against", source, "--exact", "--calibration", folder).returncode == 0
    assert run("reproduce", out, source, "--calibration", folder).returncode == 0
    assert "--calibration" in run("reproduce", out, source).stderr
    options = ["-r", recipe, "--calibration", folder, "--broad", "-q"]
    broad = run("convert", source, tmp_path / "b.gguf", *options)
    assert (broad.returncode, broad.stderr) == (0, "")
    assert open_model(tmp_path / "b.gguf").metadata["ggplan.calibration.lam"].decode() == "0.3"


def test_a_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    """One of the same shapes by the marks of its weights, whichever rows differ; one of others by a size."""
    small, other, recipe = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "a.recipe"
    recipe.write_text(RECIPE)
    model = open_model(small_model(small))
    folder = made_up(tmp_path / "c", model, np.zeros((3, 30), np.int32)).path
    options = ["-r", recipe, "--calibration", folder, "-q"]
    small_model(other, seed=6)
    out = tmp_path / "out.gguf"
    refused = run("convert", other, out, *options)
    assert refused.returncode == 1
    assert "is the calibration of a model with other weights" in refused.stderr
    assert "--other-weights" in refused.stderr
    assert not list(tmp_path.glob("out*"))
    assert run("convert", other, out, *options, "--other-weights").returncode == 0
    changed = tmp_path / "changed.gguf"
    data = bytearray(small.read_bytes())
    q = model["blk.1.attn_q.weight"]
    assert q.stored is not None
    at = data.index(bytes(q.stored.read_bytes(q.n_rows - 1, q.n_rows)))
    data[at : at + 4] = b"\0\0\0\0"
    changed.write_bytes(data)
    told = run("convert", changed, out, "-r", recipe, "--calibration", folder, "--force")
    assert told.returncode == 0
    assert "blk.1.attn_q.weight: other weights than the calibration was made of" in told.stderr
    rounded = tmp_path / "q8.gguf"
    assert run("convert", small, rounded, "-r", "Q8_0", "-q").returncode == 0
    again = run("convert", rounded, out, *options[:-1], "--allow-requantize", "--force")
    assert again.returncode == 0
    assert "this model is in q8_0, so it cannot be told" in again.stderr
    assert run("verify", out, "--against", rounded, "--exact", "--calibration", folder).returncode == 0


def test_sets_reuse_and_records_of_calibrated_files(tmp_path: Path) -> None:
    """A split set has the tensors of the unsplit file, and they are reused for the same calibration alone."""
    small, recipe = small_model(tmp_path / "a.gguf"), tmp_path / "a.recipe"
    recipe.write_text(RECIPE)
    folder = made_up(tmp_path / "c", open_model(small), np.zeros((3, 30), np.int32)).path
    options = ["-r", recipe, "--calibration", folder]
    assert run("convert", small, tmp_path / "whole.gguf", *options).returncode == 0
    split = ["--split-max-tensors", "4"]
    assert run("convert", small, tmp_path / "s.gguf", *options, *split).returncode == 0
    first = next(tmp_path.glob("s-00001-of-*.gguf"))
    whole, parts = open_model(tmp_path / "whole.gguf"), open_model(first)
    for tensor in whole.tensors:
        here, there = tensor.stored, parts[tensor.name].stored
        assert here is not None
        assert there is not None
        assert bytes(here.read_bytes(0, tensor.n_rows)) == bytes(there.read_bytes(0, tensor.n_rows))
    assert run("reproduce", first, small, "--calibration", folder).returncode == 0
    again = run("convert", small, tmp_path / "r.gguf", *options, "--reuse", first)
    assert "13 of 13 tensors" in again.stdout, again.stdout
    assert (tmp_path / "r.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    for more in (["--broad"], ["--method", "gptq"]):
        other = run("convert", small, tmp_path / "o.gguf", *options, *more, "--reuse", first, "--force")
        assert "0 of 13 tensors" in other.stdout, other.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--broad"], "--broad is for --calibration"),
        (["--method", "gptq"], "--method is for --calibration"),
        (["--effort", "feedback"], "needs --calibration"),
        (["--calibration", "C", "--effort", "best"], "--imatrix C/imatrix.gguf"),
        (["--calibration", "C", "--imatrix", "i.gguf"], "leave out --imatrix"),
    ],
)
def test_wrong_usage(source: Path, tmp_path: Path, options: list[str], told: str) -> None:
    done = run("convert", source, tmp_path / "out.gguf", *options)
    assert done.returncode == 2
    assert told in done.stderr


def test_the_damping_is_the_same_in_plans_and_in_quantize() -> None:
    assert guidance.LAMBDA == prepared.LAMBDA


def test_a_calibration_is_for_effort_feedback(source: Path, calibration: Calibration) -> None:
    with pytest.raises(PlanError, match="effort feedback needs a calibration"):
        make_plan(open_model(source), "Q8_0", effort="feedback")
    with pytest.raises(PlanError, match="effort best was asked for"):
        make_plan(open_model(source), "Q8_0", effort="best", feedback=Feedback(calibration))


@pytest.mark.parametrize("size", [37_000, 41_000])
def test_an_optimised_recipe_leaves_room_for_what_a_calibration_records(
    tmp_path: Path, calibration: Calibration, source: Path, size: int
) -> None:
    """A file by --calibration --correct is within --size, where the text of the recipe takes all room."""
    model, recipe = open_model(source), tmp_path / "a.recipe"
    done = run(
        "optimize", source, "--size", f"{size}B", "--imatrix", calibration.path, "--errors", "table",
        "--name", "a" * 2500, "-o", recipe, "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for how in ({"feedback": Feedback(calibration, corrected=True)}, {"imatrix": calibration.imatrix}):
        assert size - 1000 < make_plan(model, str(recipe), **how).file_bytes <= size
