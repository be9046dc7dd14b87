"""Truncation and controls of repetition against transformers' processors, alone and in whole generations."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from t5x_lite.decoding.generator import Generator
from t5x_lite.decoding.logits import IMPOSSIBLE, truncated, without_repetition
from t5x_lite.decoding.options import Decoding
from tests.model.reference import VARIANTS, ours, torch_model

torch.set_num_threads(1)  # of tiny matrices, threads only wait for each other

compiled_truncated = jax.jit(truncated, static_argnames="options")
compiled_repetition = jax.jit(without_repetition, static_argnames="options")


def random_logits(rows=64, vocabulary=50, seed=0):
    return np.random.default_rng(seed).normal(0.0, 3.0, (rows, vocabulary)).astype(np.float32)


def processed(processors, ids, logits):
    """Theirs, with IMPOSSIBLE for minus infinity."""
    scores = torch.tensor(logits)
    for processor in processors:
        scores = processor(torch.tensor(ids), scores)
    return torch.where(scores.isinf(), IMPOSSIBLE, scores).numpy()


@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"temperature": 1.0, "top_k": 5}, [TopKLogitsWarper(5)]),
        ({"temperature": 1.0, "top_k": 90}, [TopKLogitsWarper(90)]),
        ({"temperature": 1.0, "top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"temperature": 1.0, "top_p": 1e-6}, [TopPLogitsWarper(1e-6)]),
        ({"temperature": 1.0, "min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        ({"temperature": 1.0, "min_p": 1.0}, [MinPLogitsWarper(1.0)]),
        (
            {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)],
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_the_tokens_that_are_kept_are_theirs(options, warpers):
    logits = random_logits()
    found = np.asarray(compiled_truncated(logits, options=Decoding(max_tokens=1, **options)))
    expected = processed(warpers, np.zeros((64, 1), np.int64), logits)
    np.testing.assert_array_equal(found == IMPOSSIBLE, expected == IMPOSSIBLE)
    np.testing.assert_allclose(jax.nn.softmax(found), jax.nn.softmax(expected), rtol=1e-4, atol=1e-7)


def test_tokens_as_likely_as_the_last_that_is_kept_are_kept_too():
    logits = np.log([[0.4, 0.2, 0.2, 0.1, 0.1]])
    for options in ({"top_k": 2}, {"top_p": 0.5}):
        found = compiled_truncated(logits, options=Decoding(max_tokens=1, temperature=1.0, **options))
        np.testing.assert_array_equal(found[0] == IMPOSSIBLE, [False, False, False, True, True])


@pytest.mark.parametrize("temperature", [1e-4, 1e-9, 1e-30])
def test_only_the_likeliest_is_left_where_the_temperature_goes_to_zero(temperature):
    logits = random_logits() - 100.0
    options = Decoding(max_tokens=1, temperature=temperature, top_k=3)
    probabilities = jax.nn.softmax(compiled_truncated(logits, options=options))
    np.testing.assert_allclose(probabilities, np.eye(50)[logits.argmax(axis=1)], atol=1e-6)


# ---------------------------------------------------------------------- repetition

CONTROLS = [{"repetition_penalty": 1.7}, {"repetition_penalty": 0.6}] + [{"no_repeat_ngram": n} for n in (1, 2, 3, 8)]


def processor(repetition_penalty=None, no_repeat_ngram=None):
    if repetition_penalty:
        return RepetitionPenaltyLogitsProcessor(repetition_penalty)
    return NoRepeatNGramLogitsProcessor(no_repeat_ngram)


@pytest.mark.parametrize("control", CONTROLS, ids=str)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), step=st.integers(1, 7), vocabulary=st.just(5))
def test_what_repeats_is_what_theirs_find(control, seed, step, vocabulary):
    """Of five tokens most n-grams repeat; what stands after `step` in our table is not written yet."""
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (16, 7))
    logits = random_logits(16, vocabulary, seed)
    found = compiled_repetition(logits, tokens, step, options=Decoding(max_tokens=7, **control))
    expected = processed([processor(**control)], tokens[:, :step], logits)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_before_the_first_token_nothing_repeats():
    logits, tokens = random_logits(2, 5), np.zeros((2, 7), np.int32)
    for control in CONTROLS:
        found = compiled_repetition(logits, tokens, 0, options=Decoding(max_tokens=7, **control))
        np.testing.assert_array_equal(found, logits)


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 4])
def test_generations_are_theirs(beams):
    """Their decoder's ids begin with the start token, so a model that writes no padding tells no difference."""
    model = torch_model(VARIANTS[1])
    config, params = ours(model)
    inputs = np.random.default_rng(0).integers(2, config.vocab_size, (4, 9))
    theirs = {"do_sample": False, "num_beams": beams, "max_new_tokens": 16, "eos_token_id": None}
    controls = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    free, expected = (
        model.generate(input_ids=torch.tensor(inputs), **theirs, **chosen)[:, 1:].numpy() for chosen in ({}, controls)
    )
    assert (free != expected).any() and expected.all()
    options = Decoding(max_tokens=16, beams=beams, repetition_penalty=1.3, no_repeat_ngram=2)
    found = Generator(config, params, eos_id=-1).generate(inputs.tolist(), options)
    np.testing.assert_array_equal([best.tokens for (best,) in found], expected)
