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
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.recommender import Recommender, Request
from tests.recommendation.films import (
    FILMS,
    GENRES,
    SIZE,
    TITLES,
    engine,
    item_index,
    knowledge,
    new_engine,
    recommender,
    scores,
)

EVERYTHING = set(range(SIZE))
HISTORY = [3, 17, 30, 8]
SHORT = "only {} of {} items are left by the filters, exclusions and history"


def numbers(found):
    return [FILMS.number_of[each.item] for each in found.items]


def scores_of(found):
    return [each.score for each in found.items]


def check_ranking(found, expected, left, k):
    """`found` has the best `k` of what is left by these scores, as far as rounding can tell them apart."""
    items = numbers(found)
    count = min(k, len(left))
    assert len(items) == len(set(items)) == count and set(items) <= left
    assert [each.rank for each in found.items] == list(range(1, count + 1))
    np.testing.assert_allclose(scores_of(found), expected[items], atol=2e-4)
    np.testing.assert_allclose(scores_of(found), sorted(expected[list(left)], reverse=True)[:count], atol=2e-4)


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


def test_few_beams_find_codes_that_are_left_and_their_own_scores():
    ours, left = recommender("codes"), set(range(5, 12))
    found = ours.answer([Request(history=HISTORY, k=10, allowed=left | {3}, denied=[6])])[0]
    assert set(numbers(found)) == left - {6, 8}  # 3 and 8 were taken
    np.testing.assert_allclose(scores_of(found), scores(ours, HISTORY)[numbers(found)], atol=2e-4)
    assert scores_of(found) == sorted(scores_of(found), reverse=True)


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
        ({"history": "Red River"}, "history", "'Red River' is one text; give a list of titles"),
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


# ---------------------------------------------------------------------- a catalogue that changes


def with_new(titles=TITLES, new=(("n1", "Zebra", "War"),)):
    """FILMS with these titles, and more of (id, title, genre)."""
    ids, names, genres = zip(*new, strict=True) if new else ((), (), ())
    attributes = {
        "genre": (*FILMS.attributes["genre"], *((genre,) for genre in genres)),
        "year": (*FILMS.attributes["year"], *(("2020",) for _ in ids)),
    }
    return Catalogue((*FILMS.ids, *ids), (*titles, *names), attributes)


def test_an_item_with_another_title_is_shown_and_understood_by_it():
    ours = recommender()
    before = ours.recommend(history=["Blue River"])
    place = FILMS.number_of[before.items[0].item]
    changed = ours.with_catalogue(with_new([*TITLES[:place], "Blue Moon", *TITLES[place + 1 :]], new=()))
    after = changed.recommend(history=["Blue River"])
    assert after.items[0] == dataclasses.replace(before.items[0], title="Blue Moon")
    assert after.items[1:] == before.items[1:]
    assert changed.request(history=["blue moon"]).history == [place]
    with pytest.raises(UserError, match=f"no title is like {TITLES[place]!r}"):
        changed.request(history=[TITLES[place]])
    assert ours.recommend(history=["Blue River"]) == before


def test_a_new_item_can_be_recommended_and_taken_at_once(compilations):
    ours = recommender()
    before = ours.recommend(history=TITLES[:3], k=20)
    ours.recommend(history=TITLES[:3], candidates=TITLES[5:6])
    compilations.clear()
    changed = ours.with_catalogue(with_new(new=[("n1", "Zebra", "War"), ("n2", "Zoo", "Drama")]))
    (found,) = changed.recommend(history=TITLES[:3], candidates=["zebra"]).items
    ranked = changed.recommend(history=["Red River", "Zoo", "Red Winter"], k=20)
    assert ours.recommend(history=TITLES[:3], k=20) == before
    assert compilations == []
    assert (found.item, found.title) == ("n1", "Zebra")
    assert found.score == pytest.approx(scores(changed, [0, 1, 2])[SIZE], abs=2e-4)
    expected = scores(changed, [0, SIZE + 1, 2])
    np.testing.assert_allclose(scores_of(ranked), np.sort(np.delete(expected, [0, SIZE + 1, 2]))[::-1][:20], atol=2e-4)
    with pytest.raises(UserError, match="no title is like 'Zebra'"):
        ours.recommend(history=["Zebra"])


def test_the_embedding_of_a_new_item_is_nearest_to_those_of_its_genre():
    genre_of = np.array([(*values, "")[0] for values in FILMS.attributes["genre"]])
    tokens = [token for (token,) in item_index("token").sequences(engine("token").vocabulary)]
    changed = recommender().with_catalogue(with_new(new=[(genre, f"Z{genre}", genre) for genre in GENRES]))
    new = [engine("token").vocabulary.whole_tokens[f"<item_{SIZE + n}>"] for n in range(len(GENRES))]
    params = changed.engine.generator.params
    tables = (params["token_embedder"]["embedding"], params["decoder"]["logits_dense"]["kernel"].T)
    for table in map(np.asarray, tables):
        center = table[tokens].mean(axis=0)
        means = np.stack([table[tokens][genre_of == genre].mean(axis=0) - center for genre in GENRES])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        likeness = (table[new] - center) @ means.T
        assert likeness.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_a_missing_item_never_comes_and_is_still_known_in_histories():
    ours = recommender()
    before = ours.recommend(history=["Red River"], k=20)
    gone = {39, FILMS.number_of[before.items[0].item]}
    left = sorted(EVERYTHING - gone, reverse=True)  # in any order
    changed = ours.with_catalogue(FILMS.take(left))
    assert changed.offered.tolist() == left[::-1]
    for exclude in ([], ["id:f139"]):
        everything = changed.recommend(history=["Red River"], k=SIZE, exclude_seen=False, exclude=exclude)
        assert set(numbers(everything)) == set(left)
    assert changed.recommend(history=["Red River"], candidates=["id:f139"], exclude_seen=False).items == ()
    assert set(numbers(changed.recommend(k=SIZE))) == set(left)
    taken = changed.recommend(history=["id:f139", "Red River"], k=20)
    check_ranking(taken, scores(changed, [39, 0]), EVERYTHING - {0} - gone, 20)
    for again in (ours, changed.with_catalogue(FILMS)):
        assert again.recommend(history=["Red River"], k=20) == before


@pytest.mark.parametrize("kind", ["token", "codes"])
def test_a_few_items_are_offered_by_the_programs_of_many(kind, compilations):
    ours = recommender(kind)
    ours.recommend(history=["Red River"])
    compilations.clear()
    few = ours.with_catalogue(FILMS.take([7, 3, 30]))
    assert set(numbers(few.recommend(history=["Red River"]))) == {3, 7, 30}
    assert set(numbers(few.with_catalogue(FILMS.take([5, 9])).recommend(history=["Red River"]))) == {5, 9}
    assert compilations == []


def test_catalogues_one_after_the_other_forget_nothing():
    """A new item that was offered once keeps its token, its embedding and what is known of it."""
    first = recommender().with_catalogue(with_new(new=[("n1", "Zebra", "War")]))
    second = first.with_catalogue(Catalogue(("n2", "f100"), ("Zoo", "Red River"), {"mood": (("calm",), ())}))
    assert {each.item for each in second.recommend(history=["Zebra"], k=SIZE).items} == {"n2", "f100"}
    assert {each.item for each in second.recommend(history=["Zoo"], k=SIZE).items} == {"f100"}
    third = second.with_catalogue(with_new(new=[("n2", "Zoo", "War"), ("n1", "Zebra", "War")]))
    assert third.request(history=["Zebra", "Zoo"]).history == [SIZE, SIZE + 1]
    assert third.knowledge.catalogue.attributes["mood"][-1] == ("calm",)
    assert third.knowledge.popularity.tolist() == [*recommender().knowledge.popularity.tolist(), 0, 0]
    row = first.engine.vocabulary.whole_tokens[f"<item_{SIZE}>"]
    before, after = (each.engine.generator.params["token_embedder"]["embedding"][row] for each in (first, third))
    np.testing.assert_array_equal(before, after)


def test_attributes_are_those_of_both_catalogues():
    given = Catalogue(
        ("f103", "n1"), ("Red Letter", "Zebra"), {"year": ((), ("2020",)), "mood": (("calm",), ("dark",))}
    )
    changed = recommender().with_catalogue(given)

    def passing(*filters):
        return {each.item for each in changed.recommend(filters=filters, k=SIZE).items}

    assert passing("mood=calm") == {"f103"} and passing("mood=dark", "year=2020") == {"n1"}
    assert passing("genre=war") == {"f103"}  # as the run's own list says
    assert passing("year<2020") == set()  # the given one has taken its year away
    known = changed.knowledge.catalogue
    assert known.attributes["mood"][:5] == ((), (), (), ("calm",), ()) and known.attributes["genre"][-1] == ()
    assert known.attributes["year"][:2] == (("1980",), ("1981",))


def test_codes_of_a_new_item_are_its_own_and_nothing_compiles(compilations):
    ours = recommender("codes")
    ours.recommend(history=TITLES[:3], candidates=TITLES[5:6])
    compilations.clear()
    changed = ours.with_catalogue(with_new())
    (found,) = changed.recommend(history=TITLES[:3], candidates=["Zebra"]).items
    assert compilations == []
    assert found.item == "n1"
    assert found.score == pytest.approx(scores(changed, [0, 1, 2])[SIZE], abs=2e-4)


MANY = [(f"n{number}", f"Zebra {number}", "War") for number in range(65)]


@pytest.mark.parametrize(
    ("catalogue", "says"),
    [
        (with_new(new=MANY), "65 new items and 64 spare tokens; train again with more to spare"),
        (FILMS.take([]), "the catalogue has no item; leave one that can be recommended"),
    ],
)
def test_a_bad_catalogue_is_told(catalogue, says):
    with pytest.raises(UserError, match=f"^{re.escape(says)}$"):
        recommender().with_catalogue(catalogue)


# ---------------------------------------------------------------------- other weights


def test_another_checkpoint_runs_in_the_programs_of_the_first(compilations):
    """Also where the first's catalogue has grown, beyond what a trie of the run's own items has room for."""
    grown = Recommender(new_engine(), knowledge()).with_catalogue(with_new(new=MANY[:60]))
    asked = {"history": TITLES[:3], "k": 20}
    grown.recommend(**asked)
    grown.recommend(**asked, filters=["genre=war"])
    compilations.clear()
    other = Recommender(new_engine(seed=5), knowledge(), like=grown)
    found = other.recommend(**asked)
    other.recommend(**asked, filters=["genre=war"])
    assert compilations == []
    assert other.compile_count == grown.compile_count == 1
    check_ranking(found, scores(other, [0, 1, 2]), EVERYTHING - {0, 1, 2}, 20)
    assert numbers(found) != numbers(recommender().recommend(**asked))


def test_a_model_of_another_shape_shares_nothing():
    ours, other = recommender(), Recommender(new_engine("codes"), knowledge("codes"), like=recommender())
    asked = {"history": TITLES[:3], "k": SIZE}
    assert {each.item for each in other.recommend(**asked).items} == set(FILMS.ids[3:])
    assert other.compile_count == 1 and other.engine.generator is not ours.engine.generator
