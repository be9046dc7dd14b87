"""What a run knows of its items and users: looked up, written into prompts, saved, and told when it is damaged."""

import dataclasses
import re

import numpy as np
import pytest

from t5x_lite.errors import FieldError, UserError
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.index import ItemIndex, title_index, token_index
from t5x_lite.recommendation.knowledge import Knowledge
from tests.recommendation import films

FILMS = Catalogue(("a", "b", "c", "d"), ("Emma", "Heat", "Solaris", "Émile"), {"genre": (("Comedy",), (), (), ())})
KNOWN = Knowledge(
    catalogue=FILMS,
    index=token_index(FILMS),
    users=("u1", "ü2", "u3"),
    histories=[np.array(row, np.int32) for row in ([2, 0, 2], [], [1])],
    ratings=[np.array(row, np.float32) for row in ([4, 2.5, 1], [], [5])],
    recent=2,
    longest=3,
    prompts={
        "history": ("{history} Next?", "What follows {history}?"),
        "interests": ("Who likes {interests}?",),
        "history+interests": ("{history}: {interests}", "{interests} after {history}"),
    },
)
TITLES = dataclasses.replace(KNOWN, index=title_index(FILMS), recent=0)


# ---------------------------------------------------------------------- look-ups and prompts


def test_how_often_each_item_was_taken():
    assert KNOWN.popularity.tolist() == [1, 1, 2, 0]
    assert dataclasses.replace(KNOWN, users=(), histories=[]).popularity.tolist() == [0, 0, 0, 0]


def test_users_have_numbers():
    assert KNOWN.user("ü2") == 1
    with pytest.raises(UserError, match=r"^user 'u33' is not among the 3 of this run; nearest: 'u3'"):
        KNOWN.user("u33")
    with pytest.raises(UserError, match=r"^user 42 is not among the 1 of this run; nearest: '42'$"):
        dataclasses.replace(KNOWN, users=("42",)).user(42)


def test_items_as_a_prompt_has_them():
    assert KNOWN.text([2, 0]) == "<item_2><item_0>"
    assert TITLES.text([2, 0]) == "Solaris; Emma"
    assert KNOWN.text([]) == TITLES.text([]) == "nothing"


@pytest.mark.parametrize(
    ("history", "interests", "prompt", "prefix"),
    [
        ([], "", "nothing Next?", ""),
        ([1], "", "nothing Next?", "<item_1>"),
        ([1, 3], "", "nothing Next?", "<item_1><item_3>"),
        ([0, 1, 3], "", "<item_0> Next?", "<item_1><item_3>"),
        ([3, 3, 0, 1, 2, 1, 3], "", "<item_0><item_1><item_2> Next?", "<item_1><item_3>"),
        ([], "{history}", "Who likes {history}?", ""),
        ([3, 0, 1, 2], "war", "<item_0><item_1><item_2>: war", ""),
    ],
)
def test_the_last_items_are_the_decoders_and_those_before_the_encoders(history, interests, prompt, prefix):
    assert KNOWN.prompt(history, interests) == (prompt, prefix)


@pytest.mark.parametrize(
    ("history", "interests", "expected"),
    [([0, 1, 3], "", ("What follows <item_0>?", "<item_1><item_3>")), ([1], "war", ("war after <item_1>", ""))],
)
def test_a_wording_is_chosen_by_its_number(history, interests, expected):
    assert KNOWN.prompt(history, interests, 1) == expected
    assert KNOWN.prompt(history, interests, 0) == KNOWN.prompt(history, interests) != expected


def test_both_may_be_asked_about_where_a_history_is_empty():
    assert KNOWN.prompt([], "war", 1, "history+interests") == ("war after nothing", "")


@pytest.mark.parametrize("template", [2, -1])
def test_a_wording_that_there_is_not(template):
    says = f"^template {template}: this run has 2 wordings of history, numbers 0 to 1$"
    with pytest.raises(FieldError, match=says) as error:
        KNOWN.prompt([1], "", template)
    assert error.value.field == "template"


def test_of_titles_the_encoder_reads_all():
    assert TITLES.prompt([3, 0, 1, 2], "") == ("Emma; Heat; Solaris Next?", "")
    assert (TITLES.read(""), TITLES.read("war")) == (3, 3)
    assert (KNOWN.read(""), KNOWN.read("war")) == (5, 3)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ({"history": ("{history}",)}, "this run knows no prompts of history+interests; it has those of history"),
        ({}, "this run knows no prompts of history+interests; it has those of none"),
    ],
)
def test_prompts_that_the_run_was_not_trained_on(prompts, says):
    with pytest.raises(FieldError, match=f"^{re.escape(says)}$") as error:
        dataclasses.replace(KNOWN, prompts=prompts).prompt([1], "war")
    assert error.value.field == "interests"


# ---------------------------------------------------------------------- saved


def check_same(found, known):
    assert found.catalogue.ids == known.catalogue.ids and found.catalogue.titles == known.catalogue.titles
    assert found.catalogue.attributes == known.catalogue.attributes
    assert found.index.sha256 == known.index.sha256 and found.sha256 == known.sha256
    assert (found.users, found.recent, found.longest) == (known.users, known.recent, known.longest)
    assert found.prompts == known.prompts
    for ours, theirs in ((found.histories, known.histories), (found.ratings, known.ratings)):
        assert (ours is None) == (theirs is None)
        for one, other in zip(ours or (), theirs or (), strict=True):
            assert one.dtype == other.dtype and one.tolist() == other.tolist()


@pytest.mark.parametrize("ratings", [True, False])
def test_saved_and_read_again_it_is_the_same(tmp_path, ratings):
    known = KNOWN if ratings else dataclasses.replace(KNOWN, ratings=None)
    known.save(tmp_path / "items")
    check_same(Knowledge.load(tmp_path / "items"), known)
    check_same(Knowledge.load_run(str(tmp_path)), known)
    assert sorted(path.name for path in (tmp_path / "items").iterdir()) == ["histories.npz", "index.json", "items.csv"]


@pytest.mark.parametrize("kind", ["title", "codes"])
def test_other_kinds_of_index_are_saved_too(tmp_path, kind):
    known = films.knowledge(kind)
    known.save(tmp_path)
    check_same(Knowledge.load(tmp_path), known)


def test_nobody_is_saved_too(tmp_path):
    nobody = dataclasses.replace(KNOWN, users=(), histories=[], ratings=None)
    nobody.save(tmp_path)
    check_same(Knowledge.load(tmp_path), nobody)


def test_saving_over_another_leaves_the_new_one(tmp_path):
    films.knowledge("codes").save(tmp_path)
    KNOWN.save(tmp_path)
    check_same(Knowledge.load(tmp_path), KNOWN)


def test_its_sha256_is_that_of_all_that_a_model_is_trained_on():
    other_films = dataclasses.replace(FILMS, titles=("Emma", "Heat", "Solaris", "Emil"))
    others = [
        {"catalogue": other_films},
        {"catalogue": dataclasses.replace(FILMS, ids=("a", "b", "c", "e"))},
        {"catalogue": dataclasses.replace(FILMS, attributes={"genre": (("Comedy",), ("War",), (), ())})},
        {"index": title_index(FILMS)},
        {"index": ItemIndex("token", KNOWN.index.texts[::-1], KNOWN.index.tokens)},
        {"users": ("u1", "u2", "u3")},
        {"histories": [KNOWN.histories[0][::-1][:2], *KNOWN.histories[1:]]},
        {"histories": [KNOWN.histories[0], np.array([1], np.int32), np.array([], np.int32)]},
        {"ratings": None},
        {"ratings": [ratings[::-1] for ratings in KNOWN.ratings]},
        {"recent": 3},
        {"longest": 2},
        {"prompts": {"history": KNOWN.prompts["history"]}},
        {"prompts": KNOWN.prompts | {"history": KNOWN.prompts["history"][::-1]}},
        {"prompts": KNOWN.prompts | {"history": KNOWN.prompts["history"][:1]}},
    ]
    sums = [dataclasses.replace(KNOWN, **changed).sha256 for changed in others]
    assert len({KNOWN.sha256, *sums}) == 1 + len(others)
    assert dataclasses.replace(KNOWN, users=tuple(KNOWN.users)).sha256 == KNOWN.sha256


def damaged(content):
    """What may become of a file."""
    return {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "text": b"no archive at all\n",
        "bits": content[:60] + bytes(byte ^ 255 for byte in content[60:90]) + content[90:],
    }


@pytest.mark.parametrize("how", ["empty", "cut", "text", "bits", "missing"])
@pytest.mark.parametrize("name", ["histories.npz", "index.json", "items.csv"])
def test_what_is_missing_or_damaged_is_told_in_a_line(tmp_path, name, how):
    KNOWN.save(tmp_path)
    path = tmp_path / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged(path.read_bytes())[how])
    with pytest.raises(UserError, match=re.escape(str(tmp_path))) as error:
        Knowledge.load(tmp_path)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_histories_of_another_form_are_told(tmp_path):
    KNOWN.save(tmp_path)
    np.savez(tmp_path / "histories.npz", users=np.zeros(3, np.uint8))
    with pytest.raises(UserError, match=r"no readable histories\.npz \(.*\); is it a run of gin/recommend\.gin\?$"):
        Knowledge.load(tmp_path)


def test_a_run_that_does_not_recommend_is_told(tmp_path):
    with pytest.raises(UserError, match=r"has no items/: it is no run that recommends, as gin/recommend\.gin is$"):
        Knowledge.load_run(str(tmp_path))
