"""Parallel text of thirteen languages, unlimited and offline: what CLDR says, through Babel.

A *value* (a date, an amount, the names of a list) is drawn, and written in a language in each of its styles. Only what
CLDR has for both languages is written: names, formats, plurals, and its patterns for lists, intervals, brackets and
colons, which put them together.

Values are held out by their sha256 (`part_of`), so that the parts are the same for every pair of languages, and in
every style. Names alone are in all parts, as none of them follows from others; sets of names are held out.
"""

import copy
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from babel import Locale, dates, lists, localedata, numbers
from babel.core import get_global
from babel.languages import get_official_languages

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "ru", "zh", "ja", "ar")

Styles = list[str]  # a value in one language, in each of its styles; as many in every language


@functools.cache
def locale(language: str) -> Locale:
    """Babel's locale with data of its own: Babel writes what one language inherits into data that all share (#1234)."""
    data = localedata.load(language)
    data.update(copy.deepcopy(data))
    return Locale.parse(language)


def part_of(value: Any) -> str:
    """'train', 'validation' or 'test' (80/10/10) by the sha256 of the value."""
    share = int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def drawn(part: str, draw: Callable[[], Any]) -> Any:
    """The first value drawn that is of the part."""
    while part_of(value := draw()) != part:
        pass
    return value


# Names -------------------------------------------------------------------------------------

CURRENCIES = (
    *("USD", "EUR", "GBP", "JPY", "CNY", "INR", "KRW", "BRL", "CAD", "MXN", "AUD", "NZD", "CHF", "SEK", "NOK", "DKK"),
    *("PLN", "CZK", "HUF", "RUB", "UAH", "TRY", "ZAR", "EGP", "SAR", "AED", "ILS", "THB", "VND", "IDR", "PHP", "SGD"),
)
SORTS = {"territories": 8, "languages": 5, "currencies": 2, "weekdays": 1, "months": 1}  # how often lists have them

Name = tuple[str, Any]  # a sort and a code


@functools.cache
def names(sort: str) -> tuple[Name, ...]:
    """All names of a sort that CLDR has in every language; languages are those that are official somewhere."""
    official = {code: get_official_languages(code, de_facto=True) for code in sorted(get_global("territory_languages"))}
    codes: dict[str, Sequence[Any]] = {
        "territories": [code for code, spoken in official.items() if spoken],
        "languages": sorted({language for spoken in official.values() for language in spoken}),
        "currencies": CURRENCIES,
        "weekdays": range(7),
        "months": range(1, 13),
    }
    locales = [locale(language) for language in LANGUAGES]
    found = [(sort, code) for code in codes[sort] if all(name_in((sort, code), each) for each in locales)]
    if sort == "languages":  # without those that are called as a territory is somewhere, like English 'Nauru'
        taken = {(each, name_in(name, each)) for name in names("territories") for each in locales}
        found = [name for name in found if not any((each, name_in(name, each)) in taken for each in locales)]
    return tuple(found)


def name_in(name: Name, locale: Locale) -> str | None:
    sort, code = name
    if sort in ("weekdays", "months"):
        return (locale.days if sort == "weekdays" else locale.months)["stand-alone"]["wide"][code]
    return getattr(locale, sort).get(code)


def draw_names(rng: Random, part: str) -> list[Name]:
    """Two to four names of a sort. Which ones is what is held out, in any order."""
    (sort,) = rng.choices(list(SORTS), list(SORTS.values()))
    chosen = drawn(part, lambda: sorted(rng.sample(names(sort), rng.choice((2, 2, 3, 4)))))
    rng.shuffle(chosen)
    return chosen


def write_names(value: Sequence[Name], locale: Locale) -> Styles:
    found = [name_in(name, locale) or "" for name in value]
    return [join(found, "standard", locale), join(found, "or", locale)]


def join(texts: Sequence[str], style: str, locale: Locale) -> str:
    """CLDR's list, and what its patterns cannot say: Spanish 'y' and 'o' before their own sound, as ICU has them."""
    joined = lists.format_list(texts, style=style, locale=locale)
    if locale.language == "es":
        before, last = joined.removesuffix(texts[-1]), texts[-1]
        if before.endswith(" y ") and re.match(r"(?i)h?i(?!e)", last):
            return f"{before[:-2]}e {last}"
        if before.endswith(" o ") and re.match(r"(?i)h?o|8|11(?!\d)", last):
            return f"{before[:-2]}u {last}"
    return joined


# CLDR's localePattern and localeKeyTypePattern where they are not those of English. Babel has neither.
IN_BRACKETS = {"zh": "{}（{}）"}
BEFORE_COLON = {"zh": "{}：{}", "fr": "{}\u00a0: {}"}


def draw_pair(rng: Random, part: str) -> tuple[Name, Name]:
    return drawn(part, lambda: (rng.choice(names("languages")), rng.choice(names("territories"))))


def write_pair(value: tuple[Name, Name], locale: Locale) -> Styles:
    """As CLDR names 'Portuguese (Brazil)'; any language with any territory."""
    return [IN_BRACKETS.get(locale.language, "{} ({})").format(*(name_in(name, locale) for name in value))]


# Dates and times ---------------------------------------------------------------------------

_FIRST_DAY, _NUM_DAYS = date(1950, 1, 1), 36525  # a hundred years: the last two digits tell which


def draw_date(rng: Random, part: str) -> date:
    return drawn(part, lambda: _FIRST_DAY + timedelta(rng.randrange(_NUM_DAYS)))


def write_date(value: date, locale: Locale) -> Styles:
    return [dates.format_date(value, style, locale=locale) for style in ("full", "long", "medium", "short")]


def draw_month(rng: Random, part: str) -> tuple[int, int]:
    return drawn(part, lambda: (rng.randrange(1900, 2100), rng.randint(1, 12)))


def write_month(value: tuple[int, int], locale: Locale) -> Styles:
    return [dates.format_skeleton(skeleton, date(*value, 1), locale=locale) for skeleton in ("yMMMM", "yMMM")]


def draw_quarter(rng: Random, part: str) -> tuple[int, str, int]:
    return drawn(part, lambda: (rng.randrange(1900, 2100), "Q", rng.randint(1, 4)))


def write_quarter(value: tuple[int, str, int], locale: Locale) -> Styles:
    first = date(value[0], 3 * value[2] - 2, 1)
    return [dates.format_skeleton(skeleton, first, locale=locale) for skeleton in ("yQQQQ", "yQQQ")]


def draw_day(rng: Random, part: str) -> tuple[int, int]:
    def day() -> tuple[int, int]:
        drawn_day = date(2000, 1, 1) + timedelta(rng.randrange(366))
        return drawn_day.month, drawn_day.day

    return drawn(part, day)


def write_day(value: tuple[int, int], locale: Locale) -> Styles:
    return [dates.format_skeleton(skeleton, date(2000, *value), locale=locale) for skeleton in ("MMMMd", "MMMd")]


def draw_minute(rng: Random, part: str) -> time:
    return drawn(part, lambda: time(rng.randrange(24), rng.randrange(60)))


def draw_time(rng: Random, part: str) -> time:
    return draw_minute(rng, part).replace(second=rng.randrange(60))


def write_time(value: time, locale: Locale) -> Styles:
    return [dates.format_time(value, style, locale=locale) for style in ("short", "medium")]


def draw_moment(rng: Random, part: str) -> datetime:
    return datetime.combine(draw_date(rng, part), draw_minute(rng, part))


def write_moment(value: datetime, locale: Locale) -> Styles:
    clock = dates.format_time(value, "short", locale=locale)
    return [
        dates.get_datetime_format(style, locale=locale).replace("'", "").format(clock, day)
        for style, day in zip(("full", "long", "medium", "short"), write_date(value.date(), locale), strict=True)
    ]


def draw_dates(rng: Random, part: str) -> tuple[date, date]:
    start = draw_date(rng, part)
    return start, drawn(part, lambda: start + timedelta(rng.randint(1, rng.choice((20, 200, 2000)))))


def write_dates(value: tuple[date, date], locale: Locale) -> Styles:
    return [dates.format_interval(*value, skeleton, locale=locale) for skeleton in ("yMMMd", "yMMMEd")]


def draw_times(rng: Random, part: str) -> tuple[time, time]:
    start = draw_minute(rng, part)
    while (end := draw_minute(rng, part)) == start:
        pass
    return min(start, end), max(start, end)


def write_times(value: tuple[time, time], locale: Locale) -> Styles:
    return [dates.format_interval(*value, "Hm", locale=locale)]


# Days of each, as Babel counts them.
SPANS = {"year": 365, "month": 30, "week": 7, "day": 1, "hour": 1 / 24, "minute": 1 / 1440, "second": 1 / 86400}


def draw_relative(rng: Random, part: str) -> tuple[int, str]:
    return drawn(part, lambda: (rng.choice((-1, 1)) * rng.randint(1, 99), rng.choice(list(SPANS))))


def write_relative(value: tuple[int, str], locale: Locale) -> Styles:
    """'3 days ago', 'in 2 years'; the threshold keeps Babel from choosing another unit."""
    count, span = value
    delta = timedelta(SPANS[span] * count)
    return [dates.format_timedelta(delta, span, threshold=1e9, add_direction=True, locale=locale)]


# Numbers -----------------------------------------------------------------------------------

UNITS = (
    *("length-kilometer", "length-meter", "length-centimeter", "length-mile", "length-foot", "area-square-kilometer"),
    *("area-square-meter", "volume-liter", "volume-cubic-meter", "mass-kilogram", "mass-gram", "mass-tonne"),
    *("temperature-celsius", "speed-kilometer-per-hour", "speed-meter-per-second", "energy-kilowatt-hour"),
    *("power-watt", "digital-megabyte", "digital-gigabyte", "angle-degree"),
)


def draw_number(rng: Random, part: str, digits: tuple[int, int] = (3, 7), places: tuple[int, int] = (0, 2)) -> Decimal:
    """A number of three digits or more, `places` of them behind the point, that does not end in 0."""

    def number() -> Decimal:
        most = 10 ** (rng.randint(*digits) - 1)
        return Decimal(rng.randrange(most // 10, most) * 10 + rng.randint(1, 9)).scaleb(-rng.randint(*places))

    return drawn(part, number)


def write_number(value: Decimal, locale: Locale) -> Styles:
    return [numbers.format_decimal(value, locale=locale)]


def draw_percent(rng: Random, part: str) -> Decimal:
    return draw_number(rng, part, (3, 4), (1, 2))


def write_percent(value: Decimal, locale: Locale) -> Styles:
    return [numbers.format_percent(value / 100, locale=locale, decimal_quantization=False)]


def draw_round(rng: Random, part: str) -> Decimal:
    """Thousands, millions and billions."""
    return drawn(part, lambda: Decimal(rng.randint(11, 999)).scaleb(rng.choice((3, 5, 6, 8, 9))).normalize())


def write_round(value: Decimal, locale: Locale) -> Styles:
    """'3.4 million', '3.4M'; thousands only as a word, since their short style is plain digits in some languages."""
    styles = [style if style in locale.compact_decimal_formats else "short" for style in ("long", "short")]
    return [
        numbers.format_compact_decimal(value, format_type=style, locale=locale, fraction_digits=4)
        for style in (styles if value >= 10**6 else styles[:1])
    ]


def draw_amount(rng: Random, part: str) -> tuple[Decimal, str]:
    currency = rng.choice(CURRENCIES)
    places = rng.choice((0, numbers.get_currency_precision(currency)))
    return draw_number(rng, part, (3, 6), (places, places)), currency


def write_amount(value: tuple[Decimal, str], locale: Locale) -> Styles:
    named = numbers.format_currency(*value, locale=locale, format_type="name", currency_digits=False)
    return [named, numbers.format_currency(*value, locale=locale)]


def draw_measure(rng: Random, part: str) -> tuple[int | Decimal, str]:
    if rng.random() < 0.5:
        return drawn(part, lambda: (rng.randint(1, 30), rng.choice(UNITS)))
    return draw_number(rng, part, (3, 4), (0, 1)), rng.choice(UNITS)


def write_measure(value: tuple[int | Decimal, str], locale: Locale) -> Styles:
    return [measure(*value, style, locale) for style in ("long", "short")]


def measure(count: int | Decimal, unit: str, style: str, locale: Locale) -> str:
    """As CLDR inherits, which Babel does not: a plural without form takes the other one, no long style is short."""
    styles = localedata.load(str(locale))["unit_patterns"][unit]
    plural = locale.plural_form(count)
    patterns = (styles.get(each, {}).get(form) for each in (style, "short") for form in (plural, "other"))
    return next(filter(None, patterns)).format(numbers.format_decimal(count, locale=locale))


def draw_duration(rng: Random, part: str) -> tuple[tuple[int, str], ...]:
    def duration() -> tuple[tuple[int, str], ...]:
        start = rng.randrange(len(SPANS) - 1)
        return tuple((rng.randint(1, 59), span) for span in list(SPANS)[start : start + rng.randint(2, 3)])

    return drawn(part, duration)


def write_duration(value: tuple[tuple[int, str], ...], locale: Locale) -> Styles:
    return [join([measure(count, f"duration-{span}", "long", locale) for count, span in value], "standard", locale)]


# Kinds -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a value of a part is drawn, how it is written, and how often, relative to other kinds."""

    draw: Callable[[Random, str], Any]
    write: Callable[[Any, Locale], Styles]
    share: float


PLAIN = (
    Kind(draw_date, write_date, 4),
    Kind(draw_number, write_number, 4),
    Kind(draw_percent, write_percent, 2),
    Kind(draw_round, write_round, 3),
    Kind(draw_amount, write_amount, 4),
    Kind(draw_measure, write_measure, 4),
)


def draw_entry(rng: Random, part: str) -> tuple[Name, Kind, Any]:
    (kind,) = rng.choices(PLAIN, [kind.share for kind in PLAIN])
    return rng.choice(names("territories")), kind, kind.draw(rng, part)


def write_entry(value: tuple[Name, Kind, Any], locale: Locale) -> Styles:
    """A territory and a plain value of any kind: 'Japan: 3.4 million'."""
    name, kind, plain = value
    pattern = BEFORE_COLON.get(locale.language, "{}: {}")
    return [pattern.format(name_in(name, locale), kind.write(plain, locale)[0])]


KINDS = (
    *PLAIN,
    Kind(draw_names, write_names, 14),
    Kind(draw_pair, write_pair, 6),
    Kind(draw_entry, write_entry, 8),
    Kind(draw_month, write_month, 1.5),
    Kind(draw_quarter, write_quarter, 0.5),
    Kind(draw_day, write_day, 1),
    Kind(draw_time, write_time, 2),
    Kind(draw_moment, write_moment, 2),
    Kind(draw_dates, write_dates, 3),
    Kind(draw_times, write_times, 1),
    Kind(draw_relative, write_relative, 3),
    Kind(draw_duration, write_duration, 3),
)
