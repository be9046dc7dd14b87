"""Rows of the recommendation tasks, over thirty users of sixty items whose last two each are held out."""

import collections
import csv
import itertools
import re

import numpy as np
import pytest

from t5x_lite import config
from t5x_lite.data import registry
from t5x_lite.data.instructions import BestItems, Labels
from t5x_lite.errors import UserError
from t5x_lite.recommendation.splits import Cases, Split, by_time, leave_one_out
from tasks import recommendation as tasks
from tasks.recommendation_interests import common_interests, phrases

USERS, ITEMS, TAKEN, RECENT, LONGEST = 30, 60, 10, 2, 3
KNOWN = TAKEN - 2  # the items of a user that training may see
PLACES = range(TAKEN)
HELD_OUT = ("validation", "test")
MIXTURE, IMPLICIT = (
    [task.name for task in registry.get_mixture_or_task(name).tasks] for name in ("recommend", "recommend_implicit")
)
OF_RATINGS = sorted(set(MIXTURE) - set(IMPLICIT))


def item_of(user, place):
    return (7 * user + 11 * place) % ITEMS


def rating_of(user, place):
    return 1 + (user + 2 * place) % 5


def stars_of(user, place):
    return ("one", "two", "three", "four", "five")[rating_of(user, place) - 1]


def time_of(user, place):
    return 100 * place + user


def write(
    folder, *, ratings=True, attributes=True, item=item_of, rating=rating_of, items=ITEMS, places=PLACES, time=time_of
):
    """interactions.csv and items.csv: everybody takes their first item, then everybody the second, ..."""
    folder.mkdir()
    with (folder / "items.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["item", "title", *(["genre", "year"] if attributes else [])])
        for number in range(items):
            genres = "|".join([*(["Comedy"] if number < 30 else []), *(["War"] if number >= 20 else [])])
            lines.writerow([f"i{number}", f"Title {number}", *([genres, 1970 + number % 3 * 10] if attributes else [])])
    with (folder / "interactions.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["user", "item", "timestamp", *(["rating"] if ratings else [])])
        for place in places:
            for user in range(USERS):
                stars = [rating(user, place)] if ratings else []
                lines.writerow([f"u{user}", f"i{item(user, place)}", time(user, place), *stars])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rows") / "data")


@pytest.fixture
def given():
    """Gives gin a data set, as gin/recommend.gin does; forgets it in the end."""

    def give(folder, **settings):
        settings = {"min_interactions": 0, "recent": RECENT, "longest": LONGEST, **settings, "dataset": str(folder)}
        config.load([], [f"--gin.recommendation_data.{name}={value!r}" for name, value in settings.items()])
        return tasks.data()

    yield give
    config.load([])


@pytest.fixture
def data(given, folder):
    return given(folder)


def rows(name, split):
    return list(registry.instructions_of(registry.get_mixture_or_task(f"recommend_{name}")).source.rows(split))


def taken(user, first=0, last=TAKEN):
    return [item_of(user, place) for place in range(max(first, 0), last)]


def text(items):
    return "".join(f"<item_{item}>" for item in items) or "nothing"


def items_in(text):
    return [int(number) for number in re.findall(r"<item_(\d+)>", text)]


def windows(step):
    """(user, place): every step-th place of what training may see, beginning at another place for each user."""
    return [(user, place) for user in range(USERS) for place in range(user % step, KNOWN, step)]


# What training must not see


def altered(user, place):
    """Items of the held-out places are others, which the user has not taken."""
    return item_of(user, place if place < KNOWN else place + 13)


@pytest.mark.parametrize("index", ["token", "codes", "title"])
@pytest.mark.parametrize("split", ["leave_one_out", "by_time"])
def test_training_rows_are_the_same_whatever_is_held_out(given, tmp_path, folder, split, index):
    """Other items, other ratings, in another order of the file."""
    other = write(
        tmp_path / "other",
        item=altered,
        rating=lambda user, place: rating_of(user, place) if place < KNOWN else 3,
        places=PLACES[::-1],
    )
    found = []
    for each in (folder, other):
        data = given(each, split=split, index=index)
        cases = [getattr(data.split, part).target.tolist() for part in HELD_OUT]
        found.append(([rows(name.removeprefix("recommend_"), "train") for name in MIXTURE], data.index.texts, cases))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] != found[1][2]  # and yet other questions are asked


def test_our_data_is_split_alike_by_leaving_out_and_by_time(data):
    """So what is said here of places holds for both splits."""
    assert [items.tolist() for items in data.split.train] == [taken(user, 0, KNOWN) for user in range(USERS)]
    for split in (leave_one_out(data.dataset), by_time(data.dataset)):
        assert [len(items) for items in split.train] == [KNOWN] * USERS
        assert split.validation.target.tolist() == [item_of(user, KNOWN) for user in range(USERS)]
        assert split.test.target.tolist() == [item_of(user, KNOWN + 1) for user in range(USERS)]


def test_windows_show_what_was_taken_at_one_time_in_several_orders(given, tmp_path):
    """Two items a day here; each stays with its stars."""
    given(write(tmp_path / "days", time=lambda user, place: place // 2))
    place_of = [{item_of(user, place): place for place in PLACES} for user in range(USERS)]
    seen = collections.defaultdict(set)
    for (user, place), row in zip(windows(1), rows("next", "train"), strict=True):
        places = [place_of[user][item] for item in items_in(row["answer"])]
        assert len(places) == KNOWN - place
        days = [each // 2 for each in places]
        assert days == sorted(days)
        for first, second in itertools.pairwise(places):
            if first // 2 == second // 2:
                seen[user, first // 2].add(first < second)
    assert sum(len(orders) == 2 for orders in seen.values()) > len(seen) / 2
    for (user, _), row in zip(windows(1), rows("rating", "train"), strict=True):
        text = row["rated"] + row["item"] + row["answer"]
        stars = {int(item): star for item, star in re.findall(r"<item_(\d+)>([a-z]+)", text)}
        assert stars and stars == {item: stars_of(user, place_of[user][item]) for item in stars}


# What comes next


def test_an_answer_goes_on_where_the_history_ends(data):
    assert rows("next", "train") == [
        {"history": text(taken(user, place - LONGEST, place)), "answer": text(taken(user, place, KNOWN))}
        for user, place in windows(1)
    ]


def test_an_answer_is_no_longer_than_what_is_ahead(data, monkeypatch):
    monkeypatch.setattr("t5x_lite.recommendation.data._AHEAD", 3)
    assert {len(items_in(row["answer"])) for row in rows("next", "train")} == {1, 2, 3}
    assert rows("next", "train")[1] == {"history": text(taken(0, 0, 1)), "answer": text(taken(0, 1, 4))}


def test_titles_are_answered_one_by_one_and_given_to_the_encoder(given, folder):
    """A title ends the decoder's text."""
    given(folder, index="title", longest=2)
    titles = [f"Title {item}" for item in taken(5)]
    assert rows("next", "train")[5 * KNOWN + 3] == {"history": f"{titles[1]}; {titles[2]}", "answer": titles[3]}
    expected = {"history": f"{titles[7]}; {titles[8]}", "prefix": "", "denied": taken(5, 0, 9), "answer": titles[9]}
    assert rows("next", "test")[5] == expected


@pytest.mark.parametrize(("part", "place"), [("validation", KNOWN), ("test", KNOWN + 1)])
def test_held_out_questions_give_the_decoder_the_last_items_and_deny_all(data, part, place):
    before = place - RECENT
    assert rows("next", part) == [
        {
            "history": text(taken(user, before - LONGEST, before)),
            "prefix": text(taken(user, before, place)),
            "denied": taken(user, 0, place),
            "answer": text([item_of(user, place)]),
        }
        for user in range(USERS)
    ]


@pytest.mark.parametrize("name", ["next", "rated", "history_interests", "similar", "choose"])
@pytest.mark.parametrize(("part", "place"), [("validation", KNOWN), ("test", KNOWN + 1)])
def test_nothing_that_was_taken_may_come_again(data, name, part, place):
    for user, row in enumerate(rows(name, part)):
        if name == "choose":
            assert not set(row["allowed"]) & set(taken(user, 0, place)) and not row["denied"]
        else:
            assert row["denied"] == taken(user, 0, place)


def test_liked_and_disliked_items_are_those_before(data):
    def parted(user, first, last):
        places = range(max(first, 0), last)
        liked = [item_of(user, place) for place in places if rating_of(user, place) >= 4]
        return {"liked": text(liked), "disliked": text([i for i in taken(user, first, last) if i not in liked])}

    assert rows("rated", "train") == [
        parted(user, place - LONGEST, place) | {"answer": text(taken(user, place, KNOWN))} for user, place in windows(3)
    ]
    for part, place in (("validation", KNOWN), ("test", KNOWN + 1)):
        before = place - RECENT  # the others are the decoder's
        for user, (row, plain) in enumerate(zip(rows("rated", part), rows("next", part), strict=True)):
            assert row == plain | parted(user, before - LONGEST, before)


def test_similar_items_are_those_taken_soon_after(data, monkeypatch):
    monkeypatch.setattr(tasks, "AFTER_ONE", 4)
    assert rows("similar", "train") == [
        {"item": text([item_of(user, place)]), "answer": text(taken(user, place + 1, min(place + 5, KNOWN)))}
        for user, place in windows(2)
        if place + 1 < KNOWN
    ]
    assert [(row["item"], row["answer"]) for row in rows("similar", "test")] == [
        (text([item_of(user, KNOWN)]), text([item_of(user, KNOWN + 1)])) for user in range(USERS)
    ]


# Ratings


def stars(user, first, last):
    """Items and their stars, one behind the other."""
    return "".join(f"<item_{item_of(user, place)}>{stars_of(user, place)}" for place in range(first, last))


def test_rated_items_have_their_stars_behind_them(data):
    index = data.index
    assert tasks.rated(index, [3, 9], [5.0, 2.5]) == "<item_3>five<item_9>three"
    assert tasks.rated(index, [], []) == "nothing"
    assert items_in(tasks.rated(index, range(50), [1.0] * 50)) == list(range(20, 50))  # the last thirty


def test_what_is_liked_is_asked_after_the_rated_items_before(data):
    def row(user, place):
        rated, item = stars(user, 0, place) or "nothing", text([item_of(user, place)])
        return {"rated": rated, "item": item, "answer": "yes" if rating_of(user, place) >= 4 else "no"}

    assert rows("will_like", "train") == [row(user, place) for user, place in windows(3)]
    for part, place in (("validation", KNOWN), ("test", KNOWN + 1)):
        assert rows("will_like", part) == [row(user, place) for user in range(USERS)]


def test_a_row_of_training_has_only_some_of_a_users_ratings(data):
    found = set()
    for (user, place), row in zip(windows(1), rows("rating", "train"), strict=True):
        items = items_in(row["rated"] + row["item"] + row["answer"])
        everything = [item_of(user, each) for each in range(KNOWN)]
        assert row["item"] == text([item_of(user, place)])
        assert items == [item for item in everything if item in items]  # in their order
        found.add(len(items) / KNOWN)
    assert min(found) < 0.7 and max(found) == 1


def test_ratings_follow_one_another_in_training(data, monkeypatch):
    monkeypatch.setattr(tasks, "RATED_AHEAD", 3)
    monkeypatch.setattr(tasks, "KEPT_RATINGS", (1.0, 1.0))
    assert rows("rating", "train") == [
        {
            "rated": stars(user, 0, place) or "nothing",
            "item": text([item_of(user, place)]),
            "answer": stars_of(user, place) + stars(user, place + 1, min(place + 3, KNOWN)),
        }
        for user, place in windows(1)
    ]


@pytest.mark.parametrize(("part", "place"), [("validation", KNOWN), ("test", KNOWN + 1)])
@pytest.mark.parametrize("ahead", [1, 2, 3, 99])
def test_a_held_out_rating_comes_where_training_has_the_last_of_an_answer(data, monkeypatch, part, place, ahead):
    """The prompt, the prefix and the answer are a row of training, if the held-out places were in it."""
    monkeypatch.setattr(tasks, "RATED_AHEAD", ahead)
    first = max(place - ahead + 1, 0)
    for user, row in enumerate(rows("rating", part)):
        assert row["rated"] == (stars(user, 0, first) or "nothing")
        assert row["item"] == text([item_of(user, first)])
        assert row["prefix"] + row["answer"] == stars_of(user, first) + stars(user, first + 1, place + 1)
        assert row["answer"] == stars_of(user, place)


def test_titles_end_their_text_so_one_rating_is_asked_at_a_time(given, folder):
    given(folder, index="title")
    assert {row["answer"] for row in rows("rating", "train")} <= set(tasks.STARS)
    for row in rows("rating", "validation"):
        assert row["answer"] in tasks.STARS and not row["prefix"]


def test_labels_are_those_of_the_rows(data):
    for name in ("rating", "will_like"):
        labels = registry.instructions_of(registry.get_mixture_or_task(f"recommend_{name}")).answer_with
        assert isinstance(labels, Labels)
        assert {row["answer"] for row in rows(name, "test")} <= set(labels.texts)


def test_whole_stars_by_hand():
    ratings = {0: "one", 0.5: "one", 1: "one", 1.4: "one", 1.5: "two", 3: "three", 4.5: "five", 5: "five"}
    assert {rating: tasks.whole_stars(rating) for rating in ratings} == ratings
    for wrong in (-1, 6, 100):
        with pytest.raises(UserError, match=f"^rating {wrong}: ratings are 0 to 5 stars here; scale them, or use"):
            tasks.whole_stars(wrong)


@pytest.mark.parametrize("split", ["train", *HELD_OUT])
def test_tasks_of_ratings_say_that_there_are_none(given, tmp_path, split):
    given(write(tmp_path / "data", ratings=False))
    assert OF_RATINGS == ["recommend_rated", "recommend_rating", "recommend_will_like"]
    for name in OF_RATINGS:
        with pytest.raises(UserError) as error:
            rows(name.removeprefix("recommend_"), split)
        assert str(error.value) == (
            "data has no ratings: set MIXTURE_OR_TASK_NAME to recommend_implicit, which needs none"
        )


def test_the_implicit_mixture_needs_no_ratings(given, tmp_path, folder):
    """Its rows are those of the same data with ratings."""
    found = []
    for each in (folder, write(tmp_path / "data", ratings=False)):
        given(each)
        found.append([[rows(name.removeprefix("recommend_"), s) for s in ("train", *HELD_OUT)] for name in IMPLICIT])
    assert found[0] == found[1]
    assert all(len(each) for of_task in found[0] for each in of_task)


def test_the_mixture_of_histories_needs_no_attributes(given, tmp_path):
    """Nobody can ask for what no items share, and the line that says so names the mixture that asks for none."""
    given(write(tmp_path / "data", attributes=False))
    members = [task.name for task in registry.get_mixture_or_task("recommend_histories").tasks]
    assert set(members) < set(IMPLICIT)
    assert all(rows(name.removeprefix("recommend_"), s) for name in members for s in ("train", *HELD_OUT))
    for name in ("interests", "history_interests"):
        with pytest.raises(UserError) as error:
            rows(name, "train")
        assert str(error.value) == (
            "data has no attribute that items share, so nobody can ask for it: set MIXTURE_OR_TASK_NAME to "
            "recommend_histories, which needs none"
        )


# Choices


@pytest.mark.parametrize("split", ["train", *HELD_OUT])
def test_candidates_are_twenty_of_which_only_the_right_one_may_be_taken(data, split):
    places = windows(4) if split == "train" else [(user, KNOWN + (split == "test")) for user in range(USERS)]
    found = rows("choose", split)
    assert len(found) == len(places)
    for row, (user, place) in zip(found, places, strict=True):
        among, target = items_in(row["candidates"]), item_of(user, place)
        before = taken(user, 0, KNOWN if split == "train" else place)
        assert row["answer"] == text([target])
        assert row["history"] == text(taken(user, place - LONGEST, place))
        assert len(set(among)) == len(among) == 20
        assert set(among) & set(before) <= {target} <= set(among)
        assert among == sorted(among)  # so that its place tells nothing
        if split != "train":
            assert row["allowed"] == among
    assert found == rows("choose", split)  # the same every time


def test_candidates_of_somebody_who_has_taken_nearly_all(given, tmp_path):
    given(write(tmp_path / "data", items=12, item=lambda user, place: (user + place) % 12))
    for row in rows("choose", "train") + rows("choose", "test"):
        assert 2 <= len(items_in(row["candidates"])) <= 5  # twelve, without eight or nine, and the right one
        assert set(items_in(row["answer"])) <= set(items_in(row["candidates"]))


def test_candidates_are_drawn_as_often_as_training_has_them():
    nobody = Cases(np.zeros(0, np.int32), [], np.zeros(0, np.int32))
    split = Split(5, [np.array([0, 1, 1]), np.array([1, 3])], nobody, nobody)
    assert collections.Counter(tasks.popular(split)) == {0: 2, 1: 4, 2: 1, 3: 2, 4: 1}


# Interests


def meanings(data, split):
    """{phrase: the items that somebody means by it}"""
    catalogue = data.dataset.catalogue
    found = {}
    for interest in common_interests(catalogue):
        for phrase in phrases(interest, split):
            meant = set(interest.items(catalogue).tolist())
            assert found.setdefault(phrase, meant) == meant
    return found


@pytest.mark.parametrize("name", ["interests", "history_interests"])
def test_in_training_each_item_of_an_answer_was_taken_and_fits_what_is_said(data, name):
    meant, found = meanings(data, "seen"), rows(name, "train")
    assert len(found) == len(windows(2))  # each item has a common genre here
    assert len({row["interests"] for row in found}) > 20
    for row, (user, place) in zip(found, windows(2), strict=True):
        answer = items_in(row["answer"])
        assert answer == [item for item in taken(user, place, KNOWN) if item in meant[row["interests"]]]
        assert answer[0] == item_of(user, place)
        history = taken(user, place - LONGEST, place) if name == "history_interests" else []
        assert row["history"] == text(history)


@pytest.mark.parametrize("name", ["interests", "history_interests"])
@pytest.mark.parametrize(("part", "place"), [("validation", KNOWN), ("test", KNOWN + 1)])
def test_held_out_interests_accept_every_item_that_fits_and_are_said_in_new_words(data, name, part, place):
    meant, seen = meanings(data, "unseen"), meanings(data, "seen")
    with_history = name == "history_interests"
    found = rows(name, part)
    assert len(found) == (USERS if with_history else len(common_interests(data.dataset.catalogue, 20)))
    for user, row in enumerate(found):
        assert row["interests"] not in seen
        assert {item for fitting in row["fitting"] for item in items_in(fitting)} == meant[row["interests"]]
        assert len(row["fitting"]) == len(meant[row["interests"]]) >= 20
        assert row["answer"] in row["fitting"]
        assert row["denied"] == (taken(user, 0, place) if with_history else [])
        assert row["history"] == text(taken(user, place - LONGEST, place) if with_history else [])
        assert row["prefix"] == ""


def test_items_without_attributes_ask_for_no_interests(given, tmp_path):
    given(write(tmp_path / "data", attributes=False))
    for name in ("interests", "history_interests"):
        assert [rows(name, split) for split in HELD_OUT] == [[], []]


# Items


def test_items_are_told_apart_and_described(data):
    about = {"item": "<item_25>", "title": "Title 25", "about": "Comedy, War, 1980"}
    for name, field in (("item_of_title", "item"), ("title_of_item", "title"), ("about_item", "about")):
        found = rows(name, "train")
        assert found == rows(name, "test") and len(found) == ITEMS
        assert found[25] == about | {"answer": about[field], "prefix": "", "denied": ()}


# Registration


def test_every_task_renders_all_of_its_wordings(data):
    for name in MIXTURE:
        instructions = registry.instructions_of(registry.get_mixture_or_task(name))
        for split in ("train", *HELD_OUT):
            examples = list(instructions.render(split))
            assert len(examples) == instructions.size(split) > 0
            assert not any("{" in example["inputs"] + example["targets"] for example in examples)
        assert {example["template_split"] for example in examples} == {"seen", "unseen"}


def test_questions_for_items_say_what_must_not_come(data):
    """Else the history itself would be the likeliest answer."""
    asked = [
        name
        for name in MIXTURE
        if registry.instructions_of(registry.get_mixture_or_task(name)).answer_with == BestItems()
    ]
    assert len(asked) == 7
    for name in asked:
        for row in rows(name.removeprefix("recommend_"), "validation"):
            assert {"prefix", "denied"} <= set(row)


def test_both_mixtures_draw_the_next_item_most():
    """And their common tasks alike."""
    rates = []
    for name, members in (("recommend", MIXTURE), ("recommend_implicit", IMPLICIT)):
        mixture = registry.get_mixture_or_task(name)
        rates.append({task.name: mixture.get_rate(task) for task in mixture.tasks})
        assert max(rates[-1], key=rates[-1].get) == "recommend_next"
        assert list(rates[-1]) == members
    assert rates[1] == {name: rates[0][name] for name in IMPLICIT}
