import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.training.losses import cross_entropy

LN2 = float(np.log(2))


def test_two_tokens_that_are_equally_likely_are_both_correct():
    losses = cross_entropy(jnp.zeros((1, 1, 2)), jnp.array([[1]]), jnp.ones((1, 1)), z_loss=0.1)
    assert losses.cross_entropy == pytest.approx(LN2)
    assert losses.z_loss == pytest.approx(0.1 * LN2**2)
    assert losses.total == pytest.approx(LN2 + 0.1 * LN2**2)
    assert (losses.correct, losses.weight) == (1.0, 1.0)


def test_sums_over_weighted_positions_only():
    logits = jnp.array([[[0.0, 0.0], [9.0, -9.0], [0.0, 0.0]]])
    losses = cross_entropy(logits, jnp.array([[0, 1, 0]]), jnp.array([[1, 0, 2]]), z_loss=0.0)
    assert losses.cross_entropy == pytest.approx(3 * LN2)
    assert (losses.correct, losses.weight) == (3.0, 3.0)


def test_a_perfect_smoothed_model_has_loss_zero():
    smoothed = jnp.log(jnp.array([[[0.9, 0.05, 0.05]]]))
    losses = cross_entropy(smoothed, jnp.array([[0]]), jnp.ones((1, 1)), z_loss=1e-4, label_smoothing=0.1)
    assert losses.cross_entropy == pytest.approx(0.0, abs=1e-6)
    assert losses.z_loss == pytest.approx(0.0, abs=1e-9)


def by_definition(logits, targets, weights, z_loss, smoothing):
    """T5X's formula over one-hot targets, which the implementation avoids to build."""
    size = logits.shape[-1]
    confidence, low = 1 - smoothing, smoothing / (size - 1)
    soft = jnp.where(jax.nn.one_hot(targets, size) > 0, confidence, low)
    entropy = -(confidence * np.log(confidence) + (size - 1) * low * np.log(low + 1e-20))
    log_z = jax.nn.logsumexp(logits, axis=-1)
    loss = -jnp.sum(soft * jax.nn.log_softmax(logits), axis=-1) - entropy
    return jnp.sum((loss + z_loss * log_z**2) * weights)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 1e-4, 1e-1]))
def test_value_and_gradient_are_those_of_the_one_hot_definition(seed, smoothing, z_loss):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(0, 5, (2, 3, 7)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 7, (2, 3)))
    weights = jnp.asarray(rng.integers(0, 2, (2, 3)), jnp.float32)

    def ours(logits):
        return cross_entropy(logits, targets, weights, z_loss=z_loss, label_smoothing=smoothing).total

    value, grad = jax.value_and_grad(ours)(logits)
    want, want_grad = jax.value_and_grad(by_definition)(logits, targets, weights, z_loss, smoothing)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(grad, want_grad, atol=1e-5)


def test_large_logits_stay_finite():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    losses = cross_entropy(logits, jnp.array([[1]]), jnp.ones((1, 1)), z_loss=0.0)
    assert losses.cross_entropy == pytest.approx(2e4)


def test_bfloat16_logits_are_summed_in_float32():
    losses = cross_entropy(jnp.zeros((8, 125, 3), jnp.bfloat16), jnp.zeros((8, 125), int), jnp.ones((8, 125)))
    assert losses.cross_entropy.dtype == jnp.float32
    assert losses.cross_entropy == pytest.approx(1000 * np.log(3), rel=1e-5)


def test_torch_agrees():
    import torch

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4, 6, 11)).astype(np.float32)
    targets = rng.integers(0, 11, (4, 6))
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(targets), jnp.ones((4, 6)), z_loss=0.0)
    want = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 11), torch.from_numpy(targets).reshape(-1), reduction="sum"
    )
    assert ours.total == pytest.approx(float(want), rel=1e-5)
