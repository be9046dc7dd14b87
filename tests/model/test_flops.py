"""The formula against a case worked by hand, and against XLA's own count of unrolled models."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.model import T5Config, abstract_params, bind
from t5x_lite.model.flops import forward_flops, recomputed_flops, train_flops

TINY = T5Config(vocab_size=8, d_model=2, num_heads=1, head_dim=2, d_ff=3, num_encoder_layers=1, num_decoder_layers=1)


def test_a_case_by_hand():
    """Two inputs, one target: every product of the model, 2 for each multiply and add."""
    found = forward_flops(TINY, 2, 1)
    assert found.encoder == 2 * (4 * 2 * 2 * 2 + 3 * 2 * 2 * 3)  # q, k, v, out; wi_0, wi_1, wo
    assert found.cross_kv == 2 * (2 * 2 * 2 * 2)
    assert found.decoder == 1 * (6 * 2 * 2 * 2 + 3 * 2 * 2 * 3)  # cross-attention has its query and out here
    assert found.attention == 2 * (2 * 2 * 2) * 2 + 2 * (1 * 1 * 2) * 2 + 2 * (1 * 2 * 2) * 2
    assert found.head == 2 * 2 * 8
    assert train_flops(TINY, 2, 1) == 3 * found.total


@pytest.mark.parametrize("size", ["small", "xxl"])
def test_published_figures(size):
    """GFLOP of a pair of 512 and 128 tokens, counted by others for these two sizes of T5 v1.1."""
    d, heads, layers, f, train = {"small": (512, 6, 8, 1024, 109.9), "xxl": (4096, 64, 24, 10240, 21380)}[size]
    config = T5Config(
        vocab_size=32128, d_model=d, num_heads=heads, d_ff=f, num_encoder_layers=layers, num_decoder_layers=layers
    )
    assert train_flops(config, 512, 128) / 1e9 == pytest.approx(train, rel=1e-3)


@pytest.mark.parametrize("activations", [("gelu", "linear"), ("relu",)])
def test_xla_counts_the_same(activations):
    """XLA adds what is no product (softmax, norms, activations): a few percent at this size."""
    config = dataclasses.replace(
        TINY,
        vocab_size=512,
        d_model=128,
        num_heads=4,
        head_dim=32,
        d_ff=256,
        num_encoder_layers=2,
        activations=activations,
    )
    rows, inputs, targets = 2, 64, 32
    batch = {
        "encoder_input_tokens": jax.ShapeDtypeStruct((rows, inputs), jnp.int32),
        "decoder_input_tokens": jax.ShapeDtypeStruct((rows, targets), jnp.int32),
    }
    forward = jax.jit(lambda params, batch: bind(config, params)(batch))
    counted = forward.lower(abstract_params(config), batch).compile().cost_analysis()["flops"]
    formula = rows * forward_flops(config, inputs, targets).total
    assert formula < counted < 1.12 * formula


def test_what_remat_computes_again():
    forward = forward_flops(TINY, 8, 4)
    again = {
        remat: recomputed_flops(dataclasses.replace(TINY, remat=remat), 8, 4) for remat in ("none", "minimal", "full")
    }
    assert again == {"none": 0, "minimal": forward.attention, "full": forward.total - forward.head}
