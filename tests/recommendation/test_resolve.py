"""Titles as people type them, on films whose titles are hard."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.resolve import Titles, resolve

TITLES = {
    "1": "Toy Story (1995)",
    "12": "Usual Suspects, The (1995)",
    "50": "Star Wars (1977)",
    "11": "Seven (a.k.a. Se7en) (1995)",
    "543": "Misérables, Les (1995)",
    "111": "Truth About Cats & Dogs, The (1996)",
    "274": "Sabrina (1995)",
    "486": "Sabrina (1954)",
    "246": "Chasing Amy (1997)",
    "268": "Chasing Amy (1997)",
    "297": "Ulee's Gold (1997)",
    "1068": "Star Maker, The (Uomo delle stelle, L') (1995)",
    "144": "Die Hard (1988)",
    "x1": "Hard (1998)",
    "br": "Blade Runner 2049 (2017)",
    "b5": "Babylon 5",
    "dots": "...",
    "fargo": "Fargo (2014–2024)",
}
CATALOGUE = Catalogue(tuple(TITLES), tuple(TITLES.values()))
PREPARED = Titles(CATALOGUE)


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("Toy Story (1995)", "1"),
        ("  toy   STORY ", "1"),
        ("toy story 1995", "1"),
        ("toy-story, 1995", "1"),
        ("The Usual Suspects", "12"),
        ("usual suspects, the (1995)", "12"),
        ("usual suspects", "12"),
        ("usual suspects the", "12"),
        ("Seven", "11"),
        ("se7en", "11"),
        ("Les Miserables", "543"),
        ("Les Mise\u0301rables", "543"),
        ("the truth about cats and dogs", "111"),
        ("sabrina 1954", "486"),
        ("Sabrina (1995)", "274"),
        ("ulees gold", "297"),
        ("Ulee\u2019s Gold", "297"),
        ("L'uomo delle stelle", "1068"),
        ("the star maker", "1068"),
        ("die hard", "144"),
        ("hard", "x1"),
        ("blade runner 2049", "br"),
        ("blade runner 2049 (2017)", "br"),
        ("babylon 5", "b5"),
        ("...", "dots"),
        ("Fargo (2014)", "fargo"),
        ("50", "50"),
        ("id:50", "50"),
        ("id:x1", "x1"),
    ],
)
def test_a_title_is_found_however_it_is_written(text, id):
    assert CATALOGUE.ids[PREPARED.resolve(text)] == id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sabrina",
            "'sabrina' may be 'Sabrina (1995)' (id:274), 'Sabrina (1954)' (id:486); "
            "write out the one that is meant, or id:274",
        ),
        (
            "Chasing Amy (1997)",
            "'Chasing Amy (1997)' may be 'Chasing Amy (1997)' (id:246), 'Chasing Amy (1997)' (id:268); "
            "write out the one that is meant, or id:246",
        ),
        ("Toy Story (1996)", "no title is like 'Toy Story (1996)'; nearest: 'Toy Story (1995)' (id:1)"),
        ("toy stroy", "no title is like 'toy stroy'; nearest: 'Toy Story (1995)' (id:1)"),
        ("zzz", "no title is like 'zzz'"),
        ("", "no title is like ''"),
        ("id:1995", "no item has the id '1995'; ids are those of the file of items"),
    ],
)
def test_a_title_that_names_none_or_several(text, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        PREPARED.resolve(text)


def test_a_title_before_an_id():
    catalogue = Catalogue(("7", "1984"), ("1984 (1984)", "Seven"))
    assert resolve(catalogue, "1984") == 0
    assert resolve(catalogue, "id:1984") == 1
    assert resolve(catalogue, "7") == 0


def test_the_exact_title_before_one_that_only_reads_the_same():
    catalogue = Catalogue(("a", "b"), ("It!", "It"))
    assert (resolve(catalogue, "It!"), resolve(catalogue, "It")) == (0, 1)
    with pytest.raises(UserError, match="'it' may be 'It!'"):
        resolve(catalogue, "it")


def test_the_year_may_be_an_attribute():
    catalogue = Catalogue(("a", "b"), ("Sabrina", "Sabrina"), {"year": (("1995",), ("1954",))})
    assert resolve(catalogue, "sabrina (1954)") == 1
    with pytest.raises(UserError, match=re.escape("may be 'Sabrina (1995)' (id:a), 'Sabrina (1954)' (id:b);")):
        resolve(catalogue, "Sabrina")


def test_many_candidates_are_counted():
    catalogue = Catalogue(tuple(map(str, range(20))), ("Hamlet",) * 20)
    with pytest.raises(UserError, match=r"\(id:7\) and 12 more; write"):
        resolve(catalogue, "hamlet")


def found(text, limit=10):
    return [CATALOGUE.titles[number] for number in PREPARED.search(text, limit)]


def test_a_search_box_finds_titles_by_beginnings_of_words():
    assert found("st") == ["Star Wars (1977)", "Star Maker, The (Uomo delle stelle, L') (1995)", "Toy Story (1995)"]
    assert found("st", limit=1) == ["Star Wars (1977)"]
    assert found("st to") == ["Toy Story (1995)"]
    assert found("usual") == found("the us") == ["Usual Suspects, The (1995)"]
    assert found("misera") == ["Misérables, Les (1995)"]
    assert found("1954") == ["Sabrina (1954)"]
    assert found("uomo") == ["Star Maker, The (Uomo delle stelle, L') (1995)"]
    assert found("zzz") == found("") == found(" ?") == found("toy", limit=0) == []


def test_a_search_puts_whole_words_before_beginnings():
    catalogue = Catalogue(tuple("abc"), ("A Big Star Is Born", "Stargate", "Star Wars Again"))
    assert Titles(catalogue).search("star") == [2, 1, 0]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5, unique=True))
@settings(max_examples=50, deadline=None)
def test_every_title_that_is_unique_is_found_by_itself(titles):
    titles = list(dict.fromkeys(title.strip() for title in titles))
    titles = [title for title in titles if not title.startswith("id:")]
    catalogue = Catalogue(tuple(f"item {number}" for number in range(len(titles))), tuple(titles))
    prepared = Titles(catalogue)
    assert [prepared.resolve(title) for title in titles] == list(range(len(titles)))
