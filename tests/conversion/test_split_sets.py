"""Split sets as output and as input."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggplan
from ggplan import make_plan, open_model, parse_recipe
from ggplan.conversion.manifest import read_manifest
from ggplan.errors import CheckpointError, PlanError
from ggplan.model import Model, TensorInfo
from ggplan.planning import Plan
from ggplan.planning.splits import split_path, split_plan

RNG = np.random.default_rng(3)
SIZES = {"a.weight": 40, "b.weight": 100, "c.weight": 10, "d.weight": 10, "e.weight": 200, "f.weight": 5}
WEIGHTS = {name: RNG.standard_normal((rows, 32), np.float32) for name, rows in SIZES.items()}


def write(path: Path, names: list[str], set_: tuple[int, int, int] | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("six")
    if set_:
        writer.add_uint16("split.no", set_[0])
        writer.add_uint16("split.count", set_[1])
        writer.add_int32("split.tensors.count", set_[2])
    for name in names:
        writer.add_tensor(name, WEIGHTS[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source.gguf", list(WEIGHTS))


@pytest.fixture
def plan(source: Path) -> Plan:
    return make_plan(open_model(source), parse_recipe("a.weight = q8_0\n@default f32", "split.recipe"))


def tensors_of(path: Path) -> list[str]:
    return [t.name for t in gguf.GGUFReader(path).tensors]


def value(path: Path, key: str) -> object:
    field = gguf.GGUFReader(path).get_field(key)
    return None if field is None else field.contents()


def row(n: int) -> int:
    """Bytes of so many rows of 32 floats."""
    return n * 128


@pytest.mark.parametrize(
    ("max_bytes", "groups"),
    [
        # a is q8_0: 40 rows of 34 bytes, 1360, with padding 1376; the others are f32
        (1376 + row(100), ["ab", "cd", "e", "f"]),
        (1376 + row(100) - 1, ["a", "bc", "d", "e", "f"]),
        (row(120), ["ab", "cd", "e", "f"]),
        (row(10), ["a", "b", "c", "d", "e", "f"]),
        (10**9, ["abcdef"]),
    ],
)
def test_by_size(plan: Plan, tmp_path: Path, max_bytes: int, groups: list[str]) -> None:
    result = ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(split_max_bytes=max_bytes))
    assert [path.name for path in result.paths] == [
        f"out-{k + 1:05d}-of-{len(groups):05d}.gguf" for k in range(len(groups))
    ]
    found = ["".join(name[0] for name in tensors_of(path)) for path in result.paths]
    assert found == groups


def test_by_number_and_what_each_file_says(plan: Plan, tmp_path: Path) -> None:
    result = ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(split_max_tensors=4))
    assert [tensors_of(path) for path in result.paths] == [list(SIZES)[:4], list(SIZES)[4:]]
    for number, path in enumerate(result.paths):
        assert value(path, "split.no") == number
        assert value(path, "split.count") == 2
        assert value(path, "split.tensors.count") == 6
        assert path.stat().st_size % 32 == 0
    assert value(result.paths[0], "general.name") == "six"
    assert value(result.paths[0], "ggplan.recipe.name") == "split"
    others = gguf.GGUFReader(result.paths[1]).fields
    assert [key for key in others if not key.startswith("GGUF.")] == [
        "split.no", "split.tensors.count", "split.count",
    ]  # fmt: skip


def test_a_set_holds_what_one_file_would(plan: Plan, tmp_path: Path) -> None:
    ggplan.convert(plan, tmp_path / "one.gguf")
    result = ggplan.convert(plan, tmp_path / "set.gguf", ggplan.ConvertOptions(split_max_tensors=2))
    one = {t.name: t.data.tobytes() for t in gguf.GGUFReader(tmp_path / "one.gguf").tensors}
    parts = {t.name: t.data.tobytes() for path in result.paths for t in gguf.GGUFReader(path).tensors}
    assert parts == one
    manifest = read_manifest(tmp_path / "set.gguf.sha256")
    assert result.manifest == manifest.path
    for path in result.paths:
        assert list(manifest.files[path.name].tensors) == list(tensors_of(path))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_file_of_a_set_opens_all_of_it(plan: Plan, tmp_path: Path, number: int) -> None:
    result = ggplan.convert(plan, tmp_path / "set.gguf", ggplan.ConvertOptions(split_max_tensors=2))
    model = open_model(result.paths[number])
    assert [t.name for t in model.tensors] == list(SIZES)
    assert model.files == result.paths
    ggplan.convert(plan, tmp_path / "one.gguf")
    ggplan.convert(make_plan(model), tmp_path / "merged.gguf")
    merged, one = open_model(tmp_path / "merged.gguf"), open_model(tmp_path / "one.gguf")
    assert [(t.name, t.type, bytes(t.stored.read_bytes(0, t.n_rows))) for t in merged.tensors] == [
        (t.name, t.type, bytes(t.stored.read_bytes(0, t.n_rows))) for t in one.tensors
    ]
    assert not any(key.startswith("split.") for key in merged.metadata)


def test_missing_files_are_named(plan: Plan, tmp_path: Path) -> None:
    result = ggplan.convert(plan, tmp_path / "set.gguf", ggplan.ConvertOptions(split_max_tensors=2))
    result.paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 files .* missing: set-00002-of-00003\.gguf"):
        open_model(result.paths[2])


def test_like_the_source(tmp_path: Path) -> None:
    """A set whose first file has no tensors, and whose order is its own."""
    write(tmp_path / "s-00001-of-00003.gguf", [], (0, 3, 6))
    write(tmp_path / "s-00002-of-00003.gguf", ["f.weight", "b.weight"], (1, 3, 6))
    write(tmp_path / "s-00003-of-00003.gguf", ["d.weight", "c.weight", "a.weight", "e.weight"], (2, 3, 6))
    model = open_model(tmp_path / "s-00002-of-00003.gguf")
    plan = make_plan(model, parse_recipe("@default q8_0"))
    result = ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(split_like=model))
    assert ["".join(name[0] for name in tensors_of(path)) for path in result.paths] == ["", "fb", "dcae"]
    assert open_model(result.paths[2]).metadata["general.name"].decode() == "six"


def test_like_a_model_of_one_file(plan: Plan, source: Path, tmp_path: Path) -> None:
    result = ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(split_like=open_model(source)))
    assert result.paths == (tmp_path / "out.gguf",)


def test_like_a_sharded_checkpoint(plan: Plan, tmp_path: Path) -> None:
    """Experts out of several shards count to the first; a shard that is left with nothing has no file."""
    origins = {"a": "1", "b": "1 and 2 more", "c": "3", "d": "3", "e": "computed", "f": "3"}
    tensors = tuple(
        TensorInfo(t.name, t.tensor.shape, t.type, origins[t.name[0]], "BF16") for t in plan.tensors
    )
    like = Model(tmp_path, "hf", "llama", {}, tensors, tuple(tmp_path / number for number in "123"))
    parts = split_plan(plan, like=like)
    assert ["".join(t.name[0] for t in part.tensors) for part in parts] == ["abe", "cdf"]


def test_names_of_sets() -> None:
    for given in ("m.gguf", "m", "m-00002-of-00005.gguf"):
        assert split_path(Path("x") / given, 1, 12) == Path("x/m-00002-of-00012.gguf")


def two_ways(plan: Plan) -> dict[str, object]:
    return {"max_bytes": 100, "max_tensors": 2}


def another_model(plan: Plan) -> dict[str, object]:
    some = plan.model.tensors[1:]
    files = (Path("1"), Path("2"))
    return {"like": Model(Path("other"), "gguf", "llama", {}, some, files)}


@pytest.mark.parametrize(
    ("options", "said"), [(two_ways, "not by two"), (another_model, r"other has no tensor a\.weight")]
)
def test_impossible_splits(plan: Plan, options: Callable[[Plan], dict[str, object]], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        split_plan(plan, **options(plan))


def test_a_manifest_ignores_what_llama_gguf_hash_would(tmp_path: Path) -> None:
    path = tmp_path / "m.sha256"
    path.write_text(f"xxh64     0011223344556677  m.gguf:t\nsha256    {'A' * 64}  m.gguf:t\r\nnonsense\n")
    listed = read_manifest(path).files["m.gguf"]
    assert listed.tensors == {"t": "a" * 64}
    assert listed.header == ""
    path.write_text("nothing of the kind")
    with pytest.raises(CheckpointError, match="not a manifest"):
        read_manifest(path)
