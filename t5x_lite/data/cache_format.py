"""The folder of a packed cache: what is where, and the bytes of a row.

DIR/TASK/SPLIT-00000-of-000NN.array_record   packed rows of one task, one a record
DIR/TASK/manifest.json                       what they were made from, and every shard's size; written last
DIR/manifest.json                            the mixture: its tasks and rates, the vocabulary; written after the parts
DIR/vocabulary, DIR/items                    as in a run folder

A record is unsigned or signed little-endian integers of the part's dtype: the number of examples, the number of input
tokens, the length of each example's inputs, of each one's targets, all the inputs, all the targets.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from t5x_lite.data.features import Example, Runs
from t5x_lite.errors import UserError
from t5x_lite.run_folder import nearest_folder

FORMAT = 1
MANIFEST = "manifest.json"
VOCABULARY, ITEMS = "vocabulary", "items"  # folders
_UNSIGNED = 1 << 16  # ids and lengths below this take two bytes


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of rows."""

    name: str
    rows: int
    examples: int
    input_tokens: int
    target_tokens: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Part:
    """One task's rows; `made_from` is all that they follow from, so a part with another one is stale."""

    task: str
    made_from: Mapping[str, Any]
    splits: Mapping[str, Sequence[Shard]]

    @property
    def sha256(self) -> str:
        """Of the manifest, which has the hash of every shard."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def total(self, split: str, count: str) -> int:
        """The sum over a split's shards of "rows", "examples", "input_tokens" or "target_tokens"."""
        return sum(getattr(shard, count) for shard in self.splits[split])


def dtype_of(vocabulary_size: int, lengths: Mapping[str, int]) -> str:
    return "<u2" if max(vocabulary_size, *lengths.values()) < _UNSIGNED else "<i4"


def encode_row(examples: Sequence[Example], dtype: str) -> bytes:
    lengths = [[len(example[part]) for example in examples] for part in (0, 1)]
    header = np.array([len(examples), sum(lengths[0]), *lengths[0], *lengths[1]], dtype)
    ids = [example[part] for part in (0, 1) for example in examples]
    return header.tobytes() + np.concatenate(ids).astype(dtype).tobytes()


def decode_rows(records: Sequence[bytes], dtype: str) -> tuple[Runs, Runs]:
    """Inputs and targets of these rows, as `features` takes them."""
    counts, pieces = [], ([], [], [], [])
    for record in records:
        words = np.frombuffer(record, dtype)
        count, inputs = int(words[0]), int(words[1])
        counts.append(count)
        edges = itertools.accumulate((2, count, count, inputs))
        for piece, (start, end) in zip(pieces, itertools.pairwise((*edges, len(words))), strict=True):
            piece.append(words[start:end])
    input_lengths, target_lengths, inputs, targets = (np.concatenate(piece).astype(np.int32) for piece in pieces)
    return Runs(inputs, input_lengths, np.array(counts)), Runs(targets, target_lengths, np.array(counts))


def shard_name(split: str, number: int, count: int) -> str:
    return f"{split}-{number:05}-of-{count:05}.array_record"


def write_part(folder: epath.PathLike, part: Part) -> None:
    write_json(epath.Path(folder) / part.task / MANIFEST, {"format": FORMAT, **dataclasses.asdict(part)})


def read_part(folder: epath.PathLike, task: str) -> Part:
    """A task's part, every shard of it there in full size. Raises UserError that says what is missing."""
    where = epath.Path(folder) / task
    if not (where / MANIFEST).exists():
        raise UserError(f"{str(folder)!r} has no whole part {task!r} (no {MANIFEST} in it)")
    found = read_json(where / MANIFEST)
    splits = {split: tuple(Shard(**shard) for shard in shards) for split, shards in found["splits"].items()}
    for shard in itertools.chain.from_iterable(splits.values()):
        path = where / shard.name
        if not path.exists():
            raise UserError(f"part {task!r} lacks its shard {str(path)!r}")
        if (size := path.stat().length) != shard.bytes:
            raise UserError(f"part {task!r}: {str(path)!r} has {size:,} bytes of {shard.bytes:,}")
    return Part(task, found["made_from"], splits)


def read_json(path: epath.Path) -> dict[str, Any]:
    """Raises UserError for what is not there, damaged, or of another version."""
    if not path.exists():
        raise UserError(f"{str(path.parent)!r} is no packed cache (no {path.name} in it){nearest_folder(path.parent)}")
    try:
        found = json.loads(path.read_text())
        version = found["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error!r})") from None
    if version != FORMAT:
        raise UserError(f"{str(path)!r} has format {version}; this version of t5x_lite reads format {FORMAT}")
    return found


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    unfinished.replace(path)
