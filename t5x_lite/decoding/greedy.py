"""Greedy decoding: `greedy` for arrays inside jit, `Generator` for any number of token lists."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.model import T5, Cache, T5Config, bind

PAD_ID = 0

_SHORTEST_BUCKET = 32


class Decoded(NamedTuple):
    """Tokens with their EOS and zeros after it; the sum of their log-probabilities, EOS included."""

    tokens: Int[Array, "B T"]
    scores: Float[Array, "B"]
    ended: Bool[Array, "B"]


class _Loop(NamedTuple):
    step: Int[Array, ""]
    last: Int[Array, "B"]
    cache: Cache
    decoded: Decoded


def greedy(model: T5, encoder_tokens: Int[Array, "B S"], *, max_length: int, eos_id: int) -> Decoded:
    """The likeliest token at each step until all rows have ended or are full; call it inside jit.

    Ties go to the lowest id. A row of padding only counts as ended from the beginning.
    """
    encoder_tokens = jnp.asarray(encoder_tokens)
    rows = encoder_tokens.shape[0]
    cache = model.start_cache(model.encode(encoder_tokens), encoder_tokens, max_length)
    nothing = Decoded(
        tokens=jnp.full((rows, max_length), PAD_ID, jnp.int32),
        scores=jnp.zeros((rows,), jnp.float32),
        ended=(encoder_tokens == PAD_ID).all(axis=1),
    )
    start = _Loop(jnp.zeros((), jnp.int32), jnp.full((rows,), PAD_ID, jnp.int32), cache, nothing)

    def unfinished(loop: _Loop) -> Bool[Array, ""]:
        return (loop.step < max_length) & ~loop.decoded.ended.all()

    def advance(loop: _Loop) -> _Loop:
        logits, cache = model.decode_step(loop.last, loop.cache)
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        log_prob = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
        tokens, scores, ended = loop.decoded
        chosen = jnp.where(ended, PAD_ID, best)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], loop.step, axis=1)
        scores = scores + jnp.where(ended, 0.0, log_prob)
        return _Loop(loop.step + 1, chosen, cache, Decoded(tokens, scores, ended | (chosen == eos_id)))

    return jax.lax.while_loop(unfinished, advance, start).decoded


class Generation(NamedTuple):
    """What was generated for one input: tokens without EOS, and whether EOS came in time."""

    tokens: list[int]
    score: float
    ended: bool


class BatchLayout(Protocol):
    """What the generator needs of a partitioner."""

    data_size: int
    batch_sharding: jax.sharding.Sharding
    replicated: jax.sharding.Sharding

    def context(self) -> contextlib.AbstractContextManager: ...


class Generator:
    """Decodes any number of token lists through a few compiled shapes.

    Inputs are sorted by length, cut into batches of at most `max_batch`, and padded to a power of two of rows
    and of columns (32 or more), so that the number of compilations grows with the logarithm of the sizes
    seen. `params` may be replaced by other weights of the same shapes, as training goes on: nothing compiles
    again.
    """

    def __init__(
        self,
        config: T5Config,
        params: Mapping[str, Any],
        *,
        eos_id: int,
        partitioner: BatchLayout | None = None,
        max_batch: int = 256,
    ):
        self.params = params
        self.compile_count = 0
        self._partitioner = partitioner
        self._max_batch = max_batch
        self._eos_id = eos_id

        def decode(params: Mapping[str, Any], tokens: Int[Array, "B S"], max_length: int) -> Decoded:
            self.compile_count += 1  # Python runs when jit traces, which is once a compilation
            return greedy(bind(config, params), tokens, max_length=max_length, eos_id=eos_id)

        self._decode = jax.jit(
            decode,
            static_argnames="max_length",
            out_shardings=partitioner.replicated if partitioner else None,
        )

    def generate(self, token_lists: Sequence[Sequence[int]], max_length: int) -> list[Generation]:
        """A generation of at most `max_length` tokens (EOS included) for each input, in their order.

        With several processes, every process gives the same inputs and gets all generations.
        """
        order = sorted(range(len(token_lists)), key=lambda i: -len(token_lists[i]))
        batches = [order[start : start + self._max_batch] for start in range(0, len(order), self._max_batch)]
        pending = [self._dispatch([token_lists[i] for i in batch], max_length) for batch in batches]
        found: dict[int, Generation] = {}
        for batch, decoded in zip(batches, pending, strict=True):
            tokens, scores, ended = jax.device_get(decoded)
            for row, i in enumerate(batch):
                length = int(np.argmax(tokens[row] == self._eos_id)) if ended[row] else max_length
                found[i] = Generation(tokens[row, :length].tolist(), float(scores[row]), bool(ended[row]))
        return [found[i] for i in range(len(token_lists))]

    def _dispatch(self, token_lists: Sequence[Sequence[int]], max_length: int) -> Decoded:
        """Starts one batch on the devices; does not wait for it."""
        shards = self._partitioner.data_size if self._partitioner else 1
        rows = -(-power_of_two(len(token_lists)) // shards) * shards
        columns = max(_SHORTEST_BUCKET, power_of_two(max(map(len, token_lists))))
        tokens = np.full((rows, columns), PAD_ID, np.int32)
        for row, values in enumerate(token_lists):
            tokens[row, : len(values)] = values
        if self._partitioner is None:
            return self._decode(self.params, tokens, max_length=max_length)
        with self._partitioner.context():
            placed = jax.make_array_from_callback(tokens.shape, self._partitioner.batch_sharding, tokens.__getitem__)
            return self._decode(self.params, placed, max_length=max_length)


def power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()
