"""Matrix products of activations and kernels.

XLA on CPU (jaxlib 0.10) multiplies bfloat16 at up to twice float32's speed, but only to a float32 result, and for a
kernel's gradient only where rows have two axes; any other product it widens to float32 first. A mesh of one CPU is
served so; on several devices such gradients would gather kernels once more. A product's second operand it packs anew
each time, which for a few rows and a large table takes longer than the product.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_FEW_ROWS = 128  # up to so many, packing a table of 32,128 rows is most of the work


def on_one_cpu() -> bool:
    """Whether what is traced now is laid out on a mesh of one CPU device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size == 1 and mesh.abstract_device is not None and mesh.abstract_device.platform == "cpu"


def product(x: Float[Array, "*B I"], kernel: Float[Array, "I O"], float32: bool = False) -> Float[Array, "*B O"]:
    """x times the kernel rounded to x's type, summed in float32; the result has x's type, or is `float32`."""
    if x.dtype == jnp.bfloat16 and on_one_cpu() and x.ndim > 2:
        out = _narrow(x.reshape(-1, *x.shape[-2:]), kernel, jnp.dtype("float32") if float32 else x.dtype)
        return out.reshape(*x.shape[:-1], -1)
    # As one product of two matrices: XLA on CPU copies the activations of anything else in the backward pass.
    rows = x.reshape(-1, x.shape[-1])
    wide = jnp.float32 if float32 else None
    return jnp.dot(rows, kernel.astype(x.dtype), preferred_element_type=wide).reshape(*x.shape[:-1], -1)


def product_with_table(rows: Float[Array, "R D"], table: Float[Array, "V D"]) -> Float[Array, "R V"]:
    """The dot product of each row with each row of the table in rows' type, summed in float32, which the result has."""
    table = table.astype(rows.dtype)
    if on_one_cpu() and 1 < rows.shape[0] <= _FEW_ROWS:
        by_table_row = jnp.dot(table, rows.T, preferred_element_type=jnp.float32)
        return jax.lax.optimization_barrier(by_table_row).T  # without it XLA swaps the operands
    return jnp.dot(rows, table.T, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow(x: Array, kernel: Array, dtype: jnp.dtype) -> Array:
    wide = jnp.einsum("bsi,io->bso", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return wide.astype(dtype)


def _forward(x: Array, kernel: Array, dtype: jnp.dtype) -> tuple[Array, tuple[Array, Array]]:
    return _narrow(x, kernel, dtype), (x, kernel)


def _backward(dtype: jnp.dtype, residuals: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    d_out = d_out.astype(x.dtype)
    d_x = jnp.einsum("bso,io->bsi", d_out, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    d_kernel = jnp.einsum("bsi,bso->io", x, d_out, preferred_element_type=jnp.float32)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


_narrow.defvjp(_forward, _backward)
