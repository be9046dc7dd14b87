"""Against Hugging Face's PyTorch T5 with the same weights: outputs, loss, every gradient, greedy and beam tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from t5x_lite.model.layers import relative_buckets
from tests.model.reference import VARIANTS, Difference, measure


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (64, 512)])
def test_relative_buckets(bidirectional, num_buckets, max_distance):
    positions = np.arange(-2000, 2001)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        torch.tensor(positions), bidirectional, num_buckets, max_distance
    )
    ours = relative_buckets(
        jnp.asarray(positions),
        bidirectional=bidirectional,
        num_buckets=num_buckets,
        max_distance=max_distance,
    )
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_number_is_theirs_within_float32_rounding(variant):
    found = measure(variant)
    assert (found["greedy"], found["beam"]) == (1.0, 1.0)
    differences = {name: value.relative for name, value in found.items() if isinstance(value, Difference)}
    assert len(differences) == 7
    assert max(differences.values()) < 1e-5, differences
