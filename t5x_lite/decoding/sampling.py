"""One token after the other: the likeliest, or one drawn; in one compiled loop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5x_lite.decoding.logits import truncated, without_repetition
from t5x_lite.decoding.options import Decoding
from t5x_lite.model import T5, Cache

PAD_ID = 0


class Decoded(NamedTuple):
    """The W sequences of each request, best first; T is the width of the prefix and `max_tokens`.

    Tokens begin with the request's prefix, and have their EOS and zeros after it. Scores count from the end of the
    prefix, EOS included: `token_scores` are the model's own log-probabilities, `scores` their sum, or what a beam
    search made of it.
    """

    tokens: Int[Array, "B W T"]
    scores: Float[Array, "B W"]
    token_scores: Float[Array, "B W T"]
    ended: Bool[Array, "B W"]


class Loop(NamedTuple):
    """Sequences of R rows, `options.n_best` a request, of which the first `step` positions are written."""

    step: Int[Array, ""]
    cache: Cache
    tokens: Int[Array, "R T"]
    token_scores: Float[Array, "R T"]
    ended: Bool[Array, "R"]


def sample(
    model: T5,
    encoder_tokens: Int[Array, "B S"],
    options: Decoding,
    *,
    eos_id: int,
    prefix: Int[Array, "B P"] | None = None,
    key: Key[Array, ""] | None = None,
    numbers: Int[Array, "B"] | None = None,
) -> Decoded:
    """`options.n_best` samples of each request, or the likeliest token at each step; call it inside jit.

    A request's samples depend on `key` and its number alone, not on the batch that it is in. Equally likely tokens:
    the lowest id. A row of padding only has ended from the beginning; a prefix, padded by zeros, is written first.
    """
    rows, samples = encoder_tokens.shape[0], options.n_best
    prefix = jnp.zeros((rows, 0), jnp.int32) if prefix is None else prefix
    width = prefix.shape[1] + options.max_tokens
    forced = jnp.repeat(jnp.pad(prefix, ((0, 0), (0, options.max_tokens))), samples, axis=0)
    keys = _keys_of_rows(key, numbers, samples) if options.temperature else None
    loop = start(model, encoder_tokens, options, width)
    return finish(extend(model, loop, width, options, eos_id=eos_id, forced=forced, keys=keys), options)


def start(model: T5, encoder_tokens: Int[Array, "B S"], options: Decoding, width: int) -> Loop:
    """The loop before its first step, with room for `width` tokens a row."""
    samples = options.n_best
    rows = encoder_tokens.shape[0] * samples
    return Loop(
        step=jnp.zeros((), jnp.int32),
        cache=model.start_cache(model.encode(encoder_tokens), encoder_tokens, width, samples),
        tokens=jnp.full((rows, width), PAD_ID, jnp.int32),
        token_scores=jnp.zeros((rows, width), jnp.float32),
        ended=jnp.repeat((encoder_tokens == PAD_ID).all(axis=1), samples),
    )


def extend(
    model: T5,
    loop: Loop,
    until: Int[Array, ""] | int,
    options: Decoding,
    *,
    eos_id: int,
    forced: Int[Array, "R T"] | None = None,
    keys: Key[Array, "R"] | None = None,
) -> Loop:
    """The loop at step `until`, or where all its rows have ended; `forced` are tokens that are written as they are."""
    forced = jnp.zeros_like(loop.tokens) if forced is None else forced
    prefix_length = jnp.sum(forced != PAD_ID, axis=1)
    end = prefix_length + options.max_tokens

    def going(loop: Loop) -> Bool[Array, "R"]:
        return ~loop.ended & (loop.step < end)

    def advance(loop: Loop) -> Loop:
        step = loop.step
        logits, cache = model.decode_step(last_token(loop.tokens, step), loop.cache)
        adjusted = without_repetition(logits, loop.tokens, step, options)
        if keys is None:
            chosen = likeliest(adjusted)
        else:
            drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))
            chosen = drawn(keys, truncated(adjusted, options)).astype(jnp.int32)
        log_prob = jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        is_forced = step < prefix_length
        here = jax.lax.dynamic_index_in_dim(forced, step, axis=1, keepdims=False)
        token = jnp.where(going(loop), jnp.where(is_forced, here, chosen), PAD_ID)
        score = jnp.where(going(loop) & ~is_forced, log_prob, 0.0)
        return Loop(
            step=step + 1,
            cache=cache,
            tokens=jax.lax.dynamic_update_slice_in_dim(loop.tokens, token[:, None], step, axis=1),
            token_scores=jax.lax.dynamic_update_slice_in_dim(loop.token_scores, score[:, None], step, axis=1),
            ended=loop.ended | (going(loop) & ~is_forced & (token == eos_id)),
        )

    return jax.lax.while_loop(lambda loop: going(loop).any() & (loop.step < until), advance, loop)


def finish(loop: Loop, options: Decoding) -> Decoded:
    """What the loop has written, by request."""
    samples = options.n_best

    def by_request(x: Array) -> Array:
        return x.reshape(-1, samples, *x.shape[1:])

    token_scores = by_request(loop.token_scores)
    scores = token_scores.sum(axis=-1)
    found = Decoded(by_request(loop.tokens), scores, token_scores, by_request(loop.ended))
    return found if samples == 1 else _best_first(found)


def likeliest(logits: Float[Array, "R V"]) -> Int[Array, "R"]:
    """The lowest of the ids of the largest logit; two plain reductions, since XLA on CPU is slow at argmax."""
    vocabulary = logits.shape[-1]
    is_largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    ids = jnp.min(jnp.where(is_largest, jnp.arange(vocabulary, dtype=jnp.int32), vocabulary), axis=-1)
    return jnp.minimum(ids, vocabulary - 1)  # where nothing equals the largest, it is no number


def last_token(tokens: Int[Array, "R T"], step: Int[Array, ""]) -> Int[Array, "R"]:
    """The token before position `step`; the padding that every sequence starts with before the first."""
    last = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(step - 1, 0), axis=1, keepdims=False)
    return jnp.where(step == 0, PAD_ID, last)


def _keys_of_rows(key: Key[Array, ""], numbers: Int[Array, "B"], samples: int) -> Key[Array, "R"]:
    of_request = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    of_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return of_sample(of_request, jnp.arange(samples)).reshape(-1)


def _best_first(found: Decoded) -> Decoded:
    order = jnp.argsort(-found.scores, axis=1, stable=True)

    def sorted_(x: Array) -> Array:
        return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)

    return jax.tree.map(sorted_, found)
