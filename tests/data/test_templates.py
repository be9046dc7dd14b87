import pytest

from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.errors import UserError

CAPITAL = InstructionTemplate("ask", "What is the capital of {country}?", "{capital}")
JAPAN = {"country": "Japan", "capital": "Tokyo"}
PERU = {"country": "Peru", "capital": "Lima"}


def test_renders_named_fields_and_doubled_braces():
    assert CAPITAL.render(JAPAN) == ("What is the capital of Japan?", "Tokyo")
    assert InstructionTemplate("json", '{{"c": "{country}"}}', "{capital}").render(JAPAN)[0] == '{"c": "Japan"}'
    assert CAPITAL.fields == {"country", "capital"}


def test_a_fields_braces_are_text():
    assert CAPITAL.render({"country": "{x}", "capital": "{}"}) == ("What is the capital of {x}?", "{}")


def test_exemplars_stand_before_the_question_with_their_answers():
    inputs, targets = CAPITAL.render_few_shot(JAPAN, [PERU])
    assert inputs == "What is the capital of Peru?\nLima\n\nWhat is the capital of Japan?"
    assert targets == "Tokyo"
    assert CAPITAL.render_few_shot(JAPAN, []) == CAPITAL.render(JAPAN)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (("t", "{a}", "{b}", "sene"), "nearest: 'seen', 'unseen'"),
        (("t", "{} of {a}", "{b}"), "is no name"),
        (("t", "{0}", "{b}"), "is no name"),
        (("t", "{a", "{b}"), "braces that are text"),
    ],
)
def test_what_is_no_template_is_said(template, message):
    with pytest.raises(UserError, match="template 't'") as error:
        InstructionTemplate(*template)
    assert message in str(error.value)


def test_a_missing_field_names_the_nearest():
    with pytest.raises(UserError, match="no field 'capital' in the row; nearest: 'capitol'"):
        CAPITAL.render({"country": "Japan", "capitol": "Tokyo"})
