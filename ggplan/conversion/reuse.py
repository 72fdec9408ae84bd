"""Copy tensors from the output of an earlier conversion that encoded them in the same way.

An encoder's bytes depend on the weights, the type, the effort and the importance. If an earlier output of
ggplan has a tensor of the same shape and type, made with the same effort and importance, two things must
still be proven before a byte is copied:

    the weights are the same    the hash of the source's rows, which are read again, is the recorded one
    the bytes are undamaged     their SHA-256 is the recorded one

The records are in the manifest beside the earlier output, `OLD.gguf.sha256` (see `manifest`), or in another
one there that lists its header, if it was renamed (see `listing`). A tensor without this proof is encoded. So
the output is the same with and without `--reuse`, unless the manifest is forged: reuse only your own files.
Stopped work may be resumed with or without `--reuse`.

The bytes of default effort are llama.cpp's, in every version of ggplan. The bytes of best effort depend on
its search, so there the revision of the search must be the same too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ggplan.conversion.fingerprint import best_revision
from ggplan.conversion.listing import Listing, beside, find_by_header, hashed, list_files, tell_apart
from ggplan.conversion.manifest import manifest_path
from ggplan.conversion.source_hash import (
    has_source_hash,
    importance_hash,
    source_hash_of,
)
from ggplan.errors import CheckpointError
from ggplan.metadata import Metadata
from ggplan.model import Model, RowSource, TensorInfo
from ggplan.planning import Plan, PlannedTensor
from ggplan.planning.embedding import EMBEDDING
from ggplan.planning.layout import written_shape
from ggplan.quants.feedback import takes_moments
from ggplan.sources.gguf import open_gguf, read_set
from ggplan.text import printable

_CORRECTED = "ggplan.calibration.corrected"
_CALIBRATION = (
    "ggplan.calibration.sha256", "ggplan.calibration.method", "ggplan.calibration.lam", _CORRECTED,
    "ggplan.fold", "ggplan.fold_alphas",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier output.

    Attributes
    ----------
    model
        The file, or its split set.
    listing
        Its records; None if nothing of the file can be reused, for the reason in `trouble`.
    """

    model: Model
    listing: Listing | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Reusable:
    """A tensor of an earlier output: its rows there, and its records."""

    planned: PlannedTensor
    stored: RowSource
    sha256: str
    source: str


@dataclass(frozen=True, slots=True)
class Reuse:
    """The tensors of a plan that are copied from an earlier output.

    Attributes
    ----------
    path
        The earlier output.
    tensors
        The tensors to copy, by name; before the proof, the candidates.
    reasons
        Why each of the others is not copied.
    """

    path: Path
    tensors: Mapping[str, Reusable]
    reasons: Mapping[str, str]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensors that are copied."""
        return sum(found.planned.n_bytes for found in self.tensors.values())

    def by_reason(self) -> dict[str, list[str]]:
        """The names of the tensors that are not copied, by the reason."""
        found: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            found.setdefault(reason, []).append(name)
        return found


def open_earlier(path: str | Path) -> Earlier:
    """Open an earlier output of ggplan, by any of its files.

    Raises
    ------
    CheckpointError
        If it is not a GGUF file, or its header is damaged.
    """
    path = Path(path)
    model = open_gguf(path)
    if "ggplan.version" not in model.metadata:
        return Earlier(model, None, "the file was not written by ggplan")
    found = hashed(read_set(path))
    place = manifest_path(path)
    try:
        manifests = beside(found.headers)
    except CheckpointError as error:
        return Earlier(model, None, error.message)
    found = tell_apart(manifests, found)
    manifest = find_by_header(manifests, found)
    if manifest is None and not place.exists():
        return Earlier(model, None, f"there is no manifest {printable(str(place))}")
    listing = list_files(manifest, found) if manifest is not None else None
    for now, digest in found.header_hashes.items():
        if listing is None or now not in listing.files or listing.files[now].header != digest:
            shown = printable((manifest.path if manifest is not None else place).name)
            return Earlier(model, None, f"its header is not the one that {shown} was made of")
    return Earlier(model, listing)


def find_reusable(plan: Plan, earlier: Earlier) -> Reuse:
    """The tensors that may be copied from an earlier output, as far as is known without reading weights.

    Raises
    ------
    ImatrixError
        If an entry of the imatrix does not have its tensor's size.
    """
    trouble = earlier.trouble or _differing_choice(plan, earlier.model)
    there = {tensor.name: tensor for tensor in earlier.model.tensors}
    tensors: dict[str, Reusable] = {}
    reasons: dict[str, str] = {}
    for planned in plan.tensors:
        found = _reusable(plan, planned, there.get(planned.name), earlier.listing, trouble)
        if isinstance(found, Reusable):
            tensors[planned.name] = found
        else:
            reasons[planned.name] = found
    return Reuse(earlier.model.path, tensors, reasons)


def prove_reusable(
    reuse: Reuse, wanted: Iterable[str], n_threads: int, run_weights: int, stop: threading.Event
) -> Reuse:
    """Prove for each wanted tensor that weights and bytes are as recorded, and remove the others.

    Parameters
    ----------
    run_weights
        How many weights are read at a time.
    stop
        Set to give up the proof.
    """
    names = set(wanted)
    chosen = [found for name, found in reuse.tensors.items() if name in names]
    # The largest first, so that it is not the last one, read by a single thread.
    chosen.sort(key=lambda found: -found.planned.tensor.n_weights)
    tensors: dict[str, Reusable] = {}
    reasons = {**reuse.reasons, **dict.fromkeys(reuse.tensors.keys() - names, "written by an earlier run")}
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for found, why in zip(
                chosen, pool.map(lambda found: _objection(found, run_weights, stop), chosen), strict=True
            ):
                if why:
                    reasons[found.planned.name] = why
                else:
                    tensors[found.planned.name] = found
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return dataclasses.replace(reuse, tensors=tensors, reasons=reasons)


def _differing_choice(plan: Plan, earlier: Model) -> str:
    """An option of the earlier plan that differs for all tensors, or ""."""
    effort = _text(earlier.metadata, "ggplan.effort", "default")
    if effort != plan.effort:
        return f"it was made with --effort {printable(effort)}"
    recorded = {key: earlier.metadata.get(key) for key in _CALIBRATION}
    if plan.feedback is not None and recorded != {key: plan.metadata.get(key) for key in _CALIBRATION}:
        return "it was made with another calibration, or with one that was used in another way"
    if (plan.feedback is not None and plan.feedback.corrected) or recorded[_CORRECTED] is not None:
        return "its weights were corrected for those of the layers before them"
    # If `refuse` refused nothing, there is no weight that another policy would change.
    nonfinite = _text(earlier.metadata, "ggplan.nonfinite", "refuse")
    if nonfinite not in ("refuse", plan.nonfinite):
        return f"it was made with --nonfinite {printable(nonfinite)}"
    return ""


def _reusable(
    plan: Plan, planned: PlannedTensor, there: TensorInfo | None, listing: Listing | None, trouble: str
) -> Reusable | str:
    """The tensor in the earlier output, or the reason why it is not copied."""
    if planned.is_copied:
        return "copied from the source"
    if not has_source_hash(planned):
        return "without blocks, as fast to encode"
    if listing is None or trouble:
        return trouble
    if plan.feedback is not None and planned.name == EMBEDDING and takes_moments(planned.type):
        return "with a calibration it depends on the matrices that read it, which may be others"
    if there is None or there.stored is None:
        return "not in the earlier file"
    if written_shape(there.shape) != written_shape(planned.tensor.shape):
        return "another shape"
    if there.type != planned.type:
        return f"{there.type.name} in the earlier file"
    listed, name = listing.tensors.get(there.name), printable(there.name)
    if listed is None or name not in listed.sources:
        return "its source is not recorded"
    if listed.revisions.get(name) != best_revision(plan.effort):
        return f"the encoders of --effort {plan.effort} are of another revision"
    if listed.importances.get(name, "") != importance_hash(plan, planned):
        return "another importance (imatrix)"
    return Reusable(planned, there.stored, listed.tensors[name], listed.sources[name])


def _objection(found: Reusable, run_weights: int, stop: threading.Event) -> str:
    """Why a tensor may not be reused after all, or ""."""
    tensor = found.planned.tensor
    step = max(1, run_weights // max(1, tensor.n_columns))
    digest = hashlib.sha256()
    try:
        for start in range(0, tensor.n_rows, step):
            if stop.is_set():
                return "stopped"
            digest.update(found.stored.read_bytes(start, min(start + step, tensor.n_rows)))
    except CheckpointError:
        return "cannot be read in the earlier file"
    if digest.hexdigest() != found.sha256:
        return "damaged in the earlier file"
    source = source_hash_of(found.planned, run_weights, stop.is_set)
    return "" if source == found.source else "other weights"


def _text(metadata: Metadata, key: str, default: str) -> str:
    """The string under a key."""
    value = metadata.get(key)
    return default if value is None else str(value.decode()) if value.item_type is None else ""
