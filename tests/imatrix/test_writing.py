"""Imatrix files are written as llama-imatrix writes them, merged by counts, and looked into."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from program import run

import ggplan
from ggplan.errors import ImatrixError
from ggplan.imatrix import ImatrixSums, Sums, load_imatrix, load_sums, write_imatrix
from ggplan.imatrix.coverage import coverage_of
from ggplan.imatrix.merging import Source, merged, with_policy

DEMO = Path(ggplan.__file__).parent / "demo_model"
RNG = np.random.default_rng(7)
UP = "blk.0.ffn_up_exps.weight"
DOWN = "blk.0.ffn_down_exps.weight"


def sums(**counts: list[int]) -> ImatrixSums:
    """An imatrix of a dense weight and of experts of 8 columns, with these counts."""
    entries = {}
    for name, found in {"q": [1024], "up": [900, 0, 124], **counts}.items():
        squares = RNG.random((len(found), 8), np.float32) * np.array(found, np.float32)[:, None]
        entries[{"q": "blk.0.attn_q.weight", "up": UP, "down": DOWN}[name]] = Sums(squares, np.array(found))
    return ImatrixSums(("calib.txt",), 512, entries)


def test_the_gguf_form_as_another_reader_finds_it(tmp_path: Path) -> None:
    given = sums()
    write_imatrix(given, tmp_path / "i.gguf")
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["calib.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [
        "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts", f"{UP}.in_sum2", f"{UP}.counts",
    ]  # fmt: skip
    assert found[f"{UP}.in_sum2"].shape.tolist() == [8, 3]
    assert found[f"{UP}.counts"].shape.tolist() == [1, 3]
    assert found["blk.0.attn_q.weight.in_sum2"].shape.tolist() == [8]  # as ggml leaves out ones at the end
    assert np.array_equal(found[f"{UP}.in_sum2"].data, given.entries[UP].squares)
    assert found[f"{UP}.counts"].data.ravel().tolist() == [900, 0, 124]


def test_the_legacy_form_byte_by_byte(tmp_path: Path) -> None:
    squares = np.array([[4, 8], [3, 3], [1, 2]], np.float32)
    entries = {
        "b": Sums(squares, np.array([1025, 0, 4])),
        "a": Sums(np.array([[6, 9]], np.float32), np.array([3])),
        "nothing": Sums(np.zeros((1, 2), np.float32), np.array([0])),
    }
    write_imatrix(ImatrixSums(("x.txt", "y.txt"), 512, entries), tmp_path / "i.dat")
    f32 = np.float32
    b = [f32(4) / f32(1025) * f32(3), f32(8) / f32(1025) * f32(3), 3, 3, 0.75, 1.5]
    assert (tmp_path / "i.dat").read_bytes() == (
        struct.pack("<i", 2)
        + struct.pack("<i1sii2f", 1, b"a", 1, 2, 2, 3)
        + struct.pack("<i1sii6f", 1, b"b", 3, 6, *b)
        + struct.pack("<ii5s", 2, 5, b"y.txt")
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    given = sums(down=[3, 0, 1021])
    write_imatrix(given, tmp_path / "i.gguf")
    again = load_sums(tmp_path / "i.gguf")
    assert (again.datasets, again.chunk_size, again.chunk_count) == (("calib.txt",), 512, 2)
    for name in given.names:
        assert np.array_equal(again.entries[name].squares, given.entries[name].squares)
        assert np.array_equal(again.entries[name].counts, given.entries[name].counts)
    write_imatrix(again, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "i.gguf").read_bytes()
    write_imatrix(again, tmp_path / "i.dat")
    means, legacy = (load_imatrix(tmp_path / name).entries[DOWN].values for name in ("i.gguf", "i.dat"))
    assert np.allclose(legacy.reshape(3, 8), means, rtol=1e-6)
    write_imatrix(load_sums(tmp_path / "i.dat"), tmp_path / "back.gguf")
    assert np.allclose(load_imatrix(tmp_path / "back.gguf").entries[DOWN].values, legacy, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, -1, np.inf])
def test_nothing_is_written_of_wrong_sums(tmp_path: Path, bad: float) -> None:
    given = sums()
    given.entries[UP].squares[2, 1] = bad
    with pytest.raises(ImatrixError, match=f"'{UP}' has sums that are negative or not finite"):
        write_imatrix(given, tmp_path / "i.gguf")
    with pytest.raises(ImatrixError, match="no entry"):
        write_imatrix(ImatrixSums((), 512, {}), tmp_path / "i.gguf")
    with pytest.raises(ImatrixError, match="cannot write"):
        write_imatrix(sums(), tmp_path / "none" / "i.gguf")
    assert not list(tmp_path.iterdir())


def test_files_are_merged_by_their_counts() -> None:
    a, b = sums(), sums(up=[100, 512, 0], down=[1, 1, 1])
    found = merged([Source("a", a), Source("b", b)])
    assert found.entries[UP].counts.tolist() == [1000, 512, 124]
    assert np.allclose(found.entries[UP].squares, a.entries[UP].squares + b.entries[UP].squares)
    assert found.entries[DOWN] is b.entries[DOWN]
    assert found.datasets == ("calib.txt", "calib.txt")
    assert found.chunk_count == 4


def test_a_count_for_all_experts_goes_to_each() -> None:
    flat = ImatrixSums(("old",), 512, {UP: Sums(np.ones((1, 24), np.float32), np.array([512]))})
    for both in ([Source("a", sums()), Source("old", flat)], [Source("old", flat), Source("a", sums())]):
        found = merged(both).entries[UP]
        assert found.counts.tolist() == [1412, 512, 636]
        assert found.squares.shape == (3, 8)


def test_what_does_not_fit_together_is_refused() -> None:
    other = ImatrixSums((), 512, {UP: Sums(np.ones((3, 4), np.float32), np.array([1, 1, 1]))})
    with pytest.raises(ImatrixError, match=f"'{UP}' has 24 values in a and 12 in b"):
        merged([Source("a", sums()), Source("b", other)])
    two = ImatrixSums((), 512, {UP: Sums(np.ones((2, 12), np.float32), np.array([1, 1]))})
    with pytest.raises(ImatrixError, match="3 and 2 matrices"):
        merged([Source("a", sums()), Source("b", two)])


def test_the_policy_for_experts_without_data(tmp_path: Path) -> None:
    given = sums(down=[5, 0, 5])
    assert with_policy(given, "ones") is given
    found = with_policy(given, "mean")
    up = found.entries[UP]
    assert up.counts.tolist() == [900, 1, 124]
    assert np.allclose(up.means()[1], given.entries[UP].squares.sum(axis=0) / 1024)
    assert found.entries[DOWN].counts.tolist() == [5, 0, 5]  # each has its own input
    write_imatrix(found, tmp_path / "i.gguf")
    assert load_sums(tmp_path / "i.gguf").unseen == ("mean", f"{UP}: 1")


def test_what_a_policy_filled_in_is_never_added_as_measured(tmp_path: Path) -> None:
    filled, seen = with_policy(given := sums(), "mean"), sums(up=[8, 600, 8])
    a, again, b, both, plain = (tmp_path / f"{i}.gguf" for i in range(5))
    write_imatrix(filled, a)
    write_imatrix(seen, b)
    write_imatrix(given, plain)
    assert run("imatrix", "merge", a, "-o", again).returncode == 0
    assert again.read_bytes() == a.read_bytes()  # the record stays, the mean is made again
    assert run("imatrix", "merge", a, b, "-o", both).returncode == 0
    assert load_sums(both).unseen == ()  # every expert was seen now
    added = merged([Source("plain", given), Source("seen", seen)])
    assert np.array_equal(load_sums(both).entries[UP].squares, added.entries[UP].squares)
    assert load_sums(both).entries[UP].counts.tolist() == [908, 600, 132]
    assert run("imatrix", "merge", a, "--unseen", "ones", "-o", again, "--force").returncode == 0
    assert again.read_bytes() == plain.read_bytes()
    told = run("imatrix", "merge", a, "-o", tmp_path / "a.dat").stderr
    assert "the legacy form cannot say so" in told


@pytest.mark.parametrize("record", ["blk.9.x: 1", f"{UP}: 7", f"{UP}: 0", f"{UP}: one", UP])
def test_a_record_of_a_policy_that_does_not_fit_is_refused(record: str) -> None:
    wrong = replace(with_policy(sums(), "mean"), unseen=("mean", record))
    with pytest.raises(ImatrixError, match="does not fit"):
        merged([Source("a.gguf", wrong)])
    with pytest.raises(ImatrixError, match="does not know: median"):
        merged([Source("a.gguf", replace(wrong, unseen=("median",)))])


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_counts_beyond_a_form_are_refused(tmp_path: Path, form: str) -> None:
    given = sums(q=[1 << 45])
    write_imatrix(replace(given, chunk_size=1 << 20), tmp_path / "large.gguf")
    raw = (tmp_path / "large.gguf").read_bytes()
    small = raw.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 512), 1)
    (tmp_path / "damaged.gguf").write_bytes(small)
    done = run("imatrix", "merge", tmp_path / "damaged.gguf", "-o", tmp_path / f"out.{form}")
    assert done.returncode == 1
    assert f"'blk.0.attn_q.weight' has a count of {1 << 45:,} tokens" in done.stderr
    assert not (tmp_path / f"out.{form}").exists()
    with pytest.raises(ImatrixError, match="chunks of 4,294,967,296 tokens"):
        write_imatrix(replace(sums(), chunk_size=1 << 32), tmp_path / "out", "gguf")


def test_coverage() -> None:
    squares = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 97, 1, 1]], np.float32)
    (found,) = coverage_of(ImatrixSums((), 512, {UP: Sums(squares, np.array([9, 0, 99]))}))
    assert (found.without_data, found.with_few()) == ((1,), (0,))
    assert found.half == (2, 0, 1)
    assert (found.column[2], found.dominated) == (1, (2,))
    assert found.share == pytest.approx((0.25, 0, 0.97))


def of_experts(tmp_path: Path) -> tuple[Path, Path]:
    """An imatrix of a layer with a router and three experts, in both forms; one column dominates."""
    rng = np.random.default_rng(3)
    up, down = rng.random((3, 8)).astype(np.float32) + 1, rng.random((3, 5)).astype(np.float32) + 1
    down[1, 4] = 100
    entries = {
        "blk.0.ffn_gate_inp.weight": Sums(rng.random((1, 8)).astype(np.float32), np.array([1024])),
        UP: Sums(up * 300, np.array([300, 1, 723])),
        DOWN: Sums(down * 300, np.array([300, 300, 424])),
    }
    paths = tmp_path / "e.gguf", tmp_path / "e.dat"
    for path in paths:
        write_imatrix(ImatrixSums(("calib.txt",), 512, entries), path)
    return paths


def test_experts_of_the_legacy_form_are_told_apart(tmp_path: Path) -> None:
    """They stand in one row with one count; as one matrix no column of theirs would dominate."""
    gguf, dat = of_experts(tmp_path)
    (new, old) = ({c.name: c for c in coverage_of(load_sums(path))} for path in (gguf, dat))
    for name in (UP, DOWN):
        assert old[name].n_columns == new[name].n_columns
        assert old[name].column == new[name].column
        assert old[name].share == pytest.approx(new[name].share, rel=1e-5)
        assert len(old[name].counts) == 1
        assert old[name].is_counted_as_one
        assert not new[name].is_counted_as_one
    done = run("imatrix", "inspect", dat)
    assert "blk.0.ffn_down_exps.weight, expert 1: column 4 has 9" in done.stdout
    assert "one count for all experts of a layer, so what each of them saw" in done.stderr
    row = next(line.split() for line in done.stdout.splitlines() if "down_exps" in line)
    assert row.count("?") == 5, "what each of them saw is not known"
    seen = run("imatrix", "inspect", gguf)
    assert "one count" not in seen.stderr
    assert "?" not in seen.stdout
    sums = load_sums(dat)
    without = replace(sums, entries={name: sums.entries[name] for name in (UP, DOWN)})
    assert [c.n_columns for c in coverage_of(without)] == [15, 24], "without a router nothing tells"


def test_merge_tells_of_counts_that_are_not_each_experts_own(tmp_path: Path) -> None:
    gguf, dat = of_experts(tmp_path)
    told = run("imatrix", "merge", gguf, dat, "-o", tmp_path / "both.gguf").stderr
    assert f"{dat}: 2 tensors ({DOWN}, {UP}): one count for all experts; each is taken to have seen" in told
    told = run("imatrix", "merge", gguf, "-o", tmp_path / "again.dat").stderr
    assert "the legacy form has one count for all experts" in told
    assert "one count" not in run("imatrix", "merge", gguf, "-o", tmp_path / "again.gguf").stderr
    assert run("imatrix", "merge", gguf, dat, "-q", "-o", tmp_path / "quiet.gguf").stderr == ""


def test_what_is_no_imatrix_says_what_makes_one(tmp_path: Path) -> None:
    (other := tmp_path / "x.dat").write_bytes(b"\x53\xf1\x08\xb8" + bytes(99))
    done = run("imatrix", "inspect", other)
    assert done.returncode == 1
    assert "is not an imatrix, or is damaged: read as one, it would have -1,207," in done.stderr
    assert "help: `ggplan calibrate --imatrix-only` and llama-imatrix make one" in done.stderr


def test_inspect(tmp_path: Path) -> None:
    write_imatrix(sums(down=[5, 0, 1000]), path := tmp_path / "i.gguf")
    done = run("imatrix", "inspect", path)
    assert done.returncode == 0
    assert "3 entries, 2 chunks of 512 tokens of calib.txt" in done.stdout
    assert "blk.*.ffn_up_exps.weight" in done.stdout
    assert (
        "2 of 6 matrices of experts saw no token (blk.0.ffn_down_exps.weight: 1; blk.0.ffn_up_exps.weight: 1)"
        in done.stderr
    )
    assert "1 of 6 matrices of experts saw fewer than 2.5 tokens a column" in done.stderr
    told = json.loads(run("imatrix", "inspect", path, "--json").stdout)
    assert told["schema"] == "ggplan.imatrix/1"
    assert [e["tokens"] for e in told["entries"]] == [[1024], [5, 0, 1000], [900, 0, 124]]
    (tmp_path / "x").write_bytes(b"GGUF....")
    assert run("imatrix", "inspect", tmp_path / "x").returncode == 1


def test_merge(tmp_path: Path) -> None:
    a, b, both = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "both.gguf"
    write_imatrix(sums(), a)
    write_imatrix(sums(), b)
    done = run("imatrix", "merge", a, b, "-o", both)
    assert done.returncode == 0, done.stderr
    assert "2 entries of 2 files" in done.stderr
    assert load_sums(both).entries[UP].counts.tolist() == [1800, 0, 248]
    again = run("imatrix", "merge", a, b, "-o", both)
    assert (again.returncode, "exists" in again.stderr) == (1, True)
    assert run("imatrix", "merge", both, "-o", tmp_path / "both.dat", "-q").stderr == ""
    assert (tmp_path / "both.dat").read_bytes()[:4] == struct.pack("<i", 2)
    assert run("imatrix", "merge", both, "--format", "dat", "-o", both, "--force").returncode == 0
    assert both.read_bytes() == (tmp_path / "both.dat").read_bytes()
    twice = run("imatrix", "merge", a, tmp_path / "." / "a.gguf", "-o", tmp_path / "c.gguf")
    assert (twice.returncode, "are one imatrix" in twice.stderr) == (1, True)
    assert run("imatrix", "merge", a, "--unseen", "mean", "-o", tmp_path / "m.gguf").returncode == 0
    assert load_sums(tmp_path / "m.gguf").entries[UP].counts.tolist() == [900, 1, 124]


def test_check(tmp_path: Path) -> None:
    model = ggplan.open_model(DEMO)
    entries = {}
    for tensor in model.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            n = tensor.n_weights // tensor.shape[-2]
            slices = n // tensor.n_columns
            counts = np.full(slices, 5000, np.int64)
            entries[tensor.name] = Sums(np.ones((slices, tensor.n_columns), np.float32), counts)
    entries["blk.1.ffn_up_exps.weight"].counts[3] = 0
    write_imatrix(ImatrixSums(("t",), 512, entries), path := tmp_path / "i.gguf")
    done = run("imatrix", "check", path, DEMO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "experts saw no token (blk.1.ffn_up_exps.weight: 3)" in done.stderr
    wrong = entries | {"blk.0.attn_k.weight": Sums(np.ones((1, 5), np.float32), np.array([9]))}
    wrong["blk.77.attn_k.weight"] = wrong.pop("blk.0.attn_q.weight")
    write_imatrix(ImatrixSums(("t",), 512, wrong), path)
    done = run("imatrix", "check", path, DEMO)
    assert done.returncode == 1
    assert "without an entry, so without importance: blk.0.attn_q.weight" in done.stdout
    assert "the model has no such tensor: blk.77.attn_k.weight" in done.stdout
    assert "blk.0.attn_k.weight (5 values," in done.stdout
    told = json.loads(run("imatrix", "check", path, DEMO, "--json", "-q").stdout)
    assert (told["fits"], told["missing"]) == (False, ["blk.0.attn_q.weight"])
