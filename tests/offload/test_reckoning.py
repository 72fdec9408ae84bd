"""What ggplan reckons against what llama.cpp b11434 allocated: to the byte."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from memory_rows import Row, headers, rows, write_header
from program import run

from ggplan.errors import CheckpointError, PlanError
from ggplan.ggml_types import parse_type
from ggplan.metadata import MetadataType, scalar, string
from ggplan.offload.machine import Gpu
from ggplan.offload.profiles import IK_LLAMA_CPP, LLAMA_CPP
from ggplan.offload.reckon import reckon
from ggplan.offload.reckoning import DeviceBytes
from ggplan.offload.settings import Override, Settings

AIR = "GLM-4.5-Air.hq4k"
EXPERTS = Override(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "CPU")


def some_rows() -> list[Row]:
    """Every eleventh row of each kind of placement, and all of the rare ones."""
    seen: Counter[str] = Counter()
    found = []
    for row in rows("models"):
        seen[row.kind] += 1
        is_rare = row.load.get("mtp") == "1" or row.context.get("ctk") == "iq4_nl" or "swafull" in row.context
        if is_rare or seen[row.kind] % 11 == 1:
            found.append(row)
    return found


def allocated(row: Row, device: DeviceBytes) -> tuple[int, int, int]:
    if row.is_draft:
        return device.weights, device.draft_context, device.draft_compute
    return device.weights, device.context, device.compute


def test_measured_placements_to_the_byte() -> None:
    wrong = []
    kinds: Counter[str] = Counter()
    for row in some_rows():
        kinds[row.kind] += 1
        found = reckon(headers("models")[row.model], row.settings, row.n_gpus)
        for device in found.devices:
            got, expected = allocated(row, device), row.bytes[device.name]
            if got != expected:
                wrong.append((row.model, row.load, row.context, device.name, got, expected))
            if row.model.startswith("Qwen3.5") and row.settings.mtp and device.name == "CUDA0":
                assert device.rollback == 586137600  # the state before each of three drafted tokens
    assert wrong == []
    assert min(kinds[kind] for kind in ("CPU", "all on the GPU", "some layers", "two GPUs")) >= 4


def test_all_architectures_that_llama_cpp_makes_up() -> None:
    # Six placements each; one of them here, in turn. Weights and context are right for all.
    near: Counter[str] = Counter()
    wrong, unsaid = [], []
    measured = rows("architectures")
    for i, row in enumerate(measured):
        if i % 6 != (i // 6) % 6:
            continue
        found = reckon(headers("architectures")[row.model], row.settings, row.n_gpus)
        for device in found.devices:
            weights, context, compute = row.bytes[device.name]
            if (device.weights, device.context) != (weights, context):
                wrong.append((row.model, row.load, row.context, device.name))
            near["values"] += 1
            near["exact"] += device.compute == compute
            near["close"] += abs(device.compute - compute) <= compute * 0.05
            if abs(device.compute - compute) > compute * 0.1 and not found.notes:
                unsaid.append((row.model, row.load, row.context, device.name, device.compute, compute))
    assert wrong == []
    assert near["exact"] >= 0.75 * near["values"]
    assert near["close"] >= 0.85 * near["values"]
    assert unsaid == []


@pytest.mark.parametrize("at", [3, 250, 420, 590])
def test_any_command_of_a_header_alone(at: int, tmp_path: Path) -> None:
    row = rows("models")[at]
    path = write_header(headers("models")[row.model], tmp_path / "model.gguf")
    done = run("fit", str(path), "--command", row.command, "--gpus", str(row.n_gpus), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["engine"] == "llama.cpp b11434"
    sizes = {d["name"]: (d["weights"], d["context"], d["compute"]) for d in found["devices"]}
    assert sizes == row.bytes


def test_the_streamed_tensor_is_named() -> None:
    settings = Settings(overrides=(EXPERTS,), context=4096, slots=1)
    found = reckon(headers("models")[AIR], settings, 1)
    # 128 experts of 4096 rows of 1408 weights in q8_0, 136 bytes that a row lacks to 512, in steps of 128.
    assert found.streamed == ("blk.1.ffn_down_exps.weight", 784335104)
    gpu = found.devices[0]
    without = reckon(headers("models")[AIR], replace(settings, op_offload=False), 1)
    assert without.streamed is None
    assert without.devices[0].compute < gpu.compute - 500 * 2**20
    few = reckon(headers("models")[AIR], replace(settings, micro_batch=31), 1)
    assert few.streamed is None
    assert few.devices[0].compute < 40 * 2**20


def test_an_auto_flash_attention_is_off_where_a_gpu_has_no_kernel() -> None:
    settings = Settings(context=4096, slots=1, cache_k=parse_type("iq4_nl"))
    on = reckon(headers("models")["Qwen3-8B.q4km"], replace(settings, flash_attention="on"), 1)
    auto = reckon(headers("models")["Qwen3-8B.q4km"], settings, 1)
    off = reckon(headers("models")["Qwen3-8B.q4km"], replace(settings, flash_attention="off"), 1)
    assert auto.devices == off.devices != on.devices


def test_settings_that_the_engine_refuses() -> None:
    q8_0 = parse_type("q8_0")
    with pytest.raises(PlanError, match="one cache for both"):
        reckon(headers("models")["DeepSeek-V3.q4km"], Settings(cache_k=q8_0), 1)
    with pytest.raises(PlanError, match="without flash attention"):
        reckon(headers("models")[AIR], Settings(cache_v=q8_0, flash_attention="off"), 1)
    with pytest.raises(PlanError, match="there is no device CUDA2") as caught:
        reckon(headers("models")[AIR], Settings(overrides=(Override("exps", "CUDA2"),)), 2)
    assert caught.value.hint == "the devices are CPU, CUDA0, CUDA1"
    with pytest.raises(PlanError, match="no regex"):
        reckon(headers("models")[AIR], Settings(overrides=(Override("a(", "CPU"),)), 1)


def test_ik_llama_cpp_reads_no_type_of_values_of_a_latent_cache() -> None:
    q8_0 = parse_type("q8_0")
    model = headers("models")["DeepSeek-V3.q4km"]
    one = reckon(model, Settings(context=4096, cache_k=q8_0), 1, IK_LLAMA_CPP)
    both = reckon(model, Settings(context=4096, cache_k=q8_0, cache_v=q8_0), 1, IK_LLAMA_CPP)
    assert one.devices == both.devices


def test_a_size_that_is_nought_is_a_note() -> None:
    found = headers("models")["Qwen3.6-35B-A3B.q4km"]
    metadata = {k: v for k, v in found.metadata.items() if not k.endswith("ssm.time_step_rank")}
    assert len(metadata) == len(found.metadata) - 1
    damaged = reckon(replace(found, metadata=metadata), Settings(context=4096), 1)
    assert any("rule of thumb" in note for note in damaged.notes)


def test_a_cache_that_no_gpu_reads_or_that_cannot_be() -> None:
    q8_0, iq4_nl = parse_type("q8_0"), parse_type("iq4_nl")
    model = headers("models")["Qwen3-8B.q4km"]
    on = reckon(model, Settings(context=4096, flash_attention="on", cache_k=iq4_nl, cache_v=iq4_nl), 1)
    assert any("no GPU has a kernel" in note and "iq4_nl" in note for note in on.notes)
    # Quantized values need flash attention, so `auto` is on, kernel or not.
    assert reckon(model, Settings(context=4096, cache_k=iq4_nl, cache_v=iq4_nl), 1).devices == on.devices
    metadata = dict(model.metadata)
    key = next(k for k in metadata if k.endswith("attention.key_length"))
    metadata[key] = scalar(MetadataType.UINT32, 80)
    with pytest.raises(PlanError, match="K as q8_0: the engine refuses, for a head of 80"):
        reckon(
            replace(model, metadata=metadata), Settings(context=4096, flash_attention="on", cache_k=q8_0), 1
        )


def test_a_graph_of_another_architecture_is_a_note() -> None:
    for name, other in (("hy_v4-moe", "jamba"), ("DeepSeek-V3.2.q4km", "qwen35moe")):
        found = (headers("architectures") | headers("models"))[name]
        own = str(found.metadata["general.architecture"].decode())
        metadata = {k.replace(f"{own}.", f"{other}.", 1): v for k, v in found.metadata.items()}
        metadata["general.architecture"] = string(other)
        for n_gpus in (0, 1):
            assert reckon(replace(found, metadata=metadata), Settings(context=4096), n_gpus).notes


def test_patterns_of_strangers_do_not_hang() -> None:
    slow = tuple(Override("(x+x+)+y" * n + "(.*)*Z", "CPU") for n in range(1, 4))
    began = time.process_time()
    reckon(headers("models")[AIR], Settings(overrides=slow, context=4096), 1)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("model", "context", "batch", "split", "gpus", "host"),
    [
        ("GLM-4.5-Air.q4km", 65536, 1024, (), [608.00], None),  # the logs' build had a mask of f32 in RAM
        ("GLM-4.5-Air.q4km", 65536, 4096, (), [2432.00], None),
        ("GLM-4.6.hq4k", 512, 4096, (29, 28, 28, 8), [1216.02, 1216.02, 1216.02, 2448.00], 112.05),
        ("Qwen3-235B-A22B.q4km", 512, 4096, (32, 32, 30), [992.06, None, 2502.14], 96.09),
        ("Qwen3.6-35B-A3B.q4km", 512, 512, (), [489.00], 4.51),
        ("Qwen3.5-397B-A17B.q4km", 512, 512, (19, 18, 19, 5), [124.55, None, None, 493.00], None),
    ],
)
def test_ik_llama_cpp_as_its_logs_have_it(
    model: str,
    context: int,
    batch: int,
    split: tuple[float, ...],
    gpus: list[float | None],
    host: float | None,
) -> None:
    """Compute buffers of llama-perplexity and llama-sweep-bench on real GPUs, in MiB; None: not compared."""
    settings = Settings(
        "llama-perplexity",
        context=context,
        batch=batch,
        micro_batch=batch,
        flash_attention="on",
        tensor_split=split,
    )
    found = reckon(headers("models")[model], settings, len(gpus), IK_LLAMA_CPP)
    for device, expected in zip(found.devices, [*gpus, host], strict=True):
        if expected is not None:
            assert device.compute / 2**20 == pytest.approx(expected, abs=0.15)


def test_ik_llama_cpp_has_no_short_windows() -> None:
    header = headers("models")["gemma-3-27b.q4_0"]
    long, short = (
        sum(d.context for d in reckon(header, Settings(context=32768, slots=1), 1, profile).devices)
        for profile in (IK_LLAMA_CPP, LLAMA_CPP)
    )
    assert long == 62 * 32768 * 16 * 128 * 2 * 2  # blocks, cells, heads, width, K and V, f16
    assert short < long / 4


def test_what_is_guessed_is_said() -> None:
    air = headers("models")[AIR]
    assert reckon(air, Settings(context=4096), 1).notes == ()
    prefix = "unheard-of"
    metadata = {key.replace("glm4moe.", f"{prefix}."): value for key, value in air.metadata.items()}
    metadata["general.architecture"] = (
        headers("models")[AIR]
        .metadata["general.architecture"]
        .__class__(
            air.metadata["general.architecture"].type,
            len(prefix).to_bytes(8, "little") + prefix.encode(),
        )
    )
    notes = reckon(replace(air, metadata=metadata), Settings(context=4096), 1).notes
    assert any("no architecture that is known here" in text for text in notes)
    ik = reckon(air, Settings(context=4096), 1, IK_LLAMA_CPP)
    assert ik.engine == "ik_llama.cpp 8337e4c"
    assert any("may differ" in text for text in ik.notes)


def test_a_damaged_header_is_one_line() -> None:
    air = headers("models")[AIR]
    for key, value in (("block_count", 0), ("block_count", 1 << 40), ("embedding_length", None)):
        metadata = dict(air.metadata)
        if value is None:
            del metadata[f"glm4moe.{key}"]
        else:
            old = metadata[f"glm4moe.{key}"]
            metadata[f"glm4moe.{key}"] = old.__class__(
                type(old.type).UINT64, value.to_bytes(8, "little"), None, 0
            )
        with pytest.raises(CheckpointError, match=f"glm4moe.{key}") as caught:
            reckon(replace(air, metadata=metadata), Settings(), 1)
        assert "\n" not in caught.value.message


def test_free_memory_splits_the_blocks() -> None:
    air = headers("models")[AIR]
    cards = (Gpu("", 24 << 30), Gpu("", 8 << 30))
    by_memory = reckon(air, Settings(context=4096), cards)
    by_shares = reckon(air, Settings(context=4096, tensor_split=(3, 1)), 2)
    assert by_memory.devices == by_shares.devices
    assert by_memory.devices[0].weights > 2 * by_memory.devices[1].weights


def test_a_large_model_takes_little_time() -> None:
    header = headers("models")["GLM-4.6.hq4k"]
    settings = Settings(overrides=(EXPERTS,), context=32768, slots=1)
    reckon(header, settings, 1)
    began = time.process_time()
    reckon(header, settings, 1)
    assert time.process_time() - began < 0.2
