"""What each option of an engine's programs says about memory, written down as it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ggplan.ggml_types import Engine
from ggplan.offload.settings import Override
from ggplan.offload.values import (
    BadValue,
    cache_type,
    flash_attention,
    float_list,
    integer,
    one_of,
    overrides_of,
    switch,
)
from ggplan.planning.devices import EXPERTS
from ggplan.text import printable

# `LLM_FFN_DENSE_REGEX` of llama.cpp's common/common.h: what -ncffn moves.
DENSE = r"\.ffn_(up|down|gate)\."

# What builds of last year took and these do not: the words that follow, and what to write instead.
GONE: Mapping[Engine, Mapping[str, tuple[int, str]]] = {
    "llama.cpp": {
        "--no-mmap": (0, "-lm none"),
        "--mmap": (0, "-lm mmap"),
        "--mlock": (0, "-lm mlock, or -lm mmap+mlock"),
        "-dio": (0, "-lm dio"),
        "--direct-io": (0, "-lm dio"),
        "-ndio": (0, "-lm mmap"),
        "--no-direct-io": (0, "-lm mmap"),
        "-mmp": (1, "-lm mmap, or -lm none for 0"),
        "--draft": (1, "--spec-draft-n-max"),
        "--draft-n": (1, "--spec-draft-n-max"),
        "--draft-max": (1, "--spec-draft-n-max"),
        "--draft-min": (1, "--spec-draft-n-min"),
        "--draft-n-min": (1, "--spec-draft-n-min"),
        "--spec-ngram-size-n": (1, "--spec-ngram-simple-size-n and its like"),
        "--spec-ngram-size-m": (1, "--spec-ngram-simple-size-m and its like"),
        "--spec-ngram-min-hits": (1, "--spec-ngram-simple-min-hits and its like"),
    },
    "ik_llama.cpp": {
        "-fmoe": (0, "nothing: it is on by default"),
        "--fused-moe": (0, "nothing: it is on by default"),
        "-mtp": (0, "--spec-type mtp:n_max=1,p_min=0.0"),
        "--multi-token-prediction": (0, "--spec-type mtp:n_max=1,p_min=0.0"),
        "-no-mtp": (0, "no --spec-type"),
        "--no-multi-token-prediction": (0, "no --spec-type"),
        "--draft": (1, "--spec-type draft:n_max=N"),
        "--draft-n": (1, "--spec-type draft:n_max=N"),
        "--draft-max": (1, "--spec-type draft:n_max=N"),
        "--draft-min": (1, "--spec-type draft:n_min=N"),
        "--draft-n-min": (1, "--spec-type draft:n_min=N"),
        "--draft-p-min": (1, "--spec-type draft:p_min=P"),
        "--spec-stage": (1, "one --spec-type a stage"),
    },
}

# What options that are gone meant, of `-lm`.
GONE_LOAD_MODES: Mapping[str, Literal["none", "mmap", "mmap+mlock", "dio"]] = {
    "--no-mmap": "none", "--mmap": "mmap", "--mlock": "mmap+mlock", "-dio": "dio", "--direct-io": "dio",
    "-ndio": "mmap", "--no-direct-io": "mmap",
}  # fmt: skip

# What costs or saves memory, or changes speed, and is not reckoned.
UNRECKONED: Mapping[str, str] = {
    **dict.fromkeys(("-mm", "-mmu", "--mmproj", "--mmproj-url"), "the projector's own memory"),
    **dict.fromkeys(("--spec-draft-model", "--spec-draft-hf", "-md"), "the draft model's own memory"),
    **dict.fromkeys(("--lora", "--lora-scaled"), "the adapter's own memory"),
    **dict.fromkeys(("--control-vector", "--control-vector-scaled"), "the vector's own memory"),
    "--rpc": "what lies on other machines",
    "--override-kv": "what it changes in the file's metadata",
    "--embedding": "outputs of every token of a batch",
    "--rerank": "outputs of every token of a batch",
    "--models-dir": "models that are loaded later",
    "--models-preset": "models that are loaded later",
    "-mla": "a way of latent attention other than the default, 3",
    "-amb": "the limit on the size of K times Q",
    "-wgt": "the limit on outputs",
    **dict.fromkeys(("-ctk-first", "-ctk-last", "-ctv-first", "-ctv-last"), "types by layer"),
    "-mqkv": "merged Q, K and V, which turn mmap off",
    "-muge": "merged up and gate experts",
    "-ser": "fewer experts per token",
    "-cuda": "parameters of the CUDA backend",
    "--max-gpu": "the limit of GPUs per layer",
    "--defer-experts": "experts that are loaded when they are used",
    "-mtprot": "the output tensor in another type",
}  # fmt: skip


# `common_speculative_n_max` and the defaults in `common/common.h` of llama.cpp.
_AHEAD = {
    "draft": 3, "ngram-simple": 48, "ngram-map-k": 48, "ngram-map-k4v": 48, "ngram-mod": 64, "ngram-cache": 8,
}  # fmt: skip


@dataclass(slots=True)
class Said:
    """What the options said so far.

    Attributes
    ----------
    fields
        Of `Settings`, without `program` and `overrides`.
    overrides, last
        Those in the order given, and those that the program puts behind all others.
    sources, last_source
        For each, how many options came before the one it is from.
    n_given
        Options so far.
    fits
        `-fit`; None if it is not given.
    devices
        After `-dev`; () is none, None all.
    speculative, ahead
        Kinds after llama.cpp's `--spec-type`, and tokens that each kind looks ahead where that is stated.
    tests, depths
        Of llama-bench: the option and its number of tokens.
    per_slot
        Tokens a slot, after `--kv-unified-per-slot`.
    """

    engine: Engine
    program: str
    fields: dict[str, Any] = field(default_factory=dict)
    overrides: list[Override] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    last: tuple[Override, ...] = ()
    last_source: int = 0
    n_given: int = 0
    notes: list[str] = field(default_factory=list)
    model: str | None = None
    fits: bool | None = None
    devices: tuple[str, ...] | None = None
    is_locked: bool = False
    per_slot: int = 0
    speculative: tuple[str, ...] = ()
    ahead: dict[str, int] = field(default_factory=dict)
    tests: list[tuple[str, int]] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)

    def add(self, *overrides: Override, last: bool = False) -> None:
        """Add overrides in the order given, or behind all others."""
        if last:
            self.last, self.last_source = overrides, self.n_given
            return
        self.overrides += overrides
        self.sources += [self.n_given] * len(overrides)

    def finish(self) -> None:
        """What a program makes of its options once all are read."""
        fields = self.fields
        if self.engine == "ik_llama.cpp":
            fields.setdefault("flash_attention", "on")
            if self.is_locked:
                mode = fields.get("load_mode", "mmap")
                fields["load_mode"] = "mmap+mlock" if mode == "mmap" else "mlock"
        if self.program == "llama-bench":
            # tools/llama-bench: each test has a context for its prompt, its tokens and its depth.
            given = {test for test, _ in self.tests}
            defaults = [n for test, n in (("-p", 512), ("-n", 128)) if test not in given]
            largest = max([*defaults, *(n for _, n in self.tests)])
            fields["context"] = largest + max(self.depths, default=0)
        drafts = self.fields.get("n_drafted", _AHEAD["draft"])
        ahead = _AHEAD | self.ahead
        guesses = [
            drafts if kind.startswith("draft") else ahead.get(kind, 0)
            for kind in self.speculative
            if kind != "draft-mtp"
        ]
        if any(guesses):
            fields["n_guessed"] = max(guesses)
        if self.per_slot and not fields.get("context"):
            fields["context"] = self.per_slot * (fields.get("slots") or 4)
        if self.program in ("llama-perplexity", "llama-imatrix"):
            fields.setdefault("context", 512)  # a chunk; they hold as many as a batch has room for


Handler = Callable[..., None]


def _number(name: str, least: int | None = None) -> Handler:
    def take(said: Said, text: str) -> None:
        said.fields[name] = integer(text, least)

    return take


def _flag(name: str, *, inverted: bool = False) -> Handler:
    def take(said: Said, says_yes: bool) -> None:
        said.fields[name] = says_yes != inverted

    return take


def _gpu_layers(said: Said, text: str) -> None:
    if said.engine == "llama.cpp" and text in ("auto", "all"):
        said.fields["gpu_layers"] = -1
    else:
        said.fields["gpu_layers"] = max(integer(text), -1)


def _overrides(said: Said, text: str) -> None:
    said.add(*overrides_of(text, ";" if said.program == "llama-bench" else ","))


def first_blocks(n: int, pattern: str) -> tuple[Override, ...]:
    """The overrides that `-ncmoe N` or `-ncffn N` stands for."""
    return tuple(Override(rf"blk\.{i}{pattern}", "CPU") for i in range(n))


def _first_experts(said: Said, text: str) -> None:
    # ik_llama.cpp and llama-bench put them behind every -ot, and the last -ncmoe counts alone.
    n = min(integer(text, 0), 4096)
    is_last = said.engine == "ik_llama.cpp" or said.program == "llama-bench"
    said.add(*first_blocks(n, EXPERTS), last=is_last)


def _all_experts(said: Said, _: bool) -> None:
    said.add(Override(EXPERTS, "CPU"), last=said.engine == "ik_llama.cpp")


def _first_dense(said: Said, text: str) -> None:
    said.add(*first_blocks(min(integer(text, 0), 4096), DENSE))


def _cache(name: str) -> Handler:
    def take(said: Said, text: str) -> None:
        said.fields[name] = cache_type(text, said.engine)

    return take


def _fa(said: Said, text: str | bool) -> None:
    said.fields["flash_attention"] = (
        "on" if text is True else "off" if text is False else flash_attention(text, said.engine)
    )


def _slots(said: Said, text: str) -> None:
    n = integer(text)
    if n == 0:
        raise BadValue("is no number of slots", "write 1 or more")
    said.fields["slots"] = n if n > 0 else None


def _threads(said: Said, text: str) -> None:
    n = integer(text)
    said.fields["threads"] = n if n > 0 else None


def _split_mode(said: Said, text: str) -> None:
    if said.engine == "ik_llama.cpp":
        mode = one_of(text, ("none", "layer", "attn", "graph"))
        if mode in ("attn", "graph"):
            said.notes.append(f"`-sm {mode}`: layers that are split over GPUs are not reckoned")
            mode = "layer"
    else:
        mode = one_of(text, ("none", "layer", "row", "tensor"))
    said.fields["split_mode"] = mode


def _tensor_split(said: Said, text: str) -> None:
    said.fields["tensor_split"] = float_list(text, ";/" if said.program == "llama-bench" else ",/")


def _load_mode(said: Said, text: str) -> None:
    mode = one_of(text, ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio"))
    said.fields["load_mode"] = "mmap" if mode == "auto" else mode


def _spec_type(said: Said, text: str) -> None:
    kinds = [text.partition(":")[0]] if said.engine == "ik_llama.cpp" else text.split(",")
    if "draft-mtp" in kinds or (said.engine == "ik_llama.cpp" and kinds == ["mtp"]):
        said.fields["mtp"] = True
    if said.engine == "llama.cpp":
        said.speculative = tuple(kinds)
    if any(kind.startswith("draft") and kind != "draft-mtp" for kind in kinds):
        said.notes.append(f"`--spec-type {printable(text)}`: the draft's own memory is not reckoned")


def _ahead(kind: str) -> Handler:
    def take(said: Said, text: str) -> None:
        said.ahead[kind] = integer(text, 0)

    return take


def _devices(said: Said, text: str) -> None:
    names = tuple(re.split(r"[,/]" if said.program == "llama-bench" else ",", text))
    said.devices = () if names == ("none",) else names


def _model(said: Said, text: str) -> None:
    said.model = text


def _fit(said: Said, text: str | bool) -> None:
    said.fits = text if isinstance(text, bool) else switch(text)


def _lazy(said: Said, text: str) -> None:
    if one_of(text, ("on", "auto", "off")) == "on":
        said.notes.append("`-lzm on`: rows that are read from the disk on demand are not reckoned")


def _per_slot(said: Said, text: str) -> None:
    said.per_slot = integer(text, 1)


def _no_mmap(said: Said, _: bool) -> None:
    said.fields["load_mode"] = "none"


def _runtime_repack(said: Said, _: bool) -> None:
    said.fields["load_mode"] = "none"
    said.fields["op_offload"] = False  # what is interleaved for the CPU no GPU reads, but for few types
    said.notes.append("`-rtr`: weights that are repacked for the CPU are not reckoned as such")


def _mlock(said: Said, _: bool) -> None:
    said.is_locked = True


def _no_fa(said: Said, _: bool) -> None:
    said.fields["flash_attention"] = "off"


def _offload_policy(said: Said, text: str) -> None:
    numbers = re.fullmatch(r"-?\d+,[01](?:,-?\d+,[01])*", text)
    if numbers is None:
        raise BadValue("is no list of pairs", "write OP,0 or OP,1; OP -1 is all")
    if text == "-1,0":
        said.fields["op_offload"] = False
    else:
        said.notes.append(f"`-op {text}`: an offload policy by operation is not reckoned")


_COMMON: Mapping[str, Handler] = {
    "-m": _model,
    "-c": _number("context", 0),
    "-b": _number("batch", 1),
    "-ub": _number("micro_batch", 1),
    "-np": _slots,
    "-t": _threads,
    "-ngl": _gpu_layers,
    "-ot": _overrides,
    "-cmoe": _all_experts,
    "-ncmoe": _first_experts,
    "-ts": _tensor_split,
    "-sm": _split_mode,
    "-mg": _number("main_gpu", 0),
    "-fa": _fa,
    "-ctk": _cache("cache_k"),
    "-ctv": _cache("cache_v"),
    "-cram": _number("host_cache_mib"),
    "--spec-type": _spec_type,
    "-dev": _devices,
}
HANDLERS: Mapping[Engine, Mapping[str, Handler]] = {
    "llama.cpp": {
        **_COMMON,
        "-ncffn": _first_dense,
        "-kvu": _flag("unified_cache"),
        "--kv-unified-per-slot": _per_slot,
        "-kvo": _flag("cache_on_gpu"),
        "--op-offload": _flag("op_offload"),
        "--swa-full": _flag("full_window"),
        "-lm": _load_mode,
        "-lzm": _lazy,
        "--spec-draft-n-max": _number("n_drafted", 0),
        "--spec-ngram-mod-n-max": _ahead("ngram-mod"),
        **{
            f"--spec-{kind}-size-m": _ahead(kind)
            for kind in _AHEAD
            if kind.startswith(("ngram-s", "ngram-map"))
        },
        "--repack": _flag("repack"),
        "--no-host": _flag("host_buffer", inverted=True),
        "-fit": _fit,
    },
    "ik_llama.cpp": {
        **_COMMON,
        "-nkvo": _flag("cache_on_gpu", inverted=True),
        "--no-mmap": _no_mmap,
        "--mlock": _mlock,
        "-rtr": _runtime_repack,
        "-no-fa": _no_fa,
        "--fit": _fit,
        "-op": _offload_policy,
    },
}


def _one(take: Handler, separator: str = ",") -> Handler:
    """llama-bench runs every value of a list as a test of its own; one line of settings has the first."""

    def taken(said: Said, text: str) -> None:
        take(said, text.partition(separator)[0])
        if separator in text:
            hint = "give one value: one setting at a time is reckoned"
            raise BadValue("is several tests", hint, is_list=True)

    return taken


def _switched(name: str, *, inverted: bool = False) -> Handler:
    def take(said: Said, text: str) -> None:
        said.fields[name] = switch(text) != inverted

    return _one(take)


def _range(said: Said, text: str) -> int:
    """The largest number of `512`, `512,2048` or `512-2048*2`."""
    largest = 0
    for part in text.split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+)(?:[+*]\d+)?)?", part)
        if numbers is None:
            raise BadValue("is no number or range of numbers")
        largest = max(largest, int(numbers[2] or numbers[1]))
    return largest


def _test(name: str) -> Handler:
    def take(said: Said, text: str) -> None:
        said.tests.append((name, _range(said, text)))

    return take


def _prompt_and_tokens(said: Said, text: str) -> None:
    pair = re.fullmatch(r"(\d+),(\d+)", text)
    if pair is None:
        raise BadValue("is no pair", "write PROMPT,TOKENS, such as 512,128")
    said.tests.append(("-pg", int(pair[1]) + int(pair[2])))


def _depth(said: Said, text: str) -> None:
    said.depths.append(_range(said, text))


BENCH: Mapping[str, Handler] = {
    "-m": _one(_model),
    "-p": _test("-p"),
    "-n": _test("-n"),
    "-pg": _prompt_and_tokens,
    "-d": _depth,
    "-b": _one(_number("batch", 1)),
    "-ub": _one(_number("micro_batch", 1)),
    "-ctk": _one(_cache("cache_k")),
    "-ctv": _one(_cache("cache_v")),
    "-t": _one(_threads),
    "-ngl": _one(_gpu_layers),
    "-ncmoe": _one(_first_experts),
    "-sm": _one(_split_mode),
    "-lm": _one(_load_mode),
    "-lzm": _one(_lazy),
    "-mg": _one(_number("main_gpu", 0)),
    "-nkvo": _switched("cache_on_gpu", inverted=True),
    "-fa": _one(_fa),
    "-nopo": _switched("op_offload", inverted=True),
    "--no-host": _switched("host_buffer", inverted=True),
    "--repack": _switched("repack"),
    "-ts": _one(_tensor_split),
    "-ot": _one(_overrides),
    "-dev": _one(_devices),
}
