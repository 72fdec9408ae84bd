"""The maker of graphs: weights by name, inputs, and what most families have in common.

The pieces are those of a transformer's block: a norm, the projections of attention, a feed-forward. They are
put together by `families`.

Source: llama.cpp b11434, `src/llama-graph.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ggplan.ggml_types import F16, F32, parse_type
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.graph.tensors import Graph, Tensor
from ggplan.offload.header import HeaderTensor
from ggplan.offload.holding import Holding, padded
from ggplan.offload.profiles import Profile
from ggplan.offload.settings import Settings

I32, I64 = parse_type("i32"), parse_type("i64")


@dataclass(frozen=True, slots=True)
class Placed:
    """A weight and where it is: a device's number, and whether a GPU may read it from RAM."""

    tensor: HeaderTensor
    device: int
    is_streamed: bool


@dataclass(frozen=True, slots=True)
class Job:
    """What a graph is made for.

    Attributes
    ----------
    weights
        By name; `output.weight` also where it is a copy of token_embd.
    blocks
        Device of each block.
    cpu
        Number of the CPU: that of GPUs.
    """

    dimensions: Dimensions
    settings: Settings
    holding: Holding
    profile: Profile
    weights: dict[str, Placed]
    blocks: tuple[int, ...]
    cpu: int

    @property
    def flash(self) -> bool:
        """Whether attention is one operation."""
        return self.settings.flash_attention != "off"


@dataclass(slots=True)
class Cache:
    """The tensors of attention's cache that a block reads: its own or an earlier block's."""

    k: Tensor
    v: Tensor | None
    n_cells: int


@dataclass(slots=True)
class Maker:
    """A graph being made for a job."""

    job: Job
    graph: Graph = field(default_factory=Graph)
    made: dict[str, Tensor] = field(default_factory=dict)

    # --- Sizes ---------------------------------------------------------------------------------------

    @property
    def dims(self) -> Dimensions:
        """The model's shape."""
        return self.job.dimensions

    @property
    def n_slots(self) -> int:
        """Sequences of a micro-batch."""
        return self.job.holding.n_slots

    @property
    def n_tokens(self) -> int:
        """Tokens of a micro-batch, as many of each sequence."""
        return padded(self.job.holding.n_tokens, self.n_slots)

    @property
    def n_streams(self) -> int:
        """Streams of the cache."""
        return self.job.holding.n_streams

    # --- What is there -------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a weight is loaded."""
        return name in self.job.weights

    def weight(self, name: str) -> Tensor | None:
        """A weight; None if the model has none of that name."""
        found = self.made.get(name)
        if found is None and name in self.job.weights:
            placed = self.job.weights[name]
            found = self.graph.given(
                placed.tensor.type,
                placed.tensor.shape,
                placed.device,
                weight=True,
                streamed=placed.is_streamed,
            )
            self.made[name] = found
        return found

    def need(self, name: str) -> Tensor:
        """A weight that the architecture cannot do without."""
        found = self.weight(name)
        if found is None:
            raise LookupError(name)
        return found

    def block_weight(self, block: int, name: str, ending: str = "weight") -> Tensor | None:
        """A weight of a block: `attn_q`, `bias`..."""
        return self.weight(f"blk.{block}.{name}.{ending}")

    def rope_factors(self, block: int) -> Tensor | None:
        """The factors of rotation on a block's device."""
        s = self.job.settings
        name = "rope_freqs.weight"
        long, short = "rope_factors_long.weight", "rope_factors_short.weight"
        if name not in self.job.weights and long in self.job.weights:
            trained = self.dims.trained_context
            name = long if self.job.holding.n_cells > trained and not s.slots else short
            if name not in self.job.weights:
                return None
        if name not in self.job.weights:
            return None
        device = self.job.blocks[block]
        key = f"{name}@{device}"
        found = self.made.get(key)
        if found is None:
            placed = self.job.weights[name]
            found = self.graph.given(
                placed.tensor.type, placed.tensor.shape, device, weight=True, streamed=True
            )
            self.made[key] = found
        return found

    # --- Inputs --------------------------------------------------------------------------------------

    def embedding(self) -> Tensor:
        """Rows of token_embd, or embeddings that are given: both may be inputs of every graph."""
        g, n = self.graph, self.n_tokens
        tokens = g.input(I32, n)
        rows = g.get_rows(self.need("token_embd.weight"), tokens)
        g.expand(rows)
        if self.job.profile.is_general:
            g.expand(g.input(F32, self.dims.n_embd, n))
        return rows

    def positions(self) -> Tensor:
        """Where each token stands."""
        return self.graph.input(I32, self.n_tokens * self.dims.positions)

    def output_ids(self) -> Tensor:
        """Tokens whose logits are wanted."""
        return self.graph.input(I32, self.job.holding.n_outputs)

    def mask(self, n_cells: int, *, half: bool | None = None) -> Tensor:
        """Which cells a token sees."""
        kind = F16 if (self.job.flash if half is None else half) else F32
        n = self.n_streams
        return self.graph.input(kind, n_cells, self.n_tokens // n, 1, n)

    # --- Pieces --------------------------------------------------------------------------------------

    def norm(self, x: Tensor, name: str, *, op: str = "rms norm", bias: str = "") -> Tensor:
        """A norm, with its weight and bias."""
        g = self.graph
        weight, added = self.weight(name), self.weight(bias) if bias else None
        if self.job.profile.fuses_experts and op == "rms norm" and weight is not None and added is None:
            return g.like("fused norm", x, weight)
        x = g.like(op, x)
        if weight is not None:
            x = g.like("mul", x, weight)
        if added is not None:
            x = g.like("add", x, added)
        return x

    def project(self, x: Tensor, name: str) -> Tensor:
        """A matrix, with the scale of nvfp4 where there is one."""
        g = self.graph
        y = g.mul_mat(self.need(f"{name}.weight"), x)
        scale = self.weight(f"{name}.scale")
        return y if scale is None else g.like("mul", y, scale)

    def biased(self, x: Tensor, name: str) -> Tensor:
        """With the bias, where there is one."""
        bias = self.weight(f"{name}.bias")
        return x if bias is None else self.graph.like("add", x, bias)

    def rope(self, x: Tensor, positions: Tensor, factors: Tensor | None = None) -> Tensor:
        """Rotated by position."""
        return self.graph.like("rope", x, positions, factors)

    def activation(self, kind: str, gate: Tensor, up: Tensor | None) -> Tensor:
        """`glu` of two, or of one tensor's halves, `unary`, or a square of `relu`."""
        g = self.graph
        if kind == "glu":
            if up is not None:
                return g.op("glu", (up.shape[0], *gate.shape[1:]), gate, up)
            return g.op("glu", (gate.shape[0] // 2, *gate.shape[1:]), gate)
        x = g.like("unary", gate)
        return g.like("sqr", x) if kind == "relu squared" else x

    def feed_forward(
        self, x: Tensor, prefix: str, ending: str = "", *, kind: str = "glu", bias: bool = True
    ) -> Tensor:
        """A dense feed-forward, or a shared expert (`ending` is `_shexp`)."""
        g = self.graph
        up_name, gate_name, down_name = (f"{prefix}ffn_{part}{ending}" for part in ("up", "gate", "down"))
        has_gate = self.has(f"{gate_name}.weight")
        if self.job.profile.fuses_experts and has_gate and not self.has(f"{up_name}.bias"):
            pair = (self.need(f"{name}.weight") for name in (up_name, gate_name))
            hidden = g.op("mul mat", (self.need(f"{up_name}.weight").shape[1], x.shape[1]), *pair, x)
            return g.mul_mat(self.need(f"{down_name}.weight"), hidden)
        up = g.mul_mat(self.need(f"{up_name}.weight"), x)
        up = self.scaled(self.biased(up, up_name) if bias else up, up_name)
        if has_gate:
            gate = g.mul_mat(self.need(f"{gate_name}.weight"), x)
            gate = self.scaled(self.biased(gate, gate_name) if bias else gate, gate_name)
            hidden = self.activation(kind, gate, up)
        else:
            hidden = self.activation(kind, up, None)
        down = g.mul_mat(self.need(f"{down_name}.weight"), hidden)
        return self.scaled(self.biased(down, down_name) if bias else down, down_name)

    def scaled(self, x: Tensor, name: str) -> Tensor:
        """With the scale of nvfp4, where there is one."""
        scale = self.weight(f"{name}.scale")
        return x if scale is None else self.graph.like("mul", x, scale)

    def rows(self, x: Tensor, ids: Tensor) -> Tensor:
        """The tokens that are wanted."""
        holding = self.job.holding
        if holding.n_outputs == holding.n_tokens and not self.job.profile.is_general:
            return x
        return self.graph.get_rows(x, ids)
