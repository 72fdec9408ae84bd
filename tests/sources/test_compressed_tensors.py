"""The config of compressed-tensors: what each module's group is, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ggplan.errors import CheckpointError
from ggplan.sources.schemes import QuantizationConfig
from ggplan.sources.schemes.compressed_tensors import WeightGroup, group_of, weight_groups

INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def groups(*stated: dict[str, object], **more: object) -> tuple[WeightGroup, ...]:
    """The groups of a config with these entries of `config_groups`."""
    named = {f"group_{i}": group for i, group in enumerate(stated)}
    values = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": named}
    return weight_groups(QuantizationConfig(Path("folder"), {**values, **more}))


def targets(*names: str) -> dict[str, object]:
    return {"targets": list(names), "weights": INT4}


@pytest.mark.parametrize(
    ("module", "group"),
    [
        ("model.layers.0.mlp.down_proj", "group_2"),  # a name, though expressions match it too
        ("model.layers.1.mlp.down_proj", "group_1"),  # the first of the expressions in the alphabet
        ("model.layers.1.self_attn.q_proj", "group_0"),
        ("model.layers.1.attn.q_proj", "group_3"),  # a class
        ("model.embed_tokens", "group_4"),
    ],
)
def test_names_go_before_expressions_and_these_before_classes(module: str, group: str) -> None:
    stated = groups(
        targets("re:model.*self_attn", "re:model.*z"),
        targets("re:model.*down"),
        targets("re:model.*q_p.*nothing", "model.layers.0.mlp.down_proj"),
        targets("Linear"),
        targets("Embedding"),
    )
    found = group_of(module, stated, "folder")
    assert found is not None
    assert found.name == group


def test_an_expression_matches_from_the_start_of_a_name() -> None:
    stated = groups(targets("re:layers"), targets("Linear"))
    assert [group_of(name, stated, "folder").name for name in ("layers.1", "x.layers.1")] == [
        "group_0",
        "group_1",
    ]


def test_any_class_matches_where_only_one_group_has_classes() -> None:
    only = groups(targets("LlamaAttention"))
    assert group_of("model.layers.0.x", only, "folder") is only[0]
    assert group_of("model.layers.0.x", groups(targets("a.b")), "folder") is None


def test_an_old_block_structure_and_other_spellings() -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x64"}
    (group,) = groups({"targets": "Linear", "weights": weights})
    assert (group.block, group.targets, group.symmetric) == ((128, 64), ("Linear",), True)
    (group,) = groups({"weights": {"num_bits": 4, "group_size": -1, "actorder": True}})
    assert (group.strategy, group.group_size, group.act_order, group.type) == ("channel", 0, "group", "int")
    assert groups({"targets": ["Linear"], "weights": None}) == ()


def test_the_format_of_a_group_goes_before_that_of_the_whole() -> None:
    own = {"targets": ["Linear"], "format": "float-quantized", "weights": INT4}
    assert [g.format for g in groups(own, targets("x"))] == ["float-quantized", "pack-quantized"]


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (
            {"weights": {**INT4, "rotation": 1}},
            "group 'group_0' of config_groups in config.json says rot",
        ),
        ({"weights": INT4, "lora": 1}, "says lora, which ggplan does not know"),
        ({"weights": {**INT4, "num_bits": 40}}, "has weights of 40 bits"),
        ({"weights": {**INT4, "num_bits": True}}, "has weights of True bits"),
        ({"weights": {**INT4, "type": "complex"}}, "unknown type complex"),
        ({"weights": {**INT4, "strategy": ["group"]}}, "strategy ['group'], which ggplan does not know"),
        ({"weights": {**INT4, "group_size": 0}}, "impossible group_size 0"),
        ({"weights": {**INT4, "block_structure": "9" * 5000 + "x1"}}, "blocks of the impossible shape 999"),
        ({"weights": {**INT4, "symmetric": "yes"}}, "symmetric: yes"),
        ({"weights": {**INT4, "actorder": "sideways"}}, "unknown actorder sideways"),
        ({"weights": INT4, "targets": [1]}, "targets that are not a list"),
        ({"weights": INT4, "format": 7}, "impossible format 7"),
        ({"weights": 4}, "weights that are not an object"),
    ],
)
def test_groups_that_are_not_as_described(group: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        groups(group)


def test_transformed_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="its weights were transformed"):
        groups(targets("Linear"), transform_config={"config_groups": {"R1": {}}})


@pytest.mark.parametrize("expression", ["(?!x)y", "(", "(a{1000}){1000}"])
def test_an_expression_that_cannot_be_matched_is_named(expression: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"the target 're:{expression}'")):
        group_of("model.x", groups(targets(f"re:{expression}")), "folder")
