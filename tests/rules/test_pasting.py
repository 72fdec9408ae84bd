"""Lines as a forum, a word processor or a script has them: one error each, with the line as it was meant."""

import time

import pytest

from ggplan.rules import InvalidRecipeError, parse_recipe
from ggplan.rules.pasting import as_meant

MEANT = {
    '"attn_q" = "q8_0"': "attn_q = q8_0",
    "\u201cattn_q\u201d = \u201cq8_0\u201d": "attn_q = q8_0",
    "'attn_q=q8_0'": "attn_q=q8_0",
    "`attn_q` = `q8_0`": "attn_q = q8_0",
    "attn_q\u00a0= q8_0": "attn_q = q8_0",
    "attn_q = q8_0\u200b": "attn_q = q8_0",
    "@default\u00a0q8_0": "@default q8_0",
    '@default "q8_0"': "@default q8_0",
    "blk\\.[0\u20139]\\.attn_q = q8_0": "blk\\.[0-9]\\.attn_q = q8_0",
    "attn_q \uff1d q8_0": "attn_q = q8_0",
    "- attn_q = q8_0": "attn_q = q8_0",
    "* attn_q = q8_0": "attn_q = q8_0",
    "> attn_q = q8_0": "attn_q = q8_0",
    "1. attn_q = q8_0": "attn_q = q8_0",
    "\u2022 attn_q = q8_0": "attn_q = q8_0",
    "--tensor-type attn_q=q8_0": "attn_q=q8_0",
    "attn_q = q8_0,": "attn_q = q8_0",
    "attn_q = q6_K | q8_0;": "attn_q = q6_K | q8_0",
    "attn_q => q8_0": "attn_q = q8_0",
    "attn_q == q8_0": "attn_q = q8_0",
    "attn_q := q8_0": "attn_q = q8_0",
    "attn_q \u2192 q8_0": "attn_q = q8_0",
    "@role experts => q4_K": "@role experts = q4_K",
    "// for the attention": "# for the attention",
    "; for the attention": "# for the attention",
    "```": "",
    "```text": "",
    'custom="': "",
    '"': "",
}


@pytest.mark.parametrize("line", MEANT)
def test_a_line_is_one_error_with_what_was_meant(line: str) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(f"norm = f32\n  {line}  # a comment\n")
    (error,) = caught.value.diagnostics
    assert (error.code, error.line, error.column) == ("GP008", 2, 3)
    assert error.fix is not None
    assert error.fix.safe
    (edit,) = error.fix.edits
    assert edit.text == MEANT[line]
    assert (edit.length is None) == (MEANT[line] == "")
    parse_recipe(f"norm = f32\n{MEANT[line]}\n")  # is right


@pytest.mark.parametrize(
    "line",
    [
        "attn_q = q8_0",
        "attn_(q|k)\\.weight = q6_K | q8_0!",
        "blk\\.[0-9]\\.attn_q = q8_0",
        "@name HQ4_K \u201cheavy\u201d",
        "@test output.weight -> q8_0",
        "@assert bpw >= 4",
        "@assert bpw == 4.5",
        "^-+>*$ = q8_0",
        "@let A = attn_(q|k)",
        "attn_q = q8_0  # \u201cquoted\u201d - a comment, as it likes;",
    ],
)
def test_a_line_that_is_right_is_left_alone(line: str) -> None:
    parse_recipe(line + "\n")


@pytest.mark.parametrize(
    ("written", "meant", "safe"),
    [("fp16", "f16", True), ("BFloat16", "bf16", True), ("float32", "f32", True), ("int8", "q8_0", False),
     ("4-bit", "q4_K", False), ("int4", "q4_K", False), ("q4km", "q4_K", False)],
)  # fmt: skip
def test_types_by_other_names(written: str, meant: str, safe: bool) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(f"attn_q = {written}\n")
    (error,) = caught.value.diagnostics
    assert error.code == "GP002"
    assert error.fix is not None
    assert (error.fix.edits[0].text, error.fix.safe) == (meant, safe)


def test_the_fix_of_a_directive_keeps_what_stands_behind_it() -> None:
    for line, meant in (("@defualt=q8_0", "@default q8_0"), ("@Default: q8_0", "@default")):
        with pytest.raises(InvalidRecipeError) as caught:
            parse_recipe(f"{line}\n")
        (error,) = caught.value.diagnostics
        assert error.fix is not None
        assert error.fix.edits[0].text == meant


BLANKS = " " * 40_000


@pytest.mark.parametrize(
    "line",
    [
        f"'{BLANKS}x",
        f"a->{BLANKS}=>x",
        f"--tensor-type{BLANKS}'x",
        f"-{BLANKS}'x",
        f"x{BLANKS}:{BLANKS}:",
        "\u2192" * 40_000 + "=q8_0",
        "=>" * 20_000 + "q8_0'",
        "'" + " ," * 20_000,
    ],
)
def test_a_long_line_takes_no_longer_than_its_length(line: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRecipeError):
        parse_recipe(f"{line}\n")
    assert time.process_time() - began < 3  # and many times that where each blank may be the first


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("a \t ===  q8_0", "a = q8_0"),
        ("a = b => q8_0", "a = b = q8_0"),
        ("a => b \u2192 c \u21d2 q8_0", "a = b \u2192 c \u21d2 q8_0"),
        ("(?P<a>b)->q8_0", "(?P<a>b) = q8_0"),
        ("--custom-q  attn_q=q8_0", "attn_q=q8_0"),
    ],
)
def test_the_sign_is_the_last_that_can_be_one(line: str, meant: str) -> None:
    found = as_meant(line)
    assert (found[0] if found else "") == (meant if meant.isascii() else "")
