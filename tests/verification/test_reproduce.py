"""Files made again from their checkpoints: equal, or what differs is named."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from program import run
from sound_files import WEIGHTS, write_converted, write_manifest, write_source

import ggplan
from ggplan.conversion.input_hashes import recorded_inputs, with_input_hashes
from ggplan.errors import PlanError
from ggplan.imatrix import load_imatrix
from ggplan.metadata import string
from ggplan.sources.gguf_header import read_header
from ggplan.verification.reproducing import describe_input, reproduce

QUERY = "blk.0.attn_q.weight"
UP = "blk.0.ffn_up_exps.weight"


def write_imatrix(path: Path, scale: float = 1.0) -> Path:
    writer = gguf.GGUFWriter(path, arch="imatrix")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_tensor(f"{QUERY}.in_sum2", (scale + np.arange(256, dtype=np.float32)).reshape(1, 256))
    writer.add_tensor(f"{QUERY}.counts", np.full((1, 1), 512, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def flip(path: Path, tensor: str) -> None:
    """A bit of a tensor, and a manifest that does not give it away."""
    recorded = (path.parent / f"{path.name}.sha256").read_text()
    data = bytearray(path.read_bytes())
    record = next(t for t in read_header(path).tensors if t.name == tensor)
    data[record.offset + record.n_bytes - 1] ^= 1
    path.write_bytes(data)
    sources = [line for line in recorded.splitlines() if line.startswith("source-rows")]
    manifest = write_manifest(path)
    manifest.write_text(manifest.read_text() + "".join(line + "\n" for line in sources))


@pytest.mark.parametrize("options", [{}, {"fallback": "ik"}, {"nonfinite": "zero"}, {"effort": "best"}])
def test_a_file_is_made_again_from_itself_and_its_checkpoint(tmp_path: Path, options: dict[str, str]) -> None:
    source, path = write_converted(tmp_path, **options)
    found = reproduce(path, ggplan.open_model(source), output=tmp_path / "again.gguf")
    assert found.is_equal
    assert found.inputs == ()
    assert found.output == tmp_path / "again.gguf"
    assert found.output.read_bytes() == path.read_bytes()
    assert found.n_tensors == len(WEIGHTS)


def test_kept_infinities_are_no_fault(tmp_path: Path) -> None:
    weights = {**WEIGHTS, "output_norm.weight": np.full(250, np.inf, np.float32)}
    source = write_source(tmp_path / "source.gguf", weights)
    plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe("@default bf16"), nonfinite="keep")
    path = ggplan.convert(plan, tmp_path / "out.gguf").path
    assert reproduce(path, ggplan.open_model(source)).is_equal


@pytest.mark.parametrize("how", [{"split_max_tensors": 2}, {"split_max_bytes": 4000}, {"like": True}])
def test_a_split_set(tmp_path: Path, how: dict[str, object]) -> None:
    source = write_source(tmp_path / "source.gguf")
    plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe("@default q8_0 | bf16"))
    if how.pop("like", False):
        parts = ggplan.convert(plan, tmp_path / "parts.gguf", ggplan.ConvertOptions(split_max_tensors=2))
        how = {"split_like": ggplan.open_model(parts.path)}
    result = ggplan.convert(plan, tmp_path / "out.gguf", ggplan.ConvertOptions(**how))
    assert len(result.paths) > 1
    found = reproduce(result.paths[-1], ggplan.open_model(source))
    assert found.is_equal, found.faults
    assert found.files == result.paths
    first = result.paths[0].read_bytes()
    result.paths[0].write_bytes(first.replace(b"tiny", b"tinY", 1))
    faults = {fault.message for fault in reproduce(result.paths[-1], ggplan.open_model(source)).faults}
    assert "the key general.name differs from the plan's" in faults


def test_tampered_bytes_are_told_from_other_weights(tmp_path: Path) -> None:
    source, path = write_converted(tmp_path)
    flip(path, QUERY)
    (fault,) = reproduce(path, ggplan.open_model(source)).faults
    assert fault.where == QUERY
    assert fault.message == (
        "row 5 is not what the plan encodes, though its weights are those it was made of, by the manifest"
    )
    (tmp_path / "other").mkdir()
    _, path = write_converted(tmp_path / "other")
    weights = {**WEIGHTS, QUERY: WEIGHTS[QUERY] * 2}
    other = write_source(tmp_path / "finetuned.gguf", weights)
    found = reproduce(path, ggplan.open_model(other))
    assert not found.is_equal
    # Names, shapes and types are the same; only reading the weights tells.
    assert found.inputs == ()
    (fault,) = found.faults
    assert "and its weights in the checkpoint are not those it was made of" in fault.message


def test_inputs_that_differ_are_named(tmp_path: Path) -> None:
    source, path = write_converted(tmp_path)
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(source.read_bytes().replace(b"token 4", b"tokan 4"))
    found = reproduce(path, ggplan.open_model(renamed))
    assert [difference.name for difference in found.inputs or ()] == ["metadata"]
    assert [fault.message for fault in found.faults] == [
        "the key tokenizer.ggml.tokens differs from the plan's"
    ]
    assert describe_input(found.inputs[0], renamed) == "the metadata is not what the file was made from"
    fewer = {name: values for name, values in WEIGHTS.items() if name != UP}
    found = reproduce(path, ggplan.open_model(write_source(tmp_path / "fewer.gguf", fewer)))
    assert [difference.name for difference in found.inputs or ()] == ["tensors"]
    assert (UP, "the file has it, the plan does not") in {(f.where, f.message) for f in found.faults}


def test_the_imatrix_is_known_by_its_hash(tmp_path: Path) -> None:
    one, other = write_imatrix(tmp_path / "i.gguf"), write_imatrix(tmp_path / "j.gguf", scale=2)
    source, path = write_converted(tmp_path, imatrix=load_imatrix(one))
    model = ggplan.open_model(source)
    with pytest.raises(PlanError, match=r"made with the imatrix i\.gguf"):
        reproduce(path, model)
    done = run("reproduce", path, source)
    assert done.returncode == 2
    assert done.stderr.count("help: ") == 1, "one help, that of the error"
    assert "--imatrix" in done.stderr
    assert reproduce(path, model, imatrix=load_imatrix(one)).is_equal
    renamed = one.rename(tmp_path / "k.gguf")
    found = reproduce(path, model, imatrix=load_imatrix(renamed))
    assert found.inputs == ()
    other.rename(one)
    found = reproduce(path, model, imatrix=load_imatrix(one))
    assert [difference.name for difference in found.inputs or ()] == ["imatrix"]


def test_another_version_is_judged_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = write_converted(tmp_path)
    older = path.read_bytes().replace(ggplan.__version__.encode(), b"9" * len(ggplan.__version__), 1)
    path.write_bytes(older)
    (tmp_path / "out.gguf.sha256").unlink()
    found = reproduce(path, ggplan.open_model(source), output=tmp_path / "again.gguf")
    assert found.is_equal, found.faults
    assert (tmp_path / "again.gguf").read_bytes() == older


def test_the_fingerprint_of_the_plan(tmp_path: Path) -> None:
    """It changes with the recipe, not with the version; and tampering with any key shows."""
    source = write_source(tmp_path / "source.gguf")
    model = ggplan.open_model(source)
    plans = [
        ggplan.make_plan(model, ggplan.parse_recipe(text, "r")) for text in ("@default bf16", "@default f16")
    ]
    first, second = map(plan_sha256, plans)
    assert len(first) == 64
    assert first != second
    assert first == plan_sha256(ggplan.make_plan(model, plans[0].recipe))
    plans[0].metadata["ggplan.version"] = string("another")
    assert plan_sha256(plans[0]) == first


def test_a_plan_keeps_the_place_of_hashes_and_reads_no_input(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source.gguf")
    imatrix = load_imatrix(write_imatrix(tmp_path / "i.gguf"))
    recipe = ggplan.parse_recipe("@default q8_0 | bf16")
    plan = ggplan.make_plan(ggplan.open_model(source), recipe, imatrix=imatrix)
    assert set((recorded_inputs(plan.metadata) or {}).values()) == {"0" * 64}
    hashed = with_input_hashes(plan)
    found = recorded_inputs(hashed.metadata)
    assert found is not None
    assert sorted(found) == ["imatrix", "metadata", "tensors"]
    assert "0" * 64 not in found.values()
    assert len(hashed.header) == len(plan.header)
    assert with_input_hashes(hashed) is hashed
    path = ggplan.convert(plan, tmp_path / "out.gguf").path
    assert path.stat().st_size == plan.file_bytes
    assert recorded_inputs(ggplan.open_model(path).metadata) == found


def plan_sha256(plan: ggplan.Plan) -> str:
    return str(with_input_hashes(plan).metadata["ggplan.plan.sha256"].decode())


def test_no_path_and_no_time_is_recorded(tmp_path: Path) -> None:
    made = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        made.append(write_converted(tmp_path / place)[1].read_bytes())
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]
    recorded = recorded_inputs(ggplan.open_model(tmp_path / "here" / "out.gguf").metadata)
    assert recorded is not None
    assert list(recorded) == ["metadata", "tensors"]
    assert all(len(digest) == 64 for digest in recorded.values())


def test_a_file_of_another_program(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source.gguf")
    with pytest.raises(PlanError, match="ggplan did not write it"):
        reproduce(source, ggplan.open_model(source))
