"""What stands between a model's logits and the next token: truncation for sampling, and controls of repetition."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5x_lite.decoding.options import Decoding

IMPOSSIBLE = -1e9  # finite: a difference of two of them is still a number


def truncated(logits: Float[Array, "R V"], options: Decoding) -> Float[Array, "R V"]:
    """Logits at the temperature of `options`, IMPOSSIBLE where a token is not to be sampled; the likeliest is 0.

    Tokens as likely as the last one that is kept are kept too.
    """
    # From 0 for the likeliest down: however low the temperature, it stays above IMPOSSIBLE.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / options.temperature
    if options.top_k:
        least = jax.lax.top_k(logits, min(options.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, IMPOSSIBLE, logits)
    if options.top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before < options.top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, IMPOSSIBLE, logits)
    if options.min_p:
        logits = jnp.where(logits < jnp.log(options.min_p), IMPOSSIBLE, logits)
    return logits


def without_repetition(
    logits: Float[Array, "R V"], tokens: Int[Array, "R T"], step: Int[Array, ""], options: Decoding
) -> Float[Array, "R V"]:
    """Logits, or log-probabilities, of the token at `step`, which the `step` tokens before it make less likely."""
    if options.repetition_penalty != 1.0:
        written = jnp.arange(tokens.shape[1]) < step
        seen = _at_tokens(tokens, written[None], logits.shape[-1])
        penalised = jnp.where(logits > 0, logits / options.repetition_penalty, logits * options.repetition_penalty)
        logits = jnp.where(seen, penalised, logits)
    if options.no_repeat_ngram:
        followers, repeats = _repeats(tokens, step, options.no_repeat_ngram)
        logits = jnp.where(_at_tokens(followers, repeats, logits.shape[-1]), IMPOSSIBLE, logits)
    return logits


def _repeats(tokens: Int[Array, "R T"], step: Int[Array, ""], n: int) -> tuple[Array, Array]:
    """The last token of every n-gram that is written, and whether its others are the last n - 1 tokens."""
    count = tokens.shape[1] - n + 1
    if count < 1:
        return tokens[:, :0], jnp.zeros((tokens.shape[0], 0), bool)
    ends = jnp.arange(n - 1, tokens.shape[1])
    matches = (ends < step)[None] & jnp.ones((tokens.shape[0], 1), bool)
    for back in range(1, n):
        last = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(step - back, 0), axis=1)
        matches = matches & (tokens[:, n - 1 - back : n - 1 - back + count] == last)
    return tokens[:, n - 1 :], matches


def _at_tokens(tokens: Int[Array, "R T"], counts: Array, vocabulary: int) -> Array:
    """[R, V]: whether a token is among those of its row that count."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    places = jnp.where(counts, tokens, vocabulary)  # out of range: dropped
    return jnp.zeros((tokens.shape[0], vocabulary), bool).at[rows, places].set(True, mode="drop")
