"""One optimizer step: loss and gradient of a global batch, computed in microbatches, divided once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from t5x_lite.errors import UserError
from t5x_lite.model import T5Config, bind, constrain
from t5x_lite.partitioning import Partitioner
from t5x_lite.training.losses import Losses, cross_entropy
from t5x_lite.training.norms import global_norm
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.state import Params, TrainState, abstract_frozen, abstract_state
from t5x_lite.training.trainable import Rules, join

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    config: T5Config,
    tx: optax.GradientTransformation,
    partitioner: Partitioner,
    *,
    learning_rate: Schedule,
    microbatches: int = 1,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
    trainable: Rules = (),
) -> Callable[[TrainState, Batch, Params], tuple[TrainState, Metrics]]:
    """The compiled step of (state, batch, the parameters that are not trained), to be called inside
    `partitioner.context()`.

    The state given is donated; metrics are scalars on the device. Raises UserError for a `label_smoothing`
    outside of [0, 1), and RuntimeError outside of the context, where the model's layout would be lost.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"LABEL_SMOOTHING is {label_smoothing}; it must lie in [0, 1)")

    def step(state: TrainState, batch: Batch, frozen: Params) -> tuple[TrainState, Metrics]:
        if jax.sharding.get_abstract_mesh() != partitioner.mesh.abstract_mesh:
            raise RuntimeError("call the train step inside partitioner.context()")

        def loss_sum(params: Any, part: Batch, key: Key[Array, ""] | None) -> tuple[Array, Losses]:
            logits = bind(config, join(params, frozen))(part, dropout_key=key)
            losses = cross_entropy(
                logits,
                part["decoder_target_tokens"],
                part["decoder_loss_weights"],
                z_loss=z_loss,
                label_smoothing=label_smoothing,
            )
            return losses.total, losses

        key = state.dropout_key if config.dropout_rate else None
        grads, losses = sum_gradients(jax.grad(loss_sum, has_aux=True), state.params, batch, key, microbatches)
        # Weights of all microbatches and devices together: parts with more tokens count for more.
        weight = jnp.maximum(losses.weight, 1.0)
        share = 1.0 / weight  # XLA writes quotients out, and takes products into what follows
        grads = jax.tree.map(lambda g: g * share, grads)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": losses.total / weight,
            "cross_entropy": losses.cross_entropy / weight,
            "z_loss": losses.z_loss / weight,
            "accuracy": losses.correct / weight,
            "target_tokens": losses.weight,
            "input_tokens": jnp.sum(batch["encoder_input_tokens"] > 0).astype(jnp.float32),
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
            "grad_norm": global_norm(grads),
            "param_norm": global_norm(params),
            "update_norm": global_norm(updates),
        }
        return TrainState(state.step + 1, params, opt_state, state.key_data), metrics

    abstract = abstract_state(config, tx, partitioner, trainable), abstract_frozen(config, partitioner, trainable)
    shardings, of_frozen = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, partitioner.batch_sharding, of_frozen),
        out_shardings=(shardings, partitioner.replicated),
    )


def sum_gradients(
    grad: Callable, params: Any, batch: Batch, key: Key[Array, ""] | None, microbatches: int
) -> tuple[Any, Losses]:
    """Sums, in float32, of the gradients and losses of `microbatches` equal parts of the batch.

    A part takes every `microbatches`-th row, so that each device's rows stay on it.
    """
    if microbatches == 1:
        return grad(params, batch, key)

    def rows_of_parts(x: Array) -> Array:
        parts = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch", *(None,) * (parts.ndim - 2))

    def add(total: Any, part_and_number: tuple[Batch, Array]) -> tuple[Any, None]:
        part, number = part_and_number
        part_key = None if key is None else jax.random.fold_in(key, number)
        return jax.tree.map(jnp.add, total, grad(params, part, part_key)), None

    parts = jax.tree.map(rows_of_parts, dict(batch))
    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params), Losses(*(jnp.zeros(()),) * 4)
    return jax.lax.scan(add, zero, (parts, jnp.arange(microbatches)))[0]
