"""FC107, FC3xx, FC4xx: memory that is short or taken unawares, and types of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ggplan.errors import Error
from ggplan.offload.allocation import HOST, device_bytes, gpu_name
from ggplan.offload.command_traps import Case, Trap
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.holding import slots_of
from ggplan.offload.placement import shortages
from ggplan.offload.profiles import PROFILES
from ggplan.offload.reckon import reckon
from ggplan.offload.reckoning import Reckoning
from ggplan.offload.settings import Settings
from ggplan.text import format_bytes


def loading(case: Case) -> Iterator[Trap]:
    """What cannot be loaded at all."""
    if isinstance(case.reckoned, Error):
        line = case.line_of("-ot", "-mg", "-c")
        yield Trap("FC107", "error", line, case.reckoned.message, case.reckoned.hint)


def _room(case: Case) -> Iterator[Trap]:
    reckoned, machine = case.reckoned, case.machine
    if isinstance(reckoned, Error):
        return
    streamed = reckoned.streamed
    unread = "--no-op-offload" if case.command.engine == "llama.cpp" else "-op -1,0"
    for shortage in shortages(reckoned, machine):
        short = format_bytes(shortage.short)
        needs = f"{format_bytes(shortage.needed)} needed, {format_bytes(shortage.available)} there"
        if shortage.device == HOST:
            yield Trap("FC303", "error", case.line_of("-cram"),
                       f"RAM is short of {short}: {needs} beside the margin",
                       "`ggplan fit` says what would make it fit")  # fmt: skip
        elif shortage.device == gpu_name(0) and streamed and shortage.short < streamed[1]:
            yield Trap("FC302", "error", case.line_of("-ub", "-ot", "-ncmoe", "-cmoe"),
                       f"CUDA0 is short of {short}: prompts of 32 tokens and more copy {streamed[0]}, "
                       f"{format_bytes(streamed[1])}, to it",
                       f"keep experts of one block more in RAM, or write {unread} and read prompts on the "
                       "CPU")  # fmt: skip
        else:
            yield Trap("FC301", "error", case.line_of("-ngl", "-ot", "-ncmoe", "-c"),
                       f"{shortage.device} is short of {short}: {needs} beside the margin",
                       "`ggplan fit` says what goes where")  # fmt: skip
    yield from _old_conversations(case, reckoned)


def _batches(case: Case) -> Iterator[Trap]:
    settings = case.command.settings
    if settings.micro_batch > settings.batch:
        yield Trap("FC309", "warning", case.line_of("-ub"),
                   f"`-ub {settings.micro_batch}` is cut to the batch, {settings.batch}",
                   f"write -b {settings.micro_batch} too")  # fmt: skip


def _old_conversations(case: Case, reckoned: Reckoning) -> Iterator[Trap]:
    machine, settings = case.machine, case.command.settings
    if settings.program != "llama-server" or machine.ram is None:
        return
    cache = 8192 if settings.host_cache_mib is None else settings.host_cache_mib
    size, host = (cache << 20), reckoned.devices[-1].total
    free = machine.ram - machine.ram_margin - host
    if 0 <= free < size or (cache < 0 <= free):
        limit = "without limit" if cache < 0 else f"in up to {format_bytes(size)}"
        yield Trap("FC303", "warning", case.line_of("-cram"),
                   f"llama-server keeps old conversations in RAM {limit}; {format_bytes(free)} are free",
                   "write -cram 0")  # fmt: skip


def _fit(case: Case) -> Iterator[Trap]:
    command, settings = case.command, case.command.settings
    if command.fits and command.engine == "llama.cpp":
        line = case.line_of("-fit")
        if not settings.context and not command.has("-c"):
            yield Trap("FC304", "warning", line,
                       "llama.cpp's fit is on and no context is stated: where memory is short it cuts the "
                       "context, down to 4096, before anything else", "write -c N and -fit off")  # fmt: skip
        if case.dimensions.n_mtp and not settings.mtp and not command.has("-ngl"):
            yield Trap("FC305", "warning", line,
                       "llama.cpp's fit does not count the file's block for multi-token prediction, so it "
                       "may leave block 0 and its context on the CPU",
                       "write -ngl 99 and -fit off")  # fmt: skip
    elif not settings.context and case.dimensions.trained_context:
        trained = case.dimensions.trained_context
        yield Trap("FC306", "warning", case.line_of("-c"),
                   f"no context is stated: it is what the model was trained with, {trained:,} tokens",
                   "write -c N")  # fmt: skip


_MUCH = 64 << 20  # bytes: what four slots may take more before that is a fault


def _slots(case: Case) -> Iterator[Trap]:
    settings = case.command.settings
    if settings.program != "llama-server" or settings.slots is not None or slots_of(settings)[0] < 2:
        return
    if case.command.engine != "llama.cpp":
        return
    reckoned = case.reckoned
    more, extra = "", 0
    if (case.dimensions.window or any(case.dimensions.recurrent)) and not isinstance(reckoned, Error):
        one = reckon(
            case.header, replace(settings, slots=1), case.machine.gpus, PROFILES[case.command.engine]
        )
        extra = sum(d.context for d in reckoned.devices) - sum(d.context for d in one.devices)
        more = f", which takes {format_bytes(max(extra, 0))} more for windows and state"
    yield Trap("FC307", "warning" if extra > _MUCH else "note", case.line_of("-np"),
               f"llama-server has 4 slots by default, which share the context{more}",
               "write -np 1 for one conversation at a time")  # fmt: skip


def _tied(case: Case) -> Iterator[Trap]:
    if any(t.name == "output.weight" for t in case.header.tensors) or not case.machine.gpus:
        return
    if case.command.settings.gpu_layers == 0:
        return
    for tensor in case.header.tensors:
        if tensor.name == "token_embd.weight":
            size = device_bytes(gpu_name(0), tensor.type, tensor.shape)
            yield Trap("FC308", "note", case.line_of("-ngl"),
                       f"the output is tied to token_embd: it lies in RAM and once more on the GPU, "
                       f"{format_bytes(size)}", "nothing: it is loaded so")  # fmt: skip


def _copies(case: Case) -> Iterator[Trap]:
    settings, reckoned = case.command.settings, case.reckoned
    if isinstance(reckoned, Error) or not case.machine.gpus or not case.has_experts:
        return
    if reckoned.streamed is not None and "mmap" in settings.load_mode:
        option = "-lm none" if case.command.engine == "llama.cpp" else "--no-mmap"
        yield Trap("FC310", "note", case.line_of("-lm", "--mlock"),
                   "the experts in RAM are mapped, so prompts copy them from pages that are not pinned",
                   f"write {option} if RAM holds them: copies are some 1.5 times faster")  # fmt: skip
    if not settings.host_buffer and settings.repack:
        yield Trap("FC311", "warning", case.line_of("--no-host"),
                   "`--no-host` lets experts be repacked for the CPU, and a GPU cannot read those: prompts "
                   "are read on the CPU", "leave it out, or write -nr too")  # fmt: skip


# --- FC4xx: keys and values ------------------------------------------------------------------------------

_KERNELS = frozenset({"f16", "bf16", "q8_0", "q4_0"})


def _cache_types(case: Case) -> Iterator[Trap]:
    settings, dimensions = case.command.settings, case.dimensions
    key, value = settings.cache_k, settings.cache_v
    line = case.line_of("-ctk", "-ctv")
    if dimensions.is_mla and key is not value and case.command.engine == "llama.cpp":
        yield Trap("FC401", "error", line,
                   f"keys in {key.name} and values in {value.name}: the model has latent attention, one "
                   "cache for both", f"write -ctk {key.name} -ctv {key.name}")  # fmt: skip
    if value.is_quantized and settings.flash_attention == "off":
        yield Trap("FC403", "error", case.line_of("-fa", "-no-fa"),
                   f"values in {value.name} need Flash Attention", "write -fa on")  # fmt: skip
    if case.machine.gpus and settings.cache_on_gpu and (odd := without_kernel(settings, dimensions)):
        yield Trap(odd[0], "warning", line, *odd[1:])
    yield from _heads(case, line)
    if settings.flash_attention == "off":
        context = settings.context or dimensions.trained_context
        size = context * min(settings.micro_batch, settings.batch) * max(dimensions.heads, default=0) * 4
        yield Trap("FC406", "warning", case.line_of("-fa", "-no-fa"),
                   f"without Flash Attention a buffer of context × micro-batch × heads is needed, "
                   f"{format_bytes(size)}", "write -fa on")  # fmt: skip


def without_kernel(settings: Settings, dimensions: Dimensions) -> tuple[str, str, str] | None:
    """Types of keys and values that no GPU kernel reads as they are: code, what happens, what to write."""
    key, value = settings.cache_k, settings.cache_v
    odd = [t.name for t in (key, value) if t.name == "iq4_nl"]
    if odd:
        what = f"no CUDA kernel reads a cache in {odd[0]}: attention moves to the CPU"
        return "FC402", what, "write q4_0 or q8_0"
    if key is not value and not dimensions.is_mla:
        what = (
            f"keys in {key.name} and values in {value.name}: stock CUDA builds have kernels for equal types "
            "alone, so the cache is converted to f16 for each token"
        )
        return "FC404", what, f"write -ctk {key.name} -ctv {key.name}"
    if key is value and key.is_quantized and key.name not in _KERNELS:
        what = (
            f"keys and values in {key.name}: stock CUDA builds have no kernel for it, so the cache is "
            "converted to f16 for each token"
        )
        return "FC404", what, "write q8_0 or q4_0"
    return None


def _heads(case: Case, line: int) -> Iterator[Trap]:
    dimensions, settings = case.dimensions, case.command.settings
    for type_, size_of in (
        (settings.cache_k, dimensions.key_size),
        (settings.cache_v, dimensions.value_size),
    ):
        odd = [
            size_of(i) for i in range(dimensions.n_trunk)
            if dimensions.kv_heads[i] and not dimensions.recurrent[i] and size_of(i) % type_.block_size
        ]  # fmt: skip
        if type_.is_quantized and odd:
            yield Trap("FC405", "error", line,
                       f"a head of {odd[0]} does not divide into blocks of {type_.name}, {type_.block_size}",
                       "write f16")  # fmt: skip
            return


CHECKS = (_room, _batches, _fit, _slots, _tied, _copies, _cache_types)
