r"""Checks of a command line against a file and a machine: what the program would refuse, and known traps.

    FC1xx   the program refuses it
    FC2xx   it puts tensors elsewhere than it seems to
    FC3xx   it needs more memory than it seems to, or than there is
    FC4xx   the types of keys and values

`TRAPS` has the code of each with what it is about. A note is of what is not wrong, and worth knowing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import re2

from ggplan.errors import Error
from ggplan.offload.allocation import HOST, device_bytes, gpu_name
from ggplan.offload.commands import Command, FaultKind, Given
from ggplan.offload.dimensions import Dimensions, dimensions_of
from ggplan.offload.filling import expert_blocks
from ggplan.offload.header import Header
from ggplan.offload.holding import slots_of
from ggplan.offload.machine import Machine
from ggplan.offload.placement import shortages
from ggplan.offload.profiles import PROFILES
from ggplan.offload.reckon import reckon
from ggplan.offload.reckoning import Reckoning
from ggplan.text import format_bytes, printable

Severity = Literal["error", "warning", "note"]

_REFUSED: Mapping[FaultKind, str] = {
    "unknown": "FC101",
    "other engine": "FC102",
    "gone": "FC103",
    "value": "FC104",
    "missing": "FC105",
    "cut regex": "FC106",
}
TRAPS: Mapping[str, str] = {
    "FC101": "an option that the program does not have",
    "FC102": "an option of the other engine",
    "FC103": "an option that no longer exists",
    "FC104": "a value that the option does not take",
    "FC105": "an option without its value",
    "FC106": "a comma in a regex after -ot, where it ends an entry",
    "FC107": "a setting that cannot be loaded",
    "FC201": "an override that matches no tensor",
    "FC202": "an override whose tensors earlier ones decide",
    "FC203": "a block's number that is the beginning of others: `blk.1` is in `blk.10` too",
    "FC204": "-ncmoe with several GPUs, of which it frees the first alone",
    "FC205": "-ngl that leaves blocks on the CPU",
    "FC206": "an option of experts for a model that has none",
    "FC301": "a GPU that is too small",
    "FC302": "a GPU that is too small for the experts that are copied to it",
    "FC303": "RAM that is too small, with the old conversations that llama-server keeps",
    "FC304": "the engine's own fit, which cuts a context that is not stated",
    "FC305": "the engine's own fit, which leaves a block of a file for multi-token prediction on the CPU",
    "FC306": "a context that is not stated: what the model was trained with",
    "FC307": "four slots by default",
    "FC308": "a tied output, which is on the GPU a second time",
    "FC309": "a micro-batch that is larger than the batch",
    "FC310": "experts that are copied from mapped memory",
    "FC311": "experts that no GPU can read, because they are repacked",
    "FC401": "different types of keys and values with latent attention",
    "FC402": "a type of keys or values that no GPU kernel reads",
    "FC403": "quantized values without Flash Attention",
    "FC404": "a pair of types of keys and values without a kernel of its own",
    "FC405": "a quantized type that a head does not divide by",
    "FC406": "attention without Flash Attention",
}


@dataclass(frozen=True, slots=True)
class Trap:
    """Something that a command line does and its writer hardly meant.

    Attributes
    ----------
    code
        A key of `TRAPS`.
    severity
        `error`: it does not start or not fit; `warning`: it does something else than it seems to; `note`.
    line
        Of the command, from 1.
    message, remedy
        What it does, and what to write instead.
    """

    code: str
    severity: Severity
    line: int
    message: str
    remedy: str


def check_command(command: Command, header: Header, machine: Machine) -> tuple[Trap, ...]:
    """The traps of a command line, by line.

    Parameters
    ----------
    machine
        Whose GPUs and RAM there are; without RAM or GPUs nothing is said of them.

    Raises
    ------
    CheckpointError
        If the header lacks what the engine needs.
    """
    case = _Case(command, header, machine, dimensions_of(header))
    found = [Trap(_REFUSED[f.kind], "error", f.line, f.message, f.hint) for f in command.faults]
    for check in _CHECKS:
        found += check(case)
    if not any(trap.severity == "error" for trap in found):
        found += _loading(case)  # what is wrong in general, where nothing in particular is
    return tuple(sorted(found, key=lambda trap: (trap.line, trap.code)))


@dataclass(frozen=True)
class _Case:
    command: Command
    header: Header
    machine: Machine
    dimensions: Dimensions

    @cached_property
    def reckoned(self) -> Reckoning | Error:
        """What it allocates, or why that cannot be said."""
        try:
            profile = PROFILES[self.command.engine]
            return reckon(self.header, self.command.settings, self.machine.gpus, profile)
        except Error as error:
            return error

    @cached_property
    def matches(self) -> list[frozenset[str] | None]:
        """The tensors in whose names each override is found; None where it is no regex."""
        names = [t.name for t in self.header.tensors]
        found: list[frozenset[str] | None] = []
        for override in self.command.settings.overrides:
            search = _compiled(override.pattern)
            found.append(None if search is None else frozenset(n for n in names if search.search(n)))
        return found

    @cached_property
    def has_experts(self) -> bool:
        return bool(expert_blocks(self.header, self.dimensions))

    def line_of(self, *names: str) -> int:
        """The line of the last of these options that is given; 1 if none is."""
        return next((g.line for g in reversed(self.command.given) if g.name in names), 1)


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


# --- FC1xx, FC2xx: refusals and places -----------------------------------------------------------------


def _loading(case: _Case) -> Iterator[Trap]:
    if isinstance(case.reckoned, Error):
        line = case.line_of("-ot", "-mg", "-c")
        yield Trap("FC107", "error", line, case.reckoned.message, case.reckoned.hint)


def _overrides(case: _Case) -> Iterator[Trap]:
    """Overrides that match nothing, that never decide, or that match blocks they do not name."""
    command = case.command
    decided: dict[str, str] = {}
    by_option: dict[int, list[int]] = {}
    for i, source in enumerate(command.sources):
        by_option.setdefault(source, []).append(i)
    for source, indices in by_option.items():
        given = command.given[source] if source < len(command.given) else None
        if given is None:
            continue
        if given.name != "-ot":
            yield from _counted(case, given, indices, decided)
            continue
        for i in indices:
            names = case.matches[i]
            if names is None:
                continue
            yield from _one_override(case, given, i, names, decided)
            _decide(decided, names, command.settings.overrides[i].device)


def _counted(case: _Case, given: Given, indices: list[int], decided: dict[str, str]) -> Iterator[Trap]:
    """`-cmoe`, `-ncmoe` and `-ncffn`, which stand for many overrides."""
    names = frozenset().union(*(case.matches[i] or frozenset() for i in indices))
    shown = " ".join([given.written, *given.values])
    if not names and not case.has_experts and given.name != "-ncffn":
        yield Trap("FC206", "warning", given.line, f"`{shown}`: the model has no routed experts",
                   "leave it out; `-ngl N` puts fewer layers on the GPU")  # fmt: skip
    elif not names and indices:
        yield Trap("FC201", "warning", given.line, f"`{shown}` moves no tensor: dense blocks come first",
                   "count all blocks from the first")  # fmt: skip
    elif names and names <= decided.keys():
        severity: Severity = "note" if {decided[n] for n in names} == {"CPU"} else "warning"
        yield Trap("FC202", severity, given.line, f"`{shown}` decides nothing: options before it decide all",
                   "put it first, or leave it out")  # fmt: skip
    _decide(decided, names, "CPU")


def _decide(decided: dict[str, str], names: Iterable[str], device: str) -> None:
    for name in names:
        decided.setdefault(name, device)


def _one_override(
    case: _Case, given: Given, i: int, names: frozenset[str], decided: dict[str, str]
) -> Iterator[Trap]:
    override = case.command.settings.overrides[i]
    shown = f"`{printable(override.pattern)}={override.device}`"
    if not names:
        remedy = "`ggplan inspect FILE --tensors` lists the names"
        if re.search(r"blk\d|[^\\]\\\\", override.pattern):
            remedy = r"write blk\.N\.; in a shell, quote the pattern"
        yield Trap("FC201", "warning", given.line, f"{shown} matches no tensor", remedy)
        return
    if names <= decided.keys():
        severity: Severity = "note" if {decided[n] for n in names} == {override.device} else "warning"
        yield Trap("FC202", severity, given.line,
                   f"{shown} decides nothing: the first match wins, and all its {len(names)} tensors are "
                   "matched by overrides before it", "put it before them")  # fmt: skip
    yield from _open_number(given, override.pattern, shown, names)


def _open_number(given: Given, pattern: str, shown: str, names: frozenset[str]) -> Iterator[Trap]:
    """A number, or `(1|2)`, after `blk` without what ends it."""
    for found in re.finditer(r"blk(?:\\\\?\.|\.|\[\.\])(?P<n>\(?[\d|]+\)?)(?P<next>.{0,3})", pattern):
        numbers = set(re.findall(r"\d+", found["n"]))
        follows = found["next"]
        if re.match(r"\\\.|\.[^*+?]|\[\.\]|\.$|\d|\[|\(", follows) and not follows.startswith((".*", ".+")):
            continue
        matched = {m[1] for name in names if (m := re.match(r"blk\.(\d+)\.", name))}
        others = sorted((n for n in matched - numbers if any(n.startswith(x) for x in numbers)), key=int)
        if others:
            yield Trap("FC203", "warning", given.line,
                       f"{shown} is found in blocks {', '.join(others[:4])}{', ...' * (len(others) > 4)} too",
                       rf"end the number: blk\.{found['n']}\.")  # fmt: skip
        return


def _layers(case: _Case) -> Iterator[Trap]:
    settings, n = case.command.settings, case.dimensions.n_blocks + 1
    if settings.gpu_layers < 0 or settings.gpu_layers >= n or not case.machine.gpus:
        return
    if settings.gpu_layers == 0:
        return
    left = n - settings.gpu_layers
    mtp = ""
    if case.dimensions.n_mtp:
        mtp = f", of which {case.dimensions.n_mtp} for multi-token prediction counts too"
    blocks = "block 0 is" if left == 1 else f"the first {left} blocks are"
    yield Trap("FC205", "warning", case.line_of("-ngl"),
               f"`-ngl {settings.gpu_layers}`: layers are counted from the end and there are {n} with the "
               f"output{mtp}, so {blocks} on the CPU with the context",
               f"write -ngl {max(n, 99)}, and move experts to RAM instead"
               if case.has_experts else f"write -ngl {max(n, 99)} if they fit")  # fmt: skip


def _counted_on_two(case: _Case) -> Iterator[Trap]:
    if case.command.has("-ncmoe") and len(case.machine.gpus) > 1:
        line = case.line_of("-ncmoe")
        yield Trap("FC204", "warning", line,
                   "`-ncmoe` moves experts of the first blocks alone, so with several GPUs only the first is "
                   "freed",
                   "name the blocks of each GPU with -ot; `ggplan fit` writes it")  # fmt: skip


# --- FC3xx: memory ---------------------------------------------------------------------------------------


def _room(case: _Case) -> Iterator[Trap]:
    reckoned, machine, settings = case.reckoned, case.machine, case.command.settings
    if isinstance(reckoned, Error):
        return
    streamed = reckoned.streamed
    for shortage in shortages(reckoned, machine):
        short = format_bytes(shortage.short)
        needs = f"{format_bytes(shortage.needed)} of {format_bytes(shortage.available)}"
        if shortage.device == HOST:
            yield Trap("FC303", "error", case.line_of("-cram"),
                       f"RAM is short of {short}: it needs {needs} beside the margin",
                       "`ggplan fit` says what would make it fit")  # fmt: skip
        elif shortage.device == gpu_name(0) and streamed and shortage.short < streamed[1]:
            yield Trap("FC302", "error", case.line_of("-ub", "-ot", "-ncmoe", "-cmoe"),
                       f"CUDA0 is short of {short}: prompts of 32 tokens and more copy {streamed[0]}, "
                       f"{format_bytes(streamed[1])}, to it",
                       "keep experts of one block more in RAM, or write --no-op-offload and read prompts on "
                       "the CPU")  # fmt: skip
        else:
            yield Trap("FC301", "error", case.line_of("-ngl", "-ot", "-ncmoe", "-c"),
                       f"{shortage.device} is short of {short}: it needs {needs} beside the margin",
                       "`ggplan fit` says what goes where")  # fmt: skip
    yield from _old_conversations(case, reckoned)
    if settings.micro_batch > settings.batch:
        yield Trap("FC309", "warning", case.line_of("-ub"),
                   f"`-ub {settings.micro_batch}` is cut to the batch, {settings.batch}",
                   f"write -b {settings.micro_batch} too")  # fmt: skip


def _old_conversations(case: _Case, reckoned: Reckoning) -> Iterator[Trap]:
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


def _fit(case: _Case) -> Iterator[Trap]:
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


def _slots(case: _Case) -> Iterator[Trap]:
    settings = case.command.settings
    if settings.program != "llama-server" or settings.slots is not None or slots_of(settings)[0] < 2:
        return
    if case.command.engine != "llama.cpp":
        return
    costs = case.dimensions.window or any(case.dimensions.recurrent)
    reckoned = case.reckoned
    more = ""
    if costs and not isinstance(reckoned, Error):
        one = reckon(
            case.header, replace(settings, slots=1), case.machine.gpus, PROFILES[case.command.engine]
        )
        extra = sum(d.context for d in reckoned.devices) - sum(d.context for d in one.devices)
        more = f", which takes {format_bytes(max(extra, 0))} more for windows and state"
    yield Trap("FC307", "warning" if costs else "note", case.line_of("-np"),
               f"llama-server has 4 slots by default, which share the context{more}",
               "write -np 1 for one conversation at a time")  # fmt: skip


def _tied(case: _Case) -> Iterator[Trap]:
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


def _copies(case: _Case) -> Iterator[Trap]:
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


def _cache_types(case: _Case) -> Iterator[Trap]:
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
    odd = [t.name for t in (key, value) if t.name == "iq4_nl"]
    if odd and case.machine.gpus and settings.cache_on_gpu:
        yield Trap("FC402", "warning", line,
                   f"no CUDA kernel reads a cache in {odd[0]}: attention moves to the CPU",
                   "write q4_0 or q8_0")  # fmt: skip
    elif key is not value and not dimensions.is_mla and case.machine.gpus:
        yield Trap("FC404", "warning", line,
                   f"keys in {key.name} and values in {value.name}: stock CUDA builds have kernels for equal "
                   "types alone, so the cache is converted to f16 for each token",
                   f"write -ctk {key.name} -ctv {key.name}")  # fmt: skip
    elif key is value and key.is_quantized and key.name not in _KERNELS and case.machine.gpus:
        yield Trap("FC404", "warning", line,
                   f"keys and values in {key.name}: stock CUDA builds have no kernel for it, so the cache is "
                   "converted to f16 for each token", "write q8_0 or q4_0")  # fmt: skip
    yield from _heads(case, line)
    if settings.flash_attention == "off":
        context = settings.context or dimensions.trained_context
        size = context * min(settings.micro_batch, settings.batch) * max(dimensions.heads, default=0) * 4
        yield Trap("FC406", "warning", case.line_of("-fa", "-no-fa"),
                   f"without Flash Attention a buffer of context × micro-batch × heads is needed, "
                   f"{format_bytes(size)}", "write -fa on")  # fmt: skip


def _heads(case: _Case, line: int) -> Iterator[Trap]:
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


_CHECKS = (_overrides, _layers, _counted_on_two, _room, _fit, _slots, _tied, _copies, _cache_types)
