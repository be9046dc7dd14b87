"""What counting gets: the baselines that a trained recommender must beat, and a bias model for ratings.

All are fitted on a split's `train`, for validation and for test alike; what is newer than that reaches them only as a
question's history. Default settings are the best on MovieLens-100K by mean NDCG@10 of five questions a user: for the
validation item and for the four before it, each from what is older. Test has no part in that; validation alone, 943
questions, is too few to tell neighbours on a grid apart.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from scipy import sparse

from t5x_lite.errors import UserError
from t5x_lite.recommendation.splits import Split

LARGEST_DENSE = 20_000  # items: EASE inverts a matrix of items by items, of 1.6 GB here, and a few such are held
_BLOCK = 1024  # items whose neighbours are found at once


@dataclasses.dataclass(frozen=True, eq=False)
class CountScorer:
    """Scores an item by its weights to the `last` items of a history, each older one counting `decay` times the next.

    `weights[a, b]` is what item a says for item b; `prior`, small beside them, decides between equal scores, and alone
    where there is no history.
    """

    weights: sparse.csr_array | Float32[np.ndarray, "N N"]
    prior: Float32[np.ndarray, "N"]
    last: int = 1
    decay: float = 1.0

    def scores(self, histories: Sequence[Int32[np.ndarray, "L"]]) -> Float32[np.ndarray, "M N"]:
        """Of all items, seen or not, for M histories of items in the order of time; 4 M N bytes."""
        recent = [np.asarray(history[-self.last :], np.int32) for history in histories]
        ages = [np.arange(len(items))[::-1] for items in recent]
        ends = np.cumsum([0, *map(len, recent)])
        if not ends[-1]:
            return np.tile(self.prior, (len(histories), 1))
        values = (self.decay ** np.concatenate(ages)).astype(np.float32)
        shape = (len(histories), len(self.prior))
        said = sparse.csr_array((values, np.concatenate(recent), ends), shape=shape) @ self.weights
        return self.prior + (said.toarray() if sparse.issparse(said) else said)


def popularity(split: Split) -> CountScorer:
    """How often users took an item."""
    return CountScorer(sparse.csr_array((split.num_items, split.num_items), dtype=np.float32), _counts(split))


def markov_1(split: Split) -> CountScorer:
    """How often an item came right after the last one; popularity between equal counts."""
    return CountScorer(_followers(split, gap=1), _share(split))


def markov_decayed(
    split: Split,
    last: int = 20,
    decay: float = 0.8,
    span: int = 20,
    gap_decay: float = 0.8,
    source_damping: float = 0.5,
    target_damping: float = 0.3,
) -> CountScorer:
    """How often an item came up to `span` steps after the last ones, a step further counting `gap_decay` times.

    Counts are divided by the popularity of both items to the power of their damping.
    """
    counts = _followers(split, gap=1)
    for gap in range(2, span + 1):
        counts = counts + gap_decay ** (gap - 1) * _followers(split, gap)
    popular = np.maximum(_counts(split), 1)
    weights = sparse.diags_array(popular**-source_damping) @ counts @ sparse.diags_array(popular**-target_damping)
    return CountScorer(weights.tocsr(), _tie_break(split), last, decay)


def item_knn(split: Split, last: int = 5, decay: float = 0.7, neighbours: int = 1000) -> CountScorer:
    """Cosine of the sets of users of two items, of each item's nearest only (Sarwar et al. 2001)."""
    taken = _taken(split)
    taken = (taken @ sparse.diags_array(np.maximum(taken.sum(axis=0), 1) ** -0.5)).tocsc()
    blocks = [
        _nearest(taken[:, first : first + _BLOCK].T @ taken, first, neighbours)
        for first in range(0, split.num_items, _BLOCK)
    ]
    return CountScorer(sparse.vstack(blocks, format="csr"), _tie_break(split), last, decay)


def ease(split: Split, last: int = 50, decay: float = 0.85, penalty: float = 500.0) -> CountScorer:
    """The linear autoencoder with a zero diagonal, in closed form (EASE: Steck 2019, arXiv:1905.03375).

    UserError beyond `LARGEST_DENSE` items.
    """
    if split.num_items > LARGEST_DENSE:
        raise UserError(f"EASE is for {LARGEST_DENSE} items at most, and there are {split.num_items}; leave it out")
    taken = _taken(split)
    gram = (taken.T @ taken).toarray()
    np.fill_diagonal(gram, gram.diagonal() + penalty)
    weights = np.linalg.inv(gram)
    weights /= -weights.diagonal().copy()
    np.fill_diagonal(weights, 0)
    return CountScorer(weights, _tie_break(split), last, decay)


@dataclasses.dataclass(frozen=True, eq=False)
class BiasModel:
    """A rating is the mean of all, plus what this user and this item are above it."""

    mean: float
    users: Float[np.ndarray, "U"]
    items: Float[np.ndarray, "N"]

    def ratings(self, user: Int[np.ndarray, "M"], item: Int[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
        return self.mean + self.users[user] + self.items[item]


def bias_model(split: Split, user_shrinkage: float = 5.0, item_shrinkage: float = 2.0, rounds: int = 20) -> BiasModel:
    """Biases by alternating least squares; a bias of n ratings is shrunk to n / (n + shrinkage) (Koren 2008).

    Users and items without ratings in `train` have none. UserError where the data has no ratings.
    """
    if split.train_ratings is None:
        raise UserError("a bias model needs ratings, and these interactions have none")
    user = np.repeat(np.arange(len(split.train)), [len(items) for items in split.train])
    item, rating = np.concatenate(split.train), np.concatenate(split.train_ratings).astype(np.float64)
    mean = rating.mean()

    def bias(of: np.ndarray, rest: np.ndarray, size: int, shrinkage: float) -> np.ndarray:
        return np.bincount(of, rest, size) / np.maximum(np.bincount(of, minlength=size) + shrinkage, 1e-9)

    users, items = np.zeros(len(split.train)), np.zeros(split.num_items)
    for _ in range(rounds):
        items = bias(item, rating - mean - users[user], split.num_items, item_shrinkage)
        users = bias(user, rating - mean - items[item], len(users), user_shrinkage)
    return BiasModel(float(mean), users, items)


def _counts(split: Split) -> Float32[np.ndarray, "N"]:
    return np.bincount(np.concatenate(split.train), minlength=split.num_items).astype(np.float32)


def _share(split: Split) -> Float32[np.ndarray, "N"]:
    counts = _counts(split)
    return counts / np.maximum(counts.sum(), 1)


def _tie_break(split: Split) -> Float32[np.ndarray, "N"]:
    return 1e-4 * _share(split)


def _taken(split: Split) -> sparse.csr_array:
    """1 where a user took an item."""
    ends = np.cumsum([0, *map(len, split.train)])
    shape = (len(split.train), split.num_items)
    taken = sparse.csr_array((np.ones(ends[-1], np.float32), np.concatenate(split.train), ends), shape=shape)
    taken.sum_duplicates()
    taken.data[:] = 1
    return taken


def _followers(split: Split, gap: int) -> sparse.csr_array:
    """How often item b came `gap` steps after item a, at [a, b]."""
    before = np.concatenate([items[:-gap] for items in split.train])
    after = np.concatenate([items[gap:] for items in split.train])
    counts = np.ones(len(before), np.float32)
    return sparse.coo_array((counts, (before, after)), shape=(split.num_items, split.num_items)).tocsr()


def _nearest(similarity: sparse.sparray, first: int, neighbours: int) -> sparse.csr_array:
    """The rows of items from `first` on with only their nearest other items."""
    dense = similarity.toarray()
    rows = np.arange(len(dense))
    dense[rows, first + rows] = 0
    if neighbours < dense.shape[1]:
        least = -np.partition(-dense, neighbours - 1, axis=1)[:, neighbours - 1 : neighbours]
        dense[dense < least] = 0
    return sparse.csr_array(dense)
