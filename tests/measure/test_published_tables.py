"""Published tables as people write them: other names of columns, other separators, marks for no figure."""

from pathlib import Path

import pytest
from test_runs import entries

from ggplan.errors import MeasureError
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import Quantization


def row(q: Quantization) -> tuple[str, float, float, dict[str, float]]:
    """Name, size in GiB, bits per weight and figures."""
    values = {name: m.value for name, m in q.measurements[0].metrics.items()}
    return q.name, round(q.file.n_bytes / 2**30, 3), q.bpw, values


@pytest.mark.parametrize(
    ("text", "size", "figures"),
    [
        ("name,size_gib,ppl,mean_kld\nQ8_0,24.5,6.123,0.0004\n", 24.5, {"ppl": 6.123, "kld": 0.0004}),
        ("Quant,PPL,KLD mean\nQ8_0,6.123,0.0004\n", 0, {"ppl": 6.123, "kld": 0.0004}),
        ("quant,size_mb,kl_divergence\nQ8_0,2147.483648,0.01\n", 2, {"kld": 0.01}),
        ("name\tsize_gib\tppl\nQ8_0\t24.5\t6.1\n", 24.5, {"ppl": 6.1}),
        ("Quant;Size (GiB);PPL;KLD\nQ8_0;24,5;6,123;0,0004\n", 24.5, {"ppl": 6.123, "kld": 0.0004}),
        ("Quant,PPL,Max KLD\nQ8_0,6.1 ± 0.04,1.5\n", 0, {"ppl": 6.1, "kld_max": 1.5}),
    ],
)
def test_spellings_of_columns_and_separators(
    tmp_path: Path, text: str, size: float, figures: dict[str, float]
) -> None:
    (entry,) = entries(text, tmp_path / "t.csv")
    assert row(entry) == ("Q8_0", size, 0.0, figures)


def test_marks_are_no_figures_and_what_is_not_read_is_told(tmp_path: Path) -> None:
    path, notes = tmp_path / "t.csv", list[str]()
    path.write_text(
        "QTYPE,size,bpw,ppl\nq8_0,24600,8.5,4\nq4,,4,0\nq3,,3,404\nq2,,-1,5\nq1,,1.5,inf\n", encoding="utf-8"
    )
    (record,) = parse_files([path], note=notes.append)
    assert [row(q) for q in record.quantizations] == [
        ("q8_0", 0.0, 8.5, {"ppl": 4.0}),
        ("q2", 0.0, 0.0, {"ppl": 5.0}),
    ]
    assert {n.split(": ", 1)[1] for n in notes} == {
        "line 2: q8_0: the size '24600', which has no unit; it is left out",
        "line 3: q4: the ppl 0 cannot be: none is below 1; the row is left out",
        "line 4: q3 has no ppl; the row is left out",
        "line 5: q2: the bpw '-1', which cannot be; it is left out",
        "line 6: q1 has no ppl; the row is left out",
    }


def test_tables_below_two_headings_are_of_two_models(tmp_path: Path) -> None:
    table = "| Quant | PPL |\n|---|---|\n| Q8_0 | {}.1 |\n| Q4_K_M | {}.3 |\n\n"
    path = tmp_path / "t.md"
    path.write_text(
        "## Model-A\n" + table.replace("{}", "6") + "## Model-B\n" + table.replace("{}", "7"),
        encoding="utf-8",
    )
    found = [(r.model.name, q.name, row(q)[3]["ppl"]) for r in parse_files([path]) for q in r.quantizations]
    assert found == [
        ("Model-A", "Q8_0", 6.1),
        ("Model-A", "Q4_K_M", 6.3),
        ("Model-B", "Q8_0", 7.1),
        ("Model-B", "Q4_K_M", 7.3),
    ]
    path.write_text("## Results\n" + table.replace("{}", "6"), encoding="utf-8")
    assert [r.model.name for r in parse_files([path])] == ["unnamed model"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("| Model | Wikitext PPL | C4 PPL |\n|---|---|---|\n| Q8_0 | 6.1 | 9.1 |\n", "Wikitext PPL, C4 PPL"),
        ("| | Q8_0 | Q6_K |\n|---|---|---|\n| PPL | 6.12 | 6.15 |\n", "line 3: a table with PPL in a row"),
        ("when,PPL\nmonday,6.1\n", "without a column of names"),
    ],
)
def test_a_table_that_nearly_fits_says_what_it_lacks(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "t.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MeasureError, match=why):
        parse_files([path])
