"""Comments and options that silence findings: each silences what it names and nothing else, and none is idle
without a word.
"""

import time
from pathlib import Path

import pytest

from ggplan.errors import RecipeError
from ggplan.inventories import inventory
from ggplan.linting import Selection, lint_rules, selection
from ggplan.linting.check import Report, check_text
from ggplan.linting.fixing import fix_recipe
from ggplan.linting.ignoring import ignore_comments

SHADOWED = "output\\.weight = q8_0\nattn_output\\.weight = iq4_nl{}\n@default q8_0\n"


def check(text: str, chosen: Selection | None = None) -> Report:
    return check_text(text, "x.recipe", None, inventory("GLM-4.5-Air"), chosen or Selection())


def codes(report: Report) -> list[tuple[str, int]]:
    return [(d.code, d.line) for d in report.diagnostics if d.code not in ("GP109", "GP213")]


def test_without_a_comment_the_rule_is_told() -> None:
    report = check(SHADOWED.format(""))
    assert codes(report) == [("GP102", 2)]
    assert report.n_silenced == 0


@pytest.mark.parametrize(
    "comment",
    [
        "  # ggplan: ignore GP102",
        "#ggplan:ignore gp102",
        "  # ggplan: ignore GP101, GP102",
        "  # ggplan: ignore GP102 it is meant, for 2 reasons",
        "  # ggplan: ignore[GP102]",
        "  # meant # ggplan: ignore GP102",
    ],
)
def test_a_comment_behind_a_rule_silences_it(comment: str) -> None:
    report = check(SHADOWED.format(comment))
    assert [c for c in codes(report) if c[0] != "GP019"] == []
    assert report.n_silenced == 1


def test_a_comment_on_a_line_of_its_own_is_about_the_next_line_that_is_none() -> None:
    lines = SHADOWED.format("").split("\n")
    for above in (["# ggplan: ignore GP102"], ["# ggplan: ignore GP102", "# for the attention"]):
        assert codes(check("\n".join([lines[0], *above, *lines[1:]]))) == []
    report = check("\n".join([lines[0], "# ggplan: ignore GP102", "", *lines[1:]]))
    assert codes(report) == [("GP019", 2), ("GP102", 4)]
    assert "no rule stands below" in next(d for d in report.diagnostics if d.code == "GP019").message


def test_a_comment_may_be_about_the_file() -> None:
    report = check(
        "# ggplan: ignore-file GP102, GP108\n" + SHADOWED.format("").replace("@default q8_0\n", "")
    )
    assert codes(report) == []
    assert report.n_silenced == 2  # the tensors without a rule are told of the file as a whole


def test_a_comment_silences_its_own_line_and_its_own_codes_only() -> None:
    report = check(SHADOWED.format("  # ggplan: ignore GP101"))
    assert codes(report) == [("GP102", 2), ("GP019", 2)]
    report = check("# ggplan: ignore GP102\n" + SHADOWED.format(""))
    assert codes(report) == [("GP019", 1), ("GP102", 3)]


def test_an_idle_comment_is_a_note_that_can_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("^output\\.weight$ = q8_0  # ggplan: ignore GP102, GP106\n@default q8_0\n")
    fixed = fix_recipe(path, inventory("GLM-4.5-Air"))
    assert fixed.texts == {str(path): "^output\\.weight$ = q8_0\n@default q8_0\n"}
    path.write_text(
        "output\\.weight = q8_0\nattn_output = q4_0  # ggplan: ignore GP106, GP102\n@default q8_0\n"
    )
    assert "ignore GP102\n" in fix_recipe(path, inventory("GLM-4.5-Air")).texts[str(path)]
    path.write_text("# ggplan: ignore GP106\n@default q8_0\n")
    assert fix_recipe(path, inventory("GLM-4.5-Air")).texts[str(path)] == "@default q8_0\n"


def test_a_code_that_was_not_looked_for_is_not_called_idle() -> None:
    text = "^output\\.weight$ = q8_0  # ggplan: ignore GP206, GP103\n@default q8_0\n"
    (note,) = check(text).diagnostics  # only plans have an imatrix
    assert (note.code, note.severity) == ("GP019", "note")
    assert "GP103" in note.message
    assert "GP206" not in note.message
    assert codes(check_text(text, "x.recipe")) == []  # without a model


def test_what_cannot_be_ignored_is_an_error_with_the_nearest() -> None:
    for comment, help in (
        ("ignore GP1O2", "the nearest is `GP102`"),
        ("ignore GP192", "the nearest is `GP219`"),
        ("ignore XY7", "name a code as findings do"),
        ("ignore", "name the codes"),
        ("ignore because I know", "name the codes"),
        ("ingore GP102", "write `ggplan: ignore`"),
        ("noqa GP102", "write `ggplan: ignore`"),
        ("ignore GP002", "mend the line"),
    ):
        found = [d for d in check(SHADOWED.format(f"  # ggplan: {comment}")).diagnostics if d.code == "GP020"]
        assert [d.severity for d in found] == ["error"], comment
        assert help in found[0].help, comment
        assert "GP102" in [d.code for d in check(SHADOWED.format(f"  # ggplan: {comment}")).diagnostics]


def test_prose_is_no_comment_of_this_kind() -> None:
    for comment in (
        "# made with ggplan: rules new",
        "# ggplan: see docs",
        "# ggplan plans it",
        "# ignore GP102",
    ):
        assert ignore_comments([("x", f"attn = q8_0  {comment}\n")]) == ()


@pytest.mark.parametrize(
    "comment",
    [
        "# ggplan ignore GP102",
        "# GGPLAN: ignore GP102",
        "#ggplan IGNORE: gp102",
        "# GGplan ignore-file GP1",
    ],
)
def test_a_comment_that_is_nearly_one_is_told(comment: str) -> None:
    report = check(SHADOWED.format(f"  {comment}"))
    assert codes(report) == [("GP102", 2), ("GP019", 2)]
    (note,) = [d for d in report.diagnostics if d.code == "GP019"]
    right = "ggplan: ignore-file" if "file" in comment else "ggplan: ignore"
    assert note.severity == "note"
    assert f"it does not begin with `{right}`" in note.message
    assert right in report.fixed(unsafe=True)[0][report.file]


@pytest.mark.parametrize(
    "comment", ["# ggplan can ignore GP102", "# why ggplan ignore GP102", "# ggplan ignore it"]
)
def test_what_only_sounds_like_one_is_prose(comment: str) -> None:
    assert codes(check(SHADOWED.format(f"  {comment}"))) == [("GP102", 2)]


def test_a_silenced_finding_is_not_taken_as_mended() -> None:
    # Were line 2 narrowed, the assertion would hold.
    text = SHADOWED.format("  # ggplan: ignore GP102") + "@assert type(blk.3.attn_output.weight) == iq4_nl\n"
    assert codes(check(text)) == [("GP301", 4)]
    assert codes(check(text.replace("GP102", "GP105"))) == [("GP102", 2), ("GP019", 2)]


def test_codes_are_selected_and_ignored_by_their_first_letters() -> None:
    known = lint_rules()
    assert selection(["GP1"], ["gp103"], known) == Selection(("GP1",), ("GP103",))
    chosen = selection(["GP1,GP201"], ["GP10"], known)
    assert [code for code in ("GP101", "GP111", "GP201", "GP202") if chosen.covers(code)] == [
        "GP111",
        "GP201",
    ]
    chosen = selection(["GP103"], ["GP1"], known)
    assert chosen.covers("GP103")
    assert not chosen.covers("GP102")
    assert not chosen.covers("GP201")
    assert not selection(["GP1"], ["GP1"], known).covers("GP101")
    assert selection(["ALL"], [], known).covers("GP302")
    with pytest.raises(RecipeError, match="no code begins with 'GP9'"):
        selection(["GP9"], [], known)


def test_what_is_not_selected_is_not_told_and_errors_of_the_text_always_are() -> None:
    text = SHADOWED.format("") + "attn_q = q9_0\nffn_down_exps = q6_K\n"
    everything = {d.code for d in check(text).diagnostics}
    assert everything >= {"GP002", "GP102", "GP201"}
    assert {d.code for d in check(text, Selection(("GP201",))).diagnostics} == {"GP002", "GP201"}
    assert {d.code for d in check(text, Selection((), ("GP",))).diagnostics} == {"GP002"}


def test_comments_of_included_files_count_there(tmp_path: Path) -> None:
    (tmp_path / "part.recipe").write_text(
        "output\\.weight = q8_0\nattn_output = q4_0  # ggplan: ignore GP102\n"
    )
    path = tmp_path / "x.recipe"
    path.write_text("@include part.recipe\n@default q8_0\n")
    report = fix_recipe(path, inventory("GLM-4.5-Air")).report
    assert codes(report) == []
    assert report.n_silenced == 1


@pytest.mark.parametrize(
    "comment",
    [
        '# see "# ggplan: ignore GP102" in docs',
        "# see '# ggplan: ignore GP102' in docs",
        "# write `# ggplan: ignore GP102` to silence it",
        '# "write # ggplan: ignore GP102 here"',
        "# ggplan: ignoring this is fine",
        "# ggplan: ignored in q4_K files",
        "# ggplan: skip this layer, see GP102",
        "# ggplan: Ignore what others say",
    ],
)
def test_what_only_talks_of_such_comments_is_prose(comment: str) -> None:
    for text in (SHADOWED.format(f"  {comment}"), f"{comment}\n{SHADOWED.format('')}"):
        report = check(text)
        assert [code for code, _ in codes(report)] == ["GP102"]
        assert report.n_silenced == 0


@pytest.mark.parametrize(
    "comment", ["# ggplan: ingore", "# ggplan: noqa", "# ggplan: Ignore", "# ggplan: ingore gp102"]
)
def test_a_misspelt_word_is_told_and_its_fix_makes_no_other_error(comment: str, tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text(SHADOWED.format(f"  {comment}"))
    fixed = fix_recipe(path, inventory("GLM-4.5-Air"))
    assert fixed.n_fixes == ("gp102" in comment)
    for finding in check(path.read_text()).diagnostics:
        if finding.code == "GP020":
            assert ("and the codes" in finding.help) == (finding.fix is None) == ("gp102" not in comment)
            break
    else:
        pytest.fail("it is not told")


@pytest.mark.parametrize(
    "lines",
    [
        [f"foo{i}x = q4_K # ggplan: ignore GP101" for i in range(9_000)],
        [f"foo{i}x = q4_K # ggplan: ignore-file GP101" for i in range(9_000)],
        ["# ggplan: ignore GP101"] * 9_000 + ["foo = q4_K"],
        ["foo = q4_K # ggplan: ignore " + "a" * 40_000, "foo = q4_K " + "#" * 100_000],
    ],
)
def test_very_many_comments_and_findings_take_no_longer_than_their_lines(lines: list[str]) -> None:
    began = time.process_time()
    assert check("\n".join(lines) + "\n").diagnostics
    assert time.process_time() - began < 20  # of the order of a minute and more where each meets each


@pytest.mark.parametrize(
    "comment",
    [
        "# ggplan: x " * 70_000,
        "# ggplan: ignoro " * 50_000,
        '" # ggplan: ignore GP102 ` ' * 40_000,
        "# ggplan: " + "ignore-" * 100_000,
        "# " * 300_000,
        "# ggplan: ignore " + "gp-" * 200_000,
        "# ggplan: ignore " + "GP102, " * 30_000,
    ],
)
def test_a_very_long_comment_takes_the_time_of_its_length(comment: str) -> None:
    start = time.process_time()
    ignore_comments([("x.recipe", f"attn_q = q8_0 {comment}\n")])
    assert time.process_time() - start < 2


def test_a_comment_behind_many_remarks_is_found() -> None:
    remarks = "# ggplan: x said so " * 100
    found = ignore_comments([("x.recipe", f"attn_q = q8_0 {remarks}# ggplan: ignore GP102\n")])
    assert [code for code, _ in found[0].codes] == ["GP102"]
