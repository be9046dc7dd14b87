"""The model as the rest of the program sees it: nested dicts of arrays, and a module over them inside jit."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from t5x_lite.model.config import T5Config
from t5x_lite.model.names import named, nested
from t5x_lite.model.t5 import T5

Params = dict[str, Any]


def init_params(config: T5Config, key: Key[Array, ""]) -> Params:
    """Random weights, the same numbers scanned or not; jit it to draw them in their shardings.

    Always draws the scanned layout, since drawing layer by layer compiles twenty times longer.
    """
    scanned = _plain(T5(dataclasses.replace(config, scan_layers=True), key))
    return scanned if config.scan_layers else unstack_layers(scanned)


def abstract_params(config: T5Config) -> Params:
    """Shape and dtype of every weight, without memory for any."""
    scanned = _plain(_abstract_model(dataclasses.replace(config, scan_layers=True)))
    if config.scan_layers:
        return scanned
    return _unrolled(scanned, _depths(scanned), lambda leaf, _: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype))


def logical_axes(config: T5Config) -> Params:
    """The logical axis names of every weight, a tuple in place of each array."""
    model = _abstract_model(dataclasses.replace(config, scan_layers=True))
    params = nnx.to_flat_state(nnx.split(model)[1])
    axes = nested({"/".join(path): param.get_metadata("axes") for path, param in params})
    if config.scan_layers:
        return axes
    return _unrolled(axes, _depths(_plain(model)), lambda names, _: names[1:])


def bind(config: T5Config, params: Mapping[str, Any]) -> T5:
    """The model over these weights. Call it inside jit: it costs tracing time only."""
    return nnx.merge(_graphdef(config), params)


def stack_layers(params: Mapping[str, Any]) -> Params:
    """`layers_0`, `layers_1`, ... of an unrolled model as the one `layers` of a scanned model."""

    def stacked(part: Mapping[str, Any]) -> Params:
        count = sum(name.startswith("layers_") for name in part)
        layers = [part[f"layers_{n}"] for n in range(count)]
        rest = {name: node for name, node in part.items() if not name.startswith("layers_")}
        return rest | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}

    return dict(params) | {part: stacked(params[part]) for part in ("encoder", "decoder")}


def unstack_layers(params: Mapping[str, Any]) -> Params:
    """`layers` of a scanned model as the `layers_0`, `layers_1`, ... of an unrolled model."""
    return _unrolled(params, _depths(params), lambda leaf, n: leaf[n])


def _depths(scanned: Mapping[str, Any]) -> dict[str, int]:
    return {part: jax.tree.leaves(scanned[part]["layers"])[0].shape[0] for part in ("encoder", "decoder")}


def _unrolled(scanned: Mapping[str, Any], depths: Mapping[str, int], layer: Callable[[Any, int], Any]) -> Params:
    """A scanned tree with `layer(leaf, n)` in each of the places that a stacked leaf stands for."""

    def unrolled(part: Mapping[str, Any], depth: int) -> Params:
        rest = {name: node for name, node in part.items() if name != "layers"}
        return rest | {f"layers_{n}": _map(lambda leaf, n=n: layer(leaf, n), part["layers"]) for n in range(depth)}

    return dict(scanned) | {part: unrolled(scanned[part], depth) for part, depth in depths.items()}


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    """As jax.tree.map on nested dicts; a tuple of axis names is a leaf of them."""
    return jax.tree.map(function, tree, is_leaf=lambda node: not isinstance(node, dict))


def describe_model(config: T5Config) -> str:
    """The text of `inspect model`: configuration, every weight's shape and logical axes, and exact counts."""
    lines = [f"{field.name} = {getattr(config, field.name)!r}" for field in dataclasses.fields(config)]
    leaves = named(abstract_params(config))
    axes = jax.tree.leaves(logical_axes(config), is_leaf=lambda node: isinstance(node, tuple))
    width = max(map(len, leaves))
    lines.append("")
    for (name, leaf), names in zip(leaves.items(), axes, strict=True):
        shape = " x ".join(map(str, leaf.shape))
        lines.append(f"{name:{width}}  {shape:>20}  {leaf.dtype}  ({', '.join(name or '-' for name in names)})")
    lines += ["", f"{config.num_parameters:,} parameters in {len(leaves)} arrays"]
    return "\n".join(lines)


def _plain(model: T5) -> Params:
    return nnx.to_pure_dict(nnx.split(model)[1])


@functools.lru_cache
def _abstract_model(config: T5Config) -> T5:
    return nnx.eval_shape(lambda: T5(config, jax.random.key(0)))


@functools.lru_cache
def _graphdef(config: T5Config) -> nnx.GraphDef:
    return nnx.split(_abstract_model(config))[0]
