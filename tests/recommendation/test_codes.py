"""Small cases by hand, then dense singular vectors and greedy search written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.recommendation import codes
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.codes import Codebooks

# Two groups far from each other, of two pairs each.
ON_A_LINE = np.array([[0], [1], [10], [11], [100], [101], [110], [111]], np.float32)
BY_HAND = Codebooks(np.array([[[5.5], [105.5]], [[-5], [5]]], np.float32), room=2)


def arrays(*rows):
    return [np.array(row, np.int32) for row in rows]


@pytest.mark.parametrize(
    ("num_items", "size"),
    [
        (3, (2, 64)),
        (2048, (2, 64)),
        (2049, (2, 128)),
        (4999, (2, 128)),
        (5000, (3, 64)),
        (131_073, (3, 128)),
        (2_000_000, (3, 256)),
        (10**9, (3, 256)),
    ],
)
def test_codebooks_have_two_places_for_an_item_up_to_the_largest(num_items, size):
    assert codes.default_size(num_items) == size


def dense_embeddings(train, num_items, dimension):
    """By numpy's own singular vectors."""
    taken = np.zeros((len(train), num_items))
    for user, items in enumerate(train):
        taken[user, items] = 1
    users, items = taken.sum(axis=1), taken.sum(axis=0)
    users, items = users + users.mean() / 10, items + items.mean() / 10
    _, values, vectors = np.linalg.svd(taken / np.sqrt(users[:, None] * items), full_matrices=False)
    rows = (vectors.T * values)[:, :dimension]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dimension", [1, 3, 12])
def test_embeddings_are_singular_vectors(dimension):
    rng = np.random.default_rng(0)
    train = [rng.choice(12, 4, replace=False) for _ in range(30)]
    found = codes.collaborative_embeddings(train, 12, dimension)
    expected = dense_embeddings(train, 12, dimension)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)  # whatever the signs


def test_a_matrix_of_low_rank_has_as_many_dimensions():
    found = codes.collaborative_embeddings(arrays([0, 1], [0, 1], [2]), 3, 64)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found @ found.T, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-5)


def test_taking_an_item_twice_counts_once_and_one_that_nobody_took_is_zero():
    once = codes.collaborative_embeddings(arrays([0, 1], [1, 3], [0, 3], []), 5, 3)
    twice = codes.collaborative_embeddings(arrays([0, 1, 0, 0], [1, 3], [3, 0, 3], []), 5, 3)
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_allclose(np.linalg.norm(once, axis=1), [1, 1, 0, 1, 0], atol=1e-6)


def test_each_codebook_is_fitted_to_what_the_one_before_leaves():
    found = codes.fit_codebooks(ON_A_LINE, levels=2, size=2, room=7)
    assert sorted(found.centroids[0, :, 0]) == [5.5, 105.5]
    assert sorted(found.centroids[1, :, 0]) == [-5, 5]
    assert found.room == 7


@pytest.mark.parametrize("seed", range(8))
def test_no_centroid_is_without_points(seed):
    """However unlucky the start: three of these are nearest to one point each, and a mean has the rest."""
    points = np.array([[0], [0], [0], [0], [0], [0], [50], [90]], np.float32)
    found = codes.fit_codebooks(points, levels=1, size=3, room=1, seed=seed)
    assert sorted(found.centroids[0, :, 0]) == [0, 50, 90]


def test_fewer_items_than_centroids_have_one_each():
    found = codes.fit_codebooks(ON_A_LINE[:3], levels=2, size=64, room=64)
    assert found.centroids.shape == (2, 3, 1)
    assert sorted(found.centroids[0, :, 0]) == [0, 1, 10]


def test_a_sample_is_enough_for_many_items():
    many = np.repeat(ON_A_LINE, 200, axis=0)
    found = codes.fit_codebooks(many, levels=1, size=2, room=1)
    np.testing.assert_allclose(sorted(found.centroids[0, :, 0]), [5.5, 105.5], atol=1)


def test_items_with_the_same_centroids_are_numbered():
    found = BY_HAND.assign(ON_A_LINE)
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(BY_HAND.reconstruct(found)[:, 0], [0.5, 0.5, 10.5, 10.5, 100.5, 100.5, 110.5, 110.5])


def test_new_items_get_the_next_number():
    taken = np.array([[0, 0, 0], [1, 1, 0]], np.int32)
    np.testing.assert_array_equal(BY_HAND.assign(np.float32([[111], [0]]), taken), [[1, 1, 1], [0, 0, 1]])


def test_where_no_number_is_left_the_later_items_go_to_the_next_nearest():
    found = BY_HAND.assign(np.float32([[0], [1], [2], [99], [1], [2]]))
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 1]]
    np.testing.assert_array_equal(found, expected)


def test_all_codes_can_be_taken_and_no_more():
    found = BY_HAND.assign(np.zeros((7, 1), np.float32))
    last = BY_HAND.assign(np.float32([[0]]), found)
    assert len({*map(tuple, found.tolist()), *map(tuple, last.tolist())}) == 8
    with pytest.raises(UserError, match=r"^all 8 codes of the item index are taken; train again with a larger"):
        BY_HAND.assign(np.float32([[0]]), np.concatenate([found, last]))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_codes_differ_and_are_the_greedily_nearest_where_there_is_room(data):
    levels, size, room = (data.draw(st.integers(1, 3)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    books = Codebooks(rng.normal(size=(levels, size, 2)).astype(np.float32), room)
    points = rng.normal(size=(data.draw(st.integers(1, room * size**levels)), 2)).astype(np.float32)
    half = len(points) // 2
    first = books.assign(points[:half])
    found = np.concatenate([first, books.assign(points[half:], first)])
    assert found.min() >= 0 and found[:, :-1].max() < size and found[:, -1].max() < room
    assert len(np.unique(found, axis=0)) == len(points)
    nearest = []
    for residual in points:
        nearest.append(())
        for centroids in books.centroids:
            nearest[-1] += (min(range(size), key=lambda code: ((residual - centroids[code]) ** 2).sum()),)
            residual = residual - centroids[nearest[-1][-1]]
    if max(map(nearest.count, nearest)) <= room:
        np.testing.assert_array_equal(found[:, :-1], nearest)


FEATURES = Catalogue(
    ids=tuple("abcdef"),
    titles=("Red sea", "Blue sea", "The red RED one", "Else", "Blue", "Else"),
    attributes={"genre": (("War",), (), ("War", "Drama"), (), (), ("Else",))},
)
KNOWN = np.array([True, True, False, False, False, False])
OWN = np.float32([[1, 0], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0]])


def test_others_get_what_their_words_and_attributes_say():
    found = codes.with_features(OWN, KNOWN, FEATURES)
    np.testing.assert_array_equal(found[:2], OWN[:2])
    # The mean is (.5, .5); "red" and War are of one known item each, which differs from it by (.5, -.5).
    step = 0.5 / (1 + 10)
    expected = [[0.5 + 2 * step, 0.5 - 2 * step], [0.5, 0.5], [0.5 - step, 0.5 + step], [0.5, 0.5]]
    np.testing.assert_allclose(found[2:], expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)


def test_known_items_mix_in_their_words_by_weight():
    # "sea" is of both, and says nothing; "red" and War are of the first.
    step = 0.5 / (1 + 10)
    say = np.array([0.5 + 2 * step, 0.5 - 2 * step])
    mixed = 0.75 * np.array([1, 0]) + 0.25 * say / np.linalg.norm(say)
    found = codes.with_features(OWN, KNOWN, FEATURES, text_weight=0.25)
    np.testing.assert_allclose(found[0], mixed / np.linalg.norm(mixed), rtol=1e-6)
