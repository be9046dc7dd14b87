"""The arrays of a trie drawn by hand, then its ranges and live counts against sets of prefixes; and the mistakes."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.decoding.trie import Restriction, build_trie, restrict
from t5x_lite.errors import UserError

#   item 0: 3 1      item 1: 2      item 2: 3 4 1      item 3: 2 5 1      item 4: 3 4 6
#
#   leaves in order: 2 | 2 5 1 | 3 1 | 3 4 1 | 3 4 6
#   items:           1     3      0      2       4
BY_HAND = [[3, 1], [2], [3, 4, 1], [2, 5, 1], [3, 4, 6]]

catalogues = st.lists(
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple), min_size=1, max_size=16, unique=True
)


LARGEST = build_trie([[token] for token in range(1, 17)])  # room for any of them
live = jax.jit(Restriction.live)


def assert_level(level, **expected):
    """Up to the places that are not used."""
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(level, name)[: len(values)], values, err_msg=name)


def padded(sequences):
    table = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, sequence in enumerate(sequences):
        table[row, : len(sequence)] = sequence
    return table


def test_arrays_drawn_by_hand():
    trie = build_trie(BY_HAND)
    first, second, third = trie.levels
    assert_level(first, first_child=[0, 2], token=[2, 3], first_leaf=[0, 2], last_leaf=[2, 5], ends=[True, False])
    assert_level(
        second,
        first_child=[0, 1, 3],
        token=[5, 1, 4],
        first_leaf=[1, 2, 3],
        last_leaf=[2, 3, 5],
        ends=[False, True, False],
    )
    assert_level(
        third,
        first_child=[0, 1, 1, 3],
        token=[1, 1, 6],
        first_leaf=[1, 3, 4],
        last_leaf=[2, 4, 5],
        ends=[True, True, True],
    )
    assert trie.items.tolist() == [1, 3, 0, 2, 4, -1]  # room for 6 = 1.5 * 4
    assert (trie.size, trie.branching, trie.ending) == (5, (2, 2, 2), (True, True, True))


@given(catalogues)
@settings(max_examples=50, deadline=None)
def test_every_node_is_a_prefix_and_holds_the_sequences_that_begin_with_it(sequences):
    trie = build_trie(sequences)
    ordered = [sequences[item] for item in trie.items[: trie.size]]
    assert ordered == sorted(sequences)
    paths = [()]
    for t, level in enumerate(trie.levels):
        children = zip(paths, level.first_child[:-1], level.first_child[1:], strict=False)
        paths = [(*path, int(level.token[n])) for path, first, end in children for n in range(first, end)]
        assert paths == sorted({sequence[: t + 1] for sequence in sequences if len(sequence) > t})
        for n, path in enumerate(paths):
            assert ordered[level.first_leaf[n] : level.last_leaf[n]] == [s for s in ordered if s[: t + 1] == path]
            assert level.ends[n] == (path in sequences)
        assert trie.ending[t] == any(len(sequence) == t + 1 for sequence in sequences)
        assert trie.branching[t] >= np.diff(level.first_child).max()
    tables = build_trie(padded(sequences))
    assert jax.tree.structure(tables) == jax.tree.structure(trie)
    jax.tree.map(np.testing.assert_array_equal, tables, trie)


def test_the_sequences_come_out_of_the_arrays_again():
    leaves = np.arange(6)
    found = jax.jit(lambda trie: trie.sequences(leaves))(build_trie(BY_HAND))
    np.testing.assert_array_equal(found, [[2, 0, 0], [2, 5, 1], [3, 1, 0], [3, 4, 1], [3, 4, 6], [0, 0, 0]])


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_live_counts_are_those_of_the_items_that_a_request_may_have(data):
    sequences = data.draw(catalogues)
    trie = build_trie(sequences, like=LARGEST)
    some_items = st.sets(st.integers(0, len(sequences) - 1))
    deny = data.draw(st.lists(some_items, min_size=3, max_size=3))
    # Two requests share one filter; some have none.
    shared = data.draw(some_items)
    allow = data.draw(st.sampled_from([None, [shared, None, shared], [shared, deny[0], deny[1]]]))
    restriction = restrict(trie, deny, allow)
    ranges = [(a, b) for b in range(17) for a in range(b + 1)]
    first, last = (np.tile(side, (3, 1)) for side in np.array(ranges).T)
    found = live(restriction, first, last)
    for row in range(3):
        allowed = set(range(len(sequences))) if allow is None or allow[row] is None else allow[row]
        remaining = allowed - deny[row]
        expected = [sum(item in remaining for item in trie.items[a:b]) for a, b in ranges]
        within = last[row] <= len(sequences)
        np.testing.assert_array_equal(found[row, within], np.array(expected)[within])


def test_a_filter_that_requests_share_is_kept_once():
    trie = build_trie(BY_HAND)
    for_all = [0, 1]
    assert restrict(trie, [[]] * 8, [for_all] * 8).allowed_before.shape == (1, trie.capacity + 1)
    assert restrict(trie, [[]] * 8, [None] * 8).allowed_before is None


def test_there_is_room_for_the_fewest_filters_where_any_request_has_one():
    trie = build_trie(BY_HAND)
    allow = [None, np.array([0, 1]), None]
    shown = [
        restrict(trie, [[]] * 3, allow, fewest_filters=fewest).allowed_before.shape[0] for fewest in (1, 2, 3, 4, 5)
    ]
    assert shown == [2, 2, 4, 4, 8]
    assert restrict(trie, [[]] * 3, [None] * 3, fewest_filters=4).allowed_before is None
    first, last = np.zeros((3, 1), np.int32), np.full((3, 1), 5, np.int32)
    assert live(restrict(trie, [[1], [1, 2], []], allow, fewest_filters=4), first, last).tolist() == [[4], [1], [5]]


def random_catalogue(size, seed, codes=16):
    """Distinct rows of three codes."""
    places = np.random.default_rng(seed).choice(codes**3, size, replace=False)
    return np.stack([places // codes**2, places // codes % codes, places % codes], axis=1) + 1


def shapes(trie):
    return jax.tree.map(np.shape, trie)


def test_catalogues_of_one_class_have_one_shape():
    assert shapes(build_trie(random_catalogue(700, 0))) == shapes(build_trie(random_catalogue(760, 1)))
    smaller, larger = random_catalogue(700, 0), random_catalogue(800, 1)
    assert shapes(build_trie(smaller)) != shapes(build_trie(larger))
    assert shapes(build_trie(smaller, like=build_trie(larger))) == shapes(build_trie(larger))


def test_a_trie_like_another_holds_its_own_sequences():
    like = dataclasses.replace(build_trie(random_catalogue(700, 0)), ending=(True, True, True))
    trie = build_trie([[9], [2]], like=like)  # two levels fewer
    assert shapes(trie) == shapes(like)
    leaves = np.arange(3)
    found = jax.jit(lambda trie: trie.sequences(leaves))(trie)
    np.testing.assert_array_equal(found, [[2, 0, 0], [9, 0, 0], [0, 0, 0]])
    assert trie.items[:3].tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "a catalogue needs at least one sequence"),
        ([[2], []], "sequence 1 is empty"),
        (np.array([[2, 3], [0, 0]]), "sequence 1 is empty"),
        ([[2], [3, 4], [5], [3, 4]], "sequences 1 and 3 are the same: [3, 4]"),
        ([[2], [3, 0, 4]], "sequence 1 has token 0: tokens are positive, 0 is padding"),
        ([[2], [3, 0]], "sequence 1 has token 0: tokens are positive, 0 is padding"),
        (np.array([[2, 3], [0, 4]]), "sequence 1 has token 0: tokens are positive, 0 is padding"),
        ([[-1]], "sequence 0 has token -1: tokens are positive, 0 is padding"),
    ],
)
def test_what_is_no_catalogue(sequences, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        build_trie(sequences)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_item_that_there_is_not(wrong):
    trie = build_trie(BY_HAND)
    message = f"^no item {wrong}: the catalogue has items 0 to 4$"
    with pytest.raises(UserError, match=message):
        restrict(trie, [[0, wrong]])
    with pytest.raises(UserError, match=message):
        restrict(trie, [[0]], [[wrong]])
