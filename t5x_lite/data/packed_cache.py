"""Training batches out of a packed cache: read by Grain, without TensorFlow, and without what made the tasks.

Each part's rows come in epochs, each in an order of its own; parts take turns so that each task has its rate of the
examples. Which rows step n has follows from (cache, seed, n) by arithmetic, so going to any step costs the same.
"""

import bisect
import collections
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from etils import epath
from grain.experimental import index_shuffle

from t5x_lite.data import vocabularies
from t5x_lite.data.cache_format import (
    ITEMS,
    MANIFEST,
    VOCABULARY,
    Part,
    Shard,
    decode_rows,
    read_json,
    read_part,
)
from t5x_lite.data.features import features
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError, first_words

Batch = dict[str, np.ndarray]

_ROWS_READ_AT_ONCE = 2048  # a call to a shard costs as much as ten of its rows
_SMALL = 1 << 16  # rows; of fewer an order is kept, for which index_shuffle takes long: 4 ms a row of seven
_SHUFFLE_ROWS = 3  # what a random stream is for; 1 and 2 are the pipeline's
_WHOLE = 1 << 40  # weights are whole numbers, so that late steps are as exact as early ones


@dataclasses.dataclass(frozen=True)
class Cache:
    """A packed cache that is whole; `manifest` is the folder's own."""

    folder: str
    manifest: Mapping[str, Any]
    parts: tuple[Part, ...]
    vocabulary: Vocabulary

    @property
    def rates(self) -> tuple[float, ...]:
        """Of the parts, as shares of the examples."""
        return tuple(self.manifest["rates"])

    @property
    def lengths(self) -> dict[str, int]:
        return dict(self.manifest["lengths"])

    @property
    def items(self) -> str | None:
        """The folder of what a run that recommends knows."""
        return str(epath.Path(self.folder) / ITEMS) if "items_sha256" in self.manifest else None

    @functools.cached_property
    def number(self) -> int:
        """Tells this cache's order of rows from another's, in a checkpoint's place in the data."""
        described = json.dumps([self.manifest["parts"], self.manifest["rates"]], sort_keys=True)
        return int(hashlib.sha256(described.encode()).hexdigest()[:8], 16)


def open_cache(folder: epath.PathLike) -> Cache:
    """Raises UserError where anything is missing, damaged or of another cache: a part, a shard, the vocabulary."""
    try:
        manifest = read_json(epath.Path(folder) / MANIFEST)
        parts = tuple(read_part(folder, task) for task in manifest["parts"])
        vocabulary = vocabularies.load(epath.Path(folder) / VOCABULARY)
        for part in parts:
            if part.sha256 != manifest["parts"][part.task]:
                raise UserError(f"part {part.task!r} is not the one that {str(folder)!r} was written with")
        if vocabulary.sha256 != manifest["vocabulary"]["sha256"]:
            raise UserError(f"the vocabulary in {str(folder)!r} is not the one that its parts were made with")
    except UserError as error:
        raise UserError(f"CACHE_DIR: {error}; write it again: python -m t5x_lite.cache") from None
    return Cache(str(folder), manifest, parts, vocabulary)


class CacheIterator:
    """Endless batches, as TrainIterator's, of `own_rows` of each global batch (default: all).

    Its place in the data is the number of a row, so that a run may go on with another batch size.
    """

    def __init__(self, cache: Cache, *, batch_size: int, seed: int, own_rows: Sequence[int] | None = None):
        self._cache = cache
        self._batch_size = batch_size
        self._own = range(batch_size) if own_rows is None else [int(row) for row in own_rows]
        self._share = len(self._own)
        self._rows = _Rows(cache, "train")
        self._weights = _row_weights(cache)
        self._order = _Order(self._rows.parts, self._weights, seed)
        self._go_to(0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._ahead:
            firsts = (self._row + n * self._batch_size for n in range(self._steps_at_once))
            places = [first + row for first in firsts for row in self._own]
            records = self._rows.read([self._order[place] for place in places])
            self._ahead.extend(records[i : i + self._share] for i in range(0, len(records), self._share))
            self._steps_at_once = min(2 * self._steps_at_once, max(1, _ROWS_READ_AT_ONCE // self._share))
        self._row += self._batch_size
        return _batch(self._cache, self._ahead.popleft())

    def _go_to(self, row: int) -> None:
        self._row = row
        self._ahead: collections.deque[Sequence[bytes]] = collections.deque()
        self._steps_at_once = 1  # so that the first batch is there at once

    def state(self) -> dict[str, int]:
        """Where the next batch begins."""
        return {"row": self._row, "cache": self._cache.number}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes to where `state` was taken. Raises UserError for a place in other data."""
        if state.get("cache") != self._cache.number:
            was = "another cache" if "cache" in state else "no cache"
            raise UserError(
                f"CACHE_DIR {self._cache.folder!r}: the checkpoint was trained from {was}, so its place in the data "
                "means nothing here; set CACHE_DIR as it was, or start anew from its weights (INITIAL_CHECKPOINT_PATH)"
            )
        self._go_to(state["row"])

    def fill(self) -> dict[str, float]:
        """On average over all rows to come: the share of positions that are not padding, and examples a row."""
        shares = np.array(self._weights) / sum(self._weights)
        parts, lengths = self._cache.parts, self._cache.lengths

        def a_row(count: str) -> float:
            means = [part.total("train", count) / part.total("train", "rows") for part in parts]
            return float(shares @ means)

        return {
            "inputs": a_row("input_tokens") / lengths["inputs"],
            "targets": a_row("target_tokens") / lengths["targets"],
            "examples_per_row": a_row("examples"),
        }


def held_out_batches(
    cache: Cache, split: str, most_examples: int, batch_size: int, own_rows: Sequence[int] | None = None
) -> Iterator[Batch]:
    """`own_rows` (default: all) of batches that have rows of a split once, of about `most_examples` of each task.

    The rows are evenly drawn, the same ones every time. The last batch is filled up with rows that weigh nothing.
    """
    own = np.arange(batch_size) if own_rows is None else np.asarray(own_rows)
    rows = _Rows(cache, split)
    keys: list[int] = []
    for part, numbers in zip(rows.having, rows.parts, strict=True):
        wanted = -(-most_examples * len(numbers) // part.total(split, "examples"))
        keys += np.random.Generator(np.random.Philox(len(numbers))).permutation(numbers)[:wanted].tolist()
    for first in range(0, len(keys), batch_size):
        wanted = keys[first : first + batch_size]
        filled = wanted + wanted[:1] * (batch_size - len(wanted))
        batch = _batch(cache, rows.read([filled[row] for row in own]))
        batch["decoder_loss_weights"][own >= len(wanted)] = 0
        yield batch


@dataclasses.dataclass(frozen=True)
class _File:
    """A shard as Grain takes it, which then opens no file to know its rows."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class _Rows:
    """The rows of a split of all parts that have it, numbered through; `parts` has the numbers of each part's."""

    def __init__(self, cache: Cache, split: str):
        self._cache = cache
        self.having = [part for part in cache.parts if split in part.splits]
        ends = [0, *itertools.accumulate(part.total(split, "rows") for part in self.having)]
        self.parts = [range(*edges) for edges in itertools.pairwise(ends)]
        files = [_file(cache, part, shard) for part in self.having for shard in part.splits[split]]
        self._source = grain.sources.ArrayRecordDataSource(files)

    def read(self, numbers: Sequence[int]) -> Sequence[bytes]:
        """Raises UserError for a shard that is damaged; several are read at a time."""
        try:
            return self._source.__getitems__(numbers)
        except Exception as error:  # ArrayRecord has no kind of its own
            raise UserError(f"CACHE_DIR {self._cache.folder!r}: a shard cannot be read: {first_words(error)}") from None


def _file(cache: Cache, part: Part, shard: Shard) -> _File:
    return _File(str(epath.Path(cache.folder) / part.task / shard.name), 0, shard.rows, shard.rows)


def _batch(cache: Cache, records: Sequence[bytes]) -> Batch:
    inputs, targets = decode_rows(records, cache.manifest["dtype"])
    return features(inputs, targets, cache.lengths, cache.manifest["pack"])


def _row_weights(cache: Cache) -> list[int]:
    """How often a row is of each part: so that examples, of which a row of each task has a number of its own, come at
    the rates of the mixture."""
    wanted = [
        rate * part.total("train", "rows") / part.total("train", "examples")
        for part, rate in zip(cache.parts, cache.rates, strict=True)
    ]
    return [max(1, round(weight / sum(wanted) * _WHOLE)) for weight in wanted]


class _Order:
    """The numbers of the rows to come, by their place: any of them at the same cost, however late.

    Grain's index_shuffle and reader are behind this, and not its datasets: their mixture rounds weights to hundredths
    of the least and looks at every part for every row, and their layers double the time that a row takes.
    """

    def __init__(self, parts: Sequence[range], weights: Sequence[int], seed: int):
        self._turns = _Turns(weights)
        self._epochs = [_Epochs(rows, (seed, number)) for number, rows in enumerate(parts)]

    def __getitem__(self, place: int) -> int:
        part, own = self._turns[place]
        return self._epochs[part][own]


class _Epochs:
    """A part's rows over and over, each time in another order."""

    def __init__(self, rows: range, stream: Sequence[int]):
        self._rows = rows
        self._stream = stream
        self._epoch = -1

    def __getitem__(self, own: int) -> int:
        epoch, place = divmod(own, len(self._rows))
        if epoch != self._epoch:
            self._enter(epoch)
        if self._order is not None:
            return self._rows[int(self._order[place])]
        return self._rows[index_shuffle(place, max_index=len(self._rows) - 1, seed=self._seed, rounds=4)]

    def _enter(self, epoch: int) -> None:
        seeds = np.random.SeedSequence([*self._stream, _SHUFFLE_ROWS, epoch])
        small = len(self._rows) < _SMALL
        self._order = np.random.Generator(np.random.Philox(seeds)).permutation(len(self._rows)) if small else None
        self._seed = int(seeds.generate_state(1)[0])
        self._epoch = epoch


class _Turns:
    """Which part's turn it is, and which of its own turns: each gets its share of every stretch, almost exactly.

    Parts stand at the leaves of a tree; at every fork, of k turns the left side has floor(k * its weight / both's).
    """

    def __init__(self, weights: Sequence[int]):
        self._edges = [0, *itertools.accumulate(weights)]

    def __getitem__(self, index: int) -> tuple[int, int]:
        edges = self._edges
        low, high = 0, len(edges) - 1
        while high - low > 1:
            both = edges[high] - edges[low]
            fork = bisect.bisect(edges, edges[low] + both // 2, low + 1, high - 1)
            left = edges[fork] - edges[low]
            before = index * left // both
            if (index + 1) * left // both > before:
                high, index = fork, before
            else:
                low, index = fork, index - before
        return low, index
