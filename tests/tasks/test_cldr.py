"""What CLDR says in each language, and what is held out of it. Expected texts are by hand, from CLDR's charts."""

import datetime
import hashlib
import os
import re
import subprocess
import sys
import unicodedata
from decimal import Decimal
from random import Random

import pytest

from tasks import cldr

DAY = datetime.date(2024, 3, 5)  # a Tuesday
MOMENT = datetime.datetime(2024, 3, 5, 15, 7)


FIRST_STYLES = {
    (cldr.write_date, DAY): {
        "en": "Tuesday, March 5, 2024",
        "de": "Dienstag, 5. März 2024",
        "ru": "вторник, 5 марта 2024\u202fг.",
        "zh": "2024年3月5日星期二",
        "ja": "2024年3月5日火曜日",
        "ar": "الثلاثاء، 5 مارس 2024",
    },
    (cldr.write_month, (2024, 5)): {"en": "May 2024", "pl": "maj 2024", "pt": "maio de 2024", "ja": "2024年5月"},
    (cldr.write_quarter, (2024, "Q", 3)): {"en": "3rd quarter 2024", "de": "3. Quartal 2024", "pl": "III kwartał 2024"},
    (cldr.write_day, (5, 10)): {"en": "May 10", "pl": "10 maja", "es": "10 de mayo", "zh": "5月10日"},
    (cldr.write_time, datetime.time(15, 7)): {"en": "3:07\u202fPM", "fr": "15:07", "ar": "3:07 م"},
    (cldr.write_moment, MOMENT): {"en": "Tuesday, March 5, 2024, 3:07\u202fPM", "ja": "2024年3月5日火曜日 15:07"},
    (cldr.write_times, (datetime.time(9, 5), datetime.time(15, 20))): {
        "de": "09:05–15:20 Uhr",
        "ja": "9時05分～15時20分",
    },
    (cldr.write_dates, (DAY, datetime.date(2024, 3, 17))): {"de": "5.–17. März 2024", "zh": "2024年3月5日至17日"},
    (cldr.write_relative, (-3, "day")): {"en": "3 days ago", "de": "vor 3 Tagen", "ru": "3 дня назад", "zh": "3天前"},
    (cldr.write_relative, (2, "week")): {"en": "in 2 weeks", "pl": "za 2 tygodnie", "ar": "خلال أسبوعين"},
    (cldr.write_number, Decimal("1234567.5")): {
        "en": "1,234,567.5",
        "de": "1.234.567,5",
        "fr": "1\u202f234\u202f567,5",
    },
    (cldr.write_percent, Decimal("12.5")): {"en": "12.5%", "de": "12,5\xa0%", "it": "12,5%"},
    (cldr.write_round, Decimal("3.4E+6")): {"en": "3.4 million", "pl": "3,4 miliona", "zh": "340万", "ja": "340万"},
    (cldr.write_round, Decimal("1.2E+9")): {"en": "1.2 billion", "es": "1,2 mil millones", "zh": "12亿"},
    (cldr.write_amount, (Decimal("21"), "RUB")): {"en": "21 Russian rubles", "ru": "21 российский рубль"},
    (cldr.write_amount, (Decimal("7301"), "JPY")): {"en": "7,301 Japanese yen", "ja": "7,301円"},
    (cldr.write_measure, (3, "length-meter")): {"ru": "3 метра", "pl": "3 metry", "ar": "3 أمتار", "zh": "3米"},
    (cldr.write_measure, (1, "length-foot")): {"en": "1 foot", "de": "1 Fuß", "fr": "1\xa0pied", "ja": "1 フィート"},
    (cldr.write_duration, ((4, "year"), (2, "month"))): {"en": "4 years and 2 months", "it": "4 anni e 2 mesi"},
    (cldr.write_duration, ((48, "hour"), (3, "minute"))): {"nl": "48 uur en 3 minuten", "zh": "48小时和3分钟"},
    (cldr.write_pair, (("languages", "pt"), ("territories", "BR"))): {
        "en": "Portuguese (Brazil)",
        "zh": "葡萄牙语（巴西）",
        "ja": "ポルトガル語 (ブラジル)",
    },
}


@pytest.mark.parametrize("write_value", FIRST_STYLES, ids=lambda pair: f"{pair[0].__name__} {pair[1]}")
def test_first_styles_by_hand(write_value):
    write, value = write_value
    written = FIRST_STYLES[write_value]
    assert {language: write(value, cldr.locale(language))[0] for language in written} == written


def test_other_styles_by_hand():
    def styles(write, value, language):
        return write(value, cldr.locale(language))[1:]

    assert styles(cldr.write_date, DAY, "en") == ["March 5, 2024", "Mar 5, 2024", "3/5/24"]
    assert styles(cldr.write_date, DAY, "ar") == ["5 مارس 2024", "05\u200f/03\u200f/2024", "5\u200f/3\u200f/2024"]
    assert styles(cldr.write_amount, (Decimal("7301"), "JPY"), "ja") == ["￥7,301"]
    assert styles(cldr.write_amount, (Decimal("12.34"), "EUR"), "de") == ["12,34\xa0€"]
    assert styles(cldr.write_round, Decimal("3.4E+6"), "sv") == ["3,4\xa0mn"]
    assert styles(cldr.write_round, Decimal("3.4E+3"), "sv") == []
    assert styles(cldr.write_measure, (3, "length-meter"), "fr") == ["3\u202fm"]


@pytest.mark.parametrize(
    ("language", "codes", "both", "either"),
    [
        ("en", "FR DE JP", "France, Germany, and Japan", "France, Germany, or Japan"),
        ("zh", "FR DE JP", "法国、德国和日本", "法国、德国或日本"),
        ("ar", "FR JP", "فرنسا واليابان", "فرنسا أو اليابان"),
        ("es", "FR DE", "Francia y Alemania", "Francia o Alemania"),
        ("es", "DE IT", "Alemania e Italia", "Alemania o Italia"),
        ("es", "DE OM", "Alemania y Omán", "Alemania u Omán"),
        ("es", "AG IT", "Antigua y Barbuda e Italia", "Antigua y Barbuda o Italia"),
    ],
)
def test_lists_by_hand(language, codes, both, either):
    value = [("territories", code) for code in codes.split()]
    assert cldr.write_names(value, cldr.locale(language)) == [both, either]


@pytest.mark.parametrize(
    ("last", "joined"),
    [("hielo", "agua y hielo"), ("hijo", "agua e hijo"), ("8 km", "agua y 8 km"), ("Irán", "agua e Irán")],
)
def test_spanish_and_before_its_own_sound(last, joined):
    assert cldr.join(["agua", last], "standard", cldr.locale("es")) == joined


@pytest.mark.parametrize(
    ("last", "joined"), [("8 km", "3 km u 8 km"), ("11 km", "3 km u 11 km"), ("110 km", "3 km o 110 km")]
)
def test_spanish_or_before_its_own_sound(last, joined):
    assert cldr.join(["3 km", last], "or", cldr.locale("es")) == joined


def test_entries_by_hand():
    plain = next(kind for kind in cldr.PLAIN if kind.write is cldr.write_number)
    value = (("territories", "JP"), plain, Decimal("1234"))
    written = {language: cldr.write_entry(value, cldr.locale(language)) for language in ("en", "fr", "zh")}
    assert written == {"en": ["Japan: 1,234"], "fr": ["Japon\xa0: 1\u202f234"], "zh": ["日本：1,234"]}


def test_one_language_does_not_show_in_another():
    """Babel keeps what it resolved for one language where the next one finds it (its issue 1234)."""
    may = {language: cldr.name_in(("months", 5), cldr.locale(language)) for language in ("ja", "zh", "ar", "de", "pl")}
    assert may == {"ja": "5月", "zh": "五月", "ar": "مايو", "de": "Mai", "pl": "maj"}


def test_all_names_are_there():
    sizes = {sort: len(cldr.names(sort)) for sort in cldr.SORTS}
    assert sizes["territories"] > 240 and sizes["languages"] > 100
    assert (sizes["currencies"], sizes["weekdays"], sizes["months"]) == (len(cldr.CURRENCIES), 7, 12)


@pytest.mark.parametrize("language", cldr.LANGUAGES)
def test_no_two_names_are_one(language):
    """Or its translation would be a guess: 'Nauru' is a territory and, in English, a language."""
    found = [cldr.name_in(name, cldr.locale(language)) for sort in cldr.SORTS for name in cldr.names(sort)]
    assert all(found) and len(set(found)) == len(found)


@pytest.mark.parametrize("kind", cldr.KINDS, ids=lambda kind: kind.write.__name__)
def test_every_language_writes_every_value_in_as_many_styles(kind):
    """No unit's id, no placeholder, nothing that NFC would change."""
    rng = Random("styles")
    for value in [kind.draw(rng, "train") for _ in range(60)]:
        written = [kind.write(value, cldr.locale(language)) for language in cldr.LANGUAGES]
        assert len({len(styles) for styles in written}) == 1
        for text in (text for styles in written for text in styles):
            assert text.strip() == text and not re.search(r"[{}_]|[a-z]{4,}-[a-z]+-[a-z]|duration|length-", text), text
            assert unicodedata.is_normalized("NFC", text)


# Parts

PARTS = ("train", "validation", "test")


def test_parts_by_hand():
    """The first 8 bytes of the sha256 of the repr, as a share of 1."""
    share = int(hashlib.sha256(b"datetime.date(2024, 3, 5)").hexdigest()[:16], 16) / 16**16
    assert cldr.part_of(DAY) == ("train" if share < 0.8 else "validation" if share < 0.9 else "test")
    parts = [cldr.part_of(number) for number in range(10_000)]
    assert [parts.count(part) / 10_000 for part in PARTS] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


@pytest.mark.parametrize("kind", cldr.KINDS, ids=lambda kind: kind.write.__name__)
def test_no_text_is_in_two_parts(kind):
    texts = {}
    for part in PARTS:
        rng = Random(f"{kind.write.__name__} {part}")
        texts[part] = {text for _ in range(800) for text in kind.write(kind.draw(rng, part), cldr.locale("en"))}
    assert all(len(found) > 30 for found in texts.values())
    assert not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]


def test_a_date_held_out_is_held_out_in_moments_intervals_and_entries():
    """Read from the English text, not from the values: month, day and year wherever they stand together."""
    found = {}
    for part in PARTS:
        rng = Random(part)
        texts = [
            text
            for kind in cldr.KINDS
            for _ in range(250)
            for text in kind.write(kind.draw(rng, part), cldr.locale("en"))
        ]
        found[part] = {match for text in texts for match in re.findall(r"([A-Z][a-z]{2})[a-z]* (\d+), (\d{4})", text)}
        assert len(found[part]) > 250
    assert not found["train"] & (found["validation"] | found["test"])


def test_a_number_held_out_is_held_out_in_percentages_amounts_measures_and_entries():
    numbers = {}
    for part in PARTS:
        rng = Random(part)
        values = [kind.draw(rng, part) for kind in cldr.KINDS for _ in range(500)]
        numbers[part] = {number for value in values for number in decimals(value)}
        assert len(numbers[part]) > 500
    assert not numbers["train"] & (numbers["validation"] | numbers["test"])


def decimals(value):
    if isinstance(value, tuple):
        return {number for part in value for number in decimals(part)}
    return {value} if isinstance(value, Decimal) else set()


def test_the_same_names_in_another_order_are_in_the_same_part():
    drawn = [cldr.draw_names(Random(seed), "validation") for seed in range(50)]
    assert {cldr.part_of(sorted(names)) for names in drawn} == {"validation"}
    assert any(names != sorted(names) for names in drawn)


def test_values_are_the_same_in_every_process(tmp_path):
    code = (
        "from random import Random; from tasks import cldr; import hashlib;"
        "rng = Random('x');"
        "texts = [t for k in cldr.KINDS for _ in range(20) for t in k.write(k.draw(rng, 'test'), cldr.locale('ja'))];"
        "print(hashlib.sha256(repr(texts).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1 and digests != {""}
