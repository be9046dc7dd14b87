"""The norm of all weights or gradients together, and clipping by it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from t5x_lite.model.products import on_one_cpu


def global_norm(tree: Any) -> Float[Array, ""]:
    """The root of the sum of all squares, as optax.global_norm."""
    return jnp.sqrt(sum(_sum_of_squares(leaf) for leaf in jax.tree.leaves(tree)))


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm with the norm above."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm = global_norm(updates)
        factor = jnp.where(norm < most, 1.0, most / norm)
        return jax.tree.map(lambda update: update * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _sum_of_squares(x: Float[Array, "..."]) -> Float[Array, ""]:
    """On one CPU by rows: XLA (jaxlib 0.10) writes the squares out, and adds them up in windows of 32, but where a
    barrier stands between; then it does both in one loop, five times as fast."""
    squares = x * x
    if not on_one_cpu() or x.ndim < 2:
        return jnp.sum(squares)
    rows = jnp.sum(jax.lax.optimization_barrier(squares), axis=-1)
    return jnp.sum(jax.lax.optimization_barrier(rows))
