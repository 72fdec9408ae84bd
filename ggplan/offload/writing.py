"""Settings written as the command line that an engine reads back as them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggplan.errors import CommandError
from ggplan.ggml_types import F16, Engine
from ggplan.offload.flags import PROGRAMS, all_flags, flags_of
from ggplan.offload.options import DENSE, first_blocks
from ggplan.offload.settings import Override, Settings
from ggplan.planning.devices import EXPERTS

_DEFAULTS = Settings()


def write_command(settings: Settings, file: str, engine: Engine) -> list[str]:
    """The words of the command: the program, then one option after another.

    What is at the program's default is left out, but for the context, the layers on the GPU, the micro-batch
    and Flash Attention, which a reader looks for; `-fit off` holds llama.cpp to what is written.

    Raises
    ------
    CommandError
        If the engine's program has no option for a setting.
    """
    words = [settings.program]
    for flag in written_flags(settings, file, engine):
        words += flag
    return words


def written_flags(settings: Settings, file: str, engine: Engine) -> list[tuple[str, ...]]:
    """The options of `write_command`: each with its values."""
    if settings.program not in PROGRAMS:
        raise CommandError(f"`{settings.program}` is no program whose options are known")
    if settings.program == "llama-bench":
        if engine != "llama.cpp":
            raise CommandError(
                "the options of ik_llama.cpp's llama-bench are not known", hint="use llama-sweep-bench"
            )
        flags = list(_bench_flags(settings, file))
    else:
        flags = list(_flags(settings, file, engine))
    known = flags_of(engine, settings.program)
    for flag in flags:
        if flag[0] not in known:
            has = "" if flag[0] in all_flags(engine) else f", nor has {engine}"
            raise CommandError(f"{settings.program} has no option {flag[0]}{has}")
    return flags


def _flags(settings: Settings, file: str, engine: Engine) -> Iterator[tuple[str, ...]]:
    is_ik = engine == "ik_llama.cpp"
    yield "-m", file
    if settings.context is not None:
        yield "-c", str(settings.context)
    if settings.slots is not None:
        yield "-np", str(settings.slots)
    if settings.unified_cache is not None:
        yield ("-kvu" if settings.unified_cache else "-no-kvu",)
    if settings.gpu_layers >= 0:
        yield "-ngl", str(settings.gpu_layers)
    elif not is_ik:
        yield "-ngl", "all"
    if not is_ik:
        yield "-fit", "off"
    yield from _devices(settings)
    if not is_ik or settings.flash_attention != "auto":
        yield "-fa", settings.flash_attention
    if settings.batch != _DEFAULTS.batch:
        yield "-b", str(settings.batch)
    yield "-ub", str(settings.micro_batch)
    yield from _cache_types(settings)
    yield from _overrides(settings.overrides, engine)
    if not settings.cache_on_gpu:
        yield ("-nkvo",)
    if not settings.op_offload:
        yield ("-op", "-1,0") if is_ik else ("--no-op-offload",)
    if settings.full_window:
        yield ("--swa-full",)
    if settings.load_mode != _DEFAULTS.load_mode:
        yield from _ik_load_mode(settings) if is_ik else [("-lm", settings.load_mode)]
    if not settings.repack:
        yield ("-nr",)
    if not settings.host_buffer:
        yield ("--no-host",)
    if kinds := [
        *["mtp" if is_ik else "draft-mtp"] * settings.mtp,
        *["ngram-mod"] * (settings.n_guessed > 0),
    ]:
        yield "--spec-type", ",".join(kinds)
    if settings.n_drafted != _DEFAULTS.n_drafted:
        yield "--spec-draft-n-max", str(settings.n_drafted)
    if settings.n_guessed:
        yield "--spec-ngram-mod-n-max", str(settings.n_guessed)
    if settings.threads is not None:
        yield "-t", str(settings.threads)
    if settings.host_cache_mib is not None:
        yield "-cram", str(settings.host_cache_mib)


def _devices(settings: Settings) -> Iterator[tuple[str, ...]]:
    separator = "/" if settings.program == "llama-bench" else ","
    if settings.split_mode != _DEFAULTS.split_mode:
        yield "-sm", settings.split_mode
    if settings.main_gpu:
        yield "-mg", str(settings.main_gpu)
    if settings.tensor_split:
        yield "-ts", separator.join(f"{share:g}" for share in settings.tensor_split)


def _cache_types(settings: Settings) -> Iterator[tuple[str, ...]]:
    for option, type_ in (("-ctk", settings.cache_k), ("-ctv", settings.cache_v)):
        if type_ is not F16:
            yield option, type_.name


def _ik_load_mode(settings: Settings) -> Iterator[tuple[str, ...]]:
    if settings.load_mode == "dio":
        raise CommandError("ik_llama.cpp cannot read the file with direct I/O", hint="use mmap or none")
    if settings.load_mode in ("none", "mlock"):
        yield ("--no-mmap",)
    if "mlock" in settings.load_mode:
        yield ("--mlock",)


def _overrides(overrides: tuple[Override, ...], engine: Engine) -> Iterator[tuple[str, ...]]:
    """`-cmoe`, `-ncmoe` and `-ncffn` where they say the same; ik_llama.cpp puts these behind every `-ot`."""
    short = [] if engine == "ik_llama.cpp" else _shortened(overrides)
    at = 0
    for start, end, flag in short:
        yield from _patterns(overrides[at:start], ",")
        yield flag
        at = end
    yield from _patterns(overrides[at:], ",")


def _shortened(overrides: tuple[Override, ...]) -> list[tuple[int, int, tuple[str, ...]]]:
    """Runs of overrides that an option of their own stands for: from, to, the option."""
    found: list[tuple[int, int, tuple[str, ...]]] = []
    at = 0
    while at < len(overrides):
        if overrides[at] == Override(EXPERTS, "CPU"):
            found.append((at, at + 1, ("-cmoe",)))
            at += 1
            continue
        option, n = max((("-ncmoe", _run(overrides, at, EXPERTS)), ("-ncffn", _run(overrides, at, DENSE))),
                        key=lambda pair: pair[1])  # fmt: skip
        if n:
            found.append((at, at + n, (option, str(n))))
        at += n or 1
    return found


def _run(overrides: tuple[Override, ...], at: int, pattern: str) -> int:
    """How many overrides from `at` are those of blocks 0, 1, 2, ..."""
    rest = overrides[at:]
    wanted = first_blocks(len(rest), pattern)
    return next((i for i, (a, b) in enumerate(zip(rest, wanted, strict=True)) if a != b), len(rest))


def _patterns(overrides: Iterable[Override], separator: str) -> Iterator[tuple[str, ...]]:
    entries = []
    for override in overrides:
        if separator in override.pattern or "=" in override.pattern:
            raise CommandError(
                f"the pattern `{override.pattern}` cannot be written after -ot, which cuts it at "
                f"`{separator}` and at the first `=`",
                hint="write alternatives as `(1|2)`",
            )
        entries.append(f"{override.pattern}={override.device}")
    if separator == ";":  # of several -ot llama-bench makes several tests
        entries = [";".join(entries)] if entries else []
    for entry in entries:
        yield "-ot", entry


def _bench_flags(settings: Settings, file: str) -> Iterator[tuple[str, ...]]:
    """llama-bench's own parser: one value after every option, and a context of prompt, tokens and depth."""
    _refuse_unless_default(settings, _NOT_OF_BENCH)
    context = settings.context or 512
    prompt = min(context, settings.micro_batch, 512) if context < 2048 else min(context, settings.micro_batch)
    yield "-m", file
    yield "-p", str(prompt)
    yield "-n", str(min(prompt, 128))
    if context > prompt:
        yield "-d", f"0,{context - prompt}"
    if settings.gpu_layers >= 0:
        yield "-ngl", str(settings.gpu_layers)
    yield from _devices(settings)
    yield "-fa", settings.flash_attention
    if settings.batch != _DEFAULTS.batch:
        yield "-b", str(settings.batch)
    yield "-ub", str(settings.micro_batch)
    yield from _cache_types(settings)
    overrides = settings.overrides
    n_last = next(
        (n for n in range(len(overrides), 0, -1) if _run(overrides, len(overrides) - n, EXPERTS) == n), 0
    )
    yield from _patterns(overrides[: len(overrides) - n_last], ";")
    if n_last:
        yield "-ncmoe", str(n_last)
    if not settings.cache_on_gpu:
        yield "-nkvo", "1"
    if not settings.op_offload:
        yield "-nopo", "1"
    if settings.load_mode != _DEFAULTS.load_mode:
        yield "-lm", settings.load_mode
    if not settings.repack:
        yield "--repack", "0"
    if not settings.host_buffer:
        yield "--no-host", "1"
    if settings.threads is not None:
        yield "-t", str(settings.threads)


_NOT_OF_BENCH = (
    "slots", "unified_cache", "full_window", "mtp", "n_drafted", "n_guessed", "host_cache_mib",
)  # fmt: skip


def _refuse_unless_default(settings: Settings, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(settings, name) != getattr(_DEFAULTS, name):
            raise CommandError(f"{settings.program} has no option for {name.replace('_', ' ')}")
