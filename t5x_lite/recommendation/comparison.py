"""A run's recommender beside counting and SASRec: the same held-out questions, histories and full ranking for all."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from t5x_lite.files import write_whole
from t5x_lite.recommendation import baselines, metrics
from t5x_lite.recommendation.data import RecommendationData
from t5x_lite.recommendation.recommender import Recommender, Request
from t5x_lite.recommendation.sasrec import fit_sasrec
from t5x_lite.recommendation.splits import Cases, Split

K = 10

Row = dict[str, Any]


class Scorer(Protocol):
    def scores(self, histories: Sequence[Int32[np.ndarray, "L"]]) -> Float32[np.ndarray, "M N"]: ...


BASELINES: Mapping[str, Callable[[Split], Scorer]] = {
    "popularity": baselines.popularity,
    "Markov-1": baselines.markov_1,
    "Markov, windowed": baselines.markov_decayed,
    "ItemKNN": baselines.item_knn,
    "EASE": baselines.ease,
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`rows` by name, and the lists [M, 10] of the run's own, for `write_lists`."""

    part: str
    rows: dict[str, Row]
    lists: Int[np.ndarray, "M k"]


def compare(recommender: Recommender, data: RecommendationData, part: str, *, sasrec: bool) -> Comparison:
    """Asks `part` ('validation' or 'test') of the split, by the recommender's own way from request to list.

    Baselines are fitted on the split's train, as the run is.
    """
    cases: Cases = getattr(data.split, part)
    answers = recommender.answer([Request(history=history.tolist(), k=K) for history in cases.histories])
    number_of = data.dataset.catalogue.number_of
    lists = np.full((len(cases), K), metrics.NONE, np.int32)
    for row, answer in zip(lists, answers, strict=True):
        row[: len(answer.items)] = [number_of.get(each.item, len(number_of)) for each in answer.items]
    scorers = BASELINES | ({"SASRec": fit_sasrec} if sasrec else {})
    rows = {}
    for name, fit in scorers.items():
        scores = fit(data.split).scores(cases.histories)
        ranks = metrics.ranks(scores, cases.histories, cases.target)
        rows[name] = _row(ranks, metrics.recommended(scores, cases.histories, K), cases, data.split)
    rows["this run"] = _row(metrics.from_lists(lists, cases.target), lists, cases, data.split)
    return Comparison(part, rows, lists)


def _row(ranks: Float[np.ndarray, "M"], lists: Int[np.ndarray, "M k"], cases: Cases, split: Split) -> Row:
    row = dict(metrics.summary(ranks, lists, cases.histories, split.num_items))
    gains = metrics.ndcg(ranks, K)
    cold = split.cold[cases.target]
    row[f"ndcg@{K} interval"] = list(metrics.interval(gains))
    row["cold questions"] = int(cold.sum())
    row[f"ndcg@{K} cold"] = float(gains[cold].mean()) if cold.any() else 0.0
    return row


def table(comparison: Comparison) -> str:
    """A line for each recommender, ours last."""
    shown = ["hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr@10", "coverage@10"]
    lines = [f"{comparison.part}, full ranking{'':4} {' '.join(f'{name:>11}' for name in shown)}  95% of ndcg@10"]
    for name, row in comparison.rows.items():
        low, high = row[f"ndcg@{K} interval"]
        lines.append(f"{name:28}{' '.join(f'{row[column]:11.4f}' for column in shown)}  {low:.4f} to {high:.4f}")
    own = comparison.rows["this run"]
    lines.append(
        f"this run: {own['invalid']} invalid, {own['seen']} seen, {own['repeated']} repeated items; "
        f"{own['cold questions']} questions ask for items that training never saw, ndcg@10 of those "
        f"{own[f'ndcg@{K} cold']:.4f}"
    )
    return "\n".join(lines)


def write_lists(path: str, comparison: Comparison, data: RecommendationData) -> None:
    """A JSON line a question, {"user", "items"} with original ids, best first; whole or not at all."""
    users, ids = data.dataset.interactions.users, data.dataset.catalogue.ids
    cases: Cases = getattr(data.split, comparison.part)
    pairs = zip(cases.user.tolist(), comparison.lists.tolist(), strict=True)
    rows = [
        {"user": users[user], "items": [ids[item] for item in items if item != metrics.NONE]} for user, items in pairs
    ]
    write_whole(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
