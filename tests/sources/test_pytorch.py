"""PyTorch checkpoints: what torch saves is read as it was; what a pickle may try, it tries in vain.

The tests without a mark put a small program in torch's place, so that every answer torch could give is heard.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggplan.errors import CheckpointError
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.pytorch import read_tensors
from ggplan.sources.zip_records import read_records

STAND_IN = """
import sys, types
__version__ = {version!r}
class Tensor:
    pass
strided = "strided"
def load(path, map_location, weights_only):
    assert map_location == "meta" and weights_only is True
    {body}
def entry(**given):
    tensor = Tensor()
    values = dict(layout=strided, is_quantized=False, dtype="torch.float32", shape=(2, 4)) | given
    tensor.__dict__.update({{key: value for key, value in values.items() if key in
        ("layout", "is_quantized", "dtype", "shape")}})
    tensor.dim = lambda: len(tensor.shape)
    tensor.stride = lambda: given.get("stride", (4, 1))
    tensor.storage_offset = lambda: given.get("first", 0)
    nbytes = lambda: given.get("nbytes", 32)
    storage = types.SimpleNamespace(nbytes=nbytes, _checkpoint_offset=given.get("at"))
    tensor.untyped_storage = lambda: storage
    return tensor
"""


def archive(path: Path, members: dict[str, bytes] | None = None) -> Path:
    """A zip with the members of a PyTorch checkpoint."""
    weights = np.arange(8, dtype="<f4").tobytes()
    with zipfile.ZipFile(path, "w") as file:
        for name, data in (
            members or {"m/data.pkl": b".", "m/byteorder": b"little", "m/data/0": weights}
        ).items():
            file.writestr(name, data)
    return path


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a torch of one's own, whose load() does as told."""

    def make(body: str, version: str = "2.10.1+cpu") -> None:
        folder = tmp_path / "stand-in"
        folder.mkdir(exist_ok=True)
        (folder / "torch.py").write_text(STAND_IN.format(body=body, version=version))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return make


def test_an_answer_that_is_sound(tmp_path: Path, stand_in: Any) -> None:
    path = archive(tmp_path / "m.bin")
    at = read_records(path)["m/data/0"].offset
    stand_in(f"return {{'b': entry(at={at}), 'a': entry(shape=(3, 1), stride=(1, 7), first=5, at={at})}}")
    (tensors,) = read_tensors([path])
    assert list(tensors) == ["a", "b"]
    assert tensors["b"].rows().read(0, 2).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert tensors["a"].rows().read(0, 3).tolist() == [[5], [6], [7]]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("entry(at=AT, first=1)", "'x' ends at byte 36 of a storage of 32"),
        ("entry(at=AT, first=-1)", "impossible shape"),
        ("entry(at=AT + 1)", "not a member of the archive"),
        ("entry(at=None)", "not a member of the archive"),
        ("entry(at=AT, nbytes=64)", "not a member of the archive"),
        ("entry(at=0)", "not a member of the archive"),
        ("entry(at=AT, shape=(1 << 62, 1 << 62), stride=(1 << 62, 1))", "ends at byte"),
        ("entry(at=AT, shape=(4, 2), stride=(1, 4))", "does not lie in the order of its rows"),
        ("entry(at=AT, stride=(0, 1))", "does not lie in the order of its rows"),
        ("entry(at=AT, dtype='torch.quint4x2')", "unknown dtype quint4x2"),
        ("entry(at=AT, layout='sparse')", "sparse, quantized or otherwise special"),
        ("entry(at=AT, shape=(1,) * 9, stride=(1,) * 9)", "special tensor"),
        ("[1, 2]", "is not a tensor but a list"),
        ("sys.stdout.write('x')", "could not list its tensors"),
    ],
)
def test_an_answer_that_lies(tmp_path: Path, stand_in: Any, entry: str, said: str) -> None:
    path = archive(tmp_path / "m.bin")
    stand_in("return {'x': " + entry.replace("AT", str(read_records(path)["m/data/0"].offset)) + "}")
    with pytest.raises(CheckpointError, match=said) as caught:
        read_tensors([path])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('a\\x1b[31m\\nb')", r"torch refuses its pickle: a\\x1b\[31m \(help: "),
        ("return [1]", "it holds a list, not tensors by name"),
        ("return {1: entry()}", "names are not strings"),
        ("import os; os.kill(os.getpid(), 11)", "could not list its tensors"),
        ("import os; os._exit(0)", "could not list its tensors"),
        ("print('[' * 100000); import os; sys.stdout.flush(); os._exit(0)", "could not list its tensors"),
        ("return bytearray(1 << 40)", "torch refuses its pickle"),
    ],
)
def test_a_torch_that_fails(tmp_path: Path, stand_in: Any, body: str, said: str) -> None:
    stand_in(body)
    with pytest.raises(CheckpointError, match=said):
        read_tensors([archive(tmp_path / "m.bin")])


@pytest.mark.parametrize(
    ("version", "taken"),
    [("2.9.1", False), ("1.13.0", False), ("x", False), ("2.10.0a0", True), ("3.0", True)],
)
def test_old_versions_are_refused(tmp_path: Path, stand_in: Any, version: str, taken: bool) -> None:
    stand_in("return {}", version)
    path = archive(tmp_path / "m.bin")
    if taken:
        assert read_tensors([path]) == [{}]
        return
    with pytest.raises(
        CheckpointError, match=rf"needs torch 2\.10 or later; {version} is installed"
    ) as caught:
        read_tensors([path])
    assert "ggplan[torch]" in caught.value.hint


def test_no_torch_at_all(tmp_path: Path, stand_in: Any) -> None:
    stand_in("pass")
    (tmp_path / "stand-in" / "torch.py").write_text("raise ImportError('No module named torch')")
    with pytest.raises(CheckpointError, match=r"reading a \.bin checkpoint needs torch") as caught:
        read_tensors([archive(tmp_path / "m.bin")])
    assert "ggplan[torch]" in caught.value.hint


def test_a_torch_in_the_checkpoint_is_not_imported(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("return {}")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("torch", "json", "re", "numpy", "contextlib"):
        (model / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(model)
    monkeypatch.setenv(
        "PYTHONPATH", os.environ["PYTHONPATH"] + os.pathsep
    )  # an empty entry is the working folder
    assert read_tensors([archive(model / "m.bin")]) == [{}]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"m/data/0": b"x"}, "not a PyTorch checkpoint"),
        ({"m/data.pkl": b".", "n/data.pkl": b"."}, "not a PyTorch checkpoint"),
        ({"m/data.pkl": b".", "m/byteorder": b"big"}, "not little-endian"),
    ],
)
def test_archives_that_hold_none(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_tensors([archive(tmp_path / "m.bin", members)])


class Runs:
    """A pickle that runs a command when it is opened."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_bare_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Runs(f"touch {tmp_path}/ran"), protocol=2))
    with pytest.raises(CheckpointError, match=r"is a bare pickle, as PyTorch saved them before 1\.6"):
        read_tensors([path])
    assert not (tmp_path / "ran").exists()


def save(path: Path, tensors: object) -> Path:
    import torch

    torch.save(tensors, path)
    return path


@pytest.mark.oracle
def test_what_torch_saves(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    base = torch.randn(10, 20)
    kinds = {
        "f32": base,
        "tied": base,
        "parameter": torch.nn.Parameter(torch.randn(3, 5)),
        "f16": torch.randn(4, 7).half(),
        "bf16": torch.randn(4, 7).bfloat16(),
        "fp8": torch.randn(4, 8).to(torch.float8_e4m3fn),
        "rows": base[2:5],
        "row": base[7],
        "scalar": torch.tensor(3.5),
        "one_row": base.T[3:4, :1],
    }
    (found,) = read_tensors([save(tmp_path / "m.bin", kinds)])
    assert list(found) == sorted(kinds)
    for name, tensor in kinds.items():
        assert found[name].shape == tuple(tensor.shape)
        rows = found[name].read_floats(0, found[name].n_weights)
        theirs = tensor.detach().float().numpy().reshape(rows.shape)
        assert np.array_equal(rows.view(np.uint32), theirs.view(np.uint32)), name
    assert found["tied"].offset == found["f32"].offset


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda torch: {"t": torch.randn(4, 6).T}, "does not lie in the order of its rows"),
        (lambda torch: {"t": torch.randn(4, 6)[:, :3]}, "does not lie in the order"),
        (lambda torch: {"t": torch.zeros(1).expand(1000)}, "does not lie in the order"),
        (lambda torch: {"t": torch.eye(4).to_sparse()}, "sparse, quantized or otherwise special"),
        (lambda torch: {"state_dict": {"t": torch.ones(2)}}, "'state_dict' is not a tensor but a dict"),
        (lambda torch: {"t": torch.ones(2), "epoch": 3}, "'epoch' is not a tensor but a int"),
        (lambda torch: torch.ones(2), "it holds a Tensor, not tensors by name"),
        (lambda torch: torch.nn.Linear(2, 2), "torch refuses its pickle: Weights only load failed"),
    ],
)
def test_what_is_not_a_plain_state(tmp_path: Path, make: Any, said: str) -> None:
    import torch

    with pytest.raises(CheckpointError, match=said):
        read_tensors([save(tmp_path / "m.bin", make(torch))])


@pytest.mark.oracle
def test_the_form_before_1_6(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "m.bin"
    torch.save({"t": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="is a bare pickle"):
        read_tensors([path])


def repacked(path: Path, changes: dict[str, bytes]) -> Path:
    """An archive of torch's with members replaced, stored anew."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    prefix = next(iter(members)).partition("/")[0]
    return archive(path, members | {f"{prefix}/{name}": data for name, data in changes.items()})


def bomb(opcodes: bytes) -> bytes:
    return b"\x80\x02" + opcodes + b"."


@pytest.mark.oracle
@pytest.mark.parametrize(
    "attack",
    [
        pickle.dumps(Runs("touch RAN"), protocol=2),
        pickle.dumps(Runs("touch RAN"), protocol=4),
        bomb(b"cposix\nsystem\nX\x09\x00\x00\x00touch RAN\x85R"),
        bomb(b"cbuiltins\nexec\nX\x11\x00\x00\x00open('RAN', 'w')\x20\x85R"),
        bomb(b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R"),  # 2^40 bytes
        bomb(b"]r\xff\xff\xff\x7f"),  # a memo of 2^31 places, of a list
        bomb(b"(" * 1000000),
        bomb(b"X\xff\xff\xff\xffabc"),
        b"",
        b"\x80",
        b"\x00" * 100,
    ],
    ids=lambda attack: repr(attack[:24]),
)
def test_hostile_pickles(tmp_path: Path, attack: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    path = repacked(save(tmp_path / "m.bin", {"t": torch.ones(2)}), {"data.pkl": attack})
    with pytest.raises(CheckpointError) as caught:
        read_tensors([path])
    assert str(caught.value).isprintable()
    assert not os.path.exists("RAN")
    assert not os.path.exists("/RAN")  # the process apart works in the root


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("shape", "stride", "first", "numel"),
    [
        ((2, 4), (4, 1), 1, 8),
        ((1 << 40, 4), (4, 1), 0, 8),
        ((2, 4), (4, 1), 0, 1 << 40),
        ((2, 4), (4, 1), -4, 8),
    ],
)
def test_storages_that_lie(tmp_path: Path, shape: Any, stride: Any, first: int, numel: int) -> None:
    """A tensor larger than its storage, or a storage larger than its member."""
    import torch

    path = save(tmp_path / "m.bin", {"t": torch.arange(8.0).reshape(2, 4)})

    class Storage:
        pass

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(obj, Storage) else None

    class Rebuilt:
        def __reduce__(self) -> tuple[Any, ...]:
            arguments = (Storage(), first, shape, stride, False, __import__("collections").OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    import io

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"t": Rebuilt()})
    with pytest.raises(CheckpointError, match=r"m\.bin"):
        read_tensors([repacked(path, {"data.pkl": buffer.getvalue()})])


@pytest.mark.oracle
def test_shards_with_an_index_give_what_safetensors_give(tmp_path: Path) -> None:
    import torch

    config = {"model_type": "llama"}
    weights = {name: torch.randn(3, 8).bfloat16() for name in ("a", "b", "c")}
    shards = {"pytorch_model-00001-of-00002.bin": ["c", "a"], "pytorch_model-00002-of-00002.bin": ["b"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "training_args.bin").write_bytes(b"not to be opened")
    for shard, names in shards.items():
        save(tmp_path / shard, {name: weights[name] for name in names})
    for indexed in (False, True):
        if indexed:
            weight_map = {name: shard for shard, names in shards.items() for name in names}
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        tensors = open_checkpoint(tmp_path).tensors
        assert {name: tensor.file.name for name, tensor in tensors.items()} == {
            name: shard for shard, names in shards.items() for name in names
        }
        assert all(
            np.array_equal(tensors[n].rows.read_float32(0, 3), weights[n].float().numpy()) for n in weights
        )
    weight_map["b"] = "../pytorch_model-00002-of-00002.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="no plain name of a PyTorch file"):
        open_checkpoint(tmp_path)
