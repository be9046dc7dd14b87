"""Scores of given targets against log-softmax by hand, and against the score of what greedy decoding wrote."""

import jax
import numpy as np
import pytest

from t5x_lite.decoding.greedy import Generator
from t5x_lite.decoding.score import score_targets
from t5x_lite.model import T5Config, bind, init_params
from t5x_lite.partitioning import make_partitioner

CONFIG = T5Config(
    vocab_size=16, d_model=8, num_heads=2, head_dim=4, d_ff=16, num_encoder_layers=1, num_decoder_layers=1
)
INPUTS = [[3, 4, 1], [5, 1], [6, 7, 8, 1]]


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


def test_a_target_is_worth_the_sum_of_its_log_probabilities(params):
    targets = [[9, 2, 1], [1], [4, 1]]
    found = score_targets(CONFIG, params, INPUTS, targets, partitioner=make_partitioner())
    for tokens, target, score in zip(INPUTS, targets, found, strict=True):
        batch = {
            "encoder_input_tokens": np.array([tokens], np.int32),
            "decoder_input_tokens": np.array([[0, *target[:-1]]], np.int32),
        }
        log_probs = jax.nn.log_softmax(bind(CONFIG, params)(batch))[0]
        assert score == pytest.approx(float(sum(log_probs[i, token] for i, token in enumerate(target))), rel=1e-5)


def test_what_was_generated_scores_the_same_as_when_it_was_generated(params):
    partitioner = make_partitioner()
    generations = Generator(CONFIG, params, eos_id=1, partitioner=partitioner).generate(INPUTS, max_length=6)
    kept = [i for i, generation in enumerate(generations) if 0 not in generation.tokens]  # padding has no likelihood
    assert kept
    targets = [generations[i].tokens + [1] * generations[i].ended for i in kept]
    found = score_targets(CONFIG, params, [INPUTS[i] for i in kept], targets, partitioner=partitioner)
    assert found == pytest.approx([generations[i].score for i in kept], rel=1e-5)
