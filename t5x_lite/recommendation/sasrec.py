"""SASRec, the baseline among trained recommenders: a causal transformer over item embeddings.

Kang and McAuley 2018, arXiv:1808.09781, with cross-entropy over all items in place of one sampled negative, which is
worth more than what later architectures add (Klenitskiy and Vasilev 2023, arXiv:2309.07602).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from t5x_lite.errors import UserError
from t5x_lite.recommendation import metrics
from t5x_lite.recommendation.splits import Cases, Split

Params = dict[str, Array]

_SCORED_AT_ONCE = 256  # histories; fewer are padded to that, so that scoring compiles once


@dataclasses.dataclass(frozen=True)
class SasrecConfig:
    """Sizes and training; defaults were chosen by validation NDCG@10 on MovieLens-100K."""

    dim: int = 64
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.3
    max_length: int = 50  # items of a history
    learning_rate: float = 1e-3
    batch_size: int = 64
    max_epochs: int = 100
    patience: int = 8  # epochs without a better validation NDCG@10


@dataclasses.dataclass(frozen=True, eq=False)
class Sasrec:
    """What `fit_sasrec` returns."""

    params: Params
    config: SasrecConfig

    def scores(self, histories: Sequence[Int32[np.ndarray, "L"]]) -> Float32[np.ndarray, "M N"]:
        """Logits of all items, seen or not, after each of M histories."""
        out = []
        for first in range(0, len(histories), _SCORED_AT_ONCE):
            some = histories[first : first + _SCORED_AT_ONCE]
            items = np.zeros((_SCORED_AT_ONCE, self.config.max_length), np.int32)
            for row, history in zip(items, some, strict=False):
                _fill(row, history)
            out.append(np.asarray(_last_logits(self.params, items, self.config))[: len(some)])
        return np.concatenate(out)


def fit_sasrec(
    split: Split,
    config: SasrecConfig = SasrecConfig(),
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> Sasrec:
    """Trains until validation NDCG@10 has not risen for `patience` epochs, and returns the best epoch's parameters.

    `log` gets a line an epoch. UserError where there is nothing to learn from.
    """
    if not any(len(items) > 1 for items in split.train):
        raise UserError("SASRec learns what follows an item, and no user has two items to train on")
    key, start = jax.random.split(jax.random.key(seed, impl="rbg"))  # cheap bits for dropout
    params = initial(start, split.num_items, config)
    state = _optimizer(config).init(params)
    best, best_epoch, kept, number = -1.0, 0, params, 0
    for epoch in range(1, config.max_epochs + 1):
        losses = []
        for items, targets in batches(split.train, config, np.random.default_rng((seed, epoch))):
            number += 1
            params, state, value = _step(params, state, items, targets, jax.random.fold_in(key, number), config)
            losses.append(value)
        found = _validation_ndcg(Sasrec(params, config), split.validation)
        log(f"epoch {epoch}: loss {np.mean(losses):.4f}, validation NDCG@10 {found:.4f}")
        if found > best:
            best, best_epoch, kept = found, epoch, jax.tree.map(jnp.copy, params)  # `_step` overwrites what it is given
        elif epoch - best_epoch >= config.patience:
            break
    return Sasrec(kept, config)


def _validation_ndcg(model: Sasrec, cases: Cases) -> float:
    ranks = metrics.ranks(model.scores(cases.histories), cases.histories, cases.target)
    return float(metrics.ndcg(ranks, 10).mean())


def batches(
    sequences: Sequence[np.ndarray], config: SasrecConfig, generator: np.random.Generator
) -> Iterator[tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]]:
    """An epoch: every item of every user but the first is a target once.

    Sequences longer than `max_length` are cut into windows, in each epoch at other places. Items are numbered from 1
    here; 0 is padding, which stands before them. The last batch is filled up with padding.
    """
    length = config.max_length
    windows = []
    for items in sequences:
        end = len(items)
        if end > length + 1:
            windows.append(items[-generator.integers(1, length + 1) - 1 :])
            end -= len(windows[-1]) - 1
        while end > 1:
            windows.append(items[max(0, end - length - 1) : end])
            end -= length
    order = generator.permutation(len(windows))
    for first in range(0, len(order), config.batch_size):
        rows = np.zeros((config.batch_size, length + 1), np.int32)
        for row, number in zip(rows, order[first : first + config.batch_size], strict=False):
            _fill(row, windows[number])
        yield rows[:, :-1], rows[:, 1:]


def _fill(row: Int32[np.ndarray, "L"], items: Int32[np.ndarray, "K"]) -> None:
    """The last items, numbered from 1, at the end of the row."""
    items = items[-len(row) :]
    row[len(row) - len(items) :] = np.asarray(items) + 1


def initial(key: Key[Array, ""], num_items: int, config: SasrecConfig) -> Params:
    d, blocks = config.dim, config.blocks
    shapes = {
        "items": (num_items + 1, d),
        "positions": (config.max_length, d),
        "query_key_value": (blocks, d, 3 * d),
        "out": (blocks, d, d),
        "up": (blocks, d, d),
        "down": (blocks, d, d),
    }
    keys = jax.random.split(key, len(shapes))
    params = {n: 0.02 * jax.random.normal(k, shape) for k, (n, shape) in zip(keys, shapes.items(), strict=True)}
    return params | {"norms": jnp.ones((blocks, 2, d)), "last_norm": jnp.ones(d)}


def hidden(
    params: Params, items: Int[Array, "B L"], config: SasrecConfig, key: Key[Array, ""] | None = None
) -> Float[Array, "B L D"]:
    """Without a key there is no dropout."""
    count = 1 + 2 * config.blocks
    keys = iter([None] * count if key is None else jax.random.split(key, count))
    real = items > 0
    allowed = jnp.tril(jnp.ones((items.shape[1],) * 2, bool)) & real[:, None, None, :]
    x = params["items"][items] * config.dim**0.5 + params["positions"]
    x = _dropout(x, config.dropout, next(keys))
    for n in range(config.blocks):
        q, k, v = (
            part.reshape(*items.shape, config.heads, -1)
            for part in jnp.split(_norm(x, params["norms"][n, 0]) @ params["query_key_value"][n], 3, axis=-1)
        )
        attended = jax.nn.dot_product_attention(q, k, v, mask=allowed).reshape(x.shape)
        x += _dropout(attended @ params["out"][n], config.dropout, next(keys))
        wide = jax.nn.relu(_norm(x, params["norms"][n, 1]) @ params["up"][n])
        x += _dropout(wide @ params["down"][n], config.dropout, next(keys))
    return _norm(x, params["last_norm"])


def _optimizer(config: SasrecConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate, b2=0.98)


@functools.partial(jax.jit, static_argnames="config", donate_argnums=(0, 1))
def _step(
    params: Params,
    state: optax.OptState,
    items: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    key: Key[Array, ""],
    config: SasrecConfig,
) -> tuple[Params, optax.OptState, Float[Array, ""]]:
    loss, gradient = jax.value_and_grad(_loss)(params, items, targets, config, key)
    updates, state = _optimizer(config).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def _loss(params: Params, items: Int[Array, "B L"], targets: Int[Array, "B L"], config: SasrecConfig, key) -> Array:
    """Mean cross-entropy of the real targets over all items; the embeddings are the weights of the softmax."""
    logits = hidden(params, items, config, key) @ params["items"][1:].T
    real = (targets > 0) & (items > 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets - 1, 0))
    return jnp.sum(losses * real) / jnp.maximum(jnp.sum(real), 1)


@functools.partial(jax.jit, static_argnames="config")
def _last_logits(params: Params, items: Int[Array, "M L"], config: SasrecConfig) -> Float[Array, "M N"]:
    return hidden(params, items, config)[:, -1] @ params["items"][1:].T


def _norm(x: Float[Array, "*B D"], scale: Float[Array, "D"]) -> Float[Array, "*B D"]:
    return jax.nn.standardize(x, epsilon=1e-6) * scale


def _dropout(x: Float[Array, "*B D"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*B D"]:
    return x if key is None else jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
