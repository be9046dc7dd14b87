"""Beam search over the decoder's cache: the W best sequences of each request, in one compiled loop."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.model import T5, Cache

PAD_ID = 0

_IMPOSSIBLE = -1e9  # finite: a difference of two of them is still a number


class Beams(NamedTuple):
    """Best first: tokens with their EOS and zeros after it, scores after the length penalty."""

    tokens: Int[Array, "B W T"]
    scores: Float[Array, "B W"]
    ended: Bool[Array, "B W"]


class _Loop(NamedTuple):
    step: Int[Array, ""]
    cache: Cache
    live: Beams
    done: Beams


def beam_search(
    model: T5,
    encoder_tokens: Int[Array, "B S"],
    *,
    beams: int,
    max_length: int,
    eos_id: int,
    length_alpha: float = 0.0,
) -> Beams:
    """The `beams` best sequences that the search finds, with and without EOS; call it inside jit.

    A sequence's score is the sum of its log-probabilities over ((5 + length) / 6) ** length_alpha (Wu et al. 2016,
    arXiv:1609.08144). The loop ends early only where no live beam could still enter the best ones, so that stopping
    changes nothing. Equal scores go to the beam, and then the token, of the lower number. Sequences cut off at
    `max_length` compete by the same score. A row of padding only ends at once.
    """
    rows = encoder_tokens.shape[0]
    encoded = model.encode(encoder_tokens)
    nothing = Beams(
        tokens=jnp.full((rows, beams, max_length), PAD_ID, jnp.int32),
        scores=jnp.full((rows, beams), _IMPOSSIBLE),
        ended=jnp.zeros((rows, beams), bool),
    )
    # All beams start alike: only the first may branch, or they would all find the same.
    padding = (encoder_tokens == PAD_ID).all(axis=1)
    first = nothing.scores.at[:, 0].set(jnp.where(padding, _IMPOSSIBLE, 0.0))
    cache = model.start_cache(encoded, encoder_tokens, max_length, beams)
    start = _Loop(jnp.zeros((), jnp.int32), cache, nothing._replace(scores=first), nothing)

    def penalty(length: Any) -> Any:
        return ((5.0 + length) / 6.0) ** length_alpha

    def unfinished(loop: _Loop) -> Bool[Array, ""]:
        # Scores are not positive, so the longest sequence has the largest bound.
        bound = loop.live.scores.max(axis=1) / penalty(max_length)
        return (loop.step < max_length) & (bound > loop.done.scores.min(axis=1)).any()

    def advance(loop: _Loop) -> _Loop:
        step, live = loop.step, loop.live
        last = jnp.where(step == 0, PAD_ID, live.tokens[:, :, step - 1])
        logits, cache = model.decode_step(last.reshape(-1), loop.cache)
        vocabulary = logits.shape[-1]
        log_probs = jax.nn.log_softmax(logits).reshape(rows, beams, vocabulary)
        totals = (live.scores[:, :, None] + log_probs).reshape(rows, -1)
        # Each beam has one EOS, so twice the beams hold at least as many candidates that go on.
        scores, index = jax.lax.top_k(totals, 2 * beams)
        parents, chosen = index // vocabulary, (index % vocabulary).astype(jnp.int32)
        tokens = jnp.take_along_axis(live.tokens, parents[:, :, None], axis=1).at[:, :, step].set(chosen)
        ends = chosen == eos_id
        finished = Beams(tokens, jnp.where(ends, scores / penalty(step + 1.0), _IMPOSSIBLE), ends)
        done = _best(_joined(loop.done, finished), beams)
        going = Beams(tokens, jnp.where(ends, _IMPOSSIBLE, scores), jnp.zeros_like(ends))
        kept_scores, kept = jax.lax.top_k(going.scores, beams)
        live = Beams(jnp.take_along_axis(tokens, kept[:, :, None], axis=1), kept_scores, live.ended)
        return _Loop(step + 1, _reordered(cache, jnp.take_along_axis(parents, kept, axis=1)), live, done)

    loop = jax.lax.while_loop(unfinished, advance, start)
    cut_off = loop.live._replace(scores=jnp.maximum(loop.live.scores / penalty(max_length), _IMPOSSIBLE))
    # A search that stopped early has live beams too, none of which is better than what is done.
    cut_off = cut_off._replace(scores=jnp.where(loop.step == max_length, cut_off.scores, _IMPOSSIBLE))
    found = _best(_joined(loop.done, cut_off), beams)
    return found._replace(ended=found.ended | padding[:, None])


def _joined(first: Beams, second: Beams) -> Beams:
    return Beams(*(jnp.concatenate(pair, axis=1) for pair in zip(first, second, strict=True)))


def _best(candidates: Beams, beams: int) -> Beams:
    scores, index = jax.lax.top_k(candidates.scores, beams)
    tokens = jnp.take_along_axis(candidates.tokens, index[:, :, None], axis=1)
    return Beams(tokens, scores, jnp.take_along_axis(candidates.ended, index, axis=1))


def _reordered(cache: Cache, parents: Int[Array, "B W"]) -> Cache:
    """Each beam's memory becomes that of the beam it goes on from; the requests' own keys and values stay."""
    rows, beams = parents.shape
    flat = (parents + beams * jnp.arange(rows)[:, None]).reshape(-1)

    def pick(x: Array) -> Array:
        return jnp.take(x, flat, axis=x.ndim - 4)  # [B * W, T, H, K], below a stack's layers

    return dataclasses.replace(cache, past=jax.tree.map(pick, cache.past))
