"""A Hugging Face checkpoint as transformers' model, of which one layer has weights at a time.

The model is built by transformers from config.json, its parameters on torch's meta device, which takes no
memory. A layer is filled by transformers' own loader, so names and fused experts are as `from_pretrained`
makes them, but the weights come from ggplan's row sources: checkpoints in any quantized form are read, and no
code of the checkpoint is run.

How a layer is called (masks, the angles of the rotation, which differ between kinds of layers) is not known
here: the model's own forward is run with the layers' forwards replaced by recorders.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggplan.errors import CheckpointError
from ggplan.model import Model, RowSource
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

# What a module raises that misses what another one should have left. A run is ended by other exceptions.
_OF_MODULES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_PLAIN = bool | int | float | str | None
OTHER_ENGINE = (
    "calibrate with the engine llama.cpp, which does not use transformers, and convert without --correct"
)


@dataclass(frozen=True, slots=True)
class Call:
    """How the model calls a layer, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(slots=True)
class CheckpointModel:
    """transformers' model of a checkpoint; weights are there between `fill` and `empty`.

    Attributes
    ----------
    checkpoint
        The folder.
    model
        transformers' model for causal language modelling.
    layers
        Its layers.
    prefix
        The name of the list of layers: `model.layers`.
    mapping, renamed
        transformers' rules of names; stacked experts that ggplan's schemes give as `X.weight`, as a linear
        layer has them, which transformers calls `X` and has transposed.
    names
        The checkpoint's tensors of each layer, in the order of the checkpoint.
    outside
        Those of the embedding, the last norm and the output.
    unused
        Tensors of the checkpoint that transformers' model has no place for.
    forms
        What makes, of the checkpoint's tensors in a GGUF, those that are meant: joined or cut.
    """

    checkpoint: HfCheckpoint
    model: Any
    layers: Any
    prefix: str
    mapping: list[Any]
    renamed: Mapping[str, str]
    names: tuple[tuple[str, ...], ...]
    outside: tuple[str, ...]
    unused: tuple[str, ...]
    forms: Callable[[Model], Model]
    returns_tuple: bool | None = None

    def layer_bytes(self, layer: int) -> int:
        """Bytes of a layer's weights in float32, as they are in memory."""
        return int(4 * sum(p.numel() for p in self.layers[layer].parameters()))

    def outside_bytes(self) -> int:
        """The same of what the text model has outside of its layers."""
        parent = self.prefix.rpartition(".")[0]
        return int(
            4
            * sum(
                p.numel()
                for name, p in self.model.named_parameters()
                if name.startswith((f"{parent}.", "lm_head.")) and not name.startswith(f"{self.prefix}.")
            )
        )

    def fill(self, layer: int) -> Any:
        """The layer's module with its weights, in float32.

        Raises
        ------
        CheckpointError
            If a parameter stays without weights, or a weight cannot be read.
        """
        self.load({name: _LazyRows(self._rows(name)) for name in self.names[layer]})
        module = self.layers[layer]
        self._require_filled(f"{self.prefix}.{layer}", module)
        return module

    def fill_outside(self) -> None:
        """Fill everything but the layers: embedding, last norm, output."""
        self.load({name: _LazyRows(self._rows(name)) for name in self.outside})
        self.model.tie_weights()

    def load(self, tensors: Mapping[str, Any]) -> None:
        """Fill parameters from tensors of the checkpoint, by their names there, as `from_pretrained` does.

        Each is anything of which `tensor[...]` is a torch tensor.
        """
        _load(
            self.model,
            self.mapping,
            {self._known_as(name): self._as_known(name, t) for name, t in tensors.items()},
        )

    def _known_as(self, name: str) -> str:
        return self.renamed.get(name, name)

    def _as_known(self, name: str, tensor: Any) -> Any:
        return _Transposed(tensor) if name in self.renamed else tensor

    def empty(self, layer: int) -> None:
        """Forget a layer's weights."""
        _to_meta(self.layers[layer])

    def _rows(self, name: str) -> RowSource:
        tensor = self.checkpoint.tensors[name]
        if tensor.rows is None:
            raise CheckpointError(
                f"{shown(tensor.file)}: '{shown(name)}' is stored as {tensor.stored_as}, which is not read"
            )
        return tensor.rows

    def _require_filled(self, prefix: str, module: Any) -> None:
        for name, parameter in module.state_dict(keep_vars=True).items():
            if parameter.is_meta:
                raise CheckpointError(
                    f"{shown(self.checkpoint.path)}: transformers' model has the parameter "
                    f"'{prefix}.{name}', which no tensor of the checkpoint fills",
                    hint=OTHER_ENGINE,
                )

    def start(self, tokens: Tensor) -> tuple[Tensor, list[Call]]:
        """The hidden states that the first layer gets for (windows, T) tokens, and how each layer is called.

        `fill_outside` must have been called.
        """
        if self.returns_tuple is None:
            self.returns_tuple = self._output_kind(tokens)
        calls: list[Call] = []
        first: list[Tensor] = []

        def record(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, call = _split(args, kwargs)
                if number == 0:
                    first.append(hidden)
                calls.append(call)
                if number == len(self.layers) - 1:
                    raise _Stop
                return (hidden,) if self.returns_tuple else hidden

            return forward

        self._run(tokens, {k: record(k) for k in range(len(self.layers))})
        if len(calls) != len(self.layers):
            raise CheckpointError(
                f"{shown(self.checkpoint.path)}: transformers' model calls {len(calls)} of its "
                f"{len(self.layers)} layers",
                hint=OTHER_ENGINE,
            )
        return first[0], calls

    def end(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """The logits that the model makes of the last layer's output: (windows, T, vocabulary)."""
        if self.returns_tuple is None:
            self.returns_tuple = self._output_kind(tokens)

        def passing(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                states = hidden if number == len(self.layers) - 1 else _split(args, kwargs)[0]
                return (states,) if self.returns_tuple else states

            return forward

        with self._replaced({k: passing(k) for k in range(len(self.layers))}):
            return self._forward(tokens).logits

    def output_input(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """What the output matrix is given for the last layer's output: (tokens, width)."""
        found: list[Tensor] = []

        def hook(module: Any, args: tuple[Any, ...]) -> None:
            found.append(args[0].detach())
            raise _Stop

        handle = self.model.get_output_embeddings().register_forward_pre_hook(hook)
        try:
            with contextlib.suppress(_Stop):
                self.end(tokens, hidden)
        finally:
            handle.remove()
        return found[0].reshape(-1, found[0].shape[-1])

    def run_layer(self, layer: int, hidden: Tensor, call: Call) -> Tensor:
        """The output of a filled layer."""
        before = _state(call)
        # What a layer leaves for others in a mapping or list goes nowhere: one that needs it fails.
        own = Call(tuple(map(_own, call.args)), {name: _own(value) for name, value in call.kwargs.items()})
        output = self._output(self.layers[layer], hidden, own)
        if _state(call) != before:
            raise self._unknown("hand on more than their hidden states")
        return output[0] if isinstance(output, tuple) else output

    def _output_kind(self, tokens: Tensor) -> bool:
        """Whether a layer gives a tuple: the first layer is run once, on a few tokens."""
        found: list[tuple[Tensor, Call]] = []

        def forward(*args: Any, **kwargs: Any) -> Any:
            found.append(_split(args, kwargs))
            raise _Stop

        self._run(tokens[:1, :8], {0: forward})
        hidden, call = found[0]
        self._require_plain(call)
        if getattr(self.model.config.get_text_config(), "num_kv_shared_layers", None):
            raise self._unknown("hand on more than their hidden states: keys and values")
        before = _state(call)
        try:
            output = self._output(self.fill(0), hidden, call)
        finally:
            self.empty(0)
        more = output[1:] if isinstance(output, tuple) else ()
        if any(part is not None for part in more) or _state(call) != before:
            raise self._unknown("hand on more than their hidden states")
        return isinstance(output, tuple)

    def _output(self, module: Any, hidden: Tensor, call: Call) -> Any:
        """What a layer's module returns."""
        try:
            with _no_grad():
                return module(hidden, *call.args, **call.kwargs)
        except _OF_MODULES as error:
            raise self._unknown(f"fail by themselves ({_in_a_line(error)})") from error

    def _require_plain(self, call: Call) -> None:
        for name, value in (*enumerate(call.args, 1), *call.kwargs.items()):
            if not _is_plain(value):
                raise self._unknown(f"are given {type(value).__name__} as {name}")

    def _unknown(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{shown(self.checkpoint.path)}: the layers of transformers' {type(self.model).__name__} {what}, "
            "so they cannot be run one by one",
            hint=OTHER_ENGINE,
        )

    def _run(self, tokens: Tensor, forwards: Mapping[int, Callable[..., Any]]) -> None:
        with self._replaced(forwards), contextlib.suppress(_Stop):
            self._forward(tokens)

    def _forward(self, tokens: Tensor) -> Any:
        try:
            with _no_grad():
                return self.model(input_ids=tokens, use_cache=False)
        except _OF_MODULES as error:
            raise CheckpointError(
                f"{shown(self.checkpoint.path)}: transformers' {type(self.model).__name__} cannot be run "
                f"({_in_a_line(error)})",
                hint=OTHER_ENGINE,
            ) from error

    @contextlib.contextmanager
    def _replaced(self, forwards: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
        """Layers with other forwards."""
        for number, forward in forwards.items():
            self.layers[number].forward = forward
        try:
            yield
        finally:
            for number in forwards:
                del self.layers[number].forward


def _in_a_line(error: Exception) -> str:
    """An error of torch or transformers, which may have a page, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")


class _Stop(Exception):  # noqa: N818 - no error
    """Ends a forward of which no more is needed."""


class _Transposed:
    """A lazy tensor with its last two dimensions exchanged."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __getitem__(self, index: object) -> Tensor:
        return self.tensor[...].transpose(-1, -2).contiguous()


class _LazyRows:
    """A tensor that transformers' loader reads by `tensor[...]`, when its turn comes."""

    def __init__(self, rows: RowSource) -> None:
        self.rows = rows

    def __getitem__(self, index: object) -> Tensor:
        import torch

        values = self.rows.read_float32(0, self.rows.n_rows)
        return torch.from_numpy(values).reshape(self.rows.shape)


def _load(model: Any, mapping: Sequence[Any], tensors: Mapping[str, Any]) -> None:
    """Fill parameters of the model from tensors of the checkpoint, as `from_pretrained` does."""
    import torch
    import transformers
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    settings = LoadStateDictConfig(dtype=torch.float32, weight_mapping=list(mapping), device_map={"": "cpu"})
    with Quiet(transformers), torch.no_grad():
        info, _ = convert_and_load_state_dict_in_model(model, dict(tensors), settings)
    if info.mismatched_keys:
        name, there, wanted = sorted(info.mismatched_keys)[0]
        raise CheckpointError(
            f"'{name}' has the shape {tuple(there)} in the checkpoint, and {tuple(wanted)} in transformers' "
            "model"
        )
    if info.conversion_errors:
        name, error = next(iter(info.conversion_errors.items()))
        raise CheckpointError(f"transformers does not make '{name}' of the checkpoint's tensors: {error}")


def _to_meta(module: nn.Module) -> None:
    import torch

    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and not parameter.is_meta:
                part._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)


def _split(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states of a call, and all else."""
    if args:
        return args[0], Call(args[1:], dict(kwargs))
    others = dict(kwargs)
    return others.pop("hidden_states"), Call((), others)


def same_call(one: Call, other: Call) -> str:
    """The first argument in which two calls of a layer differ, or "": what depends on the tokens."""
    for k, (a, b) in enumerate(zip(one.args, other.args, strict=True)):
        if not _same(a, b):
            return f"argument {k + 1}"
    for name in sorted({*one.kwargs, *other.kwargs}):
        if not _same(one.kwargs.get(name), other.kwargs.get(name)):
            return name
    return ""


def _same(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return bool(a.shape == b.shape and torch.equal(a, b))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return type(a) is type(b) and isinstance(a, _PLAIN) and bool(a == b)


def _is_plain(value: Any) -> bool:
    """Whether a layer's argument is made of tensors and plain values alone, not of objects with a state."""
    import torch

    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return isinstance(value, _PLAIN | torch.Tensor)


def _own(value: Any) -> Any:
    """A copy of what a layer could change."""
    return copy.copy(value) if isinstance(value, MutableMapping | list) else value


def _state(call: Call) -> list[object]:
    """What a layer could change in its arguments: the parts of lists and of mappings."""
    found: list[object] = []

    def visit(value: Any) -> None:
        if isinstance(value, Mapping):
            found.extend(value)
            for part in value.values():
                visit(part)
        elif isinstance(value, tuple | list):
            found.append(len(value))
            for part in value:
                visit(part)
        else:
            found.append(id(value))

    visit(call.args)
    visit(call.kwargs)
    return found


def _no_grad() -> Any:
    import torch

    return torch.inference_mode()


class Quiet:
    """transformers without its bars and warnings."""

    def __init__(self, transformers: Any) -> None:
        self.logging = transformers.logging

    def __enter__(self) -> None:
        self.level = self.logging.get_verbosity()
        self.bars = self.logging.is_progress_bar_enabled()
        self.logging.set_verbosity_error()
        self.logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        self.logging.set_verbosity(self.level)
        if self.bars:
            self.logging.enable_progress_bar()
