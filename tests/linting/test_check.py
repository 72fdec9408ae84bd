"""The linter: every mistake at its place, with a fix that mends it, and nothing said of what is right."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan import Model, TensorInfo, parse_type
from ggplan.inventories import inventory
from ggplan.linting import Report, check_plan, check_recipe, subject_of
from ggplan.linting.check import check_text
from ggplan.opening import open_model
from ggplan.planning import decisions, make_plan
from ggplan.rules import Diagnostic, Recipe, load_recipe, parse_recipe, render, shipped_recipes
from ggplan.rules.matching import recipe_steps
from ggplan.rules.steps import MAX_STEPS

# A recipe for GLM-4.5-Air with which nothing is wrong.
CLEAN = r"""# GLM-4.5-Air
@recipe 1
@arch glm4moe
@target llama.cpp
@let MOE = {1..46}

norm\.weight$ = f32
^blk\.\d+\.(attn_[qkv]|exp_probs_b)\.bias$ = f32
^blk\.{1..46}\.ffn_gate_inp\.weight$ = f32
^token_embd\.weight$ = q8_0
^output\.weight$ = q8_0
^blk\.{0..46}\.attn_(q|k|v)\.weight$ = q8_0
^blk\.{0..46}\.attn_output\.weight$ = q6_K
^blk\.0\.ffn_(gate|up|down)\.weight$ = q8_0
^blk\.{1..46}\.ffn_gate_exps\.weight$ = q4_K
^blk\.${MOE}\.ffn_up_exps\.weight$ = q4_K
^blk\.{1..46}\.ffn_down_exps\.weight$ = q6_K | q8_0
^blk\.{1..46}\.ffn_(gate|up|down)_shexp\.weight$ = q8_0
^blk\.46\.nextn\.(eh_proj|embed_tokens|shared_head_head)\.weight$ = q8_0
@assert bpw <= 6.3
@test blk.3.ffn_down_exps.weight -> q8_0
"""

# ruff: noqa: E501

# What is written wrongly, in place of what; the code; the text under the carets.
MISTAKES = {
    "no equals sign": (r"^output\.weight$ = q8_0", r"^output\.weight$ q8_0", "GP001", r"^output\.weight$ q8_0"),
    "a colon": (r"^output\.weight$ = q8_0", r"^output\.weight$: q8_0", "GP001", None),
    "a mix": ("ffn_gate_exps\\.weight$ = q4_K", "ffn_gate_exps\\.weight$ = Q4_K_M", "GP002", "Q4_K_M"),
    "an O for a 0": ("token_embd\\.weight$ = q8_0", "token_embd\\.weight$ = q8_O", "GP002", "q8_O"),
    "an unknown type": ("attn_output\\.weight$ = q6_K", "attn_output\\.weight$ = q6_KK", "GP002", "q6_KK"),
    "an open group": ("attn_(q|k|v)", "attn_(q|k|v", "GP003", "("),
    "an open set": (r"(attn_[qkv]|", "(attn_[qkv|", "GP003", "["),
    "a loose end": ("attn_(q|k|v)", "attn_(q|k|v))", "GP003", ")"),
    "a star first": (r"norm\.weight$", r"*norm\.weight$", "GP003", "*"),
    "end of text": (r"^token_embd\.weight$", r"^token_embd\.weight\Z", "GP004", r"\Z"),
    "a look-ahead": (r"blk\.{1..46}\.ffn_gate_exps", r"blk\.(?!0\.)\d+\.ffn_gate_exps", "GP004", "(?!"),
    "a named group": ("attn_(q|k|v)", "attn_(?P<part>q|k|v)", "GP004", "(?P<"),
    "a directive": ("@arch glm4moe", "@arhc glm4moe", "GP006", "@arhc"),
    "half a chain": ("= q6_K | q8_0", "= q6_K | q8_0 |", "GP007", ""),
    "a bell": ("# GLM-4.5-Air", "# GLM-4.5-Air\x07", "GP010", "\x07"),
    "a wrong engine": ("@target llama.cpp", "@target llama_cpp", "GP011", "llama_cpp"),
    "an unknown name": ("${MOE}", "${MOES}", "GP013", "${MOES}"),
    "backwards": (r"blk\.{1..46}\.ffn_gate_exps", r"blk\.{46..1}\.ffn_gate_exps", "GP015", "{46..1}"),
    "a role": (r"norm\.weight$ = f32", "@role norms = f32", "GP016", "norms"),
    "an idle name": ("@let MOE", "@let OLD = x\n@let MOE", "GP017", "OLD"),
    "a typing slip": ("ffn_down_exps\\.weight$", "ffn_dwon_exps\\.weight$", "GP101", None),
    "another model": (r"^blk\.46\.nextn\.(eh", r"^blk\.92\.nextn\.(eh", "GP101", None),
    "no anchor": (r"^output\.weight$", r"output\.weight", "GP102", r"^blk\.{0..46}\.attn_output\.weight$"),
    "a copy": (
        r"^output\.weight$ = q8_0",
        "^output\\.weight$ = q8_0\n^output\\.weight = q8_0",
        "GP104",
        r"^output\.weight",
    ),
    "into the router": (r"^blk\.{1..46}\.ffn_gate_exps\.weight$ = q4_K", "ffn_gate = q4_K", "GP105", "ffn_gate"),
    "a bare dot": (r"^token_embd\.weight$", "^token_embd.weight$", "GP106", "."),
    "a lost block": (r"{1..46}\.ffn_down_exps", r"{1..45}\.ffn_down_exps", "GP107", "{1..45}"),
    "nothing for a kind": ("^token_embd\\.weight$ = q8_0\n", "", "GP108", None),
    "not a digit": (r"^blk\.\d+\.(attn_[qkv]", r"^\D+\d+\.(attn_[qkv]", "GP110", r"\D"),
    "a chopped number": (
        "^blk\\.0\\.ffn_(gate|up|down)\\.weight$ = q8_0",
        "^blk\\.[12]\\.ffn_down_exps\\.weight$ = q8_0\n^blk\\.0\\.ffn_(gate|up|down)\\.weight$ = q8_0",
        "GP111",
        "[12]",
    ),
    "a repeated dot": (r"^blk\.0\.ffn_(gate", r"^blk\.{0}\.ffn_(gate", "GP111", "{0}"),
    "digits for numbers": (r"blk\.{0..46}\.attn_output", r"blk\.[0-46]\.attn_output", "GP111", "[0-46]"),
    "a dash": (r"blk\.{0..46}\.attn_output", r"blk\.{0-46}\.attn_output", "GP015", "{0-46}"),
    "all first": ("norm\\.weight$ = f32\n", ".* = q8_0\nnorm\\.weight$ = f32\n", "GP102", ".*"),
    "a command line": (
        "^token_embd\\.weight$ = q8_0\n^output\\.weight$ = q8_0",
        "^token_embd\\.weight$=q8_0,^output\\.weight$=q8_0",
        "GP101",
        None,
    ),
    "a missing file": ("@let MOE", "@include nowhere.recipe\n@let MOE", "GP014", "nowhere.recipe"),
    "no whole blocks": ("q6_K | q8_0", "q6_K", "GP201", "q6_K"),
    "a small router": ("ffn_gate_inp\\.weight$ = f32", "ffn_gate_inp\\.weight$ = q8_0", "GP202", "q8_0"),
    "a forced router": ("ffn_gate_inp\\.weight$ = f32", "ffn_gate_inp\\.weight$ = q8_0!", "GP203", "q8_0!"),
    "another family": ("@arch glm4moe", "@arch glm4", "GP209", "glm4"),
    "a foreign type": ("ffn_gate_exps\\.weight$ = q4_K", "ffn_gate_exps\\.weight$ = iq4_k", "GP210", "iq4_k"),
    "too wide": ("token_embd\\.weight$ = q8_0", "token_embd\\.weight$ = f32", "GP211", "f32"),
    "too much": ("@assert bpw <= 6.3", "@assert bpw <= 5", "GP301", "bpw <= 5"),
    "a wrong test": ("weight -> q8_0", "weight -> q6_K", "GP302", "q6_K"),
    "a test of nothing": ("@test blk.3.ffn_down_exps", "@test blk.3.ffn_dow_exps", "GP302", None),
}  # fmt: skip


@cache
def report_of(name: str) -> Report:
    """The report of CLEAN with one of the mistakes."""
    right, wrong, _, _ = MISTAKES[name]
    assert CLEAN.count(right) == 1, right
    with tempfile.TemporaryDirectory() as folder:
        return check(Path(folder), CLEAN.replace(right, wrong))


def check(tmp_path: Path, text: str, model: str = "GLM-4.5-Air") -> Report:
    path = tmp_path / "air.recipe"
    path.write_text(text, newline="")
    return check_recipe(path, inventory(model))


def said(report: Report) -> list[Diagnostic]:
    return [d for d in report.diagnostics if d.severity != "note"]


def fixed(tmp_path: Path, report: Report) -> Report:
    """The report after all fixes, in as many rounds as it takes."""
    for _ in range(5):
        texts, count = report.fixed(unsafe=True)
        if not count:
            break
        (text,) = texts.values()
        report = check(tmp_path, text)
    return report


def under_the_carets(report: Report, finding: Diagnostic) -> str:
    start = finding.column - 1
    return report.source_line(finding)[start : start + finding.length]


def test_nothing_is_said_of_what_is_right(tmp_path: Path) -> None:
    report = check(tmp_path, CLEAN)
    assert report.diagnostics == ()
    assert report.clean


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_one_finding_at_its_place_and_a_fix(tmp_path: Path, name: str) -> None:
    _, _, code, marked = MISTAKES[name]
    report = report_of(name)
    (finding,) = said(report)
    assert finding.code == code
    assert finding.help
    if marked is not None:
        assert under_the_carets(report, finding) == marked
    if name in ("too much", "a wrong test"):  # what is promised, its author alone takes back
        assert finding.fix is None
        return
    assert finding.fix is not None
    assert fixed(tmp_path, report).clean


@pytest.mark.parametrize("text", ["size <= {:.1f} GiB", "bpw <= {:.3f}"])
def test_a_promise_that_is_missed_by_little_is_told_with_enough_digits(tmp_path: Path, text: str) -> None:
    fits = make_plan(inventory("GLM-4.5-Air"), parse_recipe(CLEAN)).tensors
    n_bytes = sum(t.n_bytes for t in fits)
    size = n_bytes / (1 << 30)
    value = 8 * n_bytes / sum(t.tensor.n_weights for t in fits) if "bpw" in text else size
    promise = text.format(value)
    if float(promise.split()[2]) >= value:  # rounded up: just below
        promise = text.replace(".1f", ".3f").replace(".3f", ".5f", "bpw" in text).format(value * (1 - 1e-5))
    report = check(tmp_path, CLEAN.replace("@assert bpw <= 6.3", f"@assert {promise}"))
    (finding,) = said(report)
    told = finding.message.partition("it is ")[2].split()[0]
    assert float(told) > float(promise.split()[2]), finding.message
    assert float(told) == pytest.approx(value, rel=1e-4)


TOGETHER = [
    "no equals sign", "a mix", "an open group", "a typing slip", "a bare dot", "backwards",
    "no whole blocks", "a small router", "a directive", "a lost block", "an unknown name",
]  # fmt: skip


def test_ten_mistakes_have_ten_findings(tmp_path: Path) -> None:
    text, expected = CLEAN, []
    for name in TOGETHER:
        if name in ("a lost block", "no whole blocks"):
            continue
        right, wrong, code, marked = MISTAKES[name]
        text = text.replace(right, wrong)
        expected.append((code, marked or r"^blk\.{1..46}\.ffn_dwon_exps\.weight$"))
    right, wrong = r"^blk\.{0..46}\.attn_output", r"^blk\.{0..45}\.attn_output"
    text = text.replace(right, wrong)
    expected.append(("GP107", "{0..45}"))
    report = check(tmp_path, text)
    found = [(d.code, under_the_carets(report, d)) for d in said(report)]
    assert sorted(found) == sorted((code, marked) for code, marked in expected)
    assert len(found) == 10
    assert fixed(tmp_path, report).clean


def test_two_mistakes_in_one_line_take_two_rounds(tmp_path: Path) -> None:
    text = CLEAN.replace(r"^token_embd\.weight$ = q8_0", "^token_embd.weight$ = q8O")
    report = check(tmp_path, text)
    assert [d.code for d in said(report)] == ["GP002"]
    assert fixed(tmp_path, report).clean


def test_safe_fixes_change_no_type_and_no_meaning() -> None:
    from ggplan.linting.case import make_case

    model = inventory("GLM-4.5-Air")
    for name, (right, wrong, code, _) in MISTAKES.items():
        report = report_of(name)
        texts, count = report.fixed()
        if not count or code < "GP017":
            continue
        before = make_case(model, parse_recipe(CLEAN.replace(right, wrong)))
        after = make_case(model, parse_recipe(texts[report.file]))
        assert [f.type for f in before.fitted] == [f.type for f in after.fitted], code


def test_the_finding_in_the_documentation_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(.*?)\n```", docs, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("air.recipe").write_text("output\\.weight = q8_0\nattn_output\\.weight = iq4_xs\n@default bf16\n")
    report = check_recipe("air.recipe", inventory("GLM-4.5-Air"))
    (finding,) = said(report)
    assert render(finding, report.source_line(finding)) == shown


def test_the_recipe_at_the_top_of_the_documentation_is_clean(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    first = re.findall(r"```recipe\n(.*?)```", docs, re.DOTALL)[0]
    assert said(check(tmp_path, first)) == []


def test_a_stale_copy_is_seen_through(tmp_path: Path) -> None:
    text = r"""
^token_embd\.weight$=bf16
^output
\.weight$=bf16
norm\.weight$=f32
^blk\.([0-9]|[1-8][0-9]|9[0-2])\.attn_(q|k|v|output)\.weight$=bf16
^blk\.([0-9]|[1-8][0-9]|9[0-2])\.attn_k_norm\.weight$=f32
^blk\.[0-2]\.ffn_(gate|up|down)\.weight$=bf16
^blk\.92\.nextn\.eh_proj\.weight$=bf16
^blk\.([3-9]|[1-8][0-9]|9[0-2])\.ffn_.*_(exps|shexp)\.weight$=bf16
""".replace("output\n", "output")
    found = said(check(tmp_path, text))
    assert [(d.code, d.line) for d in found] == [
        ("GP101", 6), ("GP101", 8), *[("GP107", 9)] * 6, ("GP108", 0),
    ]  # fmt: skip
    assert "attn_q" not in found[0].help  # GGUF has a word for it, this model has none


def test_costs_are_in_bytes(tmp_path: Path) -> None:
    right, wrong, _, _ = MISTAKES["no whole blocks"]
    (fallback,) = said(check(tmp_path, CLEAN.replace(right, wrong)))
    weights = 46 * 128 * 4096 * 1408
    assert fallback.cost_bytes == round(weights * (8.5 - 6.5625) / 8)
    (wide,) = said(
        check(tmp_path, CLEAN.replace("token_embd\\.weight$ = q8_0", "token_embd\\.weight$ = f32"))
    )
    assert wide.cost_bytes == 151552 * 4096 * 2


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_clean(name: str) -> None:
    assert said(check_recipe(name)) == []


def test_a_recipe_may_overrule_what_it_inherits(tmp_path: Path) -> None:
    path = tmp_path / "mine.recipe"
    path.write_text("@base glm4moe/balanced\n@role experts.down = q6_K | q8_0\n@role attention = q6_K\n")
    model = inventory("GLM-4.6")
    assert said(check_recipe(path, model)) == []
    assert said(check_plan(make_plan(model, load_recipe(path)))) == []


def test_a_recipe_finds_its_model() -> None:
    by_name = parse_recipe("# Model name: GLM-4.6\na = q8_0")
    assert str(getattr(subject_of(by_name), "path", None)) == "GLM-4.6"
    by_fit = parse_recipe("@arch glm4moe\n^blk\\.92\\.nextn\\.embed_tokens\\.weight$ = q8_0\n@default q8_0")
    assert str(getattr(subject_of(by_fit), "path", None)) == "GLM-4.5"
    assert subject_of(parse_recipe("a = q8_0")) is None
    assert str(getattr(subject_of(load_recipe("deepseek2/hq4_k")), "path", None)) == "DeepSeek-V3"


def test_without_a_model_the_text_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("@let A = b\nattn = q9_0\n")
    report = check_recipe(path)
    assert report.model is None
    assert [d.code for d in report.diagnostics] == ["GP017", "GP002"]


def test_mistakes_in_included_files_are_mended_there(tmp_path: Path) -> None:
    (tmp_path / "part.recipe").write_text("^token_embd.weight$ = q8_0\n")
    report = check(tmp_path, CLEAN.replace("^token_embd\\.weight$ = q8_0", "@include part.recipe"))
    (finding,) = said(report)
    assert (finding.code, Path(finding.file).name, finding.line) == ("GP106", "part.recipe", 1)
    assert report.fixed() == ({}, 0)  # other recipes may draw it in
    assert "--fix leaves part.recipe alone" in finding.help
    texts, count = report.fixed(unsafe=True)
    assert count == 1
    assert texts == {str(tmp_path / "part.recipe"): "^token_embd\\.weight$ = q8_0\n"}


def test_a_faulty_included_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "part.recipe").write_text("a( = q8_0\n")
    report = check(tmp_path, CLEAN + "@include part.recipe\n")
    assert [(d.code, Path(d.file).name) for d in said(report)] == [("GP003", "part.recipe")]


def test_windows_line_ends_survive_a_fix(tmp_path: Path) -> None:
    right, wrong, _, _ = MISTAKES["a bare dot"]
    report = check(tmp_path, "\ufeff" + CLEAN.replace(right, wrong).replace("\n", "\r\n"))
    texts, _ = report.fixed()
    assert list(texts.values()) == ["\ufeff" + CLEAN.replace("\n", "\r\n")]


FRAGMENTS = [
    "@default q8_0\n", "@role experts = q4_K\n", "attn", "output\\.weight", "ffn_gate", ".", "\\.", "{1..45}",
    "[12]", "{last 2}", "blk\\.", "^", "$", " = ", "q8_0", "q6_K", "Q4_K_M", "\n", "(", ")", "|", "${A}",
    "@let A = x\n", "@assert bpw <= 5\n", "@test output.weight -> q8_0\n", "@order last\n", "#", "\\D+", "*",
]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join))
def test_any_text_is_checked_and_mended_without_a_fault(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = check(Path(folder), text, "Qwen3-30B-A3B")
        for finding in report.diagnostics:
            assert 0 <= finding.line <= text.count("\n") + 1
            render(finding, report.source_line(finding))
        for _ in range(3):
            texts, count = report.fixed(unsafe=True)
            if not count:
                break
            report = check(Path(folder), texts[report.file], "Qwen3-30B-A3B")


HOSTILE = {
    "slow": "\n".join(rf"(a|b)*a(a|b){{{n % 60}}}b{n} = q8_0" for n in range(3_000)),
    "broad": ".* = q8_0\n" * 4_000,
    "catastrophic": "^(.+)+X$ = q8_0\n^(.*)*X$ = q8_0\n^(\\w+\\.?)+!$ = q8_0\n" * 500,
    "nested": "(?:" * 200 + "a" + "){1,2}" * 200 + " = q8_0",
    "open": "(" * 900 + " = q8_0\n" * 300,
    "misspelt": "\n".join(f"ffn_dwon_{n}exps = q8_0" for n in range(3_000)),
    "dots": "\n".join(f"^.*.*.*.*.*{n}.*x{n}.*$ = q8_0" for n in range(2_000)),
}


# Each recipe is checked in a copy of one process that has imported everything, so that its memory is its own.
FORKING = r"""
import os, re, sys, time
from ggplan.linting import check_recipe
from ggplan.inventories import inventory
inventory("GLM-4.5-Air")
for path in sys.argv[1:]:
    child = os.fork()
    if not child:
        begin = time.process_time()
        check_recipe(path)
        seconds = time.process_time() - begin
        # The peak of this program alone: ru_maxrss keeps that of the process it was forked from.
        peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]
        print(path, seconds, peak, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def used_by_strangers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    """Seconds and kilobytes that each recipe of `HOSTILE` takes."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = [folder / f"{name}.recipe" for name in HOSTILE]
    for path in paths:
        path.write_text("@arch glm4moe\n" + HOSTILE[path.stem] + "\n")
    done = subprocess.run(
        [sys.executable, "-c", FORKING, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=180,
    )
    lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    return {Path(path).stem: (float(seconds), float(peak)) for path, seconds, peak in lines}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_recipe_of_a_stranger_takes_long_or_much(
    used_by_strangers: dict[str, tuple[float, float]], name: str
) -> None:
    seconds, kilobytes = used_by_strangers[name]
    assert seconds < 3  # of a busy machine's time
    assert kilobytes < 200 * 1024


def test_all_trials_together_take_no_more_steps_than_one_recipe_may(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (format(n * 2654435761 % 2**64, "064b") for n in range(1, 21))
    names = [number.translate({48: "a", 49: "b"}) for number in numbers]
    infos = tuple(TensorInfo(name, (64, 64), parse_type("bf16"), "x.map", "bf16") for name in names)
    steps: list[int] = []

    def counted(recipe: Recipe, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        steps.append(recipe_steps(recipe, names))
        return ((),) * len(names)  # as if no rule matched

    monkeypatch.setattr(decisions, "match", counted)
    slow = "".join(f"(a|b)*a(a|b){{{n % 60}}}b{n} = q8_0\n" for n in range(500))
    dead = "".join(f"{name[:40]}.{name[41:]} x = q8_0\n{name[:30]}A = q8_0\n" for name in names)
    report = check_text(slow + dead, "x.recipe", None, Model(Path("x.map"), "inventory", "", {}, infos))
    assert report.diagnostics
    assert 1 < len(steps) < 15
    assert max(steps) < MAX_STEPS
    assert sum(steps) <= MAX_STEPS + max(steps)  # all trials, and the recipe itself


def applied(report: Report, *, unsafe: bool = False) -> str:
    texts, _ = report.fixed(unsafe=unsafe)
    return texts.get(report.file, report.texts[report.file])


def test_a_safe_fix_keeps_what_a_shadowed_rule_says(tmp_path: Path) -> None:
    text = "attn_ = q8_0\nattn_q\\. = q4_K\n@default q8_0\n"
    report = check(tmp_path, text)
    assert [(d.code, d.line) for d in said(report)] == [("GP102", 2)]
    assert ("GP213", 2) in {(d.code, d.line) for d in report.diagnostics}  # its biases
    assert applied(report) == text


def test_protected_tensors_of_several_types_have_no_safe_fix(tmp_path: Path) -> None:
    path = tmp_path / "x.map"
    line = "a.gguf:{sha}:{name}:shape={shape}:dtype=bf16:elements={n}:bytes={size}\n"
    text = ""
    for name, shape, n in (("attn_norm", (64,), 64), ("ffn_gate_inp", (64, 8), 512)):
        full = f"blk.0.{name}.weight"
        text += line.format(sha="0123456789abcdef" * 4, name=full, shape=shape, n=n, size=2 * n)
    path.write_text(text)
    recipe = tmp_path / "x.recipe"
    recipe.write_text("norm|inp = q8_0\n")
    (finding,) = said(check_recipe(recipe, open_model(str(path))))
    assert (finding.code, finding.fix) == ("GP202", None)
    assert "they stay f32 and bf16" in finding.help


def test_tensors_are_passed_over_each_for_its_own_reason(tmp_path: Path) -> None:
    report = check(tmp_path, ".* = iq2_xs\n")
    (message,) = [d.message for d in report.diagnostics if d.code == "GP213"]
    shown = re.findall(r"(\d+ tensors) \([^)]*\): ([a-z ]+);", message)
    assert shown == [("285 tensors", "they have one dimension"), ("46 tensors", "they are routers")]
    report = check(tmp_path, "^blk\\.7\\.ffn_gate_inp\\.weight$ = q8_0\n@default q8_0\n")
    (finding,) = said(report)
    assert finding.message == "`blk.7.ffn_gate_inp.weight`: it is the router; q8_0 is passed over"


def test_a_rule_for_a_missing_block_does_not_become_one_for_all(tmp_path: Path) -> None:
    for pattern in ("^blk\\.99\\.", "^blk\\.{98..99}\\.ffn_down_exps", "^blk\\.(98|99)\\.ffn_down_exps"):
        report = check(tmp_path, f"{pattern} = q2_K\n")
        (finding,) = [d for d in report.diagnostics if d.code == "GP101"]
        assert "the model has blocks 0 to 46" in finding.help, pattern
        assert finding.fix is None


@pytest.mark.parametrize(
    "pattern", [r"(blk\.99)\.ffn_up", r"(blk\.1|blk\.2)\.zzz", r"blk\.[9]{3}\.zzz", r"(blk\.9\d)"]
)
def test_block_numbers_in_groups_are_read_or_left_alone(tmp_path: Path, pattern: str) -> None:
    (finding,) = [d for d in check(tmp_path, f"{pattern} = q8_0\n").diagnostics if d.code == "GP101"]
    assert finding.help


def test_anchoring_is_advised_only_where_it_helps(tmp_path: Path) -> None:
    text = "attn_ = q8_0\nattn_q\\.weight = q6_K\n@default q8_0\n"
    (shadowed,) = said(check(tmp_path, text))
    assert shadowed.code == "GP102"
    assert "`^`" not in shadowed.help
    assert "narrow the pattern of line 1" in shadowed.help


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (r"ffn_down_exp\.weight", r"ffn_down_exps\.weight"),
        (r"^blk\.7\.ttn_q\.weight", r"^blk\.7\.attn_q\.weight"),
    ],
)
def test_a_word_that_lacks_a_letter_gets_the_nearest(tmp_path: Path, wrong: str, right: str) -> None:
    (dead,) = [d for d in check(tmp_path, f"{wrong} = q6_K\n").diagnostics if d.code == "GP101"]
    assert dead.help == f"write `{right}`"
