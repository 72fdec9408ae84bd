"""The inputs of a model's matrices, as a calibration describes them.

Several matrices share one input: q, k and v; gate and up. An input has slices: one, or one for each expert or
each matrix of a stack. How its second moments are kept:

    h        {key}.h       f32 (slices, n, n)       the moments themselves
    rows     {data}        bf16 (all tokens, n)     the inputs, first those of slice 0; of one slice there
                                                    may be more rows, of tokens that went to experts alone
    routed   {data}        bf16 (tokens, n)         the inputs of all tokens, which other matrices share, and
             {key}.routes  i32 (tokens, k)          for each token the experts that it was sent to

whichever takes least room. Beside it `{key}.squares` and `{key}.mean`, f32 (slices, n): the sum of the
squares and the mean of each column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ggplan.errors import CalibrationError
from ggplan.sources.files import shown

Form = Literal["h", "rows", "routed"]


@dataclass(frozen=True, slots=True)
class Input:
    """One input of matrices.

    Attributes
    ----------
    key
        The beginning of the names that its data have in the layer's file.
    name
        What it is, in the engine's words: `ffn_norm`.
    tensors
        The GGUF names of the matrices that have it.
    n_columns
        Its length.
    experts
        Whether its slices are experts: each token goes to a few of them.
    form
        How its second moments are kept.
    data
        The name of the data that they are kept in.
    tokens
        For each slice, how many tokens it saw.
    """

    key: str
    name: str
    tensors: tuple[str, ...]
    n_columns: int
    experts: bool
    form: Form
    data: str
    tokens: tuple[int, ...]

    @property
    def n_slices(self) -> int:
        """Experts, matrices of a stack, or 1."""
        return len(self.tokens)

    @property
    def routes(self) -> str:
        """The name of the routes."""
        return f"{self.key}.routes"

    @property
    def squares(self) -> str:
        """The name of the sums of squares."""
        return f"{self.key}.squares"

    @property
    def mean(self) -> str:
        """The name of the means."""
        return f"{self.key}.mean"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"tensors": list(self.tensors), "tokens": list(self.tokens)}


def input_from_json(value: object, where: str) -> Input:
    """An input from JSON values that are not trusted; `where` names them in errors.

    Raises
    ------
    CalibrationError
        If they are not as `Input.to_json` gives them.
    """
    members = members_of(value, where)
    expected = set(Input.__dataclass_fields__)
    if members.keys() != expected:
        wrong = sorted(members.keys() ^ expected)
        raise CalibrationError(f"{where} has the wrong members: {shown(', '.join(wrong))}")
    strings = [members[name] for name in ("key", "name", "data")]
    tensors, tokens = members["tensors"], members["tokens"]
    if not all(isinstance(text, str) for text in strings):
        raise CalibrationError(f"{where} has a name that is no text")
    if not isinstance(tensors, list) or not tensors or not all(isinstance(t, str) and t for t in tensors):
        raise CalibrationError(f"{where} does not name its tensors")
    if not isinstance(tokens, list) or not tokens or not all(is_count(n) for n in tokens):
        raise CalibrationError(f"{where} does not say what its slices saw")
    if not is_count(members["n_columns"]) or not members["n_columns"]:
        raise CalibrationError(f"{where} has {shown(members['n_columns'])} columns")
    if members["form"] not in get_args(Form) or not isinstance(members["experts"], bool):
        raise CalibrationError(f"{where} is kept in an unknown form, {shown(members['form'])}")
    return Input(**{**members, "tensors": tuple(tensors), "tokens": tuple(tokens)})


def members_of(value: object, where: str) -> Mapping[str, Any]:
    """The members of a JSON object.

    Raises
    ------
    CalibrationError
        If it is none.
    """
    if not isinstance(value, dict):
        raise CalibrationError(f"{where} is not a JSON object")
    return value


def is_count(value: object) -> bool:
    """Whether a JSON value is a whole number, 0 or more, that no sum of them overflows."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48
