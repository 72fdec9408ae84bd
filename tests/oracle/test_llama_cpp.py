"""The whole way, judged by llama.cpp's own programs: its converter, llama-quantize and llama-perplexity."""

import importlib.resources
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from family_cases import CASES, UNLOADABLE
from numpy.typing import NDArray

import ggplan

pytestmark = pytest.mark.oracle

TEXT = Path(__file__).parents[2] / "ggplan" / "demo_model" / "joshua.txt"
PRE = "glm4"
CONTEXT = 512

# What glm4moe/hq4_k gives the demo model, in llama-quantize's words (which lower-cases patterns and takes no
# comments).
TENSOR_TYPES = """\
attn_(q|k|v|output)\\.weight=q8_0
ffn_(gate|up|down)\\.weight=q8_0
ffn_(gate|up|down)_shexp=bf16
ffn_(gate|up)_exps=q4_k
ffn_down_exps=q8_0
"""


@pytest.fixture(scope="session")
def programs(llama_cpp: Path) -> Path:
    folder = llama_cpp / "build" / "bin"
    assert (folder / "llama-perplexity").exists(), "run tools/install-oracles"
    return folder


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return Path(str(importlib.resources.files("ggplan") / "demo_model"))


@pytest.fixture(scope="session")
def theirs(demo_model: Path, convert: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in bf16, by llama.cpp's converter."""
    path = tmp_path_factory.mktemp("theirs") / "bf16.gguf"
    convert([{"folder": demo_model, "output": path, "outtype": "bf16", "pre": PRE}])
    return path


def converted(model: Path, recipe: ggplan.Recipe, target: Path, **options: object) -> Path:
    opened = ggplan.open_model(model, pre=PRE)
    ggplan.convert(ggplan.make_plan(opened, recipe, **options), target)
    return target


def told_of_tokens(programs: Path, model: Path, folder: Path, n_chunks: int) -> bytes:
    """What llama-perplexity writes of the tokens after the first half of each chunk.

    After the magic, three numbers and the text's tokens come, for each token, two float32 (the step and the
    lowest logarithm) and a code of 16 bits for each token of the vocabulary. On a busy machine its last line
    is often lost at exit (the logger is not flushed), but never this.
    """
    path = folder / "told"
    command = [
        *(programs / "llama-perplexity", "-m", model, "-f", TEXT, "-c", str(CONTEXT)),
        *("--chunks", str(n_chunks), "-t", "1", "--save-all-logits", path),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, timeout=300,
        env=os.environ | {"LLAMA_ARG_REPACK": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = path.read_bytes()
    _, rows = parts_of(told)
    assert len(rows) == n_chunks * (CONTEXT // 2 - 1)
    assert np.isfinite(np.ascontiguousarray(rows[:, :4]).view(np.float32)).all()
    return told


def parts_of(told: bytes) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """The tokens that are foretold, and for each its row."""
    context, n_vocabulary, n_chunks = np.frombuffer(told, np.int32, 3, 8)
    assert context == CONTEXT
    tokens = np.frombuffer(told, np.int32, n_chunks * CONTEXT, 20).reshape(n_chunks, CONTEXT)
    rows = np.frombuffer(told, np.uint16, offset=20 + tokens.nbytes)
    return tokens[:, CONTEXT // 2 + 1 :].ravel(), rows.reshape(-1, 4 + (n_vocabulary + 1) // 2 * 2)


def perplexity(told: bytes) -> tuple[float, float]:
    """The perplexity and its error, as llama-perplexity reckons them."""
    tokens, rows = parts_of(told)
    step, lowest = np.ascontiguousarray(rows[:, :4]).view(np.float32).astype(np.float64).T
    losses = -(lowest + step * rows[np.arange(len(rows)), 4 + tokens])
    value = float(np.exp(losses.mean()))
    return value, value * float(losses.std()) / math.sqrt(len(losses) - 1)


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    return {
        t.name: (t.type.name, bytes(t.stored.read_bytes(0, t.n_rows)))
        for t in ggplan.open_model(path).tensors
    }


def quantized_by_llama_cpp(programs: Path, source: Path, target: Path, *options: str | Path) -> Path:
    command = [programs / "llama-quantize", *options[:-1], source, target, options[-1], "2"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return target


def test_bf16_measures_as_the_converters(
    programs: Path, demo_model: Path, theirs: Path, tmp_path: Path
) -> None:
    ours = converted(demo_model, ggplan.parse_recipe("@default bf16"), tmp_path / "bf16.gguf")
    assert tensors_of(ours) == tensors_of(theirs)
    assert told_of_tokens(programs, ours, tmp_path, 16) == told_of_tokens(programs, theirs, tmp_path, 16)


@pytest.mark.parametrize("case", [case for case in CASES if case not in UNLOADABLE])
def test_every_architecture_measures_as_the_converters(
    programs: Path, reference_models: Path, reference_ggufs: Path, tmp_path: Path, case: str
) -> None:
    theirs = reference_ggufs / f"{case}.gguf"
    as_stored = ggplan.parse_recipe("no_such_tensor = bf16")
    ours = converted(reference_models / case, as_stored, tmp_path / "ours.gguf")
    assert tensors_of(ours) == tensors_of(theirs)
    keys = [ggplan.open_model(path).metadata for path in (ours, theirs)]
    assert {k: v for k, v in keys[0].items() if not k.startswith("ggplan.")} == keys[1]
    assert told_of_tokens(programs, ours, tmp_path, 4) == told_of_tokens(programs, theirs, tmp_path, 4)


def test_the_seed_recipe_is_llama_quantizes_bytes_and_within_the_error(
    programs: Path, demo_model: Path, theirs: Path, tmp_path: Path
) -> None:
    ours = converted(demo_model, ggplan.load_recipe("glm4moe/hq4_k"), tmp_path / "hq4_k.gguf")
    (tmp_path / "types.txt").write_text(TENSOR_TYPES)
    peer = quantized_by_llama_cpp(
        programs, theirs, tmp_path / "peer.gguf", "--tensor-type-file", tmp_path / "types.txt",
        "--token-embedding-type", "bf16", "--output-tensor-type", "bf16", "Q8_0",
    )  # fmt: skip
    assert tensors_of(ours) == tensors_of(peer)
    assert list(tensors_of(ours)) == list(tensors_of(peer))
    value, _ = perplexity(told_of_tokens(programs, ours, tmp_path, 16))
    reference, error = perplexity(told_of_tokens(programs, theirs, tmp_path, 16))
    assert abs(value - reference) < error


ENCODED = "q2_K q3_K q4_K q5_K q6_K q4_0 q4_1 q5_0 q5_1 iq4_nl iq4_xs tq1_0 tq2_0"


@pytest.mark.parametrize("type_", ENCODED.split())
def test_one_type_for_all_is_llama_quantizes_bytes(
    programs: Path, demo_model: Path, theirs: Path, tmp_path: Path, type_: str
) -> None:
    """Fallbacks included: the demo model's experts have rows of 64, its dense layer rows of 480."""
    ours = converted(demo_model, ggplan.parse_recipe(f"@default {type_}"), tmp_path / "ours.gguf")
    mix = {"q3_K": "Q3_K_S", "q4_K": "Q4_K_S", "q5_K": "Q5_K_S"}.get(type_, type_.upper())
    peer = quantized_by_llama_cpp(programs, theirs, tmp_path / "peer.gguf", "--pure", mix)
    assert tensors_of(ours) == tensors_of(peer)


@pytest.mark.parametrize("type_", ["q2_K", "q4_K", "q5_1", "iq4_nl", "iq4_xs"])
def test_with_an_imatrix_it_is_llama_quantizes_bytes(
    programs: Path, demo_model: Path, theirs: Path, tmp_path: Path, type_: str
) -> None:
    import gguf

    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["calib.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in ggplan.open_model(theirs).tensors:
        if tensor.type.name == "bf16" and tensor.name.startswith("blk."):
            n_slices = tensor.shape[0] if len(tensor.shape) == 3 else 1
            sums = rng.gamma(0.5, 3.0, (n_slices, tensor.n_columns)).astype(np.float32)
            counts = rng.integers(0, 4, (n_slices, 1)).astype(np.float32)
            counts[0] = 5
            writer.add_tensor(f"{tensor.name}.in_sum2", sums)
            writer.add_tensor(f"{tensor.name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    imatrix = ggplan.load_imatrix(tmp_path / "imatrix.gguf")
    recipe = ggplan.parse_recipe(f"@default {type_}")
    ours = converted(demo_model, recipe, tmp_path / "ours.gguf", imatrix=imatrix)
    mix = {"q4_K": "Q4_K_S"}.get(type_, type_.upper())
    peer = quantized_by_llama_cpp(
        programs, theirs, tmp_path / "peer.gguf", "--pure", "--imatrix", tmp_path / "imatrix.gguf", mix
    )
    assert tensors_of(ours) == tensors_of(peer)
