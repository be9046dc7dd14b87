"""Where rows come from: Python, files, TensorFlow Datasets. A row is a dict of named fields."""

import csv
import functools
import glob
import hashlib
import inspect
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError, nearest

Row = Mapping[str, Any]


class Source:
    """Rows in named splits. Subclasses read them in a fixed order; sharding and shuffling are the same for all.

    Of a `costly` source no row is read before training or evaluation asks for it: it may have to be downloaded.
    """

    costly = False

    def __init__(self, splits: Iterable[str]):
        self.splits = tuple(splits)

    def read(self, split: str) -> Iterable[Row]:
        """All rows of a split, in the same order each time."""
        raise NotImplementedError(type(self).__name__)

    def rows(self, split: str, shard: tuple[int, int] = (0, 1), seed: int | None = None) -> Iterator[Row]:
        """Every `shard[1]`-th row from `shard[0]` on; in an order drawn from `seed` if there is one.

        The shuffle comes first, so that the shards of one seed are parts of one order. UserError for an unknown split.
        """
        if split not in self.splits:
            raise UserError(f"no split {split!r}{nearest(split, self.splits)}; there are {', '.join(self.splits)}")
        rows: Iterable[Row] = self.read(split)
        if seed is not None:
            rows = list(rows)
            random.Random(seed).shuffle(rows)
        index, count = shard
        return (row for number, row in enumerate(rows) if number % count == index)

    def num_rows(self, split: str) -> int:
        return sum(1 for _ in self.rows(split))

    def identity(self, split: str) -> str:
        """A hash that tells a split's rows from others: of the rows, or of what a costly source would ask for."""
        if self.costly:
            return _digest([self._asks_for(split)])
        return _digest(self.rows(split))

    def _asks_for(self, split: str) -> Any:
        return [type(self).__qualname__, split]


class Rows(Source):
    """Rows made in Python: for each split a list of dicts, or a function that returns one."""

    def __init__(self, splits: Mapping[str, Sequence[Row] | Callable[[], Iterable[Row]]], costly: bool = False):
        super().__init__(splits)
        self._rows = splits
        self.costly = costly

    def read(self, split: str) -> Iterable[Row]:
        rows = self._rows[split]
        return rows() if callable(rows) else rows

    def _asks_for(self, split: str) -> Any:
        rows = self._rows[split]
        return code(rows) if callable(rows) else list(rows)


class Files(Source):
    """Rows of .jsonl, .csv and .tsv files: for each split a path or glob; files in sorted order.

    CSV and TSV need a header line. Errors name file and line.
    """

    def __init__(self, splits: Mapping[str, str | Path]):
        super().__init__(splits)
        self._patterns = {split: str(pattern) for split, pattern in splits.items()}

    def read(self, split: str) -> Iterable[Row]:
        for path in self._paths(split):
            yield from _read_file(path)

    def _paths(self, split: str) -> list[str]:
        paths = sorted(glob.glob(self._patterns[split]))
        if not paths:
            raise UserError(f"split {split!r}: no file {self._patterns[split]!r}; give a path or glob that exists")
        return paths

    def identity(self, split: str) -> str:
        """Of the files' bytes, which is sooner done than reading them as rows."""
        digests = []
        for path in self._paths(split):
            with open(path, "rb") as file:
                digests.append([Path(path).name, hashlib.file_digest(file, "sha256").hexdigest()])
        return _digest(digests)


def _read_file(path: str) -> Iterator[Row]:
    suffix = Path(path).suffix
    if suffix not in (".jsonl", ".csv", ".tsv"):
        raise UserError(f"{path}: files of rows are .jsonl, .csv or .tsv, not {suffix or 'without suffix'}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets write a byte order mark
            if suffix == ".jsonl":
                yield from _json_lines(path, file)
            else:
                yield from _separated(path, file, "\t" if suffix == ".tsv" else ",")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 {suffix} ({error}); write the file anew") from None


def _json_lines(path: str, file: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a {type(row).__name__}, not a JSON object with named fields")
        yield row


def _separated(path: str, file: Iterable[str], delimiter: str) -> Iterator[Row]:
    lines = csv.reader(file, delimiter=delimiter)
    header = next(lines, None)
    if header is None:
        raise UserError(f"{path}: empty; its first line must name the fields")
    for cells in lines:
        if cells and len(cells) != len(header):
            raise UserError(
                f"{path}:{lines.line_num}: {len(cells)} fields where the header has {len(header)} ({', '.join(header)})"
            )
        if cells:
            yield dict(zip(header, cells, strict=True))


class Tfds(Source):
    """Rows of a TensorFlow Datasets builder; nothing is imported or downloaded before the first row is read.

    `splits` maps our split names to TFDS's; `fields` turns an example (numpy values) into a row.
    """

    costly = True

    def __init__(self, name: str, splits: Mapping[str, str], fields: Callable[[Mapping[str, Any]], Row]):
        super().__init__(splits)
        self.name = name
        self._splits = splits
        self._fields = fields

    def read(self, split: str) -> Iterable[Row]:
        """Raises UserError where the set can neither be found nor downloaded."""
        import tensorflow_datasets as tfds

        dataset = self._prepared().as_dataset(split=self._splits[split], shuffle_files=False)
        return (self._fields(example) for example in tfds.as_numpy(dataset))

    def _asks_for(self, split: str) -> Any:
        return [self.name, self._splits[split], code(self._fields)]

    def num_rows(self, split: str) -> int:
        """From the builder's metadata, without reading the rows."""
        return self._prepared().info.splits[self._splits[split]].num_examples

    def _prepared(self):
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(self.name)
            builder.download_and_prepare()
        except Exception as error:  # whatever a builder, its downloader or its archive raises
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"TFDS set {self.name!r} cannot be prepared: {type(error).__name__}: {reason}; it needs a network "
                "once, or TFDS_DATA_DIR with a prepared copy"
            ) from None
        return builder


def code(function: Callable) -> str:
    """The text of a function, else its name: what tells it from an older one that rows were made with."""
    if isinstance(function, functools.partial):
        return f"{code(function.func)} {function.args} {function.keywords}"
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", type(function).__qualname__)


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, default=_plain).encode() + b"\n")
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """What JSON has no word for: arrays and numbers of numpy, and other collections."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value.tolist() if hasattr(value, "tolist") else [*value] if isinstance(value, Iterable) else str(value)
