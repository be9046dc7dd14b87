"""What a training step turns into the next: parameters, optimizer, step, and the key of all dropout."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, UInt32

from t5x_lite.model import T5Config, abstract_params, init_params, logical_axes
from t5x_lite.partitioning import Partitioner, like_parameters, with_shardings

_PRNG = "threefry2x32"  # bits do not depend on the mesh; those of the faster hardware generators do


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A run's state after `step` steps. `key_data` never changes: a step's key is the step folded into it."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    key_data: UInt32[Array, "2"]

    @property
    def dropout_key(self) -> Key[Array, ""]:
        """The key of the next step: the same on any mesh, and after any restart."""
        key = jax.random.wrap_key_data(self.key_data, impl=_PRNG)
        return jax.random.fold_in(key, self.step)


def abstract_state(config: T5Config, tx: optax.GradientTransformation, partitioner: Partitioner) -> TrainState:
    """Shape, dtype and sharding of every array of a state, without memory for any."""
    params = abstract_params(config)
    shapes = jax.eval_shape(lambda params: _state(params, tx, jax.random.key(0, impl=_PRNG)), params)
    param_shardings = partitioner.shardings(logical_axes(config), params)
    opt_shardings = like_parameters(shapes.opt_state, params, param_shardings, partitioner.replicated)
    shardings = TrainState(partitioner.replicated, param_shardings, opt_shardings, partitioner.replicated)
    return with_shardings(shapes, shardings)


def init_state(
    config: T5Config, tx: optax.GradientTransformation, key: Key[Array, ""], partitioner: Partitioner
) -> TrainState:
    """A new state from a threefry key, every array made where it is to live: nothing ever holds it whole."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, tx, partitioner))
    params_key, dropout_key = jax.random.split(key)

    def make(params_key: Key[Array, ""], dropout_key: Key[Array, ""]) -> TrainState:
        return _state(init_params(config, params_key), tx, dropout_key)

    return jax.jit(make, out_shardings=shardings)(params_key, dropout_key)


def _state(params: Any, tx: optax.GradientTransformation, dropout_key: Key[Array, ""]) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key_data(dropout_key))
