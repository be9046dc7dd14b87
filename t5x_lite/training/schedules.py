"""Learning rates as T5X writes them: a product of named factors, 'constant * linear_warmup * rsqrt_decay'."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5x_lite.errors import UserError, nearest

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def learning_rate(
    factors: str = "constant * linear_warmup * rsqrt_decay",
    *,
    base_learning_rate: float,
    warmup_steps: int = 1000,
    total_steps: int = 0,
) -> Schedule:
    """The learning rate of a step (counted from 0) as the product of `factors`.

    constant        `base_learning_rate`
    linear_warmup   rises from 1 / `warmup_steps` to 1
    rsqrt_decay     1 / sqrt(max(step, `warmup_steps`))
    linear_decay    falls from 1 after the warm-up to 0 at `total_steps`
    cosine_decay    the same along half a cosine

    Raises UserError for an unknown factor, and for a decay without `total_steps` beyond the warm-up.
    """
    names = [name.strip() for name in factors.split("*")]
    span = max(total_steps - warmup_steps, 1)

    def progress(step: Array) -> Array:
        return jnp.clip((step - warmup_steps) / span, 0.0, 1.0)

    known: dict[str, Schedule] = {
        "constant": lambda step: jnp.asarray(base_learning_rate, jnp.float32),
        "linear_warmup": lambda step: jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1)),
        "rsqrt_decay": lambda step: jax.lax.rsqrt(jnp.maximum(step, max(warmup_steps, 1)).astype(jnp.float32)),
        "linear_decay": lambda step: 1.0 - progress(step),
        "cosine_decay": lambda step: 0.5 * (1.0 + jnp.cos(jnp.pi * progress(step))),
    }
    for name in names:
        if name not in known:
            raise UserError(f"learning_rate.factors: no {name!r}{nearest(name, known)}; there are {', '.join(known)}")
        if name in ("linear_decay", "cosine_decay") and total_steps <= warmup_steps:
            raise UserError(
                f"learning_rate: {name} ends at total_steps, which is {total_steps} and must be more than "
                f"warmup_steps, {warmup_steps}; set --gin.TRAIN_STEPS or --gin.WARMUP_STEPS"
            )

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        value = jnp.asarray(1.0, jnp.float32)
        for name in names:
            value = value * known[name](step)
        return value

    return rate
