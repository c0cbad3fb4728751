"""A trend is one only when chance would hardly make it."""

import pytest

from wizard.trend import Sample, trend, welch_t


def test_welch_t_matches_the_worked_example():
    """Means 2 and 5, variances 1 and 4 over 3 and 3 values: (5 - 2) / sqrt(1/3 + 4/3) = 2.3238."""
    before, after = Sample.of([1.0, 2.0, 3.0]), Sample.of([3.0, 5.0, 7.0])
    assert welch_t(before, after) == pytest.approx(2.32379, abs=1e-5)


def test_steadily_is_said_only_when_each_third_lies_below_the_one_before(losses):
    falls_throughout = trend(losses(lambda share: 0.4 - 0.3 * share, 1200, 3))
    falls_then_stays = trend(losses(lambda share: 0.4 if share < 1 / 3 else 0.2, 1200, 3))
    assert falls_throughout is not None
    assert falls_throughout.direction == "steadily falling"
    assert falls_then_stays is not None
    assert falls_then_stays.direction == "falling"
