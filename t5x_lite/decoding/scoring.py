"""How likely a model finds given targets: the log-probabilities of their tokens, by teacher forcing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5x_lite.decoding.sampling import PAD_ID
from t5x_lite.model import T5


def log_likelihood(model: T5, encoder_tokens: Int[Array, "B S"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Of every token of the targets, EOS included, and 0 for padding; call it inside jit."""
    decoder_inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    logits = model({"encoder_input_tokens": encoder_tokens, "decoder_input_tokens": decoder_inputs})
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (chosen - jax.nn.logsumexp(logits, axis=-1)) * (targets != PAD_ID)
