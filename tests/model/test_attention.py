"""Attention by hand, by differences, and in parts of the batch against all of it at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.model import attention
from t5x_lite.model.attention import attend

B, T, S, H, K = 6, 5, 7, 2, 4
RNG = np.random.default_rng(0)


def normal(*shape, dtype="float32"):
    return jnp.asarray(RNG.normal(size=shape), dtype)


@pytest.fixture
def one_cpu():
    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        yield


@pytest.fixture(params=["whole", "in parts"])
def both(request, monkeypatch):
    """Once as on accelerators and several devices, once as on one CPU with a cache of a byte."""
    if request.param == "whole":
        yield
        return
    monkeypatch.setattr(attention, "_CACHED", 1)
    request.getfixturevalue("one_cpu")
    yield


def test_attend_by_hand(both):
    """Equal scores give the mean of what the mask lets through; a bias of ln 3 makes 3 parts of 1."""
    q = jnp.zeros((2, 1, 1, 2))
    k = jnp.ones((2, 3, 1, 2))
    v = jnp.tile(jnp.array([[1.0, 0.0], [5.0, 4.0], [100.0, 100.0]])[None, :, None], (2, 1, 1, 1))
    mask = jnp.array([True, True, False])[None, None, None]
    np.testing.assert_allclose(attend(q, k, v, None, mask)[:, 0, 0], [[3.0, 2.0]] * 2, rtol=1e-6)
    bias = jnp.array([0.0, jnp.log(3.0), 7.0])[None, None, None]
    np.testing.assert_allclose(attend(q, k, v, bias, mask)[:, 0, 0], [[4.0, 3.0]] * 2, rtol=1e-6)


def test_attend_does_not_scale_scores():
    q, k = jnp.full((1, 1, 1, 4), 1.0), jnp.stack([jnp.full((4,), 0.5), jnp.zeros(4)])[None, :, None]
    v = jnp.array([1.0, 0.0])[None, :, None, None]
    weight = attend(q, k, v, None, jnp.ones((1, 1, 1, 2), bool)).item()
    np.testing.assert_allclose(weight, 1 / (1 + np.exp(-2.0)), rtol=1e-6)


def test_attend_with_nothing_to_see_is_finite(both):
    x = jnp.ones((2, 2, 1, 3))
    out, grad = jax.value_and_grad(lambda x: attend(x, x, x, None, jnp.zeros((1, 1, 1, 2), bool)).sum())(x)
    assert np.isfinite(out)
    assert np.isfinite(grad).all()


def test_attend_gradient_of_the_bias_against_differences(both):
    """Some kernels have returned zeros for a bias that is broadcast over the batch."""
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v, weight = (jax.random.normal(key, (2, 3, 2, 4)) for key in keys[:4])
    bias = jax.random.normal(keys[4], (1, 2, 3, 3))
    mask = jnp.tril(jnp.ones((3, 3), bool))[None, None]

    def loss(bias):
        return jnp.sum(attend(q, k, v, bias, mask) * weight)

    grad = jax.grad(loss)(bias)
    direction = jax.random.normal(jax.random.key(9), bias.shape)
    slope = (loss(bias + 1e-2 * direction) - loss(bias - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(jnp.sum(grad * direction), slope, rtol=2e-3)
    assert (grad[0, :, 0, 1:] == 0).all()


# In parts


def by_segments():
    segments = np.repeat(np.arange(1, 4), [3, 2, 2])
    return np.broadcast_to(segments[:T, None] == segments[None, :], (B, 1, T, S))


def by_lengths():
    """One row has nothing to look at."""
    return (np.arange(S) < np.arange(B)[:, None])[:, None, None, :]


MASKS = {"none": np.ones((1, 1, 1, S), bool), "lengths": by_lengths(), "segments": by_segments()}


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_parts_give_what_the_whole_gives(one_cpu, monkeypatch, mask, with_bias, count):
    q, k, v, weight = normal(B, T, H, K), normal(B, S, H, K), normal(B, S, H, K), normal(B, T, H, K)
    bias = normal(1, H, T, S) if with_bias else None

    def loss(inputs):
        return jnp.sum(attend(*inputs, jnp.asarray(mask)) * weight)

    found = []
    for cached in (4 * B * H * T * S, 4 * B * H * T * S // count):
        monkeypatch.setattr(attention, "_CACHED", cached)
        traced = jax.jit(jax.value_and_grad(loss)).trace((q, k, v, bias))
        assert ("scan" in str(traced.jaxpr)) == (len(found) == 1)
        found.append(jax.tree.leaves(traced.lower().compile()((q, k, v, bias))))
    for whole, parts in zip(*found, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=2e-5, atol=2e-5)


def test_bfloat16_is_near_to_float32_whole_and_in_parts(one_cpu, monkeypatch):
    q, k, v, weight = normal(B, T, H, K), normal(B, S, H, K), normal(B, S, H, K), normal(B, T, H, K)
    bias = normal(1, H, T, S)

    def gradients(dtype, cached):
        monkeypatch.setattr(attention, "_CACHED", cached)

        def loss(inputs, bias):
            return jnp.sum(attend(*inputs, bias, MASKS["lengths"]).astype(jnp.float32) * weight)

        found = jax.grad(loss, (0, 1))(tuple(x.astype(dtype) for x in (q, k, v)), bias)
        assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [dtype] * 3 + [jnp.float32]
        return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(found)]

    exact = gradients(jnp.dtype("float32"), 2**24)
    for true, whole, parts in zip(exact, *(gradients(jnp.dtype("bfloat16"), n) for n in (2**24, 1)), strict=True):
        for found in (whole, parts):
            assert np.abs(found - true).max() < 0.03 * np.abs(true).max()


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(0, 1), (1, 1), (2, 1), (3, 3), (8, 4), (7, 7), (64, 32)],
    ids=str,
)
def test_so_many_parts_as_fit_the_cache_and_divide_the_batch(one_cpu, batch, expected):
    """Two rows of 8 heads and 512 x 512 scores are 16 MiB."""
    assert attention._parts(batch, 512, 8, 512) == expected


def test_a_batch_that_lies_on_several_devices_is_left_whole():
    assert attention._parts(8, 512, 8, 512) == 1
    with jax.set_mesh(jax.make_mesh((2,), ("data",))):
        assert attention._parts(8, 512, 8, 512) == 1
