"""Codes of items: who takes them together shares their first codes, so that a model can learn of groups of items.

Residual k-means over embeddings of the items, in place of the RQ-VAE of TIGER (Rajput et al. 2023, arXiv:2305.05065).
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float32, Int32

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue

_FEW_ITEMS = 5000  # fewer get two levels of codes, others three
_OVERSAMPLED = 16  # directions more than asked for, which make the asked ones exact sooner
_SVD_ROUNDS, _KMEANS_ROUNDS = 5, 20
_POINTS_A_CENTROID = 256  # k-means learns little from more
_FEW_WITH_FEATURE = 10  # items, whose mean is taken half way
_CHUNK = 2**16  # items whose distances are in memory at a time


def default_size(num_items: int) -> tuple[int, int]:
    """(levels, codebook): codebooks of 64, 128 or 256 that have two places or more for an item."""
    levels = 2 if num_items < _FEW_ITEMS else 3
    return levels, next((size for size in (64, 128) if size**levels >= 2 * num_items), 256)


@dataclasses.dataclass(frozen=True, eq=False)
class Codebooks:
    """L codebooks of K centroids each: an embedding is nearly the sum of one centroid a level.

    A code is C = L + 1 numbers: those centroids, and last the item's place, below `room`, among the items that share
    all of them.
    """

    centroids: Float32[np.ndarray, "L K D"]
    room: int

    def reconstruct(self, codes: Int32[np.ndarray, "N C"]) -> Float32[np.ndarray, "N D"]:
        """The sums of centroids that the codes stand for."""
        return sum(centroids[codes[:, level]] for level, centroids in enumerate(self.centroids))

    def assign(
        self, embeddings: Float32[np.ndarray, "N D"], taken: Int32[np.ndarray, "M C"] | None = None
    ) -> Int32[np.ndarray, "N C"]:
        """Codes for new items: the nearest centroids, and the next place that neither they nor `taken` have.

        Where no place is left, the later items go to the nearest centroids that have one. UserError where none have.
        """
        levels = len(self.centroids)
        codes = np.zeros((len(embeddings), levels + 1), np.int32)
        for part in _chunks(len(embeddings)):
            residual = embeddings[part].astype(np.float32)
            for level, centroids in enumerate(self.centroids):
                codes[part, level] = nearest = _nearest(residual, centroids)[0]
                residual = residual - centroids[nearest]
        taken = np.zeros((0, levels + 1), np.int32) if taken is None else taken
        codes[:, -1] = _places(np.concatenate([taken, codes])[:, :-1])[len(taken) :]
        crowded = codes[:, -1] >= self.room
        if crowded.any():
            others = np.concatenate([taken, codes[~crowded]])
            codes[crowded] = self._elsewhere(embeddings[crowded], others)
        return codes

    def _elsewhere(self, embeddings: np.ndarray, taken: np.ndarray) -> list[tuple[int, ...]]:
        """Codes one by one: at each level the nearest centroid below which a place is left."""
        levels, size, _ = self.centroids.shape
        used = Counter({(): len(taken)})
        for length in range(1, levels + 1):
            prefixes, counts = np.unique(taken[:, :length], axis=0, return_counts=True)
            used.update(dict(zip(map(tuple, prefixes.tolist()), counts.tolist(), strict=True)))
        below = [size ** (levels - length) * self.room for length in range(levels + 1)]
        codes = []
        for residual in embeddings:
            if used[()] >= below[0]:
                raise UserError(f"all {below[0]} codes of the item index are taken; train again with a larger codebook")
            prefix = ()
            used[prefix] += 1
            for length, centroids in enumerate(self.centroids, 1):
                by_distance = np.argsort(((residual - centroids) ** 2).sum(axis=1), kind="stable").tolist()
                code = next(code for code in by_distance if used[*prefix, code] < below[length])
                residual = residual - centroids[code]
                prefix = (*prefix, code)
                used[prefix] += 1
            codes.append((*prefix, used[prefix] - 1))
        return codes


def fit_codebooks(
    embeddings: Float32[np.ndarray, "N D"], levels: int, size: int, room: int, seed: int = 0
) -> Codebooks:
    """`levels` codebooks of `size` centroids, of fewer where there are fewer items.

    Each is fitted to what is left of the embeddings without the centroids of those before it.
    """
    rng = np.random.default_rng(seed)
    residual = embeddings
    if len(residual) > _POINTS_A_CENTROID * size:
        residual = residual[np.sort(rng.choice(len(residual), _POINTS_A_CENTROID * size, replace=False))]
    codebooks = []
    for _ in range(levels):
        centroids = _kmeans(residual, min(size, len(residual)), rng)
        codebooks.append(centroids)
        residual = residual - centroids[_nearest(residual, centroids)[0]]
    return Codebooks(np.stack(codebooks), room)


def collaborative_embeddings(
    train: Sequence[Int32[np.ndarray, "L"]], num_items: int, dimension: int = 64, seed: int = 0
) -> Float32[np.ndarray, "N D"]:
    """Items that the same users took lie near each other; rows have length 1, those of items nobody took are zero.

    Right singular vectors, times the values, of the matrix of users and items, whose entries are divided by the roots
    of their user's and item's counts. A tenth of the mean is added to the counts, or small groups that share no items
    with others would take up dimensions (Qin and Rohe 2013, arXiv:1309.4111). Chosen by what nearest neighbours are
    worth on MovieLens-100K's validation items; co-occurrence within windows, as PPMI, was worth less.
    """
    items = np.concatenate([np.zeros(0, np.int32), *train])
    users = np.repeat(np.arange(len(train), dtype=np.int32), [len(row) for row in train])
    matrix = scipy.sparse.csr_array((np.ones(len(items), np.float32), (users, items)), (len(train), num_items))
    user_counts, item_counts = np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=num_items)
    by_user, by_item = (1 / np.sqrt(np.maximum(each + each.mean() / 10, 1)) for each in (user_counts, item_counts))
    # Ones whatever the counts in the matrix: not more for what a user took twice.
    matrix.data = (by_user.repeat(user_counts) * by_item[matrix.indices]).astype(np.float32)
    components = _components(matrix, dimension, np.random.default_rng(seed))
    return unit(components * (item_counts > 0)[:, None])


def with_features(
    embeddings: Float32[np.ndarray, "N D"],
    known: Bool[np.ndarray, "N"],
    catalogue: Catalogue,
    text_weight: float = 0.0,
) -> Float32[np.ndarray, "N D"]:
    """Embeddings for all items, of which `known` have their own: others get what their features say.

    Features are the words of a title and the values of attributes. What they say is the known items' mean, and for each
    feature how those that have it differ from the mean, taken towards 0 for features of few. `text_weight` is the share
    of that in the embeddings of known items. For hidden items of MovieLens-100K, twice as many of their 20 nearest are
    found so as by means over the items that share features.
    """
    if known.all() and not text_weight:
        return embeddings
    by_features = unit(embeddings[known].mean(axis=0) + differences_by_features(embeddings[known], known, catalogue))
    return unit(np.where(known[:, None], (1 - text_weight) * embeddings + text_weight * by_features, by_features))


def differences_by_features(
    rows: Float32[np.ndarray, "K D"], known: Bool[np.ndarray, "N"], catalogue: Catalogue
) -> Float32[np.ndarray, "N D"]:
    """How an item's features say that it differs from the mean of the known items' rows; 0 where they say nothing."""
    features = _features(catalogue)
    sums = features[known].T @ (rows - rows.mean(axis=0))
    return features @ (sums / (features[known].sum(axis=0) + _FEW_WITH_FEATURE)[:, None])


def _features(catalogue: Catalogue) -> scipy.sparse.csr_array:
    """Which item has which word or value, as ones."""
    columns: dict[tuple[str, str], int] = {}
    indices, ends = [], [0]
    for number, title in enumerate(catalogue.titles):
        own = {("", word) for word in re.findall(r"\w+", title.casefold())}
        own |= {(name, value) for name, values in catalogue.attributes.items() for value in values[number]}
        indices += [columns.setdefault(feature, len(columns)) for feature in sorted(own)]
        ends.append(len(indices))
    return scipy.sparse.csr_array((np.ones(len(indices), np.float32), indices, ends), (len(catalogue), len(columns)))


def _components(matrix: scipy.sparse.csr_array, count: int, rng: np.random.Generator) -> Float32[np.ndarray, "N D"]:
    """The first right singular vectors times their values, fewer where the rank is less; by subspace iteration.

    Halko et al. 2009, arXiv:0909.4061.
    """
    columns = matrix.shape[1]
    transposed = matrix.T.tocsr()
    basis = rng.standard_normal((columns, min(count + _OVERSAMPLED, columns)), np.float32)
    for _ in range(_SVD_ROUNDS):
        basis = _orthonormal(transposed @ (matrix @ basis))
    image = matrix @ basis
    squares, rotation = np.linalg.eigh(image.T @ image)
    first = slice(None, -count - 1, -1)  # eigh has the least first
    return basis @ (rotation[:, first] * np.sqrt(np.maximum(squares[first], 0)))


def _orthonormal(columns: Float32[np.ndarray, "N K"]) -> Float32[np.ndarray, "N K"]:
    """A basis of what the columns span; ten times as fast for a million rows as numpy's QR."""
    for _ in range(2):  # the second time takes away what rounding left
        squares, rotation = np.linalg.eigh(columns.T @ columns)
        kept = squares > 1e-6 * squares[-1]  # the others are rounding: float32 has no more of a square
        columns = columns @ (rotation[:, kept] / np.sqrt(squares[kept]))
    return columns


def _kmeans(points: Float32[np.ndarray, "N D"], size: int, rng: np.random.Generator) -> Float32[np.ndarray, "K D"]:
    centroids = points[rng.choice(len(points), size, replace=False)]
    for _ in range(_KMEANS_ROUNDS):
        nearest, distances = _nearest(points, centroids)
        counts = np.bincount(nearest, minlength=size)
        members = scipy.sparse.csr_array(
            (np.ones(len(points), np.float32), (nearest, np.arange(len(points)))), (size, len(points))
        )
        centroids = members @ points / np.maximum(counts, 1)[:, None].astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        centroids[empty] = points[np.argsort(-distances, kind="stable")[: len(empty)]]
    return centroids


def _nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[Int32[np.ndarray, "N"], Float32[np.ndarray, "N"]]:
    """Each point's nearest centroid, and how far it is, squared."""
    nearest, distances = np.zeros(len(points), np.int32), np.zeros(len(points), np.float32)
    squares = (centroids**2).sum(axis=1)
    for part in _chunks(len(points)):
        to_each = squares - 2 * points[part] @ centroids.T  # and the point's own square
        nearest[part] = to_each.argmin(axis=1)
        distances[part] = to_each.min(axis=1) + (points[part] ** 2).sum(axis=1)
    return nearest, distances


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]


def _places(prefixes: Int32[np.ndarray, "N L"]) -> Int32[np.ndarray, "N"]:
    """How many rows before it are the same as each."""
    order = np.lexsort(prefixes.T)
    changed = np.ones(len(order), bool)
    changed[1:] = (prefixes[order][1:] != prefixes[order][:-1]).any(axis=1)
    first = np.maximum.accumulate(np.where(changed, np.arange(len(order)), 0))
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order)) - first
    return places


def unit(rows: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    """Rows of length 1; zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows, np.float32), where=lengths > 0)
