"""Records: what is kept comes back, what is merged is not lost, and a slip of the pen is told."""

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.errors import MeasureError
from ggplan.measure.record import (
    METRICS,
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
    load_record,
    merge,
    record_from_json,
    record_to_csv,
    record_to_json,
    save_record,
)
from ggplan.measure.schema import record_schema

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
)
quantizations = st.builds(
    Quantization,
    name=words,
    file=st.builds(FileFacts, words, words, counts),
    bpw=numbers,
    recipe=st.builds(RecipeFacts, words, words),
    parts=st.lists(st.builds(Part, words, words, counts, counts), max_size=2).map(tuple),
    measurements=st.lists(measurements, max_size=2).map(tuple),
    speeds=st.lists(st.builds(Speed, counts, st.none() | numbers), max_size=2).map(tuple),
)
records = st.builds(
    Record,
    st.builds(ModelFacts, words, words, counts),
    st.lists(quantizations, max_size=3, unique_by=lambda q: q.name).map(tuple),
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


def measured(name: str, ppl: float, text: str = "a.txt", sha256: str = "1") -> Quantization:
    m = Measurement(Text(text), 512, 10, 2550, "llama-perplexity", {"ppl": Metric(ppl)})
    return Quantization(name, FileFacts(f"{name}.gguf", sha256, 10), measurements=(m,))


def test_merging_replaces_what_was_measured_again_and_keeps_the_rest() -> None:
    model = ModelFacts("m")
    old = Record(model, (measured("q8", 5.0), measured("q4", 6.0)))
    new = Record(ModelFacts("m", "llama"), (measured("q4", 6.5), measured("q4x", 7.0, "b.txt")))
    merged = merge(old, new)
    assert merged.model.architecture == "llama"
    assert [q.name for q in merged.quantizations] == ["q8", "q4", "q4x"]
    assert [m.metrics["ppl"].value for m in merged.quantizations[1].measurements] == [6.5]


def test_another_file_under_an_old_name_does_not_inherit() -> None:
    merged = merge(
        Record(ModelFacts("m"), (measured("q4", 6.0, "a.txt", "1"),)),
        Record(ModelFacts("m"), (measured("q4", 9.0, "b.txt", "2"),)),
    )
    assert [m.text.name for m in merged.quantizations[0].measurements] == ["b.txt"]


def test_records_of_two_models_do_not_mix() -> None:
    with pytest.raises(MeasureError, match="of a and of b"):
        merge(Record(ModelFacts("a")), Record(ModelFacts("b")))


def test_the_csv_has_a_line_for_each_metric() -> None:
    table = record_to_csv(Record(ModelFacts("m"), (measured("q8", 5.0),))).splitlines()
    assert len(table) == 2
    assert table[1] == "m,q8,10,0.0000,a.txt,,512,10,2550,llama-perplexity,,ppl,5,,none"


GOOD = {"schema": "ggplan.record/1", "model": {"name": "m"}, "quantizations": [{"name": "q"}]}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], "other", "schema"),
        (["model"], {}, 'no "name"'),
        (["model", "colour"], 1, "unknown key 'colour'"),
        (["model", "n_weights"], -1, "not a count"),
        (["model", "n_weights"], True, "not a count"),
        (["model", "name"], 1, "not a text"),
        (["quantizations"], {}, "not a list"),
        (["quantizations", 0, "bpw"], "4", "not a number"),
        (["quantizations", 0, "bpw"], float("inf"), "not a number"),
        (["quantizations", 0, "measurements"], [{}], 'no "text"'),
        (["quantizations"], [{"name": "q"}, {"name": "q"}], "two quantizations"),
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
