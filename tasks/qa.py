"""Question answering on the countries of the world, without a download: 12 tasks and the mixture `qa`.

closed-book  qa_capital ... qa_country: the facts of data/world_facts.jsonl are trained; `validation` asks the
             same facts in all wordings, the unseen ones too.
yes/no       qa_yes_no_border ...: statements, half of them true; `validation` has the same statements in all
             wordings.
open-book    qa_open_book: a record is given and one of its attributes is asked. Countries are split by the
             sha256 of their ISO code: train 80%, `validation` 10%, `test` 10%. `exchanged` is `validation`
             with the values of its countries exchanged, which nobody can answer from memory.

Wordings are in qa_wordings.py. The facts are GeoNames' (CC BY 4.0; see data/README.md).
"""

import functools
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from t5x_lite.data.metrics import classification, exact_match, token_f1
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Rows
from tasks import qa_wordings as wordings

Fact = dict  # one line of world_facts.jsonl
Row = dict[str, str]

# Open-book training records made of each training country, beside its true one. Many, so that a run sees each
# only a few times: with two of each a small model learnt the records by heart and copied nothing.
EXCHANGED_RECORDS = 8
INVENTED_RECORDS = 40


@functools.cache
def world_facts() -> tuple[Fact, ...]:
    """All countries and territories, sorted by ISO code."""
    lines = (Path(__file__).parent / "data" / "world_facts.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def country_fields(name: str, phrase: str) -> Row:
    """The forms of a country's name that a wording may need."""
    return {
        "name": name,
        "country": phrase,
        "Country": phrase[0].upper() + phrase[1:],
        "possessive": phrase + ("'" if phrase.endswith("s") else "'s"),
    }


# Closed book -------------------------------------------------------------------------------


def closed_book(field: str) -> list[Row]:
    """One row for each country that has this fact."""
    return [
        country_fields(fact["name"], fact["phrase"]) | {"answer": fact[field]} for fact in world_facts() if fact[field]
    ]


def main_language() -> list[Row]:
    return [
        country_fields(fact["name"], fact["phrase"]) | {"answer": fact["languages"][0]}
        for fact in world_facts()
        if fact["languages"]
    ]


def country_of_capital() -> list[Row]:
    """Capitals back to countries, without those that two countries call their own (Kingston)."""
    count = Counter(fact["capital"] for fact in world_facts())
    return [
        {"capital": fact["capital"], "answer": fact["name"]}
        for fact in world_facts()
        if fact["capital"] and count[fact["capital"]] == 1
    ]


# Yes or no ---------------------------------------------------------------------------------


# Statements that are neither plainly true nor false, so they are not asked: countries on two continents, and
# borders of overseas parts or disputed land.
CONTESTED = {
    *[("Turkey", "Europe"), ("Russia", "Asia"), ("Kazakhstan", "Europe"), ("Georgia", "Europe")],
    *[("Azerbaijan", "Europe"), ("Armenia", "Europe"), ("Cyprus", "Asia"), ("Egypt", "Asia")],
    *[("Timor-Leste", "Oceania"), ("Indonesia", "Oceania"), ("Panama", "South America")],
    *[("France", "Brazil"), ("France", "Suriname"), ("the United Kingdom", "Spain"), ("Denmark", "Canada")],
    *[("Serbia", "Albania"), ("Morocco", "Mauritania"), ("the United States", "Cuba")],
}


def false_partners(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Gives the subject of each true pair a partner that is false of it, and no false pair twice.

    The partners are the true ones in another order, so that each subject and each partner is in as many true
    as false statements: neither alone tells the answer. Raises ValueError where no such order is found.
    """
    taken = {*pairs, *CONTESTED, *((second, first) for first, second in CONTESTED)}
    subjects = [subject for subject, _ in pairs]
    partners = [partner for _, partner in pairs]
    rng = random.Random("false partners")
    rng.shuffle(partners)

    def wrong(index: int, count: Counter) -> bool:
        pair = (subjects[index], partners[index])
        return pair in taken or pair[0] == pair[1] or count[pair] > 1

    for _ in range(20 * len(pairs)):
        count = Counter(zip(subjects, partners, strict=True))
        bad = [index for index in range(len(pairs)) if wrong(index, count)]
        if not bad:
            return partners
        for index in bad:
            other = rng.randrange(len(pairs))
            partners[index], partners[other] = partners[other], partners[index]
    raise ValueError("no balanced set of false statements exists for these pairs")


def yes_no(field: str, pairs: Sequence[tuple[Fact, str]]) -> list[Row]:
    """Rows with `country` ... and `field`: each pair as a true statement, and as many false ones."""
    facts = {fact["phrase"]: fact for fact, _ in pairs}
    true = [(fact["phrase"], partner) for fact, partner in pairs]
    false = zip((subject for subject, _ in true), false_partners(true), strict=True)
    return [
        country_fields(facts[subject]["name"], subject) | {field: partner, "answer": answer}
        for answer, statements in (("yes", true), ("no", false))
        for subject, partner in statements
    ]


def borders() -> list[Row]:
    """Each border twice, once from either side."""
    phrase = {fact["name"]: fact["phrase"] for fact in world_facts()}
    return yes_no("other", [(fact, phrase[name]) for fact in world_facts() for name in fact["neighbours"]])


def claims(field: str, form: Callable[[str], str] = str) -> list[Row]:
    return yes_no(field, [(fact, form(fact[field])) for fact in world_facts() if fact[field]])


# Open book ---------------------------------------------------------------------------------

# What a record may hold; neighbours fill the record but are not asked for.
ASKED = ("capital", "continent", "currency", "main language", "calling code", "population", "area")


def rounded(number: int) -> str:
    """Three digits, as a text would say it: 126529100 -> '127 million', 377835 -> '378,000'."""
    for size, word in ((10**9, " billion"), (10**6, " million")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{round(number, 2 - int(math.log10(number))):,}"


def attributes(fact: Fact) -> Row:
    """A country's record: attribute -> value as text, without those that are not known."""
    values = {
        "capital": fact["capital"],
        "continent": fact["continent"],
        "currency": fact["currency"],
        "main language": next(iter(fact["languages"]), None),
        "calling code": fact["calling_code"],
        "population": fact["population"] and rounded(fact["population"]),
        "area": fact["area_km2"] and rounded(fact["area_km2"]) + " sq km",
        "neighbours": ", ".join(fact["neighbours"]) if len(fact["neighbours"]) <= 3 else None,
    }
    return {attribute: value for attribute, value in values.items() if value}


def part_of(iso: str) -> str:
    """'train', 'validation' or 'test' (80/10/10) by the sha256 of the ISO code."""
    share = int.from_bytes(hashlib.sha256(iso.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def exchange(records: Sequence[Row], seed: str) -> list[Row]:
    """The same records, each attribute's values dealt out anew among those that have the attribute."""
    rng = random.Random(seed)
    exchanged = [dict(record) for record in records]
    for attribute in (*ASKED, "neighbours"):
        holders = [record for record in exchanged if attribute in record]
        values = [record[attribute] for record in holders]
        rng.shuffle(values)
        for record, value in zip(holders, values, strict=True):
            record[attribute] = value
    return exchanged


def invented_word(words: Sequence[str], rng: random.Random) -> str:
    """The first half of one word and the second of another: 'Tokyo', 'Lisbon' -> 'Tobon'."""
    first, second = (rng.choice(words).split()[-1] for _ in range(2))
    return (first[: (len(first) + 1) // 2] + second[len(second) // 2 :].lower()).capitalize()


def invent(records: Sequence[Row], seed: str) -> list[Row]:
    """As many records of no country: capitals, currencies and languages that are no word, and random numbers.

    Exchanged records hold only the values of training countries; these teach to copy strings never seen.
    """
    rng = random.Random(seed)
    known = {name: [record[name] for record in records if name in record] for name in (*ASKED, "neighbours")}

    def record() -> Row:
        return {
            "capital": invented_word(known["capital"], rng),
            "continent": rng.choice(known["continent"]),
            "currency": invented_word(known["currency"], rng),
            "main language": invented_word(known["main language"], rng),
            "calling code": f"+{rng.randrange(10, 1000)}",
            "population": rounded(int(10 ** rng.uniform(3, 9.2))),
            "area": rounded(int(10 ** rng.uniform(1, 7.2))) + " sq km",
            "neighbours": rng.choice(known["neighbours"]),
        }

    return [record() for _ in records]


SENTENCES = {
    "capital": "Its capital is {}.",
    "continent": "It is in {}.",
    "currency": "People pay with the {}.",
    "main language": "People speak {}.",
    "calling code": "Its calling code is {}.",
    "population": "It has {} people.",
    "area": "It covers {}.",
    "neighbours": "It borders {}.",
}


def written(name: str, items: Sequence[tuple[str, str]], style: int) -> str:
    """One record as text, in one of six styles."""
    if style == 0:
        return "\n".join([f"Country: {name}", *(f"{key.capitalize()}: {value}" for key, value in items)])
    if style == 1:
        return f"{name}: " + "; ".join(f"{key} {value}" for key, value in items)
    if style == 2:
        return " | ".join([name, *(f"{key} = {value}" for key, value in items)])
    if style == 3:
        return json.dumps({"country": name, **dict(items)})
    if style == 4:
        return "\n".join([name, *(f"- {key}: {value}" for key, value in items)])
    return " ".join([f"This is about {name}.", *(SENTENCES[key].format(value) for key, value in items)])


STYLES = 6


def questions(name: str, phrase: str, record: Row, seed: str) -> list[Row]:
    """Asks for each attribute of a record, each time beside one to four others, in a new order and style."""
    rng = random.Random(seed)
    rows = []
    for asked in ASKED:
        if asked not in record:
            continue
        others = [attribute for attribute in record if attribute != asked]
        shown = [asked, *rng.sample(others, min(len(others), rng.randint(1, 4)))]
        rng.shuffle(shown)
        text = written(name, [(attribute, record[attribute]) for attribute in shown], rng.randrange(STYLES))
        fields = {"record": text, "attribute": asked, "answer": record[asked]}
        rows.append(country_fields(name, phrase) | fields)
    return rows


@functools.cache
def open_book_train(exchanged: int = EXCHANGED_RECORDS, invented: int = INVENTED_RECORDS) -> list[Row]:
    """True records of the training countries, and `exchanged` and `invented` untrue ones for each of them.

    An exchanged record has the values of other training countries, an invented one is of no country at all,
    its name included: only reading the record gives the answer.
    """
    facts = [fact for fact in world_facts() if part_of(fact["iso"]) == "train"]
    names = [(fact["name"], fact["phrase"]) for fact in facts]
    records = [attributes(fact) for fact in facts]
    rows = []
    for turn in range(1 + exchanged):
        turned = exchange(records, f"exchange {turn}") if turn else records
        for (name, phrase), record in zip(names, turned, strict=True):
            rows += questions(name, phrase, record, f"{name} {turn}")
    for turn in range(invented):
        rng = random.Random(f"names {turn}")
        for record in invent(records, f"invent {turn}"):
            name = invented_word([name for name, _ in names], rng)
            rows += questions(name, name, record, f"{name} {record['capital']} {turn}")
    return rows


def open_book_held_out(part: str, exchanged: bool = False) -> list[Row]:
    """Records of countries that open-book training never shows: true, or with their values exchanged."""
    facts = [fact for fact in world_facts() if part_of(fact["iso"]) == part]
    records = [attributes(fact) for fact in facts]
    if exchanged:
        records = exchange(records, f"exchange {part}")
    return [
        row
        for fact, record in zip(facts, records, strict=True)
        for row in questions(fact["name"], fact["phrase"], record, f"{fact['name']} {part}")
    ]


# Registration ------------------------------------------------------------------------------

CLOSED_BOOK = {
    "qa_capital": (functools.partial(closed_book, "capital"), wordings.CAPITAL),
    "qa_continent": (functools.partial(closed_book, "continent"), wordings.CONTINENT),
    "qa_currency": (functools.partial(closed_book, "currency"), wordings.CURRENCY),
    "qa_currency_code": (functools.partial(closed_book, "currency_code"), wordings.CURRENCY_CODE),
    "qa_language": (main_language, wordings.LANGUAGE),
    "qa_calling_code": (functools.partial(closed_book, "calling_code"), wordings.CALLING_CODE),
    "qa_country": (country_of_capital, wordings.COUNTRY),
}

YES_NO = {
    "qa_yes_no_border": (borders, wordings.BORDER),
    "qa_yes_no_continent": (functools.partial(claims, "continent"), wordings.IS_CONTINENT),
    "qa_yes_no_capital": (functools.partial(claims, "capital"), wordings.IS_CAPITAL),
    "qa_yes_no_currency": (functools.partial(claims, "currency", str.lower), wordings.IS_CURRENCY),
}

for _name, (_rows, _templates) in CLOSED_BOOK.items():
    register_task(_name, Rows({"train": _rows, "validation": _rows}), _templates, metrics=[exact_match, token_f1])

for _name, (_rows, _templates) in YES_NO.items():
    register_task(
        _name,
        Rows({"train": _rows, "validation": _rows}),
        _templates,
        metrics=[classification(("yes", "no"))],
        renderings_per_row=6,
    )

register_task(
    "qa_open_book",
    Rows(
        {
            "train": open_book_train,
            "validation": functools.partial(open_book_held_out, "validation"),
            "test": functools.partial(open_book_held_out, "test"),
            "exchanged": functools.partial(open_book_held_out, "validation", exchanged=True),
        }
    ),
    wordings.OPEN_BOOK,
    metrics=[exact_match, token_f1],
    renderings_per_row=1,
)

# The cap (FLAN's rule) gives the open-book task about a third of the mixture, not the two thirds of its size.
register_mixture("qa", [*CLOSED_BOOK, *YES_NO, "qa_open_book"], rates="proportional", cap=20_000)
