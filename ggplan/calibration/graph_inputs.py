"""Which multiplications of a graph have the same input, and handing these inputs to the layers' collectors.

One ubatch of tokens is one graph. Its multiplications come in one order, whatever the tokens are, so a survey
of one graph tells what inputs there are; of the weights with one input one alone is read, the *leader*.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ggplan.calibration.collecting import Activation, LayerCollector
from ggplan.calibration.graph_nodes import Graph, Node
from ggplan.errors import CalibrationError, Error
from ggplan.planning.roles import layer_of

_FEWEST_ROWS = 16
_LAYER_NUMBER = re.compile(r"-\d+$")
_UNNAMED = re.compile(r"(node|leaf)_\d+|")


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An input of a graph's multiplications.

    Attributes
    ----------
    layer
        The layer of its weights; None outside the layers.
    activation
        What it is.
    leader
        The weight whose multiplications are read.
    n_sources
        How many different inputs a graph multiplies with these weights: 1 unless weights are used twice.
    n_uses
        How often a graph multiplies with the leader.
    first, last
        The places in the graph's order of the first multiplication of any of its weights, and of the leader's
        last.
    first_weight, n_first
        The weight that is multiplied first, and how often a graph does so.
    """

    layer: int | None
    activation: Activation
    leader: str
    n_sources: int
    n_uses: int
    first: int
    last: int
    first_weight: str
    n_first: int


def is_read(node: Node) -> bool:
    """Whether llama-imatrix reads a multiplication: it leaves out those of less than 16 rows."""
    return node.is_experts or node.input_shape[1] >= _FEWEST_ROWS


def inputs_of_graph(nodes: Sequence[Node], n_tokens: int) -> list[GraphInput]:
    """The inputs of a graph of `n_tokens` tokens, in the graph's order."""
    groups: dict[tuple[object, ...], list[int]] = {}
    by_weight: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        key = _key(node)
        group = groups.get(key)
        earlier = by_weight.get(node.weight)
        if group is None:
            group = groups[key] = earlier if earlier is not None else []
        elif earlier is not None and earlier is not group:
            group.extend(earlier)
            for other in earlier:
                groups[_key(nodes[other])] = by_weight[nodes[other].weight] = group
        group.append(i)
        by_weight[node.weight] = group
    found: list[GraphInput] = []
    names: set[tuple[int | None, str]] = set()
    seen: set[int] = set()
    for group in groups.values():
        if id(group) not in seen:
            seen.add(id(group))
            found.append(_input_of([(i, nodes[i]) for i in sorted(set(group))], n_tokens, names))
    return sorted(found, key=lambda each: each.last)


def _key(node: Node) -> tuple[object, ...]:
    """What is equal for nodes with one input: its memory, and how it is divided among matrices."""
    shared = node.n_matrices == 1 if not node.is_experts else node.input_shape[1] == 1
    return (layer_of(node.weight), *node.source, *(() if shared else (node.n_matrices, *node.input_shape)))


def _input_of(group: list[tuple[int, Node]], n_tokens: int, names: set[tuple[int | None, str]]) -> GraphInput:
    nodes = [node for _, node in group]
    experts = [node for node in nodes if node.is_experts]
    leader = (experts or nodes)[0]
    if any((e.n_matrices, e.n_routes) != (leader.n_matrices, leader.n_routes) for e in experts):
        raise CalibrationError(f"the experts beside '{leader.weight}' are not all of one number")
    layer = layer_of(leader.weight)
    occurrences = [i for i, node in group if node.weight == leader.weight]
    if leader.is_experts:
        own = leader.input_shape[1] > 1
        rows_per_token = leader.n_routes if own else 1
    else:
        own = leader.n_matrices > 1
        rows_per_token = -(-leader.n_rows // n_tokens)
    activation = Activation(
        name=_name(layer, leader, names),
        n_columns=leader.n_columns,
        tensors=tuple(dict.fromkeys(n.weight for n in nodes if not n.is_experts)),
        expert_tensors=tuple(dict.fromkeys(n.weight for n in experts)),
        n_slices=leader.n_matrices,
        n_routes=leader.n_routes,
        has_own_rows=own,
        rows_per_token=rows_per_token * len(occurrences),
    )
    n_sources = len({node.source for node in nodes})
    first, first_node = group[0]
    return GraphInput(
        layer,
        activation,
        leader.weight,
        n_sources,
        len(occurrences),
        first,
        max(occurrences),
        first_node.weight,
        sum(node.weight == first_node.weight for node in nodes),
    )


def _name(layer: int | None, leader: Node, names: set[tuple[int | None, str]]) -> str:
    """The input's name, without its layer and unique in it."""
    name = _LAYER_NUMBER.sub("", leader.input_name.partition(" ")[0])
    if _UNNAMED.fullmatch(name):
        name = f"input of {leader.weight.removesuffix('.weight').rpartition('.')[2]}"
    n, unique = 1, name
    while (layer, unique) in names:
        n += 1
        unique = f"{name} {n}"
    names.add((layer, unique))
    return unique


class Survey:
    """Notes the wanted multiplications of one graph, and lets nothing be computed."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self._wanted = wanted
        self.nodes: list[Node] = []

    def asked(self, node: Node) -> bool:
        """Note a node."""
        if self._wanted(node.weight) and is_read(node):
            self.nodes.append(node)
        return False

    def computed(self, node: Node) -> bool:
        """Never called."""
        return True


class Reading:
    """Hands the inputs of some layers to their collectors, and ends a graph after the last of them."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[GraphInput],
        collectors: Mapping[int | None, LayerCollector],
    ) -> None:
        self._graph = graph
        self._collectors = collectors
        wanted = [each for each in inputs if each.layer in collectors]
        self._inputs = {
            name: each
            for each in wanted
            for name in (*each.activation.tensors, *each.activation.expert_tensors)
        }
        self._first = min(wanted, key=lambda each: each.first)
        self._n_first = 0
        self._end = max(wanted, key=lambda each: each.last)
        self._n_read = 0  # of the last leader's in a graph
        self._sources: dict[str, set[tuple[int, ...]]] = {}

    def asked(self, node: Node) -> bool:
        """Whether a node is read; raises CalibrationError where weights no longer have one input."""
        found = self._inputs.get(node.weight)
        if found is None:
            return False
        if node.weight == self._first.first_weight:
            if self._n_first == 0:
                self._sources, self._n_read = {}, 0  # another graph
            self._n_first = (self._n_first + 1) % self._first.n_first
        if not is_read(node):
            return False
        sources = self._sources.setdefault(found.leader, set())
        sources.add(node.source)
        if len(sources) > found.n_sources:
            raise CalibrationError(f"the input of '{node.weight}' is not what it was at the beginning")
        return node.weight == found.leader

    def computed(self, node: Node) -> bool:
        """Read a node; False after the last that is wanted, which ends the graph."""
        found = self._inputs[node.weight]
        self._graph.require_host(node)
        collector, name, x = self._collectors[found.layer], found.activation.name, node.input()
        if node.is_experts:
            routes, rows = node.routes(), x[0]
            if rows.shape[1] == 1:
                few = len(rows) < _FEWEST_ROWS  # llama-imatrix has them for experts alone
                collector.add(name, np.ascontiguousarray(rows[:, 0]), routes, only_experts=few)
            else:
                slots = np.arange(routes.shape[1]) % rows.shape[1]
                collector.add_own(name, rows[:, slots].reshape(-1, node.n_columns), routes.reshape(-1))
        elif node.n_matrices == 1:
            collector.add(name, np.ascontiguousarray(x).reshape(-1, node.n_columns))
        else:
            _, _, n2, n3 = node.weight_shape
            of_matrix = (np.arange(x.shape[0]) % n3)[:, None] * n2 + np.arange(x.shape[1]) % n2
            slices = np.repeat(of_matrix.reshape(-1), x.shape[2]).astype(np.int32)
            collector.add_own(name, np.ascontiguousarray(x).reshape(-1, node.n_columns), slices)
        self._n_read += node.weight == self._end.leader
        return node.weight != self._end.leader or self._n_read < self._end.n_uses


Watcher = Survey | Reading


class Callback:
    """llama.cpp's callback: errors inside it are kept, since they cannot pass through C."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.watcher: Watcher | None = None
        self.error: Exception | None = None

    def __call__(self, pointer: int, ask: bool, _data: object) -> bool:
        """Whether a node is wanted (`ask`), or whether the graph goes on."""
        try:
            node = self._graph.node(pointer) if self.watcher is not None and self.error is None else None
            if node is None or self.watcher is None:
                return not ask
            return self.watcher.asked(node) if ask else self.watcher.computed(node)
        except Exception as error:  # raised again by `check`
            self.error = error
            return False

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error is not None:
            raise (
                self.error
                if isinstance(self.error, Error)
                else CalibrationError(
                    f"the inputs could not be read: {type(self.error).__name__}: {self.error}"
                )
            )
