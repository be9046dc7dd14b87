"""Scores of given targets against log-softmax by hand, and against the scores of what was generated."""

import jax
import numpy as np
import pytest

from t5x_lite.decoding.generator import Generator
from t5x_lite.decoding.options import Decoding
from t5x_lite.model import bind
from t5x_lite.partitioning import make_partitioner
from tests.decoding.models import CONFIG, EOS, PARAMS, generator, random_inputs, whole


@pytest.mark.parametrize("max_scored", [64, pytest.param(2, marks=pytest.mark.slow)])
def test_a_targets_scores_are_the_log_probabilities_of_its_tokens(max_scored):
    inputs, targets = [[3, 4, 1], [5, 1], [6] * 40], [[9, 2, 1], [1], [4, 1]]
    partitioner = make_partitioner()
    scorer = Generator(CONFIG, PARAMS, eos_id=EOS, partitioner=partitioner, max_scored=max_scored)
    found = scorer.score(inputs, targets)
    forward = jax.jit(lambda batch: jax.nn.log_softmax(bind(CONFIG, PARAMS)(batch)))
    for tokens, target, scores in zip(inputs, targets, found, strict=True):
        batch = {
            "encoder_input_tokens": np.array([tokens + [0] * (40 - len(tokens))], np.int32),
            "decoder_input_tokens": np.array([[0, *target[:-1], *[0] * (3 - len(target))]], np.int32),
        }
        log_probs = np.asarray(forward(batch))[0]
        np.testing.assert_allclose(scores, [log_probs[i, token] for i, token in enumerate(target)], rtol=1e-4)


def test_what_was_generated_scores_the_same_as_when_it_was_generated():
    eos_id = 13  # a token that this model likes, so that some end and some do not
    inputs = random_inputs(lengths=(3, 4, 5, 6, 7, 8))
    found = generator(eos_id).generate(inputs, Decoding(max_tokens=9))
    assert {best.ended for (best,) in found} == {True, False}
    targets = [whole(best, eos_id) for (best,) in found]
    assert all(0 not in target for target in targets)  # padding has no likelihood
    for (best,), scores in zip(found, generator(eos_id).score(inputs, targets), strict=True):
        np.testing.assert_allclose(scores, best.token_scores, rtol=1e-4)
        assert sum(scores) == pytest.approx(best.score, rel=1e-4)
