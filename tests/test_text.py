import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.text import format_bytes, printable


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (16384, "16.0 KiB"),
        (999 * 1024, "999 KiB"),
        (1000 * 1024, "0.98 MiB"),
        (86595537120, "80.6 GiB"),
        (2**60, "1.00 EiB"),
    ],
)
def test_sizes_have_three_digits(n_bytes: int, text: str) -> None:
    assert format_bytes(n_bytes) == text


@given(st.text())
def test_nothing_printable_can_drive_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
