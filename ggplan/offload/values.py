"""The values of options as the engines read them: what each takes, and what to write instead of a bad one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ggplan.errors import TypeNameError
from ggplan.ggml_types import Engine, GgmlType, parse_type
from ggplan.offload.settings import Override
from ggplan.text import nearest, printable

# `kv_cache_types` in llama.cpp's common/arg.cpp; ik_llama.cpp has two more.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
IK_CACHE_TYPES = (*CACHE_TYPES, "q6_0", "q8_KV")
# Buffer types that llama.cpp knows by name: the default one of each device.
_BUFFER = re.compile(r"CPU|Metal|MTL\d|OpenCL|WebGPU|(CUDA|ROCm|MUSA|Vulkan|SYCL|CANN)\d+|RPC\S+")
_UNITS = {"k": 1024, "m": 1024**2}


class BadValue(Exception):  # noqa: N818 - it becomes a fault of a line, never an error of the program
    """A value that an option does not take: what is wrong, and what to do instead.

    `is_cut` is true where a regex has a comma, at which the engine cuts it; `is_list` where llama-bench runs
    each value as a test of its own.
    """

    def __init__(self, message: str, hint: str = "", *, is_cut: bool = False, is_list: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.is_cut = is_cut
        self.is_list = is_list


def integer(text: str, least: int | None = None) -> int:
    """A whole number. The engines read the digits at the beginning and ignore the rest, so `32k` is 32."""
    found = re.match(r"\s*[+-]?\d+", text)
    if found is None:
        raise BadValue("is not a number", "write a whole number")
    if found.end() < len(text):
        unit = _UNITS.get(text[found.end() :].lower())
        hint = f"write {int(found[0]) * unit}" if unit else "write a whole number"
        raise BadValue(f"is read as {int(found[0])}: what follows the digits is ignored", hint)
    value = int(text)
    if not -(1 << 31) <= value < 1 << 31:
        raise BadValue("is out of range", "the engine holds it in 32 bits")
    if least is not None and value < least:
        raise BadValue("is too small", f"write {least} or more")
    return value


def one_of(text: str, known: Sequence[str]) -> str:
    """One of these words."""
    if text not in known:
        meant = nearest(text, known)
        raise BadValue("is unknown", f"write {meant}" if meant else f"write one of {', '.join(known)}")
    return text


def switch(text: str) -> bool:
    """`on` or `off`, as llama.cpp spells them."""
    if text in ("on", "enabled", "true", "1"):
        return True
    if text in ("off", "disabled", "false", "0"):
        return False
    raise BadValue("is neither on nor off", "write on or off")


def flash_attention(text: str, engine: Engine) -> str:
    """`on`, `off` or `auto`; ik_llama.cpp takes any case, and means on by auto."""
    if engine == "ik_llama.cpp":
        lower = text.lower()
        if lower in ("auto", "on", "1"):
            return "on"
        if lower in ("off", "0"):
            return "off"
    elif text in ("auto", "-1"):
        return "auto"
    else:
        try:
            return "on" if switch(text) else "off"
        except BadValue:
            pass
    raise BadValue("is not on, off or auto", "write on, off or auto after it")


def cache_type(text: str, engine: Engine) -> GgmlType:
    """A type of keys or values."""
    known = CACHE_TYPES if engine == "llama.cpp" else IK_CACHE_TYPES
    if text not in known:
        meant = nearest(text, known)
        raise BadValue("is no type of a KV cache", f"write {meant}" if meant else f"write {', '.join(known)}")
    try:
        return parse_type(text)
    except TypeNameError as error:
        raise BadValue("cannot be reckoned: ggplan does not know the type") from error


def float_list(text: str, separators: str) -> tuple[float, ...]:
    """Shares of devices; () if all are zero, which means the default."""
    shares = []
    for part in re.split(f"[{separators}]+", text):
        try:
            shares.append(float(part))
        except ValueError:
            raise BadValue(f"has a share that is not a number: {printable(part) or 'an empty one'}") from None
        if not 0 <= shares[-1] < 1e9:
            raise BadValue(f"has a share that cannot be: {printable(part)}", "write numbers such as 3,1")
    return tuple(shares) if any(shares) else ()


def overrides_of(text: str, separator: str) -> tuple[Override, ...]:
    """`REGEX=BUFFER TYPE` entries. They are cut at every separator, whatever regex it stands in."""
    entries = []
    for entry in text.split(separator):
        pattern, equals, device = entry.partition("=")
        if not equals:
            hint, is_cut = "write PATTERN=DEVICE, such as `exps=CPU`", "=" in text and bool(entry)
            if is_cut:
                hint = f"`{separator}` ends an entry, in braces too: write `(1|2)` for `{{1,2}}`"
            what = f"has an entry without `=`: {printable(entry) or 'an empty one'}"
            raise BadValue(what, hint, is_cut=is_cut)
        if not _BUFFER.fullmatch(device):
            meant = nearest(device, ("CPU", "CUDA0", "CUDA1", "CUDA2", "CUDA3", "Vulkan0", "ROCm0"))
            if device == "CUDA_Host":
                meant = "CPU"
            hint = f"write {meant}" if meant else "write CPU, CUDA0, CUDA1, ..."
            raise BadValue(f"names an unknown buffer type: {printable(device) or 'none'}", hint)
        entries.append(Override(pattern, device))
    return tuple(entries)
