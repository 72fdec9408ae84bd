"""What errors look like, to the character."""

import pytest

from ggplan.errors import RecipeError
from ggplan.rules import Diagnostic, InvalidRecipeError, parse_recipe, render

GOLDEN = [
    (
        "\n" * 13 + r"^blk\.\d+\.ffn_(gate|up)_exps\.weight$ = Q4_K_M" + "  # smaller\n",
        r"""
error[GP002]: `Q4_K_M` is a llama.cpp mix of several types, not a tensor type
  --> hq4_k.recipe:14:42
   |
14 | ^blk\.\d+\.ffn_(gate|up)_exps\.weight$ = Q4_K_M  # smaller
   |                                          ^^^^^^
   = help: use `q4_K` for every tensor of the rule
""",
    ),
    (
        "blk.attn_q q8_0",
        r"""
error[GP001]: the rule has no `=`
 --> hq4_k.recipe:1:1
  |
1 | blk.attn_q q8_0
  | ^^^^^^^^^^^^^^^
  = help: write `blk.attn_q = q8_0` [--fix]
""",
    ),
    (
        "attn = q6_K | q9_0 | f16",
        r"""
error[GP002]: unknown tensor type `q9_0`
 --> hq4_k.recipe:1:15
  |
1 | attn = q6_K | q9_0 | f16
  |               ^^^^
  = help: the nearest name is `q8_0`
""",
    ),
    (
        r"blk\.(\d+\.attn_[qk = q8_0",
        r"""
error[GP003]: `[` is never closed
 --> hq4_k.recipe:1:17
  |
1 | blk\.(\d+\.attn_[qk = q8_0
  |                 ^
  = help: write `\[` for the character
""",
    ),
    (
        r"blk\.(?!46\.)\d+\.attn = q8_0",
        r"""
error[GP004]: look-around is not portable: RE2 has none
 --> hq4_k.recipe:1:6
  |
1 | blk\.(?!46\.)\d+\.attn = q8_0
  |      ^^^
  = help: list what shall match, such as `(1[0-9]|2[0-4])`, and put exceptions into a rule above
""",
    ),
    (
        "@defualt q8_0",
        r"""
error[GP006]: unknown directive `@defualt`
 --> hq4_k.recipe:1:1
  |
1 | @defualt q8_0
  | ^^^^^^^^
  = help: the nearest is `@default` [--fix]
""",
    ),
    (
        "attn = # later",
        r"""
error[GP007]: the type is missing
 --> hq4_k.recipe:1:7
  |
1 | attn = # later
  |       ^
  = help: write one, such as `q8_0`
""",
    ),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN, ids=lambda text: text.split("]")[0].strip()[:40])
def test_errors_look_like_this(text: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "hq4_k.recipe")
    assert str(caught.value) == expected.strip("\n")


def test_several_errors_are_parted_by_a_blank_line() -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe("a\nb\n")
    first, second = (render(d, line) for d, line in zip(caught.value.diagnostics, "ab", strict=True))
    assert caught.value.message == f"{first}\n\n{second}"


def test_carets_stand_under_the_span_behind_wide_characters_and_tabs() -> None:
    line = "\t層e\u0301 = \tq9_0"
    finding = Diagnostic("GP002", "error", "m", "x", 1, 1 + line.index("q"), 4)
    assert render(finding, line).splitlines()[3:5] == [
        "1 |     層e\u0301 =     q9_0",
        "  |               ^^^^",
    ]


def test_carets_under_wide_characters_are_as_wide() -> None:
    finding = Diagnostic("GP101", "warning", "m", "x", 1, 2, 2)
    assert render(finding, "a層層b").splitlines()[4] == "  |  ^^^^"


def test_columns_do_not_count_the_byte_order_mark() -> None:
    for text in ("\ufeffab\x07", "\ufeffab = q9_0\n", "\ufeff\nab\x07"):
        with pytest.raises(InvalidRecipeError) as caught:
            parse_recipe(text)
        (found,) = caught.value.diagnostics
        assert found.column == text.strip("\ufeff\n").index("q" if "q" in text else "\x07") + 1


def test_control_characters_never_reach_the_terminal() -> None:
    finding = Diagnostic("GP101", "warning", "m\x1b[2J", "a\nb\x07", 1, 2, 1, "h\u202e")
    shown = render(finding, "\x1b]0;title\x07")
    assert shown.splitlines() == [
        r"warning[GP101]: m\x1b[2J",
        r" --> a\nb\x07:1:2",
        r"  |",
        r"1 | \x1b]0;title\x07",
        r"  |     ^",
        r"  = help: h\u202e",
    ]


def test_long_lines_are_shown_around_the_span() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe("a" * 900 + " = q9_0 #" + "b" * 10_000)
    source, carets = str(caught.value).splitlines()[3:5]
    assert len(source) < 130
    assert source[4] == source[-1] == "…"
    assert carets.index("^") == source.index("q9_0")
    assert carets.count("^") == 4


def test_a_span_longer_than_the_window_is_cut() -> None:
    finding = Diagnostic("GP009", "error", "m", "x", 1, 1, 5000)
    source, carets = render(finding, "a" * 5000).splitlines()[3:5]
    assert source == "1 | " + "a" * 120 + "…"
    assert carets == "  | " + "^" * 120


def test_a_finding_about_a_file_has_no_excerpt() -> None:
    finding = Diagnostic("GP009", "error", "too large", "x.recipe", help="split it")
    assert render(finding, "") == "error[GP009]: too large\n --> x.recipe\n  = help: split it"


def test_color_changes_nothing_but_the_color() -> None:
    import re

    finding = Diagnostic("GP102", "warning", "m", "x", 3, 2, 1, "h")
    colored = render(finding, "abc", color=True)
    assert colored.startswith("\x1b[1;33mwarning[GP102]\x1b[0m")
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == render(finding, "abc")
