"""Hugging Face folders: which files make a checkpoint, and which make none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from handmade_safetensors import bf16, fp8, write_safetensors

from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16, F32
from ggplan.sources.huggingface import open_checkpoint

INDEX = "model.safetensors.index.json"
ONES = np.ones((2, 4), np.float32)


def folder(tmp_path: Path, config: dict[str, object] | None = None, **files: object) -> Path:
    """A folder with a config, shards (dicts of tensors) and JSON files, by name."""
    tmp_path.joinpath("config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    for name, content in files.items():
        if name.endswith(".safetensors"):
            write_safetensors(tmp_path / name, content)
        else:
            tmp_path.joinpath(name).write_text(json.dumps(content))
    return tmp_path


def test_a_single_file(tmp_path: Path) -> None:
    path = folder(tmp_path, **{"model.safetensors": {"b": ONES, "a": bf16(ONES)}})
    tmp_path.joinpath("merges.txt").write_text("a b\n")
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.tensors["a"].stored_as == "BF16"
    assert np.array_equal(checkpoint.tensors["a"].rows.read_float32(0, 2), ONES)
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.read_json("config.json") == checkpoint.config
    assert checkpoint.read_text("merges.txt") == "a b\n"
    assert checkpoint.read_json("tokenizer.json") is None
    assert checkpoint.read_text("tokenizer.model") is None


def two_shards(tmp_path: Path, **changes: str | None) -> Path:
    """Two shards and an index, whose map is changed."""
    weight_map = {"a": "m-1.safetensors", "b": "m-2.safetensors"} | changes
    index = {"weight_map": {name: shard for name, shard in weight_map.items() if shard is not None}}
    return folder(tmp_path, **{"m-1.safetensors": {"a": ONES}, "m-2.safetensors": {"b": ONES}, INDEX: index})


def test_shards_with_an_index(tmp_path: Path) -> None:
    tensors = open_checkpoint(two_shards(tmp_path)).tensors
    assert [(name, tensor.file.name) for name, tensor in tensors.items()] == [
        ("a", "m-1.safetensors"),
        ("b", "m-2.safetensors"),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"c": "m-1.safetensors"}, "1 tensor is not in the shard it names, the first 'c' in m-1"),
        ({"a": None, "c": "m-1.safetensors"}, "'c'"),
        ({"b": None}, None),
        ({"b": "m-3.safetensors"}, "1 of 2 shards are missing: m-3.safetensors"),
        *(
            ({"b": escape}, "no plain name")
            for escape in (
                "../m-2.safetensors",
                "/etc/m-2.safetensors",
                "sub/m-2.safetensors",
                "..",
                "",
                "m-2.safetensors\n",
                "m-2.safetensors\0",
                "config.json",
                "a\\m.safetensors",
                ".safetensors",
                ".m-2.safetensors",
                "C:m-2.safetensors",
                "m-2\u0085.safetensors",
            )
        ),
        *(
            ({"b": name}, "1 of 2 shards are missing")
            for name in ("m\u0662.safetensors", "Modell ü~1.safetensors")
        ),
    ],
)
def test_an_index_that_errs(tmp_path: Path, changes: dict[str, str], said: str | None) -> None:
    path = two_shards(tmp_path, **changes)
    if said is None:  # shards that the index does not name are no part of the checkpoint
        assert list(open_checkpoint(path).tensors) == ["a"]
        return
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_tensor_the_index_forgets(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "m-1.safetensors"}}
    path = folder(tmp_path, **{"m-1.safetensors": {"a": ONES, "b": ONES}, INDEX: index})
    with pytest.raises(CheckpointError, match="does not list 1 tensor of the shards, the first 'b' in m-1"):
        open_checkpoint(path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", {"a": 5}, {"a": None}, {"a": ["m.safetensors"]}])
def test_a_weight_map_that_is_none(tmp_path: Path, weight_map: object) -> None:
    path = folder(tmp_path, **{"m.safetensors": {"a": ONES}, INDEX: {"weight_map": weight_map}})
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(path)


def test_the_cache_of_the_hub_links_its_files(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    two_shards(blobs)
    for name in os.listdir(blobs):
        snapshot.joinpath(name).symlink_to(Path("../../blobs") / name)
    assert list(open_checkpoint(snapshot).tensors) == ["a", "b"]


def test_shards_without_an_index(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        **{"model-00001-of-00003.safetensors": {"a": ONES}, "model-00003-of-00003.safetensors": {"c": ONES}},
    )
    with pytest.raises(
        CheckpointError, match=r"1 of 3 shards are missing: model-00002-of-00003\.safetensors"
    ):
        open_checkpoint(path)
    write_safetensors(path / "model-00002-of-00003.safetensors", {"b": ONES})
    assert list(open_checkpoint(path).tensors) == ["a", "b", "c"]
    write_safetensors(path / "model-00002-of-00003.safetensors", {"a": ONES})
    with pytest.raises(CheckpointError, match="'a' is in two shards, model-00001-of-00003"):
        open_checkpoint(path)


def test_an_index_without_its_shards_beside_a_whole_model(tmp_path: Path) -> None:
    shard = "model-00001-of-00002.safetensors"
    path = folder(tmp_path, **{"model.safetensors": {"a": ONES}, INDEX: {"weight_map": {"a": shard}}})
    with pytest.raises(CheckpointError, match="1 of 1 shards are missing") as caught:
        open_checkpoint(path)
    assert "take the index away" in caught.value.hint
    assert "--header-only" not in caught.value.hint  # there is nothing to show
    with pytest.raises(CheckpointError):
        open_checkpoint(path, header_only=True)
    (path / INDEX).unlink()
    assert list(open_checkpoint(path).tensors) == ["a"]


def test_names_of_shards_in_any_script(tmp_path: Path) -> None:
    name = "模型 é.safetensors"
    path = folder(tmp_path, **{name: {"a": ONES}, INDEX: {"weight_map": {"a": name}}})
    assert list(open_checkpoint(path).tensors) == ["a"]


@pytest.mark.parametrize(
    ("shard", "accused"),
    [("../x.safetensors", True), ("a\\x.safetensors", True), ("c:x.safetensors", True), ("x.bin", False)],
)
def test_only_an_index_that_leads_out_is_not_to_be_trusted(tmp_path: Path, shard: str, accused: bool) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(two_shards(tmp_path, b=shard))
    assert caught.value.hint.startswith("do not trust") == accused


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "model.safetensors", "x.safetensors"])
def test_a_shard_without_tensors(tmp_path: Path, name: str) -> None:
    folder(tmp_path)
    tmp_path.joinpath(name).write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="its files of weights hold no tensors"):
        open_checkpoint(tmp_path)


def test_other_weights_under_the_same_names(tmp_path: Path) -> None:
    path = folder(tmp_path, **{"model.safetensors": {"a": ONES, "b": ONES}})
    # The converter would write those of the file whose name comes last.
    for later in ("model_ema.safetensors", "model.safetensors.safetensors"):
        for tensors in ({"a": 2 * ONES}, {"a": ONES, "b": bf16(ONES)}):
            write_safetensors(path / later, tensors)
            with pytest.raises(
                CheckpointError, match=f"is in two shards, .* and {later}, with other weights"
            ):
                open_checkpoint(path)
        write_safetensors(path / later, {"b": ONES})
        checkpoint = open_checkpoint(path)
        assert {t.file.name for t in checkpoint.tensors.values()} == {"model.safetensors"}
        assert checkpoint.notes == (f"{path}: not read: {later}; model.safetensors has all tensors of it",)
        (path / later).unlink()


def test_a_shard_of_another_download_beside_a_whole_model(tmp_path: Path) -> None:
    stray = "model-00001-of-00003.safetensors"
    path = folder(tmp_path, **{"model.safetensors": {"a": ONES, "b": ONES}, stray: {"a": 2 * ONES}})
    checkpoint = open_checkpoint(path)
    assert [t.file.name for t in checkpoint.tensors.values()] == ["model.safetensors"] * 2
    assert checkpoint.notes == (f"{path}: not read: {stray}; model.safetensors has all tensors of it",)
    write_safetensors(path / stray, {"c": ONES})  # now model.safetensors is not the whole of it
    with pytest.raises(CheckpointError, match="2 of 4 shards are missing"):
        open_checkpoint(path)


def test_a_file_that_was_not_opened_is_not_said_to_be_known(tmp_path: Path) -> None:
    path = folder(tmp_path, **{"model.safetensors": {"a": ONES}, "adapter_model.safetensors": {"z": ONES}})
    (path / "pytorch_model.bin").write_bytes(b"")
    assert open_checkpoint(path).notes == (
        f"{path}: not read: adapter_model.safetensors, pytorch_model.bin; the weights are in "
        "model.safetensors, not in them",
    )


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for number in range(1, 8):
        path.joinpath(f"consolidated.{number:02d}.pth").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"only as pickles \(consolidated\.01.* and 2 more\)") as caught:
        open_checkpoint(path)
    assert "save_pretrained" in caught.value.hint


def test_folders_that_hold_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        open_checkpoint(tmp_path)
    folder(tmp_path)
    with pytest.raises(CheckpointError, match="holds no safetensors files"):
        open_checkpoint(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {})
    with pytest.raises(CheckpointError, match="hold no tensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", INDEX, "m.safetensors"])
def test_a_pipe_does_not_hang(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path, **{"m.safetensors": {"a": ONES}, INDEX: {"weight_map": {"a": "m.safetensors"}}})
    path.joinpath(name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError, match=f"{name} is not a file but a named pipe"):
        open_checkpoint(path)


def test_text_that_is_not_text(tmp_path: Path) -> None:
    path = folder(tmp_path, **{"model.safetensors": {"a": ONES}})
    path.joinpath("merges.txt").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"merges\.txt is not UTF-8 text"):
        open_checkpoint(path).read_text("merges.txt")


def test_more_shards_than_open_files(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))
    path = folder(tmp_path, **{f"m{k:03d}.safetensors": {f"t{k}": ONES * k} for k in range(100)})
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
    try:
        tensors = open_checkpoint(path).tensors
        assert all(tensors[f"t{k}"].rows.read(1, 2)[0, 0] == k for k in range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "awq", "version": "tiles"}, "is quantized with version tiles of AWQ, which"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            r"compressed-tensors \(pack-quantized\)",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {"0": {"weights": {"type": "int", "num_bits": 8}}},
            },
            "8-bit floats|integers are stored as float-quantized",
        ),
        ({"quant_method": "a\x1b[31m"}, r"a\\x1b\[31m"),
        ({"quant_method": ["x"]}, "'x'"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, r"impossible weight_block_size \[0, 128\]"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "impossible weight_block_size 128"),
        ([], "quantization_config in config.json is not an object"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_quantizations_that_are_not_read(
    tmp_path: Path, quantization: object, said: str, nested: bool
) -> None:
    config = {"quantization_config": quantization}
    path = folder(
        tmp_path, {"text_config": config} if nested else config, **{"model.safetensors": {"a": ONES}}
    )
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(path)


def test_two_quantizations_that_differ(tmp_path: Path) -> None:
    outer = {"quant_method": "fp8", "weight_block_size": [2, 2]}
    config = {"quantization_config": outer, "text_config": {"quantization_config": dict(outer)}}
    path = folder(tmp_path, config, **{"model.safetensors": {"a": ONES}})
    assert list(open_checkpoint(path).tensors) == ["a"]
    config["text_config"]["quantization_config"]["weight_block_size"] = [4, 4]
    with pytest.raises(CheckpointError, match="its text_config have different objects quantization_config"):
        open_checkpoint(folder(tmp_path, config))


def test_fp8_comes_scaled_and_without_its_scales(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}}
    tensors = {
        "x.weight": fp8(np.full((3, 4), 0x38)),  # ones
        "x.weight_scale_inv": np.array([[1, 2], [3, 4]], np.float32),
        "x.input_scale": np.ones((), np.float32),
        "norm.weight": ONES,
    }
    checkpoint = open_checkpoint(folder(tmp_path, config, **{"model.safetensors": tensors}))
    assert list(checkpoint.tensors) == ["norm.weight", "x.weight"]
    scaled = checkpoint.tensors["x.weight"]
    assert (scaled.stored_as, scaled.rows.dtype, scaled.type) == ("F8_E4M3", F32, BF16)
    assert scaled.rows.read(0, 3).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]
