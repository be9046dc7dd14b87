"""The items that can be recommended: their original ids, titles and attributes; and the items that a filter leaves."""

import csv
import dataclasses
import functools
import io
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int

from t5x_lite.errors import UserError, nearest
from t5x_lite.files import write_whole

ITEMS_FILE = "items.csv"
SEVERAL = "|"  # between the values of one attribute

_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_FILTER = re.compile(r"\s*([^<>=!]*?)\s*([<>=!]+)\s*(.*?)\s*")


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """N items; an item's number is its place here, and the strings of `ids` are what the user's own files call it.

    `attributes` have for each item its values: several genres, one year, or () where nothing is known. UserError for
    an id that is there twice, and for columns that do not fit.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    attributes: Mapping[str, tuple[tuple[str, ...], ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in {"titles": self.titles, **self.attributes}.items():
            if len(column) != len(self.ids):
                raise UserError(f"{name}: {len(column)} for {len(self.ids)} items; give each item its own")
        wrong = next((id for id in self.ids if not id or id != id.strip()), None)
        if wrong is not None:
            raise UserError(f"item {wrong!r}: an id is not empty, and has no blanks around it")
        if len(self.number_of) != len(self.ids):
            twice = next(id for number, id in enumerate(self.ids) if self.number_of[id] != number)
            raise UserError(f"item {twice!r} is there twice; an id names one item")

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def number_of(self) -> dict[str, int]:
        """Ids to numbers."""
        return {id: number for number, id in enumerate(self.ids)}

    def take(self, numbers: Iterable[int]) -> "Catalogue":
        """The catalogue of these items, in this order."""
        numbers = [int(number) for number in numbers]

        def taken(column: Sequence) -> tuple:
            return tuple(column[number] for number in numbers)

        attributes = {name: taken(column) for name, column in self.attributes.items()}
        return Catalogue(taken(self.ids), taken(self.titles), attributes)

    def matching(self, filters: Sequence[str]) -> Int[np.ndarray, "M"]:
        """Numbers of the items, ascending, for which all filters hold, such as `genre=Comedy` and `year>=1990`.

        `=` holds where any value of the item is this one, whatever its case, and `!=` where none is; `<`, `<=`, `>`
        and `>=` compare values that are numbers, and do not hold where there are none. UserError for a filter with an
        attribute or value that no item has.
        """
        remaining = np.ones(len(self), bool)
        for text in filters:
            remaining &= self._matches(text)
        return np.flatnonzero(remaining)

    def _matches(self, text: str) -> np.ndarray:
        parts = _FILTER.fullmatch(text)
        if not parts:
            raise UserError(f"filter {text!r}: no operator; write it as genre=Comedy or year>=1990")
        attribute, sign, value = parts.groups()
        if sign not in ("=", "!=", *_COMPARISONS):
            raise UserError(f"filter {text!r}: no operator {sign!r}; there are =, !=, {', '.join(_COMPARISONS)}")
        items_with = self._items_with(attribute, text)
        holds = np.zeros(len(self), bool)
        for items in _chosen(items_with, attribute, sign, value, text):
            holds[items] = True
        return ~holds if sign == "!=" else holds

    def _items_with(self, attribute: str, text: str) -> dict[str, np.ndarray]:
        names = {name.casefold(): name for name in self.attributes}
        name = names.get(attribute.casefold())
        if name is None:
            known = f"; there are {', '.join(self.attributes)}" if self.attributes else "; items have none"
            raise UserError(f"filter {text!r}: no attribute {attribute!r}{nearest(attribute, names.values())}{known}")
        if name not in self._values:
            items: dict[str, list[int]] = {}
            for number, values in enumerate(self.attributes[name]):
                for value in values:
                    items.setdefault(value, []).append(number)
            self._values[name] = {value: np.array(numbers) for value, numbers in items.items()}
        return self._values[name]

    @functools.cached_property
    def _values(self) -> dict[str, dict[str, np.ndarray]]:
        """Of each attribute that was asked for, its values and the items that have them."""
        return {}

    def save(self, folder: str | Path) -> None:
        """Writes items.csv, whole or not at all. UserError for a value that cannot be written so that it is read."""
        for name, column in self.attributes.items():
            cells = (value for values in column for value in values)
            wrong = next((value for value in cells if split_values(value, SEVERAL) != (value,)), None)
            if wrong is not None or name in ("item", "title"):
                what = f"attribute {name!r}" + ("" if wrong is None else f", value {wrong!r}")
                raise UserError(f"{what}: {SEVERAL!r}, outer blanks, and the names item and title mean something else")
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = io.StringIO(newline="")
        lines = csv.writer(file)
        lines.writerow(["item", "title", *self.attributes])
        for id, title, *attributes in zip(self.ids, self.titles, *self.attributes.values(), strict=True):
            lines.writerow([id, title, *map(SEVERAL.join, attributes)])
        write_whole(folder / ITEMS_FILE, file.getvalue().encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Catalogue":
        """Reads items.csv of a folder, as `read` does."""
        return cls.read(Path(folder) / ITEMS_FILE)

    @classmethod
    def read(cls, path: str | Path) -> "Catalogue":
        """Reads a CSV file: a header with item, title and any attributes. UserError with file and line."""
        path = Path(path)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets write a byte order mark
                lines = csv.reader(file)
                header = [name.strip() for name in next(lines, [])]
                for name in ("item", "title"):
                    if name not in header:
                        raise UserError(f"{path}:1: no column {name!r}{nearest(name, header)}; name it in the header")
                attributes = [name for name in header if name not in ("item", "title")]
                return cls.from_rows(path, attributes, _rows(path, header, attributes, lines))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read as UTF-8 CSV ({error}); write the file anew") from None

    @classmethod
    def from_rows(cls, path: Path, attributes: Sequence[str], rows: Iterable["ItemRow"]) -> "Catalogue":
        """The catalogue of a file's rows, with their values of `attributes`. UserError for an id that is no name."""
        items: dict[str, ItemRow] = {}
        for row in rows:
            if not row.id or row.id in items:
                what = "there twice" if row.id else "empty"
                raise UserError(f"{path}:{row.line}: item {row.id!r} is {what}; an id names one item")
            items[row.id] = row
        columns = zip(*(row.values for row in items.values()), strict=True) if items else [()] * len(attributes)
        titles = tuple(row.title for row in items.values())
        return cls(tuple(items), titles, dict(zip(attributes, columns, strict=True)))


class ItemRow(NamedTuple):
    """One item as line `line` of a file has it."""

    line: int
    id: str
    title: str
    values: Sequence[tuple[str, ...]]


def _rows(path: Path, header: list[str], attributes: list[str], lines: Iterator[list[str]]) -> Iterator[ItemRow]:
    places = [header.index(name) for name in attributes]
    for cells in filter(None, lines):
        line = lines.line_num
        if len(cells) != len(header):
            raise UserError(
                f"{path}:{line}: {len(cells)} fields where the header has {len(header)} ({', '.join(header)})"
            )
        values = [split_values(cells[place], SEVERAL) for place in places]
        yield ItemRow(line, cells[header.index("item")].strip(), cells[header.index("title")], values)


def split_values(cell: str, separator: str | None) -> tuple[str, ...]:
    """The values in a cell of a file, without blanks around them and without empty ones."""
    return tuple(value.strip() for value in cell.split(separator) if value.strip())


def _chosen(
    items_with: Mapping[str, np.ndarray], attribute: str, sign: str, value: str, text: str
) -> list[Int[np.ndarray, "M"]]:
    """Items of the values that the filter `text` speaks of."""
    if sign in _COMPARISONS:
        numbers = {each: number for each in items_with if (number := _number(each)) is not None}
        bound = _number(value)
        if bound is None or not numbers:
            what = f"{value!r} is no number" if bound is None else f"no {attribute} is a number"
            raise UserError(f"filter {text!r}: {what}; compare others by = and !=")
        compare: Callable[[float, float], bool] = _COMPARISONS[sign]
        return [items_with[each] for each, number in numbers.items() if compare(number, bound)]
    found = [items for each, items in items_with.items() if each.casefold() == value.casefold()]
    if not found:
        close = nearest(value.casefold(), {each.casefold() for each in items_with})
        raise UserError(f"filter {text!r}: no item has {attribute} {value!r}{close}")
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
