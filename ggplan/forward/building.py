"""transformers' model of a checkpoint, built without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ggplan.errors import CheckpointError
from ggplan.forward.checkpoint_model import OTHER_ENGINE, CheckpointModel, Quiet
from ggplan.model import Model
from ggplan.sources.files import shown
from ggplan.sources.huggingface import HfCheckpoint
from ggplan.text import printable

_QUANTIZATION = ("quantization_config", "compression_config")
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
_FLOATS = ("Infinity", "-Infinity", "NaN")
_REMEDY = "pip install 'ggplan[calibrate]'"


def open_checkpoint_model(
    checkpoint: HfCheckpoint, forms: Callable[[Model], Model] = lambda model: model
) -> CheckpointModel:
    """Transformers' model of an opened checkpoint, without weights.

    Parameters
    ----------
    forms
        What makes, of the checkpoint's tensors in a GGUF, those that are meant: joined or cut, as rows.

    Raises
    ------
    CheckpointError
        If torch or transformers are missing, transformers does not know the architecture (no code of the
        checkpoint is run), or its model is of an unknown structure.
    """
    torch, transformers = require_transformers()
    where = shown(checkpoint.path)
    values = {key: _plain(v) for key, v in checkpoint.config.items() if key not in _QUANTIZATION}
    try:
        config = _config(transformers, values)
    except Exception as error:  # whatever the classes of transformers raise
        kind = printable(str(values.get("model_type")))
        raise CheckpointError(
            f"{where}: transformers {transformers.__version__} does not read config.json "
            f"(model_type {kind}): {_first_line(error)}",
            hint=f"install a newer transformers, or {OTHER_ENGINE}",
        ) from error
    try:
        with _empty_is_meta(), Quiet(transformers):
            model = _class_of(transformers, config).from_config(
                config, dtype=torch.float32, experts_implementation="eager", trust_remote_code=False
            )
    except Exception as error:
        raise CheckpointError(
            f"{where}: transformers {transformers.__version__} makes no language model of it: "
            f"{_first_line(error)}",
            hint=f"install a newer transformers, or {OTHER_ENGINE}",
        ) from error
    model.eval()
    prefix, layers = _layers(model, config, where)
    from transformers.conversion_mapping import get_model_conversion_mapping

    mapping = get_model_conversion_mapping(model)
    by_layer: list[list[str]] = [[] for _ in layers]
    outside, unused = [], []
    known = model.state_dict()
    others = _outside(model, prefix)
    placed = _parameters_of(model, mapping, checkpoint.tensors, known)
    renamed = {}
    for name in [name for name, parameter in placed.items() if parameter is None]:
        stem = name.removesuffix(".weight")
        (parameter,) = _parameters_of(model, mapping, [stem], known).values()
        if stem != name and parameter is not None and len(known[parameter].shape) == 3:
            renamed[name], placed[name] = stem, parameter
    for name, parameter in placed.items():
        if parameter is None:
            if not name.endswith(_BUFFERS):
                unused.append(name)
        elif parameter.startswith(prefix + "."):
            by_layer[int(parameter[len(prefix) + 1 :].partition(".")[0])].append(name)
        elif parameter in others:
            outside.append(name)
        else:
            unused.append(name)
    return CheckpointModel(
        checkpoint,
        model,
        layers,
        prefix,
        mapping,
        renamed,
        tuple(tuple(names) for names in by_layer),
        tuple(outside),
        tuple(unused),
        forms,
    )


def _config(transformers: Any, values: Mapping[str, Any]) -> Any:
    """The config, by `model_type`; of a checkpoint with code of its own by the class in `architectures`."""
    try:
        return transformers.AutoConfig.for_model(**values)
    except ValueError:
        names = values.get("architectures") or [""]
        known = getattr(transformers, str(names[0]), None) if str(names[0]).isidentifier() else None
        if known is None or not hasattr(known, "config_class"):
            raise
        return known.config_class(**{key: value for key, value in values.items() if key != "model_type"})


def _plain(value: Any) -> Any:
    """A value of config.json with its numbers that JSON lacks, which transformers writes as objects."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in _FLOATS:
            return float(value["__float__"])
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _class_of(transformers: Any, config: Any) -> Any:
    """The class of language models, or of those that also see, that has such a config."""
    text, seeing = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    is_text = type(config) in text._model_mapping
    return seeing if not is_text and type(config) in seeing._model_mapping else text


def require_transformers() -> tuple[Any, Any]:
    """Torch and transformers.

    Raises
    ------
    CheckpointError
        If one is not installed, or transformers is older than version 5.
    """
    try:
        import torch
        import transformers
        from transformers import core_model_loading
    except ImportError as error:
        raise CheckpointError(
            f"the engine torch needs torch and transformers 5.4 or newer: {_first_line(error)}",
            hint=f"`{_REMEDY}`",
        ) from error
    if not hasattr(core_model_loading, "convert_and_load_state_dict_in_model"):
        raise CheckpointError(
            f"the engine torch does not know transformers {transformers.__version__}", hint=f"`{_REMEDY}`"
        )
    return torch, transformers


def _parameters_of(
    model: Any, mapping: Sequence[Any], names: Iterable[str], known: Mapping[str, Any]
) -> dict[str, str | None]:
    """The parameter that each tensor of the checkpoint goes into; None where there is none."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    found: dict[str, str | None] = {}
    for name in names:
        parameter, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if parameter not in known and name in known:
            parameter = name
        found[name] = parameter if parameter in known else None
    return found


def _layers(model: Any, config: Any, where: str) -> tuple[str, Any]:
    """The list of layers and its name."""
    import torch

    n_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and name.endswith("layers") and len(module) == n_layers
    ]
    lists = [(name, module) for name, module in lists if not any(p in name for p in ("vision", "audio"))]
    if len(lists) != 1:
        raise CheckpointError(
            f"{where}: transformers' {type(model).__name__} has {len(lists)} lists of {n_layers} layers, "
            "so which of them are the text model's is not known",
            hint=OTHER_ENGINE,
        )
    return lists[0]


def _outside(model: Any, prefix: str) -> set[str]:
    """The names of the parameters that the text model has outside of its layers."""
    parent = prefix.rpartition(".")[0]
    known = model.state_dict()
    names = {n for n in known if n.startswith(parent + ".") and not n.startswith(prefix + ".")}
    return names | {n for n in known if n.startswith("lm_head.")}


def _empty_is_meta() -> Any:
    """While a model is built: `torch.empty`, of which modules make their weights, takes no memory."""
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyIsMeta(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.empty:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    return EmptyIsMeta()


def _first_line(error: BaseException) -> str:
    """The first sentence: transformers goes on with all architectures that it knows."""
    lines = str(error).strip().splitlines()
    return printable(lines[0].partition(". ")[0])[:200] if lines else type(error).__name__
