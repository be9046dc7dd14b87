"""Beam search against transformers', against one written out in lists, and against all sequences that there are."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.decoding.beam import beam_search
from t5x_lite.decoding.generator import Generator
from t5x_lite.decoding.options import Decoding
from t5x_lite.model import stack_layers
from tests.decoding.models import (
    CONFIG,
    COUNTING,
    EOS,
    PARAMS,
    Table,
    enumerated,
    following,
    generator,
    penalty,
    random_inputs,
    random_params,
    random_table,
    searched,
    whole,
)
from tests.model.reference import VARIANTS, ours, torch_model

torch.set_num_threads(1)  # of tiny matrices, threads only wait for each other

NEVER = -1  # an EOS that no model writes


@pytest.mark.parametrize(
    ("beams", "length_penalty", "alpha", "prefix"),
    [(4, 1.0, 0.6, (7, 301)), pytest.param(10, 0.0, 1.5, (), marks=pytest.mark.slow)],
    ids=["4", "10"],
)
def test_ids_and_scores_are_transformers(beams, length_penalty, alpha, prefix):
    """Without EOS, where all lengths are equal: theirs divides by length ** penalty, T5X and we as Wu et al. 2016."""
    model = torch_model(VARIANTS[1])
    config, params = ours(model)
    inputs = random_inputs(config.vocab_size, lengths=(30, 12, 3))
    table = np.zeros((3, 30), np.int64)
    for row, tokens in enumerate(inputs):
        table[row, : len(tokens)] = tokens
    expected = model.generate(
        input_ids=torch.tensor(table),
        attention_mask=torch.tensor(table > 0),
        decoder_input_ids=torch.tensor([[0, *prefix]] * 3),
        do_sample=False,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=9,
        length_penalty=length_penalty,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    options = Decoding(max_tokens=9, beams=beams, n_best=beams, length_alpha=alpha)
    found = Generator(config, params, eos_id=NEVER).generate(inputs, options, prefixes=[prefix] * 3)
    every = [generation for generations in found for generation in generations]
    np.testing.assert_array_equal([g.tokens for g in every], expected.sequences[:, 1 + len(prefix) :])
    totals = [g.score * penalty(9, alpha) for g in every]
    np.testing.assert_allclose(totals, expected.sequences_scores * 9**length_penalty, rtol=1e-5)


# ---------------------------------------------------------------------- against the slow way


@jax.jit(static_argnames=("max_tokens", "beams", "n_best"))
def search(logits, prompts, prefix, alpha, *, max_tokens, beams, n_best):
    """One program for all alphas, which `Decoding` would not take as an array."""
    options = types.SimpleNamespace(
        max_tokens=max_tokens, beams=beams, n_best=n_best, length_alpha=alpha, repetition_penalty=1.0, no_repeat_ngram=0
    )
    return beam_search(Table(logits), prompts, options, eos_id=EOS, prefix=prefix)


def sequences(decoded, row, prefix=(), max_tokens=None):
    """[(score, tokens)] of one request, tokens with EOS and without the prefix, which they must begin with."""
    found = []
    for tokens, score, ended in zip(decoded.tokens[row], decoded.scores[row], decoded.ended[row], strict=True):
        tokens = tuple(int(token) for token in tokens)
        assert tokens[: len(prefix)] == tuple(prefix)
        tokens = tokens[len(prefix) :]
        length = tokens.index(EOS) + 1 if ended else max_tokens or len(tokens)
        assert not any(tokens[length:])
        found.append((float(score), tokens[:length]))
    return found


def assert_are(found, expected):
    """The same sequences in the same order, but for those whose scores differ by rounding only."""
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in expected], rtol=1e-4, atol=1e-4)
    assert len(dict(map(reversed, found))) == len(found) == len(expected)
    scores = dict(map(reversed, expected))
    for score, tokens in found:
        assert scores[tokens] == pytest.approx(score, rel=1e-4, abs=1e-4)


def prefixes(vocab_size):
    """Of three requests, padded to a width of two; zeros are padding, though a model may write them."""
    return st.lists(st.lists(st.integers(1, vocab_size - 1), max_size=2), min_size=3, max_size=3)


def padded(prefixes):
    return np.array([prefix + [0] * (2 - len(prefix)) for prefix in prefixes], np.int32)


def asked(seed, alpha, prefixes, *, vocab_size, **sizes):
    """For each of three requests: what the search found, and the log-probabilities that it should have seen."""
    logits = random_table(seed, 3, vocab_size)
    decoded = jax.device_get(search(logits, np.full((3, 1), EOS), padded(prefixes), alpha, **sizes))
    for row, prefix in enumerate(prefixes):
        yield sequences(decoded, row, prefix, sizes["max_tokens"]), following(logits[row], prefix)


seeds, alphas = st.integers(0, 2**16), st.floats(0.0, 2.0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=seeds, alpha=alphas, prefixes=prefixes(vocab_size=6))
def test_a_search_finds_what_lists_of_beams_find(seed, alpha, prefixes):
    """Those never stop early, and know no cache and no batch."""
    for found, log_probs in asked(seed, alpha, prefixes, vocab_size=6, max_tokens=7, beams=4, n_best=2):
        assert_are(found, searched(log_probs, beams=4, max_tokens=7, alpha=alpha)[:2])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=seeds, alpha=alphas, prefixes=prefixes(vocab_size=4))
def test_enough_beams_find_all_sequences_in_order(seed, alpha, prefixes):
    """Of three tokens and EOS: 1 + 3 + 9 that end within three tokens, and 27 that do not."""
    for found, log_probs in asked(seed, alpha, prefixes, vocab_size=4, max_tokens=3, beams=40, n_best=40):
        assert_are(found, enumerated(log_probs, vocab_size=4, max_tokens=3, alpha=alpha))


def test_an_answer_does_not_depend_on_the_other_requests():
    logits, nothing = random_table(0, 3, 6), np.zeros((1, 2), np.int32)
    sizes = {"max_tokens": 7, "beams": 4, "n_best": 2}
    together = search(logits, np.full((3, 1), EOS), np.repeat(nothing, 3, 0), 0.6, **sizes)
    with_padding = search(logits, np.array([[EOS], [0], [EOS]]), np.repeat(nothing, 3, 0), 0.6, **sizes)
    assert sequences(with_padding, 0, max_tokens=7) == sequences(together, 0, max_tokens=7)
    assert sequences(with_padding, 2, max_tokens=7) == sequences(together, 2, max_tokens=7)
    assert not with_padding.tokens[1].any() and with_padding.ended[1].all()


# ---------------------------------------------------------------------- by hand


class Counted(Table):
    """Notes every step that it is asked for."""

    def __init__(self, logits):
        super().__init__(logits)
        self.steps = []

    def decode_step(self, tokens, cache):
        jax.debug.callback(lambda step: self.steps.append(int(step)), cache.step)
        return super().decode_step(tokens, cache)


def by_hand(logits, **options):
    """What a search of one request finds where the next token hangs on the last alone, and the steps that it took."""
    table = Counted(logits[None])
    prompt = np.full((1, 1), EOS)
    decoded = jax.device_get(jax.jit(lambda: beam_search(table, prompt, Decoding(**options), eos_id=EOS))())
    jax.effects_barrier()
    return sequences(decoded, 0), sorted(table.steps)


@pytest.mark.parametrize(("n_best", "steps"), [(1, 4), (4, 5)])
def test_a_search_ends_where_nothing_better_can_come(n_best, steps):
    found, asked_for = by_hand(COUNTING, max_tokens=50, beams=6, n_best=n_best)
    expected = [(0.1, (EOS,)), (0.05, (2, EOS)), (0.05, (5, EOS)), (0.5**5, (2, 3, 4, 5, EOS))][:n_best]
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    np.testing.assert_allclose([score for score, _ in found], np.log([p for p, _ in expected]), rtol=1e-5)
    # 2, 3, 4, 5 without an end is 0.5 ** 4 likely: less than the best, more than the fourth.
    assert asked_for == list(range(steps))


def test_equal_scores_go_to_the_beam_and_then_to_the_token_of_the_lower_number():
    """All tokens are alike. Of two tokens, those that ended go before one that was cut off."""
    found, _ = by_hand(np.zeros((7, 6)), max_tokens=2, beams=4, n_best=4)
    assert [tokens for _, tokens in found] == [(EOS,), (0, EOS), (2, EOS), (0, 0)]


def test_no_more_sequences_are_found_than_there_are():
    """Impossible ones come last, whatever the penalty makes of them."""
    found, _ = by_hand(np.zeros((7, 6)), max_tokens=1, beams=8, n_best=8, length_alpha=2.0)
    assert [tokens for _, tokens in found[:6]] == [(EOS,), (0,), (2,), (3,), (4,), (5,)]
    assert [score for score, _ in found[6:]] == [-1e9, -1e9]


# ---------------------------------------------------------------------- of a T5


def forced_scores(config, params, inputs, prefixes, found):
    """The log-probabilities of what was found by teacher forcing, without those of the prefixes."""
    targets = [[*prefix, *whole(g)] for prefix, generations in zip(prefixes, found, strict=True) for g in generations]
    prompts = [tokens for tokens, generations in zip(inputs, found, strict=True) for _ in generations]
    scores = Generator(config, params, eos_id=EOS).score(prompts, targets)
    lengths = [len(prefix) for prefix, generations in zip(prefixes, found, strict=True) for _ in generations]
    return [row[length:] for row, length in zip(scores, lengths, strict=True)]


PREFIXES = [[5, 6, 7], [], [8], []]
OPTIONS = Decoding(max_tokens=6, beams=3, n_best=2, length_alpha=0.6)


def test_scores_are_those_of_teacher_forcing_without_the_prefix():
    found = generator().generate(random_inputs(), OPTIONS, prefixes=PREFIXES)
    forced = forced_scores(CONFIG, PARAMS, random_inputs(), PREFIXES, found)
    for generation, scores in zip((g for generations in found for g in generations), forced, strict=True):
        np.testing.assert_allclose(generation.token_scores, scores, rtol=1e-4, atol=1e-4)
        assert generation.score == pytest.approx(sum(scores) / penalty(len(scores), 0.6), rel=1e-4)


@pytest.mark.slow
def test_scanned_layers_find_the_same():
    config = dataclasses.replace(CONFIG, num_decoder_layers=2)
    params = random_params(config)
    unrolled = Generator(config, params, eos_id=EOS)
    scanned = Generator(dataclasses.replace(config, scan_layers=True), stack_layers(params), eos_id=EOS)
    found, expected = (g.generate(random_inputs(), OPTIONS, prefixes=PREFIXES) for g in (scanned, unrolled))
    assert [[whole(g) for g in gs] for gs in found] == [[whole(g) for g in gs] for gs in expected]


@pytest.mark.slow
def test_scores_in_bfloat16_are_those_of_teacher_forcing_in_it():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    found = Generator(config, PARAMS, eos_id=EOS).generate(random_inputs(), OPTIONS, prefixes=PREFIXES)
    forced = forced_scores(config, PARAMS, random_inputs(), PREFIXES, found)
    for generation, scores in zip((g for generations in found for g in generations), forced, strict=True):
        np.testing.assert_allclose(generation.token_scores, scores, atol=0.1)  # a logit of 4 has 8 bits
