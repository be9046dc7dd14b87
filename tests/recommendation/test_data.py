"""The data that gin asks for, from a folder of two files, in every index and split."""

import itertools
import re

import pytest

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.recommendation.data import recommendation_data
from t5x_lite.recommendation.splits import by_time, leave_one_out

DAYS, USERS, ITEMS = 6, 8, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every day each user takes the next item, the ratings being days; item x9 is taken once."""
    folder = tmp_path_factory.mktemp("films")
    rows = [
        f"u{user},x{(user + day) % 9},{100 * day + user},{day % 5 + 1}"
        for user, day in itertools.product(range(USERS), range(DAYS))
    ]
    (folder / "interactions.csv").write_text("\n".join(["user,item,timestamp,rating", *rows, "u0,x9,900,3\n"]))
    (folder / "items.csv").write_text(
        "item,title,genre\n" + "".join(f"x{n},Film {n},Drama|War\n" for n in range(ITEMS))
    )
    return str(folder)


def lists(arrays):
    return [array.tolist() for array in arrays]


@pytest.mark.parametrize("split", ["leave_one_out", "by_time"])
@pytest.mark.parametrize("index", ["token", "codes", "title"])
def test_every_index_and_split(folder, index, split):
    data = recommendation_data(folder, index=index, split=split, min_interactions=0)
    assert data.index.kind == index and len(data.index) == len(data.dataset.catalogue) == ITEMS
    expected = {"leave_one_out": leave_one_out, "by_time": by_time}[split](data.dataset)
    assert lists(data.split.train) == lists(expected.train)
    assert lists(data.split.test.histories) == lists(expected.test.histories)
    assert data.split.test.target.tolist() == expected.test.target.tolist()
    assert data.split.validation.target.tolist() == expected.validation.target.tolist()
    assert len(set(data.index.texts)) == ITEMS


def test_items_and_users_of_few_interactions_are_left_out(folder):
    assert "x9" in recommendation_data(folder, min_interactions=0).dataset.catalogue.ids
    data = recommendation_data(folder, min_interactions=2)
    assert data.dataset.catalogue.ids == tuple(f"x{n}" for n in range(9))
    assert len(data.dataset.interactions) == USERS * DAYS
    assert len(data.index) == data.split.num_items == 9


def test_what_is_saved_with_the_run_is_everything_that_everybody_took(folder):
    data = recommendation_data(folder, min_interactions=0, recent=4, longest=7)
    known = data.knowledge
    assert known.users == tuple(f"u{user}" for user in range(USERS))
    items = [[(user + day) % 9 for day in range(DAYS)] for user in range(USERS)]
    items[0].append(9)
    assert lists(known.histories) == items
    assert lists(known.ratings) == [[1, 2, 3, 4, 5, 1, *[3] * (user == 0)] for user in range(USERS)]
    assert (known.recent, known.longest, known.index) == (4, 7, data.index)
    assert known.catalogue is data.dataset.catalogue
    assert len(data.split.train[0]) == DAYS - 1  # as training sees them


def test_of_titles_the_decoder_is_given_none(folder):
    assert recommendation_data(folder, index="title", min_interactions=0, recent=4).knowledge.recent == 0


def test_it_is_made_once_a_process(folder):
    assert recommendation_data(folder, index="codes") is recommendation_data(folder, index="codes")
    assert recommendation_data(folder, index="codes") is not recommendation_data(folder, index="token")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"index": "tokens"},
            "recommendation_data.index 'tokens'; nearest: 'token', 'codes'; one of title, token, codes",
        ),
        (
            {"split": "leave-one-out"},
            "recommendation_data.split 'leave-one-out'; nearest: 'leave_one_out'; one of leave",
        ),
        ({"recent": 0}, "recommendation_data.recent is 0; it must be at least 1"),
        ({"longest": -1}, "recommendation_data.longest is -1; it must be at least 1"),
        (
            {"min_interactions": 50},
            "nobody and nothing has 50 interactions; set recommendation_data.min_interactions lower",
        ),
        ({"dataset": "ml-100"}, "no dataset 'ml-100'"),
    ],
)
def test_mistakes_are_told_in_a_line(folder, asked, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        recommendation_data(**{"dataset": folder} | asked)
    assert "\n" not in str(error.value)


def test_gin_builds_it(folder, tmp_path):
    lines = [
        f"recommendation_data.dataset = {folder!r}",
        'recommendation_data.index = "codes"',
        "recommendation_data.recent = 2",
    ]
    (tmp_path / "small.gin").write_text("\n".join(lines))
    config.parse([f"--gin_file={tmp_path / 'small.gin'}"], "doc", lambda parser: None)
    data = config.build("recommendation_data")
    assert (data.index.kind, data.recent, data.longest) == ("codes", 2, 30)
    assert data is config.build("recommendation_data")  # once a process
    assert data.knowledge.catalogue.titles[3] == "Film 3"
