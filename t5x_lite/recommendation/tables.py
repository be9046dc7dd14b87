"""Files that hold one interaction a line, read as arrays: tens of millions of lines are no work for a loop."""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.interactions import Dataset, Interactions

_CHUNK_BYTES = 1 << 22
_WIDEST_FIELD = 256  # bytes; all fields of a chunk take as much room as the widest
_NEWLINE = ord("\n")
_UNIT = "\x1f"  # separates what was quoted


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a line is cut: the fields' names in order, of which user, item, timestamp and rating are read.

    The others are passed over; the rating may be missing. `header` is the number of lines before the first interaction.
    """

    fields: Sequence[str]
    separator: str
    header: int = 0


class Names:
    """Numbers the strings that it is given, in the order in which they come."""

    def __init__(self):
        self.number_of: dict[str, int] = {}

    def number(self, text: str) -> int:
        if not text:
            raise ValueError("empty")
        return self.number_of.setdefault(text, len(self.number_of))

    def __len__(self) -> int:
        return len(self.number_of)

    def in_order(self) -> tuple[tuple[str, ...], Int32[np.ndarray, "N"]]:
        """The strings, 2 before 10, and for each number its place among them."""
        # By themselves, not by where they came: a dataset does not depend on the order of its file.
        names = sorted(self.number_of, key=lambda name: (len(name), name))
        places = np.empty(len(names), np.int32)
        places[[self.number_of[name] for name in names]] = np.arange(len(names))
        return tuple(names), places


def read_interactions(path: Path, layout: Layout, name: str, catalogue: Catalogue | None = None) -> Dataset:
    """The dataset of a file of interactions; without a catalogue, items are what the file has, and titles their ids.

    Time is a number, cut to an integer. A file has ratings on all of its lines or on none. UserError, with file and
    line, for a line that is not so, and for an item that the catalogue lacks.
    """
    users, items = Names(), Names()
    read = {"user": users.number, "item": items.number, "timestamp": _integer, "rating": _rating}
    types = {"user": np.int32, "item": np.int32, "timestamp": np.int64, "rating": np.float32}
    parts: dict[str, list[np.ndarray]] = {field: [] for field in read if field in layout.fields}
    for lines in _chunks(path, layout):
        starts, ends = _cut(lines, len(layout.fields))
        for field in parts:
            column = layout.fields.index(field)
            values = _converted(lines, field, starts[:, column], ends[:, column], read[field])
            parts[field].append(values.astype(types[field]))
    if not parts["user"]:
        raise UserError(f"{path}: no interactions; write one a line ({layout.separator.join(layout.fields)})")
    columns = {field: np.concatenate(parts.pop(field)) for field in list(parts)}  # each part is let go in its turn
    rating = _all_or_none(columns.get("rating"), path, layout)

    user_ids, user_places = users.in_order()
    if catalogue is None:
        item_ids, item_places = items.in_order()
        catalogue = Catalogue(item_ids, item_ids)
    else:
        item_places = np.array([catalogue.number_of.get(id, -1) for id in items.number_of], np.int32)
    item = item_places[columns["item"]]
    if (item < 0).any():
        row, unknown = int(np.argmax(item < 0)), int((item_places < 0).sum())
        id = list(items.number_of)[columns["item"][row]]
        raise UserError(
            f"{path}:{layout.header + 1 + row}: item {id!r} is not in the catalogue ({unknown} such items); "
            "add them to the file of items, or delete their interactions"
        )
    interactions = Interactions(user_ids, user_places[columns["user"]], item, columns["timestamp"], rating)
    return Dataset(name, catalogue, interactions)


class _Lines(NamedTuple):
    """R whole lines of a file, and what separates their fields."""

    path: Path
    first: int
    bytes: UInt8[np.ndarray, "S"]
    separator: str

    def where(self, row: int) -> str:
        return f"{self.path}:{self.first + int(row)}"


def _chunks(path: Path, layout: Layout) -> Iterator[_Lines]:
    line = 1 + layout.header
    try:
        with path.open("rb") as file:
            for _ in range(layout.header):
                file.readline()
            while text := file.read(_CHUNK_BYTES) + file.readline():
                text = text.replace(b"\r\n", b"\n")
                count = text.count(b"\n")
                separator = layout.separator
                if separator == "," and b'"' in text:
                    rows = csv.reader(io.StringIO(text.decode()))
                    text, separator = "\n".join(map(_UNIT.join, rows)).encode(), _UNIT
                if len(separator) > 1:
                    text, separator = text.replace(separator.encode(), _UNIT.encode()), _UNIT
                if file.tell() == path.stat().st_size:
                    text = text.rstrip(b"\n")
                if text:
                    yield _Lines(path, line, np.frombuffer(text.removesuffix(b"\n") + b"\n", np.uint8), separator)
                line += count
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); write the file anew") from None


def _cut(lines: _Lines, fields: int) -> tuple[Int[np.ndarray, "R F"], Int[np.ndarray, "R F"]]:
    """Where each line's fields start and end."""
    ends = np.flatnonzero((lines.bytes == ord(lines.separator)) | (lines.bytes == _NEWLINE))
    counts = np.diff(np.flatnonzero(lines.bytes[ends] == _NEWLINE), prepend=-1)
    if (counts != fields).any():
        row = np.argmax(counts != fields)
        raise UserError(f"{lines.where(row)}: {counts[row]} fields, not {fields}; correct the line or delete it")
    starts = np.append(0, ends[:-1] + 1)
    return starts.reshape(-1, fields), ends.reshape(-1, fields)


def _converted(
    lines: _Lines,
    field: str,
    start: Int[np.ndarray, "R"],
    end: Int[np.ndarray, "R"],
    convert: Callable[[str], float],
) -> np.ndarray:
    """The texts between `start` and `end` as numbers; each distinct text is converted once."""
    length = end - start
    width = int(length.max())
    if width > _WIDEST_FIELD:
        where = lines.where(np.argmax(length))
        raise UserError(f"{where}: {field} of {width} bytes; at most {_WIDEST_FIELD} are read")
    room = max(width, 8)
    letters = np.zeros((len(start), room), np.uint8)
    for place in range(width):
        inside = place < length
        letters[inside, place] = lines.bytes[start[inside] + place]
    # Eight bytes are sorted as one integer, several times faster than as text.
    texts, rows = np.unique(letters.view(np.uint64 if room == 8 else f"S{room}").ravel(), return_inverse=True)
    values = []
    for number, text in enumerate(texts.view(f"S{room}").tolist()):
        try:
            values.append(convert(text.decode().strip()))
        except (ValueError, OverflowError):  # UnicodeDecodeError is a ValueError
            where, shown = lines.where(np.argmax(rows == number)), text.decode(errors="replace")
            raise UserError(f"{where}: {field} {shown!r} cannot be read; correct the line or delete it") from None
    return np.array(values)[rows]


def _integer(text: str) -> int:
    return int(text) if text.isdecimal() else int(float(text))


def _rating(text: str) -> float:
    number = float(text or "nan")
    if text and not np.isfinite(number):
        raise ValueError(text)
    return number


def _all_or_none(rating: np.ndarray | None, path: Path, layout: Layout) -> np.ndarray | None:
    if rating is None or not (missing := np.isnan(rating)).any():
        return rating
    if not missing.all():
        line = layout.header + 1 + int(np.argmax(missing))
        raise UserError(f"{path}:{line}: no rating, and other lines have one; rate all interactions or none")
    return None
