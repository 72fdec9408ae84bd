"""Few rules for given types: what they are, and that they are exact for any types."""

import random
import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.ggml_types import parse_type
from ggplan.recovering import Cover, Wanted, cover, write_recipe
from ggplan.recovering.patterns import layers_pattern, names_pattern, runs
from ggplan.rules import match, parse_recipe

KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", "ffn_up_exps", "ffn_down_exps")


def wanted(name: str, type_: str, n_columns: int = 256) -> Wanted:
    return Wanted(name, parse_type(type_), n_columns, protected=False, n_bytes=1000)


def layers(kind: str, types: str, n_columns: int = 256) -> list[Wanted]:
    """One tensor for each type in `types`, layer by layer; `-` leaves a layer out."""
    return [
        wanted(f"blk.{i}.{kind}.weight", type_, n_columns)
        for i, type_ in enumerate(types.split())
        if type_ != "-"
    ]


def rules_of(tensors: list[Wanted]) -> list[str]:
    """The lines of the recipe without names and comments."""
    text = write_recipe(cover(tensors), name="x")
    lines = [re.sub(r" +", " ", line.partition("#")[0]).strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("@recipe", "@name"))]


def types_given(tensors: list[Wanted], found: Cover | None = None) -> list[str]:
    """The type each tensor gets when the recipe of a cover is parsed and applied, first match first."""
    recipe = parse_recipe(write_recipe(found or cover(tensors), name="x"))
    given_types = []
    for tensor, hits in zip(tensors, match(recipe, [t.name for t in tensors]), strict=True):
        choice = recipe.rules[hits[0]].choice if hits else recipe.default
        assert choice is not None
        given_types.append(next(t.name for t in choice.types if t.fits(tensor.n_columns)))
    return given_types


def test_one_type_is_one_default() -> None:
    assert rules_of([*layers("attn_q", "q8_0 q8_0"), wanted("output.weight", "q8_0")]) == ["@default q8_0"]


def test_exceptions_come_before_and_kinds_share_a_rule() -> None:
    tensors = [
        *layers("attn_v", "q6_K q4_K q4_K q6_K q4_K q6_K"),
        *layers("ffn_down", "q6_K q4_K q4_K q6_K q4_K q6_K"),
        *layers("attn_q", "q4_K q4_K q4_K q4_K q4_K q4_K"),
        wanted("output.weight", "q6_K"),
    ]
    assert rules_of(tensors) == [
        r"^output\.weight$ = q6_K",
        r"^blk\.{0,3,5}\.(attn_v|ffn_down)\.weight$ = q6_K",
        "@default q4_K",
    ]


def test_layers_that_a_kind_lacks_are_free() -> None:
    tensors = [
        *layers("ffn_down", "q6_K q6_K - - -"),
        *layers("ffn_down_exps", "- - q6_K q5_K q5_K"),
        *layers("ffn_up_exps", "- - q5_K q5_K q5_K"),
    ]
    assert rules_of(tensors) == [
        r"^blk\.{0..2}\.ffn_down(_exps)?\.weight$ = q6_K",
        "@default q5_K",
    ]


def test_shapes_make_a_chain_of_two_types() -> None:
    tensors = [
        *layers("attn_v", "q6_K q4_K q6_K"),
        *layers("ffn_down_exps", "q8_0 q5_0 q8_0", n_columns=1408),
        *layers("ffn_up_exps", "q4_K q4_K q4_K"),
    ]
    assert rules_of(tensors) == [
        r"^blk\.(0|2)\.(attn_v|ffn_down_exps)\.weight$ = q6_K | q8_0",
        "@default q4_K | q5_0",
    ]


def test_a_later_rule_may_run_over_layers_that_an_earlier_one_has_taken() -> None:
    tensors = [
        *layers("ffn_up", "q6_K q8_0 q6_K q8_0 q6_K q4_K q4_K q4_K"),
        *layers("ffn_down", "q6_K q6_K q6_K q6_K q6_K q4_K q4_K q4_K"),
        wanted("output.weight", "q4_K"),
    ]
    assert rules_of(tensors) == [
        r"^blk\.(1|3)\.ffn_up\.weight$ = q8_0",
        r"^blk\.{0..4}\.ffn_(down|up)\.weight$ = q6_K",
        "@default q4_K",
    ]


def test_protected_tensors_are_forced_and_the_default_does_not_reach_them() -> None:
    tensors = [
        Wanted("blk.0.ffn_gate_inp.weight", parse_type("f32"), 256, protected=True, n_bytes=1),
        Wanted("blk.0.attn_norm.weight", parse_type("f16"), 256, protected=True, n_bytes=1),
        wanted("blk.0.attn_q.weight", "f32"),
    ]
    assert rules_of(tensors) == [
        r"^blk\.\d+\.ffn_gate_inp\.weight$ = f32",
        r"^blk\.\d+\.attn_norm\.weight$ = f16!",
        "@default f32",
    ]


def test_other_towers_and_odd_names_have_patterns_of_their_own() -> None:
    tensors = [
        *layers("attn_q", "q8_0 q8_0"),
        wanted("v.blk.0.attn_q.weight", "f16"),
        wanted("v.blk.1.attn_q.weight", "f16"),
        wanted("mm.0.weight", "f16"),
        wanted("a b#(c).weight", "bf16"),
        wanted("blk.007.attn_q.weight", "bf16"),
    ]
    assert types_given(tensors) == [t.type.name for t in tensors]
    assert rules_of(tensors) == [
        r"^(a.b.\(c\)|blk\.007\.attn_q)\.weight$ = bf16",
        r"^blk\.\d+\.attn_q\.weight$ = q8_0",
        "@default f16",
    ]


def test_a_pattern_too_long_for_a_recipe_is_parted() -> None:
    tensors = [wanted(f"some.rather.long.name.number.{i}.weight", "f16") for i in range(90)]
    tensors += [wanted("output.weight", "q8_0")] * 1 + layers("ffn_up", "q8_0 " * 200)
    assert types_given(tensors) == [t.type.name for t in tensors]


TYPES = st.sampled_from(["q8_0", "q6_K", "q4_K", "q5_0", "-"])


@st.composite
def models(draw: st.DrawFn) -> list[Wanted]:
    n_layers = draw(st.integers(1, 14))
    tensors = [wanted("output.weight", draw(st.sampled_from(["q8_0", "q6_K"])))]
    for kind in draw(st.lists(st.sampled_from(KINDS), unique=True, min_size=1)):
        n_columns = draw(st.sampled_from([256, 352]))
        types = draw(st.lists(TYPES, min_size=n_layers, max_size=n_layers))
        types = [t if n_columns == 256 else {"q6_K": "q8_0", "q4_K": "q5_0"}.get(t, t) for t in types]
        tensors += layers(kind, " ".join(types), n_columns)
    return tensors


@settings(max_examples=50, deadline=None)
@given(models())
def test_any_types_come_back(tensors: list[Wanted]) -> None:
    found = cover(tensors)
    assert types_given(tensors, found) == [t.type.name for t in tensors]
    assert sum(r.n_tensors for r in found.rules) + found.n_by_default == len(tensors)
    assert cover(list(reversed(tensors))) == found


@given(st.sets(st.integers(0, 120), min_size=1), st.sets(st.integers(0, 120)))
def test_runs_hold_what_is_needed_and_nothing_barred(needed: set[int], barred: set[int]) -> None:
    barred -= needed
    bits, out = sum(1 << n for n in needed), sum(1 << n for n in barred)
    spans = runs(bits, ~out)
    inside = {n for first, last in spans for n in range(first, last + 1)}
    assert needed <= inside
    assert not inside & barred
    assert all(first in needed and last in needed for first, last in spans)
    recipe = parse_recipe(rf"^blk\.{layers_pattern(spans)}\.x$ = f16")
    names = [f"blk.{n}.x" for n in range(125)]
    assert {n for n, hits in enumerate(match(recipe, names)) if hits} == inside


@given(
    st.sets(st.sampled_from([f"{k}.weight" for k in (*KINDS, "ssm_a", "output")] + ["x.bias"]), min_size=1)
)
def test_a_pattern_of_names_is_exact(names: set[str]) -> None:
    everything = sorted(
        {f"{kind}{tail}.weight" for kind in KINDS for tail in ("", "_exps", "_shexp")} | names
    )
    pattern = re.compile(f"^{names_pattern(sorted(names))}$")
    assert {name for name in everything if pattern.match(name)} == names


def test_a_thousand_tensors_of_every_type_are_quick() -> None:
    types = ("q8_0", "q6_K", "q5_K", "iq4_xs", "q4_K")
    tensors = [
        wanted(f"blk.{i}.{kind}.weight", types[(i * i + 3 * i * k + k) % 5])
        for k, kind in enumerate((*KINDS, "ssm_a", "ssm_b", "attn_q_a", "attn_q_b"))
        for i in range(90)
    ]
    start = time.thread_time()
    found = cover(tensors)
    assert time.thread_time() - start < 1.0
    assert len(found.rules) <= 4 * 12 + 4


def test_a_file_made_to_be_slow_is_not() -> None:
    rng = random.Random(5)
    names = ("q8_0", "q6_K", "q5_K", "q4_K", "q3_K", "iq4_xs", "iq4_nl", "q5_0")
    tensors = [
        wanted(f"blk.{layer}.kind_{kind}.weight", rng.choice(names), rng.choice([256, 512]))
        for kind in range(400)
        for layer in rng.sample(range(500), 10)
    ]
    start = time.thread_time()
    assert types_given(tensors) == [t.type.name for t in tensors]
    assert time.thread_time() - start < 15
