"""Placements: what is promised of one holds when its printed command is reckoned by itself."""

from __future__ import annotations

import functools
import shlex
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_rows import headers

from ggplan.errors import PlanError
from ggplan.ggml_types import F16, parse_type
from ggplan.metadata import uint32
from ggplan.naming import model_named, recipe_or_mix_named
from ggplan.offload.active import active_bytes
from ggplan.offload.command_checks import check_command
from ggplan.offload.commands import parse_command, read_command
from ggplan.offload.completing import completed
from ggplan.offload.dimensions import dimensions_of
from ggplan.offload.explaining import explained
from ggplan.offload.header import Header, header_of
from ggplan.offload.machine import Gpu, Machine
from ggplan.offload.numbers import numbers_pattern
from ggplan.offload.placement import Placement, Wishes
from ggplan.offload.placing import place
from ggplan.offload.profiles import IK_LLAMA_CPP, LLAMA_CPP, PROFILES
from ggplan.offload.reckon import reckon
from ggplan.offload.settings import Override
from ggplan.offload.speed import prompt
from ggplan.offload.starting import bench_command, bench_settings, script, server_command, shown, unit
from ggplan.offload.ways_out import ways_out
from ggplan.offload.weights import place_weights
from ggplan.planning import make_plan

GIB = 1 << 30
Q8_0 = parse_type("q8_0")


@functools.cache
def header(model: str, recipe: str) -> Header:
    opened = model_named(model)
    plan = make_plan(opened, recipe_or_mix_named(recipe, opened.architecture))
    return completed(header_of(plan))


def air() -> Header:
    return header("GLM-4.5-Air", "glm4moe/hq4_k")


def machine(*vram: float, ram: float | None = 128, bandwidth: float | None = 80e9) -> Machine:
    gpus = tuple(Gpu("", int(v * GIB), 936e9, 22e9) for v in vram)
    return Machine(gpus, None if ram is None else int(ram * GIB), bandwidth, 16)


def reckoned(placement: Placement) -> Placement:
    """The placement's own command, read back and reckoned: the same settings, the same bytes."""
    line = shlex.join(server_command(placement, "m.gguf"))
    read = parse_command(line, placement.profile.engine)
    assert read == placement.settings
    again = reckon(placement.header, read, placement.machine.gpus, placement.profile)
    assert again.devices == placement.reckoning.devices
    return placement


def experts_on(placement: Placement, device: str) -> list[str]:
    return [n for n, d in placement.devices.items() if "_exps." in n and d == device]


def test_glm_4_5_air_with_24_gb_and_128_gb() -> None:
    made = reckoned(place(air(), machine(24)))
    assert made.fits
    assert made.settings.context == 32768
    gpu, host = made.reckoning.devices
    assert gpu.context == 46 * 32768 * 2 * 8 * 128 * 2
    assert host.context == 0
    # All but routed experts and the table of tokens is on the GPU, and some experts too.
    assert {n for n, d in made.devices.items() if d == "host"} == {
        *experts_on(made, "host"),
        "token_embd.weight",
    }
    assert experts_on(made, "CUDA0")
    assert made.in_ram == tuple(range(1, made.in_ram[-1] + 1))
    assert made.generation.low < made.generation.likely < made.generation.high


def test_plain_q8_0_of_glm_4_5_air_fits_there_too() -> None:
    made = reckoned(place(header("GLM-4.5-Air", "Q8_0"), machine(24)))
    assert made.fits
    assert made.reckoning.devices[1].weights > 80 * GIB
    assert 3 < made.generation.likely < 12


def test_one_block_of_experts_more_would_not_fit() -> None:
    made = place(air(), machine(24), Wishes(micro_batch=512))
    last = made.in_ram[-1]
    sizes = [
        t.n_bytes for t in made.header.tensors if t.name.startswith(f"blk.{last}.") and "_exps" in t.name
    ]
    assert 24 * GIB - made.machine.gpu_margin - made.reckoning.devices[0].total < sum(sizes)


def test_everything_is_on_the_gpu_where_it_fits() -> None:
    made = reckoned(place(header("gpt-oss-20b", "gpt-oss/small"), machine(24, ram=32)))
    assert made.fits
    assert made.in_ram == ()
    assert not made.settings.overrides
    assert made.settings.load_mode == "mmap"


def test_no_gpu_at_all() -> None:
    made = reckoned(place(header("Qwen3-8B", "Q4_K_M"), machine(ram=16)))
    assert made.fits
    assert made.settings.gpu_layers == 0
    assert [d.name for d in made.reckoning.devices] == ["host"]


def test_a_dense_model_has_as_many_layers_on_the_gpu_as_fit() -> None:
    made = reckoned(place(header("Llama-3.3-70B", "Q4_K_M"), machine(24, ram=64)))
    assert made.fits
    n = made.settings.gpu_layers
    assert 20 < n < 80
    more = place(made.header, made.machine, Wishes(gpu_layers=n + 1, micro_batch=made.settings.micro_batch))
    assert [s.device for s in more.shortages] == ["CUDA0"]


@pytest.mark.parametrize("vram", [(4, 2), (3.5, 1)])
def test_a_small_second_gpu_does_not_keep_layers_off_the_first(vram: tuple[float, ...]) -> None:
    wishes = Wishes(32768, Q8_0, Q8_0, micro_batch=512)
    made = reckoned(place(header("Qwen3-8B", "Q2_K"), machine(*vram, ram=10), wishes))
    assert made.fits
    n = made.settings.gpu_layers
    assert 0 < n < 36
    more = place(made.header, made.machine, replace(wishes, gpu_layers=n + 1))
    assert any(s.device != "host" for s in more.shortages)


def test_layers_are_split_otherwise_where_ram_would_be_too_small() -> None:
    made = reckoned(place(air(), machine(12, 12, ram=61.2), Wishes(4096, micro_batch=512)))
    assert made.fits
    less = place(air(), machine(12, 12, ram=55), Wishes(4096, micro_batch=512))
    assert [s.device for s in less.shortages] == ["host"]


@pytest.mark.parametrize("vram", [(24, 24), (24, 12), (12, 24), (32, 16, 8)])
def test_several_gpus_hold_layers_in_a_row_and_experts_of_their_own(vram: tuple[float, ...]) -> None:
    made = reckoned(place(air(), machine(*vram)))
    assert made.fits
    assert len(made.settings.tensor_split) == len(vram)
    assert sum(made.settings.tensor_split) == dimensions_of(made.header).n_blocks + 1
    for name in (n for n, d in made.devices.items() if "_exps." in n and d != "host"):
        block = name.split(".")[1]
        assert made.devices[name] == made.devices[f"blk.{block}.attn_norm.weight"]
    assert all(experts_on(made, d.name) for d in made.reckoning.devices[:-1])


def test_a_second_gpu_that_only_costs_time_is_left_out_and_said() -> None:
    made = reckoned(place(header("gpt-oss-20b", "gpt-oss/small"), machine(24, 24)))
    assert made.settings.split_mode == "none"
    assert made.reckoning.devices[1].total == 0
    assert any("a second GPU makes it slower" in note for note in made.notes)


def test_one_gpu_is_used_where_a_split_takes_more_of_the_host_than_there_is() -> None:
    whole = header("Qwen3-8B", "Q8_0")
    made = reckoned(place(whole, machine(24, 32, ram=4.7)))
    assert made.fits
    assert made.settings.split_mode == "none"
    assert made.reckoning.devices[1].total == 0
    assert any(note.startswith("CUDA0 alone is used: spread over 2 GPUs") for note in made.notes)
    assert any("RAM is short of" in note for note in made.notes)
    # Not where the first GPU is too small, or a pin needs the second.
    assert not place(whole, machine(8, 32, ram=4.7)).fits
    pinned = Wishes(pins=(Override("output", "CUDA1"),))
    assert place(whole, machine(24, 32, ram=4.7), pinned).settings.split_mode != "none"


def first_blocks(whole: Header, n: int) -> Header:
    """The same model with its first blocks alone."""
    named = whole.metadata["general.architecture"].decode()
    tensors = tuple(
        t for t in whole.tensors if not t.name.startswith("blk.") or int(t.name.split(".")[1]) < n
    )
    metadata = {**whole.metadata, f"{named}.block_count": uint32(n)}
    return replace(whole, metadata=metadata, tensors=tensors)


@pytest.mark.parametrize(
    ("n_blocks", "mix", "vram", "n_layers"),
    [
        # Layers in proportion to the room did not fit, with one more than this on the other GPU they do.
        (6, "Q4_K_M", (1.44, 1.62), 4),
        (10, "Q8_0", (2.06, 1.57), 2),
        (12, "Q8_0", (2.64, 2.12), 9),
        (8, "Q2_K", (1.81, 1.59), 8),
    ],
)
def test_as_many_layers_are_on_two_gpus_as_any_split_holds(
    n_blocks: int, mix: str, vram: tuple[float, float], n_layers: int
) -> None:
    small = first_blocks(header("Qwen3-8B", mix), n_blocks)
    wishes = Wishes(2048, micro_batch=512)
    made = reckoned(place(small, machine(*vram), wishes))
    n = min(made.settings.gpu_layers, n_blocks + 1)
    assert n >= n_layers
    assert sum(made.settings.tensor_split) == n
    for first in range(n + 2 if n <= n_blocks else 0):
        split = (float(first), float(n + 1 - first))
        more = replace(made.settings, gpu_layers=n + 1, tensor_split=split)
        devices = reckon(small, more, made.machine.gpus).devices
        room = [gpu.memory - made.machine.gpu_margin for gpu in made.machine.gpus]
        assert any(d.total > have for d, have in zip(devices, room, strict=False)), split


def test_wished_layers_are_split_by_their_own_sizes() -> None:
    made = reckoned(place(header("Qwen3-8B", "Q8_0"), machine(8, 8), Wishes(4096, gpu_layers=20)))
    assert made.fits
    assert sum(made.settings.tensor_split) == 20


def test_pins_are_obeyed() -> None:
    pins = (Override(r"blk\.1\..*_exps", "CUDA0"), Override(r"blk\.45\.", "CPU"))
    made = reckoned(place(air(), machine(24), Wishes(pins=pins)))
    assert made.fits
    assert all(d == "CUDA0" for n, d in made.devices.items() if n.startswith("blk.1.") and "_exps" in n)
    assert all(d == "host" for n, d in made.devices.items() if n.startswith("blk.45."))


@pytest.mark.parametrize(
    ("pattern", "device", "message"),
    [
        ("blx", "CPU", "matches no tensor"),
        (r"blk\.46\.", "CPU", "multi-token prediction"),
        ("exps", "CUDA1", "there is no device CUDA1"),
        ("(", "CPU", "no regex"),
        ("blk.{1,2}", "CPU", "end a pattern"),
    ],
)
def test_pins_that_cannot_be_obeyed_are_refused(pattern: str, device: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        place(air(), machine(24), Wishes(pins=(Override(pattern, device),)))


def test_a_pin_that_does_not_fit_is_short_and_one_way_out_is_without_it() -> None:
    made = place(air(), machine(24), Wishes(pins=(Override("_exps", "CUDA0"),)))
    assert [s.device for s in made.shortages] == ["CUDA0"]
    assert "nothing pinned" in [way.what for way in ways_out(made, 4)]


def test_what_does_not_fit_is_said_with_ways_out_that_fit() -> None:
    made = place(air(), machine(16), Wishes(context=131072))
    (shortage,) = made.shortages
    assert shortage.device == "CUDA0"
    assert shortage.short == made.reckoning.devices[0].total - (15 << 30)
    assert made.settings.context == 131072  # the wish stays
    ways = ways_out(made)
    assert 1 <= len(ways) <= 3
    for way in ways:
        assert reckoned(way.placement).fits
    assert not ways_out(place(air(), machine(24)))


def test_ram_that_is_too_small_has_a_smaller_recipe_as_way_out() -> None:
    made = place(air(), machine(24, ram=48))
    assert [s.device for s in made.shortages] == ["host"]
    (way,) = ways_out(made)
    assert "a recipe with the experts in RAM in " in way.what
    assert way.placement.fits
    assert sum(t.n_bytes for t in way.placement.header.tensors) < sum(t.n_bytes for t in air().tensors)


def test_a_wished_micro_batch_stays() -> None:
    for tokens in (256, 4096):
        made = reckoned(place(air(), machine(24), Wishes(micro_batch=tokens)))
        assert made.settings.micro_batch == tokens
        assert made.settings.batch >= tokens


def test_a_larger_micro_batch_is_chosen_where_prompts_gain_and_is_said() -> None:
    made = place(air(), machine(24))
    assert made.settings.micro_batch == 2048
    assert any("a micro-batch of 2048" in note for note in made.notes)
    assert made.prompt.likely > 2 * place(air(), machine(24), Wishes(micro_batch=512)).prompt.likely


def test_layers_in_ram_are_copied_for_prompts_as_experts_are() -> None:
    made = place(header("Llama-3.3-70B", "Q4_K_M"), machine(24, ram=64))
    assert made.settings.load_mode == "none"
    on_cpu = replace(made.settings, op_offload=False)
    active = active_bytes(
        place_weights(made.header, dimensions_of(made.header), on_cpu, made.machine.gpus),
        dimensions_of(made.header),
        on_cpu,
    )
    assert 15 << 30 < active.streamable_matrices < 30 << 30
    assert made.prompt.likely > 8 * prompt(active, made.machine, made.profile, on_cpu).likely


@pytest.mark.parametrize("wishes", [Wishes(pins=(Override("_exps", "CPU"),)), Wishes(gpu_layers=10)])
def test_what_is_wished_in_ram_is_pinned_and_copied_for_prompts(wishes: Wishes) -> None:
    model = header("gpt-oss-20b", "gpt-oss/small")
    made = reckoned(place(model, machine(24), wishes))
    assert made.in_ram
    assert (made.settings.load_mode, made.settings.micro_batch) == ("none", 2048)
    small = reckoned(place(model, machine(24), replace(wishes, micro_batch=512)))
    assert (small.settings.load_mode, small.settings.micro_batch) == ("none", 512)
    assert made.prompt.likely > 1.5 * small.prompt.likely


def test_a_larger_micro_batch_is_left_where_prompts_get_slower() -> None:
    # ik_llama.cpp computes on the CPU up to some tokens an expert, and copies all experts above.
    many = Machine((Gpu("", 24 << 30, 936e9, 24e9, 142e12),), 768 << 30, 300e9, 32)
    made = place(header("Kimi-K2", "Q4_0"), many, profile=PROFILES["ik_llama.cpp"])
    assert made.settings.micro_batch == 512
    assert made.reckoning.streamed is None
    large = place(made.header, many, Wishes(micro_batch=2048), PROFILES["ik_llama.cpp"])
    assert large.reckoning.streamed is not None
    assert large.prompt.likely < made.prompt.likely


VRAM = st.lists(st.sampled_from([6, 8, 12, 16, 24, 32, 48, 96]), max_size=3)


@given(
    vram=VRAM,
    ram=st.sampled_from([16, 64, 96, 128, 256]),
    context=st.sampled_from([4096, 10000, 32768, 131072]),
    quantized=st.booleans(),
    slots=st.integers(1, 3),
    engine=st.sampled_from(["llama.cpp", "ik_llama.cpp"]),
    name=st.sampled_from(["air", "gpt-oss", "dense"]),
)
@settings(max_examples=15, deadline=None)
def test_whatever_the_machine_a_placement_that_fits_fits(
    vram: list[int], ram: int, context: int, quantized: bool, slots: int, engine: str, name: str
) -> None:
    model = {
        "air": air,
        "gpt-oss": lambda: header("gpt-oss-20b", "gpt-oss/small"),
        "dense": lambda: header("Qwen3-8B", "Q4_K_M"),
    }[name]()
    kind = Q8_0 if quantized else F16
    on = machine(*vram, ram=ram)
    made = reckoned(place(model, on, Wishes(context, kind, kind, slots=slots), PROFILES[engine]))
    assert made.settings.context == context
    assert made.settings.cache_k is kind
    sizes = [*(g.memory - on.gpu_margin for g in on.gpus), (ram << 30) - on.ram_margin]
    fits = all(d.total <= max(size, 0) for d, size in zip(made.reckoning.devices, sizes, strict=True))
    assert made.fits == fits
    for pair in explained(made, "m.gguf"):
        assert all(pair)
    if made.fits:
        command = read_command(shlex.join(server_command(made, "m.gguf")), made.profile.engine)
        traps = [t for t in check_command(command, model, on) if t.severity != "note"]
        assert not traps
        assert bench_command(made, "m.gguf")[0] in ("llama-bench", "llama-sweep-bench")


def test_scripts_and_services_start_the_same() -> None:
    made = place(air(), machine(24, 12))
    words = server_command(made, "/models/air $x 100% 'q'.gguf")
    run = script(words).replace("\\\n", " ").splitlines()[1]
    assert shlex.split(run)[1:-1] == words
    assert shlex.split(shown(words).replace("\\\n", " ")) == words
    service = unit(words, "llama-server with air")
    start = service[service.index("ExecStart=") + 10 : service.index("Restart=")].replace("\\\n", " ")
    # systemd resolves %% and $$ after quotes and backslashes.
    assert [w.replace("%%", "%").replace("$$", "$") for w in shlex.split(start)][1:] == words


def test_a_name_of_two_lines_is_no_directive_of_a_service() -> None:
    service = unit(["llama-server", "-m", "a\nExecStartPre=rm b.gguf"], "of a\nb")
    assert '"a\\x0aExecStartPre=rm b.gguf"' in service
    assert not any(line.startswith(("ExecStartPre", "b")) for line in service.splitlines())


def test_ik_llama_is_told_in_its_own_words() -> None:
    words = server_command(place(air(), machine(24), profile=IK_LLAMA_CPP), "m.gguf")
    assert "--no-mmap" in words
    assert not {"-lm", "-fit", "-ncmoe"} & set(words)
    bench = bench_command(place(air(), machine(24), profile=IK_LLAMA_CPP), "m.gguf")
    assert bench[0] == "llama-sweep-bench"


def test_a_placement_of_1800_tensors_takes_half_a_second_at_most() -> None:
    model = header("GLM-4.6", "glm4moe/hq4_k")
    assert len(model.tensors) > 1700
    place(model, machine(48, ram=512))  # what is imported on the way
    before = time.process_time()
    assert place(model, machine(48, ram=512)).fits
    assert time.process_time() - before < 1.0  # half a second by itself; the machine of a test does more


@given(st.sets(st.integers(0, 199), min_size=1))
def test_numbers_are_found_and_no_others(numbers: set[int]) -> None:
    import re

    pattern = numbers_pattern(numbers)
    assert not set(",{}=;") & set(pattern)
    found = {n for n in range(2000) if re.search(rf"blk\.{pattern}\.", f"blk.{n}.ffn")}
    assert found == numbers


def test_the_profile_is_that_of_the_engine() -> None:
    assert place(air(), machine(24)).profile is LLAMA_CPP
    assert replace(place(air(), machine(24)), notes=()).fits


def test_a_larger_micro_batch_is_only_taken_where_it_reads_prompts_faster() -> None:
    # Copying 200 GB of experts takes longer than computing a small batch on the cores of a server.
    model = headers("models")["Qwen3.5-397B-A17B.q4km"]
    server = Machine((Gpu("", 24 * GIB, 936e9, 22e9),), 512 * GIB, 400e9, 64)
    found = place(model, server, Wishes(context=8192), IK_LLAMA_CPP)
    small = place(model, server, Wishes(context=8192, micro_batch=512), IK_LLAMA_CPP)
    assert found.prompt.likely >= small.prompt.likely


def test_a_gpu_that_is_too_small_for_anything_is_left_out() -> None:
    found = place(air(), machine(1), Wishes(context=8192))
    assert not found.fits
    ways = ways_out(found)
    assert [way.options for way in ways] == ["--gpus 0"]
    assert ways[0].placement.fits
    assert ways[0].placement.settings.gpu_layers == 0


def test_all_experts_in_fewer_bits_where_those_in_ram_alone_are_not_enough() -> None:
    found = place(air(), machine(24, ram=32), Wishes(context=32768))
    (way,) = ways_out(found)
    assert "all experts in" in way.what
    assert way.placement.fits


def test_the_order_of_gpus_is_a_way_out() -> None:
    # 80 GB have room for the tensor that is streamed, 6 GB have not.
    model = headers("models")["Kimi-K2.q4_0"]
    found = place(model, machine(6, 80, ram=512), Wishes(context=4096))
    assert [s.device for s in found.shortages] == ["CUDA0", "host"]
    way = ways_out(found, 1)[0]
    assert way.options == "--vram 80G,6G"
    assert "CUDA_VISIBLE_DEVICES=1,0" in way.what
    assert place(model, machine(80, 6, ram=512), Wishes(context=4096)).fits


@pytest.mark.parametrize("vram", [(24,), (24, 12), (16,), (12, 12)])
def test_what_measures_it_fits_too(vram: tuple[float, ...]) -> None:
    # llama-bench holds the logits of every token: 1.2 GB for 2,048 of GLM-4.5-Air, more than is left.
    made = place(air(), machine(*vram), Wishes(context=8192))
    read = parse_command(shlex.join(bench_command(made, "m.gguf")))
    found = reckon(air(), read, made.machine.gpus)
    for device, gpu in zip(found.devices[:-1], made.machine.gpus, strict=True):
        assert device.total <= gpu.memory - made.machine.gpu_margin
    assert read.overrides == made.settings.overrides
    assert read.micro_batch == bench_settings(made).micro_batch <= made.settings.micro_batch


def test_wished_layers_are_placed_alike_whether_all_would_fit_or_not() -> None:
    model = headers("models")["Qwen3-30B-A3B.q4km"]
    small, large = (place(model, machine(vram), Wishes(context=8192, gpu_layers=10)) for vram in (12, 24))
    assert large.settings == small.settings
    assert large.prompt == small.prompt


@pytest.mark.parametrize(
    ("n_blocks", "mix", "vram", "ram"),
    [(4, "Q3_K_M", 2.46, 4.2726), (5, "Q4_K_M", 2.95, 4.6758), (5, "Q3_K_M", 2.26, 4.8108)],
)
def test_experts_are_chosen_by_bytes_where_ram_is_too_small_for_the_fastest(
    n_blocks: int, mix: str, vram: float, ram: float
) -> None:
    """With more RAM other experts are in it, which would be too many here."""
    small = first_blocks(header("Qwen3-30B-A3B", mix), n_blocks)
    wishes = Wishes(2048, micro_batch=512)
    made = reckoned(place(small, machine(vram, ram=ram), wishes))
    assert made.fits
    plain = place(small, machine(vram, ram=ram + 1), wishes)
    assert plain.reckoning.devices[1].total > (ram - 4) * GIB
    assert not place(small, machine(vram, ram=ram - 0.2), wishes).fits
