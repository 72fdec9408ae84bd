"""Published tables as people write them: other names of columns, other separators, marks for no figure."""

import time
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
        "line 4: q3 has no ppl (404); the row is left out",
        "line 5: q2: the bpw '-1', which cannot be; it is left out",
        "line 6: q1 has no ppl (inf); the row is left out",
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


def kept(tmp_path: Path, text: str, name: str = "t.md") -> tuple[list[Quantization], list[str]]:
    path, notes = tmp_path / name, list[str]()
    path.write_text(text, encoding="utf-8")
    found = [q for record in parse_files([path], note=notes.append) for q in record.quantizations]
    return found, [note.split(f"{name}: ", 1)[1].removesuffix("; it is left out") for note in notes]


SPELLINGS = {
    "kld999": "kld_999,kld_p999,KLD p99.9,99.9% KLD,p99.9 KLD,KL 99.9 %,kld999",
    "kld99": "kld_p99,kld_99,99th percentile KLD,KLD@99%,99% kl-div,KLD 99.0%",
    "kld90": "kld_p90,90 % KLD",
    "same_top": "top1,top-1,Top 1 match,same_top_p,top token agreement,Same top p",
}


@pytest.mark.parametrize(
    ("heading", "kind"), [(h, kind) for kind, names in SPELLINGS.items() for h in names.split(",")]
)
def test_spellings_of_percentiles_and_shares(tmp_path: Path, heading: str, kind: str) -> None:
    (entry,), notes = kept(tmp_path, f"name,ppl,{heading}\nQ8_0,6.1,0.5\n", "t.csv")
    assert (row(entry)[3], notes) == ({"ppl": 6.1, kind: 0.5}, [])


@pytest.mark.parametrize("comma", ["5,1234", "0,5", "12,34"])
def test_decimal_commas_of_markdown(tmp_path: Path, comma: str) -> None:
    text = f"| Quant | PPL | bpw | size |\n|---|---|---|---|\n| Q4_K | {comma} | 4,5 | 24,6 GiB |\n"
    found, notes = kept(tmp_path, text.replace("0,5", "10,5"))
    value = float(comma.replace("0,5", "10,5").replace(",", "."))
    assert [row(q) for q in found] == [("Q4_K", 24.6, 4.5, {"ppl": value})]
    assert notes == []


def test_a_comma_that_may_be_of_thousands_is_not_guessed(tmp_path: Path) -> None:
    rows = "| Q8_0 | 5.5 | 8.5 |\n| IQ1 | 1,234.5 | 4,5x |\n| Q2 | 9.5 | 4,5 |\n"
    found, notes = kept(tmp_path, f"| Quant | PPL | bpw |\n|---|---|---|\n{rows}")
    assert [(q.name, q.bpw) for q in found] == [("Q8_0", 8.5), ("Q2", 0.0)]
    assert notes == [
        "line 4: IQ1: the ppl '1,234.5' is not a number",
        "line 5: Q2: the bpw '4,5', which cannot be",
    ]
    found, _ = kept(tmp_path, "| Quant | PPL | KLD |\n|---|---|---|\n| Q8_0 | 5,123 | 0,0123 |\n")
    assert row(found[0])[3] == {"ppl": 5.123, "kld": 0.0123}


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ("5.1 | 0.5 | 0.1 | 0.05 | 94", "its kld and kld_max cannot be, 0.5 and 0.1"),
        ("5.1 | 0.1 | 0.5 | 0.7 | 94", "its kld99 and kld_max cannot be"),
        ("5.1 | 0.1 | 0.5 | 0.3 | 250", "the same top 250 cannot be"),
        ("5.1 | 0.1 | 0.5 | 0.3 | -1", "the same top -1 cannot be"),
    ],
)
def test_figures_that_contradict_each_other_are_left_out(tmp_path: Path, cells: str, why: str) -> None:
    head = "| quant | PPL | KLD | max KLD | 99% KLD | same top |\n|---|---|---|---|---|---|\n"
    found, notes = kept(tmp_path, f"{head}| Q8 | 5 | 0.1 | 0.9 | 0.5 | 97 |\n| Q4 | {cells} |\n")
    assert [q.name for q in found] == ["Q8"]
    assert len(notes) == 1
    assert why in notes[0]


def test_cells_that_are_not_read_in_a_row_that_is(tmp_path: Path) -> None:
    csv = "name,ppl,KLD 99%,Same top\nQ8_0,4.58,0.05,98\nIQ1,404,0.05,98\nQ2,5.1 ± -3,,\nQ3,.5e1,,\n"
    found, notes = kept(tmp_path, csv, "t.csv")
    assert [row(q)[3].get("ppl") for q in found] == [4.58, None, 5.1, 5.0]
    assert notes == [
        "line 3: IQ1: the ppl '404', which is no figure",
        "line 4: Q2: the error '-3' of its ppl, which cannot be",
    ]


@pytest.mark.parametrize("heading", ["TG t/s", "Speed (tok/s)", "HellaSwag", "tg128"])
def test_a_second_table_of_other_figures_is_told(tmp_path: Path, heading: str) -> None:
    table = "| Quant | PPL |\n|---|---|\n| Q8_0 | 5.5 |\n\n| Quant | {} |\n|---|---|\n| Q8_0 | 55.5 |\n"
    found, notes = kept(tmp_path, table.replace("{}", heading))
    assert len(found) == 1
    assert notes == [f"line 5: a table of {heading}, which ggplan does not read from tables"]
    assert kept(tmp_path, table.replace("{}", "Link"))[1] == []


def test_points_of_json_are_as_tolerant_as_a_table(tmp_path: Path) -> None:
    text = (
        '[{"name":"Q2_K","ppl":null,"size":1},{"name":"Q4_K","ppl":5.5,"size":"68.01 GiB","kld":0.1},'
        '{"name":"Q8","ppl":"5,4321","size":70,"bpw":"x"}, {"name":"Q6","ppl":"404"}]'
    )
    found, notes = kept(tmp_path, text.replace("5,4321", "5.4"), "t.json")
    assert [row(q) for q in found] == [
        ("Q4_K", 68.01, 0.0, {"ppl": 5.5, "kld": 0.1}),
        ("Q8", 70.0, 0.0, {"ppl": 5.4}),
    ]
    assert notes == [
        "point 1: Q2_K has no ppl or kld; the point is left out",
        "point 4: Q6 has no ppl (404) or kld; the point is left out",
        "point 3: Q8: the bpw 'x', which cannot be",
    ]


HOSTILE = {
    "brackets in a heading": "| quant | ppl | " + "(" * 200_000 + " |\n|---|---|---|\n| a | 5.5 | x |\n",
    "blanks in a heading": "| quant | ppl | a" + " " * 200_000 + "b |\n|---|---|---|\n| a | 5.5 | x |\n",
    "brackets in a cell": "| quant | ppl |\n|---|---|\n| " + "[" * 200_000 + " | 5.5 |\n| a | 5.5 |\n",
    "brackets in cells": "| quant | ppl |\n|---|---|\n" + f"| {'[' * 1900} | 5.5 |\n" * 300,
    "links in cells": "| quant | ppl |\n|---|---|\n" + f"| {'[a](b' * 380} | 5.5 |\n" * 300,
    "blanks in figures": "| quant | ppl |\n|---|---|\n| b | 5.5 |\n" + f"| a | 5{' ' * 1900}x |\n" * 300,
    "commas in figures": "| quant | ppl |\n|---|---|\n| b | 5.5 |\n" + f"| a | {'1,' * 900}x |\n" * 300,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tables_take_linear_time(tmp_path: Path, kind: str) -> None:
    started = time.process_time()
    found, _ = kept(tmp_path, HOSTILE[kind])
    assert found
    assert time.process_time() - started < 3
