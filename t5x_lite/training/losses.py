"""Cross-entropy with z-loss and label smoothing, as T5 trains.

Sums here; the step divides once, by the weights of the global batch.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Losses(NamedTuple):
    """Sums over the weighted target tokens of a batch, all float32 scalars."""

    cross_entropy: Float[Array, ""]
    z_loss: Float[Array, ""]
    correct: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        return self.cross_entropy + self.z_loss


@jax.named_scope("loss")
def cross_entropy(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
) -> Losses:
    """Integer labels, so no [B, T, V] array of targets is ever built.

    `z_loss` weighs log(Z)^2 (Mesh TensorFlow). Label smoothing gives the other V-1 tokens an equal share and
    takes the entropy of the smoothed target away, so that a perfect model has loss 0, as in T5X.
    """
    logits = logits.astype(jnp.float32)
    weights = weights.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_z - target_logits
    if label_smoothing:
        others = logits.shape[-1] - 1
        confidence, low = 1.0 - label_smoothing, label_smoothing / others
        entropy = -(confidence * math.log(confidence) + others * low * math.log(low + 1e-20))
        rest = jnp.sum(logits, axis=-1) - target_logits
        loss = confidence * loss + low * (others * log_z - rest) - entropy
    return Losses(
        cross_entropy=jnp.sum(loss * weights),
        z_loss=jnp.sum(z_loss * log_z**2 * weights),
        correct=jnp.sum((_best(logits) == targets) * weights),
        weight=jnp.sum(weights),
    )


def _best(logits: Float[Array, "B T V"]) -> Int[Array, "B T"]:
    """As argmax, the first of the highest, in plain minima and maxima: XLA on CPU does not vectorise argmax."""
    highest = jnp.max(jax.lax.stop_gradient(logits), axis=-1, keepdims=True)
    size = logits.shape[-1]
    return jnp.min(jnp.where(logits == highest, jnp.arange(size), size), axis=-1)
