"""FC108, FC2xx: options that do not count, and tensors that go elsewhere than they seem to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ggplan.offload.command_traps import Case, Severity, Trap
from ggplan.offload.commands import Given
from ggplan.offload.options import BENCH, HANDLERS
from ggplan.text import printable

_LAST_COUNTS = (frozenset(HANDLERS["llama.cpp"]) | frozenset(HANDLERS["ik_llama.cpp"]) | frozenset(BENCH)) - {
    "-ot", "-cmoe", "-ncmoe", "-ncffn", "--spec-type", "-p", "-n", "-pg", "-d"
}  # fmt: skip


def _overrides(case: Case) -> Iterator[Trap]:
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


def _counted(case: Case, given: Given, indices: list[int], decided: dict[str, str]) -> Iterator[Trap]:
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
    case: Case, given: Given, i: int, names: frozenset[str], decided: dict[str, str]
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
        yield Trap("FC202", "warning", given.line,
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


def _layers(case: Case) -> Iterator[Trap]:
    settings, n = case.command.settings, case.dimensions.n_blocks + 1
    if not 0 < settings.gpu_layers < n or not case.machine.gpus:
        return
    left = n - settings.gpu_layers
    mtp = ", those for multi-token prediction too" if case.dimensions.n_mtp else ""
    blocks = "block 0 is" if left == 1 else f"the first {left} blocks are"
    remedy = f"write -ngl {max(n, 99)}"
    # Where all layers do not fit, fewer are no mistake.
    severity: Severity = "note" if case.is_too_much(replace(settings, gpu_layers=-1)) else "warning"
    if severity == "note":
        remedy += " and keep experts in RAM instead" if case.has_experts else " if they fit: they do not here"
    yield Trap("FC205", severity, case.line_of("-ngl"),
               f"`-ngl {settings.gpu_layers}`: layers are counted from the end and there are {n} with the "
               f"output{mtp}, so {blocks} on the CPU, with the context", remedy)  # fmt: skip


def _repeated(case: Case) -> Iterator[Trap]:
    """Options of which the last counts alone."""
    last: dict[str, Given] = {}
    for given in case.command.given:
        if given.name in _LAST_COUNTS:
            before = last.get(given.name)
            if before is not None and (before.values, before.is_negated) != (given.values, given.is_negated):
                shown = printable(" ".join([before.written, *before.values]))
                yield Trap("FC108", "warning", before.line,
                           f"`{shown}` does not count: `{given.written}` is given again",
                           "leave one of them out")  # fmt: skip
            last[given.name] = given


def _shares(case: Case) -> Iterator[Trap]:
    n, shares = len(case.machine.gpus), case.command.settings.tensor_split
    if n and shares and len(shares) != n and case.command.settings.split_mode != "none":
        what = "the others get nothing" if len(shares) < n else "the rest of them is ignored"
        yield Trap("FC207", "warning", case.line_of("-ts"),
                   f"`-ts` has {len(shares)} shares for {n} GPU{'s' * (n != 1)}: {what}",
                   "write one share a GPU")  # fmt: skip


def _threads(case: Case) -> Iterator[Trap]:
    threads, cores = case.command.settings.threads, case.machine.cores
    if threads and cores and threads > cores:
        yield Trap("FC312", "note", case.line_of("-t"),
                   f"`-t {threads}` is more than the {cores} physical cores: hyperthreads read RAM no faster",
                   f"write -t {cores}")  # fmt: skip


def _counted_on_two(case: Case) -> Iterator[Trap]:
    is_split = len(case.machine.gpus) > 1 and case.command.settings.split_mode != "none"
    if case.command.has("-ncmoe") and is_split:
        line = case.line_of("-ncmoe")
        yield Trap("FC204", "warning", line,
                   "`-ncmoe` moves experts of the first blocks alone, so with several GPUs only the first is "
                   "freed",
                   "name the blocks of each GPU with -ot; `ggplan fit` writes it")  # fmt: skip


CHECKS = (_overrides, _layers, _repeated, _shares, _threads, _counted_on_two)
