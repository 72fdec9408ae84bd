"""Tables of sensitivities as they are published, by the library and by `ggplan inspect`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggplan.allocation import read_sensitivities
from ggplan.cli import cli
from ggplan.errors import MeasureError

TENSORS = """\
QTYPE,blk.0.attn_k.weight,blk.0.ffn_down.weight,blk.1.ffn_down.weight,output.weight
iq1_kt,0.0054,404,,0.144066
q4_k_r4,0.0011,0,0.002,0.01
"""
CURVE = "QTYPE,bpw,group0\niq1_bn,404,14.874413\nbf16,16.003650,0\nq8_0,8.505360,0.004892\niq2_s,2.5,0\n"


def table(tmp_path: Path, text: str, name: str = "kld_results.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def inspect(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    (found,) = read_sensitivities(table(tmp_path, TENSORS))
    assert (found.figure, found.of, found.types) == ("kld", "tensor", ("iq1_kt", "q4_k_r4"))
    assert found.of_tensor("blk.0.attn_k.weight") == {"iq1_kt": 0.0054, "q4_k_r4": 0.0011}
    assert found.of_tensor("blk.0.ffn_down.weight") == {}
    assert found.of_tensor("blk.1.ffn_down.weight") == {"q4_k_r4": 0.002}
    assert found.of_tensor("blk.10.attn_k.weight") == {}
    assert found.places[1].missing == ("iq1_kt", "q4_k_r4")
    assert found.marks == {"404": 1, "empty": 1, "0": 1}


def test_a_curve_of_the_whole_model(tmp_path: Path) -> None:
    (found,) = read_sensitivities(table(tmp_path, CURVE))
    assert found.of == "model"
    assert found.of_tensor("any.weight") == {"iq1_bn": 14.874413, "bf16": 0.0, "q8_0": 0.004892}
    assert found.places[0].missing == ("iq2_s",)
    assert found.bpw == {"bf16": 16.00365, "q8_0": 8.50536, "iq2_s": 2.5}


def test_a_line_for_each_tensor(tmp_path: Path) -> None:
    text = (
        "# mean KL divergence of M when this tensor alone is iq1_m_r4; columns are ne0\n# source: Somebody\n"
        "tensor,columns,rows,slices,kld\nblk.0.attn_k.weight,4096,1024,1,0.0054\n"
        "blk.0.indexer.proj.weight,6144,32,1,0.0\n"
    )
    (found,) = read_sensitivities(table(tmp_path, text, "GLM.csv"))
    assert found.of_tensor("blk.0.attn_k.weight") == {"iq1_m_r4": 0.0054}
    assert found.places[1].missing == ("iq1_m_r4",)
    assert "source: Somebody" in inspect(tmp_path / "GLM.csv")


def test_a_line_for_each_tensor_and_a_column_for_each_type(tmp_path: Path) -> None:
    text = "tensor,rows,Q4_K,q8_0\nblk.0.attn_q.weight,64,0.12,0.01\nblk.0.ffn_down.weight,64,404,0.02\n"
    (found,) = read_sensitivities(table(tmp_path, text))
    assert (found.figure, found.of, found.types) == ("kld", "tensor", ("q4_K", "q8_0"))
    assert found.of_tensor("blk.0.attn_q.weight") == {"q4_K": 0.12, "q8_0": 0.01}
    assert found.of_tensor("blk.0.ffn_down.weight") == {"q8_0": 0.02}
    assert (found.places[1].missing, found.marks) == (("q4_K",), {"404": 1})
    bare = table(tmp_path, text, "two.csv")
    with pytest.raises(MeasureError, match="says what its figures are"):
        read_sensitivities(bare)
    (named,) = read_sensitivities(bare, figure="ppl")
    assert (named.figure, named.places) == ("ppl", found.places)
    assert "blk.*.attn_q.weight" in inspect(bare, "--figure", "ppl")


def test_a_line_for_each_model(tmp_path: Path) -> None:
    path = table(tmp_path, "model,bf16,q8_0\nA,0.0,0.002\nB,0.0,0.0\n", "kld.csv")
    first, second = read_sensitivities(path)
    assert (first.model, dict(first.places[0].figures)) == ("A", {"bf16": 0.0, "q8_0": 0.002})
    assert (second.model, second.places[0].missing) == ("B", ("q8_0",))


def test_shares_of_equal_tokens_may_be_0(tmp_path: Path) -> None:
    path = table(tmp_path, "QTYPE,group0\nbf16,404\niq2_bn,0.000\nq4_K,93.5%\n", "topp_results_partial.csv")
    (found,) = read_sensitivities(path)
    assert (found.figure, dict(found.places[0].figures)) == ("top_p", {"iq2_bn": 0.0, "q4_K": 93.5})


def test_groups_by_their_patterns(tmp_path: Path) -> None:
    path = table(tmp_path, "QTYPE,group0,group1\nq4_K,0.5,0.1\n")
    with pytest.raises(MeasureError, match="line 1: group1 is a group whose tensors"):
        read_sensitivities(path)
    (found,) = read_sensitivities(path, groups={"group1": r"ffn_.*_exps", "group0": r"attn_"})
    assert found.of == "group"
    assert found.of_tensor("blk.3.ffn_up_exps.weight") == {"q4_K": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("QTYPE,a.weight\nq99,0.1\n", "line 2: "),
        ("QTYPE,a.weight\nq4_K,x\n", "line 2, column a.weight: 'x' is not a number"),
        ("QTYPE,a.weight\nq4_K,0.1,0.2\n", "line 2: it has 3 cells, and the heading 2"),
        ("QTYPE,a.weight\nq4_K,0.1\nq4_k,0.2\n", "line 3: q4_K is also on line 2"),
        ("QTYPE,a.weight,a.weight\nq4_K,0.1,0.2\n", "line 1: two columns are called 'a.weight'"),
        ("QTYPE,layers\nq4_K,0.1\n", "line 1: the column 'layers' is neither a tensor nor a group"),
        ("QTYPE,a.weight\nq4_K,-5\n", "line 2, column a.weight: -5 cannot be"),
        ("QTYPE,a.weight\n", "no line below its heading"),
        ("QTYPE,bpw,ppl\nq4_K,4.5,4.6\n", "a table of results of whole files"),
        ("tensor,depth,kld\na.weight,1,0.1\n", "line 1: the column 'depth' is not known"),
        ("tensor,q4_K,depth\na.weight,0.1,2\n", "line 1: unknown tensor type `depth`"),
        ("tensor,q4_K,Q4_K\na.weight,0.1,2\n", "line 1: two columns are of q4_K"),
        ("model,q4_K,q4_k\nA,0.1,2\n", "line 1: two columns are of q4_K"),
        ("tensor,q4_K\na.weight,0.1\na.weight,0.2\n", "line 3: a.weight is also on line 2"),
        ("tensor,q4_K\n7,0.1\n", "line 2: '7' is no name of a tensor"),
        ("tensor,q4_K,kld\na.weight,0.1,0.2\n", "line 1: the column 'q4_K' is not known"),
        ("tensor,kld\na.weight,0.1\n", "which type the tensors had"),
        ("# when this tensor alone is q4_K\ntensor,kld\n7,0.1\n", "line 3: '7' is no name of a tensor"),
    ],
)
def test_what_is_not_known_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MeasureError) as error:
        read_sensitivities(table(tmp_path, text))
    assert error.value.message.startswith(str(tmp_path / "kld_results.csv"))
    assert message in error.value.message


def test_what_the_figures_are_must_be_said(tmp_path: Path) -> None:
    path = table(tmp_path, CURVE, "regex_results.csv")
    with pytest.raises(MeasureError, match="says what its figures are") as error:
        read_sensitivities(path)
    assert "--figure" in error.value.hint
    assert "perplexity, of the model with all tensors" in inspect(path, "--figure", "ppl")


def test_inspect_shows_a_table(tmp_path: Path) -> None:
    path = table(tmp_path, TENSORS)
    shown = inspect(path)
    assert "mean KL divergence" in shown
    assert "with this tensor alone at the type" in shown
    assert "not measured: 3 figures (1 by 404, 1 by empty, 1 by 0)" in shown
    (line,) = [line for line in shown.splitlines() if "blk.*.ffn_down.weight" in line and "q4_k_r4" in line]
    assert line.split()[2:] == ["1", "1", "0.002", "0.002", "0.002"]
    assert "not measured" in inspect(path, "--tensors")
    value = json.loads(inspect(path, "--json"))
    assert (value["figure"], value["of"]) == ("kld", "tensor")
    assert value["places"][0] == {
        "name": "blk.0.attn_k.weight",
        "pattern": r"^blk\.0\.attn_k\.weight$",
        "figures": {"iq1_kt": 0.0054, "q4_k_r4": 0.0011},
        "missing": [],
    }
    assert "8.505" in inspect(table(tmp_path, CURVE, "curve_kld.csv"))


def test_options_that_are_of_models_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, TENSORS)
    assert CliRunner().invoke(cli, ["inspect", str(path), "--pre", "glm4"]).exit_code == 2
    assert CliRunner().invoke(cli, ["inspect", "GLM-4.5-Air", "--figure", "kld"]).exit_code == 2


def test_a_figure_that_the_table_contradicts_is_refused(tmp_path: Path) -> None:
    comment = "# mean KL divergence of M when this tensor alone is iq1_kt\n"
    for text, who in (
        (f"{comment}tensor,kld\na.weight,0.1\n", "its comments say that its figures are kld, not ppl"),
        ("tensor,type,kld\na.weight,q4_K,0.1\n", "its column says that its figures are kld, not ppl"),
        (f"{comment}QTYPE,a.weight\nq4_K,0.1\n", "its comments say that its figures are kld, not ppl"),
    ):
        with pytest.raises(MeasureError, match=who):
            read_sensitivities(table(tmp_path, text), figure="ppl")
        assert read_sensitivities(table(tmp_path, text), figure="kld")[0].figure == "kld"
    path = table(tmp_path, TENSORS)  # kld_results.csv
    done = CliRunner().invoke(cli, ["inspect", str(path), "--figure", "ppl"])
    assert done.stderr == "note: by its name the file holds kld; it is read as ppl\n"
    assert CliRunner().invoke(cli, ["inspect", str(path), "--figure", "ppl", "-q"]).stderr == ""


def test_a_perplexity_in_per_cent_is_a_loss(tmp_path: Path) -> None:
    text = "QTYPE,a.weight,b.weight,c.weight\niq1_m,0.01%,-0.5%,404\nq4_K,0.00%,404%,\n"
    path = table(tmp_path, text, "ppl_results.csv")
    for (found,) in (read_sensitivities(path), read_sensitivities(path, figure="ppl")):
        assert found.figure == "dppl"
        assert [dict(place.figures) for place in found.places] == [
            {"iq1_m": 0.01, "q4_K": 0.0},
            {"iq1_m": -0.5},
            {},
        ]
    assert "loss of perplexity from the unquantized model's, per cent" in inspect(path)
    by_line = table(tmp_path, "tensor,type,ppl\na.weight,q4_K,0.1%\n", "x.csv")
    assert read_sensitivities(by_line)[0].figure == "dppl"
    (plain,) = read_sensitivities(table(tmp_path, "QTYPE,a.weight\nq4_K,5.1\n", "ppl_results.csv"))
    assert plain.figure == "ppl"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "ppl_results.csv",
            "QTYPE,a.weight\nq4_K,5.1\nq8_0,0.1%\n",
            "line 3, column a.weight: '0.1%' is per cent, and '5.1' on line 2 is not",
        ),
        (
            "kld_results.csv",
            "QTYPE,a.weight\nq4_K,0.1%\n",
            "line 2, column a.weight: '0.1%' is per cent, and a KL divergence is in nats",
        ),
        ("kld_results.csv", "tensor,depth,width\na.weight,0.1,0.2\n", "the column 'depth' is not known"),
    ],
)
def test_what_is_no_figure_of_the_table(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(MeasureError) as caught:
        read_sensitivities(table(tmp_path, text, name))
    assert message in caught.value.message
    if "not known" in message:
        assert "tensor, type and one of kld" in caught.value.hint
