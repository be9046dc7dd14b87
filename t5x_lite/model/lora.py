"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) beside the kernels of a model, and folded into them."""

import math
import re

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from t5x_lite.model.config import Lora
from t5x_lite.model.layers import Dense, Initializer

FACTORS = ("lora_a", "lora_b")  # names of the trained leaves, beside `kernel`


def add_adapters(model: nnx.Module, lora: Lora, init: Initializer) -> None:
    """Gives every kernel that a target of `lora` names its two factors, in float32 whatever the kernels are in.

    A [..., r] maps the kernel's inputs to the rank and starts random, B [r, ...] maps to its outputs and starts at
    zero: a model begins as the one without adapters. Raises ValueError for a target that names no kernel.
    """
    patterns = [re.compile(target) for target in lora.targets]
    unused = set(lora.targets)
    names = []
    for path, module in nnx.iter_modules(model):
        if not isinstance(module, Dense):
            continue
        name = re.sub(r"/layers_\d+/", "/layers/", "/".join(map(str, path)))
        names.append(name)
        hits = [pattern.pattern for pattern in patterns if pattern.fullmatch(name)]
        unused -= set(hits)
        if hits:
            _add_adapter(module, lora, init, len(names))
    if unused:
        raise ValueError(f"Lora.targets: {min(unused)!r} names no kernel; the model has {', '.join(names[:6])}, ...")


def _add_adapter(dense: Dense, lora: Lora, init: Initializer, number: int) -> None:
    axes = dense.kernel.get_metadata("axes")
    shape = dense.kernel[...].shape
    stacked = axes[0] == "layers"
    layers, shape, axes = (shape[:1], shape[1:], axes[1:]) if stacked else ((), shape, axes)
    inputs, outputs = shape[: dense.contracted], shape[dense.contracted :]
    factors = init.child(number).in_float32(layers[0] if stacked else None)
    dense.lora_a = factors.normal(
        (*inputs, lora.rank), (*axes[: dense.contracted], None), stddev=math.prod(inputs) ** -0.5
    )
    dense.lora_b = factors.normal((lora.rank, *outputs), (None, *axes[dense.contracted :]), stddev=0.0)
    dense.lora_scale = lora.alpha / lora.rank


def merge_adapter(
    kernel: Float[Array, "..."], a: Float[Array, "... r"], b: Float[Array, "r ..."], lora: Lora
) -> Float[Array, "..."]:
    """The kernel that acts as kernel and adapter together, in the kernel's dtype; all three may be stacks."""
    stack = "l" if a.ndim - 1 + b.ndim - 1 > kernel.ndim else ""
    inputs = "xyz"[: a.ndim - 1 - len(stack)]
    outputs = "uvw"[: b.ndim - 1 - len(stack)]
    product = jnp.einsum(f"{stack}{inputs}r,{stack}r{outputs}->{stack}{inputs}{outputs}", a, b, precision="highest")
    return (kernel.astype(jnp.float32) + lora.alpha / lora.rank * product).astype(kernel.dtype)


def is_adapter(name: str) -> bool:
    """Whether a parameter's name, 'encoder/layers_0/mlp/wo/lora_a', is a factor's."""
    return name.rsplit("/", 1)[-1] in FACTORS
