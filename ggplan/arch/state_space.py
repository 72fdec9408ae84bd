"""The tensors of a state space (Mamba 2), which several families have in place of attention in some layers.

The GGUF has the decay as minus the exponential of `A_log`, and it and `D` as a column; the norm as one row a
group; the kernel of the convolution without its middle dimension.

`Mamba2Model` in `conversion/mamba.py` of llama.cpp b11434.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys
from ggplan.arch.tensors import TensorSpec
from ggplan.arch.transforms import decay, reshaped
from ggplan.model import RowSource


@dataclass(frozen=True, slots=True)
class StateSpace:
    """The sizes of a state space.

    Attributes
    ----------
    n_heads, head
        Heads, and the columns of one.
    n_groups
        Groups of heads that share their input and output weights.
    state
        Columns of the state.
    kernel
        Tokens that the convolution sees.
    """

    n_heads: int
    head: int
    n_groups: int
    state: int
    kernel: int

    @property
    def inner(self) -> int:
        """Columns of all heads."""
        return self.n_heads * self.head


def state_space(config: Config, names: str) -> StateSpace:
    """The sizes that a config has under these names, in the order of the attributes, a space between them."""
    n_heads, head, n_groups, state, kernel = names.split()
    found = StateSpace(
        config.count(n_heads),
        config.count(head),
        config.count(n_groups),
        config.count(state),
        config.count(kernel, least=2),
    )
    if found.inner % found.n_groups:
        raise config.wrong(n_groups, f"is {found.n_groups}, which does not divide {found.inner} columns")
    return found


def state_space_specs(layout: Layout, sizes: StateSpace, kind: str, prefix: str) -> list[TensorSpec]:
    """The tensors of a state space, in layers of a kind; `prefix` stands before their names."""
    n_heads, inner, width = sizes.n_heads, sizes.inner, layout.config.count("hidden_size")
    channels = inner + 2 * sizes.n_groups * sizes.state
    column = partial(reshaped, shape=(n_heads, 1))
    groups = partial(reshaped, shape=(sizes.n_groups, inner // sizes.n_groups))
    kernels = partial(reshaped, shape=(channels, sizes.kernel))

    def decays(source: RowSource) -> RowSource:
        return column(decay(source))

    vector, of_kernel = (n_heads,), (channels, 1, sizes.kernel)
    return [
        *layout.layer("in_proj", kind, shape=(inner + channels + n_heads, width), prefix=prefix),
        *layout.layer("conv1d", kind, shape=of_kernel, transform=kernels, prefix=prefix),
        *layout.parameter("conv1d.bias?", kind, shape=(channels,), prefix=prefix),
        *layout.parameter("dt_bias", kind, shape=vector, like="dt_proj.bias", prefix=prefix),
        *layout.parameter("A_log", kind, shape=vector, transform=decays, prefix=prefix),
        *layout.parameter("D", kind, shape=vector, transform=column, prefix=prefix),
        *layout.layer("norm", kind, shape=(inner,), transform=groups, prefix=prefix),
        *layout.layer("out_proj", kind, shape=(width, inner), prefix=prefix),
    ]


def write_state_space(keys: Keys, sizes: StateSpace) -> None:
    """Write the keys of a state space."""
    keys.count("ssm.conv_kernel", sizes.kernel)
    keys.count("ssm.state_size", sizes.state)
    keys.count("ssm.group_count", sizes.n_groups)
    keys.count("ssm.inner_size", sizes.inner)
    keys.count("ssm.time_step_rank", sizes.n_heads)
