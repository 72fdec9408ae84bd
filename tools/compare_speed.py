#!/usr/bin/env python
"""Check predicted speeds against published reports, and fit the factors of `ggplan.offload.speed` on them.

    python tools/compare_speed.py                        every report, what was predicted, and the summary
    python tools/compare_speed.py --reports OTHER.csv    the same of other reports with the same columns
    python tools/compare_speed.py --fit                  fit the factors anew and print them

A report is of a machine, a model and a placement that are told in words. From the words come a header with
the tensors of the model in the types of its quantization, settings and a machine; from then on nothing but
the library is at work. Bytes that a report states (buffers of the CPU and the GPU, size of the file) replace
those of the header, whose types are a guess.

Each machine left out: the factors are fitted on the reports of all other machines. Calibrated: one report of
a machine stretches the predictions of its others. `*` marks what lies outside of the predicted range.
docs/fitting.md says what the misses are.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import math
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "offload"))

import memory_rows

from ggplan.errors import TypeNameError
from ggplan.ggml_types import F16, GgmlType, parse_type
from ggplan.offload.active import ActiveBytes, DeviceReads, active_bytes
from ggplan.offload.allocation import HOST
from ggplan.offload.cards import READ_SHARE, known_card
from ggplan.offload.dimensions import Dimensions, dimensions_of
from ggplan.offload.header import Header, HeaderTensor, header_of
from ggplan.offload.machine import Gpu, Learned, Machine
from ggplan.offload.profiles import PROFILES, Profile
from ggplan.offload.settings import Override, Settings
from ggplan.offload.speed import FITTED, Factors, generation, prompt
from ggplan.offload.weights import place_weights
from ggplan.opening import open_model

DATA = Path(__file__).parent.parent / "tests" / "data" / "memory"
MIB, GIB = 1 << 20, 1 << 30
Q8_0 = parse_type("q8_0")

# Models with the same tensors as one of the headers, the first that is found in a report's name.
ALIKE = (
    ("deepseek-v3.2", "DeepSeek-V3.2"), ("deepseek-v3", "DeepSeek-V3"), ("deepseek-r1", "DeepSeek-V3"),
    ("kimi-k2", "Kimi-K2"), ("glm-5.3", ""), ("glm-5", "GLM-5"), ("glm-4.5-air", "GLM-4.5-Air"),
    ("glm-4", "GLM-4.6"), ("qwen3-coder-next", "Qwen3-Next-80B-A3B"),
    ("qwen3-next", "Qwen3-Next-80B-A3B"),
    ("qwen3-235b", "Qwen3-235B-A22B"), ("qwen3-vl-235b", "Qwen3-235B-A22B"),
    ("qwen3-30b", "Qwen3-30B-A3B"), ("qwen3-coder-30b", "Qwen3-30B-A3B"),
    ("qwen3.5-397b", "Qwen3.5-397B-A17B"),
    ("qwen3.6-35b", "Qwen3.6-35B-A3B"), ("qwen3.5-35b", "Qwen3.6-35B-A3B"), ("minimax-m2", "MiniMax-M2"),
    ("gpt-oss-120b", "gpt-oss-120b"), ("gpt-oss-20b", "gpt-oss-20b"), ("gemma-3-27b", "gemma-3-27b"),
    ("llama-3.3-70b", "Llama-3.3-70B"), ("llama-3.1-70b", "Llama-3.3-70B"), ("llama-3.1-8b", "Llama-3.1-8B"),
    ("qwen3-8b", "Qwen3-8B"), ("qwen3.6-27b", "Qwen3.6-27B"), ("qwen3.8-27b", "Qwen3.6-27B"),
    ("nemotron-3-nano-30b", "Nemotron-3-Nano-30B-A3B"), ("lfm2-8b", "LFM2-8B-A1B"),
)  # fmt: skip
COLUMNS = (
    "id", "engine", "model", "quant", "file_gib", "gpu", "cpu", "ram", "bw_gbs", "bw_kind", "placement",
    "kv_type", "ubatch", "gpu_model_mib", "pp_tps", "tg_tps", "depth", "cpu_gb_per_token", "note",
)  # fmt: skip
# Mixes that are not called by the type of their experts.
MIXES = {"iq2_m": "iq2_s", "iq3_m": "iq3_s", "iq3_xs": "iq3_s", "q8": "q8_0", "int4": "q4_0"}
# What files of some makers have attention in, by their logs; others have it in the type of their experts.
DENSE = ((r"ubergarm|MXFP4|NL", "q8_0"), (r"UD-|class", "q5_K"))
CORES = {"7950X": 16, "14900K": 24, "9355": 32, "9900X": 12, "6248": 20, "10900X": 10}
GRID = {
    "ram": (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9),
    "core": (1.25, 1.5, 1.75, 2.0, 2.5, 3.0),
    "ik_core": (2.0, 3.0, 4.0, 5.0),
    "gpu": (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    "step": (6e-6, 8e-6, 10e-6, 12e-6, 15e-6),
    "host_step": (2e-6, 5e-6, 10e-6, 15e-6),
    "crossing": (0.0, 25e-6, 50e-6, 75e-6, 100e-6, 150e-6),
    "gpu_crossing": (0.0, 100e-6, 200e-6, 300e-6, 400e-6, 500e-6),
}
"""What is fitted for generation; the rest of the factors come from logs of one effect alone."""
MOST_ERROR = 0.6  # of the logarithm: a report beyond it is of something else, and pulls no harder
PULL = 0.004  # towards the factors that are kept, so that what no report shows stays


@dataclass(frozen=True, slots=True)
class Report:
    """A report, ready to be predicted."""

    row: dict[str, str]
    machine_key: str
    machine: Machine
    profile: Profile
    settings: Settings
    active: ActiveBytes
    generated: float | None
    read: float | None

    @property
    def has_bandwidth(self) -> bool:
        """Whether the report states the bandwidth of the RAM."""
        return self.machine.bandwidth is not None


class Unclear(Exception):  # noqa: N818 - a row that is not used, not an error
    """Why a report says too little."""


# --- From words to values ----------------------------------------------------------------------------


def read_reports(path: Path, known: Mapping[str, Header]) -> tuple[list[Report], list[tuple[str, str]]]:
    """The reports of a file that say enough, and those that do not with the reason."""
    found, unclear = [], []
    placement = ""
    with path.open(encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file, restval=""):
            row = dict.fromkeys(COLUMNS, "") | {k: v for k, v in cells.items() if k and v is not None}
            if not row["placement"].startswith("same"):
                placement = row["placement"]
            try:
                found.append(report_of(row, row["placement"].replace("same", placement, 1), known))
            except Unclear as error:
                unclear.append((row["id"], str(error)))
    return found, unclear


def report_of(row: dict[str, str], placement: str, known: Mapping[str, Header]) -> Report:
    """One report."""
    engine = "ik_llama.cpp" if row["engine"].startswith("ik") else "llama.cpp"
    if not row["engine"].startswith(("ik_llama", "llama.cpp", "llamacpp")) or "expert cache" in row["engine"]:
        raise Unclear(f"of another engine: {row['engine']}")
    if not (number(row["tg_tps"]) or number(row["pp_tps"])):
        raise Unclear("without a speed")
    header = header_of_model(row["model"], known)
    experts, dense = types_of(row["quant"], is_repacked="rtr" in row["note"] or is_ik_default(row, engine))
    header = in_types(header, experts, dense)
    dimensions = dimensions_of(header)
    machine = machine_of(row, placement)
    settings = settings_of(row, placement, dimensions, len(machine.gpus), engine)
    weights = place_weights(header, dimensions, settings, machine.gpus)
    depth = int(number(row["depth"]) or 0)
    active = active_bytes(weights, dimensions, settings, depth=depth)
    active = as_stated(active, row, header)
    key = re.sub(r"\(?\d+(-\d+)? threads used\)?|\W", "", row["cpu"] + row["ram"])
    return Report(row, key, machine, PROFILES[engine], settings, active, number(row["tg_tps"]),
                  number(row["pp_tps"]))  # fmt: skip


def is_ik_default(row: dict[str, str], engine: str) -> bool:
    """Whether weights are repacked at run time: so in all logs of ik_llama.cpp with 512 tokens at hand."""
    return engine == "ik_llama.cpp" and (row["ubatch"] or "512") == "512"


def number(text: str) -> float | None:
    """The figure at the beginning of a cell, None where there is none."""
    found = re.match(r"[~≈]?\s*(\d+(?:\.\d+)?)", text)
    return float(found[1]) if found else None


def header_of_model(name: str, known: Mapping[str, Header]) -> Header:
    """The header of a model with the same tensors."""
    lower = name.lower()
    stem = next((stem for word, stem in ALIKE if word in lower), None)
    found = [
        header for called, header in known.items() if stem and re.match(rf"{re.escape(stem)}\.\D", called)
    ]
    if not found:
        raise Unclear(f"no header of {name} is here")
    return found[0]


def headers_in(folder: Path) -> dict[str, Header]:
    """The headers of the GGUF files in a folder, by name."""
    found = {}
    for path in sorted(folder.glob("*.gguf")):
        found[path.stem] = header_of(open_model(path, header_only=True))
    return found


def types_of(quant: str, *, is_repacked: bool) -> tuple[GgmlType, GgmlType]:
    """The type of the experts and that of the other matrices, by the name of a quantization."""
    found = next((kind for word in re.findall(r"\w+", quant) if (kind := type_of_word(word))), None)
    if found is None:
        raise Unclear(f"no type in the quantization {quant!r}")
    plain = re.sub(r"_r\d$", "", found.name)
    dense = parse_type(next((kind for words, kind in DENSE if re.search(words, quant)), plain))
    return (repacked(plain) if is_repacked else found), dense


def type_of_word(word: str) -> GgmlType | None:
    """The type that most experts of a quantization have: q4_K of Q4_K_XL, iq2_s of IQ2_M."""
    word = word.lower()
    word = MIXES.get(word, word)
    for name in (word, re.sub(r"_(xs|s|m|l|xl|xxl)$", "", word), f"{word}_k"):
        with contextlib.suppress(TypeNameError):
            return parse_type(name)
    return None


def repacked(name: str) -> GgmlType:
    """What `-rtr` makes of a type."""
    for suffix in ("_r4", "_r8"):
        with contextlib.suppress(TypeNameError):
            return parse_type(name + suffix)
    return parse_type(name)


def in_types(header: Header, experts: GgmlType, dense: GgmlType) -> Header:
    """The header with its matrices in two types, where their rows are whole blocks of it."""

    def of(tensor: HeaderTensor) -> GgmlType:
        if len(tensor.shape) < 2 or tensor.type.name == "f32":
            return tensor.type
        wanted = experts if "_exps." in tensor.name else dense
        return wanted if tensor.shape[0] % wanted.block_size == 0 else Q8_0

    return replace(header, tensors=tuple(replace(t, type=of(t)) for t in header.tensors))


def machine_of(row: dict[str, str], placement: str) -> Machine:
    """The machine of a report."""
    cpu, kind = row["cpu"], row["bw_kind"]
    bandwidth = number(row["bw_gbs"])
    if bandwidth is not None:
        bandwidth *= 1e9 * (READ_SHARE if "theoretical" in kind else 1)
    cores = re.search(r"(\d+)c\b|(\d+)(?:-\d+)? threads", cpu)
    sockets = 2 if re.match(r"2x", cpu) else 1
    n_cores = int(cores[1] or cores[2]) * sockets if cores else None
    model = next((n for word, n in CORES.items() if word in cpu), None)
    return Machine(gpus_of(row["gpu"]), None, bandwidth, n_cores or (model and model * sockets))


def gpus_of(text: str) -> tuple[Gpu, ...]:
    """The cards of `2x RTX 3090 24GB`."""
    found = re.match(r"(\d+)x (.+?)(?: \(.*)?$", text)
    if found is None:
        return ()
    name = found[2].replace("-class", "").replace("Blackwell class", "RTX PRO 6000")
    gpu = known_card(name) or Gpu(name, 24 << 30)
    # A slot is stated where it is not the card's own.
    return (gpu,) * int(found[1])


def settings_of(
    row: dict[str, str], placement: str, dimensions: Dimensions, n_gpus: int, engine: str
) -> Settings:
    """The placement, as overrides."""
    overrides, on_gpu = overrides_of(placement, dimensions, n_gpus)
    cache = Q8_0 if row["kv_type"].startswith("q8_0") else F16
    threads = re.findall(r"(\d+)(?= threads)|(?<=-t )(\d+)", placement)
    return Settings(
        program="llama-bench",
        gpu_layers=-1 if on_gpu and n_gpus else 0,
        overrides=tuple(overrides),
        context=4096,
        micro_batch=int(number(row["ubatch"]) or 512),
        cache_k=cache,
        cache_v=cache,
        threads=int("".join(threads[-1])) if threads else None,
        # Files that are repacked at the start (`-rtr`) are not mapped.
        load_mode="none" if engine == "ik_llama.cpp" and "_R4" not in row["quant"] else "mmap",
    )


EXPERTS = r"ffn_(up|down|gate|gate_up)_(ch|)exps"


def overrides_of(placement: str, dimensions: Dimensions, n_gpus: int) -> tuple[list[Override], bool]:
    """What goes where: `exps=CPU`, `ffn blk 0-6 CUDA0, 7-13 CUDA1, 14-93 CPU`, `--n-cpu-moe 20`, ..."""
    if re.search(r"all CPU|CPU only|-ngl 0\b", placement):
        return [], False
    if not n_gpus:
        raise Unclear("its GPU is not told")
    if re.search(r"(all|full|fully)( on)? GPU|GPU only|all in VRAM", placement):
        return [], True
    found = [
        Override(rf"^blk\.({blocks(int(first), int(last))})\.ffn_", device)
        for first, last, device in re.findall(r"(\d+)-(\d+) (?:on )?(CUDA\d|CPU|GPU)", placement)
        if device != "GPU"
    ]
    if given := re.search(r"n-cpu-moe (\d+)", placement):
        found.append(Override(rf"^blk\.({blocks(0, int(given[1]) - 1)})\.{EXPERTS}", "CPU"))
        return found, True
    if ends := re.search(r"head (\d+) layers \+ tail (\d+)", placement):
        first, last = dimensions.n_dense + int(ends[1]), dimensions.n_trunk - int(ends[2]) - 1
        return [Override(rf"^blk\.({blocks(first, last)})\.{EXPERTS}", "CPU")], True
    if some := re.search(r"exps of (\d+) of (\d+) MoE layers on GPU", placement):
        # Which blocks is not told: those next to each card's own, so the last on the CPU.
        n_on_cpu = int(some[2]) - int(some[1])
        first = dimensions.n_trunk - n_on_cpu
        return [Override(rf"^blk\.({blocks(first, dimensions.n_trunk - 1)})\.{EXPERTS}", "CPU")], True
    if re.search(r"exps|experts|cpu-moe", placement):
        found.append(Override(EXPERTS, "CPU"))
    if not found:
        raise Unclear(f"the placement {placement!r} is not understood")
    return found, True


def blocks(first: int, last: int) -> str:
    """Numbers of blocks, as alternatives."""
    return "|".join(map(str, range(first, last + 1)))


def as_stated(active: ActiveBytes, row: dict[str, str], header: Header) -> ActiveBytes:
    """The bytes of a token, as far as the report states them."""
    devices = dict(active.devices)
    scale = 1.0
    experts = [t for t in header.tensors if "_exps." in t.name]
    n_experts = sum(t.n_bytes for t in experts)
    if (stated_gb := number(row["cpu_gb_per_token"])) and active.experts_in_ram:
        scale = stated_gb * 1e9 / (active.experts_in_ram * active.used_share)
    elif (file_gib := number(row["file_gib"])) and n_experts:
        dense = sum(t.n_bytes for t in header.tensors) - n_experts
        scale = max(file_gib * GIB - dense, 0.3 * n_experts) / n_experts
    if active.experts_in_ram:
        devices[HOST] = stretched(devices[HOST], scale)
    elif file_gib := number(row["file_gib"]):
        whole = file_gib * GIB / sum(t.n_bytes for t in header.tensors)
        devices = {name: stretched(reads, whole) for name, reads in devices.items()}
    stated = sum(map(float, row["gpu_model_mib"].split("+"))) if plain_sum(row["gpu_model_mib"]) else 0.0
    gpus = [name for name in devices if name != HOST]
    on_gpus = sum(devices[name].multiplied_experts for name in gpus)
    if stated and not on_gpus:
        reads = sum(devices[name].weight_bytes for name in gpus)
        for name in gpus:
            devices[name] = stretched(devices[name], stated * MIB / reads)
    return replace(
        active,
        devices=devices,
        experts_in_ram=round(active.experts_in_ram * scale),
        streamable=round(active.streamable * scale),
    )


def plain_sum(text: str) -> bool:
    """Whether a cell is figures with `+` between them."""
    return re.fullmatch(r"[\d.]+(\+[\d.]+)*", text) is not None


def stretched(reads: DeviceReads, scale: float) -> DeviceReads:
    """The same with more or fewer bytes of weights."""
    return replace(reads, weights={kind: n * scale for kind, n in reads.weights.items()})


# --- Fitting and judging -----------------------------------------------------------------------------


def predicted(report: Report, factors: Factors, learned: Learned | None = None) -> float:
    """Tokens of generation per second, the likely figure."""
    machine = replace(report.machine, learned=learned)
    return generation(report.active, machine, report.profile, report.settings, factors).likely


def error_of(report: Report, factors: Factors, learned: Learned | None = None) -> float:
    """Predicted over measured, less one."""
    assert report.generated is not None
    return predicted(report, factors, learned) / report.generated - 1


def fitted(reports: Sequence[Report], start: Factors = FITTED, sweeps: int = 2) -> Factors:
    """The factors with the least mean error of the logarithm: each in turn, from a grid."""

    def loss(factors: Factors) -> float:
        errors = [min(abs(math.log1p(error_of(r, factors))), MOST_ERROR) for r in reports]
        pulls = [
            abs(math.log((getattr(factors, n) + g[1] / 10) / (getattr(FITTED, n) + g[1] / 10)))
            for n, g in GRID.items()
        ]
        return statistics.fmean(errors) + PULL * sum(pulls)

    factors = start
    for _ in range(sweeps):
        for name, values in GRID.items():
            factors = min((replace(factors, **{name: value}) for value in values), key=loss)
    return factors


def without_their_machine(reports: Sequence[Report]) -> list[float]:
    """The error of each report by factors that are fitted on the other machines."""
    errors = []
    for machine in sorted({r.machine_key for r in reports}):
        factors = fitted([r for r in reports if r.machine_key != machine], sweeps=1)
        errors += [error_of(r, factors) for r in reports if r.machine_key == machine]
    return errors


def calibrated(reports: Sequence[Report], factors: Factors = FITTED) -> list[float]:
    """The errors of all pairs of a machine's reports: one calibrates, the other is predicted."""
    errors = []
    for one in reports:
        assert one.generated is not None
        stretch = predicted(one, factors) / one.generated
        for other in reports:
            if other is one or other.machine_key != one.machine_key:
                continue
            # A report of the same file at another depth knows its own model.
            learned = Learned(one.row["id"], stretch, None, one.active.file_bytes)
            errors.append(error_of(other, factors, learned))
    return errors


def prompt_ratio(report: Report, factors: Factors = FITTED) -> float:
    """Predicted over measured tokens of a prompt per second."""
    assert report.read is not None
    rate = prompt(report.active, report.machine, report.profile, report.settings, factors)
    return rate.likely / report.read


def summary(errors: Iterable[float]) -> str:
    """Median and how many are near."""
    found = [abs(e) for e in errors]
    near = sum(e <= 0.25 for e in found) / len(found)
    return f"median error {statistics.median(found):.1%}, within 25 %: {near:.0%} of {len(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reports", type=Path, default=DATA / "reports.csv")
    parser.add_argument("--headers", type=Path, help="a folder of GGUF files whose headers to take instead")
    parser.add_argument("--fit", action="store_true", help="fit the factors on these reports first")
    arguments = parser.parse_args()
    known = headers_in(arguments.headers) if arguments.headers else memory_rows.headers("models")
    reports, unclear = read_reports(arguments.reports, known)
    generated = [r for r in reports if r.generated is not None and r.has_bandwidth]
    factors = fitted(generated, sweeps=4) if arguments.fit else FITTED
    if arguments.fit:
        print({name: getattr(factors, name) for name in GRID})
    for report in reports:
        print(line_of(report, factors))
        if report.generated is not None and report.has_bandwidth and abs(error_of(report, factors)) > 0.25:
            print(f"         a miss: {report.row['note'] or 'the report does not tell why'}")
    for number_, why in unclear:
        print(f"{number_:>4} not used: {why}")
    print("generation, factors fitted on these reports:", summary(error_of(r, factors) for r in generated))
    print("generation, each machine left out:", summary(without_their_machine(generated)))
    print("generation, one report calibrates its machine:", summary(calibrated(generated, factors)))
    alone = [r for r in reports if r.generated is not None and not r.active.experts_in_ram and r.machine.gpus]
    alone = [r for r in alone if not r.has_bandwidth]
    print("generation, on GPUs alone:", summary(error_of(r, factors) for r in alone))
    ratios = [prompt_ratio(r, factors) for r in reports if r.read is not None]
    near = sum(1 / 1.5 <= ratio <= 1.5 for ratio in ratios)
    print(f"prompts within a factor of 1.5: {near} of {len(ratios)} ({near / len(ratios):.0%})")


def line_of(report: Report, factors: Factors) -> str:
    """A report beside what is predicted."""
    row = report.row
    words = f"{row['id']:>4} {row['model'][:20]:20} {row['quant'][:18]:18} {row['cpu'][:18]:18} "
    words += f"{report.profile.engine[:2]} {row['depth'] or '':>5} "
    if report.generated is not None:
        rate = generation(report.active, report.machine, report.profile, report.settings, factors)
        inside = " " if rate.low <= report.generated <= rate.high else "*"
        words += f"tg {report.generated:6.2f} {rate.likely:6.2f} ({rate.low:5.1f}-{rate.high:5.1f}){inside}"
        words += f"{rate.likely / report.generated - 1:+5.0%}  " if report.has_bandwidth else "   -   "
    if report.read is not None:
        rate = prompt(report.active, report.machine, report.profile, report.settings, factors)
        words += f"pp {report.read:6.1f} {rate.likely:6.1f} x{rate.likely / report.read:.2f}"
        words += f" ub {report.settings.micro_batch}"
    return words


if __name__ == "__main__":
    main()
