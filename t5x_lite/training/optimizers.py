"""T5's optimizers, put together from Optax: Adafactor, AdamW, and AdamW scaled by each weight's RMS.

Each takes a schedule and returns a GradientTransformation. Statistics of a whole weight (Adafactor's factors,
root mean squares) are taken per layer also where layers are scanned and stacked, so that both train alike.
"""

from typing import Any

import jax
import optax

from t5x_lite.model.names import name_of
from t5x_lite.training.norms import clip_by_global_norm
from t5x_lite.training.schedules import Schedule

_SMALLEST_RMS = 1e-3  # a weight that starts at zero still moves


def adafactor(
    learning_rate: Schedule,
    *,
    clip_norm: float | None = None,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    multiply_by_parameter_scale: bool = True,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adafactor (arXiv:1804.04235) with T5's settings: no momentum, step relative to each weight's RMS."""
    factored = optax.scale_by_factored_rms(decay_rate=decay_rate, epsilon=1e-30, min_dim_size_to_factor=128)
    inner = [as_matrices(factored), optax.clip_by_block_rms(clipping_threshold)]
    if multiply_by_parameter_scale:
        inner.append(optax.scale_by_param_block_rms(_SMALLEST_RMS))
    return _chain(clip_norm, per_layer(optax.chain(*inner)), weight_decay, learning_rate)


def adamw(
    learning_rate: Schedule,
    *,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101)."""
    return _chain(clip_norm, optax.scale_by_adam(b1, b2, eps), weight_decay, learning_rate)


def adamw_rms_scaled(
    learning_rate: Schedule,
    *,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW whose step is relative to each weight's RMS, as nanoT5 (arXiv:2309.02373) found best for T5.

    T5's embeddings start at 1 and its kernels at 1/sqrt(width): one absolute step is too small for the former
    or too large for the latter. Rates are therefore higher than AdamW's (nanoT5: 2e-2).
    """
    relative = per_layer(optax.scale_by_param_block_rms(_SMALLEST_RMS))
    scaled = optax.chain(optax.scale_by_adam(b1, b2, eps), relative)
    return _chain(clip_norm, scaled, weight_decay, learning_rate)


def _chain(
    clip_norm: float | None, inner: optax.GradientTransformation, weight_decay: float, learning_rate: Schedule
) -> optax.GradientTransformation:
    clip = [clip_by_global_norm(clip_norm)] if clip_norm else []
    decay = [optax.add_decayed_weights(weight_decay, mask=decayed)] if weight_decay else []
    return optax.chain(*clip, inner, *decay, optax.scale_by_learning_rate(learning_rate))


def decayed(params: Any) -> Any:
    """Which weights decay: all but norm scales and relative position biases."""

    def decays(path: tuple, _: Any) -> bool:
        return path[-1].key not in ("scale", "rel_embedding")

    return jax.tree_util.tree_map_with_path(decays, params)


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `tx` on every scanned stack ([L, ...] below a `layers` key) one layer at a time, by vmap."""

    def init(params: Any) -> dict[str, Any]:
        stacks, single = _split(params)
        return {"stacks": {name: jax.vmap(tx.init)(stack) for name, stack in stacks.items()}, "single": tx.init(single)}

    def update(updates: Any, state: dict[str, Any], params: Any = None) -> tuple[Any, dict[str, Any]]:
        stacks, single = _split(updates)
        stacked_params, single_params = _split(params)
        new, single_state = tx.update(single, state["single"], single_params)
        states = {}
        for name, stack in stacks.items():
            of_stack, states[name] = jax.vmap(tx.update)(stack, state["stacks"][name], stacked_params[name])
            new |= of_stack
        return _merge(updates, new), {"stacks": states, "single": single_state}

    return optax.GradientTransformation(init, update)


def as_matrices(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `tx` on attention kernels as the matrices that they are, heads and head size made one axis.

    T5 stores them so. As [D, H, K] Adafactor would not factor them, because K and often H are below 128.
    """

    def joined(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, x: x.reshape(_matrix_shape(path, x.shape)), tree)

    def init(params: Any) -> Any:
        return tx.init(joined(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new, state = tx.update(joined(updates), state, joined(params))
        return jax.tree.map(lambda matrix, x: matrix.reshape(x.shape), new, updates), state

    return optax.GradientTransformation(init, update)


def _matrix_shape(path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3:
        return shape
    first, second, third = shape
    output = name_of(path).endswith(("out/kernel", "out/lora_a"))  # [H, K, D]; others are [D, H, K]
    return (first * second, third) if output else (first, second * third)


def _split(tree: Any) -> tuple[dict[str, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Leaves by name: those below a `layers` key, for each such stack apart (depths may differ), and the others."""
    stacks: dict[str, dict[str, jax.Array]] = {}
    single = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = name_of(path)
        stack, layers, _ = name.partition("/layers/")
        if layers:
            stacks.setdefault(stack, {})[name] = leaf
        else:
            single[name] = leaf
    return stacks, single


def _merge(like: Any, leaves: dict[str, jax.Array]) -> Any:
    def pick(path: tuple, _: Any) -> jax.Array:
        return leaves[name_of(path)]

    return jax.tree_util.tree_map_with_path(pick, like)
