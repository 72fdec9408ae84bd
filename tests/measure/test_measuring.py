"""What is measured of which file, on which text: by digest, whatever names and order are."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from stub_engine import logits_of, stub_engine, tokens_of, write_model, write_text

import ggplan
from ggplan.errors import CheckpointError, MeasureError
from ggplan.measure import (
    MeasureOptions,
    MeasureResult,
    Record,
    TextFile,
    TokenScores,
    external_engine,
    kept_scores,
    largest,
    load_record,
    measure,
    open_record,
    open_subjects,
    save_record,
)
from ggplan.measure.record import ModelFacts

SMALL = MeasureOptions(n_ctx=16, hardware="a test")


def run(files, texts, base, options: MeasureOptions = SMALL, **more) -> MeasureResult:
    texts = texts if isinstance(texts, list) else [texts]
    texts = [t if isinstance(t, TextFile) else TextFile(t) for t in texts]
    return measure(files, texts, base, stub_engine(), options, **more)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def perplexity(model: Path, text: Path) -> float:
    """By its definition, from the stub's logits."""
    tokens = tokens_of(text.read_bytes(), 16, None)
    logits = np.array(logits_of(model, tokens), np.float64)
    log_sums = np.log(np.exp(logits).sum(axis=-1))
    right = np.take_along_axis(logits, tokens[:, 9:, None], axis=-1)[..., 0]
    return float(np.exp((log_sums - right).mean()))


def figures(result: MeasureResult) -> dict[str, tuple[float, bool]]:
    """Per digest, the perplexity and whether there is a divergence."""
    return {
        q.file.sha256: (q.measurements[0].metrics["ppl"].value, "kld" in q.measurements[0].metrics)
        for q in result.record.quantizations
    }


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "eval.txt", 1)


@pytest.fixture
def bf16(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-bf16.gguf", 0.0, n_columns=64)


@pytest.fixture
def q8(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-q8_0.gguf", 0.2)


@pytest.fixture
def q4(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-q4_K.gguf", 0.8, 2)


def test_the_base_is_the_same_in_every_order(text: Path, bf16: Path, q8: Path, q4: Path) -> None:
    expected = {digest(f): (pytest.approx(perplexity(f, text), rel=1e-5), f != bf16) for f in (bf16, q8, q4)}
    for files in ([bf16, q8, q4], [q8, bf16, q4], [q4, q8, bf16], [q8, q4]):
        result = run(files, text, bf16)
        assert figures(result) == expected
        assert {q.name: q.file.name for q in result.record.quantizations} == {
            f.stem.removeprefix("tiny-"): f.name for f in (bf16, q8, q4)
        }
        assert (result.base.name, result.base.sha256) == ("bf16", digest(bf16))
        assert all(q.measurements[0].base == result.base for q in result.record.quantizations)
        assert result.record.quantizations[0].is_base_of(result.record.quantizations[0].measurements[0])


def test_the_largest_file_is_the_base_where_none_is_named(bf16: Path, q8: Path, q4: Path) -> None:
    for files in ([bf16, q8, q4], [q8, bf16, q4], [q4, q8, bf16]):
        assert largest(open_subjects(files)).sha256 == digest(bf16)
    with pytest.raises(MeasureError, match="equally large") as error:
        largest(open_subjects([q8, q4]))
    assert "--base" in error.value.hint


@pytest.mark.parametrize("way", ["symlink", "hardlink", "copy"])
def test_one_file_by_two_paths_is_one_subject(
    tmp_path: Path, text: Path, bf16: Path, q8: Path, way: str
) -> None:
    other = tmp_path / "elsewhere" / "base.gguf"
    other.parent.mkdir()
    {"symlink": other.symlink_to, "hardlink": other.hardlink_to}.get(
        way, lambda path: other.write_bytes(path.read_bytes())
    )(bf16)
    log: list[str] = []
    for files, base in (([q8, bf16], other), ([other, q8], bf16), ([bf16, other, q8], bf16)):
        result = measure(files, [TextFile(text)], base, stub_engine(log), SMALL)
        assert len(result.record.quantizations) == 2
        assert figures(result)[digest(bf16)][1] is False
        assert figures(result)[digest(q8)][1] is True
    assert len(log) == 6
    assert len(set(log)) == 2, "which path is taken must not depend on the order"


def test_two_files_of_one_name_are_told_apart(tmp_path: Path, text: Path, bf16: Path) -> None:
    first = write_model(tmp_path / "a" / "tiny-q4.gguf", 0.3, 3)
    second = write_model(tmp_path / "b" / "tiny-q4.gguf", 0.9, 4)
    result = run([first, second], text, bf16)
    assert [q.name for q in result.record.quantizations] == ["bf16", "a/q4", "b/q4"]
    assert figures(result) == {
        digest(f): (pytest.approx(perplexity(f, text), rel=1e-5), f != bf16) for f in (bf16, first, second)
    }
    assert {key for key, _ in result.scores} == {digest(f) for f in (bf16, first, second)}
    again = write_model(tmp_path / "c" / "a" / "tiny-q4.gguf", 0.5, 5)
    names = [q.name for q in run([first, again], text, bf16).record.quantizations]
    assert names == ["bf16", f"q4 ({digest(first)[:8]})", f"q4 ({digest(again)[:8]})"]


def test_two_runs_on_files_of_one_name_overwrite_nothing(tmp_path: Path, text: Path, bf16: Path) -> None:
    files = [write_model(tmp_path / folder / "tiny-q4.gguf", 0.3, i) for i, folder in enumerate("ab")]
    for file in files:
        with open_record(tmp_path / "r.json") as kept:
            result = run([file], text, bf16, into=kept.record)
            kept.add(result.record, result.scores)
    record = load_record(tmp_path / "r.json")
    assert [q.name for q in record.quantizations] == ["bf16", *(f"q4 ({digest(f)[:8]})" for f in files)]
    find = kept_scores(tmp_path / "r.json")
    for q in record.quantizations:
        (m,) = q.measurements
        scores = find(q, m)
        assert scores is not None
        assert np.exp(scores.nll.mean(dtype=np.float64)) == pytest.approx(m.metrics["ppl"].value)


def test_a_split_set_is_one_subject_of_all_its_bytes(tmp_path: Path, text: Path, bf16: Path) -> None:
    first = write_model(tmp_path / "set" / "tiny-q4.gguf", 0.4, 6, split=2)
    shards = sorted(first.parent.iterdir())
    assert len(shards) == 2
    for files in ([shards[0]], [shards[1]], shards, shards[::-1]):
        result = run(files, text, bf16)
        _, q = result.record.quantizations
        assert q.name == "q4"
        assert q.file.name == first.name
        assert q.file.n_bytes == sum(s.stat().st_size for s in shards)
        assert q.file.shards == tuple(digest(s) for s in shards)
        lines = "".join(f"{digest(s)}\n" for s in shards)
        assert q.file.sha256 == hashlib.sha256(lines.encode()).hexdigest()
        assert q.measurements[0].metrics["ppl"].value == pytest.approx(perplexity(first, text), rel=1e-5)


def test_a_split_base_is_the_largest_by_all_its_bytes(tmp_path: Path, text: Path) -> None:
    base = write_model(tmp_path / "tiny-bf16.gguf", 0.0, n_columns=64, split=1)
    q8 = write_model(tmp_path / "tiny-q8_0.gguf", 0.2)
    assert q8.stat().st_size > base.stat().st_size
    subjects = open_subjects([q8, base])
    assert largest(subjects).path == base
    assert run(subjects, text, largest(subjects)).base.name == "bf16"


def test_two_texts_of_one_name_lose_nothing(tmp_path: Path, bf16: Path, q8: Path) -> None:
    texts = [write_text(tmp_path / folder / "eval.txt", i) for i, folder in enumerate("ab")]
    uses = [TextFile(texts[0], "choose"), TextFile(texts[1], "held out")]
    result = run([q8], uses, bf16)
    assert len(result.scores) == 4
    for q in result.record.quantizations:
        path = bf16 if q.name == "bf16" else q8
        assert [(m.text.name, m.text.sha256) for m in q.measurements] == [
            ("a/eval.txt", digest(texts[0])),
            ("b/eval.txt", digest(texts[1])),
        ]
        for m, file in zip(q.measurements, texts, strict=True):
            assert m.metrics["ppl"].value == pytest.approx(perplexity(path, file), rel=1e-5)
            assert result.scores_of(q, m) is result.scores[q.file.sha256, digest(file)]


def test_one_text_twice_is_not_held_out(tmp_path: Path, text: Path, bf16: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    with pytest.raises(MeasureError, match="one and the same"):
        run([], [TextFile(text, "choose"), TextFile(copy, "held out")], bf16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Other"}, "records of Tiny and of Other"),
        ({"architecture": "glm4moe"}, r"records of Tiny \(llama\) and of Tiny \(glm4moe\)"),
    ],
)
def test_a_record_of_another_model_is_refused_before_the_engine(
    tmp_path: Path, text: Path, q8: Path, bf16: Path, changes: dict, message: str
) -> None:
    record = run([q8], text, bf16).record
    other = write_model(tmp_path / "other.gguf", 0.0, n_columns=96, **changes)
    log: list[str] = []
    with pytest.raises(MeasureError, match=message):
        measure([], [TextFile(text)], other, stub_engine(log), SMALL, into=record)
    assert log == []


def test_a_model_may_have_the_records_name(tmp_path: Path, text: Path, bf16: Path) -> None:
    into = Record(ModelFacts("GLM", "llama"))
    with pytest.raises(MeasureError, match="GLM and of Tiny") as error:
        run([], text, bf16, into=into)
    assert "--model-name" in error.value.hint
    named = dataclasses.replace(SMALL, model_name="GLM")
    assert run([], text, bf16, named, into=into).record.model.name == "GLM"


def test_another_architecture_is_refused_before_the_engine(
    tmp_path: Path, text: Path, bf16: Path, q8: Path
) -> None:
    other = write_model(tmp_path / "other.gguf", 0.0, architecture="qwen3")
    keep = tmp_path / "base.logits"
    run([], text, bf16, dataclasses.replace(SMALL, keep_logits=keep))
    log: list[str] = []
    for files, base, options in (([q8, other], bf16, SMALL), ([q8, other], keep, MeasureOptions())):
        with pytest.raises(MeasureError, match="its architecture is qwen3, not llama"):
            measure(files, [TextFile(text)], base, stub_engine(log), options)
    assert log == []


def test_another_vocabulary_is_refused_before_the_engine(tmp_path: Path, text: Path, bf16: Path) -> None:
    other = write_model(tmp_path / "other.gguf", 0.0, n_vocab=41)
    log: list[str] = []
    with pytest.raises(MeasureError, match="its vocabulary has 41 tokens, not 40"):
        measure([other], [TextFile(text)], bf16, stub_engine(log), SMALL)
    assert log == []


@pytest.mark.parametrize("broken", ["model", "base"])
def test_tokens_without_a_number_are_counted_and_left_out(tmp_path: Path, text: Path, broken: str) -> None:
    nan = {broken: 3}
    base = write_model(tmp_path / "tiny-bf16.gguf", 0.0, n_columns=64, nan=nan.get("base", 0))
    model = write_model(tmp_path / "tiny-q2_K.gguf", 0.5, nan=nan.get("model", 0))
    result = run([model], text, base)
    q = result.record.quantizations[1]
    (m,) = q.measurements
    assert (m.n_nan, m.n_tokens) == (3, 12 * 7)
    whose = {"model": "q2_K", "base": "q2_K's base"}[broken]
    assert any(f"{whose} gives no number for 3 of 84 tokens of eval.txt" in note for note in result.notes)
    scores = result.scores_of(q, m)
    assert scores is not None
    assert scores.comparison is not None
    rest = np.ones(m.n_tokens, bool)
    rest[:3] = False
    kld, nll = scores.comparison.kld.ravel()[rest], scores.nll.ravel()[rest]
    assert m.metrics["kld"].value == pytest.approx(kld.mean(dtype=np.float64))
    assert m.metrics["kld_max"].value == kld.max()
    assert m.metrics["kld_median"].value == pytest.approx(np.median(kld))
    assert m.metrics["ppl"].value == pytest.approx(np.exp(nll.mean(dtype=np.float64)))
    assert all(np.isfinite((x.value, x.error or 0)).all() for x in m.metrics.values())
    save_record(result.record, tmp_path / "r.json")
    assert load_record(tmp_path / "r.json").quantizations[1].measurements[0].n_nan == 3


def test_a_model_that_gives_no_number_has_no_figures(tmp_path: Path, text: Path, bf16: Path) -> None:
    model = write_model(tmp_path / "tiny-q2_K.gguf", 0.5, nan=7)
    one_chunk = dataclasses.replace(SMALL, n_chunks=1)
    result = run([model], text, bf16, one_chunk)
    (m,) = result.record.quantizations[1].measurements
    assert (m.n_nan, m.n_tokens, dict(m.metrics)) == (7, 7, {})
    save_record(result.record, tmp_path / "r.json")
    assert load_record(tmp_path / "r.json") == result.record


def test_a_file_that_changes_while_it_is_measured_is_refused(text: Path, bf16: Path, q8: Path) -> None:
    subjects = open_subjects([bf16, q8])
    engine = stub_engine()

    def run_model(model: Path, *more):
        found = engine.run_model(model, *more)
        os.utime(model, ns=(1, 1))
        return found

    with pytest.raises(MeasureError, match=r"tiny-q8_0\.gguf changed while it was measured"):
        measure(
            subjects, [TextFile(text)], subjects[0], dataclasses.replace(engine, run_model=run_model), SMALL
        )


def test_a_text_that_must_be_too_short_is_refused_before_the_engine(
    tmp_path: Path, text: Path, bf16: Path, q8: Path
) -> None:
    keep = tmp_path / "base.logits"
    run([], text, bf16, dataclasses.replace(SMALL, keep_logits=keep))
    short = write_text(tmp_path / "short.txt", 2, 15)
    log: list[str] = []
    for base, options in ((bf16, SMALL), (keep, MeasureOptions())):
        with pytest.raises(MeasureError, match=r"short\.txt is too short: it has 15 bytes") as error:
            measure([q8], [TextFile(short)], base, stub_engine(log), options)
        assert "longer text" in error.value.hint
    with pytest.raises(MeasureError, match="2 chunks of 512"):
        measure([q8], [TextFile(text)], bf16, stub_engine(log))
    assert log == []


@pytest.mark.parametrize("code", [0, 1, 139])
def test_a_text_of_too_few_tokens_is_named_however_the_engine_ends(
    tmp_path: Path, text: Path, bf16: Path, code: int
) -> None:
    program, started = tmp_path / "llama-perplexity", tmp_path / "started"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\necho >> {started}\n'
        "echo 'perplexity: you need at least 32 tokens to evaluate perplexity with a context of 16'\n"
        f"echo 'perplexity: the data file you provided tokenizes to only 20 tokens'\nexit {code}\n"
    )
    program.chmod(0o755)
    with pytest.raises(MeasureError, match="too short: it has 20 tokens, and 32 are needed") as error:
        measure([], [TextFile(text)], bf16, external_engine(str(program)), SMALL)
    assert "longer text" in error.value.hint
    assert len(started.read_text().splitlines()) == 1, "it cannot end otherwise in another run"


def test_kept_log_probabilities_are_their_files(
    tmp_path: Path, text: Path, bf16: Path, q8: Path, q4: Path
) -> None:
    keep, path = tmp_path / "base.logits", tmp_path / "r.json"
    with open_record(path) as kept:
        first = run([q8], text, bf16, dataclasses.replace(SMALL, keep_logits=keep))
        kept.add(first.record, first.scores)
    moved = keep.rename(tmp_path / "moved.logits")
    with open_record(path) as kept:
        second = run([q4], text, moved, MeasureOptions(), into=kept.record)
        merged = kept.add(second.record, second.scores)
    assert second.base == first.base
    assert first.base.logits == digest(moved)
    assert {m.conditions for q in merged.quantizations for m in q.measurements} == {
        first.record.quantizations[0].measurements[0].conditions
    }
    assert second.record.quantizations[0].measurements[0].metrics == (
        run([q4], text, bf16).record.quantizations[1].measurements[0].metrics
    )
    alone = run([q4], text, moved, MeasureOptions())
    assert (alone.base.name, alone.base.sha256) == ("moved", digest(moved))


def test_what_kept_log_probabilities_fix_cannot_be_asked_otherwise(
    tmp_path: Path, text: Path, bf16: Path, q8: Path
) -> None:
    keep = tmp_path / "base.logits"
    run([q8], text, bf16, dataclasses.replace(SMALL, keep_logits=keep))
    for options in (MeasureOptions(n_ctx=32), MeasureOptions(n_chunks=2)):
        with pytest.raises(MeasureError, match="is of 12 chunks of 16 tokens"):
            run([q8], text, keep, options)
    with pytest.raises(MeasureError, match="already keeps"):
        run([q8], text, keep, MeasureOptions(keep_logits=tmp_path / "again"))
    with pytest.raises(MeasureError, match="is read here"):
        run([q8], text, bf16, dataclasses.replace(SMALL, keep_logits=q8))
    assert q8.read_bytes()[:4] == b"GGUF"


def test_files_that_name_their_model_differently_need_a_name(
    tmp_path: Path, text: Path, bf16: Path, q8: Path
) -> None:
    keep = tmp_path / "base.logits"
    run([], text, bf16, dataclasses.replace(SMALL, keep_logits=keep))
    other = write_model(tmp_path / "q6.gguf", 0.1, name="tiny by another")
    with pytest.raises(MeasureError, match="name their model differently: Tiny and tiny by another"):
        run([q8, other], text, keep, MeasureOptions())
    assert len(run([q8, other], text, keep, MeasureOptions(model_name="T")).record.quantizations) == 2


def test_what_a_file_says_of_itself_is_recorded(tmp_path: Path, text: Path, bf16: Path) -> None:
    recipe = ggplan.parse_recipe(r"blk\.0\. = q8_0", "first")
    made = tmp_path / "tiny-first.gguf"
    ggplan.convert(ggplan.make_plan(ggplan.open_model(bf16), recipe), made)
    result = run([made], text, bf16)
    assert result.record.model == ModelFacts("Tiny", "llama", 4 * 2 * 64)
    base, q = result.record.quantizations
    assert (q.name, q.recipe.name, q.recipe.sha256) == ("first", "first", recipe.sha256)
    assert q.file.n_bytes == made.stat().st_size
    assert [(p.role, p.type, p.n_bytes, p.n_weights) for p in q.parts] == [
        ("attention", "f32", 4 * 3 * 128, 3 * 128),
        ("attention", "q8_0", 4 * 34, 128),
    ]
    assert q.bpw == pytest.approx(8 * (4 * 3 * 128 + 4 * 34) / 512)
    assert (base.bpw, base.recipe.name) == (32, "")


def test_what_cannot_be_measured_is_named(tmp_path: Path, text: Path, bf16: Path) -> None:
    with pytest.raises(MeasureError, match="no text"):
        run([], [], bf16)
    with pytest.raises(CheckpointError, match="nowhere"):
        run([tmp_path / "nowhere.gguf"], text, bf16)
    with pytest.raises(MeasureError, match="nowhere"):
        run([], tmp_path / "nowhere.txt", bf16)
    bf16.write_bytes(bf16.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="tiny-bf16"):
        run([], text, bf16)


def test_scores_of_something_else_are_not_taken(tmp_path: Path, text: Path, bf16: Path, q8: Path) -> None:
    with open_record(tmp_path / "r.json") as kept:
        result = run([q8], text, bf16)
        kept.add(result.record, result.scores)
    q = result.record.quantizations[1]
    (m,) = q.measurements
    find = kept_scores(tmp_path / "r.json")
    assert find(q, m) is not None
    assert find(q, dataclasses.replace(m, n_ctx=32)) is None
    ours, theirs = (
        next((tmp_path / "r.scores").glob(f"{x.file.sha256[:12]}-*.npz"))
        for x in (q, result.record.quantizations[0])
    )
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(MeasureError, match="belong to another"):
        find(q, m)
    ours.write_bytes(b"PK\3\4")
    with pytest.raises(MeasureError, match="holds no scores"):
        find(q, m)
    TokenScores(np.zeros((2, 3), np.float32)).save(ours, "")
    with pytest.raises(MeasureError, match="belong to another"):
        find(q, m)


def test_log_probabilities_are_kept_only_where_nothing_is_lost(
    tmp_path: Path, text: Path, bf16: Path
) -> None:
    first = write_model(tmp_path / "set" / "tiny-q4.gguf", 0.4, 6, split=2)
    shard = sorted(first.parent.iterdir())[1]
    (tmp_path / "link").hardlink_to(shard)
    (tmp_path / "keep.part").hardlink_to(text)
    (tmp_path / "folder").mkdir()
    notes = tmp_path / "notes"
    notes.write_text("mine")
    log: list[str] = []
    for name, message in (
        ("notes", "notes is no file of log-probabilities, so it is not overwritten"),
        ("link", "is read here"),
        ("keep", r"keep\.part is read here"),
        ("folder", "it is a folder"),
        ("no/keep", "its folder does not exist"),
    ):
        options = dataclasses.replace(SMALL, keep_logits=tmp_path / name)
        with pytest.raises(MeasureError, match=message):
            measure([first], [TextFile(text)], bf16, stub_engine(log), options)
    assert log == []
    assert text.exists()
    assert notes.read_text() == "mine"


def test_progress_tells_texts_of_one_name_apart(tmp_path: Path, bf16: Path) -> None:
    texts = [write_text(tmp_path / folder / "a" / "eval.txt", i) for i, folder in enumerate("xy")]
    seen = []
    uses = [TextFile(texts[0], "choose"), TextFile(texts[1], "held out")]
    result = run([], uses, bf16, watcher=lambda what, done, of: seen.append(what))
    assert [what.text_sha256 for what in seen] == [digest(text) for text in texts]
    assert [str(what) for what in seen] == [f"tiny-bf16 on eval.txt ({digest(text)[:8]})" for text in texts]
    (q,) = result.record.quantizations
    assert len({m.text.name for m in q.measurements}) == 2
