"""MovieLens folders as GroupLens ships them: 100K, 1M and 10M, latest-small, 25M and 32M."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue, ItemRow
from t5x_lite.recommendation.interactions import Dataset
from t5x_lite.recommendation.tables import Layout, read_interactions

UNKNOWN_GENRES = ("unknown", "(no genres listed)")

_FIELDS = ("user", "item", "rating", "timestamp")
_GENRES_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)$")  # a series has two, or one and a dash


def year_of(title: str) -> tuple[str, ...]:
    """The year in parentheses at a title's end, or ()."""
    return tuple(_YEAR.findall(title))


def read_100k(folder: Path) -> Dataset:
    """u.data and u.item, which marks each of 19 genres by 0 or 1."""

    def rows(path: Path) -> Iterator[tuple[int, list[str]]]:
        for line, cells in _cells(path, "|", 5 + len(_GENRES_100K)):
            genres = [genre for genre, mark in zip(_GENRES_100K, cells[5:], strict=True) if mark == "1"]
            yield line, [*cells[:2], "|".join(genres)]

    path = folder / "u.item"
    return read_interactions(folder / "u.data", Layout(_FIELDS, "\t"), folder.name, _catalogue(path, rows(path)))


def read_dat(folder: Path) -> Dataset:
    """ratings.dat and movies.dat."""
    path = folder / "movies.dat"
    catalogue = _catalogue(path, _cells(path, "::", 3))
    return read_interactions(folder / "ratings.dat", Layout(_FIELDS, "::"), folder.name, catalogue)


def read_csv(folder: Path) -> Dataset:
    """ratings.csv and movies.csv."""
    path = folder / "movies.csv"
    cells = _cells(path, ",", 3)
    next(cells, None)  # movieId,title,genres
    return read_interactions(
        folder / "ratings.csv", Layout(_FIELDS, ",", header=1), folder.name, _catalogue(path, cells)
    )


def _cells(path: Path, separator: str, fields: int) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file of movies, with their numbers."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); copy the folder anew") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # 100K and 1M
    lines = [line.rstrip("\r") for line in text.split("\n")]
    rows = csv.reader(lines) if separator == "," else (line.split(separator) if line else [] for line in lines)
    for number, cells in enumerate(rows, 1):
        if not cells:
            continue
        if len(cells) != fields:
            raise UserError(f"{path}:{number}: {len(cells)} fields, not {fields}; copy the folder anew")
        yield number, cells


def _catalogue(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Catalogue:
    """Of rows with an id, a title and genres."""

    def items() -> Iterator[ItemRow]:
        for line, (id, title, genres) in rows:
            title = " ".join(title.split())
            known = tuple(genre for genre in genres.split("|") if genre and genre not in UNKNOWN_GENRES)
            yield ItemRow(line, id, title, [known, year_of(title)])

    return Catalogue.from_rows(path, ["genre", "year"], items())
