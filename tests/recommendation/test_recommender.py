"""Lists of a model of random weights against a full ranking by its own log-probabilities, and what they must not have.

The films, and the ranking, are in films.py.
"""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import FieldError, UserError
from t5x_lite.recommendation import recommender as module
from t5x_lite.recommendation.recommender import Recommender, Request
from tests.recommendation.films import (
    EVERYTHING,
    FILMS,
    SIZE,
    TITLES,
    check_ranking,
    knowledge,
    new_engine,
    numbers,
    recommender,
    scores,
    scores_of,
)

HISTORY = [3, 17, 30, 8]
SHORT = "only {} of {} items are left by the filters, exclusions and history"


# ---------------------------------------------------------------------- lists

items = st.integers(0, SIZE - 1)
FILTERS = {
    "genre=comedy": {n for n in EVERYTHING if FILMS.attributes["genre"][n] == ("Comedy",)},
    "genre!=War": {n for n in EVERYTHING if FILMS.attributes["genre"][n] != ("War",)},
    "year>=1990": set(range(10, SIZE)),
    "year<1995": set(range(15)),
    "year>2050": set(),
}


@settings(max_examples=30, deadline=None)
@given(
    history=st.lists(items, max_size=14),
    interests=st.sampled_from(["", "", "horror", "a war of the nineties"]),
    k=st.integers(1, 20),
    filters=st.lists(st.sampled_from(sorted(FILTERS)), max_size=2),
    excluded=st.lists(items, max_size=38),
    among=st.none() | st.lists(items, min_size=1, max_size=30),
    exclude_seen=st.booleans(),
)
def test_the_best_of_all_items_that_may_come_and_no_others(
    history, interests, k, filters, excluded, among, exclude_seen
):
    ours = recommender()
    found = ours.recommend(
        history=[TITLES[item] for item in history],
        interests=interests,
        k=k,
        filters=filters,
        exclude=[f"id:{FILMS.ids[item]}" for item in excluded],
        candidates=None if among is None else [TITLES[item] for item in among],
        exclude_seen=exclude_seen,
    )
    left = EVERYTHING.intersection(*(FILTERS[each] for each in filters)) - set(excluded)
    left -= set(history) if exclude_seen else set()
    left &= EVERYTHING if among is None else set(among)
    if history or interests:
        assert found.source == "model"
        expected = scores(ours, history, interests)
    else:
        assert found.source == "popularity"
        taken = 1 + np.bincount(np.concatenate(ours.knowledge.histories), minlength=SIZE)
        expected = np.log(taken / taken.sum())
    check_ranking(found, expected, left, k)
    assert [each.title for each in found.items] == [TITLES[item] for item in numbers(found)]
    assert (SHORT.format(len(found.items), k) in found.warnings) == (len(left) < k)


def test_all_but_three_are_excluded_and_ten_asked_for():
    found = recommender().recommend(history=["Red River"], exclude=TITLES[1:37], k=10)
    assert sorted(numbers(found)) == [37, 38, 39]
    assert found.warnings == (SHORT.format(3, 10),)


@pytest.mark.parametrize("kind", ["token", "codes"])
def test_the_log_probability_of_an_item_is_that_of_its_tokens(kind):
    ours = recommender(kind)
    for history, interests in ((HISTORY, ""), (HISTORY[:2], "horror")):
        expected = scores(ours, history, interests)
        for item in (0, 25):
            found = ours.log_probability(Request(history=history, interests=interests), item)
            assert found == pytest.approx(expected[item], abs=2e-4)


@pytest.mark.parametrize("kind", ["title", "codes"])
def test_items_of_several_tokens_are_ranked_by_all_of_them(kind):
    """As many beams as items: the whole catalogue in its order."""
    ours = recommender(kind)
    for history, interests in ((HISTORY[:2], ""), (HISTORY, ""), ([], "horror"), (HISTORY[:3], "a comedy")):
        found = ours.recommend(history=[TITLES[item] for item in history], interests=interests, k=SIZE)
        check_ranking(found, scores(ours, history, interests), EVERYTHING - set(history), SIZE)
        assert found.exact


def test_few_beams_find_codes_that_are_left_and_their_own_scores():
    ours, left = recommender("codes"), set(range(5, 12))
    found = ours.answer([Request(history=HISTORY, k=10, allowed=left | {3}, denied=[6])])[0]
    assert set(numbers(found)) == left - {6, 8}  # 3 and 8 were taken
    np.testing.assert_allclose(scores_of(found), scores(ours, HISTORY)[numbers(found)], atol=2e-4)
    assert scores_of(found) == sorted(scores_of(found), reverse=True)
    assert not found.exact


def test_what_is_left_does_not_change_the_scores():
    """They are the model's probabilities over all tokens, so lists of different filters compare."""
    ours = recommender()
    everything = {each.item: each.score for each in ours.recommend(history=TITLES[:2], k=20).items}
    some = {each.item: each.score for each in ours.recommend(history=TITLES[:2], k=20, filters=["year>=2000"]).items}
    both = everything.keys() & some.keys()
    assert len(both) > 3
    np.testing.assert_allclose([everything[item] for item in both], [some[item] for item in both], atol=1e-5)


def test_a_user_is_asked_about_by_what_the_user_took():
    ours = recommender()
    taken = ours.knowledge.histories[2].tolist()  # 12 of them: only 8 are read
    found = ours.recommend(user="cleo")
    check_ranking(found, scores(ours, taken[-8:]), EVERYTHING - set(taken), 10)
    assert found == ours.recommend(history=[f"id:{FILMS.ids[item]}" for item in taken])
    with_interests = ours.recommend(user="cleo", interests="horror")
    check_ranking(with_interests, scores(ours, taken, "horror"), EVERYTHING - set(taken), 10)


def test_titles_may_be_written_otherwise_and_ids_are_understood():
    ours = recommender()
    assert ours.recommend(history=["red RIVER", "f105"]) == ours.recommend(history=["Red River", "id:f105"])


# ---------------------------------------------------------------------- what is said beside the list


@pytest.mark.parametrize(
    ("length", "interests", "lost"), [(8, "", 0), (9, "", 1), (12, "", 4), (5, "horror", 0), (7, "horror", 2)]
)
def test_history_that_is_not_read_is_told(length, interests, lost):
    found = recommender().answer([Request(history=range(length), interests=interests)])[0]
    assert found.warnings == ((f"the oldest {lost} of {length} history entries are not read",) if lost else ())


def test_who_is_unknown_gets_what_most_took_and_is_told():
    histories = [np.array(row, np.int32) for row in ([5, 9, 2], [9, 5], [9], [2, 0])]
    ours = recommender(users=("a", "b", "c", "d"), histories=histories, ratings=None)
    found = ours.recommend(k=5, exclude=["id:f105"])
    assert found.source == "popularity"
    assert found.warnings == ("no user, history or interests are given: these are the most popular items",)
    # Times taken, and once more: 4 of item 9, 3 of 2, 2 of 0, then the first that nobody took; 48 with item 5's.
    assert numbers(found) == [9, 2, 0, 1, 3]
    np.testing.assert_allclose(scores_of(found), np.log(np.array([4, 3, 2, 1, 1]) / 48))


def test_filters_that_leave_nothing():
    ours = recommender()
    assert ours.recommend(history=["Red River"], filters=["year>2050"]).items == ()
    found = ours.recommend(filters=["year>2050"], k=3)
    assert found.items == () and found.warnings[1:] == (SHORT.format(0, 3),)


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        ({"user": "ana"}, "user", "user 'ana' is not among the 12 of this run; nearest: 'anna'"),
        ({"user": "anna", "history": ["Red River"]}, "user", "user and history: give the one or the other"),
        ({"history": "Red River"}, "history", "history is 'Red River'; give a list of texts"),
        (
            {"history": ["Red River", "Red Rivver"]},
            "history[1]",
            "no title is like 'Red Rivver'; nearest: 'Red River (1980)' (id:f100)",
        ),
        ({"candidates": ["id:f100", "id:f101", "id:7"]}, "candidates[2]", "no item has the id '7'"),
        ({"exclude": ["id:7"]}, "exclude[0]", "no item has the id '7'"),
        (
            {"user": "anna", "filters": ["year>1990", "genre=Comdy"]},
            "filters[1]",
            "filter 'genre=Comdy': no item has genre 'Comdy'; nearest: 'comedy'",
        ),
        ({"user": "anna", "k": 0}, "k", "k is 0; ask for at least 1 item"),
        (
            {"user": "anna", "template": 3},
            "template",
            "template 3: this run has 3 wordings of history, numbers 0 to 2",
        ),
        ({"interests": "horror", "template": -1}, "template", "template -1: this run has 2 wordings of interests"),
    ],
)
def test_mistakes_are_told_in_a_line_with_the_field_beside_it(asked, field, says):
    for ask in (recommender().recommend, recommender().request):
        with pytest.raises(FieldError, match=f"^{re.escape(says)}") as error:
            ask(**asked)
        assert "\n" not in str(error.value) and error.value.field == field


def test_the_first_mistake_of_user_history_candidates_filters_and_exclude_is_told():
    asked = {"history": ["?"], "candidates": ["?"], "filters": ["?"], "exclude": ["?"]}
    for field in tuple(asked):
        with pytest.raises(FieldError) as error:
            recommender().request(**asked)
        assert error.value.field == f"{field}[0]"
        del asked[field]
    assert recommender().request(**asked) == Request(history=[], denied=[])


def test_requests_with_the_same_filters_share_the_array_of_what_passes():
    ours = recommender()
    asked = {"history": ["Red River"], "filters": ["genre=drama", "year>=1990"]}
    first, second = (ours.request(**asked).allowed for _ in range(2))
    assert isinstance(first, np.ndarray) and first is second
    assert ours.request(candidates=["f117", "f100", "f113", "f114"], **asked).allowed.tolist() == [13, 17]


@pytest.mark.parametrize(
    ("history", "interests", "template", "wording"),
    [
        (HISTORY, "", 1, "What comes after {history}?"),
        ([3], "", 2, "{history}, and then?"),
        ([], "horror", 1, "Which for {interests}?"),
    ],
)
def test_any_wording_may_ask(history, interests, template, wording):
    ours = recommender()
    found = ours.recommend(history=[TITLES[item] for item in history], interests=interests, template=template)
    check_ranking(found, scores(ours, history, interests, wording), EVERYTHING - set(history), 10)
    assert found.items != ours.recommend(history=[TITLES[item] for item in history], interests=interests).items


def test_a_run_that_was_not_trained_on_interests_says_so():
    ours = recommender(prompts={"history": ("{history} What comes next?",)})
    with pytest.raises(UserError, match=r"^this run knows no prompts of interests; it has those of history$"):
        ours.recommend(interests="horror")


# ---------------------------------------------------------------------- evidence


def check_evidence(found, ours, history, interests, read, wording=None):
    """Each reason's effect is what the item's score is without that entry, by the model's own logits."""
    with_all = scores(ours, history, interests, wording)
    falls = {n: with_all - scores(ours, history[:n] + history[n + 1 :], interests, wording) for n in read}
    for each in found.items:
        item = FILMS.number_of[each.item]
        effects = {FILMS.ids[history[n]]: falls[n][item] for n in read}
        best = sorted((effect for effect in effects.values() if effect > 0), reverse=True)[:3]
        np.testing.assert_allclose([reason.effect for reason in each.evidence], best, atol=4e-4)
        for reason in each.evidence:
            assert reason.effect == pytest.approx(effects[reason.item], abs=4e-4)
            assert reason.title == TITLES[FILMS.number_of[reason.item]]


@pytest.mark.parametrize(
    ("history", "interests", "read"),
    [
        ([3, 17, 30, 8, 21], "", range(5)),
        ([12, 3, 17, 30, 8, 21, 39, 5, 26, 11], "", range(2, 10)),  # the oldest two are not read, so are no reason
        ([3, 17, 30, 8, 21, 6], "a comedy", range(1, 6)),
        ([17], "", range(1)),
    ],
    ids=["all read", "truncated", "with interests", "one entry"],
)
def test_reasons_are_the_entries_without_which_an_item_is_less_likely(history, interests, read):
    ours = recommender()
    plain = ours.answer([Request(history=history, interests=interests, k=6)])[0]
    found = ours.answer([Request(history=history, interests=interests, k=6, evidence=True)])[0]
    assert [dataclasses.replace(each, evidence=()) for each in found.items] == list(plain.items)
    assert any(each.evidence for each in found.items)
    check_evidence(found, ours, history, interests, read)


@pytest.mark.parametrize(
    ("history", "interests", "template", "wording"),
    [
        ([3, 17], "", 1, "What comes after {history}?"),
        ([17], "horror", 0, "After {history} they want {interests}."),  # without it, of nothing, in the same words
    ],
)
def test_reasons_are_asked_for_in_the_wording_of_the_request(history, interests, template, wording):
    ours = recommender()
    asked = Request(history=history, interests=interests, k=6, template=template, evidence=True)
    found = ours.answer([asked])[0]
    assert any(each.evidence for each in found.items)
    check_evidence(found, ours, history, interests, range(len(history)), wording)


def test_what_is_asked_without_history_has_no_reasons():
    ours = recommender()
    for found in (ours.recommend(interests="horror", evidence=True), ours.recommend(evidence=True)):
        assert len(found.items) == 10 and not any(each.evidence for each in found.items)
    assert ours.recommend(history=["Red River"], filters=["year>2050"], evidence=True).items == ()


# ---------------------------------------------------------------------- many at once, and being ready


def test_many_at_once_get_what_each_gets_alone():
    ours, dramas = recommender(), set(FILMS.matching(["genre=drama"]).tolist())
    requests = [
        Request(history=HISTORY, k=7),
        Request(),
        Request(history=HISTORY, k=20),
        Request(history=[1], interests="horror", allowed=dramas),
        Request(history=range(12), k=3, allowed=dramas, denied=[13, 17]),
        Request(interests="a comedy", denied=range(30)),
        Request(history=HISTORY, exclude_seen=False),
    ]
    together = ours.answer(requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = ours.answer([request])
        assert (numbers(found), found.source, found.warnings) == (numbers(alone), alone.source, alone.warnings)
        np.testing.assert_allclose(scores_of(found), scores_of(alone), atol=1e-4)
    assert ours.answer([]) == []


MANY_FILTERS = (["genre=drama", "year>=1990"], ["genre=war"], [], ["year<2010"], ["genre!=horror"])


@pytest.mark.parametrize("most, programs", [(2, 1), (2, 2), pytest.param(8, 2, marks=pytest.mark.slow)])
def test_after_warming_up_no_request_compiles_anything(most, programs, compilations, monkeypatch):
    # One program for each number of rows, or two where a filter that all items pass is not free.
    monkeypatch.setattr(module, "_ALWAYS_FILTERED", SIZE if programs == 1 else 0)
    ours = Recommender(new_engine(max_batch=most), knowledge())
    assert ours.warm_up(widths=[7, 10], most_requests=most) > 0
    # For 1, 2, ... rows of one width; all prompts have one length.
    assert ours.compile_count == programs * most.bit_length() <= len(compilations)
    before = ours.compile_count
    compilations.clear()
    for length in (1, 2, 3, 4, 8, 9, 40):
        ours.recommend(history=TITLES[:length], k=length % 10 + 1, template=length % 3)
    ours.recommend(user="lou", interests="a war of the nineties", exclude=TITLES[:30])
    ours.recommend(interests="horror", candidates=TITLES[:4])
    ours.recommend(user="lou", evidence=True)
    requests = [ours.request(history=TITLES[: n + 1], filters=filters) for n, filters in enumerate(MANY_FILTERS)]
    for first in range(len(requests)):
        for count in range(1, len(requests) + 1):
            ours.answer([*requests, *requests][first : first + count])
    assert (ours.compile_count, compilations) == (before, [])


def test_with_a_longer_shortest_bucket_fewer_programs_are_enough():
    ours = Recommender(new_engine(inputs=64, shortest_bucket=64), knowledge())
    ours.warm_up()
    assert ours.compile_count == 1
    for interests in ("", "a war of the nineties " * 12):
        ours.recommend(user="lou", interests=interests)
    assert ours.compile_count == 1


def test_more_items_to_leave_out_than_a_program_has_room_for_change_nothing(monkeypatch):
    asked = [{"user": "lou", "exclude": TITLES[:15], "k": 20}, {"history": TITLES[20:], "filters": ["genre!=War"]}]
    expected = [recommender().recommend(**fields) for fields in asked]
    monkeypatch.setattr(module, "_MOST_DENIED", 8)
    found = [recommender().recommend(**fields) for fields in asked]
    assert list(map(numbers, found)) == list(map(numbers, expected)) and found[0].warnings == expected[0].warnings
