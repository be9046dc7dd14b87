"""Examples to the model's features, SeqIO's EncDec names: what every batch is made of."""

from collections.abc import Mapping, Sequence

import numpy as np

Example = tuple[np.ndarray, np.ndarray]

FEATURES = (
    "encoder_input_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
)
PACKED_FEATURES = (
    "encoder_segment_ids",
    "encoder_positions",
    "decoder_segment_ids",
    "decoder_positions",
)


def encdec_batch(
    rows: Sequence[Sequence[Example]], lengths: Mapping[str, int], pack: bool
) -> dict[str, np.ndarray]:
    """int32 arrays [B, S] and [B, T] of rows that hold one example, or, packed, several.

    A decoder input is its target shifted right, each example from id 0 on. Segment ids count from 1, positions start
    anew in every segment, padding is 0 everywhere.
    """
    sizes = {"encoder": lengths["inputs"], "decoder": lengths["targets"]}
    names = FEATURES + (PACKED_FEATURES if pack else ())
    batch = {name: np.zeros((len(rows), sizes[name.split("_")[0]]), np.int32) for name in names}
    for number, examples in enumerate(rows):
        at_input = at_target = 0
        for segment, (inputs, targets) in enumerate(examples, 1):
            here = number, slice(at_input, at_input + len(inputs))
            there = number, slice(at_target, at_target + len(targets))
            batch["encoder_input_tokens"][here] = inputs
            batch["decoder_target_tokens"][there] = targets
            batch["decoder_input_tokens"][number, at_target + 1 : at_target + len(targets)] = targets[:-1]
            batch["decoder_loss_weights"][there] = 1
            if pack:
                batch["encoder_segment_ids"][here] = segment
                batch["encoder_positions"][here] = np.arange(len(inputs))
                batch["decoder_segment_ids"][there] = segment
                batch["decoder_positions"][there] = np.arange(len(targets))
            at_input += len(inputs)
            at_target += len(targets)
    return batch
