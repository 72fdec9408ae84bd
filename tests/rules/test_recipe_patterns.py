"""The portable subset of regular expressions, and matching all rules at once."""

import contextlib
import itertools
import re
import time

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import RecipeError
from ggplan.inventories import inventory
from ggplan.rules import Choice, InvalidRecipeError, Recipe, Rule, match, parse_recipe
from ggplan.rules.matching import match_patterns, recipe_steps
from ggplan.rules.steps import MAX_STEPS

NAMES = (
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "blk.0.attn_q.weight",
    "blk.7.attn_output.weight",
    "blk.12.ffn_gate_inp.weight",
    "blk.46.ffn_down_exps.weight",
    "blk.46.nextn.eh_proj.weight",
    "blk.3.exp_probs_b.bias",
)


def fault(pattern: str) -> tuple[str, str, str]:
    """The code of a pattern's error, the part of the pattern before the carets, and the part above them."""
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(f"{pattern} = q8_0")
    (found,) = caught.value.diagnostics
    start = found.column - 1
    return found.code, pattern[:start], pattern[start : start + found.length]


@pytest.mark.parametrize(
    ("pattern", "code", "marked"),
    [
        ("a(b(c", "GP003", "("),
        ("ab)c", "GP003", ")"),
        ("a[bc", "GP003", "["),
        ("a\\", "GP003", "\\"),
        ("*a", "GP003", "*"),
        ("a|+b", "GP003", "+"),
        ("(?:{2}a)", "GP003", "{2}"),
        ("^*a", "GP003", "*"),
        ("a**", "GP003", "*"),
        ("a{2}{3}", "GP003", "{3}"),
        ("a*??", "GP003", "?"),
        ("a{5,2}", "GP003", "{5,2}"),
        ("xa{1001}", "GP003", "{1001}"),
        ("a[z-b]", "GP003", "z-b"),
        ("a(?=b)", "GP004", "(?="),
        ("(?!b)", "GP004", "(?!"),
        ("(?<=b)", "GP004", "(?<="),
        ("(?<!b)", "GP004", "(?<!"),
        (r"(a)\1", "GP004", r"\1"),
        ("(?P=n)", "GP004", "(?P="),
        ("(?P<n>a)", "GP004", "(?P<"),
        ("(?<n>a)", "GP004", "(?<"),
        ("(?>a)", "GP004", "(?>"),
        ("(?i)a", "GP004", "(?"),
        ("a++", "GP004", "+"),
        (r"\Aa", "GP004", r"\A"),
        (r"a\pL", "GP004", r"\p"),
        (r"[a\x41]", "GP004", r"\x"),
        (r"[\d-z]", "GP004", r"\d-"),
        ("[[:alpha:]]", "GP004", "[:"),
        ("[]a]", "GP004", "[]"),
        ("blk.{a..46}.a", "GP004", "{"),
        ("a{,3}", "GP004", "{"),
        ("attn\u00a0\u201cq", "GP004", "\u00a0\u201c"),
    ],
)
def test_the_fault_is_marked(pattern: str, code: str, marked: str) -> None:
    assert fault(pattern) == (code, pattern[: pattern.rindex(marked)], marked)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^blk\.([0-9]|[1-3][0-9]|4[0-6])\.ffn_(?:up|gate)_exps\.weight$",
        r"a{2,3}?b*?[^.\-\]]+\d|",
        r"\(\[\{\\",
    ],
)
def test_the_portable_subset_is_accepted(pattern: str) -> None:
    assert parse_recipe(f"{pattern} = q8_0").rules[0].pattern == pattern


def test_all_matching_rules_are_told_in_order() -> None:
    recipe = parse_recipe("weight = q8_0\n^output = f16\nattn_OUTPUT = f32\nattn_output = q6_K\n")
    assert match(recipe, ["blk.1.attn_output.weight", "output.weight", "x"]) == ((0, 3), (0, 1), ())
    assert match(recipe, []) == ()
    assert match(parse_recipe(""), ["a", "b"]) == ((), ())


def test_names_of_any_bytes_are_matched() -> None:
    recipe = parse_recipe("weight$ = q8_0\n^.\\.w = f16")
    assert match(recipe, ["語.weight", "\udcff\ud800.weight", "", "a\x00b\n.weight"]) == (
        (0, 1),
        (0,),
        (),
        (0,),
    )


# Patterns of the portable subset, from the smallest pieces up.
atoms = st.sampled_from(
    ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", "_", "blk", "attn", "^", "$", "0"]
)
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        inner.map(lambda p: f"({p})"),
        st.tuples(inner, inner).map("|".join),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?"])).map(
            lambda t: f"(?:{t[0]}){t[1]}"
        ),
    ),
    max_leaves=8,
)
names = st.one_of(st.sampled_from(NAMES), st.text("ab.0_blkatn", max_size=12))


@settings(max_examples=500)
@given(st.lists(patterns, max_size=6), st.lists(names, max_size=6))
def test_the_set_answers_like_one_search_after_the_other_and_like_python(
    rules: list[str], tensors: list[str]
) -> None:
    recipe = parse_recipe("\n".join(f"{pattern} = q8_0" for pattern in rules))
    answers = match(recipe, tensors)
    for engine in (re2, re):
        assert answers == tuple(
            tuple(i for i, pattern in enumerate(rules) if engine.search(pattern, name)) for name in tensors
        )


def test_an_automaton_out_of_memory_loses_no_match() -> None:
    patterns, tensors = ["a", "b"] * 300, ["b", "ba", "ab" * 30, "c"]
    plain = match_patterns(patterns, tensors)
    assert [len(hits) for hits in plain] == [300, 600, 600, 0]
    answers = []
    for memory in range(10_000, 30_000, 200):  # from too little to begin with to enough; some begin and fail
        with contextlib.suppress(re2.error):
            answers.append(match_patterns(patterns, tensors, memory=memory))
    assert 10 < len(answers) < 100
    assert set(answers) == {plain}


@pytest.mark.parametrize("pattern", ["^(.*)*X$", "^(.+)+X$", r"^(\w+\.?)+!$", r"^(?:[a-z0-9_.]+)+\.bia$"])
def test_catastrophic_patterns_are_fast(pattern: str) -> None:
    recipe = parse_recipe(f"{pattern} = q8_0")
    tensors = [f"model.layers.{i}.mlp.experts.{i}.down_proj.weight" for i in range(1200)]
    begin = time.thread_time()
    assert not any(match(recipe, tensors))
    assert time.thread_time() - begin < 1


def slow_recipe(n_rules: int, n_names: int = 1000) -> tuple[Recipe, list[str]]:
    """A recipe that takes RE2 a step for most instructions and characters, and names that make it do so."""
    slow = [rf"(a|b)*a(a|b){{{n % 60}}}b{n}" for n in range(n_rules)]
    numbers = (format(n * 2654435761 % 2**64, "064b") for n in range(1, n_names + 1))
    recipe = parse_recipe("".join(f"{pattern} = q8_0\n" for pattern in slow))
    return recipe, [number.translate({48: "a", 49: "b"}) for number in numbers]


@pytest.mark.parametrize(("n_rules", "n_names"), [(1000, 150), (2000, 380), (2000, 1000)])
def test_patterns_made_to_be_slow_are_refused_before_they_run(n_rules: int, n_names: int) -> None:
    recipe, tensors = slow_recipe(n_rules, n_names)
    assert recipe_steps(recipe, tensors) > MAX_STEPS
    with pytest.raises(InvalidRecipeError, match="may take more than 400,000,000 steps"):
        match(recipe, tensors)


def test_slow_patterns_count_as_nearly_all_of_their_instructions() -> None:
    recipe, tensors = slow_recipe(100, 20)
    at_most = recipe.program * sum(map(len, tensors))
    assert at_most / 2 < recipe_steps(recipe, tensors) < at_most


def test_a_beginning_that_many_names_share_counts_for_each_where_the_automaton_cannot_hold_it() -> None:
    recipe, (name, *_) = slow_recipe(4900, 1)
    few, many = [f"{name}{n}" for n in range(2)], [f"{name}{n}" for n in range(1000)]
    assert recipe_steps(slow_recipe(10)[0], many) < 20 * recipe_steps(slow_recipe(10)[0], few)
    assert recipe_steps(recipe, many) > MAX_STEPS


@pytest.mark.parametrize(
    "pattern", ["a", "x", "(a|b){2,40}", "(a?){30}", "((a|b)*b)*", "^a", "a.*b", "(|a|ab)+$", "a*?b"]
)
def test_a_pattern_takes_more_steps_on_more_names_and_never_fewer(pattern: str) -> None:
    recipe, tensors = parse_recipe(f"{pattern} = q8_0"), slow_recipe(1, 40)[1]
    counts = [recipe_steps(recipe, tensors[:n]) for n in range(1, 41)]
    assert counts == sorted(counts)
    assert counts[-1] >= sum(map(len, tensors)) - 63 * 40 // 2  # each starts at every character


def test_what_is_legal_depends_on_steps_and_never_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, tensors = slow_recipe(2000)
    few = slow_recipe(10)[0]
    with pytest.raises(InvalidRecipeError) as caught:
        match(recipe, tensors)
    # A machine on which an hour passes between any two looks at a clock.
    hours = itertools.count(0, 3600)
    for clock in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
        monkeypatch.setattr(time, clock, lambda: float(next(hours)))
    assert len(match(few, tensors)) == len(tensors)
    with pytest.raises(InvalidRecipeError) as again:
        match(recipe, tensors)
    assert again.value.diagnostics == caught.value.diagnostics


def test_a_rule_for_each_tensor_of_the_largest_model_is_legal() -> None:
    names = [t.name for t in inventory("GLM-4.5").tensors]
    recipe = parse_recipe("".join(f"{re.escape(name)} = q8_0\n" for name in names))
    assert len(names) == 1761
    assert 6 * recipe_steps(recipe, names) < MAX_STEPS
    assert all(i in hits for i, hits in enumerate(match(recipe, names)))


def test_a_real_recipe_takes_milliseconds() -> None:
    layers = "([0-9]|[1-3][0-9]|4[0-6])"
    recipe = parse_recipe("\n".join(rf"^blk\.{layers}\.role_{i}\.weight$ = q8_0" for i in range(60)))
    tensors = [f"blk.{i}.role_{i % 70}.weight" for i in range(1200)]
    begin = time.thread_time()
    match(recipe, tensors)
    assert time.thread_time() - begin < 0.2


def test_a_recipe_put_together_wrongly_is_refused() -> None:
    choice = parse_recipe("a = q8_0").rules[0].choice
    assert isinstance(choice, Choice)
    recipe = Recipe("x", "x.recipe", "", "", (Rule("(", choice, "x.recipe", 1, 1),))
    with pytest.raises(RecipeError, match=r"x\.recipe: RE2 refuses a pattern"):
        match(recipe, ["a"])
