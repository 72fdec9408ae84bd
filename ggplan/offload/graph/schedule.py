"""The scheduler: on which device each operation of a graph runs, and what is copied between devices.

    1  an operation on a weight runs where the weight is; on the first GPU if the weight is in RAM, the GPU
       may read it, and the batch is large (op offload)
    2  neighbours without weights run where those before or after them do, GPUs first
    3  the rest where most of what they read is
    4  consecutive operations on one device are a split; what a split reads from another device is copied at
       its start; a weight that must be copied starts a new one, so that the room of the last is used again

What a GPU would run as one operation keeps all that it reads until the last of it.

The program also says of a few norms where they shall run. The engine's own estimate forgets that
(ggml_backend_sched_reserve_size resets the scheduler), and so does this one: it is what `--fit` and
llama-fit-params see. On several GPUs a real load may need one copy of the residual stream less.

Source: llama.cpp b11434, `ggml/src/ggml-backend.cpp` (ggml_backend_sched_split_graph),
`ggml/src/ggml-cuda/ggml-cuda.cu` (ggml_backend_cuda_graph_optimize, _device_offload_op).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ggplan.offload.graph.tensors import VIEWS, Graph, Tensor

_MAX_SOURCES = 10  # GGML_MAX_SRC
_CHOOSES_NOT = frozenset({"rope", "flash attention"})  # their weights are too small to say where they run
COPIES = 4  # GGML_SCHED_MAX_COPIES: of each input, where several GPUs work one behind the other


@dataclass(frozen=True, slots=True)
class Rules:
    """What a scheduler is told.

    Attributes
    ----------
    n_gpus
        GPUs are devices 0, 1...; the CPU is device `n_gpus`.
    offloads
        Whether operations on weights in RAM go to a GPU.
    batch
        Rows from which they do; where `per_expert`, rows of an expert on the average.
    pipelined
        Whether GPUs work one behind the other, each on a micro-batch of its own.
    keeps_fused
        Whether a GPU keeps what it reads in several operations that it runs as one.
    """

    n_gpus: int
    offloads: bool
    batch: int
    pipelined: bool = False
    per_expert: bool = False
    keeps_fused: bool = True


@dataclass(slots=True)
class Step:
    """One thing to allocate: a node, a copy, or a dependency that keeps its sources until here."""

    tensor: Tensor
    device: int
    sources: tuple[Tensor, ...]
    is_keeper: bool = False


@dataclass(slots=True)
class Split:
    """Consecutive nodes on one device."""

    device: int
    start: int
    stop: int = 0
    inputs: list[Tensor] = field(default_factory=list)


@dataclass(slots=True)
class Schedule:
    """What is allocated in which order, and what is before all."""

    steps: list[Step]
    first: list[tuple[Tensor, int]]
    n_splits: int


def schedule(graph: Graph, rules: Rules) -> Schedule:
    """Assign devices, split, and insert copies."""
    nodes = graph.nodes
    cpu = rules.n_gpus
    for i, leaf in enumerate(graph.leafs):
        leaf.at = i
        leaf.buffer = _given(leaf, cpu)
    for node in nodes:
        node.buffer = _from_sources(node, rules)
    real = [node for node in nodes if node.op not in VIEWS]
    _spread(real, cpu, skips_cpu=True)
    _spread(real[::-1], cpu, skips_cpu=True)
    _spread(real, cpu, skips_cpu=False)
    _spread(real[::-1], cpu, skips_cpu=False)
    _by_inputs(real, cpu)
    _rest(nodes)
    splits, copies, used = _split(nodes, rules)
    return _ordered(graph, rules, splits, copies, used)


def _given(tensor: Tensor, cpu: int) -> int:
    if tensor.device is not None:
        return tensor.device
    return cpu if tensor.is_input else -1


def _from_sources(node: Tensor, rules: Rules) -> int:
    """Where a node runs by what it writes into or by its weights; -1 if they do not say."""
    cpu = rules.n_gpus
    if node.device is not None:
        return node.device if node.runs_on_gpu else cpu
    if node.op in _CHOOSES_NOT:
        return -1
    for source in node.sources:
        if not source.is_weight or source.device is None:
            continue
        if source.device < cpu:
            return source.device if node.runs_on_gpu else -1
        if rules.offloads and source.is_streamed and cpu > 0 and node.runs_on_gpu and _is_batch(node, rules):
            return 0
        return cpu
    return -1


def _is_batch(node: Tensor, rules: Rules) -> bool:
    """Whether an operation has rows enough to be worth a copy of its weights."""
    if rules.per_expert and node.op == "mul mat id":
        n_experts, n_used = node.sources[0].shape[2], node.shape[1]
        return node.shape[2] * n_used >= rules.batch * n_experts
    return _rows(node) >= rules.batch


def _rows(node: Tensor) -> int:
    """The batch of an operation."""
    if node.op == "get rows":
        return 0
    if node.op == "mul mat":
        return node.shape[1]
    if node.op in ("mul mat id", "rope"):
        return node.shape[2]
    return node.shape[1] * node.shape[2] * node.shape[3]


def _spread(nodes: list[Tensor], cpu: int, *, skips_cpu: bool) -> None:
    """Give nodes without a device that of the one before."""
    current = -1
    for node in nodes:
        if node.buffer >= 0:
            current = -1 if skips_cpu and node.buffer == cpu else node.buffer
        elif current >= 0 and (current == cpu or node.runs_on_gpu):
            node.buffer = current


def _by_inputs(nodes: list[Tensor], cpu: int) -> None:
    """Nodes that the device next to them cannot run: the device with most of what they read."""
    for node in nodes:
        if node.buffer >= 0:
            continue
        best = -1
        for device in range(cpu + 1):
            if device < cpu and not node.runs_on_gpu:
                continue
            n = sum(_holder(source) == device for source in node.sources)
            if n > best:
                best, node.buffer = n, device


def _holder(tensor: Tensor) -> int:
    if tensor.device is not None:
        return tensor.device
    if tensor.buffer < 0 and tensor.viewed is not None:
        return tensor.viewed.buffer
    return tensor.buffer


def _rest(nodes: list[Tensor]) -> None:
    for node in nodes:
        if node.viewed is not None and node.buffer < 0:
            node.buffer = node.viewed.buffer
        for source in node.sources:
            if source.buffer < 0:
                source.buffer = node.buffer if source.viewed is None else source.viewed.buffer


_Copies = dict[tuple[int, int], Tensor]


def _split(nodes: list[Tensor], rules: Rules) -> tuple[list[Split], _Copies, list[tuple[Tensor, ...]]]:
    """Splits, the copies that they make, and what each node reads then."""
    splits: list[Split] = []
    copies: _Copies = {}
    used: list[tuple[Tensor, ...]] = []
    split: Split | None = None
    for i, node in enumerate(nodes):
        if node.op in VIEWS:
            used.append(node.sources)
            continue
        device = node.buffer
        needs_new = split is None or device != split.device
        if not needs_new and split is not None and split.inputs:
            needs_new = any(s.is_weight and s.device != device for s in node.sources)
        if needs_new or split is None:
            if split is not None:
                split.stop = i
            split = Split(device, i if splits else 0)
            splits.append(split)
        found: list[Tensor] = []
        for source in node.sources:
            if source.buffer != device and _holder(source) != device:
                copy = copies.get((id(source), device))
                if copy is None:
                    copy = Tensor("copy", source.type, source.shape, (), source.strides, source.n_bytes)
                    copy.is_input = copy.is_output = rules.pipelined
                    copies[id(source), device] = copy
                    split.inputs.append(source)
                found.append(copy)
            else:
                found.append(source)
        used.append(tuple(found))
    if split is not None:
        split.stop = len(nodes)
    return splits, copies, used


def _ordered(
    graph: Graph, rules: Rules, splits: list[Split], copies: _Copies, used: list[tuple[Tensor, ...]]
) -> Schedule:
    nodes, cpu = graph.nodes, rules.n_gpus
    steps: list[Step] = []
    first: list[tuple[Tensor, int]] = []
    if rules.pipelined:
        for leaf in graph.leafs:
            if leaf.is_input:
                leaf.is_output = True
                first += [(one, leaf.buffer) for one in (leaf, *_again(leaf))]
    for split in splits:
        for source in split.inputs:
            copy = copies[id(source), split.device]
            steps.append(Step(source, source.buffer, (source,), is_keeper=True))
            steps.append(Step(copy, split.device, ()))
            if rules.pipelined:
                first += [(one, split.device) for one in (copy, *_again(copy))]
        kept = _fused(nodes, split, used) if rules.keeps_fused and split.device < cpu else {}
        for i in range(split.start, split.stop):
            steps.append(Step(nodes[i], nodes[i].buffer, used[i]))
            keep = kept.get(i, [])
            for at in range(0, len(keep), _MAX_SOURCES):
                steps.append(
                    Step(keep[at], split.device, tuple(keep[at : at + _MAX_SOURCES]), is_keeper=True)
                )
    first += [(leaf, leaf.buffer) for leaf in graph.leafs if leaf.device is None]
    return Schedule(steps, first, len(splits))


def _again(tensor: Tensor) -> list[Tensor]:
    return [
        Tensor("copy", tensor.type, tensor.shape, (), tensor.strides, tensor.n_bytes, is_output=True)
        for _ in range(COPIES - 1)
    ]


def _fused(nodes: list[Tensor], split: Split, used: list[tuple[Tensor, ...]]) -> dict[int, list[Tensor]]:
    """What a GPU keeps until which node, because it runs several as one."""
    kept: dict[int, list[Tensor]] = {}
    for i in range(split.start, split.stop):
        n = nodes[i].fused
        if not n:
            continue
        if nodes[i].op == "mul":
            until = i + n - 1
            found = list(used[i])
        else:
            until = i + n
            found = [t for j in range(i, until) if j < split.stop for t in (nodes[j], *used[j])]
        if until < split.stop:
            keep = kept.setdefault(until, [])
            for tensor in found:
                if not any(tensor is other for other in keep):
                    keep.append(tensor)
    return kept
