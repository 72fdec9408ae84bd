"""The stock mixes, judged by llama-quantize: the types on many kinds of models, the bytes on some."""

import importlib.resources
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import ggplan
from ggplan.ggml_types import BF16, F32
from ggplan.metadata import Metadata, array, float32, string, uint32
from ggplan.metadata import MetadataType as M
from ggplan.planning.importance import importance_refusal
from ggplan.planning.layout import encode_header, file_order, place
from ggplan.stock import MIXES

pytestmark = pytest.mark.oracle

Shapes = dict[str, tuple[int, ...]]
_LINE = re.compile(
    r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\w+), size = .*?(?:\((\w+)\))?$", re.MULTILINE
)


@pytest.fixture(scope="session")
def llama_quantize(llama_cpp: Path) -> Path:
    program = llama_cpp / "build" / "bin" / "llama-quantize"
    assert program.exists(), "run tools/install-oracles"
    return program


def llama(
    n_layers: int, heads: tuple[int, int], n_experts: int = 0, tied: bool = False, n_ff: int = 512
) -> Shapes:
    n_heads, n_kv = heads
    shapes: Shapes = {"token_embd.weight": (320, 256), "output_norm.weight": (256,)}
    if not tied:
        shapes["output.weight"] = (320, 256)
    for i in range(n_layers):
        block = {
            "attn_norm": (256,),
            "attn_q": (32 * n_heads, 256),
            "attn_k": (32 * n_kv, 256),
            "attn_v": (32 * n_kv, 256),
            "attn_output": (256, 32 * n_heads),
            "ffn_norm": (256,),
        }
        stack, suffix = ((n_experts,), "_exps") if n_experts else ((), "")
        block |= {f"ffn_{part}{suffix}": (*stack, n_ff, 256) for part in ("gate", "up")}
        block[f"ffn_down{suffix}"] = (*stack, 256, n_ff)
        if n_experts:
            block["ffn_gate_inp"] = (n_experts, 256)
        shapes |= {f"blk.{i}.{kind}.weight": shape for kind, shape in block.items()}
    return shapes


def glm4moe(n_layers: int, n_ff: int, n_experts: int = 16) -> Shapes:
    shapes = llama(n_layers, (8, 1), n_experts, n_ff=n_ff)
    for i in range(n_layers):
        shapes |= {f"blk.{i}.ffn_{part}_shexp.weight": (n_ff, 256) for part in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down_shexp.weight"] = (256, n_ff)
        shapes[f"blk.{i}.exp_probs_b.bias"] = (n_experts,)
    for part, shape in {"ffn_gate": (480, 256), "ffn_up": (480, 256), "ffn_down": (256, 480)}.items():
        shapes[f"blk.0.{part}.weight"] = shape
    shapes = {n: s for n, s in shapes.items() if not re.match(r"blk\.0\.(ffn_.*(exps|shexp|inp)|exp_)", n)}
    last = n_layers - 1
    shapes[f"blk.{last}.nextn.eh_proj.weight"] = (256, 512)
    shapes[f"blk.{last}.nextn.enorm.weight"] = (256,)
    return shapes


def deepseek2(n_layers: int) -> Shapes:
    shapes = {n: s for n, s in glm4moe(n_layers, 512).items() if not re.search(r"attn_[qkv]\.|nextn", n)}
    for i in range(n_layers):
        block = {
            "attn_q_a": (256, 256),
            "attn_q_b": (8 * 192, 256),
            "attn_kv_a_mqa": (576, 256),
            "attn_k_b": (8, 512, 128),
            "attn_v_b": (8, 128, 512),
        }
        shapes |= {f"blk.{i}.{kind}.weight": shape for kind, shape in block.items()}
    return shapes


def fused(n_layers: int, n_kv: int) -> Shapes:
    """Falcon and its like: one matrix for query, key and value, no gate."""
    shapes = {n: s for n, s in llama(n_layers, (8, n_kv)).items() if not re.search(r"attn_[qkv]\.|gate", n)}
    for i in range(n_layers):
        shapes[f"blk.{i}.attn_qkv.weight"] = (32 * (8 + 2 * n_kv), 256)
    return shapes


# Architecture, (layers, heads, key-value heads or one number for each layer, experts), tensors.
CASES: dict[str, tuple[str, tuple[int, int, object, int], Shapes]] = {
    "llama": ("llama", (20, 8, 8, 0), llama(20, (8, 8))),
    "llama grouped, tied": ("llama", (17, 8, 2, 0), llama(17, (8, 2), tied=True)),
    "llama of 80 layers": ("llama", (80, 8, 1, 0), llama(80, (8, 1))),
    "llama of 80 layers, not grouped": ("llama", (80, 8, 8, 0), llama(80, (8, 8))),
    "mixtral": ("llama", (20, 8, 2, 8), llama(20, (8, 2), 8)),
    "mixtral of 80 layers": ("llama", (80, 8, 2, 8), llama(80, (8, 2), 8)),
    "four experts": ("llama", (9, 8, 4, 4), llama(9, (8, 4), 4)),
    "narrow experts": ("qwen3moe", (12, 8, 2, 16), llama(12, (8, 2), 16, n_ff=96)),
    "odd rows": ("qwen3", (8, 8, 4, 0), llama(8, (8, 4), n_ff=300)),
    "qwen2 of 80 layers": ("qwen2", (80, 8, 4, 0), llama(80, (8, 4))),
    "heads by layer": ("deci", (10, 8, [2, 8] * 5, 0), llama(10, (8, 2))),
    "falcon": ("falcon", (33, 8, 1, 0), fused(33, 1)),
    "falcon not grouped": ("falcon", (16, 8, 8, 0), fused(16, 8)),
    "phi2": ("phi2", (16, 8, 8, 0), fused(16, 8)),
    "glm4moe": ("glm4moe", (24, 8, 1, 16), glm4moe(24, 352)),
    "deepseek2": ("deepseek2", (20, 8, 1, 16), deepseek2(20)),
}


def keys(arch: str, numbers: tuple[int, int, object, int]) -> Metadata:
    n_layers, n_heads, n_kv, n_experts = numbers
    own: Metadata = {
        "block_count": uint32(n_layers),
        "context_length": uint32(512),
        "embedding_length": uint32(256),
        "feed_forward_length": uint32(512),
        "attention.head_count": uint32(n_heads),
        "attention.head_count_kv": array(M.UINT32, n_kv) if isinstance(n_kv, list) else uint32(n_kv),
        "attention.key_length": uint32(32),
        "attention.value_length": uint32(32),
        "attention.layer_norm_rms_epsilon": float32(1e-5),
        "attention.layer_norm_epsilon": float32(1e-5),
        "rope.dimension_count": uint32(32),
    }
    if n_experts:
        own |= {
            "expert_count": uint32(n_experts),
            "expert_used_count": uint32(2),
            "expert_shared_count": uint32(1),
            "expert_feed_forward_length": uint32(512),
            "expert_gating_func": uint32(2),
            "leading_dense_block_count": uint32(1),
        }
    if arch == "glm4moe":
        own["nextn_predict_layers"] = uint32(1)
    if arch == "deepseek2":
        own |= {"attention.kv_lora_rank": uint32(512), "attention.q_lora_rank": uint32(256)}
        own |= {"attention.key_length_mla": uint32(192), "attention.value_length_mla": uint32(128)}
        own["expert_weights_scale"] = float32(1.0)
    return {"general.architecture": string(arch)} | {f"{arch}.{key}": value for key, value in own.items()}


def write_gguf(path: Path, metadata: Metadata, shapes: Shapes, *, weights: bool) -> Path:
    """A bf16 GGUF; without weights a hole in the file stands for them."""
    rng = np.random.default_rng(7)
    names = sorted(shapes, key=file_order)
    types = {n: F32 if len(shapes[n]) == 1 or "ffn_gate_inp" in n else BF16 for n in names}
    sizes = [types[n].tensor_bytes(shapes[n]) for n in names]
    offsets, total = place(sizes)
    header = encode_header(
        metadata, [(n, shapes[n], types[n].id, at) for n, at in zip(names, offsets, strict=True)]
    )
    with path.open("wb") as file:
        file.write(header)
        if weights:
            for name, at in zip(names, offsets, strict=True):
                values = rng.normal(0, 0.1, shapes[name]).astype(np.float32)
                bits = values.view(np.uint32)
                file.seek(len(header) + at)
                file.write(bits.tobytes() if types[name] == F32 else (bits >> 16).astype(np.uint16).tobytes())
        file.truncate(len(header) + total)
    return path


def write_imatrix(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    import gguf

    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["calib.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, shape in shapes.items():
        n_slices = shape[0] if len(shape) == 3 else 1
        writer.add_tensor(f"{name}.in_sum2", rng.gamma(0.5, 3.0, (n_slices, shape[-1])).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.full((n_slices, 1), 5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def matrices(model: ggplan.Model) -> Shapes:
    return {
        t.name: t.shape for t in model.tensors
        if t.type == BF16 and t.name.startswith("blk.")
    }  # fmt: skip


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, timeout=300)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_imatrix", [False, True])
def test_types(llama_quantize: Path, tmp_path: Path, case: str, with_imatrix: bool) -> None:
    arch, numbers, shapes = CASES[case]
    source = write_gguf(tmp_path / "model.gguf", keys(arch, numbers), shapes, weights=False)
    model = ggplan.open_model(source)
    imatrix, options = None, []
    if with_imatrix:
        path = write_imatrix(tmp_path / "imatrix.gguf", {"blk.0.attn_output.weight": (256, 256)})
        imatrix, options = ggplan.load_imatrix(path), ["--imatrix", path]
    for mix in MIXES:
        done = run(llama_quantize, "--dry-run", *options, source, mix.name, "1")
        if "no tensor type fallback" in done.stderr + done.stdout:
            with pytest.raises(ggplan.Error, match="no fallback"):
                ggplan.make_plan(model, mix, imatrix=imatrix)
            continue
        plan = ggplan.make_plan(model, mix, imatrix=imatrix)
        assert done.returncode == 0, done.stderr[-2000:]
        theirs = {name: (new or old) for name, old, new in _LINE.findall(done.stdout + done.stderr)}
        assert {t.name: t.type.name for t in plan.tensors} == theirs, mix.name
        needs = "will require an imatrix" in done.stdout + done.stderr
        assert needs == (imatrix is None and importance_refusal(plan) is not None), mix.name


SMALL = {
    "dense": ("llama", (8, 8, 2, 0), llama(8, (8, 2))),
    "mixtral": ("llama", (2, 8, 4, 8), llama(2, (8, 4), 8)),
    "glm4moe": ("glm4moe", (8, 8, 1, 4), glm4moe(8, 352, 4)),
}
K_QUANTS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
COMPARED = (*K_QUANTS, "Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "MXFP4_MOE", "TQ1_0", "F16")
# Every mix is compared on a dense model. What types experts get is judged for all mixes by `test_types`.
OF_EXPERTS = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q4_0", "IQ4_XS", "MXFP4_MOE")


def compare_bytes(
    llama_quantize: Path, source: Path, folder: Path, mix: str, imatrix: Path | None, *more: str
) -> None:
    """The file of a mix, by llama-quantize and by `ggplan convert`."""
    from ggplan.cli import cli

    options = ["--imatrix", str(imatrix)] if imatrix else []
    theirs, ours = folder / f"{mix}.theirs.gguf", folder / f"{mix}.ours.gguf"
    done = run(llama_quantize, *options, *more, source, theirs, mix, "2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    cli.main(
        ["convert", str(source), str(ours), "-r", mix, *options, *more, "--quiet"], standalone_mode=False
    )
    peers = [ggplan.open_model(path) for path in (theirs, ours)]
    tensors = [
        [(t.name, t.shape, t.type.name, bytes(t.stored.read_bytes(0, t.n_rows))) for t in m.tensors]
        for m in peers
    ]
    assert tensors[0] == tensors[1], mix
    assert peers[0].metadata["general.file_type"] == peers[1].metadata["general.file_type"]
    theirs.unlink()
    ours.unlink()


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("with_imatrix", [False, True])
def test_bytes(llama_quantize: Path, tmp_path: Path, case: str, with_imatrix: bool) -> None:
    arch, numbers, shapes = SMALL[case]
    source = write_gguf(tmp_path / "model.gguf", keys(arch, numbers), shapes, weights=True)
    imatrix = (
        write_imatrix(tmp_path / "imatrix.gguf", matrices(ggplan.open_model(source)))
        if with_imatrix
        else None
    )
    mixes = COMPARED if case == "dense" else OF_EXPERTS
    for mix in (*mixes, "Q2_K_S") if with_imatrix else mixes:
        compare_bytes(llama_quantize, source, tmp_path, mix, imatrix)
    compare_bytes(llama_quantize, source, tmp_path, "Q4_K_M", imatrix, "--pure")


@pytest.mark.parametrize("mix", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_M"])
def test_bytes_of_the_mixes_on_grids(llama_quantize: Path, tmp_path: Path, mix: str) -> None:
    shapes = llama(2, (8, 2))
    source = write_gguf(tmp_path / "model.gguf", keys("llama", (2, 8, 2, 0)), shapes, weights=True)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", matrices(ggplan.open_model(source)))
    compare_bytes(llama_quantize, source, tmp_path, mix, imatrix)


def test_bytes_of_the_demo_model(llama_quantize: Path, tmp_path: Path) -> None:
    """Its layers have rows of 64 and 480, so every mix falls back."""
    folder = Path(str(importlib.resources.files("ggplan") / "demo_model"))
    source = tmp_path / "bf16.gguf"
    recipe = ggplan.parse_recipe("@default bf16")
    ggplan.convert(ggplan.make_plan(ggplan.open_model(folder, pre="glm4"), recipe), source)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", matrices(ggplan.open_model(source)))
    for mix in ("Q4_K_M", "Q3_K_M", "Q5_K_S", "IQ4_XS", "MXFP4_MOE"):
        compare_bytes(llama_quantize, source, tmp_path, mix, None)
        compare_bytes(llama_quantize, source, tmp_path, mix, imatrix)
