import pytest

from tinyvgg.bench.ratios import Ratio, bootstrap_medians, bootstrap_ratio


def test_equal_ratios_have_no_width() -> None:
    assert bootstrap_ratio([2.0] * 5) == Ratio(2.0, 2.0, 2.0)


def test_two_medians_are_compared_with_the_windows_of_both() -> None:
    ratio = bootstrap_medians([20.0, 22.0, 24.0], [10.0, 11.0, 12.0])

    assert ratio.median == 2.0
    assert 20 / 12 <= ratio.low < 2 < ratio.high <= 24 / 10


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(1.3, 1.1, 1.5), "faster"),
        (Ratio(0.7, 0.5, 0.9), "slower"),
        (Ratio(0.9, 0.7, 1.01), "no difference"),
        (Ratio(0.99, 0.985, 0.995), "no difference"),  # sure, and too small to matter
    ],
)
def test_a_verdict_needs_an_interval_without_one_and_more_than_two_percent(
    ratio: Ratio, verdict: str
) -> None:
    assert ratio.verdict == verdict


def test_a_ratio_has_as_many_digits_as_help() -> None:
    assert str(Ratio(1.234, 1.1, 1.456)) == "1.23 x [1.10 to 1.46]"
    assert str(Ratio(1234.56, 39.0, 55.21)) == "1,234.6 x [39.0 to 55.2]"
