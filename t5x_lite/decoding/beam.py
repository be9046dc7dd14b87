"""Beam search over the decoder's cache: the W best sequences of each request, in one compiled loop."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.decoding.logits import IMPOSSIBLE, without_repetition
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.sampling import PAD_ID, Decoded, last_token
from t5x_lite.model import T5, Cache


class _Loop(NamedTuple):
    """`live` beams go on and have plain sums as scores; the best that have ended are `done`, and penalised."""

    step: Int[Array, ""]
    cache: Cache
    live: Decoded
    done: Decoded


def beam_search(
    model: T5,
    encoder_tokens: Int[Array, "B S"],
    options: Decoding,
    *,
    eos_id: int,
    prefix: Int[Array, "B P"] | None = None,
) -> Decoded:
    """The `options.n_best` best sequences that a search with `options.beams` finds; call it inside jit.

    The loop ends early only where no live beam could still enter the best ones, so that stopping changes nothing.
    Equal scores go to the beam, and then the token, of the lower number. Sequences cut off at `max_tokens` compete by
    the same score. A row of padding only has ended from the beginning; a prefix, padded by zeros, is written first.
    Controls of repetition act on the log-probabilities, and so on the scores.
    """
    rows, beams = encoder_tokens.shape[0], options.beams
    prefix = jnp.zeros((rows, 0), jnp.int32) if prefix is None else prefix
    width = prefix.shape[1] + options.max_tokens
    forced = jnp.pad(prefix, ((0, 0), (0, options.max_tokens)))
    prefix_length = jnp.sum(forced != PAD_ID, axis=1)
    padding = (encoder_tokens == PAD_ID).all(axis=1)
    nothing = Decoded(
        tokens=jnp.full((rows, beams, width), PAD_ID, jnp.int32),
        scores=jnp.full((rows, beams), IMPOSSIBLE),
        token_scores=jnp.zeros((rows, beams, width)),
        ended=jnp.zeros((rows, beams), bool),
    )
    # All beams start alike: only the first may branch, or they would all find the same.
    first = nothing.scores.at[:, 0].set(jnp.where(padding, IMPOSSIBLE, 0.0))
    cache = model.start_cache(model.encode(encoder_tokens), encoder_tokens, width, beams)
    live, done = nothing._replace(scores=first), best(nothing, options.n_best)
    start = _Loop(jnp.zeros((), jnp.int32), cache, live, done)

    def penalised(scores: Float[Array, "B N"], length: Any) -> Float[Array, "B N"]:
        possible = scores > IMPOSSIBLE / 2
        return jnp.where(possible, scores / ((5.0 + length) / 6.0) ** options.length_alpha, IMPOSSIBLE)

    def going(loop: _Loop) -> Bool[Array, "B"]:
        # Scores are not positive, so the longest sequence has the largest bound.
        bound = penalised(loop.live.scores, options.max_tokens).max(axis=1)
        possible = ~padding & (loop.step < prefix_length + options.max_tokens)
        return possible & (bound > loop.done.scores.min(axis=1))

    def advance(loop: _Loop) -> _Loop:
        step, live = loop.step, loop.live
        flat = live.tokens.reshape(rows * beams, width)
        logits, cache = model.decode_step(last_token(flat, step), loop.cache)
        log_probs, tokens = _likeliest_tokens(logits, flat, step, options)
        totals = live.scores[:, :, None] + log_probs.reshape(rows, beams, -1)
        # Each beam has one EOS, so twice the beams hold at least as many candidates that go on.
        scores, index = jax.lax.top_k(totals.reshape(rows, -1), 2 * beams)
        parents = index // totals.shape[-1]
        chosen = _of(tokens.reshape(rows, -1), index)
        is_forced = (step < prefix_length)[:, None]
        here = jax.lax.dynamic_index_in_dim(forced, step, axis=1)
        unbranched = jnp.full_like(scores, IMPOSSIBLE).at[:, 0].set(live.scores[:, 0])
        scores, parents = jnp.where(is_forced, unbranched, scores), jnp.where(is_forced, 0, parents)
        chosen = jnp.where(is_forced, here, chosen)
        grown = Decoded(
            tokens=_of(live.tokens, parents).at[:, :, step].set(chosen),
            scores=scores,
            token_scores=_of(live.token_scores, parents).at[:, :, step].set(scores - _of(live.scores, parents)),
            ended=(chosen == eos_id) & ~is_forced,
        )
        length = step + 1.0 - prefix_length[:, None]
        finished = grown._replace(scores=jnp.where(grown.ended, penalised(scores, length), IMPOSSIBLE))
        done = best(joined(loop.done, finished), options.n_best)
        kept_scores, kept = jax.lax.top_k(jnp.where(grown.ended, IMPOSSIBLE, scores), beams)
        onward = jax.tree.map(lambda x: _of(x, kept), grown)._replace(scores=kept_scores)
        # A request that has ended stays as it is while others of its batch go on.
        going_on = going(loop)
        live = jax.tree.map(lambda new, old: _where(going_on, new, old), onward, live)
        done = jax.tree.map(lambda new, old: _where(going_on, new, old), done, loop.done)
        return _Loop(step + 1, reordered(cache, _of(parents, kept)), live, done)

    loop = jax.lax.while_loop(lambda loop: going(loop).any(), advance, start)
    # A search that stopped early has live beams too, none of which is better than what is done.
    cut_off = loop.live._replace(scores=penalised(loop.live.scores, options.max_tokens))
    found = best(joined(loop.done, cut_off), options.n_best)
    return found._replace(ended=found.ended | padding[:, None])


def _likeliest_tokens(
    logits: Float[Array, "R V"], tokens: Int[Array, "R T"], step: Int[Array, ""], options: Decoding
) -> tuple[Float[Array, "R N"], Int[Array, "R N"]]:
    """The log-probabilities and ids of each beam's own 2 W candidates: no other can be among the 2 W of all beams."""
    count = min(2 * options.beams, logits.shape[-1])
    normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if options.repetition_penalty == 1.0 and not options.no_repeat_ngram:
        found, ids = jax.lax.top_k(logits, count)
        return found - normaliser, ids
    return tuple(jax.lax.top_k(without_repetition(logits - normaliser, tokens, step, options), count))


def best(candidates: Decoded, count: int) -> Decoded:
    """The `count` candidates of each request with the highest scores; of equal ones the first."""
    _, index = jax.lax.top_k(candidates.scores, count)
    return jax.tree.map(lambda x: _of(x, index), candidates)


def joined(first: Decoded, second: Decoded) -> Decoded:
    return Decoded(*(jnp.concatenate(pair, axis=1) for pair in zip(first, second, strict=True)))


def reordered(cache: Cache, parents: Int[Array, "B W"]) -> Cache:
    """Each beam's memory becomes that of the beam it goes on from; the requests' own keys and values stay."""
    rows, beams = parents.shape
    flat = (parents + beams * jnp.arange(rows)[:, None]).reshape(-1)

    def pick(x: Array) -> Array:
        return jnp.take(x, flat, axis=x.ndim - 4)  # [B * W, H, ...], below a stack's layers

    return dataclasses.replace(cache, past=jax.tree.map(pick, cache.past))


def _of(x: Array, index: Int[Array, "B N"]) -> Array:
    """x[b, index[b, n]] for every n."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def _where(rows: Bool[Array, "B"], new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
