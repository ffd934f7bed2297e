"""Inception score: its bounds, and what it refuses."""

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.metrics import inception_score, inception_score_of_logits


@pytest.fixture
def logits():
    return np.random.Generator(np.random.PCG64(0)).standard_normal((40, 5)) * 3


def test_its_bounds_are_one_and_the_number_of_classes():
    assert inception_score(np.full((20, 4), 0.25), 2) == pytest.approx((1, 0))
    assert inception_score(np.eye(4)[np.arange(20) % 4], 5) == pytest.approx((4, 0))


def test_logits_and_their_probabilities_have_one_score(logits):
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert inception_score_of_logits(logits, 4) == pytest.approx(inception_score(probabilities, 4), rel=1e-12)
    # Where a probability is too small for a number, its logarithm still is one.
    assert np.isfinite(inception_score_of_logits(logits * 1000, 4)).all()


def test_one_split_is_blind_to_order_and_several_are_not(logits):
    turned = np.arange(40)[::-1]
    assert inception_score_of_logits(logits, 1) == pytest.approx(
        inception_score_of_logits(logits, 1, order=turned), rel=1e-12
    )
    order = np.argsort(logits[:, 0])
    assert abs(inception_score_of_logits(logits, 4)[0] - inception_score_of_logits(logits, 4, order=order)[0]) > 0.01


def test_a_remainder_is_kept_unless_it_is_to_be_dropped(logits):
    kept = inception_score_of_logits(logits[:39], 4)
    assert kept != pytest.approx(inception_score_of_logits(logits[:39], 4, drop_remainder=True))
    cut = inception_score_of_logits(logits[:36], 4)
    assert cut == pytest.approx(inception_score_of_logits(logits[:39], 4, drop_remainder=True))


def test_what_are_no_probabilities_or_too_few_is_refused(logits):
    with pytest.raises(UserError, match="inception_score_of_logits"):
        inception_score(logits)
    with pytest.raises(UserError, match="sum to 1"):
        inception_score(np.full((20, 4), 0.3))
    with pytest.raises(UserError, match="splits: 10 .*1 to 4"):
        inception_score(np.full((4, 4), 0.25))
    with pytest.raises(UserError, match="logits: '1 rows hold NaN"):
        inception_score_of_logits(np.where(np.arange(40)[:, None] == 3, np.inf, logits))
