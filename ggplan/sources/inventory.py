"""Models without weights: the names, shapes and types of tensors, from which sizes and plans follow.

Two forms are read. A tensor map, as the GGUF Tool Suite publishes them, is text with one tensor a line,
shapes in ggml's order (ne0 first):

    FILE:SHA256:NAME:shape=(4096, 151552):dtype=bf16:elements=620756992:bytes=1241513984:imatrix=SHA256

The fields after the name have no fixed order; `imatrix`, the hash of the importance matrix that a tensor was
quantized with, is there for some tensors, and `bytes` is not always what the tensor takes in a file:

    - many maps leave out the bytes that ik_llama.cpp's types have at the head of each row;
    - some count the padding up to the next tensor (GGUF aligns each to 32 bytes), so a scalar takes 32.

ggplan plans with the sizes of its own table of types and says so once for each kind of difference. A size
that neither explains is a damaged line.

The other form is ggplan's own JSON, which `ggplan inspect --json` prints, with shapes rows first:

    {"schema": "ggplan/inventory@1", "architecture": "glm4moe",
     "metadata": {"glm4moe.block_count": {"type": "uint32", "value": 47}, ...},
     "tensors": [{"name": "output.weight", "shape": [151552, 4096], "type": "q6_K", "stored_as": "BF16"}]}

An array of more than `_ARRAY_LIMIT` items (a tokenizer's) is named with its length but without its value,
and is not in the model that is read back.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from ggplan.errors import CheckpointError
from ggplan.ggml_types import TYPES
from ggplan.metadata import Metadata, MetadataType, MetadataValue, Scalar, array, scalar
from ggplan.model import Codes, Model, TensorInfo
from ggplan.sources.files import read_whole, shown
from ggplan.sources.gguf_header import MAX_NAME_BYTES, shape_fault
from ggplan.sources.json_files import SIZE_LIMIT, parse_object
from ggplan.text import decode_text, format_bytes, printable

SCHEMA = "ggplan/inventory@1"
_ARRAY_LIMIT = 1024
_MOST_BITS = 64  # of a weight
_TYPES = {type_.name.lower(): type_ for type_ in TYPES}
_HEAD = re.compile(r"(?P<file>[^:]+):[0-9a-fA-F]{64}:(?P<name>[^:]+):(?P<fields>[^=:]+=.*)", re.ASCII)
_SHAPE = re.compile(r"\( *(\d{1,19}(?: *, *\d{1,19}){0,3}) *,? *\)", re.ASCII)
_COUNT = re.compile(r"\d{1,20}", re.ASCII)
_TYPE = re.compile(r"\w{1,32}", re.ASCII)
_KNOWN_FIELDS = ("shape", "dtype", "elements", "bytes", "imatrix")
_ALIGNMENTS = tuple(1 << power for power in range(3, 13))
_WRITES_ONE = "`ggplan inspect --json MODEL` writes an inventory"
_MOST_ROW_BYTES = 16  # that a type may have at the head of a row


def open_inventory(path: Path) -> Model:
    """Open a list of tensors: a tensor map (text) or ggplan's inventory (JSON).

    Raises
    ------
    CheckpointError
        If the file is neither, or has an impossible value; the message names the line or tensor.
    """
    return parse_inventory(read_whole(path, SIZE_LIMIT), path)


def parse_inventory(data: bytes, path: Path) -> Model:
    """The inventory that a file holds; `path` names it in messages. Raises as `open_inventory`."""
    if not data.strip():
        raise CheckpointError(f"{shown(path)} is empty", hint=_WRITES_ONE)
    try:
        text = decode_text(data, "strict")
    except UnicodeError as error:
        raise _no_inventory(path) from error
    if text.lstrip()[:1] == "{":
        return _from_json(path, parse_object(text.encode(), shown(path)))
    return _from_map(path, text)


def is_map(text: str) -> bool:
    """Whether the first line of a text that says anything is a line of a tensor map."""
    first = next((line for line in text.lstrip("\ufeff").split("\n") if line.strip()), "")
    return _fields_of(first.strip()) is not None


def inventory_json(model: Model) -> dict[str, object]:
    """The model's names, shapes, types and small metadata, as values that `json.dumps` writes."""
    return {
        "schema": SCHEMA,
        "architecture": model.architecture,
        "metadata": {key: _value_json(value) for key, value in model.metadata.items()},
        "tensors": [_tensor_json(t) for t in model.tensors],
    }


def _tensor_json(tensor: TensorInfo) -> dict[str, object]:
    found: dict[str, object] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "type": tensor.type.name,
        "stored_as": tensor.stored_as,
    }
    if (codes := tensor.codes) is not None:
        found["codes"] = {
            "form": codes.form,
            "decoded": codes.decoded.name,
            "why_decoded": codes.why_decoded,
            "bits": codes.bits,
            "widened": codes.widened,
            "companions": [_tensor_json(companion) for companion in codes.companions],
        }
    return found


def _no_inventory(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)} is neither a GGUF file, a tensor map nor an inventory",
        hint=_WRITES_ONE,
    )


def _from_map(path: Path, text: str) -> Model:
    tensors: dict[str, TensorInfo] = {}
    notes = _MapNotes()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{shown(path)}:{number}"
        found = _fields_of(line.strip())
        if found is None:
            if not tensors:
                raise _no_inventory(path)
            raise CheckpointError(
                f"{where}: this is not a line of a tensor map",
                hint="a line is FILE:SHA256:NAME:shape=(NE0, NE1):dtype=TYPE:elements=N:bytes=N",
            )
        file, name, shape, fields = found
        tensor = _tensor(name, shape, fields["dtype"], file, where)
        if tensor.n_weights != int(fields["elements"]):
            raise CheckpointError(
                f"{where}: the shape has {tensor.n_weights} elements, not {fields['elements']}"
            )
        notes.compare(tensor, int(fields["bytes"]), where)
        notes.look_at(tensor, fields, where)
        _add(tensors, tensor, where)
    if not tensors:
        raise _no_inventory(path)
    return Model(path, "inventory", "", {}, tuple(tensors.values()), notes=notes.told(shown(path)))


def _fields_of(line: str) -> tuple[str, str, tuple[int, ...], dict[str, str]] | None:
    """File, tensor, shape (rows first) and fields of a line of a map; None if it is no such line."""
    head = _HEAD.fullmatch(line)
    if head is None:
        return None
    fields: dict[str, str] = {}
    for part in head["fields"].split(":"):
        key, _, value = part.partition("=")
        if key in fields:
            return None
        fields[key] = value
    shape = _SHAPE.fullmatch(fields.get("shape", ""))
    if shape is None or _TYPE.fullmatch(fields.get("dtype", "")) is None:
        return None
    if not all(_COUNT.fullmatch(fields.get(key, "")) for key in ("elements", "bytes")):
        return None
    extents = tuple(int(extent) for extent in reversed(shape[1].split(",")))
    return head["file"], head["name"], extents, fields


_MOST_FIELDS = 8  # with a note of their own


class _MapNotes:
    """What a map says otherwise than ggplan, or what ggplan does not use: tensors by kind."""

    def __init__(self) -> None:
        self._scales: dict[str, int] = {}  # tensor: bytes that the map leaves out
        self._padded: dict[str, int] = {}  # tensor: bytes that the map adds
        self._imatrices: dict[str, int] = {}  # hash: tensors
        self._unknown: dict[str, str] = {}  # field: the first line that has it

    def compare(self, tensor: TensorInfo, n_bytes: int, where: str) -> None:
        """Hold the size that a map says against the one that type and shape give.

        Raises
        ------
        CheckpointError
            If neither row scales nor padding explain the difference.
        """
        if n_bytes == tensor.n_bytes:
            return
        extra = tensor.type.row_extra_bytes
        blocks = tensor.n_bytes - tensor.n_rows * extra
        row_bytes, rest = divmod(n_bytes - blocks, tensor.n_rows)
        if extra and rest == 0 and 0 <= row_bytes <= _MOST_ROW_BYTES:
            self._scales[tensor.name] = tensor.n_bytes - n_bytes
            return
        for without_padding in (tensor.n_bytes, blocks):
            if any(n_bytes == -(-without_padding // a) * a for a in _ALIGNMENTS):
                self._padded[tensor.name] = n_bytes - without_padding
                if without_padding != tensor.n_bytes:
                    self._scales[tensor.name] = tensor.n_bytes - without_padding
                return
        raise CheckpointError(f"{where}: {tensor.type} takes {tensor.n_bytes} bytes, not {n_bytes}")

    def look_at(self, tensor: TensorInfo, fields: dict[str, str], where: str) -> None:
        """Keep which fields a line has that ggplan does not use."""
        if "imatrix" in fields:
            self._imatrices[fields["imatrix"]] = self._imatrices.get(fields["imatrix"], 0) + 1
        for key in fields:
            if key not in _KNOWN_FIELDS:
                self._unknown.setdefault(key, where)

    def told(self, file: str) -> tuple[str, ...]:
        """One note for each kind."""
        notes = []
        if self._scales:
            missing = sum(self._scales.values())
            counted = f"{format_bytes(abs(missing))} {'less' if missing > 0 else 'more'}"
            notes.append(
                f"{file} counts {counted} for the scales of rows of {_some(self._scales)}; "
                "ggplan plans with its own sizes"
            )
        if self._padded:
            notes.append(
                f"{file} counts {format_bytes(sum(self._padded.values()))} of padding as part of "
                f"{_some(self._padded)}; ggplan plans with its own sizes"
            )
        if self._imatrices:
            first = printable(next(iter(self._imatrices))[:12])
            n, n_tensors = len(self._imatrices), sum(self._imatrices.values())
            count = f"{n_tensors:,} tensor{'s' * (n_tensors > 1)}"
            what, whose = f"the importance matrix {first}", "its hash alone"
            if n > 1:
                what, whose = f"{n:,} importance matrices, the first {first},", "their hashes alone"
            notes.append(f"{file} names {what} for {count}: {whose}, which ggplan does not use")
        for key, where in list(self._unknown.items())[:_MOST_FIELDS]:
            notes.append(f"{where}: the field '{printable(key[:60])}' is not known and is not used")
        if (more := len(self._unknown) - _MOST_FIELDS) > 0:
            notes.append(f"{file}: {more:,} more fields are not known and are not used")
        return tuple(notes)


def _some(tensors: dict[str, int]) -> str:
    """A count of tensors and the first one's name."""
    first = printable(next(iter(tensors)))
    return f"tensor {first}" if len(tensors) == 1 else f"{len(tensors):,} tensors, the first {first}"


def _from_json(path: Path, root: dict[str, object]) -> Model:
    where = shown(path)
    if root.get("schema") != SCHEMA:
        raise CheckpointError(f"{where} is not an inventory: its schema is not {SCHEMA!r}")
    architecture, metadata = root.get("architecture", ""), root.get("metadata", {})
    entries = root.get("tensors")
    if not isinstance(architecture, str) or not isinstance(metadata, dict) or not isinstance(entries, list):
        raise CheckpointError(
            f"{where} needs `tensors` (list), `architecture` (text) and `metadata` (object)"
        )
    tensors: dict[str, TensorInfo] = {}
    for number, entry in enumerate(entries):
        _add(tensors, _read_tensor(entry, path.name, where, f"{where}: tensor {number}"), where)
    return Model(path, "inventory", architecture, _read_metadata(metadata, where), tuple(tensors.values()))


def _read_tensor(entry: object, origin: str, where: str, here: str) -> TensorInfo:
    name, shape, type_name, stored_as = _fields(entry, here)
    tensor = _tensor(name, shape, type_name, origin, where, stored_as)
    assert isinstance(entry, dict)
    if entry.get("codes") is None:
        return tensor
    return replace(tensor, codes=_read_codes(entry["codes"], tensor, where, f"{here}: `codes`"))


def _read_codes(entry: object, tensor: TensorInfo, where: str, here: str) -> Codes:
    """What becomes of a quantized tensor's codes; those of its companions have none."""
    texts = [entry.get(key) for key in ("form", "decoded", "why_decoded")] if isinstance(entry, dict) else []
    companions = entry.get("companions", []) if isinstance(entry, dict) else None
    if not texts or not all(isinstance(text, str) for text in texts) or not isinstance(companions, list):
        raise CheckpointError(f"{here} needs `form`, `decoded` and `why_decoded` as texts")
    form, decoded, why_decoded = map(str, texts)
    found = []
    for number, companion in enumerate(companions):
        name, shape, type_name, stored_as = _fields(companion, f"{here}: companion {number}")
        found.append(_tensor(name, shape, type_name, tensor.origin, where, stored_as))
    type_ = _tensor(tensor.name, tensor.shape, decoded, tensor.origin, where).type
    assert isinstance(entry, dict)
    bits, widened = entry.get("bits", 0), entry.get("widened", "")  # older inventories do not say
    if type(bits) not in (int, float) or not 0 <= bits <= _MOST_BITS or not isinstance(widened, str):
        raise CheckpointError(f"{here}: `bits` is no number up to {_MOST_BITS}, or `widened` no text")
    return Codes(form, type_, why_decoded, tuple(found), bits=float(bits), widened=widened)


def _fields(entry: object, where: str) -> tuple[str, tuple[int, ...], str, str]:
    """Name, shape, type and stored_as of a tensor's JSON."""
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is not an object")
    name, shape, type_name = entry.get("name"), entry.get("shape"), entry.get("type")
    stored_as = entry.get("stored_as", type_name)
    if not (isinstance(name, str) and isinstance(type_name, str) and isinstance(stored_as, str)):
        raise CheckpointError(f"{where} needs `name`, `type` and `stored_as` as texts")
    if (
        not isinstance(shape, list)
        or not shape
        or not all(type(extent) is int and extent >= 0 for extent in shape)
    ):
        raise CheckpointError(f"{where} needs a `shape`: a list of whole numbers, rows first")
    return name, tuple(shape), type_name, stored_as


def _tensor(
    name: str, shape: tuple[int, ...], type_name: str, origin: str, where: str, stored_as: str = ""
) -> TensorInfo:
    """A tensor without weights; its name, shape and type must be possible in a GGUF file."""
    type_ = _TYPES.get(type_name.lower())
    if type_ is None:
        raise CheckpointError(
            f"{where}: tensor '{shown(name)}' has the unknown type '{shown(type_name)}'",
            hint="`ggplan types` lists all types",
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise CheckpointError(
            f"{where}: tensor '{shown(name)}' has a name longer than {MAX_NAME_BYTES} bytes"
        )
    if fault := shape_fault(shape, type_):
        raise CheckpointError(f"{where}: tensor '{shown(name)}' {fault}")
    return TensorInfo(name, shape, type_, origin, stored_as or type_.name)


def _add(tensors: dict[str, TensorInfo], tensor: TensorInfo, where: str) -> None:
    if tensor.name in tensors:
        raise CheckpointError(f"{where}: tensor '{shown(tensor.name)}' is there twice")
    tensors[tensor.name] = tensor


def _value_json(value: MetadataValue) -> dict[str, object]:
    if value.item_type is None:
        return {"type": value.type.name.lower(), "value": _scalar_json(value.decode())}
    described: dict[str, object] = {
        "type": "array",
        "item_type": value.item_type.name.lower(),
        "length": value.length,
    }
    if value.length <= _ARRAY_LIMIT:
        described["value"] = [_scalar_json(item) for item in value.decode_items(value.length)]
    return described


def _scalar_json(item: object) -> object:
    """JSON has no infinities and no NaN: they become the texts "inf", "-inf" and "nan"."""
    return str(item) if isinstance(item, float) and not math.isfinite(item) else item


def _read_metadata(entries: dict[str, object], where: str) -> Metadata:
    metadata: Metadata = {}
    for key, entry in entries.items():
        here = f"{where}: the metadata '{shown(key)}'"
        if not isinstance(entry, dict):
            raise CheckpointError(f"{here} is not an object")
        kind, value = entry.get("type"), entry.get("value")
        if kind != "array":
            type_ = _value_type(kind, here)
            metadata[key] = scalar(type_, _read_scalar(type_, value, here))
        elif "value" in entry:
            type_ = _value_type(entry.get("item_type"), here)
            if not isinstance(value, list):
                raise CheckpointError(f"{here} is not a list")
            metadata[key] = array(type_, [_read_scalar(type_, item, here) for item in value])
    return metadata


def _value_type(name: object, where: str) -> MetadataType:
    for type_ in MetadataType:
        if type_ is not MetadataType.ARRAY and type_.name.lower() == name:
            return type_
    raise CheckpointError(f"{where} has the unknown type '{shown(name)}'")


def _read_scalar(type_: MetadataType, value: object, where: str) -> Scalar:
    if type_ is MetadataType.STRING:
        fits = isinstance(value, str)
    elif type_ is MetadataType.BOOL:
        fits = isinstance(value, bool)
    elif type_ in (MetadataType.FLOAT32, MetadataType.FLOAT64):
        if isinstance(value, str) and value in ("inf", "-inf", "nan"):
            return float(value)
        fits = type(value) in (int, float)
    else:
        fits = type(value) is int
    if not fits:
        raise CheckpointError(f"{where} is not a valid {type_.name.lower()}: {shown(value)}")
    return value  # type: ignore[return-value]
