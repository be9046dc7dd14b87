"""Wordings of the recommendation tasks."""

import re
from collections import Counter

import pytest

from tasks import recommendation_wordings as wordings

ROW = {
    "history": "<item_3><item_99>",
    "liked": "<item_3>",
    "disliked": "nothing",
    "rated": "<item_3>5<item_99>2",
    "candidates": "<item_4><item_5>",
    "item": "<item_7>",
    "interests": "science fiction from the seventies",
    "title": "Toy Story (1995)",
    "answer": "<item_8>",
}
FIELDS = {
    "NEXT": {"history"},
    "RATED": {"liked", "disliked"},
    "INTERESTS": {"interests"},
    "HISTORY_AND_INTERESTS": {"history", "interests"},
    "WILL_LIKE": {"rated", "item"},
    "RATING": {"rated", "item"},
    "CHOOSE": {"history", "candidates"},
    "SIMILAR": {"item"},
    "ITEM_OF_TITLE": {"title"},
    "TITLE_OF_ITEM": {"item"},
    "ABOUT_ITEM": {"item"},
}
TEMPLATES = {family: getattr(wordings, family) for family in FIELDS}
ALL = [template for templates in TEMPLATES.values() for template in templates]


def words(inputs: str) -> list[str]:
    """As they are written: "Which" and "which" are pieces of their own to a vocabulary."""
    return re.findall(r"[A-Za-z']+|\d", re.sub(r"\{.*?\}", "", inputs))


def place(inputs: str, field: str) -> str:
    before, after = (bool(words(part)) for part in inputs.split(field))
    return {(False, True): "first", (True, True): "middle", (True, False): "last"}[before, after]


@pytest.mark.parametrize("family", FIELDS)
def test_eight_seen_and_three_unseen_wordings_with_the_fields_of_their_rows(family):
    templates = TEMPLATES[family]
    assert Counter(template.split for template in templates) == {"seen": 8, "unseen": 3}
    for template in templates:
        assert template.fields == FIELDS[family] | {"answer"}, template.name
        inputs, targets = template.render(ROW)
        assert targets == "<item_8>"
        assert all(inputs.count(ROW[field]) == 1 for field in FIELDS[family]), inputs


def test_no_name_and_no_text_is_there_twice():
    assert len({template.name for template in ALL}) == len(ALL) == 11 * len(FIELDS)
    # the fields' names are left out, lest one task's question be another's
    texts = Counter(re.sub(r"\{.*?\}", "{}", template.inputs.lower()) for template in ALL)
    assert [text for text, count in texts.items() if count > 1] == []


def test_unseen_wordings_are_made_of_words_that_seen_ones_teach():
    taught = {word for template in ALL if template.split == "seen" for word in words(template.inputs)}
    unknown = {
        template.name: set(words(template.inputs)) - taught
        for template in ALL
        if template.split == "unseen" and not set(words(template.inputs)) <= taught
    }
    assert unknown == {}


def test_wordings_are_short():
    assert {template.name: template.inputs for template in ALL if len(words(template.inputs)) > 12} == {}


@pytest.mark.parametrize("split", ["seen", "unseen"])
@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("NEXT", "history"),
        ("RATED", "liked"),
        ("HISTORY_AND_INTERESTS", "history"),
        ("WILL_LIKE", "rated"),
        ("RATING", "rated"),
        ("CHOOSE", "history"),
    ],
)
def test_the_history_stands_before_between_and_after_the_words(family, field, split):
    inputs = [template.inputs for template in TEMPLATES[family] if template.split == split]
    assert {place(each, f"{{{field}}}") for each in inputs} == {"first", "middle", "last"}
