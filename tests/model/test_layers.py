"""The layers' functions: small cases by hand, then references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.model import T5Config
from t5x_lite.model.layers import (
    Attention,
    Initializer,
    RelativeBias,
    dropout,
    relative_buckets,
    rms_norm,
)

CONFIG = T5Config(vocab_size=8, d_model=6, num_heads=2, head_dim=4, d_ff=5, num_encoder_layers=1, num_decoder_layers=1)


def test_rms_norm_by_hand():
    """sqrt((9 + 16) / 2) = 5 / sqrt(2); the mean stays."""
    x = jnp.array([3.0, 4.0])
    expected = np.array([3.0, 8.0]) * np.sqrt(2) / 5
    np.testing.assert_allclose(rms_norm(x, jnp.array([1.0, 2.0]), 0.0), expected, rtol=1e-6)


def test_rms_norm_takes_statistics_in_float32():
    """256 squares of 1/16 sum to 1; bfloat16 sums would stop growing on the way."""
    x = jnp.full((256,), 1 / 16, jnp.bfloat16)
    y = rms_norm(x, jnp.ones((256,), jnp.bfloat16), 0.0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.ones((256,)))


@pytest.mark.parametrize(
    ("position", "bidirectional", "bucket"),
    [
        (0, True, 0),
        (-1, True, 1),
        (1, True, 17),
        (-7, True, 7),
        (-8, True, 8),
        (-11, True, 8),
        (-12, True, 9),
        (-16, True, 10),
        (128, True, 31),
        (-1000, True, 15),
        (5, False, 0),
        (-15, False, 15),
        (-16, False, 16),
        (-128, False, 31),
    ],
)
def test_buckets_by_hand(position, bidirectional, bucket):
    found = relative_buckets(jnp.array(position), bidirectional=bidirectional, num_buckets=32, max_distance=128)
    assert found == bucket


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_bias_is_the_table_at_the_bucket_of_each_pair(bidirectional, length):
    bias = RelativeBias(CONFIG, Initializer(jax.random.key(0), "float32"), bidirectional=bidirectional)
    positions = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    buckets = relative_buckets(positions, bidirectional=bidirectional, num_buckets=32, max_distance=128)
    expected = bias.rel_embedding[...][:, buckets]
    np.testing.assert_array_equal(bias(length)[0], expected)
    for count in {1, (length + 1) // 2, length}:
        for first in range(length - count + 1):
            rows = bias.rows(jnp.array(first), count, length)
            np.testing.assert_array_equal(rows[0], expected[:, first : first + count])


def test_dropout_is_off_without_key_or_rate():
    x = jnp.ones((2, 3, 4))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_scales_and_shares_its_draw_along_the_length():
    x = jnp.ones((64, 5, 64))
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == y[:, :1]).all()
    assert abs((y[:, 0] == 0).mean() - 0.25) < 0.03
    assert (y[0] != y[1]).any()


def test_attention_dropout_is_weight_dropout_shared_by_the_queries():
    """Dropped values are dropped columns of the weights: the same for all queries, not for rows and heads."""
    config = T5Config(**{**vars(CONFIG), "dropout_rate": 0.5})
    attention = Attention(config, Initializer(jax.random.key(0), "float32"))
    attention.out.kernel = type(attention.out.kernel)(jnp.eye(8).reshape(2, 4, 8), axes=())
    x, key = jax.random.normal(jax.random.key(1), (3, 5, 6)), jax.random.key(2)
    kv = attention.project(x)
    mask = jnp.ones((1, 1, 1, 5), bool)
    scores = jnp.einsum("bthk,bshk->bhts", attention.query(x), kv.key)
    keep = jax.random.bernoulli(key, 0.5, (3, 5, 2, 1))[..., 0].transpose(0, 2, 1)[:, :, None]
    weights = jnp.where(keep, jax.nn.softmax(scores) / 0.5, 0.0)
    expected = jnp.einsum("bhts,bshk->bthk", weights, kv.value).reshape(3, 5, 8)
    np.testing.assert_allclose(attention(x, kv, None, mask, key), expected, rtol=1e-5, atol=1e-6)
