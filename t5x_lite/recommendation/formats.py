"""Opens a dataset by what lies in its place: one's own CSV, MovieLens, RecBole's atomic files, sequences."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from t5x_lite.errors import UserError, nearest
from t5x_lite.recommendation import movielens
from t5x_lite.recommendation.atomic_files import read_atomic_files
from t5x_lite.recommendation.catalogue import ITEMS_FILE, Catalogue
from t5x_lite.recommendation.interactions import Dataset, Interactions
from t5x_lite.recommendation.ml_100k import NAME as EMBEDDED
from t5x_lite.recommendation.ml_100k import ml_100k
from t5x_lite.recommendation.tables import Layout, Names, read_interactions

_MOST_SHOWN = 5  # of the files that were found instead


def open_dataset(where: str | Path) -> Dataset:
    """The dataset `ml-100k`, which comes from the package index, or the one in a folder or file.

    A folder has one of
      interactions.csv (user,item,timestamp, and rating or not) and items.csv (item,title and any attributes, with `|`
          between several values of one);
      u.data and u.item, ratings.dat and movies.dat, or ratings.csv and movies.csv: MovieLens;
      NAME.inter, and NAME.item or not: RecBole's atomic files.
    A .txt file has a user and then the user's items, in order, on each line. Raises UserError with file and line.
    """
    if str(where) == EMBEDDED:
        return ml_100k()
    path = Path(where)
    if path.suffix == ".txt" and path.is_file():
        return _read_sequences(path)
    if path.suffix == ".inter" and path.is_file():
        return read_atomic_files(path, path.stem)
    if path.name in _FOLDERS and path.is_file():
        path = path.parent
    if not path.is_dir():
        raise UserError(
            f"no dataset {str(where)!r}: {'no such kind of file' if path.exists() else 'no such folder or file'}; "
            f"give {EMBEDDED!r}, {_kinds()}"
        )
    for interactions, (items, read) in _FOLDERS.items():
        if (path / interactions).exists():
            if not (path / items).exists():
                raise UserError(f"{path} has {interactions} but no {items}; put it beside")
            return read(path)
    atomic = sorted(path.glob("*.inter"))
    if len(atomic) > 1:
        raise UserError(f"{path} has {', '.join(file.name for file in atomic)}; give the path of one of them")
    if atomic:
        return read_atomic_files(atomic[0], atomic[0].stem)
    found = sorted(file.name for file in path.iterdir())
    shown = ", ".join(found[:_MOST_SHOWN]) + (f" and {len(found) - _MOST_SHOWN} more" if found[_MOST_SHOWN:] else "")
    raise UserError(f"{path} has no dataset: give {_kinds()}; it has {shown or 'nothing'}")


def _kinds() -> str:
    pairs = ", ".join(f"{interactions} + {items}" for interactions, (items, _) in _FOLDERS.items())
    return f"a folder with one of {pairs}, NAME.inter + NAME.item, or a .txt file of lines 'user item item ...'"


def _read_own(folder: Path) -> Dataset:
    path = folder / "interactions.csv"
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
    for name in ("user", "item", "timestamp"):
        if name not in header:
            raise UserError(f"{path}:1: no column {name!r}{nearest(name, header)}; name it in the header")
    return read_interactions(path, Layout(header, ",", header=1), folder.resolve().name, Catalogue.load(folder))


def _read_sequences(path: Path) -> Dataset:
    """Time is the place in the line."""
    users, items = Names(), Names()
    lengths, item = [], []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line, cells in enumerate(map(str.split, file), 1):
                if not cells:
                    continue
                user, *taken = cells
                if users.number(user) < len(lengths):
                    raise UserError(f"{path}:{line}: user {user!r} is there twice; all items of a user go on one line")
                item += map(items.number, taken)
                lengths.append(len(taken))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); write the file anew") from None
    if not item:
        raise UserError(f"{path}: no interactions; write lines 'user item item ...'")
    user_ids, user_places = users.in_order()
    item_ids, item_places = items.in_order()
    interactions = Interactions(
        users=user_ids,
        user=np.repeat(user_places, lengths),
        item=item_places[item],
        time=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
    )
    return Dataset(path.stem, Catalogue(item_ids, item_ids), interactions)


# By the file of interactions, the first that is there: the file of items beside it, and what reads the two.
_FOLDERS: dict[str, tuple[str, Callable[[Path], Dataset]]] = {
    "interactions.csv": (ITEMS_FILE, _read_own),
    "u.data": ("u.item", movielens.read_100k),
    "ratings.dat": ("movies.dat", movielens.read_dat),
    "ratings.csv": ("movies.csv", movielens.read_csv),
}
