"""What a training batch asks of the devices, as the speed of a run is counted by."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from t5x_lite.model import T5Config
from t5x_lite.model.flops import train_flops


class Work(NamedTuple):
    """Of a batch, or of many: tokens that are not padding, and floating-point operations forward and backward, of all
    that is computed and of what a model that computed no padding and kept packed examples apart would need."""

    tokens: int
    flops: int
    real_flops: int

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        return Work(*(mine + round(times * its) for mine, its in zip(self, other, strict=True)))


NO_WORK = Work(0, 0, 0)


def work_of(batch: Mapping[str, np.ndarray], config: T5Config) -> Work:
    """Of encoder_segment_ids [B, S] and decoder_segment_ids [B, T], which number a row's examples from 1; 0 is padding.

    A batch without them has one example in each row.
    """
    inputs = batch.get("encoder_segment_ids", batch["encoder_input_tokens"] > 0)
    targets = batch.get("decoder_segment_ids", batch["decoder_loss_weights"] > 0)
    rows, most = len(inputs), int(max(inputs.max(), targets.max())) + 1
    lengths = [_lengths(ids, most) for ids in (inputs, targets)]
    return Work(
        tokens=int(sum(each.sum() for each in lengths)),
        flops=rows * train_flops(config, inputs.shape[1], targets.shape[1]),
        real_flops=int(train_flops(config, *lengths).sum()),
    )


def _lengths(segment_ids: np.ndarray, most: int) -> np.ndarray:
    """The tokens of each example of each row [B, N]; of `most`, one is the padding, which is left out."""
    rows = len(segment_ids)
    numbers = segment_ids + most * np.arange(rows)[:, None]
    return np.bincount(numbers.ravel(), minlength=rows * most).reshape(rows, most)[:, 1:]
