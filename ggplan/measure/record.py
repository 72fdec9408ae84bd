"""The record: what is known of a model's quantizations. `record_json` describes its file.

A quantization is known by the digest of its file, a text by the digest of its bytes, a base by the digest of
its file. Names are for people; where two files have one name, the digest's first digits are added to it, or
where that is not known the size.

A metric's `error` is one standard error. `method` says of what: *paired chunks* (differences on the same
tokens, their scatter taken over chunks, which allows for correlation within a chunk), *paired tokens* (as
llama-perplexity prints after ± if a base is given: tokens taken as independent), *unpaired chunks*
and *unpaired tokens* (without a base: they measure the text far more than the quantization).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import shlex
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from ggplan.errors import MeasureError
from ggplan.text import format_bytes, printable

ErrorMethod = Literal["paired chunks", "paired tokens", "unpaired chunks", "unpaired tokens", "none"]
Use = Literal["choose", "held out", ""]

METRICS = {
    "ppl": "perplexity",
    "delta_ppl": "perplexity minus the base's",
    "delta_ln_ppl": "ln(perplexity / the base's): the mean loss of log-probability per token, in nats",
    "kld": "mean KL divergence from the base, nats per token",
    "kld_median": "median KL divergence",
    "kld90": "90 % of tokens have a smaller KL divergence",
    "kld99": "99 % of tokens have a smaller KL divergence",
    "kld999": "99.9 % of tokens have a smaller KL divergence",
    "kld_max": "the largest KL divergence",
    "delta_p_mean": "mean change of the right token's probability",
    "delta_p_rms": "root mean square change of the right token's probability",
    "same_top": "share of tokens at which the most likely token is the base's",
}
"""Names of metrics and their meaning. Shares and probabilities are fractions, not per cent."""

UNNAMED = "unnamed model"
"""The name of a model that no log and no option names."""

SWEEP_ENGINE = "llama-sweep-bench"

MAX_COUNT = (1 << 63) - 1
"""The largest number of tokens, bytes or weights that a record holds."""

_DIGITS = 8
# A log's size is without the header, a model card's is rounded.
_SIZE_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Metric:
    """A number and its standard error; `error` is None where `method` is "none"."""

    value: float
    error: float | None = None
    method: ErrorMethod = "none"


@dataclass(frozen=True, slots=True)
class Text:
    """The text something was measured on; without a digest if only a log names it."""

    name: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Base:
    """The base of a measurement: the file's digest, and that of its log-probabilities if they were kept.

    If a base is known only by its kept log-probabilities, `sha256` is theirs.
    """

    name: str = ""
    sha256: str = ""
    logits: str = ""


class Conditions(NamedTuple):
    """The conditions that must be equal for two measurements to be comparable."""

    text: str
    context: int
    chunks: int
    engine: str
    build: str
    base: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """Quality of one quantization on one text, by one engine.

    `n_nan` of the `n_tokens` scored tokens have no finite score; they are left out of every metric.
    """

    text: Text
    n_ctx: int
    n_chunks: int
    n_tokens: int
    engine: str
    metrics: Mapping[str, Metric]
    base: Base = Base()
    build: str = ""
    hardware: str = ""
    use: Use = ""
    date: str = ""
    n_nan: int = 0

    @property
    def has_comparison(self) -> bool:
        """Whether a metric compares with the base; the base itself has none."""
        return bool(self.metrics.keys() - {"ppl"})

    @property
    def conditions(self) -> Conditions:
        """The conditions of the measurement; text and base by their digests if these are known."""
        return Conditions(
            self.text.sha256 or self.text.name, self.n_ctx, self.n_chunks, self.engine, self.build,
            self.base.sha256 or self.base.name,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second with `n_kv` tokens already in the cache: reading a prompt (pp), writing (tg)."""

    n_kv: int
    pp: float | None = None
    tg: float | None = None
    engine: str = ""
    build: str = ""
    hardware: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes and weights of all tensors of one role and type."""

    role: str
    type: str
    n_bytes: int
    n_weights: int


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The file that was measured; of a split set the first file's name and the bytes of all.

    `sha256` is the file's SHA-256. Of a split set, `shards` are those of its files in order, and `sha256` is
    the SHA-256 of these, written in hexadecimal, a line each.
    """

    name: str = ""
    sha256: str = ""
    n_bytes: int = 0
    shards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecipeFacts:
    """The recipe a file was made by."""

    name: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Quantization:
    """One quantization of a model. `bpw` is bits per weight over all tensors, 0 where it is not known."""

    name: str
    file: FileFacts = FileFacts()
    bpw: float = 0.0
    recipe: RecipeFacts = RecipeFacts()
    imatrix: str = ""
    author: str = ""
    url: str = ""
    note: str = ""
    parts: tuple[Part, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    speeds: tuple[Speed, ...] = ()

    def is_base_of(self, measurement: Measurement) -> bool:
        """Whether this is the base of a measurement: by digest, or by name if one of the two has no digest.

        A file that was itself compared with a base of its own name is another file.
        """
        base = measurement.base
        if base.sha256 and self.file.sha256:
            return base.sha256 == self.file.sha256
        if not base.name or base.name != self.name:
            return False
        return not any(m.base == base and m.has_comparison for m in self.measurements)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that a record's quantizations are of."""

    name: str
    architecture: str = ""
    n_weights: int = 0
    url: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of one model's quantizations; their names are unique, and so are their digests."""

    model: ModelFacts
    quantizations: tuple[Quantization, ...] = field(default=())


def check_same_model(old: ModelFacts, new: ModelFacts) -> None:
    """Refuse figures of one model in the record of another.

    Raises
    ------
    MeasureError
        If the names differ, or both architectures are known and differ.
    """
    differ = old.architecture and new.architecture and old.architecture != new.architecture
    if old.name != new.name or differ:
        first, second = (
            printable(f"{m.name} ({m.architecture})" if differ and m.architecture else m.name)
            for m in (old, new)
        )
        raise MeasureError(
            f"records of {first} and of {second} do not go together",
            hint="take another record"
            if differ
            else "take another record; if it is the same model under another name, give the record's, with"
            f" `--model-name {shlex.quote(printable(old.name))}`",
        )


def would_replace(old: Quantization, new: Quantization) -> bool:
    """Whether `merge` would replace figures of one quantization by others, so that they are of two runs."""
    if new.speeds != old.speeds:
        places = {_speed_conditions(s) for s in old.speeds}
        if any(_speed_conditions(s) in places for s in new.speeds):
            return True
    measured = {m.conditions: m.metrics for m in old.measurements}
    return any(measured.get(m.conditions, m.metrics) != m.metrics for m in new.measurements)


def named(record: Record, model_name: str | None) -> Record:
    """The record with this name for its model, if it is of a model that nothing named."""
    if model_name is None or record.model.name != UNNAMED:
        return record
    return dataclasses.replace(record, model=dataclasses.replace(record.model, name=model_name))


def merge(old: Record, new: Record) -> Record:
    """`old`, brought up to date with `new`.

    Quantizations are the same by the digest of their file. One without a digest (from a log) belongs to the
    only one with its name, if sizes and bits per weight agree. A measurement of the same conditions, a speed
    at the same place and a whole sweep of the same engine are replaced by the newer; facts that the newer
    leaves empty stay.

    Raises
    ------
    MeasureError
        If the records are of two models.
    """
    merging = begin_merge(old)
    merging.add(new)
    return merging.record()


@dataclass(slots=True)
class Merging:
    """Records that are put together one after another, in a time that grows as their quantizations.

    `places` has the places of `quantizations` by name and by the digest of the file (`_keys`); `only` is the
    first record while there is no other.
    """

    model: ModelFacts
    quantizations: list[Quantization] = field(default_factory=list)
    places: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    only: Record | None = None

    def add(self, new: Record) -> None:
        """Take a record in, as `merge` does.

        Raises
        ------
        MeasureError
            If it is of another model.
        """
        check_same_model(self.model, new.model)
        self.model, self.only = _filled(self.model, new.model), None
        for q in new.quantizations:
            place = self._place_of(q)
            if place is None:
                self.quantizations.append(q)
                self._enter(len(self.quantizations) - 1)
                continue
            before = self.quantizations[place]
            self.quantizations[place] = _merged(before, q)
            if _keys(before) != _keys(self.quantizations[place]):
                for key in _keys(before):
                    self.places[key].remove(place)
                self._enter(place)

    def called(self, name: str) -> list[Quantization]:
        """The quantizations of this name, with or without what tells them apart."""
        return [self.quantizations[i] for i in self.places.get(("name", name), ())]

    def record(self) -> Record:
        """All that was taken in."""
        return self.only or Record(self.model, tell_apart(self.quantizations))

    def _enter(self, place: int) -> None:
        for key in _keys(self.quantizations[place]):
            insort(self.places.setdefault(key, []), place)

    def _place_of(self, q: Quantization) -> int | None:
        """Which of the known quantizations `q` is."""
        digest, known = q.file.sha256, self.quantizations
        if digest and (same := self.places.get(("sha256", digest))):
            return same[0]
        named = [i for i in self.places.get(("name", plain_name(q)), ()) if could_be_one(known[i], q)]
        bare = [i for i in named if not known[i].file.sha256]
        if bare or digest:
            return bare[0] if len(bare) == 1 else None
        return named[0] if len(named) == 1 else None


def begin_merge(record: Record) -> Merging:
    """What further records can be added to."""
    merging = Merging(record.model, list(record.quantizations), only=record)
    for place in range(len(merging.quantizations)):
        merging._enter(place)
    return merging


def _keys(q: Quantization) -> tuple[tuple[str, str], ...]:
    """What a quantization is found by: its name, with and without marks, and the digest of its file."""
    names = [("name", name) for name in dict.fromkeys((q.name, plain_name(q)))]
    return (*names, ("sha256", q.file.sha256)) if q.file.sha256 else (*names,)


def could_be_one_size(a: int, b: int) -> bool:
    """Whether two sizes may be of one file: one is not known (0), or they differ by 5 % at most."""
    low, high = sorted((a, b))
    return not low or high - low <= _SIZE_TOLERANCE * high


def could_be_one(a: Quantization, b: Quantization) -> bool:
    """Whether two quantizations of one name may be of one file, by their sizes and bits per weight."""
    same_bits = not a.bpw or not b.bpw or abs(a.bpw - b.bpw) <= _SIZE_TOLERANCE * abs(a.bpw)
    return same_bits and could_be_one_size(a.file.n_bytes, b.file.n_bytes)


def _merged(old: Quantization, new: Quantization) -> Quantization:
    measurements = {m.conditions: m for m in old.measurements}
    for m in new.measurements:
        before = measurements.get(m.conditions, m)
        base = m.base if m.base.logits else dataclasses.replace(m.base, logits=before.base.logits)
        measurements[m.conditions] = dataclasses.replace(m, base=base)
    # A sweep is one run: rows of a newer one take the place of all.
    swept = {_speed_conditions(s) for s in new.speeds if s.engine == SWEEP_ENGINE}
    kept = [s for s in old.speeds if _speed_conditions(s) not in swept]
    speeds = {(s.n_kv, *_speed_conditions(s)): s for s in (*kept, *new.speeds)}
    return dataclasses.replace(
        _filled(old, new),
        name=plain_name(old),
        measurements=tuple(measurements.values()),
        speeds=tuple(speeds.values()),
    )


def _speed_conditions(speed: Speed) -> tuple[str, str, str]:
    return speed.engine, speed.build, speed.hardware


_Facts = TypeVar("_Facts", Quantization, ModelFacts)


def _filled(old: _Facts, new: _Facts) -> _Facts:
    """`new`, its empty fields taken from `old`."""
    known = {f.name: getattr(old, f.name) for f in dataclasses.fields(new)}
    empty = {f.name: f.default for f in dataclasses.fields(new)}
    kept = {name: value for name, value in known.items() if getattr(new, name) == empty[name]}
    return dataclasses.replace(new, **kept)


def tell_apart(quantizations: Iterable[Quantization]) -> tuple[Quantization, ...]:
    """The quantizations, with the digest's first digits added to a name that several files have.

    Those without a digest get the size of their file, or bits per weight, or else a number.
    """
    plain = [(q, plain_name(q)) for q in quantizations]
    names = Counter((name, bool(q.file.sha256)) for q, name in plain)
    all_names = Counter(name for _, name in plain)
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    found = []
    for q, name in plain:
        several = all_names[name] > 1 if q.file.sha256 else names[name, False] > 1
        mark = next(iter(_marks(q)), "") if several else ""
        full = whole = f"{name} ({mark})" if mark else name
        while full in taken:
            numbers[whole] += 1
            full = f"{whole} #{numbers[whole] + 1}"
        taken.add(full)
        found.append(q if q.name == full else dataclasses.replace(q, name=full))
    return tuple(found)


def _marks(q: Quantization) -> list[str]:
    """What may tell a file from others of its name, the surest first."""
    size = format_bytes(q.file.n_bytes) if q.file.n_bytes else ""
    return [m for m in (q.file.sha256[:_DIGITS], size, f"{q.bpw:g} bpw" if q.bpw else "") if m]


def plain_name(q: Quantization) -> str:
    """The name without the mark that `tell_apart` added."""
    ends = (f" ({mark})" for mark in _marks(q))
    return next((q.name.removesuffix(end) for end in ends if q.name.endswith(end)), q.name)


def text_names(record: Record) -> dict[Text, str]:
    """The shown name of each text of a record, with the digest's first digits if several have one name."""
    texts = dict.fromkeys(m.text for q in record.quantizations for m in q.measurements)
    names = [text.name for text in texts]
    return {
        text: f"{text.name} ({text.sha256[:_DIGITS]})"
        if text.sha256 and names.count(text.name) > 1
        else text.name
        for text in texts
    }


def quantizations_by_size(quantizations: Iterable[Quantization]) -> list[Quantization]:
    """Largest first, as tables show them."""
    return sorted(quantizations, key=lambda q: (-q.file.n_bytes, -q.bpw, q.name))


CSV_COLUMNS = (
    "model", "name", "n_bytes", "bpw", "text", "use", "n_ctx", "n_chunks", "n_tokens", "engine", "build",
    "metric", "value", "error", "method", "n_nan", "base",
)  # fmt: skip
CSV_HEADER = ",".join(CSV_COLUMNS)
"""The first line of `record_to_csv`."""


def record_to_csv(record: Record) -> str:
    """The record's measurements as a table with one metric a line, for other plotting programs.

    A cell is empty where the fact is not known.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    texts = text_names(record)
    for q in record.quantizations:
        for m in q.measurements:
            facts = [record.model.name, q.name, q.file.n_bytes or "", f"{q.bpw:.4f}" if q.bpw else "",
                     texts[m.text], m.use, m.n_ctx or "", m.n_chunks or "", m.n_tokens or "", m.engine,
                     m.build]  # fmt: skip
            for name, metric in m.metrics.items():
                error = "" if metric.error is None else f"{metric.error:.6g}"
                last = [name, f"{metric.value:.9g}", error, metric.method, m.n_nan, m.base.name]
                table.writerow([*facts, *last])
    return out.getvalue()
