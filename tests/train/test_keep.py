"""best/ is the newest validation that keeps up with the record."""

import pytest

from tpdm.train.keep import keeps_up


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ([0.9, 0.6, 0.8, 0.5], True),  # higher
        ([0.8, 0.6, 0.7, 0.5], True),  # equal
        ([0.9, 0.6, 0.6, 0.4], True),  # lower by .025, with an error of .048
        ([0.7, 0.5, 0.61, 0.4], False),  # lower by .0975 everywhere
    ],
)
def test_only_what_is_significantly_below_the_record_is_left_out(now, expected):
    assert keeps_up(now, [0.8, 0.6, 0.7, 0.5]) is expected


def test_one_image_has_no_error_to_hide_in():
    assert keeps_up([0.5], [0.5])
    assert not keeps_up([0.4], [0.5])
