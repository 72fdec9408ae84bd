import click
import pytest

from ggplan.cli.sizes import ByteCount


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
