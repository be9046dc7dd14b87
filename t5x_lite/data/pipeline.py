"""The order of training examples and the batches made of it: the same for any number of processes and restarts.

Examples come in windows. Window w takes from each task as many examples as its rate has earned by then
(differences of floors, so rates are met exactly), in the order of that task's shuffled epochs; they are packed,
and the packed rows shuffled. Every random choice is drawn from (seed, what it is for, its number), so the place
in the data is two integers and going there costs one window, however far the run has come.
"""

import contextlib
import dataclasses
import functools
import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.features import Example, encdec_batch
from t5x_lite.data.packing import first_fit
from t5x_lite.data.token_store import TokenStore
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError

Batch = dict[str, np.ndarray]
Row = Sequence[tuple[int, int]]  # (store, example) of what is packed together

_EXAMPLES_A_WINDOW = 8192
_SHUFFLE_EPOCH, _SHUFFLE_ROWS = 1, 2  # what a random stream is for


class TrainIterator:
    """Endless batches of `own_rows` of each global batch (default: all), which does not depend on the processes.

    With `pack` a row holds several examples.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        rates: Sequence[float],
        *,
        lengths: Mapping[str, int],
        batch_size: int,
        seed: int,
        pack: bool = True,
        own_rows: Sequence[int] | None = None,
    ):
        self._stores = stores
        self._rates = np.asarray(rates, np.float64) / np.sum(rates)
        self._lengths = dict(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._pack = pack
        self._own = range(batch_size) if own_rows is None else own_rows
        self._epoch_order = functools.lru_cache(maxsize=2 * len(stores))(self._shuffled_epoch)
        self._go_to(0, 0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows: list[Row] = []
        while len(rows) < self._batch_size:
            if self._row == len(self._rows):
                self._go_to(self._window + 1, 0)
            taken = self._rows[self._row : self._row + self._batch_size - len(rows)]
            self._row += len(taken)
            rows += taken
        return encdec_batch([self._examples(row) for row in (rows[i] for i in self._own)], self._lengths, self._pack)

    def state(self) -> dict[str, int]:
        """Where the next batch begins."""
        return {"window": self._window, "row": self._row}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes to where `state` was taken: the next batch is the one that came next then.

        Raises UserError for a place in a packed cache.
        """
        if "cache" in state:
            raise UserError(
                "CACHE_DIR is None and the checkpoint was trained from a cache, so its place in the data means nothing "
                "here; set CACHE_DIR as it was, or start anew from its weights (INITIAL_CHECKPOINT_PATH)"
            )
        self._go_to(state["window"], state["row"])

    def _go_to(self, window: int, row: int) -> None:
        self._rows = self._window_rows(window)
        self._window, self._row = window, row

    def _examples(self, row: Row) -> list[Example]:
        return [self._stores[store].example(index) for store, index in row]

    def _window_rows(self, window: int) -> list[Row]:
        """The rows of a window, shuffled; each a list of (store, example)."""
        drawn = [self._drawn(store, window) for store in range(len(self._stores))]
        rng = _random(self._seed, _SHUFFLE_ROWS, window)
        order = rng.permutation(sum(map(len, drawn)))
        stores = np.repeat(np.arange(len(drawn)), [len(indices) for indices in drawn])[order].tolist()
        members = list(zip(stores, np.concatenate(drawn)[order].tolist(), strict=True))
        if not self._pack:
            return [[member] for member in members]
        input_lengths, target_lengths = (
            np.concatenate([getattr(store, part)[indices] for store, indices in zip(self._stores, drawn, strict=True)])[
                order
            ].tolist()
            for part in ("input_lengths", "target_lengths")
        )
        bins = first_fit(input_lengths, target_lengths, self._lengths["inputs"], self._lengths["targets"])
        return [[members[i] for i in bins[b]] for b in rng.permutation(len(bins))]

    def _drawn(self, store: int, window: int) -> np.ndarray:
        """The examples a window takes of a task: the next ones in its endless stream of shuffled epochs."""
        first, end = (math.floor(self._rates[store] * _EXAMPLES_A_WINDOW * edge) for edge in (window, window + 1))
        size = len(self._stores[store])
        epochs = range(first // size, -(-end // size))
        return np.concatenate(
            [self._epoch_order(store, epoch)[max(first - epoch * size, 0) : end - epoch * size] for epoch in epochs]
            or [np.zeros(0, np.int64)]
        )

    def _shuffled_epoch(self, store: int, epoch: int) -> np.ndarray:
        return _random(self._seed, _SHUFFLE_EPOCH, store, epoch).permutation(len(self._stores[store]))

    def fill(self) -> dict[str, float]:
        """Of the current window: the share of positions that are not padding, and examples a row."""
        examples = [self._examples(row) for row in self._rows]
        inputs = sum(len(example[0]) for row in examples for example in row)
        targets = sum(len(example[1]) for row in examples for example in row)
        return {
            "inputs": inputs / len(examples) / self._lengths["inputs"],
            "targets": targets / len(examples) / self._lengths["targets"],
            "examples_per_row": sum(map(len, examples)) / len(examples),
        }


def _random(*stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(stream)))


class Prefetched:
    """Batches made ahead by one thread; `state` is that of the batches handed out, not of those made."""

    def __init__(self, iterator: TrainIterator, ahead: int):
        self._state = iterator.state()
        self._made: queue.Queue[tuple[Batch, dict[str, int]] | BaseException] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(iterator,), name="batches", daemon=True)
        self._thread.start()

    def _make(self, iterator: TrainIterator) -> None:
        try:
            while not self._stop.is_set():
                self._put((next(iterator), iterator.state()))
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                return self._made.put(item, timeout=0.1)

    def __next__(self) -> Batch:
        made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        batch, self._state = made
        return batch

    def state(self) -> dict[str, int]:
        return self._state

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def prefetch(iterator: TrainIterator, ahead: int) -> Iterator[Prefetched]:
    """Makes up to `ahead` batches while the device computes."""
    batches = Prefetched(iterator, ahead)
    try:
        yield batches
    finally:
        batches.close()


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Examples of one split of a task, with all that scoring them needs."""

    task: Any
    inputs: list[list[int]]
    targets: list[list[int]]
    texts: list[str]
    answers: list[list[str]]
    templates: list[str]
    template_splits: list[str]
    examples: list[dict[str, Any]]


def load_eval(
    task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], max_examples: int | None = None
) -> EvalSet:
    """The evaluation set of a task; of more than `max_examples`, the same evenly drawn ones every time."""
    from t5x_lite.data import registry

    instructions = registry.instructions_of(task)
    if instructions:
        rendered = list(instructions.render(split))
        chosen = registry.drawn(len(rendered), max_examples)
        examples = [instructions.tokenize(rendered[i], vocabulary, lengths) for i in chosen]
    else:
        sampled = task if max_examples is None else registry.sampled(task, split, max_examples)
        dataset = registry.with_vocabulary(sampled, vocabulary).get_dataset(dict(lengths), split=split, shuffle=False)
        examples = list(dataset.as_numpy_iterator())
    return EvalSet(
        task=task,
        inputs=[list(map(int, example["inputs"])) for example in examples],
        targets=[list(map(int, example["targets"])) for example in examples],
        texts=[_string(example.get("inputs_pretokenized"), vocabulary, example["inputs"]) for example in examples],
        answers=[_answers(example, vocabulary, task) for example in examples],
        templates=[_string(example.get("template", task.name)) for example in examples],
        template_splits=[_string(example.get("template_split", "seen")) for example in examples],
        examples=examples,
    )


def _answers(example: Mapping[str, Any], vocabulary: Vocabulary, task) -> list[Any]:
    if "answers" in example and "template" in example:
        return [_string(answer) for answer in example["answers"]]
    target = _string(example.get("targets_pretokenized"), vocabulary, example["targets"])
    return task.postprocess_fn(target, example=example, is_target=True)


def _string(value: Any, vocabulary: Vocabulary | None = None, ids: Sequence[int] = ()) -> str:
    if value is None and vocabulary is not None:
        return vocabulary.decode(ids)
    return value.decode() if isinstance(value, bytes) else str(value)
