"""Baselines by hand on four items, against plain loops, and against what EASE and least squares are defined by."""

import re
from collections import Counter

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.recommendation import baselines
from t5x_lite.recommendation.splits import Cases, Split


def items(*numbers):
    return np.array(numbers, np.int32)


def split_of(*train, num_items=4, ratings=None):
    no_cases = Cases(items(), [], items())
    return Split(num_items, [items(*row) for row in train], no_cases, no_cases, ratings)


def random_split(seed=0, users=40, num_items=9):
    """Item 8 is cold."""
    generator = np.random.default_rng(seed)
    train = [generator.permutation(num_items - 1)[: generator.integers(0, 8)] for _ in range(users)]
    return split_of(*train, num_items=num_items)


BY_HAND = split_of((0, 1, 2), (0, 1), (1, 0), (2,), ())
ALL = [baselines.popularity, baselines.markov_1, baselines.markov_decayed, baselines.item_knn, baselines.ease]


def order(scores):
    return np.argsort(-scores, kind="stable").tolist()


def test_popularity_counts():
    scores = baselines.popularity(BY_HAND).scores([items(), items(1, 2)])
    assert scores.tolist() == [[3, 3, 2, 0]] * 2
    assert scores.dtype == np.float32


def test_markov_1_counts_what_came_right_after_the_last_item():
    scores = baselines.markov_1(BY_HAND).scores([items(2, 0), items(0, 1), items(2)])
    # Of 8 interactions items 0 and 1 have 3 each, item 2 has 2: shares below 1, which only break ties.
    followers = np.array([[0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(scores, followers + np.array([3 / 8, 3 / 8, 1 / 4, 0]))


def test_markov_decayed_weighs_steps_and_history_and_damps_popular_items():
    split = random_split()
    history = items(3, 1, 4, 2)
    popularity = Counter(number for row in split.train for number in row.tolist())
    expected = np.zeros(9)
    for age, source in enumerate([2, 4, 1]):
        for row in split.train:
            row = row.tolist()
            for place in range(len(row)):
                for gap in (1, 2):
                    if row[place] == source and place + gap < len(row):
                        follower = row[place + gap]
                        damping = popularity[source] ** 0.7 * popularity[follower] ** 0.25
                        expected[follower] += 0.9**age * 0.6 ** (gap - 1) / damping
    model = baselines.markov_decayed(
        split, last=3, decay=0.9, span=2, gap_decay=0.6, source_damping=0.7, target_damping=0.25
    )
    np.testing.assert_allclose(model.scores([history])[0], expected, atol=1e-4)
    assert expected.max() > 0.1


def test_item_knn_is_the_cosine_of_users():
    # Users of items 0 and 1: {0, 1, 2} both; of item 2: {0, 3}.
    scores = baselines.item_knn(BY_HAND, last=5, decay=0.5).scores([items(0), items(0, 2)])
    cosine = 1 / np.sqrt(6)
    np.testing.assert_allclose(scores, [[0, 1, cosine, 0], [cosine, 0.5 + cosine, cosine / 2, 0]], atol=1e-4)


def test_item_knn_counts_a_user_once_who_took_an_item_again():
    once, again = split_of((0, 1), (1, 2)), split_of((0, 1, 0, 1), (1, 2))
    histories = [items(0), items(1), items(2)]
    found = baselines.item_knn(again).scores(histories)
    # Cosines have no count of interactions in them.
    np.testing.assert_allclose(found, baselines.item_knn(once).scores(histories), atol=1e-4)


def test_item_knn_keeps_the_nearest():
    split = random_split()
    everything = baselines.item_knn(split).weights.toarray()
    nearest = baselines.item_knn(split, neighbours=2).weights.toarray()
    for row, kept in zip(everything, nearest, strict=True):
        least = np.sort(row)[-2]
        np.testing.assert_array_equal(kept, np.where(row >= least, row, 0))


def test_item_knn_in_blocks_is_the_same(monkeypatch):
    whole = baselines.item_knn(random_split(), neighbours=3)
    monkeypatch.setattr(baselines, "_BLOCK", 4)
    blocks = baselines.item_knn(random_split(), neighbours=3)
    np.testing.assert_array_equal(blocks.weights.toarray(), whole.weights.toarray())


def test_ease_is_the_best_linear_autoencoder_with_a_zero_diagonal():
    split, penalty = random_split(), 3.0
    taken = np.zeros((len(split.train), 9))
    for user, row in enumerate(split.train):
        taken[user, row] = 1
    weights = np.zeros((9, 9))
    for target in range(9):  # ridge regression of each item on all others
        others = [number for number in range(9) if number != target]
        x = taken[:, others]
        weights[others, target] = np.linalg.solve(x.T @ x + penalty * np.eye(8), x.T @ taken[:, target])
    np.testing.assert_allclose(baselines.ease(split, penalty=penalty).weights, weights, atol=1e-5)


def test_ease_is_refused_where_it_does_not_fit(monkeypatch):
    monkeypatch.setattr(baselines, "LARGEST_DENSE", 8)
    message = "EASE is for 8 items at most, and there are 9; leave it out"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        baselines.ease(random_split())


@pytest.mark.parametrize("fit", ALL)
def test_without_a_history_and_after_a_cold_item_popularity_decides(fit):
    split = random_split()
    scores = fit(split).scores([items(), items(8), items(1, 2, 3)])
    expected = order(baselines.popularity(split).prior)
    assert order(scores[0]) == expected
    assert order(scores[1]) == expected
    assert order(fit(split).scores([items(), items()])[1]) == expected
    assert scores.shape == (3, 9)


@pytest.mark.parametrize("fit", ALL[2:])
def test_only_the_last_items_of_a_history_count(fit):
    model = fit(random_split(), last=2, decay=0.5)
    long, short, swapped = model.scores([items(5, 0, 1, 2), items(1, 2), items(2, 1)])
    np.testing.assert_array_equal(long, short)
    assert not np.allclose(short, swapped)


RATED = split_of((0, 1), (0, 2), (), ratings=[np.array(row, np.float32) for row in ([5, 4], [2, 1], [])])


def test_biases_without_shrinkage_are_least_squares():
    model = baselines.bias_model(RATED, user_shrinkage=0, item_shrinkage=0, rounds=200)
    # User 0 rates 3 above user 1 (item 0), and items 1 and 2 are 1 below item 0: every rating is met.
    np.testing.assert_allclose(model.ratings(items(0, 0, 1, 1), items(0, 1, 0, 2)), [5, 4, 2, 1], atol=1e-6)
    np.testing.assert_allclose(model.ratings(items(0, 1), items(2, 1)), [4, 1], atol=1e-6)


def test_shrunk_biases_minimise_the_penalised_squares():
    model = baselines.bias_model(RATED, user_shrinkage=1, item_shrinkage=2, rounds=200)
    design = np.zeros((4, 6))  # 2 users with ratings, 4 items
    design[[0, 1, 2, 3], [0, 0, 1, 1]] = 1
    design[[0, 1, 2, 3], [2, 3, 2, 4]] = 1
    penalty = np.diag([1, 1, 2, 2, 2, 2])
    expected = np.linalg.solve(design.T @ design + penalty, design.T @ (np.array([5, 4, 2, 1]) - 3))
    np.testing.assert_allclose([*model.users[:2], *model.items], expected, atol=1e-6)
    assert model.mean == 3


def test_unknown_users_and_items_have_the_mean():
    assert baselines.bias_model(RATED).ratings(items(2), items(3)).tolist() == [3]


def test_a_bias_model_needs_ratings():
    with pytest.raises(UserError, match=r"^a bias model needs ratings, and these interactions have none$"):
        baselines.bias_model(BY_HAND)
