"""What a person may be in the mood for, as the attributes of a catalogue allow: "science fiction from the seventies".

An interest is a set of attribute values that all hold, and is said in several ways. As of wordings, the seen ways train
and the unseen ones are only evaluated; those are other phrases, but of words that seen ones teach.
"""

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from t5x_lite.data.templates import SPLITS
from t5x_lite.errors import UserError, nearest
from t5x_lite.recommendation.catalogue import Catalogue

DECADE = "decade"  # of the attribute year, "1970" for 1970 to 1979; an attribute that is called so goes before it

_YEAR = re.compile(r"(\d{3})\d(\.0*)?")


@dataclasses.dataclass(frozen=True)
class Interest:
    """Attribute values that are wanted together, such as (("genre", "Sci-Fi"), ("decade", "1970"))."""

    wanted: tuple[tuple[str, str], ...]

    def items(self, catalogue: Catalogue) -> Int[np.ndarray, "M"]:
        """Numbers of the items that have all these values, ascending; none for a value that no item has."""
        none = np.zeros(0, np.int64)
        holders = _holders(catalogue)
        everything = np.arange(len(catalogue))
        return functools.reduce(np.intersect1d, (holders.get(fact, none) for fact in self.wanted), everything)


def interests_of(catalogue: Catalogue, item: int, least: int = 10) -> list[Interest]:
    """Interests that this item meets, and at least `least` items in all.

    These are each value of an attribute, its decade, two values of one attribute, and a value with the decade. A value
    is of use only where other items have it too: attributes of which nearly each item has its own are left out.
    """
    interests, wanted_of = _interests(catalogue, least)
    return [interests[wanted] for wanted in wanted_of[item] if wanted in interests]


def common_interests(catalogue: Catalogue, least: int = 10) -> list[Interest]:
    """All that `interests_of` says of any item, those that most items meet first."""
    return list(_interests(catalogue, least)[0].values())


def phrases(interest: Interest, split: str) -> list[str]:
    """Ways to say an interest: noun phrases without an article. UserError for a split that is not in SPLITS."""
    if split not in SPLITS:
        raise UserError(f"phrases: split {split!r}{nearest(split, SPLITS)}; one of {SPLITS}")
    decades = [value for name, value in interest.wanted if name == DECADE]
    things = [
        _KNOWN.get(value.casefold()) or _unknown(name, value) for name, value in interest.wanted if name != DECADE
    ]
    if not things:
        said = ["something", "items"] if split == "seen" else ["something good", "good items"]
    elif len(things) == 1:
        said = things[0].seen if split == "seen" else things[0].unseen
    else:
        said = _together([thing.nouns for thing in things], split)
    when = ("from the", "made in the") if split == "seen" else ("of the",)
    for decade in decades:
        said = [f"{text} {words} {name}" for text in said for words in when for name in _decade_names(decade)]
    return list(dict.fromkeys(said))


def _together(nouns: Sequence[Sequence[str]], split: str) -> list[str]:
    """Things that one item is at once, in the given order and in the opposite one."""
    orders = [chosen[::step] for chosen in itertools.product(*nouns) for step in (1, -1)]
    if split == "seen":
        return [frame.format(" and ".join(order)) for frame in ("{}", "{} at once") for order in orders]
    with_others = [f"{order[0]} with {' and '.join(order[1:])}" for order in orders]
    return with_others + [f"something with {' and '.join(order)}" for order in orders]


# How values and decades are called


class _Ways(NamedTuple):
    """Ways to say a value: `nouns` stand in phrases with others, `seen` and `unseen` stand alone or before a decade."""

    nouns: tuple[str, ...]
    seen: list[str]
    unseen: list[str]


def _known(nouns: tuple[str, ...], several: str, kind: str) -> _Ways:
    """Of a value with names, a name for several such items, and what "something" is then."""
    return _Ways(
        nouns,
        seen=[*nouns, several, f"something {kind}", f"good {nouns[0]}"],
        unseen=[f"good {several}", *(f"something like {noun}" for noun in nouns)],
    )


def _unknown(attribute: str, value: str) -> _Ways:
    """Of a value that is said by its own name."""
    attribute = attribute.replace("_", " ").lower()
    return _Ways(
        (value,),
        seen=[value, f"{attribute} {value}", f"something with {attribute} {value}"],
        unseen=[f"good {attribute} {value}", f"something like {value}"],
    )


_KNOWN = {
    "action": _known(("action",), "action stories", "full of action"),
    "adventure": _known(("adventure",), "adventures", "adventurous"),
    "animation": _known(("animation",), "cartoons", "animated"),
    "children's": _known(("stories for children",), "children's stories", "for kids"),
    "comedy": _known(("comedy",), "comedies", "funny"),
    "crime": _known(("crime",), "crime stories", "about crime"),
    "documentary": _known(("documentaries",), "true stories", "about real life"),
    "drama": _known(("drama",), "dramas", "serious"),
    "fantasy": _known(("fantasy",), "fantasy stories", "magical"),
    "film-noir": _known(("film noir", "noir"), "noir stories", "dark"),
    "horror": _known(("horror",), "horror stories", "scary"),
    "musical": _known(("musicals",), "musical stories", "with songs"),
    "mystery": _known(("mystery",), "mysteries", "mysterious"),
    "romance": _known(("romance",), "love stories", "romantic"),
    "sci-fi": _known(("science fiction", "sci-fi"), "science fiction stories", "about the future"),
    "thriller": _known(("thrillers",), "thrilling stories", "thrilling"),
    "war": _known(("war",), "war stories", "about war"),
    "western": _known(("westerns",), "cowboy stories", "about cowboys"),
}
_KNOWN |= {"children": _KNOWN["children's"], "science fiction": _KNOWN["sci-fi"], "film noir": _KNOWN["film-noir"]}

_DECADES = ("twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")  # from 1920


def _decade_names(decade: str) -> list[str]:
    """Of "1970": seventies, 1970s and 70s; a decade outside the last century has one name."""
    if not decade.isdecimal():
        return [decade]
    place = (int(decade) - 1920) // 10
    if place not in range(len(_DECADES)):
        return [f"{decade}s"]
    return [_DECADES[place], f"{decade}s", f"{decade[2:]}s"]


# What a catalogue says, prepared once


@functools.lru_cache(maxsize=4)
def _columns(catalogue: Catalogue) -> Mapping[str, Sequence[tuple[str, ...]]]:
    """The attributes, and at the end the decade of a year."""
    columns = dict(catalogue.attributes)
    year = _year_attribute(catalogue)
    if year is not None and DECADE not in columns:
        found = ([_YEAR.fullmatch(value) for value in values] for values in columns[year])
        columns[DECADE] = tuple(tuple(f"{match[1]}0" for match in matches if match) for matches in found)
    return columns


def _year_attribute(catalogue: Catalogue) -> str | None:
    """The attribute year, or release_year and the like, if there are years in it."""
    named = sorted((name for name in catalogue.attributes if name.casefold().endswith("year")), key=len)
    years = (name for name in named if any(map(_YEAR.fullmatch, itertools.chain(*catalogue.attributes[name]))))
    return next(years, None)


@functools.lru_cache(maxsize=4)
def _holders(catalogue: Catalogue) -> Mapping[tuple[str, str], Int[np.ndarray, "M"]]:
    """The items of each attribute's values."""
    items: dict[tuple[str, str], list[int]] = {}
    for name, column in _columns(catalogue).items():
        for number, values in enumerate(column):
            for value in set(values):
                items.setdefault((name, value), []).append(number)
    return {fact: np.array(numbers) for fact, numbers in items.items()}


@functools.lru_cache(maxsize=4)
def _interests(catalogue: Catalogue, least: int) -> tuple[dict[tuple, Interest], list[list[tuple]]]:
    """The common interests by what they want; and what is true of each item, common or not."""
    columns, holders, year = _columns(catalogue), _holders(catalogue), _year_attribute(catalogue)
    names = [name for name, column in columns.items() if name != year and _values_repeat(column)]
    names.sort(key=lambda name: name == DECADE)

    def wanted_of(item: int) -> list[tuple]:
        facts = [(name, value) for name in names for value in sorted(set(columns[name][item]))]
        facts = [fact for fact in facts if len(holders[fact]) >= least]
        pairs = itertools.combinations(facts, 2)
        return [(fact,) for fact in facts] + [pair for pair in pairs if _go_together(*pair)]

    true_of = [wanted_of(item) for item in range(len(catalogue))]
    counts = Counter(itertools.chain.from_iterable(true_of))
    return {wanted: Interest(wanted) for wanted, count in counts.most_common() if count >= least}, true_of


def _go_together(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Two values of one attribute, or one with a decade behind it; one item has but one decade."""
    return first[0] != DECADE and second[0] in (first[0], DECADE)


def _values_repeat(column: Sequence[tuple[str, ...]]) -> bool:
    """Whether an attribute has several values, and more than a tenth of the items share one with another item."""
    items_with = Counter(value for values in column for value in set(values))
    known = [values for values in column if values]
    shared = [values for values in known if any(items_with[value] > 1 for value in values)]
    return len(items_with) > 1 and 10 * len(shared) > len(known)
