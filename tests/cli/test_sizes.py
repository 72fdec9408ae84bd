import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggplan.cli.machine_options import ByteCounts
from ggplan.cli.sizes import ByteCount
from ggplan.text import has_unit, parse_bytes


@pytest.mark.parametrize(
    ("text", "kilo", "n_bytes"),
    [
        ("48G", 1000, 48 * 10**9),
        ("1G", 1024, 1 << 30),
        ("1.5GiB", 1000, 3 << 29),
        ("500mb", 1024, 500 * 10**6),
        ("12345", 1000, 12345),
        ("2T", 1000, 2 * 10**12),
    ],
)
def test_sizes(text: str, kilo: int, n_bytes: int) -> None:
    assert ByteCount(kilo).convert(text, None, None) == n_bytes


@pytest.mark.parametrize("text", ["3", "48", "1.5", "1023"])
def test_a_small_number_needs_a_unit(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"'{text}' has no unit: {text}G"):
        ByteCount(1024).convert(text, None, None)
    assert ByteCount(1024).convert("3B", None, None) == 3


@pytest.mark.parametrize("text", ["", "G", "0", "-1G", "1X", "1e9", "0.1", "9" * 40, "١G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size"):
        ByteCount(1000).convert(text, None, None)


@given(st.integers(0, 10**12 - 1), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB", "ib", "b"]))
def test_a_whole_number_with_a_unit(number: int, unit: str, end: str) -> None:
    base = 1024 if end.lower() == "ib" else 1000
    assert parse_bytes(f"{number}{unit}{end}", 1000) == int(float(number) * base ** ("KMGT".index(unit) + 1))
    assert parse_bytes(f" {number} {unit.lower()}{end} ", 1000) == parse_bytes(f"{number}{unit}{end}", 1000)


@given(st.text(max_size=12))
def test_no_text_is_a_bug(text: str) -> None:
    found = parse_bytes(text, 1024)
    assert found is None or found >= 0
    assert found is None or has_unit(text) == (not text.strip()[-1].isdigit())


def test_sizes_with_commas_between_them() -> None:
    assert ByteCounts().convert("24G,12G", None, None) == (24 << 30, 12 << 30)
    for text in ("24G,", ",", "24G,-1G", "24G;12G"):
        with pytest.raises(click.BadParameter, match="is not a size"):
            ByteCounts().convert(text, None, None)
