"""RecBole's atomic files (arXiv:2011.01731): tab-separated, each column's name in the header with its type."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from t5x_lite.errors import UserError, nearest
from t5x_lite.recommendation.catalogue import Catalogue, ItemRow, split_values
from t5x_lite.recommendation.interactions import Dataset
from t5x_lite.recommendation.movielens import UNKNOWN_GENRES, year_of
from t5x_lite.recommendation.tables import Layout, read_interactions

_OURS = {"user_id": "user", "item_id": "item", "class": "genre", "release_year": "year"}


def read_atomic_files(interactions: Path, name: str) -> Dataset:
    """The dataset of a .inter file and the .item file beside it, if there is one; else titles are ids.

    A column named *title* is the title, and the year is appended to it where it has none; token sequences have one
    value a word. UserError with file and line for what is not so.
    """
    with interactions.open(encoding="utf-8-sig", errors="replace") as file:
        fields, _ = _header(interactions, file.readline(), ("user", "item", "timestamp"))
    items = interactions.with_suffix(".item")
    catalogue = _catalogue(items) if items.exists() else None
    return read_interactions(interactions, Layout(fields, "\t", header=1), name, catalogue)


def _header(path: Path, line: str, needed: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of the columns, by our names for them, and their types."""
    names, _, types = zip(*(cell.partition(":") for cell in line.rstrip("\r\n").split("\t")), strict=True)
    ours = [_OURS.get(name, name) for name in names]
    for field in needed:
        if field not in ours:
            theirs = next((name for name, our in _OURS.items() if our == field), field)
            raise UserError(f"{path}:1: no column {theirs!r}{nearest(theirs, names)}; RecBole's header is name:type")
    return ours, list(types)


def _catalogue(path: Path) -> Catalogue:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); write the file anew") from None
    names, types = _header(path, lines[0], ("item",))
    title = next((place for place, name in enumerate(names) if "title" in name), names.index("item"))
    attributes = [place for place, name in enumerate(names) if place != title and name != "item"]
    rows = _rows(path, lines, names, types, title, attributes)
    return Catalogue.from_rows(path, [names[place] for place in attributes], rows)


def _rows(
    path: Path, lines: Sequence[str], names: Sequence[str], types: Sequence[str], title: int, attributes: Sequence[int]
) -> Iterator[ItemRow]:
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(names):
            raise UserError(f"{path}:{number}: {len(cells)} fields where the header has {len(names)}")
        values = {
            names[place]: split_values(cells[place], None if types[place] == "token_seq" else "\t")
            for place in attributes
        }
        shown = " ".join(cells[title].split())
        if "year" in values:  # ML-100K has one that is "V", after a title with the year in it
            years = [year for year in values["year"] if re.fullmatch(r"\d{4}", year)]
            values["year"] = tuple(years) or year_of(shown)
            if years and not year_of(shown):
                shown += f" ({years[0]})"
        if "genre" in values:
            values["genre"] = tuple(genre for genre in values["genre"] if genre not in UNKNOWN_GENRES)
        yield ItemRow(number, cells[names.index("item")], shown, list(values.values()))
