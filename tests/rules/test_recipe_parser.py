"""Recipes as text: what is read, and that any text is read or refused quickly."""

import hashlib
import time

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ggplan.errors import RecipeError
from ggplan.ggml_types import TYPES, parse_type
from ggplan.linting import lint_rules
from ggplan.rules import InvalidRecipeError, Location, Recipe, parse_recipe

# Two recipes of the kinds that people publish: generated per-layer lists, and a hand-written one.
GENERATED = r"""## Quant mix recipe
# Model name: GLM-4.5-Air

## Model head & embeddings — qbits: 32 8 5
^output_norm\.weight$=f32
^token_embd\.weight$=q5_K
^output\.weight$=q8_0

## Multi-headed attention parameters — qbits: 32 5
^blk\.([0-9]|[1-3][0-9]|4[0-6])\.attn_q\.bias$=f32
^blk\.([0-9]|[1-3][0-9]|4[0-6])\.attn_output\.weight$=q5_K

# ffn_down_shexp — qbits: 6
^blk\.([1-9]|[1-3][0-9]|4[0-6])\.ffn_down_shexp\.weight$=q6_0
^blk\.(1|[3-4]|[7-8]|13|17|4[2-5])\.ffn_up_shexp\.weight$=q8_0

## Summary of tensor sizes per class
# GPU Total: 5.96 GiB (94.9%) | 6.28 GiB max, if all were q8_0
# -Average BPW: 5.0303
## THE END!
"""
HAND_WRITTEN = r"""
# Attention
blk\.[0-2]\.attn_.* = q8_0
blk\..*\.attn_q.*   = iq5_ks

# Experts
blk\..*\.ffn_down_exps\.weight=iq4_kss   # was q4_K
blk\..*\.ffn_(gate|up)_exps\.weight=IQ3_KS
token_embd\.weight=iq4_k
output\.weight=iq6_k
"""


def types(recipe: Recipe) -> list[str]:
    return [" | ".join(t.name for t in rule.choice.types) for rule in recipe.rules]


def codes(text: str) -> list[str]:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(text)
    return [d.code for d in caught.value.diagnostics]


def test_a_generated_list_is_a_recipe() -> None:
    recipe = parse_recipe(GENERATED, "air.recipe")
    assert types(recipe) == ["f32", "q5_K", "q8_0", "f32", "q5_K", "q6_0", "q8_0"]
    assert recipe.rules[3].pattern == r"^blk\.([0-9]|[1-3][0-9]|4[0-6])\.attn_q\.bias$"
    assert recipe.rules[3].where == "air.recipe:10"
    assert recipe.default is None


def test_a_hand_written_list_is_a_recipe() -> None:
    recipe = parse_recipe(HAND_WRITTEN)
    assert types(recipe) == ["q8_0", "iq5_ks", "iq4_kss", "iq3_ks", "iq4_k", "iq6_k"]
    assert recipe.rules[2].comment == "was q4_K"


def test_every_part_knows_its_place() -> None:
    recipe = parse_recipe("\n  a\\.b = q6_K |\tf16 !  # why\n", "dir/mix.recipe")
    rule = recipe.rules[0]
    assert (rule.pattern, rule.line, rule.column, rule.comment) == (r"a\.b", 2, 3, "why")
    assert rule.location == Location("dir/mix.recipe", 2, 3, 4)
    assert rule.choice.text == "q6_K |\tf16 !"
    assert rule.choice.forced
    assert rule.choice.locations == (
        Location("dir/mix.recipe", 2, 10, 4),
        Location("dir/mix.recipe", 2, 17, 3),
    )
    assert (rule.choice.file, rule.choice.line, rule.choice.column) == ("dir/mix.recipe", 2, 10)
    assert recipe.source_line(2) == "  a\\.b = q6_K |\tf16 !  # why"
    assert recipe.source_line(9) == ""


def test_the_last_equals_sign_splits() -> None:
    assert parse_recipe("a=b=q8_0").rules[0].pattern == "a=b"


def test_directives() -> None:
    recipe = parse_recipe(
        "@recipe 1\n@name  My mix  # 2nd try\n@arch glm4moe\n@default q8_0|F16!\n", "x.recipe"
    )
    assert recipe.name == "My mix"
    assert recipe.architecture == "glm4moe"
    assert recipe.default is not None
    assert [t.name for t in recipe.default.types] == ["q8_0", "f16"]
    assert recipe.default.forced
    assert recipe.rules == ()


def test_a_recipe_without_a_name_has_its_file_s() -> None:
    assert parse_recipe("", "some/dir/air-5bpw.recipe").name == "air-5bpw"
    assert parse_recipe("").name == "<recipe>"


def test_a_recipe_is_a_value() -> None:
    one, two = parse_recipe(GENERATED, "x"), parse_recipe(GENERATED, "x")
    assert one == two
    assert hash(one) == hash(two)
    with pytest.raises(AttributeError):
        one.name = "other"  # type: ignore[misc]


def test_line_ends_and_byte_order_mark_change_nothing_but_the_text() -> None:
    plain = parse_recipe(HAND_WRITTEN)
    odd = "\ufeff" + HAND_WRITTEN.replace("\n", "\r\n")
    assert parse_recipe(odd).rules == plain.rules
    assert parse_recipe(odd).text == odd
    assert parse_recipe(odd).sha256 == hashlib.sha256(odd.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a q8_0", "GP001"),
        ("a = q4_k_m", "GP002"),
        ("a = q8_K", "GP002"),
        ("a = q8_0! | f16", "GP002"),
        ("a = " + "q" * 500_000, "GP002"),
        ("a( = q8_0", "GP003"),
        ("(?!a)b = q8_0", "GP004"),
        ("@lett A = b", "GP006"),
        ("@ default q8_0", "GP006"),
        ("= q8_0", "GP007"),
        ("a =", "GP007"),
        ("a = !", "GP007"),
        ("a = q8_0 |", "GP007"),
        ("a = q8_0 || f16", "GP007"),
        ("@default", "GP007"),
        ("x" * 1001 + " = q8_0", "GP009"),
        ("a" + ".{1000}" * 5 + " = q8_0", "GP009"),
        ("a = q8_0\n" * 10_001, "GP009"),
        (("a" + ".{900}" + " = q8_0\n") * 100, "GP009"),
        ("a = " + "|".join(["q8_0"] * 17), "GP009"),
        ("#" * (1 << 20) + "\n", "GP009"),
        ("a = q8_0\x00", "GP010"),
        ("a = q8_0 # \x1b[31m", "GP010"),
        ("a = q8_0\rb = q8_0", "GP010"),
        ("a = q8_0 # \ud800", "GP010"),
        ("@recipe 2", "GP011"),
        ("@name", "GP011"),
        ("@arch a b", "GP011"),
        ("@name a\n@name b", "GP011"),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_each_mistake_has_one_error_with_its_code(text: str, code: str) -> None:
    assert codes(text) == [code]


def test_limits_are_not_off_by_one() -> None:
    assert len(parse_recipe("a = q8_0\n" * 10_000).rules) == 10_000
    assert len(parse_recipe("x" * 1000 + " = q8_0").rules) == 1
    assert len(parse_recipe("a = q8_0 #" + "x" * ((1 << 20) - 10)).rules) == 1
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        parse_recipe("a = q8_0 #" + "x" * ((1 << 20) - 9))


def test_all_errors_of_a_file_come_together() -> None:
    text = "a( = q4_k_m\nb = q8_0\nc\n@huh\n"
    assert codes(text) == ["GP003", "GP002", "GP001", "GP006"]


def test_very_many_errors_are_cut_short() -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe("x\n" * 300_000)
    assert len(caught.value.diagnostics) == 1001
    assert caught.value.diagnostics[-1].code == "GP009"
    assert len(str(caught.value)) < 10_000
    assert str(caught.value).endswith("981 more errors are not shown")


# Texts that come near to being recipes find more than random ones.
FRAGMENTS = r"""a blk \. = | ! # @ @default q8_0 Q4_K_M f16 ( ) [ ] { } {1,3} * + ? ^ $ \ \d (? (?= 語"""
fragments = st.sampled_from([*FRAGMENTS.split(), " = ", "\n", "\r\n", "\t", "\ufeff"])
near_recipes = st.lists(fragments, max_size=60).map("".join)


@settings(max_examples=1000)
@given(st.one_of(near_recipes, st.text(st.characters(exclude_categories=()), max_size=200)))
def test_any_text_parses_or_is_refused_quickly(text: str) -> None:
    begin = time.thread_time()
    errors = ()
    try:
        assert parse_recipe(text).text == text
    except InvalidRecipeError as error:
        errors = error.diagnostics
        shown = str(error)
        event("refused")
    assert time.thread_time() - begin < 1
    for d in errors:
        assert (d.severity, d.code in lint_rules()) == ("error", True)
        assert 0 <= d.line <= text.count("\n") + 1
        assert f"[{d.code}]" in shown
        assert all(c.isprintable() for c in shown.replace("\n", ""))


type_names = st.sampled_from([t.name for t in TYPES if not t.internal])
spellings = type_names.flatmap(lambda name: st.sampled_from([name, name.upper(), name.lower()]))
blanks = st.text(" \t", max_size=3)
pattern_texts = st.text("abz019_.^$|-", min_size=1, max_size=30)


@given(pattern_texts, st.lists(spellings, min_size=1, max_size=5), st.booleans(), blanks, blanks)
def test_what_is_written_is_read(
    pattern: str, names: list[str], forced: bool, before: str, between: str
) -> None:
    chain = f"{between}|{between}".join(names) + "!" * forced
    line = f"{before}{pattern}{between}={between}{chain}{before}# comment = x"
    rule = parse_recipe(line).rules[0]
    assert rule.pattern == pattern
    assert rule.choice.text == chain
    assert rule.choice.types == tuple(parse_type(name) for name in names)
    assert rule.choice.forced == forced
    assert line[rule.column - 1 :].startswith(pattern)
    for name, at in zip(names, rule.choice.locations, strict=True):
        assert line[at.column - 1 : at.column - 1 + at.length] == name
