import dataclasses
import os
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggplan
from ggplan import Model, make_plan, open_model, parse_recipe
from ggplan.conversion import chunks
from ggplan.conversion.encoding import encode_chunk
from ggplan.errors import ConversionError, PlanError
from ggplan.linting import check_plan

RNG = np.random.default_rng(7)
N_EXPERTS = 4
WEIGHTS = {
    "token_embd.weight": RNG.standard_normal((50, 256), np.float32),
    "output.weight": RNG.standard_normal((50, 256), np.float32),
    "output_norm.weight": RNG.standard_normal(256, np.float32),
    "blk.0.attn_q.weight": RNG.standard_normal((64, 256), np.float32),
    "blk.0.ffn_gate_inp.weight": RNG.standard_normal((N_EXPERTS, 256), np.float32),
    "blk.0.ffn_up_exps.weight": RNG.standard_normal((N_EXPERTS, 96, 256), np.float32),
    "blk.0.ffn_down_exps.weight": RNG.standard_normal((N_EXPERTS, 256, 96), np.float32),
}
RECIPE = """
ffn_up_exps = q4_K
ffn_down_exps = q6_K | q8_0
attn = q5_K
@default f16
"""


def write_gguf(path: Path, weights: dict[str, np.ndarray]) -> None:
    """A GGUF file by the gguf package, so that a program of others owns the input."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(50)])
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    write_gguf(path, WEIGHTS)
    return path


def converted(source: Path, target: Path, recipe: str = RECIPE, **options: object) -> dict[str, object]:
    plan = make_plan(open_model(source), parse_recipe(recipe, "test.recipe"))
    ggplan.convert(plan, target, ggplan.ConvertOptions(**options))
    return {t.name: t for t in gguf.GGUFReader(target).tensors}


def test_every_tensor_is_what_quantize_gives(source: Path, tmp_path: Path) -> None:
    found = converted(source, tmp_path / "out.gguf")
    expected = dict.fromkeys(WEIGHTS, "f16") | {
        "output_norm.weight": "f32",
        "blk.0.ffn_gate_inp.weight": "f32",
        "blk.0.attn_q.weight": "q5_K",
        "blk.0.ffn_up_exps.weight": "q4_K",
        "blk.0.ffn_down_exps.weight": "q8_0",
    }
    assert {name: t.tensor_type.name.lower() for name, t in found.items()} == {
        name: type_.lower() for name, type_ in expected.items()
    }
    for name, type_ in expected.items():
        assert found[name].data.tobytes() == ggplan.quantize(WEIGHTS[name], type_).tobytes()
        assert tuple(reversed(found[name].shape.tolist())) == WEIGHTS[name].shape


def test_the_file_has_the_size_the_plan_says_and_knows_its_recipe(source: Path, tmp_path: Path) -> None:
    plan = make_plan(open_model(source), parse_recipe(RECIPE, "test.recipe"))
    result = ggplan.convert(plan, tmp_path / "out.gguf")
    assert result.n_bytes == plan.file_bytes == (tmp_path / "out.gguf").stat().st_size
    again = open_model(tmp_path / "out.gguf")
    assert again.metadata["ggplan.recipe.text"].decode() == RECIPE
    assert again.metadata["general.name"].decode() == "tiny"
    assert again.metadata["general.quantization_version"].decode() == 2
    tokens = again.metadata["tokenizer.ggml.tokens"]
    assert tokens.length == 50
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_bytes_do_not_depend_on_threads_or_chunks(
    source: Path, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted(source, tmp_path / "reference.gguf", threads=1)
    monkeypatch.setattr(chunks.chunks_of, "__defaults__", (threads * 700,))
    converted(source, tmp_path / "out.gguf", threads=threads)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "reference.gguf").read_bytes()


def test_a_second_conversion_copies_and_changes_nothing(source: Path, tmp_path: Path) -> None:
    converted(source, tmp_path / "once.gguf")
    plan = make_plan(open_model(tmp_path / "once.gguf"), parse_recipe(RECIPE, "test.recipe"))
    ggplan.convert(plan, tmp_path / "twice.gguf")
    # Only what is recorded of the inputs differs, and that in no byte of length.
    once, twice = (open_model(tmp_path / name) for name in ("once.gguf", "twice.gguf"))
    differing = {key for key in once.metadata if once.metadata[key] != twice.metadata[key]}
    assert differing == {"ggplan.inputs", "ggplan.plan.sha256"}
    assert list(once.metadata) == list(twice.metadata)
    once_bytes, twice_bytes = ((tmp_path / name).read_bytes() for name in ("once.gguf", "twice.gguf"))
    assert len(once_bytes) == len(twice_bytes)
    assert once_bytes[-plan.data_bytes :] == twice_bytes[-plan.data_bytes :]


def test_quantizing_twice_must_be_asked_for(source: Path, tmp_path: Path) -> None:
    converted(source, tmp_path / "once.gguf")
    plan = make_plan(open_model(tmp_path / "once.gguf"), parse_recipe("ffn_up_exps = q2_K"))
    with pytest.raises(PlanError, match="q4_K already") as caught:
        ggplan.convert(plan, tmp_path / "twice.gguf")
    assert "--allow-requantize" in caught.value.hint
    ggplan.convert(plan, tmp_path / "twice.gguf", ggplan.ConvertOptions(allow_requantize=True))
    name = "blk.0.ffn_up_exps.weight"
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "twice.gguf").tensors}[name]
    once = ggplan.dequantize(ggplan.quantize(WEIGHTS[name], "q4_K").reshape(-1, 144), "q4_K")
    assert found.data.tobytes() == ggplan.quantize(once, "q2_K").tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    damaged = {name: values.copy() for name, values in WEIGHTS.items()}
    damaged["blk.0.attn_q.weight"][3, 17] = value
    write_gguf(tmp_path / "source.gguf", damaged)
    plan = make_plan(open_model(tmp_path / "source.gguf"), parse_recipe(RECIPE))
    with pytest.raises(ConversionError, match=r"blk\.0\.attn_q\.weight.*row 3, column 17"):
        ggplan.convert(plan, tmp_path / "out.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["source.gguf"]


def test_a_weight_too_large_for_f16_is_named(tmp_path: Path) -> None:
    large = {"blk.0.attn_q.weight": np.full((2, 32), 70000, np.float32)}
    write_gguf(tmp_path / "source.gguf", large)
    plan = make_plan(open_model(tmp_path / "source.gguf"), parse_recipe("@default f16"))
    with pytest.raises(ConversionError, match="too large for f16"):
        ggplan.convert(plan, tmp_path / "out.gguf")


def test_an_existing_file_stays_unless_forced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_text("mine")
    plan = make_plan(open_model(source), parse_recipe(RECIPE))
    with pytest.raises(ConversionError, match="exists"):
        ggplan.convert(plan, target)
    assert target.read_text() == "mine"
    ggplan.convert(plan, target, ggplan.ConvertOptions(force=True))
    assert target.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_the_source_is_never_the_target(source: Path, tmp_path: Path, link: str) -> None:
    target = source if link == "same" else tmp_path / "link.gguf"
    if link == "symbolic":
        target.symlink_to(source)
    elif link == "hard":
        os.link(source, target)
    before = source.read_bytes()
    plan = make_plan(open_model(source), parse_recipe(RECIPE))
    with pytest.raises(ConversionError, match="being read"):
        ggplan.convert(plan, target, ggplan.ConvertOptions(force=True))
    assert source.read_bytes() == before


@pytest.mark.parametrize("target", ["missing/out.gguf", "folder"])
def test_impossible_targets(source: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    plan = make_plan(open_model(source), parse_recipe(RECIPE))
    with pytest.raises(ConversionError, match=r"folder"):
        ggplan.convert(plan, tmp_path / target)


def test_a_source_that_shrinks_is_an_error_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    plan = make_plan(open_model(source), parse_recipe(RECIPE))
    os.truncate(source, source.stat().st_size // 2)
    with pytest.raises(ggplan.Error, match=r"source\.gguf"):
        ggplan.convert(plan, tmp_path / "out.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["source.gguf"]


def test_an_inventory_cannot_be_converted(tmp_path: Path) -> None:
    model = Model(Path("x.map"), "inventory", "", {}, ())
    with pytest.raises(PlanError, match="without weights"):
        ggplan.convert(make_plan(model), tmp_path / "out.gguf")


def test_progress_accounts_for_every_byte(source: Path, tmp_path: Path) -> None:
    plan = make_plan(open_model(source), parse_recipe(RECIPE))
    pieces: list[int] = []
    callers: set[str] = set()

    def progress(n_bytes: int) -> None:
        pieces.append(n_bytes)
        callers.add(threading.current_thread().name)

    ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(threads=2), progress=progress)
    assert sum(pieces) == plan.tensor_bytes
    assert callers <= {"ggplan-0", "ggplan-1"}


def write_imatrix(path: Path, sums: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["calib.txt"])
    writer.add_uint32("imatrix.chunk_count", 10)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name in sums:
        writer.add_tensor(f"{name}.in_sum2", sums[name])
        writer.add_tensor(f"{name}.counts", counts[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_each_expert_is_encoded_with_its_own_importance(source: Path, tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    sums = RNG.random((N_EXPERTS, 256), np.float32) + np.float32(0.1)
    counts = np.array([[3], [0], [5], [2]], np.float32)  # the second expert was never routed to
    write_imatrix(tmp_path / "imatrix.gguf", {name: sums}, {name: counts})
    imatrix = ggplan.load_imatrix(tmp_path / "imatrix.gguf")
    plan = make_plan(open_model(source), parse_recipe(RECIPE), imatrix=imatrix)
    codes = {d.code for d in check_plan(plan).diagnostics}
    assert {"GP206", "GP207"} <= codes
    ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(threads=2))

    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}[name]
    importance = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1)).astype(np.float32)
    expected = [ggplan.quantize(WEIGHTS[name][e], "q4_K", imatrix=importance[e]) for e in range(N_EXPERTS)]
    assert found.data.tobytes() == np.stack(expected).tobytes()
    metadata = open_model(tmp_path / "out.gguf").metadata
    assert metadata["quantize.imatrix.file"].decode() == "imatrix.gguf"
    assert metadata["quantize.imatrix.dataset"].decode() == "calib.txt"
    assert metadata["quantize.imatrix.entries_count"].decode() == 1
    assert metadata["quantize.imatrix.chunks_count"].decode() == 10


def test_chunks_may_straddle_experts(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(open_model(source), parse_recipe(RECIPE))
    name = "blk.0.ffn_up_exps.weight"
    importance = RNG.random((N_EXPERTS, 256), np.float32)
    pieces = {
        size: b"".join(
            memoryview(encode_chunk(dataclasses.replace(c, importance=importance))).tobytes()
            for c in chunks.chunks_of(plan, size)
            if c.planned.name == name
        )
        for size in (1, 100 * 256, 10**9)
    }
    assert len(set(pieces.values())) == 1
