"""Tokens per second, as a range: what generation and prompts wait for.

**Generation** reads all active bytes once a token (`active.py`) and goes through all blocks in order:

    RAM      bytes of each type / min(share of the bandwidth, cores × rate of the type)
    GPU      bytes of weights / share of its bandwidth + bytes of cache / another, lower share
    fixed    a cost for each matrix, and for each change of device

A plain `bytes / bandwidth` is 2 to 5 times too fast on servers: their memory is so fast that the fixed costs
of 60 to 90 blocks, 10 to 30 ms a token, and the arithmetic of slow types are most of the time.

**Prompts** are read in micro-batches. llama.cpp copies all weights in RAM that a micro-batch of 32 tokens or
more needs to the first GPU, one tensor after another, so the time of a micro-batch hardly depends on its
tokens. ik_llama.cpp does so where `tokens × used experts >= 32 × experts` and computes on the CPU below; of
types that are repacked (`-rtr`, `_R4`) it computes all on the CPU.

The factors are fitted on published reports by `tools/compare_speed.py`, which prints how far they are off on
machines that they were not fitted on. `RATES` are measured.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ggplan.ggml_types import TYPES
from ggplan.offload.active import ActiveBytes, DeviceReads
from ggplan.offload.allocation import HOST, gpu_name
from ggplan.offload.machine import Gpu, Learned, Machine
from ggplan.offload.profiles import Profile
from ggplan.offload.settings import Settings

# Bytes of weights that one core of an AMD Zen 3 server reads, decodes and multiplies per second: llama.cpp
# b11434, portable AVX2 build, one thread, a dense model of 1 B weights, by processor time. After iq4_nl:
# ggml's own products of rows (vec_dot) of that version on another core, times the median ratio (1.8) of the
# types before it there.
RATES: Mapping[str, float] = {
    "f16": 14.0e9, "bf16": 14.0e9, "f32": 14.0e9, "q8_0": 13.2e9, "q6_K": 11.6e9, "q5_K": 9.5e9,
    "q4_K": 11.8e9, "q4_0": 9.8e9, "q3_K": 6.8e9, "q2_K": 7.5e9, "iq4_xs": 6.5e9, "iq4_nl": 6.8e9,
    "q4_1": 9.7e9, "q5_0": 7.4e9, "q5_1": 8.6e9, "mxfp4": 5.1e9, "nvfp4": 7.0e9, "iq3_s": 2.5e9,
    "iq3_xxs": 3.4e9, "iq2_s": 3.7e9, "iq2_xs": 2.7e9, "iq2_xxs": 3.1e9, "tq1_0": 3.5e9, "tq2_0": 7.5e9,
}  # fmt: skip
# Of types that nobody timed, a core decodes as many weights as of one that is decoded alike: a grid of points
# (iq1, iq2, iq3), a table of levels (iq4, and ik_llama.cpp's iq types that end in _k), else plain levels.
_GRIDS = re.compile(r"iq[123]_(?!kt?s?s?l?$)")
_TABLES = re.compile(r"iq\d_|mxfp|nvfp")
_SPELLED = {t.name.lower(): t.name for t in TYPES}
_BITS = {t.name: t.bits_per_weight for t in TYPES}


@dataclass(frozen=True, slots=True)
class Factors:
    """What reports taught about all machines.

    Attributes
    ----------
    ram
        Share of the measured read bandwidth of RAM that weights reach.
    core, ik_core
        Speed of a core of today against that of `RATES`, with llama.cpp and with ik_llama.cpp.
    gpu, graph_gpu
        Share of a GPU's stated bandwidth that weights reach: where a token passes the CPU between blocks; on
        GPUs alone, where all steps are recorded once (CUDA graphs).
    cache, quantized_cache
        The same of a KV cache in f16 or bf16, or of a latent one; of a quantized one.
    step, host_step
        Seconds that a matrix costs beside its bytes, on a GPU and on the CPU.
    crossing, gpu_crossing
        Seconds of a change between the CPU and a GPU, and between two GPUs.
    pageable
        Share of the PCIe bandwidth from RAM that is mapped (`-lm mmap`), and the most bytes per second there.
    dense, experts, expert_tokens
        Share of a GPU's arithmetic that matrices reach; that experts reach at most; tokens of one expert at
        which they reach half of that.
    attention
        Share of a GPU's arithmetic that attention reaches.
    core_flops, ik_core_flops
        Operations per second of one core in prompts.
    """

    ram: float = 0.80
    core: float = 1.75
    ik_core: float = 5.0
    gpu: float = 0.50
    graph_gpu: float = 0.65
    cache: float = 0.36
    quantized_cache: float = 0.18
    step: float = 10e-6
    host_step: float = 5e-6
    crossing: float = 50e-6
    gpu_crossing: float = 300e-6
    pageable: tuple[float, float] = (0.65, 18e9)
    dense: float = 0.5
    experts: float = 0.20
    expert_tokens: float = 150.0
    attention: float = 0.3
    core_flops: float = 60e9
    ik_core_flops: float = 150e9


FITTED = Factors()

# Of ten reports of machines that were not fitted on, one is slower and one faster than this.
_SPREAD = (0.71, 1.28)
_PROMPT_SPREAD = (0.62, 1.47)
# The same where a report of the same file calibrates; of prompts there are too few to tell.
_CALIBRATED_SPREAD = (0.80, 1.25)
_CALIBRATED_PROMPT_SPREAD = (0.70, 1.35)
# What a log of another model says is of that model and its build. Of pairs of reports of one machine, those
# of the same file agree within 5 %, and those of other files hardly more than those of other machines do.
_OF_THE_MACHINE = 0.15
_MOST_LEARNED = 1.25

# Where a bandwidth is not known: from two channels of DDR4 to two of DDR5; cards of the last years; PCIe.
_RAM_GUESS = (35e9, 60e9, 90e9)
_GPU_GUESS = (350e9, 600e9, 1000e9)
_PCIE_GUESS = (11e9, 22e9, 45e9)
_FLOPS_GUESS = (50e12, 100e12, 250e12)
_CORES_GUESS = 8
_LIKELY = 1  # of the three


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second.

    Attributes
    ----------
    low, likely, high
        Four of five reports of machines unknown to the fit lie between `low` and `high`.
    seconds
        Where the likely time goes, by its cause: of one token that is written, of one micro-batch.
    reasons
        What the range rests on.
    """

    low: float
    likely: float
    high: float
    seconds: Mapping[str, float]
    reasons: tuple[str, ...]


def generation(
    active: ActiveBytes, machine: Machine, profile: Profile, settings: Settings, factors: Factors = FITTED
) -> Rate:
    """Tokens per second that are written, for what a token reads."""
    return _rate(active, machine, profile, settings, factors, 1)


def prompt(
    active: ActiveBytes, machine: Machine, profile: Profile, settings: Settings, factors: Factors = FITTED
) -> Rate:
    """Tokens per second that are read in micro-batches of `settings.micro_batch`."""
    return _rate(active, machine, profile, settings, factors, max(settings.micro_batch, 2))


def seconds_per_byte(
    active: ActiveBytes, machine: Machine, profile: Profile, settings: Settings
) -> Callable[[str, str], float]:
    """What a byte of weights that a token reads adds to the likely seconds of `generation`.

    Returns
    -------
    A function of the device and the name of the ggml type.
    """
    case = _Case(active, machine, profile, settings, FITTED, _speeds(machine, _LIKELY))
    factor, _ = _learned(machine.learned, active, 1)
    return lambda device, kind: factor / case.weight_rate(device, kind)


def likely_bandwidths(machine: Machine) -> tuple[float, float]:
    """Bytes per second of RAM and of the slowest GPU; where they are not known, what is likely."""
    gpus = [gpu.bandwidth or _GPU_GUESS[_LIKELY] for gpu in machine.gpus]
    return machine.bandwidth or _RAM_GUESS[_LIKELY], min(gpus, default=_GPU_GUESS[_LIKELY])


def is_fast(kind: str, machine: Machine, profile: Profile, threads: int | None) -> bool:
    """Whether cores work a ggml type off as fast as they read RAM, so that its bytes are all that counts."""
    ram = FITTED.ram * (machine.bandwidth or _RAM_GUESS[_LIKELY])
    return not threads or threads * core_rate(kind, machine, profile) >= ram


def core_rate(kind: str, machine: Machine, profile: Profile, factors: Factors = FITTED) -> float:
    """Bytes of weights of a ggml type that one core of the machine works off per second."""
    kind = _plain(kind)
    # Measured rates are of llama.cpp's kernels too.
    kernels = factors.ik_core / factors.core if _is_ik(profile) else 1.0
    if kind in machine.rates:
        return machine.rates[kind] * kernels
    of_rates = [rate / RATES[name] for name, rate in machine.rates.items() if name in RATES]
    core = statistics.median(of_rates) if of_rates else factors.core
    return _rate_of(kind) * core * kernels


def _rate_of(kind: str) -> float:
    """The rate of a type in `RATES`, or of one that is decoded alike."""
    if kind in RATES:
        return RATES[kind]
    like = "iq2_xxs" if _GRIDS.match(kind) else "iq4_xs" if _TABLES.match(kind) else "q4_0"
    return RATES[like] / _BITS[like] * _BITS.get(kind, _BITS[like])


@lru_cache(maxsize=256)
def _plain(kind: str) -> str:
    """The type that an interleaved one interleaves, as ggml spells it: q4_K for q4_k_r4."""
    plain = re.sub(r"_r\d+$", "", kind)
    return _SPELLED.get(plain.lower(), plain)


def _is_ik(profile: Profile) -> bool:
    return profile.engine == "ik_llama.cpp"


@dataclass(frozen=True, slots=True)
class _Speeds:
    """Bandwidths as one of low, likely and high takes them."""

    ram: float
    gpus: Mapping[str, Gpu]
    guess: int

    def gpu(self, name: str) -> tuple[float, float, float]:
        """Bandwidth, PCIe bandwidth and arithmetic of a GPU."""
        gpu = self.gpus.get(name)
        found = (gpu.bandwidth, gpu.pcie, gpu.flops) if gpu else (None, None, None)
        guesses = (_GPU_GUESS, _PCIE_GUESS, _FLOPS_GUESS)
        one, two, three = (v or g[self.guess] for v, g in zip(found, guesses, strict=True))
        return one, two, three


def _rate(
    active: ActiveBytes,
    machine: Machine,
    profile: Profile,
    settings: Settings,
    factors: Factors,
    tokens: int,
) -> Rate:
    times, cases = [], []
    for guess in range(3):
        case = _Case(active, machine, profile, settings, factors, _speeds(machine, guess))
        cases.append(case)
        times.append(case.token() if tokens == 1 else case.micro_batch(tokens))
    slow, likely, fast = (sum(seconds.values()) or 1e-9 for seconds in times)
    learned = machine.learned
    factor, is_calibrated = _learned(learned, active, tokens)
    low, high = _spread(tokens, is_calibrated=is_calibrated)
    reasons = _reasons(cases[_LIKELY], learned if factor != 1.0 else None, tokens)
    return Rate(
        tokens / (slow * factor) * low,
        tokens / (likely * factor),
        tokens / (fast * factor) * high,
        {name: seconds * factor for name, seconds in times[1].items()},
        reasons,
    )


def _speeds(machine: Machine, guess: int) -> _Speeds:
    gpus = {gpu_name(i): gpu for i, gpu in enumerate(machine.gpus)}
    return _Speeds(machine.bandwidth or _RAM_GUESS[guess], gpus, guess)


def _learned(learned: Learned | None, active: ActiveBytes, tokens: int) -> tuple[float, bool]:
    """By what a log of the machine stretches the time, and whether that log is of the same file."""
    stretch = None
    if learned is not None:
        stretch = learned.generation if tokens == 1 else learned.prompt
    if stretch is None or learned is None:
        return 1.0, False
    if learned.file_bytes == active.file_bytes:
        return stretch, True
    return min(max(stretch**_OF_THE_MACHINE, 1 / _MOST_LEARNED), _MOST_LEARNED), False


def _spread(tokens: int, *, is_calibrated: bool) -> tuple[float, float]:
    if tokens == 1:
        return _CALIBRATED_SPREAD if is_calibrated else _SPREAD
    return _CALIBRATED_PROMPT_SPREAD if is_calibrated else _PROMPT_SPREAD


@dataclass(frozen=True, slots=True)
class _Case:
    active: ActiveBytes
    machine: Machine
    profile: Profile
    settings: Settings
    factors: Factors
    speeds: _Speeds

    @property
    def threads(self) -> int | None:
        """Cores that work: no more than there are."""
        counts = [n for n in (self.settings.threads, self.machine.cores) if n]
        return min(counts) if counts else None

    def token(self) -> dict[str, float]:
        """Seconds of one token of generation, by cause."""
        seconds: dict[str, float] = {}
        for name, reads in sorted(self.active.devices.items()):
            if name == HOST:
                seconds["RAM"] = self.weights(name, reads)
                seconds["cache in RAM"] = reads.cache / (self.factors.ram * self.speeds.ram)
                seconds["steps on the CPU"] = reads.n_steps * self.factors.host_step
                continue
            bandwidth = self.speeds.gpu(name)[0]
            is_slow = self.active.cache_is_quantized and not self.active.cache_is_latent
            share = self.factors.quantized_cache if is_slow else self.factors.cache
            seconds[name] = self.weights(name, reads)
            seconds[f"cache of {name}"] = reads.cache / (share * bandwidth)
            seconds[f"steps on {name}"] = reads.n_steps * self.factors.step
        seconds["changes between CPU and GPU"] = self.active.host_crossings * self.factors.crossing
        seconds["changes between GPUs"] = self.active.gpu_crossings * self.factors.gpu_crossing
        return {name: value for name, value in seconds.items() if value}

    def weights(self, device: str, reads: DeviceReads) -> float:
        """Seconds for the weights of a device."""
        return sum(n_bytes / self.weight_rate(device, kind) for kind, n_bytes in reads.weights.items())

    def weight_rate(self, device: str, kind: str) -> float:
        """Bytes of weights of a type per second: in RAM what is slower, the memory or the cores."""
        if device != HOST:
            passes_cpu = self.active.host_crossings > 0
            return (self.factors.gpu if passes_cpu else self.factors.graph_gpu) * self.speeds.gpu(device)[0]
        memory = self.factors.ram * self.speeds.ram
        if not self.threads:
            return memory
        return min(memory, self.threads * core_rate(kind, self.machine, self.profile, self.factors))

    def limited_by_cores(self) -> list[str]:
        """The types in RAM, of those with a tenth of the bytes and more, that cores read slower than RAM."""
        reads = self.active.host
        memory = self.factors.ram * self.speeds.ram
        return [
            kind
            for kind, n_bytes in reads.weights.items()
            if self.threads
            and n_bytes > 0.1 * reads.weight_bytes
            and self.threads * core_rate(kind, self.machine, self.profile, self.factors) < memory
        ]

    def streams(self, tokens: int) -> bool:
        """Whether experts in RAM are copied to a GPU for this many tokens."""
        if not (self.machine.gpus and self.settings.op_offload and self.active.streamable):
            return False
        per_expert = tokens * self.active.used_share if self.profile.offload_per_expert else tokens
        return per_expert >= self.profile.offload_batch

    def streams_matrices(self, tokens: int) -> bool:
        """The same of other matrices in RAM, those of blocks that are not on a GPU."""
        if not (self.machine.gpus and self.settings.op_offload and self.active.streamable_matrices):
            return False
        return tokens >= self.profile.offload_batch

    def micro_batch(self, tokens: int) -> dict[str, float]:
        """Seconds of one micro-batch of a prompt, by cause."""
        factors, share = self.factors, self.active.used_share
        # Each token chooses its experts anew: from some hundred tokens on all are needed.
        needed = 1 - (1 - share) ** tokens if share < 1 else 1.0
        per_expert = tokens * share
        of_experts = factors.experts * per_expert / (per_expert + factors.expert_tokens)
        streams = self.streams(tokens)
        copied = self.active.streamable / self.active.experts_in_ram if streams else 0.0
        moves = self.streams_matrices(tokens)
        moved = self.active.streamable_matrices / self.active.matrices_in_ram if moves else 0.0
        seconds: dict[str, float] = {}
        first, host = gpu_name(0), self.active.host
        devices = {first: DeviceReads()} if streams or moves else {}
        for name, reads in sorted((devices | dict(self.active.devices)).items()):
            experts, multiplied, attended = reads.multiplied_experts, reads.multiplied, reads.attended
            if name != HOST:
                if name == first:
                    experts += host.multiplied_experts * copied
                    multiplied += host.multiplied * moved
                    attended += host.attended * bool(moves)  # the scheduler lets it follow what is around it
                bandwidth, _, flops = self.speeds.gpu(name)
                operations = 2 * tokens * (multiplied / factors.dense + experts / of_experts)
                operations += 2 * tokens * attended / factors.attention
                reading = reads.weight_bytes / (factors.gpu * bandwidth)
                seconds[name] = max(operations / flops, reading) + reads.n_steps * factors.step
                continue
            seconds["experts over PCIe"] = self.active.streamable * needed / self.pcie() if streams else 0.0
            if moves:
                seconds["weights over PCIe"] = self.active.streamable_matrices / self.pcie()
                seconds["cache over PCIe"] = reads.cache / self.pcie()
                attended = 0.0
            per_core = factors.ik_core_flops if _is_ik(self.profile) else factors.core_flops
            operations = 2 * tokens * (experts * (1 - copied) + multiplied * (1 - moved) + attended)
            left = self.active.experts_in_ram - (self.active.streamable if streams else 0)
            memory = left * needed / (factors.ram * self.speeds.ram)
            seconds["CPU"] = max(operations / ((self.threads or _CORES_GUESS) * per_core), memory)
        return {name: value for name, value in seconds.items() if value}

    def pcie(self) -> float:
        """Bytes per second from RAM to the first GPU."""
        bandwidth = self.speeds.gpu(gpu_name(0))[1]
        if "mmap" not in self.settings.load_mode:
            return bandwidth
        share, most = self.factors.pageable
        return min(bandwidth * share, most)


def _reasons(case: _Case, learned: Learned | None, tokens: int) -> tuple[str, ...]:
    """What the range rests on, the weightiest first."""
    active, machine, settings = case.active, case.machine, case.settings
    found = []
    if learned is not None:
        same = learned.file_bytes == active.file_bytes
        found.append(
            f"learned from {learned.source}"
            + ("" if same else ", a log of another file, so for a small part")
        )
    reads_ram = active.host.weight_bytes > 0.02 * sum(d.weight_bytes for d in active.devices.values())
    if reads_ram and machine.bandwidth is None:
        found.append(
            "the bandwidth of RAM is not known (`--bandwidth`): from two channels of DDR4 to two of DDR5"
        )
    elif reads_ram and (source := machine.sources.get("bandwidth", "")):
        found.append(f"RAM at {(machine.bandwidth or 0) / 1e9:.0f} GB/s ({source})")
    unknown = [gpu_name(i) for i, gpu in enumerate(machine.gpus) if gpu.bandwidth is None]
    if unknown and any(name in active.devices for name in unknown):
        found.append(f"the bandwidth of {', '.join(unknown)} is not known (`--cards`)")
    if reads_ram and not machine.cores:
        found.append("the number of cores is not known (`--cores`), so none limits")
    if tokens == 1 and reads_ram and (slow := case.limited_by_cores()):
        found.append(f"{case.threads} cores decode {', '.join(slow)} slower than RAM gives it")
    if tokens == 1 and active.gpu_crossings > 2:
        found.append(
            f"a token changes {active.gpu_crossings} times from one GPU to another: two GPUs may be slower "
            "than one"
        )
    copied = "weights" if case.streams_matrices(tokens) else "experts"
    if tokens > 1 and (case.streams(tokens) or copied == "weights"):
        if "mmap" in settings.load_mode:
            found.append(
                f"{copied} are copied from mapped pages; `-lm none` pins them, some 1.5 times faster"
            )
        if machine.gpus[0].pcie is None:
            found.append("the PCIe bandwidth of CUDA0 is not known")
    return tuple(found)
