"""Metrics of recommendation tasks, by hand."""

import math

import pytest

from t5x_lite.recommendation.task_metrics import choice_auc, ranking, share_accepted, stars

LETTERS = list("abcdefghij")


def test_ranking_is_of_the_right_items_place():
    """First, third, tenth, and not there."""
    found = ranking([["a"], ["c"], ["j"], ["z"]], [LETTERS] * 4)
    third, tenth = 1 / math.log2(4), 1 / math.log2(11)
    assert found == pytest.approx(
        {
            "hit@1": 1 / 4,
            "hit@5": 2 / 4,
            "hit@10": 3 / 4,
            "ndcg@5": (1 + third) / 4,
            "ndcg@10": (1 + third + tenth) / 4,
            "mrr@10": (1 + 1 / 3 + 1 / 10) / 4,
        }
    )


def test_ranking_of_short_lists_and_of_none():
    assert ranking([["b"], ["b"]], [["a", "b"], []])["ndcg@10"] == pytest.approx(0.5 / math.log2(3))
    assert ranking([["l"]], [[*LETTERS, "k", "l"]])["hit@10"] == 0
    assert set(ranking([], []).values()) == {0.0}


def test_share_of_each_list_that_is_accepted():
    answers = [["a", "b", "q"], ["q"], ["a"], ["a"]]
    predictions = [LETTERS, LETTERS, ["a", "b"], []]
    assert share_accepted(answers, predictions) == {"precision@10": pytest.approx((0.2 + 0 + 0.5 + 0) / 4)}
    assert share_accepted([], []) == {"precision@10": 0.0}


def test_auc_of_the_first_labels_probability():
    """Of the six pairs of a yes and a no, four are in order and one is even."""
    answers = [["yes"], ["no"], ["yes"], ["no"], ["yes"]]
    scores = [[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.5, 0.5], [0.6, 0.4]]
    assert choice_auc(answers, ["?"] * 5, {"scores": scores}) == {"auc": pytest.approx((2 + 0.5 + 2) / 6)}


@pytest.mark.parametrize("answers", [[], [["yes"]], [["no"], ["no"]]])
def test_one_class_alone_says_nothing(answers):
    assert choice_auc(answers, ["yes"] * len(answers), {"scores": [[0.3, 0.7]] * len(answers)}) == {"auc": 0.5}


def test_errors_of_the_expected_stars():
    """They are 3, 4.5 and 1; the ratings 5, 4 and 2."""
    of_words = stars(("one", "two", "three", "four", "five"))
    scores = [[0.2] * 5, [0, 0, 0, 0.5, 0.5], [1, 0, 0, 0, 0]]
    found = of_words([["five"], ["four"], ["two"]], ["three", "five", "one"], {"scores": scores})
    assert found == pytest.approx({"rmse": math.sqrt((4 + 0.25 + 1) / 3), "mae": 3.5 / 3})
    assert of_words([], [], {"scores": []}) == {"rmse": 0.0, "mae": 0.0}
