import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data import vocabularies
from t5x_lite.data.instructions import BestItems, Instructions
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.errors import UserError

TEMPLATES = (
    InstructionTemplate("plain", "{n}?", "{n}!"),
    InstructionTemplate("long", "What is {n}?", "{n}!"),
    InstructionTemplate("ask", "Say {n}.", "{n}!", split="unseen"),
)


def instructions(count=4, templates=TEMPLATES, **settings):
    rows = [{"n": n, "all": [n, -n]} for n in range(count)]
    return Instructions("numbers", Rows({"train": rows, "test": rows[:2]}), templates, **settings)


def test_train_has_seen_wordings_and_other_splits_all():
    made = instructions()
    assert [(e["inputs"], e["targets"], e["template"]) for e in made.render("train")][:3] == [
        ("0?", "0!", "plain"),
        ("What is 0?", "0!", "long"),
        ("1?", "1!", "plain"),
    ]
    assert [(e["template"], e["template_split"]) for e in made.render("test")][:3] == [
        ("plain", "seen"),
        ("long", "seen"),
        ("ask", "unseen"),
    ]
    assert (made.size("train"), made.size("test")) == (8, 6)


def test_size_is_the_number_of_examples():
    for settings in ({}, {"renderings_per_row": 1}, {"renderings_per_row": 5}):
        made = instructions(7, **settings)
        for split in ("train", "test"):
            assert made.size(split) == len(list(made.render(split)))


def test_one_rendering_a_row_is_the_same_one_each_time_and_uses_all_wordings():
    made = instructions(40, renderings_per_row=1)
    first, again = ([e["template"] for e in made.render("train")] for _ in range(2))
    assert first == again
    assert {first.count("plain") + first.count("long")} == {40}
    assert min(first.count("plain"), first.count("long")) > 8


@given(st.integers(6, 30), st.integers(1, 5))
def test_exemplars_are_others_of_the_same_wording(count, shots):
    for split in ("train", "test"):
        for example in instructions(count, few_shot=shots).render(split):
            *shown, asked = example["inputs"].split("\n\n")
            questions = [exemplar.split("\n")[0] for exemplar in shown]
            assert len(shown) == shots
            assert len({*questions, asked}) == shots + 1  # never the row itself, none twice
            assert {q.rstrip("?.0123456789") for q in questions} == {asked.rstrip("?.0123456789")}


def test_a_row_that_reads_like_this_one_is_no_exemplar():
    """Two rows that differ only in what no wording shows would give the answer away."""
    rows = [{"n": 1, "id": 1}, {"n": 1, "id": 2}, {"n": 2, "id": 3}]
    made = Instructions("numbers", Rows({"train": rows}), TEMPLATES[:1], few_shot=1)
    assert [e["inputs"] for e in made.render("train")] == ["2?\n2!\n\n1?", "2?\n2!\n\n1?", "1?\n1!\n\n2?"]


def test_too_few_rows_for_exemplars_is_said():
    with pytest.raises(UserError, match="few_shot is 4, but its train split has only 3"):
        list(instructions(4, few_shot=4).render("train"))


def test_answers_are_the_targets_or_a_field():
    assert next(instructions().render("train"))["answers"] == ["0!"]
    assert [e["answers"] for e in instructions(answers_field="all").render("test")][3] == ["1", "-1"]


def test_what_a_question_is_asked_with_goes_along():
    """And nothing else of the row."""
    rows = [
        {"n": 0, "all": [0], "prefix": "0!", "denied": [3, 4]},
        {"n": 1, "all": [1], "prefix": "", "denied": (), "allowed": [1, 2]},
        {"n": 2, "all": [2]},
    ]
    made = Instructions("numbers", Rows({"train": rows}), TEMPLATES[:1], answer_with=BestItems())
    plain = {"inputs", "targets", "template", "template_split", "answers"}
    rendered = list(made.render("train"))
    assert [{key: value for key, value in example.items() if key not in plain} for example in rendered] == [
        {"prefix": "0!", "denied": [3, 4]},
        {"prefix": "", "denied": (), "allowed": [1, 2]},
        {},
    ]
    tokenized = made.tokenize(rendered[1], vocabularies.byte(), {"inputs": 9, "targets": 9})
    assert (tokenized["prefix"], tokenized["denied"], tokenized["allowed"]) == ("", (), [1, 2])


def test_tokens_are_cut_before_the_end_of_sequence():
    example = {"inputs": "abcdef", "targets": "a", "template": "plain"}
    made = instructions().tokenize(example, vocabularies.byte(), {"inputs": 4, "targets": 4})
    assert made == {
        "inputs": [100, 101, 102, 1],
        "targets": [100, 1],
        "inputs_pretokenized": "abcdef",
        "targets_pretokenized": "a",
        "template": "plain",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"templates": (*TEMPLATES, TEMPLATES[0])}, "two templates are named 'plain'"),
        ({"templates": TEMPLATES[2:]}, "no template of split 'seen'"),
        ({"templates": (InstructionTemplate("t", "{nn}", "{n}"),)}, "no field 'nn' in the row; nearest: 'n'"),
        ({"few_shot": 6}, "few_shot is 6; it must be 0 to 5"),
        ({"renderings_per_row": 0}, "renderings_per_row is 0"),
        ({"answers_field": "al"}, "answers_field 'al' is None in a row; nearest: 'all'"),
        ({"answers_field": "n"}, "answers_field 'n'"),
        ({"count": 0}, "train split has no rows"),
    ],
)
def test_what_cannot_be_rendered_is_said(settings, message):
    with pytest.raises(UserError, match="task 'numbers'") as error:
        instructions(**settings).check()
    assert message in str(error.value)


def test_a_costly_source_is_not_read_to_be_checked():
    def download():
        raise AssertionError("read")

    Instructions("numbers", Rows({"train": download}, costly=True), TEMPLATES).check()
    with pytest.raises(AssertionError, match="read"):
        Instructions("numbers", Rows({"train": download}), TEMPLATES).check()
    with pytest.raises(UserError, match="few_shot is 6"):  # what needs no row is checked
        Instructions("numbers", Rows({"train": download}, costly=True), TEMPLATES, few_shot=6).check()


def test_a_source_without_train_is_refused():
    with pytest.raises(UserError, match="no split 'train'; nearest: 'trains'"):
        Instructions("numbers", Rows({"trains": [{"n": 1}]}), TEMPLATES).check()
