"""Filters on a catalogue that a person can look through, and its file."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue

FILMS = Catalogue(
    ids=("7", "3", "nosferatu", "x"),
    titles=("Toy Story (1995)", 'The "Big", One', "Nosferatu (1922)", "Untitled"),
    attributes={
        "genre": (("Comedy", "Children's"), ("comedy", "Drama"), ("Horror",), ()),
        "year": (("1995",), ("1990", "late"), ("1922",), ()),
    },
)

words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6).filter(lambda word: word.strip())
values = words.map(str.strip).filter(lambda word: "|" not in word)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [0, 1, 2, 3]),
        (["genre=Comedy"], [0, 1]),
        (["genre=COMEDY", "genre = drama"], [1]),
        (["genre!=comedy"], [2, 3]),
        (["Year>=1990"], [0, 1]),
        (["year>1990"], [0]),
        (["year<1990"], [2]),
        (["year<=1990.0"], [1, 2]),
        (["year=1922"], [2]),
        (["year>2000"], []),
        (["year=late", "genre=Horror"], []),
    ],
)
def test_items_for_which_all_filters_hold(filters, expected):
    assert FILMS.matching(filters).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("genre", "filter 'genre': no operator; write it as genre=Comedy or year>=1990"),
        ("genre==Drama", "filter 'genre==Drama': no operator '=='; there are =, !=, <, <=, >, >="),
        ("genres=Drama", "filter 'genres=Drama': no attribute 'genres'; nearest: 'genre'; there are genre, year"),
        ("genre=Horor", "filter 'genre=Horor': no item has genre 'Horor'; nearest: 'horror'"),
        ("genre!=Western", "filter 'genre!=Western': no item has genre 'Western'"),
        ("year>soon", "filter 'year>soon': 'soon' is no number; compare others by = and !="),
        ("genre>3", "filter 'genre>3': no genre is a number; compare others by = and !="),
    ],
)
def test_a_filter_that_says_nothing_about_these_items(text, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        FILMS.matching([text])


def test_some_items_in_another_order():
    taken = FILMS.take([2, 0])
    assert taken.ids == ("nosferatu", "7")
    assert taken.titles == ("Nosferatu (1922)", "Toy Story (1995)")
    assert taken.attributes["year"] == (("1922",), ("1995",))
    assert taken.number_of == {"nosferatu": 0, "7": 1}


def assert_same(found, expected):
    assert (found.ids, found.titles, found.attributes) == (expected.ids, expected.titles, expected.attributes)


def test_the_file_of_items_is_what_a_person_would_write(tmp_path):
    FILMS.save(tmp_path / "run")
    assert (tmp_path / "run" / "items.csv").read_text(encoding="utf-8").splitlines() == [
        "item,title,genre,year",
        "7,Toy Story (1995),Comedy|Children's,1995",
        '3,"The ""Big"", One",comedy|Drama,1990|late',
        "nosferatu,Nosferatu (1922),Horror,1922",
        "x,Untitled,,",
    ]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["items.csv"]


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_what_is_saved_is_loaded(tmp_path_factory, data):
    ids = data.draw(st.lists(words.map(str.strip), min_size=1, max_size=4, unique=True))
    titles = [data.draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=8)) for _ in ids]
    tags = [tuple(data.draw(st.lists(values, max_size=3))) for _ in ids]
    catalogue = Catalogue(tuple(ids), tuple(titles), {"tag": tuple(tags)})
    folder = tmp_path_factory.mktemp("run")
    catalogue.save(folder)
    assert_same(Catalogue.load(folder), catalogue)


def test_a_file_from_a_spreadsheet(tmp_path):
    text = "\ufefftitle,item,tag\r\n\r\nOne, 1 , a | b||\r\n"
    (tmp_path / "items.csv").write_bytes(text.encode())
    assert_same(Catalogue.load(tmp_path), Catalogue(("1",), ("One",), {"tag": (("a", "b"),)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: no column 'item'; name it in the header"),
        ("item,titles\n", "1: no column 'title'; nearest: 'titles', 'item'; name it in the header"),
        ("item,title\n1,A\n2\n", "3: 1 fields where the header has 2 (item, title)"),
        ("item,title\n1,A\n,B\n", "3: item '' is empty; an id names one item"),
        ("item,title\n1,A\n2,B\n1,C\n", "4: item '1' is there twice; an id names one item"),
    ],
)
def test_a_file_that_is_no_catalogue(tmp_path, text, message):
    path = tmp_path / "items.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}:{message}')}$"):
        Catalogue.load(tmp_path)


def test_a_file_that_is_not_there_or_not_utf_8(tmp_path):
    with pytest.raises(UserError, match=r"items.csv: cannot be read as UTF-8 CSV .*No such file"):
        Catalogue.load(tmp_path)
    (tmp_path / "items.csv").write_bytes("item,title\n1,Misérables\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"items.csv: cannot be read as UTF-8 CSV .*codec"):
        Catalogue.load(tmp_path)


@pytest.mark.parametrize("value", ["a|b", " a", ""])
def test_a_value_that_would_be_read_as_another_is_not_written(tmp_path, value):
    catalogue = Catalogue(("1",), ("One",), {"tag": ((value,),)})
    with pytest.raises(UserError, match=re.escape(f"attribute 'tag', value {value!r}")):
        catalogue.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("1", "1"), ("A", "B")), "item '1' is there twice"),
        ((("1", ""), ("A", "B")), "item '': an id is not empty"),
        ((("1",), ("A", "B")), "titles: 2 for 1 items"),
        ((("1",), ("A",), {"tag": ()}), "tag: 0 for 1 items"),
    ],
)
def test_columns_that_do_not_fit(arguments, message):
    with pytest.raises(UserError, match=message):
        Catalogue(*arguments)
