"""The machine in `@assert fits(...)` and `@assert tokens_per_second(...)`: read, refused, spelt one way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.ggml_types import parse_type
from ggplan.rules import InvalidRecipeError, parse_recipe
from ggplan.rules.conditions import FITS, SPEED, Conditions, parse_conditions
from ggplan.rules.formatting import format_recipe
from ggplan.rules.recipe import Recipe

GIB = 1 << 30
SIZES = st.integers(1, 1 << 50)
TYPES = st.sampled_from([parse_type(name) for name in ("f16", "q8_0", "q5_1", "iq4_nl")])
CONDITIONS = st.builds(
    Conditions,
    vram=st.lists(SIZES, max_size=4).map(tuple),
    ram=st.none() | SIZES,
    ctx=st.none() | st.integers(1, (1 << 31) - 1).filter(lambda n: n < 10**9 or n % 1024 == 0),
    kv=st.none() | st.tuples(TYPES, TYPES),
    ub=st.none() | st.integers(1, 65_536),
    slots=st.none() | st.integers(1, 256),
    bandwidth=st.none() | st.integers(10**9, 10**14),
    vram_bandwidth=st.none() | st.integers(10**9, 10**14),
    cores=st.none() | st.integers(1, 8192),
)
BLANKS = st.sampled_from(["", " ", "\t", "  "])


@given(CONDITIONS)
def test_what_is_written_reads_as_the_same(conditions: Conditions) -> None:
    assert parse_conditions(str(conditions), SPEED) == conditions


@given(CONDITIONS, st.data())
def test_the_formatter_keeps_the_meaning_and_has_one_spelling(
    conditions: Conditions, data: st.DataObject
) -> None:
    pieces = str(conditions).split(", ") if str(conditions) else []
    shuffled = data.draw(st.permutations(pieces))

    def blank() -> str:
        return data.draw(BLANKS)

    ugly = ",".join(blank() + piece.replace("=", f"{blank()}={blank()}") + blank() for piece in shuffled)
    line = f"@assert{blank() or ' '}tokens_per_second{blank()}({ugly}){blank()}>={blank()}8\n"
    formatted = format_recipe(line)
    assert formatted == f"@assert tokens_per_second({conditions}) >= 8\n"
    assert format_recipe(formatted) == formatted
    assert of_machine(parse_recipe(line)) == of_machine(parse_recipe(formatted)) == [(conditions, ">=", 8.0)]


def of_machine(recipe: Recipe) -> list[object]:
    return [(a.conditions, a.comparison, a.value) for a in recipe.assertions]


def test_fits() -> None:
    text = "@assert fits(vram=24G+12G, ram=110GiB, ctx=32k, kv=q8_0+f16, ub=2048, slots=2)\n"
    (found,) = parse_recipe(text).assertions
    assert found.conditions == Conditions(
        (24 * GIB, 12 * GIB), 110 * GIB, 32768, (parse_type("q8_0"), parse_type("f16")), 2048, 2
    )
    assert format_recipe("@assert fits( ctx=32768,vram = 24G )") == "@assert fits(vram=24G, ctx=32k)\n"


def test_the_formatter_keeps_units_that_are_whole() -> None:
    text = "@assert tokens_per_second(vram=24GB, ram=1500M, bandwidth=80GiB/s, vram_bandwidth=0.5T) >= 8\n"
    shown = "vram=24GB, ram=1500M, bandwidth=80GiB, vram_bandwidth=500G"
    assert format_recipe(text) == f"@assert tokens_per_second({shown}) >= 8\n"


def test_a_bandwidth_is_decimal_and_memory_binary() -> None:
    found = parse_conditions("bandwidth=80GB/s, vram=24G, vram_bandwidth=936G", SPEED)
    assert (found.bandwidth, found.vram, found.vram_bandwidth) == (80 * 10**9, (24 * GIB,), 936 * 10**9)


@pytest.mark.parametrize(
    ("text", "message", "help"),
    [
        ("fits(vram=24G,12G)", "`12G` is no condition", "several GPUs are `24G+12G`"),
        ("fits(vram=24)", "`24` is no value of vram", "write `vram=24G`"),
        ("fits(gpu=24G)", "unknown condition `gpu`", "the nearest is `vram`"),
        ("fits(vram=24G, kv-type=q8_0)", "unknown condition `kv-type`", "the nearest is `kv`"),
        ("fits(vram=24G, bandwidth=80G)", "unknown condition `bandwidth`", "the conditions are `vram`"),
        ("fits(vram=24G, vram=12G)", "`vram` stands twice", "keep one"),
        ("fits(vram=24G, ctx=0)", "`0` is no value of ctx", "ctx=32k"),
        ("fits(vram=24G, kv=q9)", "`q9` is no value of kv", "kv=q8_0"),
        ("fits(vram=-4G)", "`-4G` is no value of vram", "vram=24G"),
        ("fits(ctx=32k)", "`fits` needs the memory", "fits(vram=24G, ram=110G)"),
        ("fits", "`fits` needs the memory", "fits(vram=24G, ram=110G)"),
        ("fits(vram=24G) == 1", "`fits` has no value", "fits(vram=24G, ram=110G)"),
        ("tokens_per_second", "needs a comparison and a number", "tokens_per_second >= 8"),
        ("tokens_per_second >= fast", "compared with a number", "tokens_per_second >= 8"),
        ("tokens_per_second == 8", "compared with a number", "tokens_per_second >= 8"),
        ("tokens_per_second(bandwidth=80) >= 8", "`80` is no value of bandwidth", "bandwidth=80G"),
    ],
)
def test_what_cannot_be_understood_is_refused(text: str, message: str, help: str) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(f"@assert {text}\n")
    (found,) = caught.value.diagnostics
    assert message in found.message
    assert help in found.help
    assert found.line == 1


def test_the_words_are_those_of_the_documentation() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"| `{word}` |" in page for word in (*FITS, *SPEED))
