"""What each option of a placement's command does, and why it is there."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

from ggplan.offload.allocation import HOST
from ggplan.offload.placement import Placement
from ggplan.offload.writing import written_flags
from ggplan.text import format_bytes


def explained(placement: Placement, file: str) -> list[tuple[str, str]]:
    """Each option with its values as a shell takes them, and one sentence on it.

    Raises
    ------
    CommandError
        If the engine has no option for a setting.
    """
    flags = written_flags(placement.settings, file, placement.profile.engine)
    return [(shlex.join(flag), _ABOUT[flag[0]](placement, flag)) for flag in flags]


def _context(placement: Placement, flag: Sequence[str]) -> str:
    size = sum(d.context for d in placement.reckoning.devices)
    without = "; without it as many as the model was trained with"
    return f"tokens of context, {format_bytes(size)} of keys, values and state{without}"


def _slots(placement: Placement, flag: Sequence[str]) -> str:
    if flag[1] == "1":
        return (
            "one conversation at a time; llama-server's default of 4 slots takes more for windows and state"
        )
    tokens = placement.tokens_of_slot
    return f"conversations at a time, each with its part of the context, {tokens:,} tokens"


def _layers(placement: Placement, flag: Sequence[str]) -> str:
    if flag[1] == "0":
        return "nothing on a GPU"
    n = len(
        {name.split(".")[1] for name, d in placement.devices.items() if name.startswith("blk.") and d != HOST}
    )
    if any(d == HOST for name, d in placement.devices.items() if ".attn_norm." in name):
        return f"the last layers on the GPU, {n} blocks and the output: more do not fit"
    return "all layers on the GPU, counted from the end; what stays in RAM is said by the options below"


def _experts(placement: Placement, flag: Sequence[str]) -> str:
    n, where = len(placement.in_ram), "the routed experts"
    size = placement.reckoning.devices[-1].weights
    more = "a GPU holds no more of them"
    if flag[0] == "-ncmoe":
        return f"{where} of the first {flag[1]} blocks in RAM: {more}"
    if flag[0] == "-cmoe":
        return f"{where} of all blocks in RAM: {more}"
    return (
        f"tensors by regex and device, the first match decides: {n} blocks have experts in RAM, where "
        f"{format_bytes(size)} lie"
    )


def _micro_batch(placement: Placement, flag: Sequence[str]) -> str:
    streamed = placement.reckoning.streamed
    if streamed is None and placement.settings.load_mode == "none":
        return "tokens of a prompt at a time: for each such batch weights in RAM are copied to the GPU"
    if streamed is None:
        return "tokens of a prompt at a time: more take a larger compute buffer"
    return (
        "tokens of a prompt at a time: for each such batch the experts in RAM are copied to CUDA0, one "
        f"tensor at a time ({format_bytes(streamed[1])} of its compute buffer)"
    )


def _load_mode(placement: Placement, flag: Sequence[str]) -> str:
    return "reads the file into pinned RAM instead of mapping it: copies to the GPU are some 1.5 times faster"


def _split(placement: Placement, flag: Sequence[str]) -> str:
    return "layers of each GPU, in order: as many as it has room for, spread in the faster of two ways"


def _split_mode(placement: Placement, flag: Sequence[str]) -> str:
    return "one GPU alone: a second one would make it slower"


def _says(text: str) -> Callable[[Placement, Sequence[str]], str]:
    return lambda placement, flag: text


_ABOUT: Mapping[str, Callable[[Placement, Sequence[str]], str]] = {
    "-m": _says("the model; of a split file the first part"),
    "-c": _context,
    "-np": _slots,
    "-ngl": _layers,
    "-fit": _says("leaves these settings as they are: llama.cpp's own fit moves layers and cuts the context"),
    "-ts": _split,
    "-sm": _split_mode,
    "-mg": _says("the GPU that is used"),
    "-fa": _says("Flash Attention: no buffer of context × heads, and the condition for quantized values"),
    "-b": _says("tokens of a prompt that are taken on at once; no smaller than the micro-batch"),
    "-ub": _micro_batch,
    "-ctk": _says("type of the keys in the context"),
    "-ctv": _says("type of the values in the context"),
    "-ot": _experts,
    "-ncmoe": _experts,
    "-cmoe": _experts,
    "-lm": _load_mode,
    "--no-mmap": _load_mode,
    "-t": _says("one thread a core: hyperthreads do not read RAM faster"),
    "-cram": _says(
        "no copies of old conversations in RAM: llama-server keeps up to 8 GiB of them by default"
    ),
}
