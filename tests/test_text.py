import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.text import decode_text, format_bytes, printable


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


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_text_of_any_windows_program(encoding: str) -> None:
    text = "0.00.041.320 I perplexity: 20.7 ± 0.6\r\nΔp\r\n"
    mark = "\ufeff" if encoding == "utf-32-be" else ""
    assert decode_text((mark + text).encode(encoding)) == text.replace("\r\n", "\n")


def test_text_without_a_mark_is_utf_8() -> None:
    assert decode_text(b"") == ""
    assert decode_text(b"a") == "a"
    assert decode_text("±Δ中文".encode()) == "±Δ中文"
    assert decode_text(b"20.7 \xb1 0.6") == "20.7 \ufffd 0.6"
    with pytest.raises(UnicodeDecodeError):
        decode_text(b"\xb1", "strict")
