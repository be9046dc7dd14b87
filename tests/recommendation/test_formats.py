"""One small dataset in every format, and the lines that are wrong."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.recommendation import tables
from t5x_lite.recommendation.formats import open_dataset

# user, item, rating, time; users are numbered 2, 10, and items as the file of items has them: 5, 31, 4.
ROWS = [("10", "31", 4, 881250949), ("2", "5", 3, 978300760), ("10", "4", 5, 881250949), ("10", "5", 1, 9)]
TITLES = ["Règle du jeu, La (1995)", 'Toy "Story" (1995)', "unknown"]


def lines(separator, *header):
    return "".join(f"{line}\n" for line in [*header, *(separator.join(map(str, row)) for row in ROWS)])


def flags(*genres):
    return "|".join("01"[place in genres] for place in range(19))


FILES = {
    "own": {
        "interactions.csv": lines(",", "user,item,rating,timestamp"),
        "items.csv": 'item,title,genre,year\n5,"Règle du jeu, La (1995)",Drama|Musical,1995\n'
        '31,"Toy ""Story"" (1995)",Comedy,1995\n4,unknown,,\n',
    },
    "ml-100k": {
        "u.data": lines("\t"),
        "u.item": f"5|Règle du jeu, La (1995)|01-Jan-1995||http://x|{flags(8, 12)}\n"
        f'31|Toy "Story" (1995)|01-Jan-1995||http://x|{flags(5)}\n4|unknown||||{flags(0)}\n',
    },
    "ml-1m": {
        "ratings.dat": lines("::"),
        "movies.dat": '5::Règle du jeu, La (1995)::Drama|Musical\n31::Toy "Story" (1995)::Comedy\n'
        "4::unknown::(no genres listed)\n",
    },
    "ml-32m": {
        "ratings.csv": lines(",", "userId,movieId,rating,timestamp"),
        "movies.csv": 'movieId,title,genres\n5,"Règle du jeu, La (1995)",Drama|Musical\n'
        '31,"Toy ""Story"" (1995)",Comedy\n4,unknown,(no genres listed)\n',
    },
    "atomic": {
        "tiny.inter": lines("\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
        "tiny.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '5\tRègle du jeu, La\t1995\tDrama Musical\n31\tToy "Story" (1995)\tV\tComedy\n4\tunknown\tunknown\tunknown\n',
    },
}


def write(folder, files, encoding="utf-8"):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode(encoding))
    return folder


def events(dataset):
    """By original ids."""
    data = dataset.interactions
    rating = [None] * len(data) if data.rating is None else data.rating.tolist()
    columns = (data.user.tolist(), data.item.tolist(), rating, data.time.tolist())
    ids = dataset.catalogue.ids
    return [(data.users[user], ids[item], rating, time) for user, item, rating, time in zip(*columns, strict=True)]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_dataset(tmp_path, name, ends):
    files = {file: text.replace("\n", ends) for file, text in FILES[name].items()}
    folder = write(tmp_path / name, files, "latin-1" if name in ("ml-100k", "ml-1m") else "utf-8")
    dataset = open_dataset(folder)
    assert dataset.name == ("tiny" if name == "atomic" else name)
    assert events(dataset) == ROWS
    assert dataset.interactions.users == ("2", "10")
    assert dataset.catalogue.ids == ("5", "31", "4")
    assert list(dataset.catalogue.titles) == TITLES
    assert dataset.catalogue.attributes == {
        "genre": (("Drama", "Musical"), ("Comedy",), ()),
        "year": (("1995",), ("1995",), ()),
    }
    data = dataset.interactions
    assert [data.user.dtype, data.item.dtype, data.time.dtype, data.rating.dtype] == [
        np.int32,
        np.int32,
        np.int64,
        np.float32,
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_interactions_stands_for_its_folder(tmp_path, name):
    folder = write(tmp_path / name, FILES[name], "latin-1" if name in ("ml-100k", "ml-1m") else "utf-8")
    assert events(open_dataset(folder / next(iter(FILES[name])))) == ROWS


def test_ratings_may_be_missing(tmp_path):
    own = {**FILES["own"], "interactions.csv": "timestamp,item,user\n7,5,a\n"}
    assert events(open_dataset(write(tmp_path / "none", own))) == [("a", "5", None, 7)]
    own["interactions.csv"] = "timestamp,item,user,rating,device\n7,5,a,,tv\n8,4,a,,tv\n"
    assert events(open_dataset(write(tmp_path / "empty", own))) == [("a", "5", None, 7), ("a", "4", None, 8)]


def test_quoted_fields_times_with_a_fraction_and_half_stars(tmp_path):
    text = '\ufeffuser,item,timestamp,rating\n"Doe, Jane",5,881250949.75,3.5\nJosé , 31,1e3,0.5\n\n\n'
    dataset = open_dataset(write(tmp_path / "own", {**FILES["own"], "interactions.csv": text}))
    assert events(dataset) == [("Doe, Jane", "5", 3.5, 881250949), ("José", "31", 0.5, 1000)]


def test_sequences_of_one_line_a_user(tmp_path):
    (tmp_path / "beauty.txt").write_text("10 7 300 7\n\n2 30 7\n")
    dataset = open_dataset(tmp_path / "beauty.txt")
    assert dataset.name == "beauty"
    assert dataset.interactions.users == ("2", "10")
    assert dataset.catalogue.ids == dataset.catalogue.titles == ("7", "30", "300")
    assert [items.tolist() for items in dataset.sequences()] == [[1, 0], [0, 2, 0]]
    assert events(dataset) == [
        ("10", "7", None, 0),
        ("10", "300", None, 1),
        ("10", "7", None, 2),
        ("2", "30", None, 0),
        ("2", "7", None, 1),
    ]


def test_atomic_files_without_items_or_ratings_and_with_other_columns(tmp_path):
    inter = "timestamp:float\tuser_id:token\tcity:token\titem_id:token\n5.0\tu\tRome\tb10\n4.0\tu\tRome\tb9\n"
    dataset = open_dataset(write(tmp_path / "rec", {"rec.inter": inter}))
    assert events(dataset) == [("u", "b10", None, 5), ("u", "b9", None, 4)]
    assert dataset.catalogue.titles == ("b9", "b10")
    item = "item_id:token\tbrand:token\ttitle:token_seq\tprice:float\nb10\tAcme Inc\tRed  lamp\t3.5\nb9\t\tDesk\t\n"
    catalogue = open_dataset(write(tmp_path / "rec", {"rec.item": item})).catalogue
    assert (catalogue.ids, catalogue.titles) == (("b10", "b9"), ("Red lamp", "Desk"))
    assert catalogue.attributes == {"brand": (("Acme Inc",), ()), "price": (("3.5",), ())}


def test_the_year_is_appended_to_a_title_that_has_none(tmp_path):
    item = "item_id:token\tmovie_title:token_seq\trelease_year:token\n1\tA\t1995\n2\tB (1995)\t1996\n3\tC\tV\n"
    inter = "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t5\n"
    catalogue = open_dataset(write(tmp_path / "rec", {"rec.inter": inter, "rec.item": item})).catalogue
    assert catalogue.titles == ("A (1995)", "B (1995)", "C")
    assert catalogue.attributes == {"year": (("1995",), ("1996",), ())}


words = st.text(st.characters(categories=("L", "N"), max_codepoint=0x3FF), min_size=1, max_size=12)
events_of_any_kind = st.lists(
    st.tuples(words, words, st.integers(-(10**15), 10**15), st.integers(0, 10).map(lambda n: n / 2)), min_size=1
)


@given(events_of_any_kind, st.integers(1, 64), st.booleans())
@settings(max_examples=50, deadline=None)
def test_files_of_any_length_are_read_in_pieces(tmp_path_factory, rows, chunk, ends):
    path = tmp_path_factory.mktemp("pieces") / "events"
    text = "\n".join("\t".join(map(str, row)) for row in rows) + "\n" * ends
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_CHUNK_BYTES", chunk)
        dataset = tables.read_interactions(path, tables.Layout(("user", "item", "timestamp", "rating"), "\t"), "x")
    assert events(dataset) == [(user, item, rating, time) for user, item, time, rating in rows]
    assert dataset.interactions.users == tuple(sorted({row[0] for row in rows}, key=lambda id: (len(id), id)))


HEADER = "user,item,timestamp,rating\n"


@pytest.mark.parametrize("chunk", [1, 1 << 22])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: no column 'user'; name it in the header"),
        ("user,itm,timestamp\n", "1: no column 'item'; nearest: 'itm'; name it in the header"),
        (f"{HEADER}a,5,1,1\na,5,1\n", "3: 3 fields, not 4; correct the line or delete it"),
        (f"{HEADER}a,5,1,1\na,5,1\na,5,1,1,1\n", "3: 3 fields, not 4; correct the line or delete it"),
        (f"{HEADER}a,5,1,1\n\na,5,1,1\n", "3: 1 fields, not 4; correct the line or delete it"),
        (f"{HEADER}a,5,1,1\n,5,1,1\n", "3: user '' cannot be read; correct the line or delete it"),
        (f"{HEADER}a,5,1,1\na,5,noon,1\n", "3: timestamp 'noon' cannot be read; correct the line or delete it"),
        (f"{HEADER}a,5,1,1\na,5,inf,1\n", "3: timestamp 'inf' cannot be read; correct the line or delete it"),
        (f'{HEADER}a,5,1,1\n"a",5,,1\n', "3: timestamp '' cannot be read; correct the line or delete it"),
        (f"{HEADER}a,5,1,1\na,5,1,good\n", "3: rating 'good' cannot be read; correct the line or delete it"),
        (f"{HEADER}a,5,1,1\na,5,1,nan\n", "3: rating 'nan' cannot be read; correct the line or delete it"),
        (f"{HEADER}a,5,1,1\na,5,1,\n", "3: no rating, and other lines have one; rate all interactions or none"),
        (f"{HEADER}a,5,1,1\n{'a' * 300},5,1,1\n", "3: user of 300 bytes; at most 256 are read"),
        (
            f"{HEADER}a,5,1,1\na,6,1,1\na,77,1,1\n",
            "3: item '6' is not in the catalogue (2 such items); "
            "add them to the file of items, or delete their interactions",
        ),
    ],
)
def test_a_line_that_is_wrong(tmp_path, monkeypatch, text, message, chunk):
    monkeypatch.setattr(tables, "_CHUNK_BYTES", chunk)
    folder = write(tmp_path / "own", {**FILES["own"], "interactions.csv": text})
    with pytest.raises(UserError, match=f"^{re.escape(f'{folder}/interactions.csv:{message}')}$"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("own", "interactions.csv", HEADER, "interactions.csv: no interactions; write one a line"),
        ("ml-1m", "movies.dat", "5::A::B\n6::C\n", "movies.dat:2: 2 fields, not 3; copy the folder anew"),
        ("ml-32m", "movies.csv", "h\n5,A,B\n5,A,B\n", "movies.csv:1: 1 fields, not 3; copy the folder anew"),
        (
            "ml-32m",
            "movies.csv",
            "h,t,g\n5,A,B\n5,A,B\n",
            "movies.csv:3: item '5' is there twice; an id names one item",
        ),
        ("atomic", "tiny.inter", "user:token\titem_id:token\n", "tiny.inter:1: no column 'timestamp'"),
        ("atomic", "tiny.item", "itm_id:token\n5\n", "tiny.item:1: no column 'item_id'; nearest: 'itm_id'"),
        ("atomic", "tiny.item", "item_id:token\ttitle:token\n5\n", "tiny.item:2: 1 fields where the header has 2"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, name, file, text, message):
    folder = write(tmp_path / name, {**FILES[name], file: text})
    with pytest.raises(UserError, match=re.escape(f"{folder}/{message}")):
        open_dataset(folder)


def test_a_user_has_one_line(tmp_path):
    path = tmp_path / "sequences.txt"
    path.write_text("a 1\n\na 2\n")
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}:3: user 'a' is there twice; all items of a user"):
        open_dataset(path)
    path.write_text("a\n")
    with pytest.raises(UserError, match=r"no interactions; write lines 'user item item \.\.\.'"):
        open_dataset(path)


KINDS = (
    "a folder with one of interactions.csv + items.csv, u.data + u.item, ratings.dat + movies.dat, "
    "ratings.csv + movies.csv, NAME.inter + NAME.item, or a .txt file of lines 'user item item ...'"
)


def test_a_place_without_a_dataset(tmp_path):
    def message(where):
        with pytest.raises(UserError) as error:
            open_dataset(where)
        return str(error.value)

    assert message("ml-100") == f"no dataset 'ml-100': no such folder or file; give 'ml-100k', {KINDS}"
    assert message(tmp_path) == f"{tmp_path} has no dataset: give {KINDS}; it has nothing"
    write(tmp_path, {f"{number}.json": "" for number in range(7)})
    found = "0.json, 1.json, 2.json, 3.json, 4.json and 2 more"
    assert message(tmp_path) == f"{tmp_path} has no dataset: give {KINDS}; it has {found}"
    file = tmp_path / "0.json"
    assert message(file) == f"no dataset '{file}': no such kind of file; give 'ml-100k', {KINDS}"
    write(tmp_path, {"a.inter": "", "b.inter": ""})
    assert message(tmp_path) == f"{tmp_path} has a.inter, b.inter; give the path of one of them"
    write(tmp_path, {"ratings.csv": ""})
    assert message(tmp_path) == f"{tmp_path} has ratings.csv but no movies.csv; put it beside"
