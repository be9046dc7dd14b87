"""From what people type to an item: titles in any case, without accents, article in front or behind, year or not."""

import bisect
import difflib
import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue

_ARTICLES = "the|a|an|le|la|les|l|un|une|il|lo|gli|i|el|los|las|der|die|das|ein|eine|den|det|de|het|o|os|as"
_TRAILING_ARTICLE = re.compile(rf"(.+), ((?:{_ARTICLES})'?)", re.IGNORECASE)
_OUTER_ARTICLE = re.compile(rf"^(?:{_ARTICLES}) (?=.)|(?<=.) (?:{_ARTICLES})$")
_YEAR = re.compile(r"(.+?)\s*\((\d{4})(?:[-–]\d{0,4})?\)")
_BARE_YEAR = re.compile(r"(.+?)[\s,]+(\d{4})")
_PARENTHESIS = re.compile(r"\(([^()]*)\)")
_ALSO_KNOWN_AS = re.compile(r"a\.?k\.?a\.?[\s:]+", re.IGNORECASE)

_MOST_SHOWN = 8  # of the candidates in an error
_MOST_COMPARED = 5000  # titles, letter by letter
_FIRST_LETTERS = 2  # are seldom mistyped


class Titles:
    """A catalogue's titles prepared for look-up; `resolve` for whole titles, `search` while one is typed."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self._years: list[str | None] = []  # of the title, or else the attribute
        self._exact: dict[str, list[int]] = {}
        # From the strictest reading of a title to the most forgiving.
        self._readings: list[dict[str, list[int]]] = [{} for _ in _READINGS]
        years = catalogue.attributes.get("year", ((),) * len(catalogue))
        for number, title in enumerate(catalogue.titles):
            name, year = _split_year(title)
            self._years.append(year or next(iter(years[number]), None))
            self._exact.setdefault(title, []).append(number)
            for keys, reading in zip(self._readings, _READINGS, strict=True):
                for key in set(reading(name)):
                    keys.setdefault(key, []).append(number)

    def resolve(self, text: str) -> int:
        """The number of the item that is meant by a title, or by `id:` and an id; an id alone if no title is like it.

        UserError that lists the candidates where there are several, or the nearest titles where there is none.
        """
        text = text.strip()
        by_id = self.catalogue.number_of
        if text.startswith("id:"):
            if text[3:] not in by_id:
                raise UserError(f"no item has the id {text[3:]!r}; ids are those of the file of items")
            return by_id[text[3:]]
        found = self._candidates(text)
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{text!r} may be {self._listed(found)}; write out the one that is meant, or id:{self._id(found[0])}"
            )
        if text in by_id:
            return by_id[text]
        close = self._nearest(text)
        raise UserError(f"no title is like {text!r}" + (f"; nearest: {self._listed(close)}" if close else ""))

    def _candidates(self, text: str) -> list[int]:
        if text in self._exact:
            return self._exact[text]
        asked = [_split_year(text)]
        # A number at the end may be the title's, as in Blade Runner 2049, or a year.
        asked += [(each[1], each[2]) for each in [_BARE_YEAR.fullmatch(text)] if each]
        for keys, reading in zip(self._readings, _READINGS, strict=True):
            for words, of_year in asked:
                numbers = {number for key in reading(words) for number in keys.get(key, ())}
                found = sorted(n for n in numbers if of_year is None or self._years[n] in (None, of_year))
                if found:
                    return found
        return []

    def search(self, text: str, limit: int = 10) -> list[int]:
        """Numbers of items whose titles have words that begin with each word of `text`, the likeliest first.

        First titles that begin with these words, then with this beginning of a word; shorter ones before longer.
        """
        words = _plain(text).split()
        if not words or limit < 1:
            return []
        found = functools.reduce(np.intersect1d, map(self._beginning_with, words)).tolist()
        typed = " ".join(words)

        def order(number: int) -> tuple[bool, bool, int, int]:
            title = self.catalogue.titles[number]
            name, _ = _split_year(title)
            begun = [f"{key} " for key in (*_parts(name), *_without_articles(name)) if key.startswith(typed)]
            return not any(key.startswith(f"{typed} ") for key in begun), not begun, len(title), number

        return sorted(found, key=order)[:limit]

    @functools.cached_property
    def _words(self) -> tuple[list[str], list[np.ndarray]]:
        """The titles' words in order, and the items that have each."""
        items: dict[str, list[int]] = {}
        for number, title in enumerate(self.catalogue.titles):
            for word in set(_plain(title).split()):
                items.setdefault(word, []).append(number)
        words = sorted(items)
        return words, [np.array(items[word]) for word in words]

    def _beginning_with(self, prefix: str) -> np.ndarray:
        words, items = self._words
        first, last = bisect.bisect_left(words, prefix), bisect.bisect_right(words, prefix + chr(0x10FFFF))
        return np.unique(np.concatenate([np.zeros(0, int), *items[first:last]]))

    def _nearest(self, text: str) -> list[int]:
        """Items whose titles read most like the text, of those with a word that begins as one of its words."""
        parts = [self._beginning_with(word[:_FIRST_LETTERS]) for word in _plain(text).split()]
        numbers, shared = np.unique(np.concatenate([np.zeros(0, int), *parts]), return_counts=True)
        likeliest = numbers[np.argsort(-shared, kind="stable")][:_MOST_COMPARED].tolist()
        titles = {number: _key(_split_year(self.catalogue.titles[number])[0]) for number in likeliest}
        close = set(difflib.get_close_matches(_key(_split_year(text)[0]), set(titles.values()), n=3))
        return [number for number in likeliest if titles[number] in close][:3]

    def _id(self, number: int) -> str:
        return self.catalogue.ids[number]

    def _listed(self, numbers: Iterable[int]) -> str:
        numbers = list(numbers)
        shown = ", ".join(f"{self._with_year(number)!r} (id:{self._id(number)})" for number in numbers[:_MOST_SHOWN])
        more = len(numbers) - _MOST_SHOWN
        return shown + (f" and {more} more" if more > 0 else "")

    def _with_year(self, number: int) -> str:
        title, year = self.catalogue.titles[number], self._years[number]
        return title if year is None or _split_year(title)[1] else f"{title} ({year})"


def resolve(catalogue: Catalogue, text: str) -> int:
    """One look-up; see `Titles.resolve`. For many, keep a `Titles`."""
    return Titles(catalogue).resolve(text)


def _split_year(text: str) -> tuple[str, str | None]:
    found = _YEAR.fullmatch(text.strip())
    return (found[1], found[2]) if found else (text, None)


def _plain(text: str) -> str:
    """Lower case, without accents; words of letters and digits with single blanks between."""
    decomposed = unicodedata.normalize("NFKD", text.casefold().replace("&", " and "))
    letters = (each for each in decomposed if not unicodedata.combining(each))
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`]", "", "".join(letters))).split())


def _article_in_front(name: str) -> str:
    found = _TRAILING_ARTICLE.fullmatch(name.strip())
    return f"{found[2]}{'' if found[2].endswith(chr(39)) else ' '}{found[1]}" if found else name


def _key(name: str) -> str:
    # A title without letters or digits, such as "...", stays as it is.
    return _plain(_article_in_front(name)) or name.strip()


def _whole(name: str) -> Iterator[str]:
    yield _key(name)


def _parts(name: str) -> Iterator[str]:
    """The title and, in parentheses, other names of it: Seven (a.k.a. Se7en)."""
    yield _key(name)
    yield _key(_PARENTHESIS.sub("", name))
    for other in _PARENTHESIS.findall(name):
        yield _key(_ALSO_KNOWN_AS.sub("", other))


def _without_articles(name: str) -> Iterator[str]:
    yield from (_OUTER_ARTICLE.sub("", key, count=1) for key in _parts(name))


_READINGS: tuple[Callable[[str], Iterator[str]], ...] = (_whole, _parts, _without_articles)
