"""How likely a model finds given targets: the sum of their tokens' log-probabilities, by teacher forcing."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5x_lite.decoding.greedy import PAD_ID, BatchLayout, power_of_two
from t5x_lite.model import T5, T5Config, bind


def log_likelihood(model: T5, encoder_tokens: Int[Array, "B S"], targets: Int[Array, "B T"]) -> Float[Array, "B"]:
    """Sum over the tokens of each target, EOS included, padding not; call it inside jit."""
    decoder_inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    logits = model({"encoder_input_tokens": encoder_tokens, "decoder_input_tokens": decoder_inputs})
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum((chosen - jax.nn.logsumexp(logits, axis=-1)) * (targets != PAD_ID), axis=-1)


def score_targets(
    config: T5Config,
    params: Mapping[str, Any],
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    partitioner: BatchLayout,
    max_batch: int = 64,
) -> list[float]:
    """The log-likelihood of each target (EOS included) given its input, in the order given; one compiled shape."""
    shards = partitioner.data_size
    rows = -(-min(max_batch, len(inputs)) // shards) * shards
    tables = [_padded(inputs, rows), _padded(targets, rows)]
    score = jax.jit(
        lambda params, tokens, wanted: log_likelihood(bind(config, params), tokens, wanted),
        out_shardings=partitioner.replicated,
    )
    found: list[float] = []
    with partitioner.context():
        for start in range(0, len(tables[0]), rows):
            parts = [table[start : start + rows] for table in tables]
            placed = [
                jax.make_array_from_callback(part.shape, partitioner.batch_sharding, part.__getitem__) for part in parts
            ]
            found += np.asarray(score(params, *placed)).tolist()
    return found[: len(inputs)]


def _padded(token_lists: Sequence[Sequence[int]], multiple: int) -> Int[np.ndarray, "B S"]:
    table = np.full(
        (-(-len(token_lists) // multiple) * multiple, power_of_two(max(map(len, token_lists)))), PAD_ID, np.int32
    )
    for row, values in enumerate(token_lists):
        table[row, : len(values)] = values
    return table
