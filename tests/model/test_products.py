"""Products of activations and kernels: in float32 and bfloat16, on a mesh of one CPU and off any mesh."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.model import products
from t5x_lite.model.products import product, product_with_table

RNG = np.random.default_rng(0)
SHAPES = [(4, 6, 16), (1, 1, 16), (2, 3, 5, 16), (7, 16)]
FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def normal(*shape, dtype="float32"):
    return jnp.asarray(RNG.normal(size=shape), dtype)


@pytest.fixture
def on_one_cpu():
    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        yield


def gradients(x, kernel, weight, **wide):
    """The product, and the gradients of x and kernel."""
    out, transposed = jax.vjp(lambda x, kernel: product(x, kernel, **wide), x, kernel)
    return out, *transposed(weight.astype(out.dtype))


def exactly(x, kernel, weight):
    x, kernel, weight = (np.asarray(each, np.float64) for each in (x, kernel, weight))
    rows = x.reshape(-1, x.shape[-1]), weight.reshape(-1, weight.shape[-1])
    return x @ kernel, weight @ kernel.T, rows[0].T @ rows[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("float32", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", [False, True], ids=["off mesh", "one cpu"])
def test_a_product_and_its_gradients(mesh, dtype, float32, shape, request):
    if mesh:
        request.getfixturevalue("on_one_cpu")
    x, kernel, weight = normal(*shape, dtype=dtype), normal(16, 8), normal(*shape[:-1], 8)
    found = gradients(x, kernel, weight, float32=float32)
    assert [each.dtype for each in found] == ["float32" if float32 else dtype, dtype, "float32"]
    for each, true in zip(found, exactly(x, kernel, weight), strict=True):
        error = np.abs(np.asarray(each, np.float64) - true).max() / np.abs(true).max()
        assert error < (1e-6 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_with_a_table_and_its_gradients(dtype, rows, on_one_cpu):
    x, table, weight = normal(rows, 16, dtype=dtype), normal(40, 16), normal(rows, 40)
    out, transposed = jax.vjp(product_with_table, x, table)
    d_x, d_table = transposed(weight)
    wide = np.asarray(x, np.float64)
    true = wide @ np.asarray(table).T, np.asarray(weight) @ np.asarray(table), np.asarray(weight).T @ wide
    assert [each.dtype for each in (out, d_x, d_table)] == ["float32", dtype, "float32"]
    for each, exact in zip((out, d_x, d_table), true, strict=True):
        error = np.abs(np.asarray(each, np.float64) - exact).max() / np.abs(exact).max()
        assert error < (1e-6 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize(("rows", "written"), [(4, "300,4"), (200, "200,300")])
def test_for_a_few_rows_a_table_is_the_first_operand(rows, written, on_one_cpu):
    text = jax.jit(product_with_table).lower(normal(rows, 16), normal(300, 16)).compile().as_text()
    assert re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text) == [written]


def test_float32_is_rounded_nowhere_on_its_way_to_a_kernels_gradient(on_one_cpu):
    """Of bfloat16 rows, whose products have 16 significant bits: their sum is exact in float32, and not in bfloat16."""
    x, weight = jnp.full((1, 3, 1), 1 + 2**-7, jnp.bfloat16), jnp.ones((1, 3, 1))
    assert gradients(x, jnp.ones((1, 1)), weight)[2].item() == 3 + 3 * 2**-7


@pytest.mark.skipif("avx512_bf16" not in FLAGS, reason="this CPU multiplies no bfloat16")
def test_no_bfloat16_product_of_a_training_step_is_widened_on_cpu(on_one_cpu):
    x, kernel, weight = normal(4, 128, 64, dtype="bfloat16"), normal(64, 128), normal(4, 128, 128)
    text = jax.jit(gradients).lower(x, kernel, weight).compile().as_text()
    operands = re.findall(r"\bdot\((\S+?), (\S+?)\)", text)
    types = [re.search(rf"{re.escape(name)} = (\w+)\[", text)[1] for pair in operands for name in pair]
    assert types == ["bf16"] * 6


def test_only_one_cpu_is_one_cpu(on_one_cpu):
    assert products.on_one_cpu()
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",))):
        assert not products.on_one_cpu()
