"""Ranks, lists and their measures: by hand, and against sorting one question at a time."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.recommendation import metrics

INF = float("inf")


def items(*numbers):
    return np.array(numbers, np.int32)


def test_a_rank_counts_the_better_items_that_the_user_has_not_seen():
    scores = np.array([[5, 4, 3, 2, 1]] * 4, np.float32)
    histories = [items(), items(0), items(0, 1, 1), items(4)]
    assert metrics.ranks(scores, histories, items(3, 3, 3, 0)).tolist() == [4, 3, 2, 1]


def test_equal_scores_get_the_middle_of_their_places():
    scores = np.array([[9, 7, 7, 7, 1], [0, 0, 0, 0, 0], [7, 7, 1, 1, 1]], np.float32)
    histories = [items(), items(), items(1)]
    assert metrics.ranks(scores, histories, items(2, 4, 0)).tolist() == [3, 3, 1]
    assert metrics.ranks(scores[1:2], [items(0)], items(4)).tolist() == [2.5]


def test_a_target_that_the_user_has_taken_before_stays_in():
    assert metrics.ranks(np.array([[1, 3, 2]], np.float32), [items(0, 1)], items(0)).tolist() == [2]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_ranks_and_lists_are_those_of_sorting_one_question_at_a_time(data):
    num_items, questions = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 4))
    row = st.lists(st.sampled_from([-INF, -1.0, 0.0, 0.5, 2.0]), min_size=num_items, max_size=num_items)
    scores = np.array([data.draw(row) for _ in range(questions)], np.float32)
    number = st.integers(0, num_items - 1)
    histories = [items(*data.draw(st.lists(number, max_size=5))) for _ in range(questions)]
    target = items(*(data.draw(number) for _ in range(questions)))
    k = data.draw(st.integers(0, 8))
    ranks = metrics.ranks(scores, histories, target)
    lists = metrics.recommended(scores, histories, k)
    assert lists.shape == (questions, k)
    for m in range(questions):
        seen = set(histories[m].tolist())
        candidates = [n for n in range(num_items) if n not in seen or n == target[m]]
        better = sum(scores[m, n] > scores[m, target[m]] for n in candidates)
        equal = sum(scores[m, n] == scores[m, target[m]] for n in candidates)
        assert ranks[m] == np.mean([better + place for place in range(1, equal + 1)])
        best = sorted((n for n in range(num_items) if n not in seen), key=lambda n: (-scores[m, n], n))[:k]
        assert lists[m].tolist() == best + [-1] * (k - len(best))


def test_scores_that_are_not_numbers_are_no_ranking():
    scores = np.array([[1, 2], [1, np.nan]], np.float32)
    message = re.escape("the scores of question 1 are not numbers (NaN); has training diverged?")
    for rank in (
        lambda: metrics.ranks(scores, [items()] * 2, items(0, 0)),
        lambda: metrics.recommended(scores, [items()] * 2, 1),
    ):
        with pytest.raises(UserError, match=f"^{message}$"):
            rank()


def test_a_list_gives_the_place_of_its_target():
    lists = np.array([[4, 2, 7], [4, 2, 7], [2, 2, -1], [-1, -1, -1]])
    assert metrics.from_lists(lists, items(7, 5, 2, 0)).tolist() == [3, INF, 1, INF]


def test_lists_of_a_scorer_give_the_ranks_of_its_scores():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(50, 30)).astype(np.float32)
    histories = [generator.integers(0, 15, size=4) for _ in range(50)]
    target = generator.integers(15, 30, size=50)
    ranks = metrics.ranks(scores, histories, target)
    found = metrics.from_lists(metrics.recommended(scores, histories, 10), target)
    np.testing.assert_array_equal(found, np.where(ranks <= 10, ranks, INF))
    assert 0 < np.isfinite(found).sum() < 50


def test_measures_of_ranks():
    ranks = np.array([1, 3, 2.5, 7, INF])
    assert metrics.hit(ranks, 3).tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_allclose(metrics.ndcg(ranks, 5), [1, 0.5, 1 / np.log2(3.5), 0, 0])
    np.testing.assert_allclose(metrics.reciprocal(ranks, 10), [1, 1 / 3, 0.4, 1 / 7, 0])


def test_the_summary_of_two_lists():
    lists = np.array([[0, 1, 2], [1, 1, 3]])
    found = metrics.summary(
        np.array([2.0, INF]), lists, [items(9), items(8)], 10, np.array([3, 1] + [0] * 8), at=(1, 2)
    )
    shares = np.array([4, 2, 1, 2, 2, 1]) / 14  # each item's count and one more, of the six places
    assert found == pytest.approx(
        {
            "hit@1": 0,
            "hit@2": 0.5,
            "ndcg@1": 0,
            "ndcg@2": 0.5 / np.log2(3),
            "mrr@10": 0.25,
            "coverage@10": 0.4,
            "novelty@10": -np.log2(shares).mean(),
            "invalid": 0,
            "seen": 0,
            "repeated": 1,
        }
    )


def test_what_a_list_must_not_have_is_counted():
    lists = np.array([[0, 1, 1, 1], [-1, 2, 2, -1], [-7, 5, 5, 4]])  # of 5 items: 5 and -7 are none
    found = metrics.summary(np.ones(3), lists, [items(0, 3), items(2), items(4, 4)], num_items=5)
    assert (found["invalid"], found["seen"], found["repeated"]) == (3, 4, 3)
    assert found["coverage@10"] == 4 / 5
    assert "novelty@10" not in found


def test_coverage_is_of_the_first_ten_places():
    assert metrics.summary(np.ones(1), np.arange(12)[None], [items()], num_items=20)["coverage@10"] == 0.5


def test_no_question_is_no_summary():
    with pytest.raises(UserError, match=r"^no question to evaluate: the split has none$"):
        metrics.summary(np.zeros(0), np.zeros((0, 10), int), [], 5)


def test_the_interval_is_that_of_the_normal_distribution_for_many_users():
    values = np.random.default_rng(1).random(2000) < 0.2
    low, high = metrics.interval(values.astype(float))
    error = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 2000)
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.003)
    assert metrics.interval(values, seed=0) == (low, high) != metrics.interval(values, seed=1)
    assert metrics.interval(np.full(10, 0.25)) == (0.25, 0.25)


def test_auc_is_the_share_of_pairs_in_order():
    labels, scores = np.array([1, 0, 1, 0, 0]), np.array([0.9, 0.8, 0.5, 0.5, 0.1])
    assert metrics.auc(labels, scores) == pytest.approx((3 + 1.5) / 6)
    generator = np.random.default_rng(2)
    labels, scores = generator.integers(0, 2, 60), generator.integers(0, 9, 60)
    pairs = [np.sign(a - b) / 2 + 0.5 for a in scores[labels == 1] for b in scores[labels == 0]]
    assert metrics.auc(labels, scores) == pytest.approx(np.mean(pairs))


def test_auc_of_one_class_is_none():
    with pytest.raises(UserError, match=r"^AUC needs both classes; there are 2 positive and 0 negative labels$"):
        metrics.auc(np.array([1, 1]), np.array([0.5, 0.2]))


def test_errors_of_ratings():
    ratings, predictions = np.array([5, 1, 3], np.float32), np.array([4, 1, 5], np.float32)
    assert metrics.rmse(ratings, predictions) == pytest.approx(np.sqrt(5 / 3))
    assert metrics.mae(ratings, predictions) == pytest.approx(1)
