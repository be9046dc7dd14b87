"""A table by hand: six items, four people, and recommenders that say what they are told to."""

import dataclasses
import json
import math

import numpy as np
import pytest

from t5x_lite.recommendation import comparison
from t5x_lite.recommendation.baselines import popularity
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.comparison import BASELINES, compare, table, write_lists
from t5x_lite.recommendation.data import RecommendationData
from t5x_lite.recommendation.index import token_index
from t5x_lite.recommendation.interactions import Dataset, Interactions
from t5x_lite.recommendation.recommender import Recommendation, Recommendations
from t5x_lite.recommendation.splits import Cases, Split

FILMS = Catalogue(("a", "b", "c", "d", "é", "f"), ("Emma", "Heat", "Solaris", "Stalker", "Émile", "Alien"))


def cases(*rows):
    """Of (user, history, target)."""
    users, histories, targets = zip(*rows, strict=True)
    histories = [np.array(history, np.int32) for history in histories]
    return Cases(np.array(users, np.int32), histories, np.array(targets, np.int32))


# Items a to d are taken 2, 3, 1 and 1 times; é and f never.
SPLIT = Split(
    num_items=6,
    train=[np.array(row, np.int32) for row in ([0, 1], [1, 0], [2, 1], [3])],
    validation=cases((3, [3], 1)),
    test=cases((0, [0, 1], 2), (1, [1, 0], 3), (2, [2, 1], 5)),
)
NOBODY = Interactions(("u0", "u1", "ü2", "u3"), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64))
DATA = RecommendationData(Dataset("by hand", FILMS, NOBODY), SPLIT, token_index(FILMS), recent=2, longest=3)


class Told:
    """In place of a recommender: a list of ids for each question, in their order."""

    def __init__(self, *lists):
        self.lists, self.asked = lists, []

    def answer(self, requests):
        self.asked += requests
        return [
            Recommendations(tuple(Recommendation(rank, id, id, -rank) for rank, id in enumerate(ids, 1)), "model")
            for ids in self.lists
        ]


# The target is first, is second, and is not there.
TOLD = ("cdéf", "cd", "adé")


def test_how_good_the_lists_are():
    told = Told(*TOLD)
    found = compare(told, DATA, "test", sasrec=False)
    assert [list(request.history) for request in told.asked] == [[0, 1], [1, 0], [2, 1]]
    assert {request.k for request in told.asked} == {10}
    assert all(request.exclude_seen and request.allowed is None for request in told.asked)
    row = found.rows["this run"]
    second = 1 / math.log2(3)
    expected = {"hit@1": 1 / 3, "hit@5": 2 / 3, "hit@10": 2 / 3, "ndcg@1": 1 / 3, "ndcg@10": (1 + second) / 3}
    expected |= {"mrr@10": 1.5 / 3, "coverage@10": 5 / 6, "invalid": 0, "seen": 0, "repeated": 0}
    expected |= {"cold questions": 1, "ndcg@10 cold": 0.0}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    low, high = row["ndcg@10 interval"]  # of three questions worth 1, second and 0
    assert 0 <= low < row["ndcg@10"] < high <= 1
    none = [-1] * 6
    assert found.lists.tolist() == [[2, 3, 4, 5, *none], [2, 3, -1, -1, *none], [0, 3, 4, -1, *none]]


def test_questions_about_items_that_training_never_saw_are_apart():
    row = compare(Told("cd", "cd", "adéf"), DATA, "test", sasrec=False).rows["this run"]
    assert (row["cold questions"], row["ndcg@10 cold"]) == (1, pytest.approx(1 / math.log2(5)))
    warm = compare(Told("b"), DATA, "validation", sasrec=False).rows["this run"]
    assert (warm["cold questions"], warm["ndcg@10 cold"], warm["hit@1"]) == (0, 0.0, 1.0)


def test_what_is_wrong_in_lists_is_counted():
    row = compare(Told(["c", "zz"], "ccb", "af"), DATA, "test", sasrec=False).rows["this run"]
    assert (row["invalid"], row["seen"], row["repeated"]) == (1, 1, 1)


def test_counting_answers_the_same_questions_by_what_training_saw():
    rows = compare(Told(*TOLD), DATA, "test", sasrec=False).rows
    assert list(rows) == [*BASELINES, "this run"]
    # Left are c and d of one count, then é and f of none; of the third, a before d, é and f. Ranks 1.5, 1.5 and 3.5.
    expected = (2 / math.log2(2.5) + 1 / math.log2(4.5)) / 3
    assert rows["popularity"]["ndcg@10"] == pytest.approx(expected)
    assert (rows["popularity"]["hit@1"], rows["popularity"]["hit@5"]) == (0, 1)
    for name in BASELINES:
        assert (rows[name]["invalid"], rows[name]["seen"], rows[name]["repeated"]) == (0, 0, 0)
        assert rows[name]["cold questions"] == 1


def test_sasrec_is_fitted_where_it_is_asked_for(monkeypatch):
    fitted = []
    monkeypatch.setattr(comparison, "fit_sasrec", lambda split: fitted.append(split) or popularity(split))
    rows = compare(Told(*TOLD), DATA, "test", sasrec=True).rows
    assert list(rows) == [*BASELINES, "SASRec", "this run"]
    assert rows["SASRec"] == rows["popularity"]
    assert len(fitted) == 1 and fitted[0] is SPLIT


def test_the_table_has_a_line_for_each_and_says_what_is_wrong():
    found = compare(Told(["c", "zz"], "ccb", "af"), DATA, "test", sasrec=False)
    head, *lines, last = table(found).splitlines()
    assert head.split() == [
        *("test,", "full", "ranking", "hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr@10", "coverage@10"),
        *("95%", "of", "ndcg@10"),
    ]
    assert len(lines) == len(BASELINES) + 1 and len({line.index(" to ") for line in lines}) == 1
    row = found.rows["this run"]
    shown = ["0.3333", "0.6667", "0.6667", *[f"{row['ndcg@10']:.4f}"] * 2, "0.5000", "0.6667"]
    assert lines[-1].split()[2:9] == shown
    assert lines[-1].endswith(" {:.4f} to {:.4f}".format(*row["ndcg@10 interval"]))
    assert last == (
        "this run: 1 invalid, 1 seen, 1 repeated items; 1 questions ask for items that training never saw, "
        f"ndcg@10 of those {1 / math.log2(3):.4f}"
    )


def test_lists_are_written_with_original_ids(tmp_path):
    path = tmp_path / "lists.jsonl"
    write_lists(str(path), compare(Told(*TOLD), DATA, "test", sasrec=False), DATA)
    assert path.read_text(encoding="utf-8") == (
        '{"user": "u0", "items": ["c", "d", "é", "f"]}\n'
        '{"user": "u1", "items": ["c", "d"]}\n'
        '{"user": "ü2", "items": ["a", "d", "é"]}\n'
    )
    write_lists(str(path), compare(Told("b"), DATA, "validation", sasrec=False), DATA)
    assert [json.loads(line) for line in path.open()] == [{"user": "u3", "items": ["b"]}]
    assert list(tmp_path.iterdir()) == [path]


def test_lists_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text("before")
    found = compare(Told(*TOLD), DATA, "test", sasrec=False)
    broken = dataclasses.replace(found, lists=np.where(found.lists == 4, 99, found.lists))  # there is no item 99
    with pytest.raises(IndexError):
        write_lists(str(path), broken, DATA)
    assert path.read_text() == "before"
