"""Splits of a dataset that fits on a page."""

import itertools
import re

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.interactions import Dataset, Interactions
from t5x_lite.recommendation.splits import by_time, leave_one_out


def dataset(sequences, ratings=True):
    """Of (item, time) pairs for each user; a rating is 10 times the item."""
    rows = [(user, item, time) for user, pairs in enumerate(sequences) for item, time in pairs]
    user, item, time = np.array(rows).T
    interactions = Interactions(
        users=tuple(f"u{user}" for user in range(len(sequences))),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time=time.astype(np.int64),
        rating=(10 * item).astype(np.float32) if ratings else None,
    )
    return Dataset("by hand", Catalogue(tuple("abcdef"), tuple("abcdef")), interactions)


def lists(arrays):
    return [array.tolist() for array in arrays]


#          day    1  2  3  4  5  6  7  8  9  10
#   user 0        0     1     2              3
#   user 1           4                 5
#   user 2                       0  1     2
#   user 3                          3
SEQUENCES = [[(0, 1), (1, 3), (2, 5), (3, 10)], [(4, 2), (5, 8)], [(0, 6), (1, 7), (2, 9)], [(3, 7)]]


def test_the_last_two_of_each_user_are_held_out():
    split = leave_one_out(dataset(SEQUENCES))
    assert lists(split.train) == [[0, 1], [4, 5], [0], [3]]  # users 1 and 3 have too few to be asked
    assert split.validation.user.tolist() == split.test.user.tolist() == [0, 2]
    assert lists(split.validation.histories) == [[0, 1], [0]]
    assert split.validation.target.tolist() == [2, 1]
    assert lists(split.test.histories) == [[0, 1, 2], [0, 1]]
    assert split.test.target.tolist() == [3, 2]
    assert len(split.test) == 2


def test_items_that_training_never_sees_are_cold():
    split = leave_one_out(dataset(SEQUENCES))
    assert split.num_items == 6
    assert split.cold.tolist() == [False, False, True, False, False, False]


def test_ratings_go_with_the_training_items():
    assert lists(leave_one_out(dataset(SEQUENCES)).train_ratings) == [[0, 10], [40, 50], [0], [30]]
    assert leave_one_out(dataset(SEQUENCES, ratings=False)).train_ratings is None


def test_orders_shuffle_what_was_taken_at_one_time_and_nothing_else():
    split = leave_one_out(dataset([[(0, 1), (1, 2), (2, 2), (3, 2), (4, 3), (5, 4), (0, 5)], [(1, 1)]]))
    orders = [tuple(split.train[0][order].tolist()) for order in split.orders(0, 60)]
    assert set(orders) == {(0, *middle, 4) for middle in itertools.permutations((1, 2, 3))}
    assert lists(split.orders(0, 60)) == lists(split.orders(0, 60))
    assert lists(split.orders(1, 2)) == [[0], [0]]


def test_all_users_are_cut_at_the_same_times():
    # Of the days 1 2 3 5 6 7 7 8 9 10 the last two begin with 9, the last five with 7.
    split = by_time(dataset(SEQUENCES), validation=0.3, test=0.2)
    assert lists(split.train) == [[0, 1, 2], [4], [0], []]
    assert lists(split.train_ratings) == [[0, 10, 20], [40], [0], []]
    assert split.validation.user.tolist() == [1, 2]  # user 3 has no history
    assert (lists(split.validation.histories), split.validation.target.tolist()) == ([[4], [0]], [5, 1])
    assert split.test.user.tolist() == [0, 2]
    assert (lists(split.test.histories), split.test.target.tolist()) == ([[0, 1, 2], [0, 1]], [3, 2])


def test_the_first_item_after_a_cut_is_asked_for_with_all_before_it():
    #  user 0: 0 1 | 2 3 | 4 5     user 1: 3 | | 2     user 2: | 1 4 |     user 3: | | 5     (cuts at 5 and 9)
    sequences = [
        [(0, 1), (1, 2), (2, 5), (3, 6), (4, 9), (5, 10)],
        [(3, 3), (2, 10)],
        [(1, 7), (4, 8)],
        [(5, 10)],
    ]
    split = by_time(dataset(sequences), validation=4 / 11, test=4 / 11)
    assert lists(split.train) == [[0, 1], [3], [], []]
    assert split.validation.user.tolist() == [0]  # users 2 and 3 have no history then
    assert (lists(split.validation.histories), split.validation.target.tolist()) == ([[0, 1]], [2])
    assert split.test.user.tolist() == [0, 1]
    assert lists(split.test.histories) == [[0, 1, 2, 3], [3]]
    assert split.test.target.tolist() == [4, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: leave_one_out(dataset([[(0, 1), (1, 2)]])), "by hand: no user has 3 interactions or more"),
        (
            lambda: by_time(dataset(SEQUENCES), 0.5, 0.5),
            "shares of validation 0.5 and test 0.5: both above 0, and less",
        ),
        (
            lambda: by_time(dataset(SEQUENCES), 0.0, 0.5),
            "shares of validation 0.0 and test 0.5: both above 0, and less",
        ),
        (
            lambda: by_time(dataset([[(0, 1), (1, 2)], [(2, 8), (3, 9)]])),
            "by hand: no user has a history before the validation time and an item after it",
        ),
    ],
)
def test_what_cannot_be_split(make, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make()
