"""Examples to the model's features, SeqIO's EncDec names: what every batch is made of."""

from collections.abc import Mapping, Sequence

import numpy as np

Example = tuple[np.ndarray, np.ndarray]


def encdec_batch(rows: Sequence[Sequence[Example]], lengths: Mapping[str, int], pack: bool) -> dict[str, np.ndarray]:
    """int32 arrays [B, S] and [B, T] of rows that hold one example, or, packed, several.

    A decoder input is its target shifted right, each example from id 0 on. Segment ids count from 1, positions
    start anew in every segment, padding is 0 everywhere.
    """
    inputs, targets = ([[example[part] for example in row] for row in rows] for part in (0, 1))
    encoder_tokens, encoder_segments, encoder_positions = _lay_out(inputs, lengths["inputs"])
    decoder_targets, decoder_segments, decoder_positions = _lay_out(targets, lengths["targets"])
    decoder_inputs = np.zeros_like(decoder_targets)
    decoder_inputs[:, 1:] = decoder_targets[:, :-1]
    decoder_inputs[decoder_positions == 0] = 0  # the first of a segment, and all of the padding
    batch = {
        "encoder_input_tokens": encoder_tokens,
        "decoder_input_tokens": decoder_inputs,
        "decoder_target_tokens": decoder_targets,
        "decoder_loss_weights": (decoder_segments > 0).astype(np.int32),
    }
    if pack:
        batch |= {
            "encoder_segment_ids": encoder_segments,
            "encoder_positions": encoder_positions,
            "decoder_segment_ids": decoder_segments,
            "decoder_positions": decoder_positions,
        }
    return batch


def _lay_out(rows: Sequence[Sequence[np.ndarray]], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segment ids and positions [B, length] of each row's parts end to end.

    Index arithmetic over the whole batch: a numpy call per example would cost more than training consumes.
    """
    parts = [part for row in rows for part in row]
    part_lengths = np.array([len(part) for part in parts])
    row_of_part = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    segment_of_part = np.concatenate([np.arange(1, len(row) + 1) for row in rows])
    starts = np.cumsum(part_lengths) - part_lengths
    row_starts = starts[segment_of_part == 1]

    flat = np.arange(part_lengths.sum())
    row = np.repeat(row_of_part, part_lengths)
    here = row, flat - row_starts[row]
    tokens, segments, positions = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    tokens[here] = np.concatenate(parts)
    segments[here] = np.repeat(segment_of_part, part_lengths)
    positions[here] = flat - np.repeat(starts, part_lengths)
    return tokens, segments, positions
