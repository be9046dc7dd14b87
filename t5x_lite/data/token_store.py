"""A task's split as token ids in memory: SeqIO runs once, and training never waits for TensorFlow again."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError


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
    dataset = registry.with_vocabulary(task, vocabulary).get_dataset(dict(lengths), split=split, shuffle=False)
    columns: dict[str, list[np.ndarray]] = {"inputs": [], "targets": []}
    for example in dataset.as_numpy_iterator():
        for name, column in columns.items():
            column.append(np.asarray(example[name], np.int32))
    if not columns["inputs"]:
        raise UserError(f"task {task.name!r}: its split {split!r} has no examples")
    return TokenStore(task.name, *_flat(columns["inputs"]), *_flat(columns["targets"]))


def _flat(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)])
    return np.concatenate(arrays), offsets


def texts(task, split: str) -> Iterator[tuple[str, str]]:
    """(inputs, targets) text of every example, as it stands before it is tokenised."""
    for example in task.get_dataset(None, split=split, shuffle=False).as_numpy_iterator():
        yield _text(example, "inputs", task), _text(example, "targets", task)


def _text(example: Mapping[str, Any], name: str, task) -> str:
    pretokenized = example.get(f"{name}_pretokenized")
    if pretokenized is not None:
        return pretokenized.decode()
    return task.output_features[name].vocabulary.decode(np.asarray(example[name]).tolist())
