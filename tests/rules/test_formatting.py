"""One layout: the same meaning, all comments, and nothing left to do the second time."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.rules import InvalidRecipeError, Recipe, load_recipe, parse_recipe, shipped_recipes
from ggplan.rules.formatting import format_recipe

UGLY = """\ufeff
#title
@recipe   1
@default Q8_0|BF16   !


a=Q4_k|q8_0  # one
longer\\.pattern    =   q6_k!# two
@role  experts.down ,nextn{last 2}=Q5_K
@let  X=  a b
@test  blk.1.a->q8_0
@assert  bpw<=5.5
   \t
"""
PRETTY = r"""#title
@recipe 1
@default q8_0 | bf16!

a                                  = q4_K | q8_0  # one
longer\.pattern                    = q6_K!        # two
@role experts.down, nextn {last 2} = q5_K
@let X = a b
@test blk.1.a -> q8_0
@assert bpw <= 5.5
"""


def meaning(recipe: Recipe) -> object:
    return (
        [(re.sub(r"[ ,]+", "", r.pattern), r.expanded, r.roles, r.blocks, r.choice.types, r.choice.forced)
         for r in recipe.rules],
        [(a.quantity, a.of, a.comparison, a.value) for a in recipe.assertions],
        [(t.name, t.type) for t in recipe.tests],
        recipe.default and (recipe.default.types, recipe.default.forced),
        (recipe.name, recipe.architecture, recipe.order, recipe.match, recipe.target, recipe.base),
    )  # fmt: skip


def test_an_ugly_recipe_becomes_a_pretty_one() -> None:
    assert format_recipe(UGLY) == PRETTY
    assert meaning(parse_recipe(UGLY)) == meaning(parse_recipe(format_recipe(UGLY)))


def test_shipped_recipes_keep_their_meaning() -> None:
    for name in shipped_recipes():
        text = load_recipe(name).text
        assert meaning(parse_recipe(format_recipe(text))) == meaning(parse_recipe(text))


def test_nothing_is_nothing() -> None:
    assert format_recipe("") == format_recipe(" \n\t\n") == ""


comments = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=12)
patterns = st.sampled_from(["a", r"^blk\.{first 2}\.x$", "a=b", "(q|k)", "x" * 80, "[ab]{2}", "${X}"])
chains = st.lists(st.sampled_from(["q8_0", "Q4_k", "F16", "iq4_NL"]), min_size=1, max_size=3).map("|".join)
blanks = st.sampled_from(["", " ", "\t ", "   "])
lines = st.one_of(
    st.tuples(blanks, patterns, blanks, blanks, chains, st.sampled_from(["", "!", " !"])).map(
        lambda t: f"{t[0]}{t[1]}{t[2]}={t[3]}{t[4]}{t[5]}"
    ),
    st.tuples(st.sampled_from(["@role experts", "@role norm ,  router{0..3}"]), chains).map("=".join),
    st.sampled_from(["", "  ", "@let  X =y", "@test a->q8_0", "@assert  size( cpu )<=3 GiB", "no rule"]),
)
recipes = st.lists(
    st.tuples(lines, st.one_of(st.just(""), comments.map("#{}".format))).map("".join), max_size=12
).map("\n".join)


@settings(max_examples=300)
@given(recipes)
def test_formatting_is_idempotent_and_keeps_meaning_and_comments(text: str) -> None:
    new = format_recipe(text)
    assert format_recipe(new) == new
    assert [c.rstrip(" \t") for c in re.findall(r"#(.*)", text)] == re.findall(r"#(.*)", new)
    try:
        before: object = meaning(parse_recipe(text))
    except InvalidRecipeError as error:
        before = [d.code for d in error.diagnostics]
    try:
        after: object = meaning(parse_recipe(new))
    except InvalidRecipeError as error:
        after = [d.code for d in error.diagnostics]
    assert before == after
