"""What the inputs of a layer's matrices are: found by running the layer once on a few tokens.

The matrices that see the same hidden states have one input: Q, K and V; gate and up. An expert's input is
some of the rows that its module was given. Which input depends on which matrices is found by changing these:
an input that stays the same does not depend on them. So inputs that do not need one another can be worked on
at the same time, whatever the module looks like.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggplan.errors import CheckpointError
from ggplan.forward.checkpoint_model import OTHER_ENGINE, Call, CheckpointModel
from ggplan.forward.matrices import Place, Places
from ggplan.forward.products import Product, watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerInput:
    """An input of matrices of a layer.

    Attributes
    ----------
    parameters
        The parameters that it is multiplied with.
    level
        How many inputs it depends on, one after the other: 0 for the first norm's output.
    n_columns
        Its length.
    n_slices
        Of experts, how many; else 0.
    module
        Of experts, the name of the module that is given the states of all tokens and their routes; "" where
        there is no such module.
    is_given
        Whether the rows are some of those states; else they are the experts' own, as the input of `down`.
    twin
        Of such an input, the number of the one that is the states of all tokens, which other matrices have;
        None where no other has them.
    multiple_of
        Of experts without routes, the number of the input whose rows theirs are, each times a number: that
        of its token's chance, which is 0 where the token goes to others (Llama 4). None for others.
    n_routes
        Of experts, to how many a token goes, at most; 0 where that is not known, and for others.
    """

    parameters: tuple[str, ...]
    level: int
    n_columns: int
    n_slices: int = 0
    module: str = ""
    is_given: bool = False
    twin: int | None = None
    multiple_of: int | None = None
    n_routes: int = 0

    @property
    def owner(self) -> str:
        """The module that has the parameters."""
        return self.parameters[0].rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Feed:
    """The input of a GGUF tensor; `columns` are those of the input that are the tensor's, None for all."""

    number: int
    columns: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Structure:
    """The inputs of a layer, in the order in which they are needed.

    Attributes
    ----------
    inputs
        By level, then in the order in which the layer uses them.
    feeds
        By GGUF name without `blk.N.`, the input of its matrices.
    without
        GGUF matrices without one, and why.
    places
        Where the weights are in the module.
    """

    inputs: tuple[LayerInput, ...]
    feeds: Mapping[str, Feed]
    without: Mapping[str, str]
    places: Places

    @property
    def n_levels(self) -> int:
        """Levels of inputs."""
        return 1 + max((each.level for each in self.inputs), default=-1)

    def tensors_of(self, number: int) -> tuple[str, ...]:
        """The GGUF tensors of an input, without `blk.N.`."""
        return tuple(name for name, feed in self.feeds.items() if feed.number == number)


@dataclass(slots=True)
class _Use:
    """Parameters whose products had the same inputs, and these inputs by slice."""

    parameters: list[str]
    products: list[Product]
    inputs: dict[int, Tensor]


def find_structure(
    model: CheckpointModel,
    layer: int,
    hidden: Tensor,
    call: Call,
    places: Places,
    fixed: Collection[str] = (),
) -> Structure:
    """The inputs of a filled layer.

    Parameters
    ----------
    hidden, call
        What the layer is given, for some tokens.
    places
        Of its GGUF tensors.
    fixed
        Those that are never quantized, such as routers, so that nothing depends on them.

    Raises
    ------
    CheckpointError
        If a matrix of the GGUF is in no product that was seen, or is used in a way that is not known.
    """
    module = model.layers[layer]
    uses = _uses(model, layer, hidden, call)
    experts = _experts_modules(module, uses)
    kept = {p.parameter for name in fixed for of_slice in places.get(name, ()) for p in of_slice}
    depends = _dependencies(model, layer, hidden, call, uses, kept)
    levels = _levels(depends)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    order = sorted(range(len(uses)), key=lambda k: (levels[k], k))
    where = f"layer {layer} of transformers' {type(model.model).__name__}"
    taken, twins, n_routes = _taken_from(model, layer, hidden, call, uses, experts)
    sources = [_multiple_of(use, uses, experts) if taken[k] is None else None for k, use in enumerate(uses)]
    inputs = []
    for k in order:
        use = uses[k]
        name = use.parameters[0]
        product, shape = use.products[0], shapes[name]
        inputs.append(
            LayerInput(
                tuple(use.parameters),
                levels[k],
                n_columns=shape[-2] if product.inputs_are_rows else shape[-1],
                n_slices=shape[0] if len(shape) == 3 else 0,
                module=experts[name] if taken[k] is not None else "",
                is_given=taken[k] is True,
                twin=None if (twin := twins[k]) is None else order.index(twin),
                multiple_of=None if (source := sources[k]) is None else order.index(source),
                n_routes=n_routes[k],
            )
        )
    turned = {p.parameter: p.inputs_are_rows for use in uses for p in use.products}
    feeds: dict[str, Feed] = {}
    without: dict[str, str] = {}
    by_parameter = {name: number for number, each in enumerate(inputs) for name in each.parameters}
    for tensor, slices in places.items():
        found = [
            _feed(place, k, by_parameter, turned, inputs)
            for k, of_slice in enumerate(slices)
            for place in of_slice
        ]
        if all(slices) and found and all(f is not None and _same_feed(f, found[0]) for f in found):
            number, columns = found[0]  # type: ignore[misc]
            is_all = columns.size == inputs[number].n_columns and (columns == range(columns.size)).all()
            feeds[tensor] = Feed(number, None if is_all else columns)
        elif all(slices) and all(p.parameter in turned for s in slices for p in s):
            without[tensor] = "transformers has no such input as llama.cpp gives it"
        else:
            named = sorted({p.parameter for s in slices for p in s}) or ["none"]
            without[tensor] = f"no product was seen in {where} with its parameter ({', '.join(named)})"
    return Structure(tuple(inputs), feeds, without, places)


def require_known(structure: Structure, wanted: Iterable[str], where: str) -> None:
    """Raise CheckpointError for the first wanted tensor whose use is not known."""
    for name in wanted:
        if (why := structure.without.get(name, "")).startswith("no product"):
            raise CheckpointError(f"{where}: the inputs of {name} are not known: {why}", hint=OTHER_ENGINE)


def _feed(
    place: Place,
    slice_: int,
    by_parameter: Mapping[str, int],
    turned: Mapping[str, bool],
    inputs: Sequence[LayerInput],
) -> tuple[int, NDArray[np.int64]] | None:
    """The input of a place, and its columns; None where the GGUF's columns are not those of an input."""
    if place.parameter not in by_parameter or place.transposed != turned[place.parameter]:
        return None
    number = by_parameter[place.parameter]
    if inputs[number].n_slices and place.slice != slice_:
        return None
    return number, place.columns


def _same_feed(one: tuple[int, NDArray[np.int64]], other: tuple[int, NDArray[np.int64]] | None) -> bool:
    import numpy as np

    return other is not None and one[0] == other[0] and np.array_equal(one[1], other[1])


def _uses(model: CheckpointModel, layer: int, hidden: Tensor, call: Call) -> list[_Use]:
    """The inputs of one run, in order; the states are kept, so that their places in memory stay distinct."""
    seen: list[tuple[Product, Tensor]] = []
    with watched(model.layers[layer], lambda product, x: seen.append((product, x))):
        model.run_layer(layer, hidden, call)
    uses: list[_Use] = []
    by_identity: dict[object, _Use] = {}
    by_parameter: dict[str, _Use] = {}
    for product, x in seen:
        identity = (x.data_ptr(), tuple(x.shape), x.stride())
        use = by_identity.get(identity) or by_parameter.get(product.parameter)
        if use is None:
            uses.append(use := _Use([], [], {}))
        if product.first_input or by_parameter.get(product.parameter, use) is not use:
            raise CheckpointError(
                f"layer {layer} of transformers' {type(model.model).__name__} uses {product.parameter} with "
                "several inputs, or a part of its columns: ggplan does not know what this means",
                hint=OTHER_ENGINE,
            )
        by_identity[identity] = by_parameter[product.parameter] = use
        if product.parameter not in use.parameters:
            use.parameters.append(product.parameter)
        use.products.append(product)
        use.inputs[product.slice] = x
    return uses


def _experts_modules(module: Any, uses: Sequence[_Use]) -> dict[str, str]:
    """By parameter of three dimensions, the name of the module that owns it."""
    shapes = {name: p.ndim for name, p in module.named_parameters()}
    return {n: n.rpartition(".")[0] for use in uses for n in use.parameters if shapes[n] == 3}


def _taken_from(
    model: CheckpointModel,
    layer: int,
    hidden: Tensor,
    call: Call,
    uses: Sequence[_Use],
    experts: Mapping[str, str],
) -> tuple[list[bool | None], list[int | None], list[int]]:
    """For each use, whether its rows are rows of what the experts' module is given, by its routes.

    None without experts, or without routes. Then, which other use has these states of all tokens, and how
    many experts each of them goes to.
    """
    import torch

    with Given(model, layer, set(experts.values())) as given:
        model.run_layer(layer, hidden, call)
        found: list[bool | None] = []
        twins: list[int | None] = []
        n_routes: list[int] = []
        for use in uses:
            args = given.of_thread().get(experts.get(use.parameters[0], ""), ())
            twins.append(None)
            n_routes.append(_most_used(use))
            if len(args) < 2 or not _is_routes(args[1]):
                found.append(None)
                continue
            states = args[0].reshape(-1, args[0].shape[-1])
            n_routes[-1] = int(args[1].shape[1])
            found.append(
                all(
                    states.shape[-1] == x.shape[-1] and torch.equal(x, states[tokens_of(args, slice_)])
                    for slice_, x in use.inputs.items()
                )
            )
            for k, other in enumerate(uses):
                x = other.inputs[0] if found[-1] and other.parameters[0] not in experts else None
                if x is not None and x.shape == states.shape and torch.equal(x, states):
                    twins[-1] = k
    return found, twins, n_routes


def _most_used(use: _Use) -> int:
    """Of slices that are given all tokens, zeros for those of others: how many a token goes to, at most."""
    import torch

    inputs = list(use.inputs.values())
    if len(inputs) < 2 or any(x.shape != inputs[0].shape for x in inputs):
        return 0
    return int(torch.stack([x.any(dim=-1) for x in inputs]).sum(dim=0).max())


def _multiple_of(use: _Use, uses: Sequence[_Use], experts: Mapping[str, str]) -> int | None:
    """Of experts that are given all tokens, the other use of which their rows are multiples."""
    import torch

    if use.parameters[0] not in experts:
        return None
    for k, other in enumerate(uses):
        if other.parameters[0] in experts:
            continue
        x = other.inputs[0]
        if all(
            each.shape == x.shape and torch.allclose(each, multiples(each, x) * x, rtol=1e-4, atol=1e-6)
            for each in use.inputs.values()
        ):
            return k
    return None


def multiples(rows: Tensor, of: Tensor) -> Tensor:
    """The number that each row is of another one, (rows, 1)."""
    squares = (of * of).sum(dim=-1, keepdim=True)
    return (rows * of).sum(dim=-1, keepdim=True) / squares.clamp_min(1e-30)


class Given:
    """While it is open: the arguments that modules of a layer were given last, in each thread."""

    def __init__(self, model: CheckpointModel, layer: int, modules: Iterable[str]) -> None:
        self.found: dict[int, dict[str, tuple[Any, ...]]] = {}
        self.modules = [(name, model.layers[layer].get_submodule(name)) for name in sorted(modules)]
        self.handles: list[Any] = []

    def __enter__(self) -> Given:
        for name, module in self.modules:
            self.handles.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def of_thread(self) -> dict[str, tuple[Any, ...]]:
        """By the module's name, its arguments in this thread."""
        return self.found.setdefault(threading.get_ident(), {})

    def _hook(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            self.of_thread()[name] = args

        return hook


def _is_routes(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point()


def tokens_of(args: Sequence[Any], expert: int) -> Tensor:
    """The tokens that an experts' module sends to an expert, in its order: by rank, then by token."""
    import torch

    _, tokens = torch.where(expert == args[1].T)
    return tokens


def _dependencies(
    model: CheckpointModel,
    layer: int,
    hidden: Tensor,
    call: Call,
    uses: Sequence[_Use],
    fixed: Collection[str],
) -> list[set[int]]:
    """For each input the others whose matrices, but for fixed ones, change it."""
    import torch

    module = model.layers[layer]
    parameters = dict(module.named_parameters())
    depends: list[set[int]] = [set() for _ in uses]
    for k, use in enumerate(uses):
        kept = {name: parameters[name].detach().clone() for name in use.parameters if name not in fixed}
        with torch.no_grad():
            for name in kept:
                parameters[name].mul_(1.25)
        try:
            changed = _uses_by_parameter(model, layer, hidden, call)
        finally:
            with torch.no_grad():
                for name, values in kept.items():
                    parameters[name].copy_(values)
        for j, other in enumerate(uses):
            now = changed.get(other.parameters[0], {})
            same = now.keys() == other.inputs.keys() and all(
                now[s].shape == x.shape and torch.equal(now[s], x) for s, x in other.inputs.items()
            )
            if j != k and not same:
                depends[j].add(k)
    return depends


def _uses_by_parameter(
    model: CheckpointModel, layer: int, hidden: Tensor, call: Call
) -> dict[str, dict[int, Tensor]]:
    seen: dict[str, dict[int, Tensor]] = {}
    with watched(model.layers[layer], lambda p, x: seen.setdefault(p.parameter, {}).__setitem__(p.slice, x)):
        model.run_layer(layer, hidden, call)
    return seen


def _levels(depends: Sequence[set[int]]) -> list[int]:
    """The length of the longest chain of inputs before each."""
    levels = [0] * len(depends)
    for _ in depends:
        levels = [max((levels[k] + 1 for k in needs), default=0) for needs in depends]
    return levels
