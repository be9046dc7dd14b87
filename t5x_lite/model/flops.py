"""Floating-point operations of an encoder-decoder, by configuration: a multiply and an add are two.

6ND is wrong for it: the encoder's weights meet only the S input tokens, the decoder's only the T target tokens, but its
cross-attention's keys and values the S again, and the embedding multiplies nothing. The causal half of attention is not
taken off. Tested against XLA's own count of unrolled models.
"""

from typing import NamedTuple

from t5x_lite.model.config import T5Config


class Flops(NamedTuple):
    """Of the forward pass of one pair of S inputs and T targets, by part."""

    encoder: int
    cross_kv: int
    decoder: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return sum(self)


def forward_flops(config: T5Config, inputs: int, targets: int) -> Flops:
    """Of one pair of `inputs` and `targets` positions. `attention` is what no weight takes part in: QK and PV."""
    d, inner, f = config.d_model, config.num_heads * config.head_dim, config.d_ff
    mlp = 2 * (len(config.activations) + 1) * d * f
    pairs = config.num_encoder_layers * inputs**2 + config.num_decoder_layers * (targets**2 + targets * inputs)
    return Flops(
        encoder=config.num_encoder_layers * inputs * (8 * d * inner + mlp),
        cross_kv=config.num_decoder_layers * inputs * 4 * d * inner,
        decoder=config.num_decoder_layers * targets * (12 * d * inner + mlp),
        attention=4 * inner * pairs,
        head=2 * targets * d * config.vocab_rows,
    )


def train_flops(config: T5Config, inputs: int, targets: int) -> int:
    """Of one pair, forward and backward: what MFU is counted by. What remat computes again is not in it."""
    return 3 * forward_flops(config, inputs, targets).total


def recomputed_flops(config: T5Config, inputs: int, targets: int) -> int:
    """Of one pair, what the backward pass computes a second time under the configuration's `remat`."""
    forward = forward_flops(config, inputs, targets)
    again = {"none": 0, "minimal": forward.attention}
    return again.get(config.remat, forward.total - forward.head)
