"""Time whole conversions beside llama-quantize: the same bf16 GGUF, types and threads, in one run.

    python tools/bench_convert.py --llama-quantize PATH [--json FILE] [--docs]

A llama-shaped model of random bf16 weights (594 million by default) is written once to the cache folder.
Each type is converted by llama-quantize (`--pure`) and by ggplan, one after the other, a few times each;
the best of each counts, because these machines are shared. Processor time is listed too, which other work
on the machine disturbs least. ggplan is also run once with an empty kernel cache. Outputs are compared
tensor by tensor. llama-quantize neither hashes what it writes nor waits until the disk has it; ggplan does.
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
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from bench_page import machine, write_table  # noqa: E402

RECIPE = "^(blk|output\\.|token_embd).*weight$ = {type}\n"


def main() -> None:
    arguments = parse_arguments()
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"bench-{arguments.layers}.gguf"
    if not source.exists():
        write_model(source, arguments.layers)
    results = [bench(source, type_, arguments, folder) for type_ in arguments.types.split(",")]
    report = {"machine": machine(), "threads": arguments.threads, "source_bytes": source.stat().st_size,
              "results": results}  # fmt: skip
    table = page_table(report)
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.docs:
        write_table("conversions", table)


def page_table(report: dict[str, Any]) -> str:
    """The table of docs/performance.md."""
    head = (
        f"{report['machine']}; {report['threads']} threads; source {report['source_bytes'] / 1e9:.2f} GB of "
        "bf16, in the page cache.\n\n"
        "| type | llama-quantize | ggplan | ratio | processor time | ratio | first run | ratio | peak memory "
        "| same bytes |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
    )
    return head + "".join(
        f"| {r['type']} | {r['peer_s']:.2f} s | {r['ggplan_s']:.2f} s | {r['ratio']:.1f} "
        f"| {r['peer_cpu_s']:.1f} s, {r['ggplan_cpu_s']:.1f} s | {r['cpu_ratio']:.1f} "
        f"| {r['cold_s']:.2f} s | {r['cold_ratio']:.1f} | {r['peak_rss_mib']:.0f} MiB "
        f"| {'yes' if r['same_bytes'] else 'NO'} |\n"
        for r in report["results"]
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-quantize", required=True, help="the program to compare with")
    parser.add_argument("--types", default="q4_K,q6_K,q8_0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
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


def bench(source: Path, type_: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    recipe = folder / f"{type_}.recipe"
    recipe.write_text(RECIPE.format(type=type_))
    theirs, ours = folder / "peer.gguf", folder / "ggplan.gguf"
    threads = str(arguments.threads)
    peer = [arguments.llama_quantize, "--pure", str(source), str(theirs), type_.upper(), threads]
    mine = [sys.executable, "-m", "ggplan", "convert", str(source), str(ours), "-r", str(recipe)]
    mine += ["-t", threads, "--force", "-q"]
    with tempfile.TemporaryDirectory() as empty:
        cold, _ = timed(mine, NUMBA_CACHE_DIR=empty)
    timed(mine)  # The kernel cache is the user's own, and may be empty too.
    pairs = [(timed(peer), timed(mine)) for _ in range(arguments.repeats)]
    peer_s, peer_cpu_s = (min(p[i] for p, _ in pairs) for i in range(2))
    ggplan_s, ggplan_cpu_s = (min(m[i] for _, m in pairs) for i in range(2))
    return {
        "type": type_,
        "peer_s": peer_s,
        "ggplan_s": ggplan_s,
        "ratio": peer_s / ggplan_s,
        "peer_cpu_s": peer_cpu_s,
        "ggplan_cpu_s": ggplan_cpu_s,
        "cpu_ratio": peer_cpu_s / ggplan_cpu_s,
        "cold_s": cold,
        "cold_ratio": peer_s / cold,
        "peak_rss_mib": peak_rss(mine),
        "same_bytes": same_tensors(theirs, ours),
    }


def timed(command: list[str], **environment: str) -> tuple[float, float]:
    """Wall and processor seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
        env=os.environ | environment,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def peak_rss(command: list[str]) -> float:
    """Peak resident memory of a command in MiB, measured by a process of its own."""
    program = (
        "import resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, cwd=ROOT)
    return int(done.stdout.split()[-1]) / 1024


def same_tensors(first: Path, second: Path) -> bool:
    import ggplan

    models = [ggplan.open_model(path) for path in (first, second)]
    tensors = [{t.name: t for t in model.tensors} for model in models]
    return tensors[0].keys() == tensors[1].keys() and all(
        a.type == tensors[1][name].type
        and a.read_bytes(0, a.n_rows) == tensors[1][name].read_bytes(0, a.n_rows)
        for name, a in tensors[0].items()
    )


if __name__ == "__main__":
    main()
