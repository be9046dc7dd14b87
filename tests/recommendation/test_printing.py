"""Recommendations as a person or a program reads them."""

import json

from t5x_lite.recommendation.printing import as_json, as_table
from t5x_lite.recommendation.recommender import Reason, Recommendation, Recommendations

REASONS = (Reason("7", "Heat (1995)", 1.256), Reason("12", "Émile", 0.5))
FOUND = Recommendations(
    items=(
        Recommendation(1, "50", "Usual Suspects, The (1995)", -1.5, REASONS),
        Recommendation(2, "x", "Emma", -10.25),
    ),
    source="model",
    warnings=("only 2 of 3 items are left", "another"),
)


def test_a_table_with_reasons_and_warnings():
    assert as_table(FOUND).splitlines() == [
        "     title                         score  item",
        "  1  Usual Suspects, The (1995)   -1.500  50",
        "     since Heat (1995) (+1.26); Émile (+0.50)",
        "  2  Emma                        -10.250  x",
        "note: only 2 of 3 items are left",
        "note: another",
    ]


def test_a_table_of_nothing():
    assert as_table(Recommendations((), "model")) == "     title    score  item"


def test_json_has_all_of_it_in_one_line():
    text = as_json(FOUND)
    assert "\n" not in text and "Émile" in text
    first = {"rank": 1, "item": "50", "title": "Usual Suspects, The (1995)", "score": -1.5}
    reasons = [
        {"item": "7", "title": "Heat (1995)", "effect": 1.256},
        {"item": "12", "title": "Émile", "effect": 0.5},
    ]
    assert json.loads(text) == {
        "items": [
            first | {"evidence": reasons},
            {"rank": 2, "item": "x", "title": "Emma", "score": -10.25, "evidence": []},
        ],
        "source": "model",
        "warnings": ["only 2 of 3 items are left", "another"],
        "exact": True,
    }
