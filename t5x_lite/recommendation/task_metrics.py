"""Metric functions of recommendation tasks, with the parameters by which SeqIO tells metrics apart.

Predictions are lists of items' texts, best first, or labels whose probabilities stand in `aux_values["scores"]`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.recommendation import metrics

Answers = Sequence[Sequence[str]]


def ranking(targets: Answers, predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """hit@k, ndcg@k and mrr@10 of the one right item's place in each list."""
    places = [
        1.0 + items.index(answers[0]) if answers[0] in items else np.inf
        for answers, items in zip(targets, predictions, strict=True)
    ]
    ranks = np.array(places, np.float64)
    scores = {f"hit@{k}": metrics.hit(ranks, k) for k in (1, 5, 10)}
    scores |= {f"ndcg@{k}": metrics.ndcg(ranks, k) for k in (5, 10)}
    scores |= {"mrr@10": metrics.reciprocal(ranks, 10)}
    return {name: float(np.mean(values)) if len(values) else 0.0 for name, values in scores.items()}


def share_accepted(targets: Answers, predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision@10: the share of each list that is among the accepted items."""
    shares = [
        np.mean([item in accepted for item in items]) if items else 0.0
        for accepted, items in zip(map(set, targets), predictions, strict=True)
    ]
    return {"precision@10": float(np.mean(shares)) if shares else 0.0}


def choice_auc(targets: Answers, predictions: Sequence[str], aux_values: Mapping[str, Any]) -> dict[str, float]:
    """AUC of the first label's probability; of one class alone there is none, and it counts as 0.5."""
    labels = np.array([answers[0] == "yes" for answers in targets], np.int64)
    if len(set(labels.tolist())) < 2:
        return {"auc": 0.5}
    return {"auc": metrics.auc(labels, np.array([row[0] for row in aux_values["scores"]]))}


def stars(labels: Sequence[str]) -> Callable[..., dict[str, float]]:
    """RMSE and MAE of the expected number of stars; the first of `labels` is one star, the next two, and so on."""

    def stars(targets: Answers, predictions: Sequence[str], aux_values: Mapping[str, Any]) -> dict[str, float]:
        probabilities = np.array(aux_values["scores"])
        if not len(probabilities):
            return {"rmse": 0.0, "mae": 0.0}
        expected = probabilities @ np.arange(1, len(labels) + 1)
        ratings = np.array([labels.index(answers[0]) + 1.0 for answers in targets])
        return {"rmse": metrics.rmse(ratings, expected), "mae": metrics.mae(ratings, expected)}

    return stars
