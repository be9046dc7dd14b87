"""One token after the other: greedy by hand, samples against their probabilities, seeds that do not hang on a batch."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats

from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.sampling import sample
from t5x_lite.model import bind, stack_layers
from tests.decoding.models import (
    CONFIG,
    COUNTING,
    EOS,
    Table,
    following,
    random_params,
    random_table,
)


@jax.jit(static_argnames="options")
def sampled(logits, prompts, prefix=None, seed=0, numbers=None, *, options):
    return sample(Table(logits), prompts, options, eos_id=EOS, prefix=prefix, key=jax.random.key(seed), numbers=numbers)


def some(rows):
    return np.full((rows, 1), EOS)


# ---------------------------------------------------------------------- the likeliest


def test_counts_to_the_end_by_hand():
    logits = COUNTING[None].repeat(4, 0)
    prefix = np.array([[0, 0, 0], [5, 4, 0], [EOS, 2, 2], [3, 0, 0]])
    prompts = np.array([[EOS], [EOS], [EOS], [0]])  # the last is padding
    decoded = sampled(logits, prompts, prefix, options=Decoding(max_tokens=4))
    np.testing.assert_array_equal(
        decoded.tokens[:, 0],
        [[2, 3, 4, 5, 0, 0, 0], [5, 4, 5, EOS, 0, 0, 0], [EOS, 2, 2, 3, 4, 5, EOS], [0] * 7],
    )
    np.testing.assert_array_equal(decoded.ended[:, 0], [False, True, True, True])
    scored = np.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1], [0] * 7])
    np.testing.assert_allclose(decoded.token_scores[:, 0], scored * np.log(0.5), rtol=1e-5)
    np.testing.assert_allclose(decoded.scores[:, 0], scored.sum(axis=1) * np.log(0.5), rtol=1e-5)


def test_of_equally_likely_tokens_the_lowest_is_taken():
    logits = np.zeros((1, 7, 6))
    logits[0, 0, [4, 2, 5]] = 1.0
    assert sampled(logits, some(1), options=Decoding(max_tokens=1)).tokens[0, 0, 0] == 2


KINDS = {
    "unrolled": {},
    "scanned": {"scan_layers": True},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize(
    "kind", ["unrolled", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("scanned", "bfloat16"))]
)
def test_every_token_is_the_likeliest_given_those_before(kind):
    config = dataclasses.replace(CONFIG, num_decoder_layers=2, **KINDS[kind])
    params = random_params(dataclasses.replace(config, scan_layers=False))
    params = stack_layers(params) if config.scan_layers else params
    inputs, options = np.random.default_rng(0).integers(2, 20, (6, 7)), Decoding(max_tokens=9)
    decoded = jax.jit(lambda params: sample(bind(config, params), inputs, options, eos_id=EOS))(params)
    tokens, ended = np.asarray(decoded.tokens[:, 0]), np.asarray(decoded.ended[:, 0])
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]}
    log_probs = np.asarray(jax.nn.log_softmax(jax.jit(lambda params: bind(config, params)(batch))(params)))
    assert 0 < ended.sum() < 6
    tolerance = 0.1 if kind == "bfloat16" else 1e-4  # a logit of 4 has 8 bits
    for row in range(6):
        length = int(np.argmax(tokens[row] == EOS)) + 1 if ended[row] else 9
        chosen = np.take_along_axis(log_probs[row, :length], tokens[row, :length, None], axis=-1)[:, 0]
        assert (chosen > log_probs[row, :length].max(axis=-1) - tolerance).all()
        np.testing.assert_array_equal(tokens[row, length:], 0)
        np.testing.assert_allclose(decoded.token_scores[row, 0, :length], chosen, atol=tolerance)
        np.testing.assert_allclose(decoded.scores[row, 0], decoded.token_scores[row, 0].sum(), rtol=1e-6)


# ---------------------------------------------------------------------- samples


def probabilities(logits, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """Of each token, counted down a list of them."""
    weights = np.exp(np.asarray(logits, np.float64) / temperature)
    order = np.argsort(-weights)
    if top_k:
        weights[order[top_k:]] = 0.0
    held = 0.0
    total = weights.sum()
    for token in order:
        if held / total >= top_p:
            weights[token] = 0.0
        held += weights[token]
    weights[weights < min_p * weights.max()] = 0.0
    return weights / weights.sum()


LOGITS = np.array([0.3, -0.5, 1.9, 1.2, -2.0, 0.9], np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.3},
        pytest.param({"temperature": 1.0, "top_k": 4}, marks=pytest.mark.slow),
        pytest.param({"temperature": 1.0, "top_p": 0.7}, marks=pytest.mark.slow),
        pytest.param({"temperature": 2.0, "min_p": 0.4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_are_likely(options):
    """A right sampler would fail by chance with one seed of a thousand; a probability that is off by 0.02 is found."""
    expected, draws = probabilities(LOGITS, **options), 20_000
    decoded = sampled(
        LOGITS[None, None].repeat(7, 1),
        some(draws),
        numbers=np.arange(draws),
        options=Decoding(max_tokens=1, **options),
    )
    counts = np.bincount(np.asarray(decoded.tokens).ravel(), minlength=6)
    kept = expected > 0
    assert not counts[~kept].any()
    assert scipy.stats.chisquare(counts[kept], draws * expected[kept]).pvalue > 1e-3
    # Scores are the model's own, whatever the temperature.
    token = int(decoded.tokens[0, 0, 0])
    assert decoded.scores[0, 0] == pytest.approx(np.log(probabilities(LOGITS, 1.0))[token], rel=1e-4)


OPTIONS = Decoding(max_tokens=6, temperature=1.0, n_best=3)


def level_table():
    """Of five requests; the five tokens that do not end are about as likely, so that two samples are hardly alike."""
    logits = 0.3 * random_table(0, 5, 6)
    logits[..., EOS] -= 4.0
    return logits


def test_samples_hang_on_their_seed_and_number_alone():
    """Not on the row, nor on what else is in the batch."""
    logits, prefix = level_table(), np.array([[0, 0], [3, 0], [4, 5], [0, 0], [2, 0]])
    numbers = np.arange(5) + 70
    together = sampled(logits, some(5), prefix, 3, numbers, options=OPTIONS)
    order = np.array([3, 0, 4, 1, 2])
    moved = sampled(logits[order], some(5), prefix[order], 3, numbers[order], options=OPTIONS)
    np.testing.assert_array_equal(moved.tokens, together.tokens[order])
    np.testing.assert_array_equal(moved.scores, together.scores[order])
    alone = np.where(np.arange(5)[:, None] == 3, some(5), 0)  # with padding
    found = sampled(logits, alone, prefix, 3, numbers, options=OPTIONS)
    np.testing.assert_array_equal(found.tokens[3], together.tokens[3])
    for other in ({"seed": 4, "numbers": numbers}, {"seed": 3, "numbers": numbers + 1}):
        tokens = sampled(logits, some(5), prefix, **other, options=OPTIONS).tokens
        assert (tokens != together.tokens).any(axis=-1).all()


def test_samples_of_a_request_differ_and_the_likeliest_comes_first():
    logits = level_table()
    decoded = jax.device_get(sampled(logits, some(5), np.zeros((5, 2), int), 3, np.arange(5), options=OPTIONS))
    assert all(len({tuple(tokens) for tokens in row}) == 3 for row in decoded.tokens)
    assert (np.diff(decoded.scores) <= 0).all()
    for row, sequences in enumerate(decoded.tokens):
        log_probs = following(logits[row])
        for n, tokens in enumerate(sequences):
            length = list(tokens).index(EOS) + 1 if decoded.ended[row, n] else 6
            scores = [log_probs([tokens[:i]])[0][tokens[i]] for i in range(length)]
            np.testing.assert_allclose(decoded.token_scores[row, n, :length], scores, rtol=1e-4)
            assert decoded.scores[row, n] == pytest.approx(sum(scores), rel=1e-4)


def test_a_temperature_of_almost_zero_is_greedy():
    logits, prefix = random_table(1, 5, 6), np.zeros((5, 2), int)
    cold = sampled(logits, some(5), prefix, numbers=np.arange(5), options=Decoding(max_tokens=6, temperature=1e-20))
    greedy = sampled(logits, some(5), prefix, options=Decoding(max_tokens=6))
    np.testing.assert_array_equal(cold.tokens, greedy.tokens)
