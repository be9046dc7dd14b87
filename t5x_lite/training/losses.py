"""Cross-entropy with z-loss and label smoothing, as T5 trains.

Sums here; the step divides once, by the weights of the global batch.
"""

import functools
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
    takes the entropy of the smoothed target away, so that a perfect model has loss 0, as in T5X. A target whose
    logit is the highest is correct, alone or not.
    """
    logits = logits.astype(jnp.float32)
    weights = weights.astype(jnp.float32)
    loss, log_z = _cross_entropy(logits, targets, label_smoothing)
    right = jax.lax.stop_gradient(_logit_of(targets, logits) >= jnp.max(logits, axis=-1))
    return Losses(
        cross_entropy=jnp.sum(loss * weights),
        z_loss=jnp.sum(z_loss * log_z**2 * weights),
        correct=jnp.sum(right * weights),
        weight=jnp.sum(weights),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], label_smoothing: float
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Each token's loss and log(Z). The gradient is written in one pass: JAX's own would scatter into zeros."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = _logit_of(targets, logits)
    loss = log_z - target_logits
    if label_smoothing:
        others = logits.shape[-1] - 1
        confidence, low = 1.0 - label_smoothing, label_smoothing / others
        entropy = -(confidence * math.log(confidence) + others * low * math.log(low + 1e-20))
        rest = jnp.sum(logits, axis=-1) - target_logits
        loss = confidence * loss + low * (others * log_z - rest) - entropy
    return loss, log_z


def _forward(
    logits: Array, targets: Array, label_smoothing: float
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    loss, log_z = _cross_entropy(logits, targets, label_smoothing)
    return (loss, log_z), (logits, targets, log_z)


def _backward(
    label_smoothing: float, residuals: tuple[Array, Array, Array], d_results: tuple[Array, Array]
) -> tuple[Array, None]:
    logits, targets, log_z = residuals
    d_loss, d_log_z = d_results
    size = logits.shape[-1]
    aimed = jnp.where(jnp.arange(size) == targets[..., None], 1.0 - label_smoothing, label_smoothing / (size - 1))
    probabilities = jnp.exp(logits - log_z[..., None])
    return probabilities * (d_loss + d_log_z)[..., None] - aimed * d_loss[..., None], None


_cross_entropy.defvjp(_forward, _backward)


def _logit_of(tokens: Int[Array, "B T"], logits: Float[Array, "B T V"]) -> Float[Array, "B T"]:
    return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
