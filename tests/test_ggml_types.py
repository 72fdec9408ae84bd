import ctypes
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan import parse_type
from ggplan.errors import TypeNameError
from ggplan.ggml_types import TYPES, GgmlType, type_by_id
from ggplan.stock.mixes import ALIASES, MIXES

ROOT = Path(__file__).parent.parent
LLAMA_CPP = [t for t in TYPES if t.engine == "llama.cpp"]


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("libggml")
    assert spec is not None
    assert spec.origin is not None
    path = min(Path(spec.origin).parent.rglob("libggml-base.so*"))
    library = ctypes.CDLL(str(path))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.ggml_blck_size.restype = ctypes.c_int64
    return library


@pytest.mark.parametrize("entry", LLAMA_CPP, ids=str)
def test_table_agrees_with_ggml(ggml: ctypes.CDLL, entry) -> None:
    assert ggml.ggml_type_name(entry.id).decode() == entry.name
    assert ggml.ggml_blck_size(entry.id) == entry.block_size
    n_columns = 4 * entry.block_size
    assert ggml.ggml_row_size(entry.id, n_columns) == entry.row_bytes(n_columns)


@pytest.mark.parametrize("entry", TYPES, ids=str)
def test_what_requires_an_imatrix_is_what_ggml_asks_for(ggml: ctypes.CDLL, entry) -> None:
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    assert ggml.ggml_quantize_requires_imatrix(entry.id) == entry.requires_imatrix


@pytest.mark.parametrize("entry", TYPES, ids=str)
def test_a_fallback_has_shorter_blocks_and_is_known_to_its_engine(entry: GgmlType) -> None:
    for name, engines in (
        (entry.fallback, {"llama.cpp"}),
        (entry.ik_fallback, {"llama.cpp", "ik_llama.cpp"}),
    ):
        if name:
            instead = parse_type(name)
            assert instead.name == name
            assert instead.engine in engines
            assert instead.block_size < entry.block_size or entry.row_group > 1
            assert not instead.fallback
            assert not instead.ik_fallback


def test_file_types_are_those_of_the_mixes_named_after_types() -> None:
    numbers = {t.name: t.file_type for t in TYPES if t.file_type is not None}
    assert len(set(numbers.values())) == len(numbers)
    assert set(numbers) >= {t.name for t in TYPES if t.encodable}
    mixes = {mix.name: mix.file_type for mix in MIXES}
    named = {name: mixes.get(ALIASES.get(name.upper(), name.upper())) for name in numbers}
    assert {name for name in named if named[name] is None} == {"mxfp4", "nvfp4"}  # MXFP4_MOE, and none
    assert all(named[name] in (None, number) for name, number in numbers.items())
    assert len({mix.file_type for mix in MIXES}) == len(MIXES)


def test_the_documented_fallbacks_are_those_of_the_rows() -> None:
    text = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    table = text.partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    told = {}
    for line in table.splitlines():
        names, ours, ik = (cell.strip() for cell in line.strip("|").split("|"))
        told |= {name: (ours.replace("-", ""), ik.replace("-", "")) for name in names.split(", ")}
    plain = [t for t in TYPES if t.row_group == 1]
    assert told == {t.name: (t.fallback, t.ik_fallback) for t in plain if t.fallback or t.ik_fallback}
    # An interleaved type falls back as the type it interleaves does; no file holds the plain type of q8_k_r8.
    for entry in TYPES:
        base = entry.name.rpartition("_r")[0].lower()
        if entry.row_group > 1 and base != "q8_k":
            assert entry.ik_fallback == parse_type(base).ik_fallback


def test_the_readme_names_every_type_that_is_written() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("q2_K … q6_K", "q2_K q3_K q4_K q5_K q6_K")
    sentence = text.partition("- **Writes**")[2].partition("- **")[0]
    words = set(re.findall(r"\w+", sentence))
    assert words >= {t.name for t in TYPES if t.encodable}
    assert not words & {t.name for t in TYPES if not t.encodable}
    only = re.findall(r"\w+", sentence.partition("imatrix (")[2].partition(" only with one)")[0])
    assert {word for word in only if word != "and"} == {t.name for t in TYPES if t.requires_imatrix}


def test_every_type_has_its_own_id_and_name() -> None:
    assert len({t.id for t in TYPES}) == len({t.name.lower() for t in TYPES}) == len(TYPES)
    assert all(type_by_id(t.id) is t for t in TYPES)
    assert type_by_id(4) is None


@pytest.mark.parametrize("text", ["q4_K", "Q4_K", "q4_k", " q4_K "])
def test_names_are_read_in_any_case_and_printed_as_ggml_does(text: str) -> None:
    assert str(parse_type(text)) == "q4_K"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("Q4_K_M", "is a llama.cpp mix", "`q4_K`"),
        ("q3_k_l", "is a llama.cpp mix", "`q3_K`"),
        ("UD-Q4_K_XL", "is a llama.cpp mix", "`q4_K`"),
        ("IQ3_M", "is a llama.cpp mix", "one tensor type"),
        ("q8_K", "intermediate", "types"),
        ("q4_L", "unknown tensor type `q4_L`", "nearest"),
        ("", "unknown", "types"),
    ],
)
def test_what_is_no_type_says_why(text: str, message: str, hint: str) -> None:
    with pytest.raises(TypeNameError) as caught:
        parse_type(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_rows_with_bytes_of_their_own() -> None:
    # ik_llama.cpp's iq4_ks has one float scale for each row.
    assert parse_type("iq4_ks").tensor_bytes((3, 512)) == 3 * (2 * 136 + 4)
    assert parse_type("q8_0").tensor_bytes((2, 3, 64)) == 2 * 3 * 2 * 34


def test_a_row_must_hold_whole_blocks() -> None:
    with pytest.raises(ValueError, match="1408"):
        parse_type("q4_K").row_bytes(1408)


@given(st.text(max_size=20))
def test_any_text_is_a_type_or_a_clear_error(text: str) -> None:
    try:
        entry = parse_type(text)
    except TypeNameError:
        return
    assert entry.name.lower() == text.strip().lower()
