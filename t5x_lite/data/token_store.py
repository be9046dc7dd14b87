"""A task's split as token ids in memory: SeqIO runs once, and training never waits for TensorFlow again."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError

_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """Examples of one split, each a run of ids in a flat array: example i is `ids[offsets[i]:offsets[i + 1]]`."""

    name: str
    inputs: np.ndarray
    input_offsets: np.ndarray
    targets: np.ndarray
    target_offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.input_offsets) - 1

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of one example, EOS included."""
        return (
            self.inputs[self.input_offsets[index] : self.input_offsets[index + 1]],
            self.targets[self.target_offsets[index] : self.target_offsets[index + 1]],
        )

    @property
    def input_lengths(self) -> np.ndarray:
        return np.diff(self.input_offsets)

    @property
    def target_lengths(self) -> np.ndarray:
        return np.diff(self.target_offsets)


def materialize(task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int]) -> TokenStore:
    """Runs the SeqIO task over its split in order; inputs and targets are cut to `lengths`, EOS kept.

    Raises UserError where the task has no such split or no examples in it.
    """
    from t5x_lite.data import registry

    if split not in task.splits:
        raise UserError(f"task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}")
    dataset = registry.with_vocabulary(task, vocabulary).get_dataset(
        dict(lengths), split=split, shuffle=False
    )
    dataset = dataset.map(lambda example: {name: example[name] for name in ("inputs", "targets")})
    # Whole batches cross from TensorFlow to Python: one example at a time costs more than tokenising it.
    batches = list(dataset.ragged_batch(_BATCH))
    if not batches:
        raise UserError(f"task {task.name!r}: its split {split!r} has no examples")
    return TokenStore(task.name, *_flat(batches, "inputs"), *_flat(batches, "targets"))


def _flat(batches: list, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all examples in one array, and where each begins."""
    lengths = np.concatenate([batch[name].row_lengths().numpy() for batch in batches])
    ids = np.concatenate([batch[name].flat_values.numpy() for batch in batches])
    return ids.astype(np.int32), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
