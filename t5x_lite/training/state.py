"""What a training step turns into the next: parameters, optimizer, step, and the key of all dropout."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, UInt32

from t5x_lite.model import T5Config, abstract_params, init_params, logical_axes
from t5x_lite.partitioning import Partitioner, like_parameters, with_shardings
from t5x_lite.training.trainable import Rules, split

Params = dict[str, Any]

_PRNG = "threefry2x32"  # bits do not depend on the mesh; those of the faster hardware generators do


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A run's state after `step` steps; `params` are those that it trains.

    `key_data` never changes: a step's key is the step folded into it.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    key_data: UInt32[Array, "2"]

    @property
    def dropout_key(self) -> Key[Array, ""]:
        """The key of the next step: the same on any mesh, and after any restart."""
        key = jax.random.wrap_key_data(self.key_data, impl=_PRNG)
        return jax.random.fold_in(key, self.step)


def abstract_state(
    config: T5Config, tx: optax.GradientTransformation, partitioner: Partitioner, trainable: Rules = ()
) -> TrainState:
    """Shape, dtype and sharding of every array of a state, without memory for any."""
    params, _ = split(_abstract_params(config, partitioner), trainable)
    param_shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    shapes = jax.eval_shape(lambda params: _state(params, tx, jax.random.key(0, impl=_PRNG)), params)
    opt_shardings = like_parameters(shapes.opt_state, params, param_shardings, partitioner.replicated)
    shardings = TrainState(partitioner.replicated, param_shardings, opt_shardings, partitioner.replicated)
    return with_shardings(shapes, shardings)


def abstract_frozen(config: T5Config, partitioner: Partitioner, trainable: Rules) -> Params:
    """Shape, dtype and sharding of the parameters that a run does not train."""
    return split(_abstract_params(config, partitioner), trainable)[1]


def _abstract_params(config: T5Config, partitioner: Partitioner) -> Params:
    params = abstract_params(config)
    return with_shardings(params, partitioner.shardings(logical_axes(config), params))


def init_state(
    config: T5Config, tx: optax.GradientTransformation, key: Key[Array, ""], partitioner: Partitioner
) -> TrainState:
    """A new state from a threefry key, every array made where it is to live: nothing ever holds it whole."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, tx, partitioner))
    params_key, dropout_key = jax.random.split(key)

    def make(params_key: Key[Array, ""], dropout_key: Key[Array, ""]) -> TrainState:
        return _state(init_params(config, params_key), tx, dropout_key)

    return jax.jit(make, out_shardings=shardings)(params_key, dropout_key)


def state_of(
    params: Params, tx: optax.GradientTransformation, dropout_key: Key[Array, ""], abstract: TrainState
) -> TrainState:
    """A new state of the trained parameters that are already where they are to live."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    step, key_data = jnp.zeros((), jnp.int32), jax.random.key_data(dropout_key)
    return TrainState(
        jax.device_put(step, shardings.step), params, opt_state, jax.device_put(key_data, shardings.key_data)
    )


def _state(params: Any, tx: optax.GradientTransformation, dropout_key: Key[Array, ""]) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key_data(dropout_key))
