"""How good rankings, lists and ratings are. Rankings are full: of all items that the user has not seen.

Sampled metrics (1 target among 99 others) do not compare with these, and order models differently (Krichene and
Rendle 2020, doi 10.1145/3394486.3403226).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from t5x_lite.errors import UserError

Histories = Sequence[Int[np.ndarray, "L"]]

NONE = -1  # in a list: no item at this place


def ranks(
    scores: Float[np.ndarray, "M N"], histories: Histories, target: Int[np.ndarray, "M"]
) -> Float[np.ndarray, "M"]:
    """The place of each target, from 1, among the items that its user has not seen, best score first.

    Of items with one score each gets the middle of their places, so a constant score is worth what chance is and a
    rank may end in .5. A target that its history has, as where items are taken again, stays in. UserError for NaN.
    """
    out = _seen(scores, histories)
    rows = np.arange(len(scores))
    out[rows, target] = False
    own = scores[rows, target][:, None]
    better = np.sum((scores > own) & ~out, axis=1)
    equal = np.sum((scores == own) & ~out, axis=1)  # with the target itself
    return 1 + better + (equal - 1) / 2


def recommended(scores: Float[np.ndarray, "M N"], histories: Histories, k: int) -> Int[np.ndarray, "M k"]:
    """The k best items that each user has not seen, equal scores in the order of the items' numbers.

    -1 where a user has fewer left. UserError for NaN.
    """
    seen = _seen(scores, histories)
    num_items = scores.shape[1]
    lists = np.full((len(scores), k), NONE, np.int32)
    k = min(k, num_items)
    if k == 0:
        return lists
    scores = np.where(seen, -np.inf, scores)
    # A partition takes any of the items that equal the k-th; those are not always the lowest numbers.
    kth = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    for row in range(len(scores)):
        candidates = np.flatnonzero((scores[row] >= kth[row]) & ~seen[row])
        best = candidates[np.argsort(-scores[row, candidates], kind="stable")[:k]]
        lists[row, : len(best)] = best
    return lists


def from_lists(lists: Int[np.ndarray, "M k"], target: Int[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
    """The place of each target in its list, from 1; infinite where the list has it not.

    All that a list has takes up a place: also what is no item, was seen, or stands there twice.
    """
    found = lists == target[:, None]
    return np.where(found.any(axis=1), 1.0 + found.argmax(axis=1), np.inf)


def hit(ranks: Float[np.ndarray, "M"], k: int) -> Float[np.ndarray, "M"]:
    """1 where the target is among the first k."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Float[np.ndarray, "M"], k: int) -> Float[np.ndarray, "M"]:
    """1 / log2(1 + rank) where the target is among the first k: with one target the ideal gain is 1."""
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def reciprocal(ranks: Float[np.ndarray, "M"], k: int) -> Float[np.ndarray, "M"]:
    """1 / rank where the target is among the first k; the mean is MRR@k."""
    return np.where(ranks <= k, 1 / ranks, 0.0)


def summary(
    ranks: Float[np.ndarray, "M"],
    lists: Int[np.ndarray, "M k"],
    histories: Histories,
    num_items: int,
    train_popularity: Int[np.ndarray, "N"] | None = None,
    at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Means over the M questions, and what is wrong in the lists.

    `hit@k` and `ndcg@k` for each k of `at`; `mrr@10`; `coverage@10`, the share of the catalogue that is recommended to
    anyone; `novelty@10`, the mean of -log2 of a recommended item's share in `train_popularity` (interactions per item;
    1 is added to each), in bits. Counts over the lists: `invalid` numbers that no item has (-1 is none: no number),
    items that the user has `seen`, and items `repeated` within a list. UserError without questions.
    """
    if not len(ranks):
        raise UserError("no question to evaluate: the split has none")
    means = {f"{name}@{k}": _mean(measure(ranks, k)) for name, measure in (("hit", hit), ("ndcg", ndcg)) for k in at}
    valid = (lists >= 0) & (lists < num_items)
    first = lists[:, :10][valid[:, :10]]
    means |= {"mrr@10": _mean(reciprocal(ranks, 10)), "coverage@10": len(np.unique(first)) / num_items}
    if train_popularity is not None:
        share = (train_popularity + 1) / np.sum(train_popularity + 1)
        means["novelty@10"] = _mean(-np.log2(share[first]))
    seen = sum(int(np.isin(row, history).sum()) for row, history in zip(lists, histories, strict=True))
    ordered = np.sort(np.where(valid, lists, NONE), axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)
    return means | {"invalid": int(np.sum(~valid & (lists != NONE))), "seen": seen, "repeated": int(repeated.sum())}


def interval(values: Float[np.ndarray, "M"], samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean over users, by drawing users with replacement (Efron's bootstrap).

    It tells of the users that were drawn, not of the seeds of training.
    """
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(samples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def auc(labels: Int[np.ndarray, "M"], scores: Float[np.ndarray, "M"]) -> float:
    """How often a positive (label 1) has a higher score than a negative (label 0), equal scores being half.

    UserError where there is only one class.
    """
    positive = np.asarray(labels).astype(bool)
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        raise UserError(f"AUC needs both classes; there are {count} positive and {others} negative labels")
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(sizes) - (sizes - 1) / 2  # middle of the places of those with one score, worst first
    return float((rank[place][positive].sum() - count * (count + 1) / 2) / (count * others))


def rmse(ratings: Float[np.ndarray, "M"], predictions: Float[np.ndarray, "M"]) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((np.asarray(ratings, np.float64) - predictions) ** 2)))


def mae(ratings: Float[np.ndarray, "M"], predictions: Float[np.ndarray, "M"]) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(np.asarray(ratings, np.float64) - predictions)))


def _seen(scores: Float[np.ndarray, "M N"], histories: Histories) -> Bool[np.ndarray, "M N"]:
    wrong = np.isnan(scores).any(axis=1)
    if wrong.any():
        raise UserError(f"the scores of question {np.argmax(wrong)} are not numbers (NaN); has training diverged?")
    seen = np.zeros(scores.shape, bool)
    for row, history in enumerate(histories):
        seen[row, history] = True
    return seen


def _mean(values: Float[np.ndarray, "M"]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
