"""The best sequences of a catalogue for each request: by a search over its trie, or by scoring all of them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.decoding.beam import best, reordered
from t5x_lite.decoding.logits import IMPOSSIBLE
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.sampling import PAD_ID
from t5x_lite.decoding.trie import Restriction, Trie
from t5x_lite.errors import UserError
from t5x_lite.model import T5, Cache

_EXACT_UP_TO = 2  # sequences a beam: both decode about as many rows, but one in steps
_CHUNK_LOGITS = 2**24  # 64 MB of them


class Found(NamedTuple):
    """The `n_best` best items of each request, best first; C is the length of the longest sequence.

    Where fewer remain, the last items are -1. `token_scores` are the model's log-probabilities over its whole
    vocabulary, `scores` their sum over the length penalty. `exact` says that no item can be better than these.
    """

    items: Int[Array, "B W"]
    tokens: Int[Array, "B W C"]
    scores: Float[Array, "B W"]
    token_scores: Float[Array, "B W C"]
    exact: Bool[Array, ""]


class Beams(NamedTuple):
    """`place` is the node that a live beam stands at, the leaf of one that is done, and -1 of one that is neither."""

    place: Int[Array, "B W"]
    tokens: Int[Array, "B W C"]
    scores: Float[Array, "B W"]
    token_scores: Float[Array, "B W C"]


def search(
    model: T5,
    encoder_tokens: Int[Array, "B S"],
    trie: Trie,
    options: Decoding,
    restriction: Restriction | None = None,
    prefix: Int[Array, "B P"] | None = None,
) -> Found:
    """`score_all` where it is as cheap, which is up to two sequences a beam, else `constrained_search`."""
    way = score_all if scores_all(trie, options) else constrained_search
    return way(model, encoder_tokens, trie, options, restriction, prefix)


def scores_all(trie: Trie, options: Decoding) -> bool:
    """Whether `search` scores every sequence; of single tokens the first step of a beam search has done that."""
    return len(trie.levels) > 1 and trie.capacity <= _EXACT_UP_TO * options.beams


def is_exact(trie: Trie, options: Decoding) -> bool:
    """Whether what `search` finds is sure to be the best: it scores every sequence, and is not a beam search."""
    return len(trie.levels) == 1 or scores_all(trie, options)


def constrained_search(
    model: T5,
    encoder_tokens: Int[Array, "B S"],
    trie: Trie,
    options: Decoding,
    restriction: Restriction | None = None,
    prefix: Int[Array, "B P"] | None = None,
) -> Found:
    """Beam search whose beams are nodes of the trie; call it inside jit, the trie among its arguments.

    The sequences go on from each request's prefix, padded by zeros on its left.

    A beam goes only where a sequence is left that the request may have. So there are as many results as `n_best`, or
    as sequences that are left, whatever the model thinks of them: of a level's candidates all survive, or `beams` do
    and each leads to a sequence. A row of padding gets none. The trie says how long sequences are, not
    `options.max_tokens`.
    """
    _check(options)
    padding = (encoder_tokens == PAD_ID).all(axis=1)
    depth, beams, rows = len(trie.levels), options.beams, encoder_tokens.shape[0]
    prefix = jnp.zeros((rows, 0), jnp.int32) if prefix is None else prefix
    cache = model.start_cache(model.encode(encoder_tokens), encoder_tokens, prefix.shape[1] + depth)
    # One beam stands at the root: more would all find the same.
    root = nothing(rows, 1, depth)
    live = root._replace(place=jnp.where(padding, -1, 0)[:, None], scores=jnp.zeros((rows, 1)))
    done = nothing(rows, beams, depth)
    logits, cache = model.decode_prefix(prefix, cache)
    for t in range(depth):
        live, parents, done = advance(trie, t, live, done, logits, options, restriction)
        if t + 1 < depth:
            cache = _widened(cache, beams) if t == 0 else reordered(cache, parents)
            logits, cache = model.decode_step(live.tokens[:, :, t].reshape(-1), cache)
    return _found(best(done, options.n_best), trie, exact=depth == 1 or trie.capacity <= beams)


def advance(
    trie: Trie,
    t: int,
    live: Beams,
    done: Beams,
    logits: Float[Array, "BW V"],
    options: Decoding,
    restriction: Restriction | None,
) -> tuple[Beams, Int[Array, "B W"], Beams]:
    """From the nodes before level `t` to the best of it: the live beams, the beam that each comes from, the done ones.

    Looks at beams * branching candidates, however many sequences there are: never many more than the logits, so no
    level needs another form. Equal scores go to the lower beam, then token.
    """
    level, beams = trie.levels[t], options.beams
    width = live.place.shape[1]
    slots = jnp.arange(max(trie.branching[t], -(-beams // width)))
    parent = jnp.maximum(live.place, 0)
    first, end = level.first_child[parent], level.first_child[parent + 1]
    exists = (live.place >= 0)[..., None] & (slots < (end - first)[..., None])
    node = jnp.where(exists, first[..., None] + slots, 0)

    logits = logits.reshape(*live.place.shape, -1)
    tokens = level.token[node]
    normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    log_probs = jnp.take_along_axis(logits, tokens, axis=-1) - normaliser
    candidates = _Candidates(node, tokens, log_probs, live)

    first_leaf, last_leaf = level.first_leaf[node], level.last_leaf[node]
    after = first_leaf
    if trie.ending[t]:
        ends = exists & level.ends[node]
        after = first_leaf + ends
        can_end = ends & _any_live(restriction, first_leaf, after)
        finished, _ = candidates.best(can_end, t, beams)
        penalty = _penalty(t + 1, options)
        finished = finished._replace(
            place=jnp.where(finished.place < 0, -1, level.first_leaf[finished.place]),
            scores=(finished.scores / penalty).clip(min=IMPOSSIBLE),
        )
        done = best(_joined(done, finished), beams)
    live, parents = candidates.best(exists & _any_live(restriction, after, last_leaf), t, beams)
    return live, parents, done


def score_all(
    model: T5,
    encoder_tokens: Int[Array, "B S"],
    trie: Trie,
    options: Decoding,
    restriction: Restriction | None = None,
    prefix: Int[Array, "B P"] | None = None,
    *,
    chunk: int | None = None,
) -> Found:
    """What `constrained_search` looks for, found by scoring every sequence; call it inside jit.

    `chunk` sequences of each request at a time, by default so many that their logits take 64 MB; only those that the
    trie has are scored, not what its arrays have room for.
    """
    _check(options)
    rows, depth, capacity = encoder_tokens.shape[0], len(trie.levels), trie.capacity
    prefix = jnp.zeros((rows, 0), jnp.int32) if prefix is None else prefix
    length = prefix.shape[1] + depth
    chunk = min(capacity, chunk or max(_CHUNK_LOGITS // (rows * length * model.config.vocab_size), 1))
    before = jnp.pad(prefix, ((0, 0), (1, 0)))
    padding = (encoder_tokens == PAD_ID).all(axis=1)
    cache = model.start_cache(model.encode(encoder_tokens), encoder_tokens, length)

    def score(n: Int[Array, ""], found: Beams) -> Beams:
        leaves = n * chunk + jnp.arange(chunk, dtype=jnp.int32)
        sequences = trie.sequences(leaves)
        tokens = jnp.broadcast_to(sequences, (rows, *sequences.shape))
        inputs = jnp.concatenate([jnp.repeat(before, chunk, axis=0), jnp.tile(sequences[:, :-1], (rows, 1))], axis=1)
        logits = model.decode_all(inputs, cache)[:, -depth:].reshape(*tokens.shape, -1)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        token_scores = (chosen - jax.nn.logsumexp(logits, axis=-1)) * (tokens != PAD_ID)
        scores = token_scores.sum(axis=-1) / _penalty((sequences != PAD_ID).sum(axis=-1), options)
        places = jnp.broadcast_to(leaves, scores.shape)
        valid = (leaves < trie.size) & ~padding[:, None] & _any_live(restriction, places, places + 1)
        here = Beams(jnp.where(valid, places, -1), tokens, jnp.where(valid, scores, IMPOSSIBLE), token_scores)
        return best(_joined(found, here), options.n_best)

    chunks = -(-trie.size // chunk)
    return _found(jax.lax.fori_loop(0, chunks, score, nothing(rows, options.n_best, depth)), trie, exact=True)


class _Candidates(NamedTuple):
    """The children of every live beam."""

    node: Int[Array, "B W M"]
    tokens: Int[Array, "B W M"]
    log_probs: Float[Array, "B W M"]
    live: Beams

    def best(self, possible: Bool[Array, "B W M"], t: int, beams: int) -> tuple[Beams, Int[Array, "B W"]]:
        """The likeliest that are possible, and their parents; in two rounds, since top_k sorts slowly on CPU."""
        rows, _, slots = possible.shape
        each = min(beams, slots)
        totals = jnp.where(possible, self.live.scores[..., None] + self.log_probs, IMPOSSIBLE)
        totals, slot = jax.lax.top_k(totals, each)
        scores, index = jax.lax.top_k(totals.reshape(rows, -1), beams)
        parents = index // each
        slot = jnp.take_along_axis(slot.reshape(rows, -1), index, axis=1)
        place = parents * slots + slot

        def at(x: Array) -> Array:
            return jnp.take_along_axis(x.reshape(rows, -1), place, axis=1)

        def of_parents(x: Float[Array, "B W C"], new: Array) -> Array:
            return jnp.take_along_axis(x, parents[..., None], axis=1).at[:, :, t].set(new)

        valid = at(possible)
        grown = Beams(
            place=jnp.where(valid, at(self.node), -1),
            tokens=of_parents(self.live.tokens, at(self.tokens)),
            scores=jnp.where(valid, scores, IMPOSSIBLE),
            token_scores=of_parents(self.live.token_scores, at(self.log_probs)),
        )
        return grown, parents


def _any_live(restriction: Restriction | None, first: Array, last: Array) -> Bool[Array, "..."]:
    return last > first if restriction is None else restriction.live(first, last) > 0


def _penalty(length: Any, options: Decoding) -> Any:
    return ((5.0 + length) / 6.0) ** options.length_alpha


def nothing(rows: int, beams: int, depth: int) -> Beams:
    return Beams(
        place=jnp.full((rows, beams), -1, jnp.int32),
        tokens=jnp.full((rows, beams, depth), PAD_ID, jnp.int32),
        scores=jnp.full((rows, beams), IMPOSSIBLE),
        token_scores=jnp.zeros((rows, beams, depth)),
    )


def _joined(first: Beams, second: Beams) -> Beams:
    return jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), first, second)


def _widened(cache: Cache, beams: int) -> Cache:
    """From one beam a request to `beams` that have all seen the same."""
    past = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=x.ndim - 4), cache.past)
    past_mask = cache.past_mask
    if past_mask.shape[0] > 1:
        past_mask = jnp.repeat(past_mask, beams, axis=0)
    return dataclasses.replace(cache, past=past, past_mask=past_mask)


def _found(beams: Beams, trie: Trie, *, exact: bool) -> Found:
    valid = beams.place >= 0
    return Found(
        items=jnp.where(valid, trie.items[beams.place], -1),
        tokens=jnp.where(valid[..., None], beams.tokens, PAD_ID),
        scores=jnp.where(valid, beams.scores, IMPOSSIBLE),
        token_scores=jnp.where(valid[..., None], beams.token_scores, 0.0),
        exact=jnp.asarray(exact),
    )


def _check(options: Decoding) -> None:
    """A sequence's score is the model's own: nothing may bend it."""
    for name, neutral in (("temperature", 0.0), ("repetition_penalty", 1.0), ("no_repeat_ngram", 0)):
        if getattr(options, name) != neutral:
            raise UserError(f"{name} is {getattr(options, name)}: sequences of a catalogue are searched without it")
