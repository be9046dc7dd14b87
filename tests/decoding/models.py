"""Tiny models to decode with, and what a search must find in them, the slow way: lists of histories."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.decoding.generator import Generator
from t5x_lite.model import Cache, T5Config, abstract_params

EOS = 1
CONFIG = T5Config(
    vocab_size=20, d_model=16, num_heads=2, head_dim=8, d_ff=24, num_encoder_layers=1, num_decoder_layers=1
)


def random_params(config=CONFIG, seed=0):
    """Cheaper than init_params, which would be compiled for every config here; padding is never likely."""
    rng = np.random.default_rng(seed)
    shapes = abstract_params(config)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), leaf.dtype), shapes)
    head = params["decoder"]["logits_dense"]
    head["kernel"] = head["kernel"].at[:, 0].set(0.0)
    return params


PARAMS = random_params()


def random_inputs(vocab_size=CONFIG.vocab_size, lengths=(3, 40, 5, 3)):
    rng = np.random.default_rng(0)
    return [rng.integers(2, vocab_size, length).tolist() for length in lengths]


@functools.lru_cache
def generator(eos_id=EOS, max_batch=256):
    """Over CONFIG; one for all tests, so that each `Decoding` compiles once."""
    return Generator(CONFIG, PARAMS, eos_id=eos_id, max_batch=max_batch)


def whole(generation, eos_id=EOS):
    """Its tokens as the model wrote them, EOS included."""
    return (*generation.tokens, *[eos_id] * generation.ended)


def counting_model():
    """After the start comes 2, after token i comes i + 1, after 5 comes EOS.

    All sublayers write zeros, so the head reads the last token off its unit vector, which is normed to length sqrt(8).
    """
    config = dataclasses.replace(CONFIG, vocab_size=8, d_model=8)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(config))
    params["token_embedder"]["embedding"] = jnp.eye(8)
    params["decoder"]["decoder_norm"]["scale"] = jnp.ones(8)
    params["decoder"]["logits_dense"]["kernel"] = jnp.eye(8)[jnp.array([2, 0, 3, 4, 5, EOS, 0, 0])]
    return config, params


# ---------------------------------------------------------------------- a model that is a table

# 2 at the start, 3 after 2, ... and EOS after 5 are half likely; any other token is a tenth.
COUNTING = np.log(np.where(np.eye(6)[[2, 0, 0, 3, 4, 5, EOS]], 0.5, 0.1))


class Table:
    """In place of a T5: the logits of a request's next token are a row of its own table, by all tokens before.

    The cache holds what those tokens come to, so a beam that goes on from another's cache is found out. Of a table of
    7 rows the last token alone is read: row 0 at the start, row i + 1 after token i < 6.
    """

    def __init__(self, logits):
        self.logits = jnp.asarray(logits)  # [B, N, V]

    def encode(self, tokens):
        return tokens

    def start_cache(self, encoded, encoder_tokens, max_length, beams=1):
        rows = jnp.zeros((len(encoded) * beams, 1, 1, 1), jnp.int32)
        return Cache(past=(rows,), past_mask=None, cross=None, cross_mask=None, step=jnp.zeros((), jnp.int32))

    def decode_step(self, tokens, cache):
        count = self.logits.shape[1]
        before = cache.past[0][:, 0, 0, 0]
        now = jnp.where(cache.step == 0, 0, row_after(before, tokens, count))
        requests = jnp.arange(len(now)) // (len(now) // len(self.logits))
        past = (now[:, None, None, None],)
        return self.logits[requests, now], dataclasses.replace(cache, past=past, step=cache.step + 1)


def row_after(row, token, count):
    return (7 * row + token + 1) % count


def random_table(seed, requests, vocab_size):
    """997 rows a request: few histories share one."""
    return np.random.default_rng(seed).normal(0.0, 1.5, (requests, 997, vocab_size)).astype(np.float32)


def following(table, prefix=()):
    """A function from histories of one request to the log-probabilities [N, V] of their next token, in float64."""
    logits = table.astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def after(histories):
        rows = [functools.reduce(lambda r, t: row_after(r, t, len(table)), (*prefix, *h), 0) for h in histories]
        return log_probs[rows]

    return after


# ---------------------------------------------------------------------- searches in lists


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def searched(following, *, beams, max_tokens, alpha, eos_id=EOS):
    """[(score, tokens)] of the best `beams`: T5X's beam search without its early stop.

    Unlike T5X's, sequences cut off at `max_tokens` compete with those that ended.
    """
    live, done = [(0.0, ())], []
    for length in range(1, max_tokens + 1):
        candidates = [
            (score + log_prob, (*tokens, token))
            for (score, tokens), row in zip(live, following([tokens for _, tokens in live]), strict=True)
            for token, log_prob in enumerate(row)
        ]
        best = best_first(candidates)[: 2 * beams]
        done += [(score / penalty(length, alpha), tokens) for score, tokens in best if tokens[-1] == eos_id]
        live = [candidate for candidate in best if candidate[1][-1] != eos_id][:beams]
    done += [(score / penalty(max_tokens, alpha), tokens) for score, tokens in live]
    return best_first(done)[:beams]


def enumerated(following, *, vocab_size, max_tokens, alpha, eos_id=EOS):
    """[(score, tokens)] of all sequences that there are, best first."""
    others = [token for token in range(vocab_size) if token != eos_id]
    heads = [head for length in range(max_tokens) for head in itertools.product(others, repeat=length)]
    rows = dict(zip(heads, following(heads), strict=True))
    sequences = [(*head, eos_id) for head in heads] + list(itertools.product(others, repeat=max_tokens))
    totals = [sum(rows[tokens[:n]][token] for n, token in enumerate(tokens)) for tokens in sequences]
    return best_first((total / penalty(len(s), alpha), s) for total, s in zip(totals, sequences, strict=True))


def best_first(candidates):
    """Equal ones stay in their order."""
    return sorted(candidates, key=lambda candidate: -candidate[0])
