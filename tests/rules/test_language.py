"""Ranges, names, roles, order, inclusion and inheritance: what they mean for tensors."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.rules import InvalidRecipeError, Recipe, load_recipe, match, parse_recipe
from ggplan.rules.ranges import MAX_ITEMS, alternation, parse_range

NAMES = [
    "token_embd.weight",
    "output.weight",
    *(
        f"blk.{i}.{kind}.weight"
        for i in range(12)
        for kind in ("attn_q", "attn_norm", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    ),
    "blk.11.nextn.eh_proj.weight",
    "blk.11.nextn.enorm.weight",
]


def matched(text: str) -> list[list[str]]:
    """For each rule the names it matches."""
    recipe = parse_recipe(text)
    answers = match(recipe, NAMES)
    return [
        [n for n, hits in zip(NAMES, answers, strict=True) if i in hits] for i in range(len(recipe.rules))
    ]


def blocks(text: str) -> set[int]:
    (names,) = matched(text)
    return {int(name.split(".")[1]) for name in names}


def codes(text: str) -> list[str]:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(text)
    return [d.code for d in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("range_", "expected"),
    [
        ("{0..3}", {0, 1, 2, 3}),
        ("{9..11}", {9, 10, 11}),
        ("{1,4,7..9}", {1, 4, 7, 8, 9}),
        ("{ 1 , 4 , 7 .. 9 }", {1, 4, 7, 8, 9}),
        ("{first 2}", {0, 1}),
        ("{last 2}", {10, 11}),
        ("{first 1, last 2}", {0, 10, 11}),
        ("{2..3,last 1}", {2, 3, 11}),
        ("{first 99}", set(range(12))),
        ("{last 99}", set(range(12))),
        ("{5..5}", {5}),
        ("{100..200}", set()),
    ],
)
def test_ranges_are_whole_block_numbers(range_: str, expected: set[int]) -> None:
    assert blocks(rf"^blk\.{range_}\.attn_q = q8_0") == expected
    assert blocks(rf"@let R = {range_}" + "\n" + r"^blk\.${R}\.attn_q = q8_0") == expected
    assert blocks("@match full" + "\n" + rf"blk\.{range_}\.attn_q\.weight = q8_0") == expected


def test_repetitions_stay_repetitions() -> None:
    assert matched(r"^blk\.1{2}\.attn_q = q8_0") == [["blk.11.attn_q.weight"]]
    assert matched(r"^blk\.1{1,2}\.attn_q = q8_0") == [["blk.1.attn_q.weight", "blk.11.attn_q.weight"]]
    assert matched(r"^blk\.[{1..3}]\.attn_q = q8_0") == [
        ["blk.1.attn_q.weight", "blk.3.attn_q.weight"]  # in a set braces are characters
    ]


def test_a_recipe_of_ranges_waits_for_the_model() -> None:
    recipe = parse_recipe(r"blk\.{last 1}\. = q8_0")
    assert match(recipe, ["blk.3.a", "blk.7.a"]) == ((), (0,))
    assert match(recipe, ["blk.3.a", "blk.2.a"]) == ((0,), ())
    assert match(recipe, ["a", "b"]) == ((), ())


@pytest.mark.parametrize(
    "range_",
    ["{3..1}", "{1, 3}", "{0..10000}", "{first 0}", "{last}", "{1..}", "{1,,2}", "{1..2..3}", "{first 2 3}"],
)
def test_malformed_ranges_are_refused(range_: str) -> None:
    assert codes(rf"blk\.{range_}\. = q8_0") == ["GP015"]


def test_a_range_has_so_many_items() -> None:
    fits = ",".join(str(2 * i) for i in range(MAX_ITEMS))
    assert parse_recipe(f"blk.{{{fits}}}. = q8_0").rules
    assert codes(f"blk.{{{fits},999}}. = q8_0") == ["GP015"]


@given(st.frozensets(st.integers(0, 1200), max_size=40))
def test_an_alternation_matches_exactly_its_numbers(numbers: frozenset[int]) -> None:
    pattern = alternation(numbers).replace(r"\x{10FFFF}", r"\U0010FFFF")
    assert {n for n in range(1300) if re.fullmatch(pattern, str(n))} == numbers


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 20)), min_size=1, max_size=8), st.integers(0, 9)
)
def test_a_range_is_what_it_says(items: list[tuple[int, int]], last: int) -> None:
    text = ",".join(f"{low}..{low + n}" for low, n in items) + (f",last {last}" if last else "")
    expected = {i for low, n in items for i in range(low, low + n + 1)} | set(range(400 - last, 400))
    assert parse_range(text).numbers(400) == expected


def test_roles_speak_to_every_name() -> None:
    text = """
@role norm = f32
@role attention, output = q8_0
@role experts = q4_K
@role experts.down {first 2} = q6_K
@role nextn = bf16
"""
    norm, attention, experts, first, nextn = matched(text)
    assert len(norm) == 13
    assert "blk.11.nextn.enorm.weight" in norm
    assert len(attention) == 13
    assert len(experts) == 36
    assert first == ["blk.0.ffn_down_exps.weight", "blk.1.ffn_down_exps.weight"]
    assert len(nextn) == 7  # all of block 11


def test_a_role_rule_knows_its_place() -> None:
    (rule,) = parse_recipe("  @role  experts.down , nextn {last 2}  = q6_K | q8_0  # why", "x.recipe").rules
    assert rule.pattern == "experts.down , nextn {last 2}"
    assert (rule.line, rule.column, rule.comment) == (1, 10, "why")
    assert rule.roles == ("experts.down", "nextn")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("@role experts.side = q8_0", "GP016"),
        ("@role = q8_0", "GP016"),
        ("@role attention q8_0", "GP001"),
        ("@role attention = q9", "GP002"),
        ("@role attention {2} = q8_0", "GP015"),
        ("@role {first 2} attention = q8_0", "GP015"),
        ("${A} = q8_0", "GP013"),
        ("a${ = q8_0", "GP013"),
        ("a = ${T}", "GP013"),
        ("@let 1A = b", "GP011"),
        ("@let A", "GP011"),
        ("@let A = b\n@let A = c", "GP011"),
        ("@order sideways", "GP011"),
        ("@match half", "GP011"),
        ("@target ollama", "GP011"),
        ("@base", "GP011"),
        ("@include", "GP011"),
        ("@include x", "GP014"),
        ("@base x", "GP014"),
        ("@assert", "GP011"),
        ("@assert bpw", "GP011"),
        ("@assert bpw <= many", "GP011"),
        ("@assert bpw <= 3 GiB", "GP011"),
        ("@assert size <= 3", "GP011"),
        ("@assert size <= 3 parsecs", "GP011"),
        ("@assert size(everything) <= 3 GiB", "GP016"),
        ("@assert uncovered(experts) == 0", "GP011"),
        ("@assert type == q8_0", "GP011"),
        ("@assert type(a) <= q8_0", "GP011"),
        ("@assert type(a) == q9", "GP002"),
        ("@assert 1 + 1 == 2", "GP011"),
        ("@test a = q8_0", "GP011"),
        ("@test -> q8_0", "GP011"),
        ("@test a -> q9", "GP002"),
    ],
)
def test_each_mistake_has_its_code(text: str, code: str) -> None:
    assert codes(text) == [code]


def test_names_are_replaced_once_and_as_text() -> None:
    recipe = parse_recipe("@let A = q|k\n@let B = attn_(${A})\n@let T = q6_K | q8_0\n^${B}x = ${T}!\n")
    (rule,) = recipe.rules
    assert rule.pattern == "^${B}x"
    assert rule.expanded == "^attn_(q|k)x"
    assert [t.name for t in rule.choice.types] == ["q6_K", "q8_0"]
    assert rule.choice.forced
    assert rule.choice.text == "${T}!"
    assert recipe.unused == ()


def test_a_mistake_in_a_replaced_text_is_shown_where_it_is_used() -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe("@let A = (q\nx${A}y = q8_0 | ${B}")
    first, second = caught.value.diagnostics
    assert (first.code, first.line, first.column, first.length) == ("GP003", 2, 2, 4)
    assert (second.code, second.line, second.column, second.length) == ("GP013", 2, 17, 4)


def test_many_names_cannot_blow_a_line_up() -> None:
    lets = "@let A0 = " + "x" * 100 + "\n"
    lets += "".join(f"@let A{i + 1} = ${{A{i}}}${{A{i}}}\n" for i in range(30))
    assert "GP009" in codes(lets + "${A30} = q8_0")


def test_order_last_turns_the_rules_round() -> None:
    first = parse_recipe("a = q8_0\nb = q4_K\n")
    last = parse_recipe("@order last\nb = q4_K\na = q8_0\n")
    assert [r.pattern for r in last.rules] == [r.pattern for r in first.rules] == ["a", "b"]
    assert last.order == "last"


def test_match_full_binds_both_ends() -> None:
    text = "@match full\noutput\\.weight|token_embd\\.weight = q8_0\n.*attn_q = q8_0\n"
    whole, part = matched(text)
    assert whole == ["token_embd.weight", "output.weight"]
    assert part == []


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        path = tmp_path / (name.replace("__", "/") + ".recipe")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "main.recipe"


def load(tmp_path: Path, **files: str) -> Recipe:
    return load_recipe(folder(tmp_path, **files))


def refused(tmp_path: Path, **files: str) -> str:
    with pytest.raises(InvalidRecipeError) as caught:
        load(tmp_path, **files)
    assert caught.value.diagnostics[0].code == "GP014"
    return str(caught.value)


def test_included_lines_stand_where_the_directive_does(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        main="@let Q = q8_0\nfirst = f16\n@include parts/norms.recipe\nlast = ${X}\n",
        parts__norms="@let X = bf16\nnorm = ${Q}\n@include deeper.recipe\n",
        parts__deeper="deep = q4_K\n@test a -> q8_0",
    )
    assert [r.pattern for r in recipe.rules] == ["first", "norm", "deep", "last"]
    assert [Path(r.file).name for r in recipe.rules] == [
        "main.recipe", "norms.recipe", "deeper.recipe", "main.recipe",
    ]  # fmt: skip
    assert len(recipe.tests) == 1
    assert len(recipe.parts) == 2
    assert recipe.source_line(2, recipe.rules[1].file) == "norm = ${Q}"
    again = load(
        tmp_path,
        main="@let Q = q8_0\nfirst = f16\n@include parts/norms.recipe\nlast = ${X}\n",
        parts__deeper="deep = q5_K\n@test a -> q8_0",
    )
    assert again.sha256 != recipe.sha256


def test_a_base_stands_below_the_recipe(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        main="@base base.recipe\n@order last\na = q8_0\nb = q8_0\n",
        base="@arch glm4moe\n@default bf16\n@match full\nc = q4_K\n@assert bpw <= 1\n",
    )
    assert [(r.pattern, r.whole) for r in recipe.rules] == [("b", False), ("a", False), ("c", True)]
    assert recipe.architecture == "glm4moe"
    assert recipe.default is not None
    assert recipe.assertions == ()


def test_a_shipped_recipe_can_be_inherited(tmp_path: Path) -> None:
    recipe = load(tmp_path, main="@base glm4moe/hq4_k\n^output = q6_K\n")
    assert len(recipe.rules) > 5
    assert recipe.rules[1].file == "glm4moe/hq4_k.recipe"


def test_circles_end(tmp_path: Path) -> None:
    assert "includes itself: `main.recipe` → `a.recipe` → `main.recipe`" in refused(
        tmp_path, main="@include a.recipe", a="@include main.recipe"
    )
    assert "inherits itself" in refused(tmp_path, main="@base a.recipe", a="@base main.recipe")
    assert "itself" in refused(tmp_path, main="@include ./main.recipe")


def test_depth_and_number_are_bounded(tmp_path: Path) -> None:
    files = {f"f{i}": f"@include f{i + 1}.recipe\n" for i in range(20)}
    assert "deep" in refused(tmp_path, main="@include f0.recipe", **files, f20="a = q8_0")
    text = "@include leaf.recipe\n" * 3
    doubling = {f"d{i}": f"@include d{i + 1}.recipe\n@include ./d{i + 1}.recipe\n" for i in range(7)}
    with pytest.raises(InvalidRecipeError):
        load(tmp_path, main=text + "@include d0.recipe\n", leaf="", **doubling, d7="a = q8_0\n" * 200)


@pytest.mark.parametrize(
    "target", ["../secret.recipe", "/etc/passwd", "parts/../../secret.recipe", "~/x", "C:/x", "a\\b"]
)
def test_nothing_outside_the_folder_is_read(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret.recipe").write_text("stolen = q8_0\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    message = refused(inner, main=f"@include {target}")
    assert "stolen" not in message
    assert "outside" in message or "relative" in message


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.recipe").write_text("stolen = q8_0\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.recipe").symlink_to(tmp_path / "secret.recipe")
    assert "outside" in refused(inner, main="@include link.recipe")


def test_what_is_missing_has_a_neighbour(tmp_path: Path) -> None:
    assert "the nearest file is `norms.recipe`" in refused(tmp_path, main="@include norm.recipe", norms="")


def test_included_files_may_not_speak_for_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        load(tmp_path, main="@include a.recipe\nb( = q8_0", a="@recipe 1\n@default q8_0\nc = q9_0\n")
    assert [(d.code, Path(d.file).name, d.line) for d in caught.value.diagnostics] == [
        ("GP011", "a.recipe", 2), ("GP002", "a.recipe", 3), ("GP003", "main.recipe", 2),
    ]  # fmt: skip
    assert "3 | c = q9_0" in str(caught.value)
