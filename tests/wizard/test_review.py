"""The review page's own words."""

from calculator.duration import DurationEstimate
from wizard.review import about


def test_a_span_is_told_only_where_its_ends_read_differently():
    wide, narrow = (DurationEstimate(low, 110, high, "", {}) for low, high in ((60, 240), (95, 128)))
    assert about(wide, "RTX 3060").plain == "about 2 min on RTX 3060, between 1 min and 4 min"
    assert about(narrow, "the processor").plain == "about 2 min on the processor"
