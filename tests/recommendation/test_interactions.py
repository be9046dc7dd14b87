"""Cores and orders by hand, and that neither depends on how a file is written."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.interactions import Dataset, Interactions


def dataset(rows, users, items):
    """Of (user, item, time, rating) by number."""
    user, item, time, rating = (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 4
    interactions = Interactions(
        users=tuple(users),
        user=np.array(user, np.int32),
        item=np.array(item, np.int32),
        time=np.array(time, np.int64),
        rating=np.array(rating, np.float32),
    )
    return Dataset("by hand", Catalogue(tuple(items), tuple(items)), interactions)


def lists(arrays):
    return [array.tolist() for array in arrays]


def test_a_sequence_is_in_the_order_of_time():
    data = dataset([(1, 0, 30, 3), (0, 2, 5, 1), (1, 1, 10, 2), (1, 2, 20, 5)], "ab", "xyz")
    assert lists(data.sequences()) == [[2], [1, 2, 0]]
    assert lists(data.ratings_in_order()) == [[1], [2, 5, 3]]


def test_a_user_without_interactions_has_an_empty_sequence():
    assert lists(dataset([(1, 0, 30, 3)], "abc", "x").sequences()) == [[], [0], []]
    assert lists(dataset([], "ab", "x").sequences()) == [[], []]
    assert lists(dataset([], "", "x").sequences()) == []


def test_interactions_of_one_time_are_ordered_by_their_hash():
    # By sha256sum: u|b|7 is 0c4b..., u|a|7 is 118a... and u|c|7 is 71fa...
    rows = [(0, 0, 7, 1), (0, 1, 7, 2), (0, 2, 7, 3), (0, 3, 6, 4), (0, 3, 8, 5)]
    data = dataset(rows, "u", "abcd")
    assert lists(data.sequences()) == [[3, 1, 0, 2, 3]]
    assert lists(data.ratings_in_order()) == [[4, 2, 1, 3, 5]]


rows_of_few = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2), st.integers(1, 5)), max_size=30
)


@given(rows_of_few, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_sequences_are_sorted_by_time_and_hash_however_the_rows_and_numbers_are_mixed(rows, random):
    users, items = ["u1", "u2", "u3", "u4", "u5"], ["a", "b", "c", "d", "e"]

    def key(row):
        user, item, time, _ = row
        return time, hashlib.sha256(f"{users[user]}|{items[item]}|{time}".encode()).hexdigest()

    expected = [[items[row[1]] for row in sorted(rows, key=key) if row[0] == user] for user in range(5)]
    places = random.sample(range(5), 5)  # of the items in the catalogue
    mixed = [(user, places.index(item), time, rating) for user, item, time, rating in rows]
    random.shuffle(mixed)
    data = dataset(mixed, users, [items[place] for place in places])
    assert [[data.catalogue.ids[item] for item in sequence] for sequence in data.sequences()] == expected


def test_many_ties_are_ordered_like_few(monkeypatch):
    rows = [(user, item, 1, 1) for user in range(3) for item in range(9)]
    expected = lists(dataset(rows, "uvw", "abcdefghi").sequences())
    monkeypatch.setattr("t5x_lite.recommendation.interactions._CHUNK", 4)
    assert lists(dataset(rows, "uvw", "abcdefghi").sequences()) == expected


def test_a_core_by_hand():
    # Item z has one user only; without it, c has one item only; without c, y has a and b still.
    rows = [(0, 0, 1, 1), (0, 1, 2, 2), (1, 0, 3, 3), (1, 1, 4, 4), (2, 1, 5, 5), (2, 2, 6, 1)]
    core = dataset(rows, "abc", "xyz").core(2)
    assert core.interactions.users == ("a", "b")
    assert core.catalogue.ids == ("x", "y")
    assert lists(core.sequences()) == [[0, 1], [0, 1]]
    assert lists(core.ratings_in_order()) == [[1, 2], [3, 4]]
    assert core.interactions.item.dtype == core.interactions.user.dtype == np.int32


def test_numbers_in_a_core_are_those_of_what_remains():
    rows = [(0, 0, 1, 1), (1, 1, 1, 1), (1, 3, 2, 2), (2, 1, 3, 3), (2, 3, 4, 4)]
    core = dataset(rows, "abc", "wxyz").core(2)
    assert (core.interactions.users, core.catalogue.ids) == (("b", "c"), ("x", "z"))
    assert lists(core.sequences()) == [[0, 1], [0, 1]]


@given(rows_of_few, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_a_core_is_what_remains_when_the_rare_are_taken_away_one_by_one(rows, k):
    remaining = list(rows)
    while True:
        rare = [row for row in remaining if any(sum(row[c] == other[c] for other in remaining) < k for c in (0, 1))]
        if not rare:
            break
        remaining.remove(rare[0])
    core = dataset(rows, "abcde", "vwxyz").core(k)
    data = core.interactions
    triples = zip(data.user.tolist(), data.item.tolist(), data.time.tolist(), strict=True)
    found = [(data.users[user], core.catalogue.ids[item], time) for user, item, time in triples]
    assert found == [("abcde"[user], "vwxyz"[item], time) for user, item, time, _ in remaining]
    assert list(data.users) == sorted({user for user, _, _ in found})
    assert list(core.catalogue.ids) == sorted({item for _, item, _ in found})


def test_without_ratings():
    data = dataset([(0, 0, 1, 1)], "a", "x")
    interactions = Interactions(("a",), data.interactions.user, data.interactions.item, data.interactions.time)
    unrated = Dataset("unrated", data.catalogue, interactions)
    assert unrated.ratings_in_order() is None
    assert unrated.core(1).interactions.rating is None
