"""What a run keeps, what the next one makes of it, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggplan
from ggplan import make_plan, open_model, parse_recipe
from ggplan.conversion import pace, streaming, workers
from ggplan.conversion.manifest import read_manifest
from ggplan.errors import ConversionError, PlanError
from ggplan.planning import Plan

RNG = np.random.default_rng(11)
WEIGHTS = {
    "token_embd.weight": RNG.standard_normal((60, 256), np.float32),
    "output_norm.weight": RNG.standard_normal(256, np.float32),
    "blk.0.attn_q.weight": RNG.standard_normal((300, 256), np.float32),
    "blk.0.ffn_up_exps.weight": RNG.standard_normal((4, 128, 256), np.float32),
    "blk.0.ffn_down_exps.weight": RNG.standard_normal((4, 256, 96), np.float32),
}
RECIPE = "ffn_up_exps = q4_K\nffn_down_exps = q6_K | q8_0\n@default q8_0\n"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few rows, and a checkpoint after each few of them."""
    monkeypatch.setattr(pace, "CHUNK_WEIGHTS", 4096)
    monkeypatch.setattr(streaming, "CHECKPOINT_BYTES", 8192)
    monkeypatch.setattr(workers, "_TICK_SECONDS", 0.001)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, values in WEIGHTS.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "out.gguf"


def plan_of(source: Path, recipe: str = RECIPE) -> Plan:
    return make_plan(open_model(source), parse_recipe(recipe, "test.recipe"))


class Enough(KeyboardInterrupt):
    """Ctrl-C, pressed by a test."""


def stopped(plan: Plan, out: Path, after: int = 60_000, **options: object) -> Enough:
    """A conversion that is interrupted after so many bytes."""
    left = after

    def progress(n_bytes: int) -> None:
        nonlocal left
        left -= n_bytes
        if left < 0:
            raise Enough

    with pytest.raises(Enough) as caught:
        ggplan.convert(plan, out, ggplan.ConvertOptions(threads=1, **options), progress=progress)
    return caught.value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_conversion_goes_on(source: Path, out: Path, tmp_path: Path) -> None:
    plan = plan_of(source)
    ggplan.convert(plan, tmp_path / "whole.gguf")
    error = stopped(plan, out)
    assert names(out.parent) == ["out.gguf.part", "out.gguf.part.journal"]
    assert "the same command continues" in error.__notes__[0]

    told: list[int] = []
    written: list[int] = []
    result = ggplan.convert(plan, out, progress=written.append, resumed=told.append)
    assert result.resumed_bytes == sum(told) > 40_000
    assert sum(written) + sum(told) == plan.tensor_bytes
    assert names(out.parent) == ["out.gguf", "out.gguf.sha256"]
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("chunk", [1, 3000, 1 << 18])
def test_one_sha256_whatever_the_threads_chunks_and_stops(
    source: Path, out: Path, tmp_path: Path, threads: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(source)
    ggplan.convert(plan, tmp_path / "whole.gguf", ggplan.ConvertOptions(threads=1))
    stopped(plan, out, after=30_000 * threads)
    monkeypatch.setattr(pace, "CHUNK_WEIGHTS", chunk)
    assert ggplan.convert(plan, out, ggplan.ConvertOptions(threads=threads)).resumed_bytes > 0
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (out, tmp_path / "whole.gguf")}
    assert len(digests) == 1


def test_the_manifest_gives_each_tensors_hash(source: Path, out: Path) -> None:
    stopped(plan_of(source), out)
    result = ggplan.convert(plan_of(source), out)
    assert result.manifest == out.with_name("out.gguf.sha256")
    listed = read_manifest(result.manifest).files["out.gguf"]
    tensors = gguf.GGUFReader(out).tensors
    assert list(listed.tensors) == [t.name for t in tensors]
    assert listed.tensors == {t.name: hashlib.sha256(t.data.tobytes()).hexdigest() for t in tensors}
    header = out.read_bytes()[: min(int(t.data_offset) for t in tensors)]
    assert listed.header == hashlib.sha256(header).hexdigest()


def other_recipe(source: Path) -> Plan:
    return plan_of(source, RECIPE.replace("q4_K", "q5_K"))


def other_fallback(source: Path) -> Plan:
    return make_plan(open_model(source), parse_recipe(RECIPE, "test.recipe"), fallback="ik")


def other_time(source: Path) -> Plan:
    os.utime(source, ns=(1, 1))
    return plan_of(source)


def other_policy(source: Path) -> Plan:
    return make_plan(open_model(source), parse_recipe(RECIPE, "test.recipe"), nonfinite="zero")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (other_recipe, "the recipe"),
        (other_fallback, r"the option fallback was llama\.cpp and is ik"),
        (other_policy, "the option nonfinite was refuse and is zero"),
        (other_time, r"the input source\.gguf"),
    ],
)
def test_work_of_another_plan_is_refused_and_named(
    source: Path, out: Path, tmp_path: Path, other: Callable[[Path], Plan], named: str
) -> None:
    stopped(plan_of(source), out)
    before = out.with_name("out.gguf.part").read_bytes()
    plan = other(source)
    with pytest.raises(ConversionError, match=named) as caught:
        ggplan.convert(plan, out)
    assert "--restart" in caught.value.hint
    assert out.with_name("out.gguf.part").read_bytes() == before
    result = ggplan.convert(plan, out, ggplan.ConvertOptions(restart=True))
    assert result.resumed_bytes == 0
    ggplan.convert(plan, tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert names(out.parent) == ["out.gguf", "out.gguf.sha256"]


def test_another_split_is_another_plan(source: Path, out: Path) -> None:
    stopped(plan_of(source), out, split_max_tensors=2)
    with pytest.raises(ConversionError, match="the files of the output"):
        ggplan.convert(plan_of(source), out)
    ggplan.convert(plan_of(source), out, ggplan.ConvertOptions(restart=True))
    assert names(out.parent) == ["out.gguf", "out.gguf.sha256"]


def test_another_version_is_another_plan(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(plan_of(source), out)
    monkeypatch.setattr("ggplan.conversion.fingerprint.__version__", "99.0")
    with pytest.raises(ConversionError, match=r"begun by ggplan [\d.]+, this is 99\.0"):
        ggplan.convert(plan_of(source), out)


def test_a_run_without_a_journal_leaves_nothing(source: Path, out: Path) -> None:
    plan = plan_of(source)
    error = stopped(plan, out, resume=False)
    assert not hasattr(error, "__notes__")
    assert names(out.parent) == []
    ggplan.convert(plan, out, ggplan.ConvertOptions(resume=False))
    assert names(out.parent) == ["out.gguf", "out.gguf.sha256"]


def test_a_run_without_a_journal_does_not_throw_work_away_unasked(source: Path, out: Path) -> None:
    stopped(plan_of(source), out)
    with pytest.raises(ConversionError, match="can be resumed"):
        ggplan.convert(plan_of(source), out, ggplan.ConvertOptions(resume=False))
    ggplan.convert(plan_of(source), out, ggplan.ConvertOptions(resume=False, restart=True))
    assert names(out.parent) == ["out.gguf", "out.gguf.sha256"]


def test_damage_in_one_tensor_costs_that_tensor_only(source: Path, out: Path, tmp_path: Path) -> None:
    plan = plan_of(source)
    ggplan.convert(plan, tmp_path / "whole.gguf")
    stopped(plan, out, after=150_000)
    part = out.with_name("out.gguf.part")
    first = plan.tensors[1]
    data = bytearray(part.read_bytes())
    data[len(plan.header) + first.offset + 5] ^= 1
    part.write_bytes(data)
    kept = ggplan.convert(plan, out).resumed_bytes
    assert 0 < kept <= plan.tensor_bytes - first.n_bytes
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_padding_and_header_are_written_anew(source: Path, out: Path, tmp_path: Path) -> None:
    weights = "blk.0.a.bias"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_tensor(weights, np.ones(3, np.float32))
    writer.add_tensor("blk.0.attn_q.weight", WEIGHTS["blk.0.attn_q.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plan = plan_of(source)
    ggplan.convert(plan, tmp_path / "whole.gguf")
    stopped(plan, out, after=20_000)
    part = out.with_name("out.gguf.part")
    data = bytearray(part.read_bytes())
    data[4] ^= 255
    data[len(plan.header) + 13] = 77  # after 12 bytes of the bias
    part.write_bytes(data + b"more")
    ggplan.convert(plan, out)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_an_old_output_stays_until_the_new_one_is_complete(source: Path, out: Path) -> None:
    out.write_bytes(b"old")
    with pytest.raises(ConversionError, match="exists"):
        ggplan.convert(plan_of(source), out)
    assert names(out.parent) == ["out.gguf"]
    stopped(plan_of(source), out, force=True)
    assert out.read_bytes() == b"old"
    with pytest.raises(ConversionError, match="exists"):
        ggplan.convert(plan_of(source), out)
    assert ggplan.convert(plan_of(source), out, ggplan.ConvertOptions(force=True)).resumed_bytes > 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_disk_that_is_too_small_is_known_at_once(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(out.parent)
    fields = list(real)
    fields[4] = 1  # free blocks for users
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    with pytest.raises(ConversionError, match=r"needs .* KiB and .* has .* free"):
        ggplan.convert(plan_of(source), out)
    assert names(out.parent) == []


@pytest.mark.parametrize("name", ["out.gguf.part", "out.gguf.part.journal", "out.gguf.sha256"])
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_no_name_that_is_written_may_be_an_input(
    source: Path, out: Path, name: str, link: Callable[[Path, Path], None]
) -> None:
    link(source, out.with_name(name))
    before = source.read_bytes()
    with pytest.raises(ConversionError, match="being read"):
        ggplan.convert(plan_of(source), out, ggplan.ConvertOptions(force=True, restart=True))
    assert source.read_bytes() == before


def test_no_file_of_a_set_may_be_an_input(source: Path, tmp_path: Path) -> None:
    ggplan.convert(plan_of(source), tmp_path / "set.gguf", ggplan.ConvertOptions(split_max_tensors=2))
    plan = plan_of(tmp_path / "set-00002-of-00003.gguf")
    with pytest.raises(ConversionError, match="being read"):
        ggplan.convert(plan, tmp_path / "set.gguf", ggplan.ConvertOptions(split_max_tensors=2, force=True))


def test_an_input_that_changes_meanwhile_is_refused(source: Path, out: Path) -> None:
    touched = False

    def touch(n_bytes: int) -> None:
        nonlocal touched
        if not touched:
            os.utime(source, ns=(5, 5))
        touched = True

    with pytest.raises(ggplan.Error, match=r"source\.gguf changed while it was being read"):
        ggplan.convert(plan_of(source), out, progress=touch)
    assert names(out.parent) == []


def test_a_row_that_does_not_fit_the_budget_is_named(source: Path, out: Path) -> None:
    with pytest.raises(PlanError, match=r"a row of 256 weights needs .* more than the 4\.00 KiB"):
        ggplan.convert(plan_of(source), out, ggplan.ConvertOptions(memory=4096))
    assert ggplan.convert(plan_of(source), out, ggplan.ConvertOptions(memory=8192)).n_bytes > 0


def sparse_experts(path: Path, n_experts: int) -> Path:
    """A GGUF of one bf16 tensor, n_experts x 512 x 2048, that takes no room on the disk."""
    writer = gguf.GGUFWriter(path, "llama")
    shape = (n_experts, 512, 2048)
    n_bytes = n_experts * 512 * 2048 * 2
    writer.add_tensor_info(
        "blk.0.ffn_up_exps.weight", shape, np.dtype(np.uint8), n_bytes, gguf.GGMLQuantizationType.BF16
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, (path.stat().st_size + 31) // 32 * 32 + n_bytes)
    return path


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    program = (
        "import sys, resource, ggplan\n"
        "plan = ggplan.make_plan(ggplan.open_model(sys.argv[1]), ggplan.parse_recipe('@default q8_0'))\n"
        "options = ggplan.ConvertOptions(threads=2, memory=64 << 20)\n"
        "ggplan.convert(plan, sys.argv[2], options)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for n_experts in (4, 128):
        source = sparse_experts(tmp_path / f"{n_experts}.gguf", n_experts)
        command = [sys.executable, "-c", program, str(source), str(tmp_path / f"{n_experts}-q8_0.gguf")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.1 * peaks[0]


def test_the_journal_is_read_line_by_line(source: Path, out: Path) -> None:
    stopped(plan_of(source), out)
    journal = out.with_name("out.gguf.part.journal")
    lines = journal.read_bytes().split(b"\n")
    entries = [json.loads(line.rpartition(b" ")[0]) for line in lines if line]
    assert entries[0]["plan"]["ggplan"] == ggplan.__version__
    assert {"file", "tensor", "bytes", "sha256"} == entries[1].keys()
    # Without its first mark, and with a torn last line, the others still count.
    journal.write_bytes(b"\n".join([lines[0], *lines[2:-1], lines[1][:-9]]))
    assert ggplan.convert(plan_of(source), out).resumed_bytes > 0
