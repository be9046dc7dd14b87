"""Lists for files of requests, with a recommender of random weights."""

import json

import pytest

from t5x_lite import recommend
from t5x_lite.decoding.jobs import FileJob
from t5x_lite.errors import UserError
from t5x_lite.recommendation.lists import Lists
from tests.recommendation.films import TITLES, recommender

ASKED = [
    {"user": "cleo", "note": "kept"},
    {"history": [TITLES[3], TITLES[17]], "filters": ["year>=1990"]},
    {"user": "nobody"},
    {"interests": "horror", "exclude": [TITLES[0]], "candidates": list(TITLES[:6])},
    {},
    {"history": 7},
    {"interests": ["horror"]},
    {"filters": [3], "user": "ben"},
    {"user": 0},
]


def lists(tmp_path, name, text, *, chunk=4):
    """The records written for the input of this text."""
    source, output = tmp_path / name, tmp_path / "lists.jsonl"
    source.write_text(text)
    FileJob.check(str(source), str(output), Lists(5), chunk=chunk).run(recommender(), {"model": "films", "step": 7})
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_each_record_gets_the_list_that_it_would_get_alone_or_its_problem(tmp_path):
    found = lists(tmp_path, "asked.jsonl", "".join(json.dumps(record) + "\n" for record in ASKED))
    assert len(found) == len(ASKED) and found[0]["note"] == "kept"
    for record, asked in zip(found, ASKED, strict=True):
        if "problem" in record:
            continue
        asked = {name: value for name, value in asked.items() if name != "note"}
        expected = recommender().recommend(k=5, **asked)
        assert [item["item"] for item in record["items"]] == [each.item for each in expected.items]
        assert (record["source"], record["warnings"]) == (expected.source, list(expected.warnings))
    problems = {number: record["problem"] for number, record in enumerate(found) if "problem" in record}
    assert set(problems) == {2, 5, 6, 7, 8} and "nobody" in problems[2] and "user '0'" in problems[8]
    assert "history is 7; give a list of texts" in problems[5] and "give a text" in problems[6]


def test_cells_of_a_table_have_several_values(tmp_path):
    text = f"user,history,filters\n,{TITLES[3]}|{TITLES[17]},year>=1990|genre!=War\nben,,\n"
    first, second = lists(tmp_path, "asked.csv", text)
    asked = {"history": [TITLES[3], TITLES[17]], "filters": ["year>=1990", "genre!=War"], "k": 5}
    assert [item["item"] for item in first["items"]] == [each.item for each in recommender().recommend(**asked).items]
    assert first["history"] == f"{TITLES[3]}|{TITLES[17]}" and len(second["items"]) == 5


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--input=users.jsonl"], "belong together"),
        (["--input=users.jsonl", "--output=lists.jsonl", "--user=ben"], "--user is for one list"),
        (["--input=users.jsonl", "--output=lists.csv"], "must end in .jsonl"),
    ],
)
def test_flags_that_do_not_fit_are_told(tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        recommend.main(["--model_dir=run", *flags])
