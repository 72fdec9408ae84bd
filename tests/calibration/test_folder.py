"""The folder of a calibration: what goes in comes out in either form, and what is not its own is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from filling import COLUMNS, EXPERTS, SETTINGS, collected, filled, inputs
from program import run

from ggplan import load_imatrix, open_calibration
from ggplan.calibration import Calibration
from ggplan.calibration.run import Run, begin
from ggplan.errors import CalibrationError
from ggplan.imatrix import load_sums
from ggplan.quants.linear_algebra import second_moments

LONG, SHORT = 300, 20
GATE, DOWN = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_down_exps.weight"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Calibration]:
    """A calibration of many tokens, kept as moments, and one of few, kept as rows."""
    return {n: filled(tmp_path_factory.mktemp("calib") / "c", n) for n in (LONG, SHORT)}


def rounded(x: np.ndarray) -> np.ndarray:
    """To bfloat16 and back, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_what_takes_less_room_is_kept(both: dict[int, Calibration]) -> None:
    assert {i.form for i in both[LONG].layers[0].inputs} == {"h"}
    assert [i.form for i in both[SHORT].layers[0].inputs] == ["rows", "rows", "routed", "rows", "rows"]


@pytest.mark.parametrize("n", [LONG, SHORT])
def test_moments_are_those_of_the_inputs(both: dict[int, Calibration], n: int) -> None:
    calibration = both[n]
    shared, routes, own, heads = inputs(n)
    moments = calibration.moments("blk.0.attn_v.weight")
    assert moments is not None
    assert moments.tokens == n
    assert np.array_equal(moments.matrix, second_moments(rounded(shared)))
    for expert in range(EXPERTS - 1):
        came = (routes == expert).any(axis=1)
        for name, rows in [(GATE, shared[came]), (DOWN, own[routes == expert])]:
            found = calibration.moments(name, expert)
            assert found is not None
            assert found.tokens == len(rows) == calibration.tokens(name)[expert]
            assert np.array_equal(found.matrix, second_moments(rounded(np.ascontiguousarray(rows))))
            mean = calibration.column_means(name, expert)
            assert np.allclose(mean, rows.mean(axis=0), atol=1e-6)
    head = calibration.moments("blk.0.attn_k_b.weight", 2)
    assert head is not None
    assert np.allclose(head.matrix, heads[:, 2].T @ heads[:, 2] / n, atol=0.05)


@pytest.mark.parametrize("n", [LONG, SHORT])
def test_experts_without_tokens_and_unknown_tensors(both: dict[int, Calibration], n: int) -> None:
    calibration, last = both[n], EXPERTS - 1
    assert calibration.moments(GATE, last) is None
    assert calibration.column_means(DOWN, last) is None
    assert calibration.tokens("blk.9.attn_q.weight") == ()
    for asked in (calibration.moments, calibration.column_means, calibration.rows):
        with pytest.raises(CalibrationError, match=r"no input of 'blk.9.attn_q.weight' .*blk.0.attn_q"):
            asked("blk.9.attn_q.weight")
        for number in (EXPERTS, -1):
            with pytest.raises(CalibrationError, match=rf"has 4 slices, and slice {number} is none .*0 to 3"):
                asked(GATE, number)
        with pytest.raises(CalibrationError, match=r"has 4 slices .*name one, 0 to 3"):
            asked(GATE)  # not the first of them
        with pytest.raises(CalibrationError, match="has 1 slice, and slice 1 is none of them"):
            asked("blk.0.attn_q.weight", 1)
    with pytest.raises(CalibrationError, match="no input of 'x'"):
        calibration.layer_moments("x")
    whole = calibration.layer_moments(GATE)
    assert whole is not None
    assert whole.tokens == n
    assert calibration.layer_moments(DOWN) is None


@pytest.mark.parametrize("n", [LONG, SHORT])
def test_an_ordinary_imatrix_falls_out(both: dict[int, Calibration], n: int) -> None:
    calibration = both[n]
    shared, routes, own, _ = inputs(n)
    entries = calibration.imatrix.entries
    assert len(entries) == 8
    assert np.allclose(entries["blk.0.attn_q.weight"].values[0], (shared**2).mean(axis=0), rtol=1e-5)
    down = entries[DOWN]
    assert down.counts.tolist() == [int((routes == e).sum()) for e in range(EXPERTS)]
    assert np.allclose(down.values[0], (own[routes == 0] ** 2).mean(axis=0), rtol=1e-5)
    assert (down.values[EXPERTS - 1] == 1).all()
    assert entries["blk.0.attn_k_b.weight"].values.shape == (1, 3 * COLUMNS)
    assert calibration.imatrix.datasets == ("a.txt",)
    assert load_imatrix(calibration.path).path == calibration.path / "imatrix.gguf"


def test_rows_are_open_to_the_library(both: dict[int, Calibration]) -> None:
    file = both[LONG].path / both[LONG].layers[0].name
    tensors = safetensors.numpy.load_file(file)
    assert tensors["0.h"].shape == (1, COLUMNS, COLUMNS)
    rows = both[SHORT].rows("blk.0.attn_q.weight")
    assert rows is not None
    assert np.array_equal(rows, rounded(inputs(SHORT)[0]).view(np.uint32) >> 16)
    assert both[LONG].rows("blk.0.attn_q.weight") is None
    assert both[SHORT].tokens_of_run().tolist() == [list(range(SHORT))]


def test_how_batches_are_parted_makes_no_difference(tmp_path: Path) -> None:
    names = []
    for step in (7, 300):
        folder = tmp_path / str(step)
        folder.mkdir()
        file = collected(LONG, 0, step=step).write(folder, "run")
        tensors = safetensors.numpy.load_file(folder / file.name)
        names.append({name: a for name, a in tensors.items() if name.endswith(".h")})
    assert len(names[0]) == 5
    assert all(np.array_equal(a, names[1][name]) for name, a in names[0].items())


def test_the_same_run_makes_the_same_folder(tmp_path: Path) -> None:
    digests = {filled(tmp_path / name, SHORT, (0, 1)).digest for name in "ab"}
    assert len(digests) == 1
    assert filled(tmp_path / "a", SHORT, (0, 1)).digest in digests  # whole already
    assert filled(tmp_path / "c", SHORT + 8, (0, 1)).digest not in digests


def _delete(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _flip(name: str) -> Callable[[Path], object]:
    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-9] ^= 1
        (folder / name).write_bytes(data)

    return flip


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-5])


def _swap(folder: Path) -> None:
    a, b = folder / "layer-000.safetensors", folder / "layer-001.safetensors"
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)


def _stray(folder: Path) -> None:
    shutil.copy(folder / "layer-000.safetensors", folder / "layer-007.safetensors")


def _edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / "calibration.json").read_text())
        change(index)
        (folder / "calibration.json").write_text(json.dumps(index))

    return edit


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_delete("layer-001.safetensors"), "lacks layer-001.safetensors"),
        (_delete("imatrix.gguf"), "lacks imatrix.gguf"),
        (_delete("tokens.safetensors"), "lacks tokens.safetensors"),
        (_flip("layer-001.safetensors"), "layer-001.safetensors is damaged or of another"),
        (_cut("layer-000.safetensors"), "layer-000.safetensors is damaged or of another calibration: the"),
        (_flip("imatrix.gguf"), "imatrix.gguf is damaged or of another"),
        (_swap, "layer-000.safetensors is damaged or of another"),
        (_stray, "layer-007.safetensors, which is of another calibration"),
        (_delete("calibration.json"), "is not a calibration"),
        (_cut("calibration.json"), "calibration.json is not valid JSON"),
        (_edit(lambda i: i.update(schema="ggplan.calibration/9")), "has the schema 'ggplan.calibration/9'"),
        (_edit(lambda i: i.update(layers=[])), "has no layers"),
        (_edit(lambda i: i["layers"][0].update(file="../x.safetensors")), "which is none of a layer"),
        (_edit(lambda i: i["layers"][0]["inputs"][0].update(tokens=[-1])), "not say what its slices saw"),
        (_edit(lambda i: i["layers"][0]["inputs"][0].update(form="z")), "an unknown form, z"),
        (_edit(lambda i: i["layers"][0]["inputs"][0].pop("name")), "has the wrong members: name"),
        (_edit(lambda i: i["layers"].append(i["layers"][0])), "a tensor or a file twice"),
        (_edit(lambda i: i["layers"][0]["inputs"][0].update(n_columns=64)), "does not hold F32 '0.squares'"),
        (_edit(lambda i: i["imatrix"].update(sha256="x")), "no SHA-256 of imatrix.gguf"),
    ],
)  # fmt: skip
def test_what_is_not_whole_is_refused(
    tmp_path: Path, two_layers: Path, harm: Callable[[Path], object], told: str
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(two_layers, folder)
    harm(folder)
    with pytest.raises(CalibrationError) as refused:
        open_calibration(folder).verify()
    assert told in refused.value.message


@pytest.mark.parametrize("harm", [_cut, _delete])
def test_a_file_that_is_not_whole_is_found_when_the_folder_is_opened(
    tmp_path: Path, two_layers: Path, harm: Callable[[str], Callable[[Path], object]]
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(two_layers, folder)
    harm("layer-001.safetensors")(folder)
    with pytest.raises(CalibrationError, match=r"layer-001\.safetensors"):
        open_calibration(folder)


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a calibration of two layers."""
    return filled(tmp_path_factory.mktemp("two") / "c", SHORT, (0, 1)).path


def test_no_folder_and_an_unfinished_one(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        open_calibration(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="is not a folder"):
        open_calibration(tmp_path / "file")
    begin(tmp_path / "c", SETTINGS)
    with pytest.raises(CalibrationError, match="is not finished"):
        open_calibration(tmp_path / "c")


def test_another_run_is_refused_unless_forced(tmp_path: Path) -> None:
    filled(tmp_path / "c", SHORT)
    with pytest.raises(CalibrationError, match="another calibration: --ctx differ"):
        begin(tmp_path / "c", SETTINGS | {"tokens": SHORT, "n_ctx": 16})
    run = begin(tmp_path / "c", SETTINGS | {"n_ctx": 16}, force=True)
    assert isinstance(run, Run)
    assert sorted(entry.name for entry in (tmp_path / "c").iterdir()) == ["run.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(CalibrationError, match="is not empty and has no calibration"):
        begin(tmp_path / "other", SETTINGS, force=True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("")
    with pytest.raises(CalibrationError, match="c is not a folder"):
        begin(tmp_path / "c", SETTINGS, force=True)


def test_inputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    collector = collected(SHORT)
    collector.add("attn_norm", np.full((0, COLUMNS), np.nan, np.float32))
    collector._inputs["attn_norm"].plain.squares[0, 3] = np.inf  # as from an f16 model that overflows
    with pytest.raises(CalibrationError, match=r"the inputs of 'blk.0.attn_q.weight' are not finite"):
        collector.write(tmp_path, "run")
    assert not list(tmp_path.iterdir())


def test_its_imatrix_is_merged_once(both: dict[int, Calibration], tmp_path: Path) -> None:
    folder = both[SHORT].path
    for files in ((folder, folder), (folder, folder / "imatrix.gguf"), (folder / "imatrix.gguf", folder)):
        done = run("imatrix", "merge", *files, "-o", tmp_path / "twice.gguf")
        assert (done.returncode, "are one imatrix" in done.stderr) == (1, True), done.stderr
    done = run("imatrix", "merge", folder, both[LONG].path, "-o", tmp_path / "both.gguf")
    assert done.returncode == 0, done.stderr
    assert load_sums(tmp_path / "both.gguf").entries["blk.0.attn_q.weight"].counts == LONG + SHORT


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("texts", 5),
        ("texts", ["a.txt"]),
        ("texts", [{"name": 3, "sha256": "0" * 64}]),
        ("texts", [{"name": "a.txt"}]),
        ("tokens", "many"),
        ("tokens", -1),
        ("n_ctx", 0),
        ("n_ctx", 8.5),
        ("chunks", [1]),
        ("model", "m"),
        ("model", {"name": "m", "types": [7]}),
        ("engine", {"name": 1}),
    ],
)
def test_what_it_was_made_of_is_of_the_right_types(
    both: dict[int, Calibration], tmp_path: Path, member: str, value: object
) -> None:
    shutil.copytree(both[SHORT].path, folder := tmp_path / "c")
    index = json.loads((folder / "calibration.json").read_text())
    index["run"][member] = value
    (folder / "calibration.json").write_text(json.dumps(index))
    with pytest.raises(CalibrationError, match=f'calibration.json has a wrong "{member}"'):
        open_calibration(folder)
