import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan import metadata
from ggplan.errors import CheckpointError
from ggplan.metadata import MetadataType


@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=["Cs"]))))
def test_strings_come_back(values: list[str]) -> None:
    assert metadata.array(MetadataType.STRING, values).decode() == values


@given(st.lists(st.integers(-(2**31), 2**31 - 1)), st.integers(0, 5))
def test_numbers_come_back_whole_and_in_part(values: list[int], limit: int) -> None:
    value = metadata.array(MetadataType.INT32, values)
    assert value.decode() == values
    assert value.decode_items(limit) == values[:limit]


@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_number_that_does_not_fit_is_an_error(value: int) -> None:
    with pytest.raises(CheckpointError, match="uint32"):
        metadata.uint32(value)


def test_encoding_is_the_one_of_the_format() -> None:
    assert metadata.uint32(7).encode() == bytes.fromhex("04000000 07000000")
    assert metadata.boolean(True).encode() == bytes.fromhex("07000000 01")
    assert metadata.string("ab").encode() == bytes.fromhex("08000000 0200000000000000 6162")
    array = metadata.array(MetadataType.UINT8, [1, 2])
    assert array.encode() == bytes.fromhex("09000000 00000000 0200000000000000 0102")


def test_bytes_that_are_not_utf8_do_not_stop_a_reader() -> None:
    value = metadata.MetadataValue(MetadataType.STRING, b"\x02\0\0\0\0\0\0\0\xff\xfe")
    assert value.decode() == "��"
