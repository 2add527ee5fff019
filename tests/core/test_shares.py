import pytest
from scipy.stats import binomtest

from pipeline.core.shares import counted, interval_text, percent_text, share_text, wilson_interval


@pytest.mark.parametrize(
    ("correct", "rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombes_table(correct: int, rows: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson_interval(correct, rows) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("confidence", [0.95, 0.999])
@pytest.mark.parametrize("rows", [1, 2, 7, 359, 10_000, 50_000])
def test_wilsons_interval_is_scipys_to_the_last_bit(rows: int, confidence: float) -> None:
    for correct in {*range(0, rows + 1, max(1, rows // 97)), rows}:
        scipys = binomtest(correct, rows).proportion_ci(confidence, method="wilson")
        assert wilson_interval(correct, rows, confidence) == (scipys.low, scipys.high)


def test_one_is_no_plural() -> None:
    assert [counted(n, "image") for n in (0, 1, 2, 12_000)] == ["0 images", "1 image", "2 images", "12,000 images"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_a_share_is_written_with_its_interval_also_where_all_rows_are_right() -> None:
    assert share_text(55, 120) == "0.4583 [0.3719, 0.5474]"
    assert percent_text(40, 40) == "100.0 % [91.2, 100.0]"
    assert interval_text(0, 20) == "[0.0, 16.1]"
    assert percent_text(0, 0) == share_text(0, 0) == "no rows"
