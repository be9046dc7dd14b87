"""Rows and wordings of the world-facts tasks."""

import re
from collections import Counter

import pytest
import seqio

from t5x_lite.data import registry
from t5x_lite.data.metrics import normalize_answer
from tasks import qa
from tasks import qa_wordings as wordings

TASKS = {
    **qa.CLOSED_BOOK,
    **qa.YES_NO,
    "qa_open_book": (qa.open_book_train, wordings.OPEN_BOOK),
}
# The word by which a wording says what it asks; one of them is in every wording of the relation.
KEYWORDS = {
    "qa_capital": {"capital"},
    "qa_continent": {"continent"},
    "qa_currency": {"currency", "money"},
    "qa_currency_code": {"code"},
    "qa_language": {"language"},
    "qa_calling_code": {"calling", "phone", "call", "dial"},
    "qa_country": {"capital"},
    "qa_yes_no_border": {"border", "borders", "neighbour", "neighbours"},
    "qa_yes_no_continent": {"{continent}"},
    "qa_yes_no_capital": {"capital"},
    "qa_yes_no_currency": {"{currency}"},
    "qa_open_book": {"{attribute}"},
}


def words(template: str) -> list[str]:
    return re.findall(r"[a-z][a-z'-]*|\{[A-Za-z]+\}", template.lower())


def by_split(templates, split):
    return [template for template in templates if template.split == split]


# Wordings


@pytest.mark.parametrize("task", TASKS)
def test_enough_wordings_all_different(task):
    templates = TASKS[task][1]
    assert len(by_split(templates, "seen")) >= 8
    assert len(by_split(templates, "unseen")) >= 3
    assert len({template.name for template in templates}) == len(templates)
    assert len({" ".join(words(template.inputs)) for template in templates}) == len(templates)


@pytest.mark.parametrize("task", TASKS)
def test_wordings_fit_the_rows(task):
    rows, templates = TASKS[task]
    row = rows()[0]
    for template in templates:
        assert set(template.fields) <= set(row), (task, template.name)
        assert words(template.inputs) and KEYWORDS[task] & set(words(template.inputs)), template.inputs


@pytest.mark.parametrize("task", TASKS)
def test_unseen_wordings_use_words_that_are_trained(task):
    """A model trained from nothing cannot know a word it never saw."""
    trained = {word for _, templates in TASKS.values() for t in by_split(templates, "seen") for word in words(t.inputs)}
    for template in by_split(TASKS[task][1], "unseen"):
        assert set(words(template.inputs)) <= trained, set(words(template.inputs)) - trained


def test_the_readme_question_is_trained():
    japan = next(row for row in qa.closed_book("capital") if row["name"] == "Japan")
    inputs = [template.render(japan) for template in by_split(wordings.CAPITAL, "seen")]
    assert ("What is the capital of Japan?", "Tokyo") in inputs


def test_no_two_tasks_answer_one_input_differently():
    answers = {}
    for rows, templates in TASKS.values():
        for row in rows():
            for template in templates:
                inputs, target = template.render(row)
                assert answers.setdefault(inputs, target) == target, inputs


# Closed book


@pytest.mark.parametrize("task", qa.CLOSED_BOOK)
def test_closed_book_inputs_do_not_hold_the_answer(task):
    """Except where the country's own name holds it: Luxembourg, Kuwait City, Mexico City."""
    rows, templates = qa.CLOSED_BOOK[task]
    own = {"capital"} if task == "qa_country" else {"name", "country", "Country", "possessive"}
    for row in rows():
        hidden = row | {field: "X" for field in own if field in row}
        for template in templates:
            inputs, answer = template.render(hidden)
            assert not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", inputs), (inputs, answer)


def test_forms_of_a_name():
    assert qa.country_fields("Bahamas", "the Bahamas") == {
        "name": "Bahamas",
        "country": "the Bahamas",
        "Country": "The Bahamas",
        "possessive": "the Bahamas'",
    }
    assert qa.country_fields("Japan", "Japan")["possessive"] == "Japan's"


def test_country_of_capital_drops_what_two_countries_share():
    capitals = [row["capital"] for row in qa.country_of_capital()]
    assert "Kingston" not in capitals and "Tokyo" in capitals
    assert len(set(capitals)) == len(capitals) == 242


# Yes or no


def test_false_partners_by_hand():
    """Two true pairs: the only other arrangement swaps them."""
    assert qa.false_partners([("Japan", "Tokyo"), ("Peru", "Lima")]) == ["Lima", "Tokyo"]
    with pytest.raises(ValueError, match="balanced"):
        qa.false_partners([("Japan", "Asia"), ("China", "Asia")])


@pytest.mark.parametrize("task", qa.YES_NO)
def test_yes_and_no_are_balanced_in_every_side(task):
    rows = qa.YES_NO[task][0]()
    partner = next(field for field in ("other", "continent", "capital", "currency") if field in rows[0])
    true = [row for row in rows if row["answer"] == "yes"]
    false = [row for row in rows if row["answer"] == "no"]
    assert len(true) == len(false) == len(rows) / 2
    for field in ("country", partner):
        assert Counter(row[field] for row in true) == Counter(row[field] for row in false)
    assert len({(row["country"], row[partner]) for row in rows}) == len(rows)
    assert not {(row["country"], row[partner]) for row in false} & qa.CONTESTED


def test_statements_of_the_table():
    borders = {(row["country"], row["other"]): row["answer"] for row in qa.borders()}
    assert borders["Spain", "Portugal"] == borders["Portugal", "Spain"] == "yes"
    euro = {(row["country"], row["currency"]): row["answer"] for row in qa.claims("currency", str.lower)}
    assert euro["France", "euro"] == "yes" and "no" in euro.values()


# Open book


def test_countries_of_the_open_book_splits_are_disjoint():
    parts = {
        "train": {row["name"] for row in qa.open_book_train(exchanged=1, invented=0)},
        "validation": {row["name"] for row in qa.open_book_held_out("validation")},
        "test": {row["name"] for row in qa.open_book_held_out("test")},
    }
    assert parts["validation"] == {row["name"] for row in qa.open_book_held_out("validation", exchanged=True)}
    assert sum(len(names) for names in parts.values()) == len(set().union(*parts.values())) == 250
    assert 0.75 * 250 < len(parts["train"]) < 0.85 * 250


def test_held_out_values_are_not_taught_by_exchanged_records():
    held_out = {fact["capital"] for fact in qa.world_facts() if qa.part_of(fact["iso"]) != "train"}
    answers = {row["answer"] for row in qa.open_book_train() if row["attribute"] == "capital"}
    assert answers & held_out == {"Kingston"}  # Jamaica's and Norfolk Island's


@pytest.mark.parametrize(
    "rows", [qa.open_book_train(), qa.open_book_held_out("validation"), qa.open_book_held_out("test", True)]
)
def test_every_open_book_answer_is_in_its_record(rows):
    for row in rows:
        assert row["answer"] in row["record"] and row["name"] in row["record"], row


def test_number_of_open_book_records_is_a_parameter():
    true = qa.open_book_train(exchanged=0, invented=0)
    assert len(qa.open_book_train(exchanged=3, invented=0)) == 4 * len(true)
    assert qa.open_book_train(exchanged=1, invented=1) == qa.open_book_train(exchanged=1, invented=1)


def test_exchange_keeps_the_values_and_moves_them():
    records = [{"capital": str(number), "area": str(-number)} for number in range(50)] + [{"area": "1"}]
    exchanged = qa.exchange(records, "seed")
    assert [set(record) for record in exchanged] == [set(record) for record in records]
    assert sorted(record["area"] for record in exchanged) == sorted(record["area"] for record in records)
    moved = sum(before != after for before, after in zip(records, exchanged, strict=True))
    assert moved > 40
    assert sum(record.get("capital") == str(-int(record["area"])) for record in exchanged) < 10


def test_exchanged_answers_differ_from_the_true_ones():
    true = {(row["name"], row["attribute"]): row["answer"] for row in qa.open_book_held_out("validation")}
    rows = [row for row in qa.open_book_held_out("validation", True) if row["attribute"] == "capital"]
    assert sum(row["answer"] != true[row["name"], "capital"] for row in rows) > 0.8 * len(rows)


def test_invented_answers_are_no_real_ones():
    real = {normalize_answer(fact["capital"]) for fact in qa.world_facts() if fact["capital"]}
    records = qa.invent([qa.attributes(fact) for fact in qa.world_facts()], "seed")
    invented = {normalize_answer(record["capital"]) for record in records}
    assert len(invented) > 200 and len(invented & real) < 10


def test_written_styles_by_hand():
    items = [("capital", "Tokyo"), ("currency", "Yen")]
    assert [qa.written("Japan", items, style) for style in range(qa.STYLES)] == [
        "Country: Japan\nCapital: Tokyo\nCurrency: Yen",
        "Japan: capital Tokyo; currency Yen",
        "Japan | capital = Tokyo | currency = Yen",
        '{"country": "Japan", "capital": "Tokyo", "currency": "Yen"}',
        "Japan\n- capital: Tokyo\n- currency: Yen",
        "This is about Japan. Its capital is Tokyo. People pay with the Yen.",
    ]


def test_rounded_by_hand():
    assert qa.rounded(1352617328) == "1.35 billion"
    assert qa.rounded(126529100) == "127 million"
    assert qa.rounded(1_000_000) == "1 million"
    assert qa.rounded(999_999) == "1,000,000"
    assert qa.rounded(377835) == "378,000"
    assert qa.rounded(46) == "46"


# Registration


def test_mixture_holds_every_task_and_a_size_that_trains_in_minutes():
    mixture = seqio.MixtureRegistry.get("qa")
    assert {task.name for task in mixture.tasks} == set(TASKS)
    sizes = {task.name: registry.num_examples(task, "train") for task in mixture.tasks}
    assert 20_000 < sum(sizes.values()) < 120_000
    assert mixture.get_rate(seqio.TaskRegistry.get("qa_capital")) == sizes["qa_capital"]
    assert mixture.get_rate(seqio.TaskRegistry.get("qa_open_book")) == 20_000 < sizes["qa_open_book"]


@pytest.mark.parametrize(
    "task", ["qa_capital", "qa_yes_no_capital", pytest.param("qa_open_book", marks=pytest.mark.slow)]
)
def test_training_never_shows_an_unseen_wording(task):
    splits = {}
    for split in ("train", "validation"):
        dataset = seqio.TaskRegistry.get(task).get_dataset(None, split=split, shuffle=False)
        splits[split] = {example["template_split"] for example in dataset.as_numpy_iterator()}
    assert splits == {"train": {b"seen"}, "validation": {b"seen", b"unseen"}}
