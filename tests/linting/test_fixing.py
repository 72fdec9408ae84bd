"""What `--fix` does: told edit by edit, in as many rounds as it takes, and nothing more the second time."""

import random
import re
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.errors import RecipeError
from ggplan.inventories import inventory
from ggplan.linting import check_recipe, fix_recipe, subject_of
from ggplan.linting.case import make_case
from ggplan.linting.trials import apply_fixes
from ggplan.rules import Edit, Fix, InvalidRecipeError, parse_recipe, shipped_recipes
from ggplan.rules.loading import recipe_text

AIR = "GLM-4.5-Air"


def test_every_edit_is_told_with_the_line_it_was_on(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text(
        "@let OLD = x\nattn_q\\.weight = Q8O\nattn_q\\.weight = q8_0\n"
        "^token_embd.weight$ = q8_0\n@default q8_0\n"
    )
    fixed = fix_recipe(path, inventory(AIR))
    assert [(e.code, e.line, e.kind, e.before, e.after) for e in fixed.applied] == [
        ("GP017", 1, "deleted", "@let OLD = x", ""),
        ("GP002", 2, "changed", "Q8O", "q8_0"),
        ("GP104", 3, "deleted", "attn_q\\.weight = q8_0", ""),
        ("GP106", 4, "changed", "^token_embd.weight$", "^token_embd\\.weight$"),
    ]
    assert fixed.n_fixes == 4
    assert fixed.report.clean
    assert path.read_text().startswith("@let OLD")  # nothing is written


def test_a_rule_that_is_moved_is_told_as_moved(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    for text in (".* = q8_0\n^a = f32\nattn_q = q6_K\nattn_k = q6_K\nattn_v = q6_K\n",
                 "@order last\nattn_q = q6_K\nattn_k = q6_K\nattn_v = q6_K\n.* = q8_0\n"):  # fmt: skip
        path.write_text(text)
        (edit,) = [e for e in fix_recipe(path, inventory(AIR), unsafe=True).applied if e.kind != "deleted"]
        assert (edit.kind, edit.before) == ("moved", ".* = q8_0")


def test_the_diff_is_one_that_patch_applies(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_bytes(b"@let OLD = x\r\nattn_q = Q8O\r\n@default q8_0")
    fixed = fix_recipe(path, inventory(AIR))
    diff = fixed.diff()
    assert "-attn_q = Q8O\r\n+attn_q = q8_0\r\n" in diff
    assert "\\ No newline at end of file" in diff
    patch = re.sub(r"(?m)^(---|\+\+\+) .*$", r"\1 x.recipe", diff)
    done = subprocess.run(
        ["patch", "--binary", "-p0"], input=patch.encode(), cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert path.read_bytes() == b"attn_q = q8_0\r\n@default q8_0"


def test_lines_that_are_added_end_as_the_others_do(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_bytes(b"attn_q = q8_0\r\n")
    (text,) = fix_recipe(path, inventory(AIR), unsafe=True).texts.values()
    assert text.count("\n") == text.count("\r\n") > 1


def test_an_old_mac_s_line_ends_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_bytes(b"# GLM-4.5-Air\rattn_q = Q8O\r@default q8_0\r")
    fixed = fix_recipe(path)
    assert fixed.texts == {str(path): "# GLM-4.5-Air\nattn_q = q8_0\n@default q8_0\r"}
    assert fixed.report.clean


def test_what_ships_is_not_changed_but_the_diff_is_shown() -> None:
    fixed = fix_recipe("glm4moe/hq4_k")
    assert (fixed.texts, fixed.applied, fixed.diff()) == ({}, (), "")


def test_a_comment_is_a_safe_fix_and_a_wrong_family_none(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("@arch glm4mo\n@default q8_0\n")
    assert fix_recipe(path, inventory(AIR)).texts[str(path)].startswith("@arch glm4moe\n")
    path.write_text("@arch llama\n@default q8_0\n")
    assert fix_recipe(path, inventory(AIR)).texts == {}


IGNORED = ("GP102", "GP103", "GP106", "GP201")
MUTATIONS = {
    "twice": lambda lines, at, r: lines[: at + 1] + lines[at:],
    "gone": lambda lines, at, r: lines[:at] + lines[at + 1 :],
    "moved": lambda lines, at, r: [lines[at], *lines[:at], *lines[at + 1 :]],
    "no backslash": lambda lines, at, r: [*lines[:at], lines[at].replace("\\", "", 1), *lines[at + 1 :]],
    "no anchor": lambda lines, at, r: [*lines[:at], lines[at].replace("^", ""), *lines[at + 1 :]],
    "another type": lambda lines, at, r: [*lines[:at], lines[at].replace("q8_0", "Q8O"), *lines[at + 1 :]],
    "no chain": lambda lines, at, r: [*lines[:at], lines[at].split("|")[0], *lines[at + 1 :]],
    "quotes": lambda lines, at, r: [*lines[:at], f'- "{lines[at]}",', *lines[at + 1 :]],
    "a comment": lambda lines, at, r: [*lines[:at], f"{lines[at]}  # ggplan: ignore {r.choice(IGNORED)}",
                                       *lines[at + 1 :]],
    "a comment above": lambda lines, at, r: [*lines[:at], "# ggplan: ignore GP104, GP102", *lines[at:]],
    "a letter less": lambda lines, at, r: [*lines[:at], lines[at][:5] + lines[at][6:], *lines[at + 1 :]],
    "a colon": lambda lines, at, r: [*lines[:at], lines[at].replace(" = ", ": "), *lines[at + 1 :]],
    "an idle name": lambda lines, at, r: [*lines[:at], "@let IDLE = x", *lines[at:]],
}  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(shipped_recipes()),
    st.lists(st.tuples(st.sampled_from(sorted(MUTATIONS)), st.integers(0, 10_000)), min_size=1, max_size=5),
    st.sampled_from(["\n", "\r\n"]),
)
def test_fixing_twice_changes_nothing_more_and_no_type(
    name: str, mutations: list[tuple[str, int]], line_end: str
) -> None:
    import tempfile

    lines = recipe_text(name)[0].split("\n")
    for kind, seed in mutations:
        rules = [i for i, line in enumerate(lines) if line.strip() and not line.startswith(("#", "@base"))]
        at = random.Random(seed).choice(rules)
        lines = MUTATIONS[kind](lines, at, random.Random(seed))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.recipe"
        path.write_bytes(line_end.join(lines).encode())
        try:
            first = fix_recipe(path)
        except RecipeError:
            pytest.fail("a mutated recipe cannot be checked")
        before = path.read_bytes().decode()
        after = first.texts.get(str(path), before)
        assert all(len(e.before) + len(e.after) for e in first.applied)
        assert after.count("\n") == after.count(line_end)
        path.write_bytes(after.encode())
        second = fix_recipe(path)
        assert second.texts == {}, second.diff()
        assert second.report.diagnostics == first.report.diagnostics
    try:
        old, new = parse_recipe(before), parse_recipe(after)
    except InvalidRecipeError:
        return  # what could not be read had no types
    model = subject_of(old)
    if model is not None:
        types = [[f.type for f in make_case(model, recipe).fitted] for recipe in (old, new)]
        assert types[0] == types[1]


COMMON = "attn_q\\.weight$ = q6_K\nattn_k\\.weight$ = q5_K\n"


@pytest.mark.parametrize(
    ("own", "common", "left"),
    [
        ("attn_q\\.weight$ = q6_K\n", COMMON, ""),
        ("attn_[qv]\\.weight$ = q6_K\n", COMMON, None),  # it takes more than the rule that is drawn in
        ("(attn_q|attn_k)\\.weight$ = q6_K\n", COMMON, None),
        ("attn_q\\.weight$ = q4_K\n", COMMON, None),
        ("", COMMON + "attn_q\\.weight$ = q6_K\n", None),
        ("", COMMON + "^token_embd.weight$ = q8_0\n", None),
        ("", COMMON + "@let IDLE = x\n", None),
        ("", COMMON + "attn_v = Q8O\n", None),
        ("", COMMON + "attn_v = q6_K  # ggplan: ignore GP101\n", None),
        ("", COMMON + "attn_v: q6_K\x07\n", None),
    ],
)
def test_a_safe_fix_edits_the_recipe_alone_and_no_file_that_others_draw_in(
    own: str, common: str, left: str | None, tmp_path: Path
) -> None:
    path, drawn_in = tmp_path / "a.recipe", tmp_path / "common.recipe"
    path.write_text(f"{own}@include common.recipe\n@default q8_0\n")
    drawn_in.write_text(common)
    fixed = fix_recipe(path, inventory(AIR))
    assert str(drawn_in) not in fixed.texts
    assert {edit.file for edit in fixed.applied} <= {str(path)}
    if left is not None:
        assert fixed.texts == {str(path): f"{left}@include common.recipe\n@default q8_0\n"}
        assert "delete a.recipe:1" in fix_recipe_help(path)
    else:
        assert fixed.texts == {}


def fix_recipe_help(path: Path) -> str:
    return " ".join(d.help for d in check_recipe(path, inventory(AIR)).diagnostics)


def test_a_file_that_is_drawn_in_is_mended_where_that_is_asked_for(tmp_path: Path) -> None:
    path, drawn_in = tmp_path / "a.recipe", tmp_path / "common.recipe"
    path.write_text("@include common.recipe\n@default q8_0\n")
    drawn_in.write_text("^token_embd.weight$ = q8_0\n")
    assert "--fix leaves common.recipe alone" in fix_recipe_help(path)
    fixed = fix_recipe(path, inventory(AIR), unsafe=True)
    assert fixed.texts == {str(drawn_in): "^token_embd\\.weight$ = q8_0\n"}


@pytest.mark.parametrize(
    "name", ["two words", 'a "quoted" one', "two\nlines", "tab\there", "blättchen", "back\\slash"]
)
def test_the_diff_of_a_file_of_any_name_is_one_that_patch_applies(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.recipe"
    path.write_text("# \u200bseen not\nattn_q = Q8O\n@default q8_0\n")
    diff = fix_recipe(path, inventory(AIR)).diff()
    done = subprocess.run(["patch", "-p1"], input=diff.encode(), cwd="/", capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    assert path.read_text() == "# \u200bseen not\nattn_q = q8_0\n@default q8_0\n"


def test_very_many_fixes_take_no_longer_than_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("# ggplan: ignore GP106\n" * 9_000 + "@default q8_0\n")
    began = time.process_time()
    fixed = fix_recipe(path, inventory(AIR))
    assert (fixed.n_fixes, list(fixed.texts.values())) == (9_000, ["@default q8_0\n"])
    assert time.process_time() - began < 15  # 40 seconds and more where each edit looks at each line


def test_a_fix_ends_lines_as_the_line_that_it_changes() -> None:
    text = "# one\r\n# two\nfoo = q8_0\n\r\nbar = q8_0\r\nbaz = q4_0"
    fixes = [Fix((Edit("x", line, 1, None, "new = q4_K\n"),), safe=True) for line in (3, 5)]
    assert apply_fixes({"x": text}, fixes).texts["x"] == (
        "# one\r\n# two\nnew = q4_K\n\r\nnew = q4_K\r\nbaz = q4_0"
    )
