"""A task's split as token ids in memory: made once, so that training never waits for TensorFlow or text."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

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
    """The split of a SeqIO task, tokenised in order and cut to `lengths`.

    Tasks of `register_task` are rendered and tokenised directly: the same tokens as SeqIO's, ten times sooner.
    Raises UserError where the task has no such split, no examples in it, or not the features inputs and targets.
    """
    from t5x_lite.data import registry

    check_trainable(task, split)
    instructions = registry.instructions_of(task)
    if instructions:
        examples = (instructions.tokenize(example, vocabulary, lengths) for example in instructions.render(split))
        arrays = [[np.array(example[key], np.int32) for key in ("inputs", "targets")] for example in examples]
        columns = [([len(ids) for ids in column], column) for column in zip(*arrays, strict=True)]
    else:
        columns = _from_seqio(registry.with_vocabulary(task, vocabulary), split, lengths)
    if not columns:
        raise UserError(f"task {task.name!r}: its split {split!r} has no examples")
    (input_lengths, inputs), (target_lengths, targets) = columns
    return TokenStore(task.name, *_flat(input_lengths, inputs), *_flat(target_lengths, targets))


def check_trainable(task, split: str) -> None:
    """Raises UserError where the task has no such split, or not the features inputs and targets."""
    if split not in task.splits:
        raise UserError(f"task {task.name!r} has no split {split!r}; it has {', '.join(task.splits)}")
    if missing := {"inputs", "targets"} - set(task.output_features):
        raise UserError(f"task {task.name!r} has no feature {min(missing)!r}; training needs inputs and targets")


def _from_seqio(task, split: str, lengths: Mapping[str, int]) -> list[tuple]:
    """(lengths, pieces of the ids) of inputs and of targets; nothing where there are no examples."""
    batches = list(batches_of_seqio(task, split, lengths))
    return [
        (np.concatenate([lengths for lengths, _ in column]), [ids for _, ids in column])
        for column in zip(*batches, strict=True)
    ]


def batches_of_seqio(task, split: str, lengths: Mapping[str, int]) -> Iterator[tuple]:
    """For each thousand examples in order, (lengths, ids end to end) of inputs and of targets.

    Whole batches cross from TensorFlow to Python: one example at a time costs more than tokenising it.
    """
    dataset = task.get_dataset(dict(lengths), split=split, shuffle=False)
    dataset = dataset.map(lambda example: {key: example[key] for key in ("inputs", "targets")})
    for batch in dataset.ragged_batch(_BATCH):
        ragged = [batch[key] for key in ("inputs", "targets")]
        yield tuple((each.row_lengths().numpy(), each.flat_values.numpy()) for each in ragged)


def _flat(lengths: Sequence[int], pieces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all examples in one array, and where each begins."""
    ids = np.concatenate(pieces).astype(np.int32, copy=False)
    return ids, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
