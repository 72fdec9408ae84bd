import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan import parse_type
from ggplan.errors import TypeNameError
from ggplan.ggml_types import TYPES, type_by_id

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
