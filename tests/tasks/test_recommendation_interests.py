"""What an item can be asked for by, and how that is said."""

import itertools
import re

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue
from tasks import recommendation_wordings
from tasks.recommendation_interests import DECADE, Interest, common_interests, interests_of, phrases

GENRES = [
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
    "Children",  # in later MovieLens
]
DECADES = [str(year) for year in range(1890, 2030, 10)]

FILMS = Catalogue(
    ids=("a", "b", "c", "d", "e", "f"),
    titles=("A", "B", "C", "D", "E", "F"),
    attributes={
        "genre": (("Sci-Fi", "Horror"), ("Horror", "Sci-Fi"), ("Sci-Fi",), ("Horror",), ("Comedy", "Comedy"), ()),
        "year": (("1970",), ("1979",), ("1980",), ("1971.0",), (), ("1969", "1970s")),
        "imdb": (("x1",), ("x2",), ("x3",), ("x4",), ("x5",), ("x6",)),
        "kind": (("film",),) * 6,
    },
)


def wanted(interests: list[Interest]) -> list[tuple]:
    return [interest.wanted for interest in interests]


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z0-9'-]+", text))


# Items


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        ([("genre", "Sci-Fi")], [0, 1, 2]),
        ([("genre", "Comedy")], [4]),
        ([("genre", "Sci-Fi"), ("genre", "Horror")], [0, 1]),
        ([("decade", "1970")], [0, 1, 3]),
        ([("decade", "1960")], [5]),
        ([("genre", "Sci-Fi"), ("decade", "1970")], [0, 1]),
        ([("genre", "Sci-Fi"), ("genre", "Horror"), ("decade", "1980")], []),
        ([("year", "1970s"), ("kind", "film")], [5]),
        ([("genre", "Western")], []),
        ([("author", "Homer")], []),
    ],
)
def test_items_for_which_all_values_hold(facts, expected):
    items = Interest(tuple(facts)).items(FILMS)
    assert items.tolist() == expected
    assert np.issubdtype(items.dtype, np.integer)


def test_interests_of_an_item_are_those_that_enough_items_meet():
    sci_fi, horror, seventies = ("genre", "Sci-Fi"), ("genre", "Horror"), ("decade", "1970")
    of_a = [(horror,), (sci_fi,), (seventies,), (horror, sci_fi), (horror, seventies), (sci_fi, seventies)]
    assert wanted(interests_of(FILMS, 0, least=2)) == of_a
    assert wanted(interests_of(FILMS, 1, least=2)) == of_a  # in whatever order its genres are
    assert wanted(interests_of(FILMS, 2, least=2)) == [(sci_fi,)]
    assert wanted(interests_of(FILMS, 2, least=1)) == [(sci_fi,), (("decade", "1980"),), (sci_fi, ("decade", "1980"))]
    assert wanted(interests_of(FILMS, 4, least=1)) == [(("genre", "Comedy"),)]
    assert wanted(interests_of(FILMS, 0, least=3)) == [(horror,), (sci_fi,), (seventies,), (horror, seventies)]
    assert interests_of(FILMS, 0) == []  # no 10 items


def random_catalogue(items: int = 60) -> Catalogue:
    """Genres, two colours, and years from 1975 to 1994, some unknown."""
    draw = np.random.default_rng(0)
    genres = [tuple(draw.choice(["Drama", "War", "Opera"], draw.integers(0, 4), replace=False)) for _ in range(items)]
    colours = [(str(draw.choice(["red", "blue"])),) for _ in range(items)]
    years = [(str(draw.integers(1975, 1995)),) if draw.random() < 0.9 else () for _ in range(items)]
    names = tuple(map(str, range(items)))
    columns = {"genre": tuple(genres), "colour": tuple(colours), "release_year": tuple(years)}
    return Catalogue(names, names, columns)


@pytest.mark.parametrize("least", [1, 5, 10, 25])
def test_interests_are_all_true_ones_by_brute_force(least):
    catalogue = random_catalogue()
    facts_of = [
        {("genre", genre) for genre in genres}
        | {("colour", colour) for colour in colours}
        | {("decade", year[:3] + "0") for year in years}
        for genres, colours, years in zip(*catalogue.attributes.values(), strict=True)
    ]
    facts = set().union(*facts_of)
    pairs = {
        frozenset(pair)
        for pair in itertools.combinations(facts, 2)
        if sorted(name for name, _ in pair) in (["genre", "genre"], ["decade", "genre"], ["colour", "decade"])
    }
    items = {
        each: [item for item in range(len(catalogue)) if each <= facts_of[item]]
        for each in pairs | {frozenset([fact]) for fact in facts}
    }
    common = {each: numbers for each, numbers in items.items() if len(numbers) >= least}
    found = common_interests(catalogue, least)
    assert {frozenset(interest.wanted): interest.items(catalogue).tolist() for interest in found} == common
    assert len(found) == len(common) > 0
    sizes = [len(interest.items(catalogue)) for interest in found]
    assert sizes == sorted(sizes, reverse=True)
    for item in range(len(catalogue)):
        expected = {each for each, numbers in common.items() if item in numbers}
        interests = wanted(interests_of(catalogue, item, least))
        assert len(interests) == len(expected)
        assert set(map(frozenset, interests)) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, []),
        ({"genre": (("War",), ("War",), ("Opera",))}, [(("genre", "War"),)]),
        ({"genre": ((), (), ()), "year": ((), (), ())}, []),
        ({"year": (("MY20",), ("MY20",), ("MY21",))}, [(("year", "MY20"),)]),  # no years: values like others
        ({"decade": (("80s",), ("80s",), ("90s",)), "year": (("1970",),) * 3}, [(("decade", "80s"),)]),
        (
            {"decade": (("80s",), ("80s",), ("90s",)), "genre": (("War",), ("War",), ("Opera",))},
            [(("genre", "War"),), (("decade", "80s"),), (("genre", "War"), ("decade", "80s"))],
        ),
        (
            {"birth_year": (("1900",), ("1905",), ("1910",)), "year": (("1990",), ("1991",), ("2001",))},
            [(("decade", "1990"),)],
        ),
    ],
)
def test_catalogues_with_other_attributes_or_none(attributes, expected):
    catalogue = Catalogue(("a", "b", "c"), ("A", "B", "C"), attributes)
    assert wanted(interests_of(catalogue, 0, least=2)) == expected
    assert wanted(common_interests(catalogue, least=2)) == expected
    assert interests_of(catalogue, 2, least=2) == []


def test_an_attribute_of_which_nearly_each_item_has_its_own_value_is_left_out():
    names = tuple(map(str, range(100)))
    values = tuple((name,) for name in names)
    nearly, often = (("same",),) * 10 + values[10:], (("same",),) * 11 + values[11:]
    assert common_interests(Catalogue(names, names, {"code": nearly})) == []
    assert wanted(common_interests(Catalogue(names, names, {"code": often}))) == [(("code", "same"),)]


def test_an_empty_catalogue_has_no_interests():
    assert common_interests(Catalogue((), (), {"genre": ()})) == []


# Phrases


def all_interests() -> list[Interest]:
    """Of known and unknown genres and of decades: single ones, pairs, and both."""
    things = [("genre", genre) for genre in [*GENRES, "Telenovela"]] + [("made_by", "ACME")]
    decades = [("decade", decade) for decade in DECADES]
    singles = [(fact,) for fact in things + decades]
    pairs = [*itertools.combinations(things, 2), *itertools.product(things, decades)]
    return [Interest(each) for each in [*singles, *pairs]]


@pytest.mark.parametrize(
    ("facts", "seen", "unseen"),
    [
        ([("genre", "Comedy")], ["comedy", "comedies", "something funny", "good comedy"], ["good comedies"]),
        ([("genre", "Sci-Fi")], ["science fiction", "sci-fi"], ["something like science fiction"]),
        ([("decade", "1970")], ["something from the seventies", "items made in the 70s"], ["good items of the 1970s"]),
        ([("decade", "2010")], ["something from the 2010s"], ["something good of the 2010s"]),
        ([("genre", "War"), ("decade", "1940")], ["war stories from the forties"], ["good war stories of the 40s"]),
        (
            [("genre", "Romance"), ("genre", "Drama")],
            ["romance and drama", "drama and romance at once"],
            ["drama with romance", "something with romance and drama"],
        ),
        (
            [("Made_by", "ACME")],
            ["ACME", "made by ACME", "something with made by ACME"],
            ["good made by ACME", "something like ACME"],
        ),
        ([("genre", "Opera"), ("decade", "80s")], ["Opera from the 80s"], ["good genre Opera of the 80s"]),
    ],
)
def test_what_an_interest_is_called(facts, seen, unseen):
    assert set(seen) <= set(phrases(Interest(tuple(facts)), "seen"))
    assert set(unseen) <= set(phrases(Interest(tuple(facts)), "unseen"))


def test_every_genre_of_movielens_has_natural_names():
    for genre in GENRES:
        assert len(phrases(Interest((("genre", genre),)), "seen")) >= 4
        assert not any("genre" in phrase for phrase in phrases(Interest((("genre", genre),)), "seen"))


def test_a_phrase_means_one_thing_and_is_seen_or_unseen():
    meaning = {}
    for interest in all_interests():
        if ("genre", "Children") in interest.wanted:
            continue  # is "Children's"
        for split in ("seen", "unseen"):
            said = phrases(interest, split)
            assert len(said) >= (2 if split == "seen" else 1)
            assert len(set(said)) == len(said)
            for phrase in said:
                assert meaning.setdefault(phrase, (interest, split)) == (interest, split)


def test_unseen_phrases_are_made_of_words_that_seen_ones_teach():
    # names of an interest must be taught with it, the words between them anywhere
    wordings = [
        template.inputs
        for family in vars(recommendation_wordings).values()
        if isinstance(family, tuple)
        for template in family
        if template.split == "seen"
    ]
    common = set().union(*map(words, wordings))
    for interest in all_interests():
        singles = [Interest((fact,)) for fact in interest.wanted]
        taught = set().union(*(words(phrase) for single in singles for phrase in phrases(single, "seen")))
        for phrase in phrases(interest, "unseen"):
            assert words(phrase) <= taught | common, phrase


def test_a_decade_is_named_by_its_attribute():
    assert DECADE == "decade"
    assert phrases(Interest((("period", "1970"),)), "seen")[0] == "1970"


def test_a_split_that_does_not_exist():
    with pytest.raises(UserError, match=r"^phrases: split 'sen'; nearest: 'seen', 'unseen'; one of "):
        phrases(Interest(()), "sen")
