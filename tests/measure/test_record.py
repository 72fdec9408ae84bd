"""Records: what is kept comes back, what is merged is not lost, and a slip of the pen is told."""

import json
import time
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.errors import MeasureError
from ggplan.measure.parsing import parse_files
from ggplan.measure.record import (
    METRICS,
    Base,
    FileFacts,
    Measurement,
    Metric,
    ModelFacts,
    Part,
    Quantization,
    RecipeFacts,
    Record,
    Speed,
    Text,
    begin_merge,
    merge,
    record_to_csv,
)
from ggplan.measure.record_file import load_record, open_record, save_record
from ggplan.measure.record_json import record_from_json, record_schema, record_to_json

words = st.text(max_size=8)
counts = st.integers(0, 1 << 50)
numbers = st.floats(-1e9, 1e9)
metrics = st.builds(Metric, numbers, st.none() | numbers, st.sampled_from(["paired chunks", "none"]))
measurements = st.builds(
    Measurement,
    text=st.builds(Text, words, words),
    n_ctx=counts,
    n_chunks=counts,
    n_tokens=counts,
    engine=words,
    metrics=st.dictionaries(st.sampled_from(list(METRICS)), metrics, max_size=3),
    use=st.sampled_from(["choose", "held out", ""]),
    base=st.builds(Base, words, words, words),
    n_nan=counts,
)
quantizations = st.builds(
    Quantization,
    name=words,
    file=st.builds(FileFacts, words, words, counts, st.lists(words, max_size=2).map(tuple)),
    bpw=numbers,
    recipe=st.builds(RecipeFacts, words, words),
    parts=st.lists(st.builds(Part, words, words, counts, counts), max_size=2).map(tuple),
    measurements=st.lists(measurements, max_size=2).map(tuple),
    speeds=st.lists(st.builds(Speed, counts, st.none() | numbers), max_size=2).map(tuple),
)
records = st.builds(
    Record,
    st.builds(ModelFacts, words, words, counts),
    st.lists(
        quantizations, max_size=3, unique_by=(lambda q: q.name, lambda q: q.file.sha256 or ("name", q.name))
    ).map(tuple),
)


@given(records)
def test_records_survive_json(record: Record) -> None:
    assert record_from_json(json.loads(json.dumps(record_to_json(record)))) == record


@given(records)
def test_records_are_as_the_published_schema_says(record: Record) -> None:
    jsonschema.Draft202012Validator(record_schema()).validate(json.loads(json.dumps(record_to_json(record))))


def test_the_published_schema_is_the_codes() -> None:
    published = Path(__file__).parents[2] / "docs" / "record.schema.json"
    assert json.loads(published.read_text("utf-8")) == record_schema(), "run tools/make_docs.py"


def test_published_records_hold_to_the_schema() -> None:
    files = sorted((Path(__file__).parents[2] / "ppl_graphs" / "data").glob("*.json"))
    assert files
    for file in files:
        jsonschema.Draft202012Validator(record_schema()).validate(json.loads(file.read_text("utf-8")))
        record = load_record(file)
        assert record_to_csv(record) == file.with_suffix(".csv").read_text("utf-8")


@given(records)
def test_merging_a_record_with_itself_changes_nothing_but_repetitions(record: Record) -> None:
    assert merge(merge(record, record), record) == merge(record, record)


def measured(name: str, ppl: float, text: str = "a.txt", sha256: str = "") -> Quantization:
    m = Measurement(Text(text), 512, 10, 2550, "llama-perplexity", {"ppl": Metric(ppl)})
    return Quantization(name, FileFacts(f"{name}.gguf", sha256 or f"{name}'s", 10), measurements=(m,))


def test_merging_replaces_what_was_measured_again_and_keeps_the_rest() -> None:
    model = ModelFacts("m")
    old = Record(model, (measured("q8", 5.0), measured("q4", 6.0)))
    new = Record(ModelFacts("m", "llama"), (measured("q4", 6.5), measured("q4x", 7.0, "b.txt")))
    merged = merge(old, new)
    assert merged.model.architecture == "llama"
    assert [q.name for q in merged.quantizations] == ["q8", "q4", "q4x"]
    assert [m.metrics["ppl"].value for m in merged.quantizations[1].measurements] == [6.5]


def test_another_file_under_an_old_name_does_not_inherit() -> None:
    old = Record(ModelFacts("m"), (measured("q4", 6.0, "a.txt", "1" * 64),))
    new = Record(ModelFacts("m"), (measured("q4", 9.0, "b.txt", "2" * 64),))
    merged = merge(old, new)
    assert {q.name: [m.text.name for m in q.measurements] for q in merged.quantizations} == {
        "q4 (11111111)": ["a.txt"],
        "q4 (22222222)": ["b.txt"],
    }
    assert merge(merged, new) == merged


def test_a_file_is_known_by_its_digest_whatever_it_is_called() -> None:
    old = Record(ModelFacts("m"), (measured("q4", 6.0, "a.txt", "1" * 64),))
    new = Record(ModelFacts("m"), (measured("model-q4", 9.0, "a.txt", "1" * 64),))
    (merged,) = merge(old, new).quantizations
    assert merged.name == "q4"
    assert [m.metrics["ppl"].value for m in merged.measurements] == [9.0]


def test_what_a_log_says_belongs_to_the_only_file_of_its_name() -> None:
    speeds = (Speed(0, 900.0, 30.0),)
    log = Record(ModelFacts("m"), (Quantization("q4", speeds=speeds),))
    one = Record(ModelFacts("m"), (measured("q4", 6.0, sha256="1" * 64),))
    (merged,) = merge(one, log).quantizations
    assert merged.speeds == speeds
    assert merged.file.sha256 == "1" * 64
    assert merge(log, one).quantizations[0].speeds == speeds
    two = merge(one, Record(ModelFacts("m"), (measured("q4", 9.0, sha256="2" * 64),)))
    assert [q.name for q in merge(two, log).quantizations] == ["q4 (11111111)", "q4 (22222222)", "q4"]
    other_size = Record(ModelFacts("m"), (Quantization("q4", FileFacts(n_bytes=99), speeds=speeds),))
    assert len(merge(one, other_size).quantizations) == 2


def test_figures_beside_two_bases_are_both_kept() -> None:
    def beside(base: Base, kld: float) -> Record:
        m = Measurement(Text("a.txt", "t"), 512, 10, 2550, "e", {"kld": Metric(kld)}, base)
        return Record(ModelFacts("m"), (Quantization("q4", FileFacts(sha256="1"), measurements=(m,)),))

    bf16, q8 = Base("bf16", "b"), Base("q8_0", "c")
    (merged,) = merge(beside(bf16, 0.3), beside(q8, 0.2)).quantizations
    assert [(m.base, m.metrics["kld"].value) for m in merged.measurements] == [(bf16, 0.3), (q8, 0.2)]


def test_records_of_two_models_do_not_mix() -> None:
    with pytest.raises(MeasureError, match="of a 1 and of b") as caught:
        merge(Record(ModelFacts("a 1")), Record(ModelFacts("b")))
    assert "`--model-name 'a 1'`" in caught.value.hint
    with pytest.raises(MeasureError, match=r"a \(llama\) and of a \(glm4moe\)") as caught:
        merge(Record(ModelFacts("a", "llama")), Record(ModelFacts("a", "glm4moe")))
    assert "--model-name" not in caught.value.hint


def test_the_csv_has_a_line_for_each_metric() -> None:
    table = record_to_csv(Record(ModelFacts("m"), (measured("q8", 5.0),))).splitlines()
    assert len(table) == 2
    assert table[1] == "m,q8,10,,a.txt,,512,10,2550,llama-perplexity,,ppl,5,,none,0,"


def test_the_csv_is_empty_where_nothing_is_known(tmp_path: Path) -> None:
    bare = Quantization("q", measurements=(Measurement(Text("t"), 0, 0, 0, "", {"ppl": Metric(5.0)}),))
    table = record_to_csv(Record(ModelFacts("m"), (bare,)))
    assert table.splitlines()[1] == "m,q,,,t,,,,,,,ppl,5,,none,0,"
    (tmp_path / "t.csv").write_text(table)
    (again,) = parse_files(tmp_path / "t.csv")
    assert again == Record(ModelFacts("m"), (bare,))


def test_a_log_that_is_no_record_points_to_what_reads_it(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("0.00 I system_info\n")
    with pytest.raises(MeasureError, match="is not a record") as caught:
        load_record(tmp_path / "x.log")
    assert "`ggplan.measure.parse_files`" in caught.value.hint


GOOD = {"schema": "ggplan.record/3", "model": {"name": "m"}, "quantizations": [{"name": "q"}]}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], "other", "schema"),
        (["schema"], "ggplan.record/0", "schema"),
        (["schema"], "ggplan.record/4", "its version is 4, and this ggplan reads versions up to 3"),
        (["model"], {}, 'no "name"'),
        (["model", "colour"], 1, "unknown key 'colour'"),
        (["model", "n_weights"], -1, "not a count"),
        (["model", "n_weights"], True, "not a count"),
        (["model", "name"], 1, "not a text"),
        (["quantizations"], {}, "not a list"),
        (["quantizations", 0, "bpw"], "4", "not a number"),
        (["quantizations", 0, "bpw"], float("inf"), "not a number"),
        (["quantizations", 0, "measurements"], [{}], 'no "text"'),
        (["quantizations"], [{"name": "q"}, {"name": "q"}], "two quantizations are named"),
        (
            ["quantizations"],
            [{"name": "q", "file": {"sha256": "1"}}, {"name": "p", "file": {"sha256": "1"}}],
            "two quantizations have the digest",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, path: list, value: object, message: str) -> None:
    broken = json.loads(json.dumps(GOOD))
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    file = tmp_path / "r.json"
    file.write_text(json.dumps(broken))
    with pytest.raises(MeasureError, match=message) as error:
        load_record(file)
    assert "r.json" in error.value.message


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"a":', "\xff"])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(MeasureError, match=r"r\.json is not a record"):
        load_record(file)


def test_saving_leaves_one_file(tmp_path: Path) -> None:
    record = record_from_json(GOOD)
    save_record(record, tmp_path / "r.json")
    save_record(record, tmp_path / "r.json")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert load_record(tmp_path / "r.json") == record
    with pytest.raises(MeasureError, match="cannot write"):
        save_record(record, tmp_path / "no" / "r.json")


OLD = Path(__file__).parents[1] / "data" / "records"


@pytest.mark.parametrize("version", [1, 2])
def test_old_records_are_read(version: int) -> None:
    raw = json.loads((OLD / f"version-{version}.json").read_text("utf-8"))
    assert raw["schema"] == f"ggplan.record/{version}"
    record = load_record(OLD / f"version-{version}.json")
    # One file was measured under two names: it is one quantization, with the later figures.
    assert [q.name for q in record.quantizations] == ["bf16", "pure_q8_0", "pure_q6_K"]
    bf16, q8, q6 = record.quantizations
    assert [m.use for m in q8.measurements] == ["choose", "held out"]
    assert q8.measurements[0].metrics["ppl"].value == 23.25
    assert q8.measurements[0].date == "2026-11-23"
    for q in (bf16, q8, q6):
        assert {m.base for m in q.measurements} == {Base("bf16", bf16.file.sha256)}
    kept = raw["quantizations"][2]["measurements"][0]["metrics"]
    names = {"kld_mean": "kld", "kld_90": "kld90", "kld_99": "kld99", "kld_999": "kld999"}
    assert {name: m.value for name, m in q6.measurements[0].metrics.items()} == {
        names.get(name, name): metric["value"] for name, metric in kept.items()
    }
    assert record_from_json(record_to_json(record)) == record


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        {"quantizations": {}},
        {"quantizations": [1]},
        {"quantizations": [{"name": "q", "measurements": 1}]},
        {"quantizations": [{"name": "q", "measurements": [{"metrics": 1}]}]},
        {"quantizations": [{"name": ["q"]}]},
        {"quantizations": [{"name": "q", "file": {"sha256": "1"}, "speeds": 1}] * 2},
        {"model": 1},
    ],
)
def test_damaged_old_records_are_refused_by_name(tmp_path: Path, version: int, change: dict) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(GOOD | {"schema": f"ggplan.record/{version}"} | change))
    with pytest.raises(MeasureError, match=r"r\.json is not a record"):
        load_record(file)


def test_a_record_is_locked_while_something_is_added(tmp_path: Path) -> None:
    path, link = tmp_path / "r.json", tmp_path / "link.json"
    save_record(Record(ModelFacts("m"), (measured("q8", 5.0),)), path)
    link.symlink_to(path)
    (tmp_path / "r.json.lock").touch()  # left by a run that was killed
    with open_record(path) as kept:
        for name in (path, link):
            with pytest.raises(MeasureError, match="another run"), open_record(name):
                pass
        kept.add(Record(ModelFacts("m"), (measured("q4", 6.0),)))
    with open_record(link) as kept:
        assert kept.record is not None
        assert [q.name for q in kept.record.quantizations] == ["q8", "q4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.json", "r.json"]


def test_what_is_no_record_is_not_opened_for_adding(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("not a record")
    with pytest.raises(MeasureError, match="is not a record"), open_record(tmp_path / "r.json"):
        pass
    with pytest.raises(MeasureError, match="cannot write"), open_record(tmp_path / "no" / "r.json"):
        pass
    assert (tmp_path / "r.json").read_text() == "not a record"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_names_that_are_not_unicode_are_kept(tmp_path: Path) -> None:
    record = Record(ModelFacts("m"), (measured("q\udcff", 5.0),))
    save_record(record, tmp_path / "r.json")
    assert load_record(tmp_path / "r.json") == record


def test_thousands_of_records_are_put_together_in_time() -> None:
    """Each is looked up by name and digest: one pass over all for each took minutes."""
    records = [
        Record(
            ModelFacts("m"), (Quantization(f"q{i % 3000}", FileFacts(sha256=f"{i:064x}" if i % 2 else "")),)
        )
        for i in range(4000)
    ]
    began = time.process_time()
    merging = begin_merge(records[0])
    for record in records[1:]:
        merging.add(record)
    merged = merging.record()
    assert time.process_time() - began < 5
    assert len(merged.quantizations) == 4000 - 500  # those without a digest come back after 3000
    few, one_by_one = begin_merge(records[0]), records[0]
    for record in records[1:40]:
        few.add(record)
        one_by_one = merge(one_by_one, record)
    assert few.record() == one_by_one
