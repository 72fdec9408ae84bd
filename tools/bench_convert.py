"""Time whole conversions beside llama.cpp's: the same bf16 GGUF, types and threads, in one run.

    python tools/bench_convert.py [--json FILE] [--docs]

A llama-shaped model of random bf16 weights (594 million by default) is written once to the cache folder. Each
type is converted a few times, alternating: by a call of `llama_cpp.llama_model_quantize` (`pure`; what
llama-quantize calls), by ggplan's calls from `open_model` to `convert`, and by the program `ggplan convert`
from its start to its end. Each has a process of its own; what calls need is imported before the clock starts,
and the outputs of the last are removed. The best of each counts, because these machines are shared. Processor
time is listed too, which other work on the machine disturbs least. The program is also run with an empty
kernel cache. Outputs are compared tensor by tensor.

llama.cpp neither hashes what it writes nor waits until the disk has it; ggplan does both. So "disk" is how
long a plain write of the output takes until it is durable: no conversion that waits for that is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from bench_page import machine, write_table  # noqa: E402

RECIPE = "^(blk|output\\.|token_embd).*weight$ = {type}\n"
# Of llama.h: LLAMA_FTYPE_MOSTLY_*.
FTYPES = {"q4_0": 2, "q8_0": 7, "q2_K": 10, "q3_K": 12, "q4_K": 15, "q5_K": 17, "q6_K": 18, "iq4_xs": 30}

_MEASURED = """
import resource, sys, time
{imports}
source, target, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
cpu_before, before = cpu(), time.perf_counter()
{work}
seconds = time.perf_counter() - before
used = cpu() - cpu_before
# Of this program alone; getrusage counts what its parent had too.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("took", seconds, used, peak)
"""
THEIR_CALL = _MEASURED.format(
    imports="import llama_cpp",
    work="""
options = llama_cpp.llama_model_quantize_default_params()
options.nthread, options.ftype, options.pure = threads, int(sys.argv[4]), True
assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), options) == 0
""",
)
OUR_CALL = _MEASURED.format(
    imports="from ggplan import ConvertOptions, convert, load_recipe, make_plan, open_model",
    work="""
convert(make_plan(open_model(source), load_recipe(sys.argv[4])), target, ConvertOptions(threads=threads))
""",
)


class Took(NamedTuple):
    """Wall and processor seconds, and peak memory in KiB."""

    wall: float
    cpu: float
    peak_kib: float = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The best figures of one type; seconds, but for the last two."""

    type: str
    peer: float
    peer_cpu: float
    call: float
    call_cpu: float
    program: float
    first_program: float
    disk: float
    peak_mib: float
    same_bytes: bool


def main() -> None:
    arguments = parse_arguments()
    check_peer()
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"bench-{arguments.layers}.gguf"
    if not source.exists():
        write_model(source, arguments.layers)
    results = [bench(source, type_, arguments, folder) for type_ in arguments.types.split(",")]
    table = page_table(results, arguments.threads, source.stat().st_size)
    print(table)
    if arguments.json:
        report = {"machine": machine(), "threads": arguments.threads, "source_bytes": source.stat().st_size}
        text = json.dumps(report | {"results": [asdict(result) for result in results]}, indent=2)
        arguments.json.write_text(text + "\n")
    if arguments.docs:
        write_table("conversions", table)


def page_table(results: Sequence[Result], threads: int, source_bytes: int) -> str:
    """The table of docs/performance.md."""
    head = (
        f"{machine()}; {threads} threads; source {source_bytes / 1e9:.2f} GB of bf16, in the page cache.\n\n"
        "| type | llama.cpp's call | ggplan's calls | ratio | processor time | ratio "
        "| `ggplan convert` | ratio | first run | ratio | disk | peak memory | same bytes |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
    )
    return head + "".join(
        f"| {r.type} | {r.peer:.2f} s | {r.call:.2f} s | {r.peer / r.call:.1f} "
        f"| {r.peer_cpu:.1f} s, {r.call_cpu:.1f} s | {r.peer_cpu / r.call_cpu:.1f} "
        f"| {r.program:.2f} s | {r.peer / r.program:.1f} "
        f"| {r.first_program:.2f} s | {r.peer / r.first_program:.1f} "
        f"| {r.disk:.2f} s | {r.peak_mib:.0f} MiB | {'yes' if r.same_bytes else 'NO'} |\n"
        for r in results
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--types", default="q4_K,q6_K,q8_0", help=f"of {', '.join(FTYPES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "ggplan-bench"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    return parser.parse_args()


def write_model(path: Path, n_layers: int) -> None:
    """A llama of random weights: 2048 wide, 5632 in the FFN, 32,000 tokens."""
    import gguf

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, n_layers), (writer.add_context_length, 2048),
        (writer.add_embedding_length, 2048), (writer.add_feed_forward_length, 5632),
        (writer.add_head_count, 16), (writer.add_head_count_kv, 16), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, 32000), (writer.add_file_type, 32),
    ):  # fmt: skip
        add(value)

    def add(name: str, *shape: int) -> None:
        weights = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        bf16 = (weights.view(np.uint32) >> 16).astype(np.uint16)
        writer.add_tensor(name, bf16.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", 32000, 2048)
    add("output.weight", 32000, 2048)
    writer.add_tensor("output_norm.weight", np.ones(2048, np.float32))
    for i in range(n_layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(2048, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", 2048, 2048)
        add(f"blk.{i}.ffn_gate.weight", 5632, 2048)
        add(f"blk.{i}.ffn_up.weight", 5632, 2048)
        add(f"blk.{i}.ffn_down.weight", 2048, 5632)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bench(source: Path, type_: str, arguments: argparse.Namespace, folder: Path) -> Result:
    """Convert to one type by all ways, alternating."""
    recipe = folder / f"{type_}.recipe"
    recipe.write_text(RECIPE.format(type=type_))
    theirs, ours = folder / "peer.gguf", folder / "ggplan.gguf"
    threads = str(arguments.threads)
    program = [sys.executable, "-m", "ggplan", "convert", str(source), str(ours), "-r", str(recipe)]
    program += ["-t", threads, "-q"]

    def their_call() -> Took:
        remove(theirs)
        return timed_call(THEIR_CALL, source, theirs, threads, str(FTYPES[type_]))

    def our_call() -> Took:
        remove(ours)
        return timed_call(OUR_CALL, source, ours, threads, str(recipe))

    def our_program(**environment: str) -> Took:
        remove(ours)
        return timed_program(program, **environment)

    def our_first_run() -> Took:
        with tempfile.TemporaryDirectory() as empty:
            return our_program(NUMBA_CACHE_DIR=empty)

    our_program()  # The kernel cache is the user's own, and may be empty too.
    peers, calls, programs, first_runs = [], [], [], []
    for _ in range(arguments.repeats):
        peers.append(their_call())
        first_runs.append(our_first_run())
        programs.append(our_program())
        calls.append(our_call())
    same = same_tensors(theirs, ours)
    disk = min(durable_write(ours) for _ in range(3))
    remove(theirs)
    remove(ours)
    return Result(
        type=type_,
        peer=min(took.wall for took in peers),
        peer_cpu=min(took.cpu for took in peers),
        call=min(took.wall for took in calls),
        call_cpu=min(took.cpu for took in calls),
        program=min(took.wall for took in programs),
        first_program=min(took.wall for took in first_runs),
        disk=disk,
        peak_mib=max(took.peak_kib for took in calls) / 1024,
        same_bytes=same,
    )


def remove(output: Path) -> None:
    """Remove an output, so that freeing it counts in no measured time."""
    for path in (output, output.with_name(output.name + ".sha256")):
        path.unlink(missing_ok=True)


def timed_call(program: str, *arguments: object) -> Took:
    """What a call took inside a process of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, text=True, cwd=ROOT, env=users())
    if done.returncode:
        fail(command[:2], done.stderr)
    took = next(line for line in done.stdout.splitlines() if line.startswith("took "))
    return Took(*map(float, took.split()[1:]))


def timed_program(command: Sequence[str], **environment: str) -> Took:
    """What a program took, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=users() | environment,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if done.returncode:
        fail(command, done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def fail(command: Sequence[str], said: str) -> NoReturn:
    """End with the last lines that a program said."""
    last = "\n".join(said.strip().splitlines()[-5:]) or "it does not say why"
    sys.exit(f"error: {' '.join(command)} failed:\n{last}")


def check_peer() -> None:
    """End with the reason where llama.cpp inside Python, which is compared with, cannot be used."""
    from ggplan.measure.embedded import why_missing

    if why := why_missing():
        sys.exit(
            f"error: {why}\nhelp: pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python, or"
            " set LLAMA_CPP_LIB_PATH to the folder of the libraries that tools/install-oracles builds"
        )


def users() -> dict[str, str]:
    """The environment as a user has it, where Python keeps its compiled modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def durable_write(path: Path) -> float:
    """Seconds to write a file's bytes to another file until the disk has them."""
    data = path.read_bytes()
    copy = path.with_suffix(".copy")
    copy.unlink(missing_ok=True)
    started = time.perf_counter()
    with open(copy, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    copy.unlink()
    return seconds


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two files hold the same tensors, byte for byte."""
    import ggplan

    models = [ggplan.open_model(path) for path in (first, second)]
    tensors = [{t.name: t for t in model.tensors} for model in models]
    return tensors[0].keys() == tensors[1].keys() and all(
        a.type == tensors[1][name].type
        and a.stored.read_bytes(0, a.n_rows) == tensors[1][name].stored.read_bytes(0, a.n_rows)
        for name, a in tensors[0].items()
    )


if __name__ == "__main__":
    main()
