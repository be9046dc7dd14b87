"""Scores by task and wording, on an evaluation set small enough to score by hand."""

import types

import pytest

from t5x_lite.data.metrics import exact_match
from t5x_lite.data.pipeline import EvalSet
from t5x_lite.training import evaluation


def with_scores(targets, scores):
    return {"mean_score": sum(scores) / len(targets)}


def with_aux(targets, predictions, aux_values):
    return {"first_score": aux_values["scores"][0]}


def eval_set():
    """Two wordings of two questions; `ask` is seen, `beg` is not."""
    task = types.SimpleNamespace(
        name="toy",
        predict_metric_fns=[exact_match],
        predict_with_aux_metric_fns=[with_aux],
        score_metric_fns=[with_scores],
    )
    return EvalSet(
        task=task,
        inputs=[[3], [4], [3], [4]],
        targets=[[5], [6], [5], [6]],
        texts=["ask a", "ask b", "beg a", "beg b"],
        answers=[["A"], ["B", "bee"], ["A"], ["B", "bee"]],
        templates=["ask", "ask", "beg", "beg"],
        template_splits=["seen", "seen", "unseen", "unseen"],
        examples=[{}, {}, {}, {}],
    )


PREDICTIONS = ["a", "bee", "A", "c"]
SCORES = [-1.0, -2.0, -3.0, -6.0]
LIKELIHOODS = [-2.0, -2.0, -4.0, -4.0]


def test_scores_of_a_task_and_of_its_wordings():
    found = evaluation.score_task(eval_set(), PREDICTIONS, SCORES, LIKELIHOODS)
    assert found["metrics"] == {"exact_match": 0.75, "first_score": -1.0, "mean_score": -3.0}
    assert found["examples"] == 4
    assert found["templates"]["ask"] == {
        "split": "seen",
        "metrics": {"exact_match": 1.0, "first_score": -1.0, "mean_score": -2.0},
        "examples": 2,
    }
    assert found["templates"]["beg"]["metrics"]["exact_match"] == 0.5
    assert found["summary"]["unseen"]["exact_match"] == {"mean": 0.5, "min": 0.5, "max": 0.5}


def test_overall_is_the_mean_over_tasks_of_the_mean_over_wordings():
    tasks = {
        "one": {"summary": {"seen": evaluation.summarize([{"f1": 1.0}, {"f1": 0.0}])}},
        "two": {
            "summary": {"seen": evaluation.summarize([{"f1": 0.9}]), "unseen": evaluation.summarize([{"em": 0.2}])}
        },
    }
    assert evaluation.overall(tasks) == pytest.approx({"seen/f1": 0.7, "unseen/em": 0.2})


def test_samples_show_wrong_predictions_and_unseen_wordings_first():
    samples = evaluation.pick_samples(eval_set(), PREDICTIONS)
    assert [(s["inputs"], s["correct"]) for s in samples] == [
        ("beg b", False),
        ("beg a", True),
        ("ask a", True),
        ("ask b", True),
    ]


def test_the_table_has_every_task_and_the_spread_over_unseen_wordings():
    tasks = {"toy": evaluation.score_task(eval_set(), PREDICTIONS, SCORES, LIKELIHOODS)}
    text = evaluation.table({"tasks": tasks, "overall": evaluation.overall(tasks)})
    assert "toy" in text and "0.500..0.500" in text and "overall unseen/exact_match" in text
