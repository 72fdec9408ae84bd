"""Layers that are kept until the output is written: whole ones of this run, and no others."""

from pathlib import Path

import numpy as np
import pytest

from ggplan.correcting.kept import KeptLayers
from ggplan.errors import ConversionError

STREAMS = ("original", "quantized")
BLOCKS = {"blk.0.ffn_up.weight": np.arange(64, dtype=np.uint8).reshape(4, 16)}


def kept(folder: Path, run: str = "a" * 64) -> KeptLayers:
    layers = KeptLayers(folder / "out.gguf.layers", run)
    layers.open()
    return layers


def write_states(layers: KeptLayers, layer: int) -> None:
    for stream in STREAMS:
        layers.states(layer, stream).write_bytes(b"states")


def test_a_run_goes_on_after_the_last_whole_layer(tmp_path: Path) -> None:
    layers = kept(tmp_path)
    assert layers.n_done(3) == 0
    for layer in range(2):
        write_states(layers, layer)
        write_states(layers, layer + 1)
        layers.finish(layer, BLOCKS)
    again = kept(tmp_path)
    assert again.n_done(3) == 2
    assert not again.states(1, "original").exists(), "states before a finished layer are removed"
    assert again.states(2, "quantized").exists()
    again.finish(2, BLOCKS)
    assert again.n_done(3) == 3


def test_layers_without_the_states_after_them_are_done_again(tmp_path: Path) -> None:
    layers = kept(tmp_path)
    write_states(layers, 1)
    layers.finish(0, BLOCKS)
    layers.states(1, "quantized").unlink()
    assert kept(tmp_path).n_done(3) == 0


def test_states_that_are_damaged_are_not_gone_on_with(tmp_path: Path) -> None:
    layers = kept(tmp_path)
    write_states(layers, 1)
    layers.finish(0, BLOCKS)
    assert kept(tmp_path).n_done(3) == 1
    layers.states(1, "original").write_bytes(b"stated")
    assert kept(tmp_path).n_done(3) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "header"])
def test_a_damaged_layer_is_done_again(tmp_path: Path, damage: str) -> None:
    layers = kept(tmp_path)
    write_states(layers, 1)
    layers.finish(0, BLOCKS)
    data = bytearray(layers.file(0).read_bytes())
    if damage == "cut":
        del data[-3:]
    else:
        data[-1 if damage == "flipped" else 9] ^= 1
    layers.file(0).write_bytes(data)
    assert not kept(tmp_path).is_done(0)


def test_work_of_another_run_is_refused_until_it_is_discarded(tmp_path: Path) -> None:
    kept(tmp_path).finish(0, BLOCKS)
    with pytest.raises(ConversionError, match="under another plan or for another text") as error:
        kept(tmp_path, "b" * 64)
    assert "--restart" in error.value.hint
    other = KeptLayers(tmp_path / "out.gguf.layers", "b" * 64)
    other.open(restart=True)
    assert not other.is_done(0)


def test_a_layer_file_of_another_run_is_not_used(tmp_path: Path) -> None:
    layers = kept(tmp_path)
    layers.finish(0, BLOCKS)
    assert not KeptLayers(layers.folder, "b" * 64).is_done(0)
