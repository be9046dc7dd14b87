"""Examples to the model's features, SeqIO's EncDec names: what every batch is made of."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

Example = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Runs:
    """The inputs, or the targets, of a batch's examples end to end; `lengths` of each, `counts` of examples a row."""

    ids: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray


def encdec_batch(rows: Sequence[Sequence[Example]], lengths: Mapping[str, int], pack: bool) -> dict[str, np.ndarray]:
    """`features` of rows that hold one example, or, packed, several."""
    counts = np.array([len(row) for row in rows])
    parts = [[example[part] for row in rows for example in row] for part in (0, 1)]
    inputs, targets = (Runs(np.concatenate(ids), np.array([len(each) for each in ids]), counts) for ids in parts)
    return features(inputs, targets, lengths, pack)


def features(inputs: Runs, targets: Runs, lengths: Mapping[str, int], pack: bool) -> dict[str, np.ndarray]:
    """int32 arrays [B, S] and [B, T].

    A decoder input is its target shifted right, each example from id 0 on. Segment ids count from 1, positions
    start anew in every segment, padding is 0 everywhere.
    """
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


def _lay_out(runs: Runs, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segment ids and positions [B, length] of each row's parts end to end.

    Index arithmetic over the whole batch: a numpy call per example would cost more than training consumes.
    """
    count = len(runs.counts)
    row_of_part = np.repeat(np.arange(count), runs.counts)
    first_parts = np.cumsum(runs.counts) - runs.counts
    segment_of_part = np.arange(len(runs.lengths)) - first_parts[row_of_part] + 1
    starts = np.cumsum(runs.lengths) - runs.lengths
    row_starts = starts[first_parts]

    flat = np.arange(len(runs.ids))
    row = np.repeat(row_of_part, runs.lengths)
    here = row, flat - row_starts[row]
    tokens, segments, positions = (np.zeros((count, length), np.int32) for _ in range(3))
    tokens[here] = runs.ids
    segments[here] = np.repeat(segment_of_part, runs.lengths)
    positions[here] = flat - np.repeat(starts, runs.lengths)
    return tokens, segments, positions
