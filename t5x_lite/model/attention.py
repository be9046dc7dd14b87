"""Attention of whole sequences: the one place where attention kernels may be exchanged.

On one CPU device a long batch is attended to in parts, so that scores stay in the cache and none are kept for the
backward pass, which computes them again: the arithmetic of Dao et al. 2022 (arXiv:2205.14135), by rows of the batch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t5x_lite.model.products import on_one_cpu

# Finite, so that a query with nothing to look at (padding) gets a mean and not NaN.
MASKED = -1e10

_CACHED = 2**24  # bytes of scores that are computed at once on a CPU


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    bias: Float[Array, "1 H T S"] | None,
    mask: Bool[Array, "#B 1 #T S"],
) -> Float[Array, "B T H K"]:
    """Attention without scaling; scores, bias and softmax in float32.

    Bias and mask stay apart because their sum would be as large as the scores: B times the bias.
    """
    batch, queries, heads, _ = q.shape
    count = _parts(batch, queries, heads, k.shape[1])
    if count > 1:
        return _attend_in_parts(q, k, v, bias, jnp.broadcast_to(mask, (batch, *mask.shape[1:])), count)
    weights = jax.nn.softmax(_scores(q, k, bias, mask), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights.astype(v.dtype), v)


def _scores(q: Array, k: Array, bias: Array | None, mask: Array) -> Float[Array, "B H T S"]:
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    return jnp.where(mask, scores, MASKED)


def _parts(batch: int, queries: int, heads: int, keys: int) -> int:
    """In how many equal parts of the batch: 1 but on a mesh of one CPU, since parts of a batch lie on other devices."""
    if not on_one_cpu():
        return 1
    least = max(1, min(batch, -(-batch * heads * queries * keys * 4 // _CACHED)))
    return next(count for count in range(least, batch + 2) if batch % count == 0)


class _Kept(NamedTuple):
    """What the backward pass finds: the inputs, the result, and of each query the highest score and the sum of all
    exp(score - highest). One logarithm of both would not tell the scores of a query that may look at nothing."""

    q: Float[Array, "B T H K"]
    k: Float[Array, "B S H K"]
    v: Float[Array, "B S H K"]
    mask: Bool[Array, "B 1 #T S"]
    out: Float[Array, "B T H K"]
    highest: Float[Array, "B H T 1"]
    total: Float[Array, "B H T 1"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_in_parts(q: Array, k: Array, v: Array, bias: Array | None, mask: Array, count: int) -> Array:
    return _forward(q, k, v, bias, mask, count)[0]


def _forward(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array, count: int
) -> tuple[Array, tuple[_Kept, Array | None]]:
    def part(inputs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        q, k, v, mask = inputs
        scores = _scores(q, k, bias, mask)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return _product("bhts,bshk->bthk", (weights / total).astype(v.dtype), v), highest, total

    found = jax.lax.map(part, _split((q, k, v, mask), count))
    kept = _Kept(q, k, v, mask, *_join(found))
    return kept.out, (kept, bias)


def _product(axes: str, a: Array, b: Array) -> Array:
    """By way of float32, without which XLA on CPU is slow in bfloat16 (products.py)."""
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32).astype(b.dtype)


def _backward(count: int, residuals: tuple[_Kept, Array | None], d_out: Array) -> tuple[Array | None, ...]:
    kept, bias = residuals

    def part(d_bias: Array | None, inputs: tuple[_Kept, Array]) -> tuple[Array | None, tuple[Array, Array, Array]]:
        (q, k, v, mask, out, highest, total), d_out = inputs
        weights = jnp.exp(_scores(q, k, bias, mask) - highest) / total
        d_weights = jnp.einsum("bthk,bshk->bhts", d_out, v, preferred_element_type=jnp.float32)
        # The sum of d_weights * weights over all keys, without those.
        common = jnp.einsum("bthk,bthk->bht", d_out, out, preferred_element_type=jnp.float32)[..., None]
        d_scores = jnp.where(mask, weights * (d_weights - common), 0.0)
        if bias is not None:
            d_bias = d_bias + jnp.sum(d_scores, axis=0, keepdims=True)
        d_scores = d_scores.astype(q.dtype)
        d_q = _product("bhts,bshk->bthk", d_scores, k)
        d_k = _product("bhts,bthk->bshk", d_scores, q)
        d_v = _product("bhts,bthk->bshk", weights.astype(v.dtype), d_out)
        return d_bias, (d_q, d_k, d_v)

    none_yet = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    d_bias, found = jax.lax.scan(part, none_yet, _split((kept, d_out), count))
    return (*_join(found), d_bias, None)


_attend_in_parts.defvjp(_forward, _backward)


def _split(arrays: Any, count: int) -> Any:
    """Each [B, ...] as [count, B/count, ...]."""
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), arrays)


def _join(arrays: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays)
