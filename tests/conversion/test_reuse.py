"""Tensors taken from an earlier output: the same bytes as without it, whatever was changed or damaged."""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggplan
from ggplan import make_plan, open_model, parse_recipe
from ggplan.conversion import fingerprint, pace, reuse, source_hash, streaming, workers
from ggplan.conversion.manifest import read_manifest
from ggplan.conversion.running_hash import RunningHash
from ggplan.errors import CheckpointError, ConversionError
from ggplan.imatrix import load_imatrix
from ggplan.planning import Plan
from ggplan.quants import quantize
from ggplan.quants.revisions import BEST_REVISION
from ggplan.quants.row_hash import hash_rows, row_hash_bytes

UP, DOWN, QUERY, EMBEDDING, NORM = (
    "blk.0.ffn_up_exps.weight",
    "blk.0.ffn_down_exps.weight",
    "blk.0.attn_q.weight",
    "token_embd.weight",
    "output_norm.weight",
)
RECIPE = "ffn_up_exps = q4_K\nffn_down_exps = q6_K\n@default q8_0\n"


def weights(seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        EMBEDDING: rng.standard_normal((60, 256), np.float32),
        NORM: rng.standard_normal(256, np.float32),
        QUERY: rng.standard_normal((300, 256), np.float32),
        UP: rng.standard_normal((4, 128, 256), np.float32),
        DOWN: rng.standard_normal((4, 64, 512), np.float32),
    }


def write_model(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_imatrix(path: Path, names: tuple[str, ...], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch="imatrix")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    for name in names:
        shape = weights()[name].shape
        sums = (rng.random((*shape[:-2], 1, shape[-1]), np.float32) + 0.01) * 512
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.full((*shape[:-2], 1, 1), 512, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source.gguf", weights())


def plan_of(source: Path, recipe: str = RECIPE, **options: object) -> Plan:
    return make_plan(open_model(source), parse_recipe(recipe, "test.recipe"), **options)


@pytest.fixture
def old(source: Path, tmp_path: Path) -> Path:
    return ggplan.convert(plan_of(source), tmp_path / "old.gguf").path


@pytest.fixture
def fresh_and_reused(tmp_path: Path) -> Callable[..., reuse.Reuse]:
    """Convert a plan with and without reuse: all bytes must be the same, and the manifest."""

    def convert(plan: Plan, old: Path, **options: object) -> reuse.Reuse:
        folders = [tmp_path / name for name in ("fresh", "reused")]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        ggplan.convert(plan, folders[0] / "out.gguf", ggplan.ConvertOptions(**options))
        result = ggplan.convert(plan, folders[1] / "out.gguf", ggplan.ConvertOptions(reuse=old, **options))
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert names[0] == names[1]
        for name in names[0]:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
        assert result.reuse is not None
        assert not result.reuse.tensors.keys() & result.reuse.reasons.keys()
        assert result.reuse.tensors.keys() | result.reuse.reasons.keys() == {t.name for t in plan.tensors}
        return result.reuse

    return convert


def test_what_the_recipes_have_in_common_is_copied(
    source: Path, old: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    plan = plan_of(source, RECIPE.replace("q6_K", "q5_K"))
    found = fresh_and_reused(plan, old)
    assert set(found.tensors) == {EMBEDDING, QUERY, UP}
    assert found.reasons == {DOWN: "q6_K in the earlier file", NORM: "copied from the source"}
    assert found.n_bytes == sum(t.n_bytes for t in plan.tensors if t.name in found.tensors)


def test_what_is_copied_is_not_encoded(
    source: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = workers.encode_chunk

    def noted(chunk, source=None):  # type: ignore[no-untyped-def]
        if chunk.reused is None and not chunk.planned.is_copied:
            encoded.append(chunk.planned.name)
        return encode(chunk, source)

    monkeypatch.setattr(workers, "encode_chunk", noted)
    ggplan.convert(
        plan_of(source, RECIPE.replace("q6_K", "q5_K")),
        tmp_path / "out.gguf",
        ggplan.ConvertOptions(reuse=old),
    )
    assert set(encoded) == {DOWN}


def test_other_weights_of_the_same_size_and_time_are_noticed(
    source: Path, old: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    state = source.stat()
    other = weights()
    other[UP][3, 127, 255] = np.nextafter(other[UP][3, 127, 255], np.float32(9))
    write_model(source, other)
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert source.stat().st_size == state.st_size
    found = fresh_and_reused(plan_of(source), old)
    assert found.reasons[UP] == "other weights"
    assert set(found.tensors) == {EMBEDDING, QUERY, DOWN}


def test_the_same_weights_in_another_container_are_known(
    tmp_path: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    rounded = {name: values.astype(np.float16) for name, values in weights().items()}
    wide = write_model(tmp_path / "f32.gguf", {n: v.astype(np.float32) for n, v in rounded.items()})
    narrow = write_model(tmp_path / "f16.gguf", dict(reversed(rounded.items())))
    old = ggplan.convert(plan_of(wide), tmp_path / "old.gguf").path
    assert set(fresh_and_reused(plan_of(narrow), old).tensors) == {EMBEDDING, QUERY, UP, DOWN}


def test_damage_in_the_old_file_is_not_copied(
    source: Path, old: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    record = {t.name: t for t in gguf.GGUFReader(old).tensors}[DOWN]
    data = bytearray(old.read_bytes())
    data[record.data_offset + 1000] ^= 4
    old.write_bytes(data)
    found = fresh_and_reused(plan_of(source), old)
    assert found.reasons[DOWN] == "damaged in the earlier file"
    assert set(found.tensors) == {EMBEDDING, QUERY, UP}


def test_a_truncated_old_file_is_no_gguf(source: Path, old: Path, tmp_path: Path) -> None:
    os.truncate(old, old.stat().st_size - 64)
    with pytest.raises(CheckpointError, match=r"old\.gguf"):
        ggplan.convert(plan_of(source), tmp_path / "out.gguf", ggplan.ConvertOptions(reuse=old))
    assert not (tmp_path / "out.gguf.part").exists()


def test_without_a_manifest_or_under_another_header_nothing_is_copied(
    source: Path, old: Path, tmp_path: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    manifest = tmp_path / "old.gguf.sha256"
    text = manifest.read_text()
    manifest.write_text(
        text.replace("header-sha256  ", "header-sha256  0").replace("  old.gguf\n", " old.gguf\n")
    )
    assert "header" in fresh_and_reused(plan_of(source), old).reasons[UP]
    manifest.unlink()
    found = fresh_and_reused(plan_of(source), old)
    assert not found.tensors
    assert "there is no manifest" in found.reasons[UP]
    manifest.write_text(
        "".join(line + "\n" for line in text.splitlines() if not line.startswith("source-rows"))
    )
    assert fresh_and_reused(plan_of(source), old).reasons[UP] == "its source is not recorded"


@pytest.mark.parametrize("manifest", ["old.gguf.sha256", "other.gguf.sha256"])
def test_a_renamed_file_is_reused(
    source: Path, old: Path, manifest: str, tmp_path: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    renamed = old.rename(tmp_path / "other.gguf")
    (tmp_path / "old.gguf.sha256").rename(tmp_path / manifest)
    assert UP in fresh_and_reused(plan_of(source), renamed).tensors


def test_a_file_of_another_program_is_not_reused(
    source: Path, tmp_path: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    up = np.ascontiguousarray(quantize(weights()[UP].reshape(-1, 256), "q4_K"))
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_tensor(UP, up.reshape(4, 128, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = fresh_and_reused(plan_of(source), tmp_path / "theirs.gguf")
    assert found.reasons[UP] == "the file was not written by ggplan"


def test_only_the_entries_of_the_imatrix_that_changed_count(
    source: Path, tmp_path: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    both = load_imatrix(write_imatrix(tmp_path / "both.gguf", (UP, DOWN)))
    old = ggplan.convert(plan_of(source, imatrix=both), tmp_path / "old.gguf").path
    assert set(fresh_and_reused(plan_of(source, imatrix=both), old).tensors) == {EMBEDDING, QUERY, UP, DOWN}
    up_only = load_imatrix(write_imatrix(tmp_path / "up.gguf", (UP,)))
    found = fresh_and_reused(plan_of(source, imatrix=up_only), old)
    assert found.reasons[DOWN] == "another importance (imatrix)"
    assert set(found.tensors) == {EMBEDDING, QUERY, UP}
    other = load_imatrix(write_imatrix(tmp_path / "other.gguf", (UP, DOWN), seed=1))
    # q8_0 has no use for an imatrix.
    assert set(fresh_and_reused(plan_of(source, imatrix=other), old).tensors) == {EMBEDDING, QUERY}


def test_effort_and_the_revision_of_its_search(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh_and_reused: Callable[..., reuse.Reuse],
) -> None:
    best = plan_of(source, "@default q4_0\n", effort="best")
    old = ggplan.convert(best, tmp_path / "old.gguf").path
    assert set(fresh_and_reused(best, old).tensors) == {EMBEDDING, QUERY, UP, DOWN}
    default = dataclasses.replace(plan_of(source, "@default q4_0\n"))
    assert fresh_and_reused(default, old).reasons[UP] == "it was made with --effort best"
    lines = [line for line in Path(f"{old}.sha256").read_text().splitlines() if "best-revision" in line]
    assert lines == [
        f"best-revision  {BEST_REVISION}  {old.name}:{t.name}" for t in best.tensors if t.type.is_quantized
    ]
    monkeypatch.setattr(reuse, "best_revision", lambda effort: BEST_REVISION + 1)
    assert "encoders of --effort best" in fresh_and_reused(best, old).reasons[UP]
    monkeypatch.undo()
    manifest = Path(f"{old}.sha256")
    manifest.write_text(manifest.read_text().replace("best-revision", "encoders"))
    assert "encoders of --effort best" in fresh_and_reused(best, old).reasons[UP]


def test_best_effort_of_another_revision_is_not_gone_on_with(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, out = plan_of(source, "@default q4_0\n", effort="best"), tmp_path / "out.gguf"

    def stop(n_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ggplan.convert(best, out, ggplan.ConvertOptions(threads=1), progress=stop)
    monkeypatch.setattr(fingerprint, "BEST_REVISION", BEST_REVISION + 1)
    with pytest.raises(ConversionError, match="the revision of the encoders of effort best"):
        ggplan.convert(best, out)
    monkeypatch.undo()
    assert ggplan.convert(best, out).path == out


def test_nonfinite_weights_are_still_refused(source: Path, tmp_path: Path) -> None:
    spoilt = weights()
    spoilt[QUERY][7, 7] = np.nan
    write_model(source, spoilt)
    old = ggplan.convert(plan_of(source, nonfinite="zero"), tmp_path / "old.gguf").path
    again = reuse.find_reusable(plan_of(source, nonfinite="zero"), reuse.open_earlier(old))
    assert QUERY in again.tensors
    with pytest.raises(ggplan.Error, match="not finite"):
        ggplan.convert(plan_of(source), tmp_path / "out.gguf", ggplan.ConvertOptions(reuse=old))


def test_split_sets_are_reused_and_made_by_reuse(
    source: Path, tmp_path: Path, fresh_and_reused: Callable[..., reuse.Reuse]
) -> None:
    old = ggplan.convert(
        plan_of(source), tmp_path / "old.gguf", ggplan.ConvertOptions(split_max_tensors=2)
    ).path
    found = fresh_and_reused(plan_of(source, RECIPE.replace("q4_K", "q3_K")), old, split_max_tensors=1)
    assert set(found.tensors) == {EMBEDDING, QUERY, DOWN}


def test_the_old_file_may_be_replaced_by_the_new(source: Path, old: Path, tmp_path: Path) -> None:
    plan = plan_of(source, RECIPE.replace("q4_K", "q3_K"))
    ggplan.convert(plan, tmp_path / "fresh.gguf")
    result = ggplan.convert(plan, old, ggplan.ConvertOptions(reuse=old, force=True))
    assert old.read_bytes() == (tmp_path / "fresh.gguf").read_bytes()
    assert result.reuse is not None
    assert DOWN in result.reuse.tensors


class Enough(KeyboardInterrupt):
    """Ctrl-C, pressed by a test."""


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("then", [True, False])
@pytest.mark.parametrize("after", [1, 40_000, 120_000, 200_000])
def test_stopped_and_gone_on_with(
    source: Path,
    old: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    first: bool,
    then: bool,
) -> None:
    """With `--reuse` before the stop, after it, both or neither: the same file and the same manifest."""
    monkeypatch.setattr(pace, "CHUNK_WEIGHTS", 4096)
    monkeypatch.setattr(streaming, "CHECKPOINT_BYTES", 8192)
    monkeypatch.setattr(workers, "_TICK_SECONDS", 0.001)
    plan = plan_of(source, RECIPE.replace("q6_K", "q5_K"))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    ggplan.convert(plan, fresh / "out.gguf")
    left = after

    def progress(n_bytes: int) -> None:
        nonlocal left
        left -= n_bytes
        if left < 0:
            raise Enough

    out = tmp_path / "out.gguf"
    with pytest.raises(Enough):
        ggplan.convert(
            plan, out, ggplan.ConvertOptions(threads=1, reuse=old if first else None), progress=progress
        )
    ggplan.convert(plan, out, ggplan.ConvertOptions(threads=2, reuse=old if then else None))
    for name in ("out.gguf", "out.gguf.sha256"):
        assert (tmp_path / name).read_bytes() == (fresh / name).read_bytes()


def test_bytes_that_change_while_they_are_copied_are_not_kept(
    source: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove = reuse.prove_reusable

    def damaged_after_the_proof(*arguments: object) -> reuse.Reuse:
        proven = prove(*arguments)  # type: ignore[arg-type]
        record = {t.name: t for t in gguf.GGUFReader(old).tensors}[UP]
        data = bytearray(old.read_bytes())
        data[record.data_offset + 7] ^= 1
        old.write_bytes(data)
        return proven

    plan, out = plan_of(source), tmp_path / "out.gguf"
    monkeypatch.setattr(reuse, "prove_reusable", damaged_after_the_proof)
    with pytest.raises(CheckpointError, match="changed while it was copied"):
        ggplan.convert(plan, out, ggplan.ConvertOptions(reuse=old))
    assert not out.exists()
    monkeypatch.undo()
    ggplan.convert(plan, out, ggplan.ConvertOptions(reuse=old))
    ggplan.convert(plan, tmp_path / "fresh.gguf")
    assert out.read_bytes() == (tmp_path / "fresh.gguf").read_bytes()


def test_the_source_is_recorded_whatever_the_chunks(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source)
    manifests = []
    for number, (threads, memory) in enumerate([(1, 1 << 30), (3, 40_000), (2, 300_000)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        ggplan.convert(plan, folder / "out.gguf", ggplan.ConvertOptions(threads=threads, memory=memory))
        manifests.append((folder / "out.gguf.sha256").read_text())
    assert len(set(manifests)) == 1
    recorded = read_manifest(tmp_path / "0" / "out.gguf.sha256").files["out.gguf"].sources
    planned = {t.name: t for t in plan.tensors}[DOWN]
    whole = source_hash.new_source_hash(planned)
    source_hash.add_rows(whole, 0, weights()[DOWN].reshape(-1, 512))
    assert isinstance(whole, RunningHash)
    assert recorded[DOWN] == whole.mark().sha256
    assert NORM not in recorded


@pytest.mark.parametrize("n_columns", [1, 2, 31, 32, 1023, 1024, 1025, 2560])
def test_row_hashes_follow_their_formula(n_columns: int) -> None:
    rows = np.random.default_rng(n_columns).standard_normal((3, n_columns)).astype(np.float32)
    stream = hashlib.shake_256(b"ggplan: the key of hash_rows").digest(2 * 520 * 4)
    key = [int.from_bytes(stream[at : at + 4], "little") for at in range(0, len(stream), 4)]
    a, b = key[::2], key[1::2]
    found, largest = hash_rows(rows)
    assert largest == np.abs(rows).max()
    assert found.shape == (3, row_hash_bytes(n_columns))
    for row, sums in zip(rows, found.view("<u8"), strict=True):
        words = [int(word) for word in row.view(np.uint32)] + [0] * (-n_columns % 16)
        expected = []
        for start in range(0, len(words), 1024):
            strip = words[start : start + 1024]
            pairs = list(zip(strip[::2], strip[1::2], strict=True))
            for p in range(2):
                terms = (
                    (u + a[i + 8 * p]) % 2**32 * ((v + b[i + 8 * p]) % 2**32)
                    for i, (u, v) in enumerate(pairs)
                )
                expected.append(sum(terms) % 2**64)
        assert sums.tolist() == expected


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_columns", [5, 16, 2560])
def test_the_hash_sees_each_weight_that_is_not_finite(bad: float, n_columns: int) -> None:
    rows = np.full((3, n_columns), np.finfo(np.float32).max, np.float32)
    assert hash_rows(rows)[1] == np.finfo(np.float32).max
    for place in range(0, rows.size, max(1, rows.size // 97)):
        changed = rows.copy()
        changed.reshape(-1)[place] = bad
        assert hash_rows(changed)[1] == np.inf


def test_each_bit_of_a_row_counts() -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((1, 96)).astype(np.float32)
    seen = {hash_rows(rows)[0].tobytes()}
    for bit in range(96 * 32):
        changed = rows.copy()
        changed.view(np.uint32)[0, bit // 32] ^= np.uint32(1 << bit % 32)
        seen.add(hash_rows(changed)[0].tobytes())
    assert len(seen) == 1 + 96 * 32
