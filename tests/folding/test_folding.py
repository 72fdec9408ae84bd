"""Scales folded into norms and up projections: the function stays, the calibration fits, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from program import run

import ggplan
from ggplan.calibration import Calibration
from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.run import begin
from ggplan.errors import PlanError
from ggplan.folding import fold, parse_fold
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.model import Model
from ggplan.planning import Plan
from ggplan.quants import dequantize

Q4_K, Q5_0, Q8_0 = map(parse_type, ("q4_K", "q5_0", "q8_0"))
N, FF, EXPERTS, TOKENS = 256, 64, 3, 120
P = "blk.0."
F32 = np.float32
DENSE = {
    "attn_norm": (N,), "attn_q": (32, N), "attn_k": (32, N), "attn_v": (N, N), "attn_output": (N, N),
    "ffn_norm": (N,), "ffn_gate": (FF, N), "ffn_up": (FF, N), "ffn_down": (N, FF),
}  # fmt: skip
MOE = {name: shape for name, shape in DENSE.items() if not name.startswith("ffn")} | {
    "post_attention_norm": (N,), "ffn_gate_inp": (EXPERTS, N), "ffn_gate_exps": (EXPERTS, FF, N),
    "ffn_up_exps": (EXPERTS, FF, N), "ffn_down_exps": (EXPERTS, N, FF), "ffn_gate_shexp": (FF, N),
    "ffn_up_shexp": (FF, N), "ffn_down_shexp": (N, FF),
}  # fmt: skip
SHAPES = {"llama": DENSE, "qwen2": DENSE, "glm4moe": MOE}
Weights = dict[str, np.ndarray]


def weights_of(architecture: str) -> Weights:
    rng = np.random.default_rng(3)
    found = {
        name: (1 + 0.3 * rng.random(shape) if "norm" in name else rng.standard_normal(shape) / 16).astype(F32)
        for name, shape in SHAPES[architecture].items()
    }
    if architecture == "llama":
        found["ffn_up.bias"] = rng.standard_normal(FF).astype(F32)
    return found


def written(path: Path, architecture: str, more: Weights | None = None) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    for name, values in {**weights_of(architecture), **(more or {})}.items():
        writer.add_tensor(P + (name if "." in name else f"{name}.weight"), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def forward(w: Weights, x: np.ndarray, seen: dict[str, np.ndarray]) -> np.ndarray:
    """One layer, in float64; what matrices are given goes to `seen`, of experts by (expert, token)."""

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6) * w[name]

    def gated(y: np.ndarray, kind: str, e: int | None = None) -> np.ndarray:
        gate, up, down = (w[f"ffn_{part}{kind}"] for part in ("gate", "up", "down"))
        if e is not None:
            gate, up, down = gate[e], up[e], down[e]
        z = silu(y @ gate.T) * (y @ up.T + w.get("ffn_up.bias", 0))
        seen[f"glu{kind}{'' if e is None else e}"] = z
        return z @ down.T

    y = seen["attn_norm"] = normed(x, "attn_norm")
    scores = np.exp((y @ w["attn_q"].T) @ (y @ w["attn_k"].T).T / 6)
    heads = seen["heads"] = (scores / scores.sum(axis=1, keepdims=True)) @ (y @ w["attn_v"].T)
    x = x + heads @ w["attn_output"].T
    if "ffn_gate" in w:
        y = seen["ffn_norm"] = normed(x, "ffn_norm")
        return x + gated(y, "")
    y = seen["ffn_norm"] = normed(x, "post_attention_norm")
    router = y @ w["ffn_gate_inp"].T
    router[:, -1] -= 1e9  # the last expert is never chosen
    seen["routes"] = router.argmax(axis=1)
    chance = 1 / (1 + np.exp(-np.clip(router, -50, 50)))
    routed = sum(
        (gated(y, "_exps", e) * chance[:, e : e + 1]) * (seen["routes"] == e)[:, None] for e in range(EXPERTS)
    )
    return x + routed + gated(y, "_shexp")


def inputs(seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((TOKENS, N)) * np.exp(rng.standard_normal(N))


def calibrated(folder: Path, w: Weights, x: np.ndarray) -> Calibration:
    seen: dict[str, np.ndarray] = {}
    forward({name: values.astype(float) for name, values in w.items()}, x, seen)

    def names(*short: str) -> tuple[str, ...]:
        return tuple(f"{P}{name}.weight" for name in short if name in w)

    run_ = begin(folder, {"texts": [{"name": "a.txt", "sha256": "5" * 64}], "tokens": TOKENS, "n_ctx": 30})
    assert not isinstance(run_, Calibration)
    run_.write_tokens(np.zeros((4, 30), np.int32))
    is_moe = "ffn_gate_inp" in w
    experts = (names("ffn_gate_exps", "ffn_up_exps"), EXPERTS, 1) if is_moe else ()
    listed = [
        Activation("attn_norm", N, names("attn_q", "attn_k", "attn_v")),
        Activation("heads", N, names("attn_output")),
        Activation(
            "ffn_norm", N,
            names("ffn_gate", "ffn_up", "ffn_gate_inp", "ffn_gate_shexp", "ffn_up_shexp"), *experts,
        ),
        Activation("glu", FF, names("ffn_down", "ffn_down_shexp")),
    ]  # fmt: skip
    if is_moe:
        listed.append(Activation("glu_exps", FF, (), names("ffn_down_exps"), EXPERTS, 1, True, 1))
    collector = LayerCollector(0, listed, TOKENS)
    collector.add("attn_norm", seen["attn_norm"].astype(F32))
    collector.add("heads", seen["heads"].astype(F32))
    if is_moe:
        routes = seen["routes"].astype(np.int32)
        collector.add("ffn_norm", seen["ffn_norm"].astype(F32), routes[:, None])
        collector.add("glu", seen["glu_shexp"].astype(F32))
        own = np.stack([seen[f"glu_exps{e}"] for e in range(EXPERTS)])[routes, np.arange(TOKENS)]
        collector.add_own("glu_exps", own.astype(F32), routes)
    else:
        collector.add("ffn_norm", seen["ffn_norm"].astype(F32))
        collector.add("glu", seen["glu"].astype(F32))
    collector.write(folder, run_.digest)
    return run_.finish(run_.finished([0]).values(), {})


def read(model: Model) -> Weights:
    found = {}
    for t in model.tensors:
        name = t.name.removeprefix(P).removesuffix(".weight")
        # By pieces that do not end where experts do.
        pieces = [t.rows.read_float32(at, min(at + 50, t.n_rows)) for at in range(0, t.n_rows, 50)]
        found[name] = np.concatenate(pieces).reshape(t.shape).astype(float)
    return found


def types(model: Model) -> dict[str, GgmlType]:
    return {t.name: t.type if len(t.shape) < 2 else Q5_0 if "down" in t.name else Q4_K for t in model.tensors}


@pytest.mark.parametrize("how", ["awq:0.5", "smooth:0.5", "awq"])
@pytest.mark.parametrize("architecture", ["llama", "glm4moe"])
def test_the_function_stays_and_the_calibration_fits(tmp_path: Path, architecture: str, how: str) -> None:
    model = ggplan.open_model(written(tmp_path / "m.gguf", architecture))
    x = inputs()
    calibration = calibrated(tmp_path / "c", weights_of(architecture), x)
    folded, fitting = fold(model, parse_fold(how), calibration, types(model))
    before: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    old, new = read(model), read(folded)
    expected, found = forward(old, x, before), forward(new, x, after)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    assert not np.allclose(new["attn_q"], old["attn_q"], rtol=0.05)
    assert folded.reshaped["fold"] == how
    again = calibrated(tmp_path / "again", {k: v.astype(F32) for k, v in new.items()}, x)
    for tensor in model.tensors:
        for slice_ in range(len(again.tokens(tensor.name))):
            theirs = again.moments(tensor.name, slice_)
            own = fitting.moments(tensor.name, slice_)
            assert (own is None) == (theirs is None), tensor.name
            if own is not None and theirs is not None:
                top = np.sqrt(np.outer(theirs.matrix.diagonal(), theirs.matrix.diagonal())) + 1e-9
                # The inputs are kept in bfloat16.
                assert np.abs((own.matrix - theirs.matrix) / top).max() < 0.01, tensor.name
                assert own.tokens == theirs.tokens
        if tensor.name in again.imatrix.entries:
            values = [each.imatrix.entries[tensor.name].values for each in (fitting, again)]
            np.testing.assert_allclose(*values, rtol=0.01, atol=1e-7)
    if architecture == "glm4moe":
        mine = fitting.layer_moments(f"{P}ffn_up_exps.weight")
        other = again.layer_moments(f"{P}ffn_up_exps.weight")
        np.testing.assert_allclose(mine.matrix.diagonal(), other.matrix.diagonal(), rtol=0.01)
        for name in ("ffn_up_exps", "ffn_down_exps"):  # an expert without tokens takes part in the norm alone
            assert np.isfinite(new[name]).all()
        assert np.array_equal(new["ffn_down_exps"][-1], old["ffn_down_exps"][-1])


def test_scales_are_those_of_the_papers(tmp_path: Path) -> None:
    model = ggplan.open_model(written(tmp_path / "m.gguf", "qwen2"))
    calibration = calibrated(tmp_path / "c", weights_of("qwen2"), inputs())
    old = read(model)

    def ratio(how: str, name: str) -> np.ndarray:
        new = read(fold(model, parse_fold(how), calibration, types(model))[0])
        return new[name][0] / old[name][0]

    def alike(found: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(found, expected / np.exp(np.log(expected).mean()), rtol=1e-5)

    rms = np.sqrt(calibration.imatrix.entries[f"{P}attn_q.weight"].values.reshape(-1))
    alike(ratio("awq:0.3", "attn_v"), rms**0.3)
    weights = np.max([np.abs(old[name]).max(axis=0) for name in ("attn_q", "attn_k", "attn_v")], axis=0)
    rows = calibration.rows(f"{P}attn_q.weight")
    assert rows is not None
    largest = np.abs((rows.astype(np.uint32) << 16).view(F32)).max(axis=0)
    alike(ratio("smooth:0.25", "attn_k"), largest**0.25 / weights**0.75)


def test_smooth_says_where_inputs_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ggplan.open_model(written(tmp_path / "m.gguf", "qwen2"))
    calibration = calibrated(tmp_path / "c", weights_of("qwen2"), inputs())
    assert not any(
        "root mean" in n for n in fold(model, parse_fold("smooth"), calibration, types(model))[0].notes
    )
    monkeypatch.setattr(Calibration, "rows", lambda *_: None)
    notes = fold(model, parse_fold("smooth"), calibration, types(model))[0].notes
    assert "at 3 places the calibration does not keep the inputs" in notes[-1]


def test_the_search_takes_what_has_the_least_error(tmp_path: Path) -> None:
    model = ggplan.open_model(written(tmp_path / "m.gguf", "qwen2"))
    calibration = calibrated(tmp_path / "c", weights_of("qwen2"), inputs())
    wanted = types(model)
    folded, _ = fold(model, parse_fold("awq"), calibration, wanted, 1e-6)
    chosen = dict(line.split() for line in folded.reshaped["fold_alphas"].splitlines())
    old = read(model)["ffn_down"]
    moments = calibration.moments(f"{P}ffn_down.weight")
    assert moments is not None

    def error(alpha: float) -> float:
        new = (
            read(fold(model, parse_fold(f"awq:{alpha}"), calibration, wanted)[0])["ffn_down"]
            if alpha
            else old
        )
        s = new[0] / old[0]
        importance = moments.matrix.diagonal() / (s * s)
        back = dequantize(ggplan.quantize(new.astype(F32), "q5_0", importance), Q5_0) / s
        return float(np.einsum("ij,jk,ik", back - old, moments.matrix, back - old))

    errors = {alpha: error(alpha) for alpha in (0, 0.1, 0.2, 0.3, 0.4, 0.5)}
    # It looks at some rows: what it takes is hardly worse than the best for all.
    assert errors[float(chosen.get("blk.0.ffn_up", 0))] <= 1.1 * min(errors.values())


@pytest.mark.parametrize("text", ["awq", "smooth:0.5", "awq:1", "awq:0.12345678901", "awq:0.00001"])
def test_a_fold_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_fold(text)) == text


def test_nothing_is_done_where_nothing_is_quantized(tmp_path: Path) -> None:
    model = ggplan.open_model(written(tmp_path / "m.gguf", "qwen2"))
    calibration = calibrated(tmp_path / "c", weights_of("qwen2"), inputs())
    folded, _ = fold(model, parse_fold("awq:0.5"), calibration, {t.name: t.type for t in model.tensors})
    assert folded.tensors == model.tensors
    assert "0 of 3 places" in folded.notes[-1]


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    calibration = calibrated(tmp_path / "c", weights_of("qwen2"), inputs())
    how = parse_fold("awq:0.5")
    model = ggplan.open_model(written(tmp_path / "m.gguf", "qwen2"))
    for architecture in ("gemma2", "olmo2", "phi2", "command-r"):
        with pytest.raises(PlanError, match=f"can be folded in {architecture}"):
            fold(replace(model, architecture=architecture), how, calibration, types(model))
    bias = ggplan.open_model(written(tmp_path / "b.gguf", "qwen2", {"attn_norm.bias": np.ones(N, F32)}))
    with pytest.raises(PlanError, match=r"blk\.0\.attn_norm\.bias is no tensor"):
        fold(bias, how, calibration, types(bias))
    post = ggplan.open_model(written(tmp_path / "p.gguf", "qwen2", {"post_attention_norm": np.ones(N, F32)}))
    with pytest.raises(PlanError, match=r"blk\.0\.post_attention_norm\.weight is no tensor"):
        fold(post, how, calibration, types(post))
    ggplan.convert(ggplan.make_plan(model, ggplan.parse_recipe("attn_q = q8_0")), tmp_path / "q.gguf")
    quantized = ggplan.open_model(tmp_path / "q.gguf")
    with pytest.raises(PlanError, match=r"blk\.0\.attn_q\.weight: quantized already"):
        fold(quantized, how, calibration, dict.fromkeys(types(model), Q8_0))
    with pytest.raises(PlanError, match="pruned-layers makes another one"):
        fold(replace(model, reshaped={"pruned_layers": "1"}), how, calibration, types(model))
    for wrong in ("awq:0", "awq:1.5", "gptq", "awq:", "smooth:x"):
        with pytest.raises(PlanError, match="is no fold"):
            parse_fold(wrong)


def test_the_command(tmp_path: Path) -> None:
    source, recipe, out = (
        written(tmp_path / "m.gguf", "glm4moe"),
        tmp_path / "a.recipe",
        tmp_path / "out.gguf",
    )
    recipe.write_text("attn_norm = f32\npost_attention_norm = f32\nffn_gate_inp = f32\n@default q5_0\n")
    folder = str(calibrated(tmp_path / "c", weights_of("glm4moe"), inputs()).path)
    options = ["-r", recipe, "--calibration", folder]
    done = run("convert", source, out, *options, "--fold", "awq:0.5")
    assert done.returncode == 0, done.stderr
    assert "awq:0.5 is folded into 4 of 4 places, alpha 0.5" in done.stderr
    model = ggplan.open_model(out)
    assert model.metadata["ggplan.fold"].decode() == "awq:0.5"
    old, new = read(ggplan.open_model(source)), read(model)
    x = inputs()
    expected, found = forward(old, x, {}), forward(new, x, {})
    assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 0.05  # q5_0's rounding
    assert not np.allclose(new["attn_norm"], old["attn_norm"], rtol=0.05)
    assert run("verify", out).returncode == 0
    refused = run("verify", out, "--against", source)
    assert refused.returncode == 1
    assert "was made with --fold awq:0.5: its weights are scaled" in refused.stderr
    assert "with --exact and --calibration" in refused.stderr
    given = ["--calibration", folder]
    proven = run("verify", out, "--against", source, "--exact", *given)
    assert proven.returncode == 0, proven.stderr
    assert "every byte is what the plan encodes" in proven.stdout
    assert run("reproduce", out, source, *given).returncode == 0
    assert "was made with the calibration" in run("reproduce", out, source).stderr
    plain = tmp_path / "plain.gguf"
    again = run("convert", source, plain, *options, "--reuse", out)
    assert again.returncode == 0
    assert "another calibration, or with one that was used in another way" in again.stdout + again.stderr
    assert run("convert", source, tmp_path / "whole.gguf", *options).returncode == 0
    assert plain.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    searched = tmp_path / "searched.gguf"
    more = ["--fold", "awq", "--split-max-tensors", "5", "--reuse", plain]
    assert run("convert", source, searched, *options, *more).returncode == 0
    first = next(tmp_path.glob("searched-00001-of-*.gguf"))
    assert "ggplan.fold_alphas" in ggplan.open_model(first).metadata
    assert run("reproduce", first, source, *given).returncode == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--fold", "awq"], "--fold needs --calibration"),
        (["--fold", "awq:2", "--calibration", "C"], "write awq, awq:ALPHA"),
        (["--fold", "awq", "--calibration", "C", "--correct"], "leave out one of them"),
    ],
)
def test_wrong_usage(tmp_path: Path, options: list[str], told: str) -> None:
    source = written(tmp_path / "m.gguf", "qwen2")
    calibrated(tmp_path / "C", weights_of("qwen2"), inputs())
    options = [str(tmp_path / "C") if each == "C" else each for each in options]
    done = run("convert", source, tmp_path / "out.gguf", *options)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())


def test_what_it_gained_is_measured_against_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base and the file by best effort are those of the model without scales."""
    source = written(tmp_path / "m.gguf", "qwen2")
    calibrated(tmp_path / "C", weights_of("qwen2"), inputs())
    (tmp_path / "q4.recipe").write_text("@default q4_0\n_norm = f32\n")
    asked: list[tuple[Plan, Path]] = []

    def measured(plan: Plan, path: Path, *rest: object, **more: object) -> object:
        asked.append((plan, path))
        return (), SimpleNamespace(notes=())

    monkeypatch.setattr("ggplan.cli.optimize_probes.engine_of", lambda program, arguments: None)
    monkeypatch.setattr("ggplan.probing.holdout.hold_out", measured)
    out = tmp_path / "out.gguf"
    options = ["-r", tmp_path / "q4.recipe", "--calibration", tmp_path / "C", "--holdout", "default"]
    done = run("convert", source, out, *options, "--fold", "awq:0.5")
    assert done.returncode == 0, done.stderr
    ((plan, path),) = asked
    assert path == out
    file = ggplan.open_model(out)
    assert "ggplan.fold" in file.metadata
    assert {t.name: t.type for t in plan.tensors} == {t.name: t.type for t in file.tensors}
    norm = P + "attn_norm.weight"
    np.testing.assert_array_equal(
        plan.model[norm].rows.read_float32(0, 1)[0], weights_of("qwen2")["attn_norm"]
    )
    assert np.abs(file[norm].rows.read_float32(0, 1)[0] / weights_of("qwen2")["attn_norm"] - 1).max() > 0.1
