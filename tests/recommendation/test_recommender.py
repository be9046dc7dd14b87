"""Lists of a model of random weights against a full ranking by its own log-probabilities, and what they must not have.

The films, and the ranking, are in films.py.
"""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
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
    ("asked", "says"),
    [
        ({"user": "ana"}, "user 'ana' is not among the 12 of this run; nearest: 'anna'"),
        ({"user": "anna", "history": ["Red River"]}, "user and history: give the one or the other"),
        ({"history": "Red River"}, "'Red River' is one text; give a list of titles"),
        ({"history": ["Red Rivver"]}, "no title is like 'Red Rivver'; nearest: 'Red River (1980)' (id:f100)"),
        ({"exclude": ["id:7"]}, "no item has the id '7'"),
        ({"user": "anna", "filters": ["genre=Comdy"]}, "no item has genre 'Comdy'; nearest: 'comedy'"),
        ({"user": "anna", "k": 0}, "k is 0; ask for at least 1 item"),
    ],
)
def test_mistakes_are_told_in_a_line(asked, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        recommender().recommend(**asked)
    assert "\n" not in str(error.value)


def test_a_run_that_was_not_trained_on_interests_says_so():
    ours = recommender(prompts={"history": "{history} What comes next?"})
    with pytest.raises(UserError, match=r"^this run knows no prompts of interests; it has those of history$"):
        ours.recommend(interests="horror")


# ---------------------------------------------------------------------- evidence


def check_evidence(found, ours, history, interests, read):
    """Each reason's effect is what the item's score is without that entry, by the model's own logits."""
    with_all = scores(ours, history, interests)
    falls = {n: with_all - scores(ours, history[:n] + history[n + 1 :], interests) for n in read}
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


@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_after_warming_up_no_request_compiles_anything(most):
    ours = Recommender(new_engine(), knowledge())
    assert ours.warm_up(k=10, most_requests=most) > 0
    before = ours.compile_count
    assert before > 0
    for length in (1, 2, 3, 4, 8, 9, 40):
        ours.recommend(history=TITLES[:length], k=length % 10 + 1)
    ours.recommend(user="lou", interests="a war of the nineties", exclude=TITLES[:30])
    ours.recommend(history=TITLES[:2], filters=["genre=drama", "year>=1990"])
    ours.recommend(interests="horror", candidates=TITLES[:4])
    ours.answer([Request(history=HISTORY), Request(history=HISTORY[:1], interests="horror")][:most])
    assert ours.compile_count == before


# ---------------------------------------------------------------------- a catalogue that changes


@pytest.fixture
def changing():
    """A recommender whose weights and catalogue are its own; the programs are those of all tests."""
    generator = engine("token").generator
    weights = generator.params
    yield recommender()
    generator.params = weights


def with_new(titles=TITLES, new=(("n1", "Zebra", "War"),)):
    """FILMS with these titles, and more of (id, title, genre)."""
    ids, names, genres = zip(*new, strict=True) if new else ((), (), ())
    attributes = {
        "genre": (*FILMS.attributes["genre"], *((genre,) for genre in genres)),
        "year": (*FILMS.attributes["year"], *(("2020",) for _ in ids)),
    }
    return Catalogue((*FILMS.ids, *ids), (*titles, *names), attributes)


def test_an_item_with_another_title_is_shown_and_understood_by_it(changing):
    before = changing.recommend(history=["Blue River"])
    place = FILMS.number_of[before.items[0].item]
    changing.replace_catalogue(with_new([*TITLES[:place], "Blue Moon", *TITLES[place + 1 :]], new=()))
    after = changing.recommend(history=["Blue River"])
    assert after.items[0] == dataclasses.replace(before.items[0], title="Blue Moon")
    assert after.items[1:] == before.items[1:]
    assert changing.numbers(["blue moon"]) == [place]
    with pytest.raises(UserError, match=f"no title is like {TITLES[place]!r}"):
        changing.numbers([TITLES[place]])


def test_a_new_item_can_be_recommended_and_taken_at_once(changing):
    changing.recommend(history=TITLES[:3], k=20)
    changing.recommend(history=TITLES[:3], candidates=TITLES[5:6])
    before = changing.compile_count
    changing.replace_catalogue(with_new(new=[("n1", "Zebra", "War"), ("n2", "Zoo", "Drama")]))
    (found,) = changing.recommend(history=TITLES[:3], candidates=["zebra"]).items
    assert (found.item, found.title) == ("n1", "Zebra")
    assert found.score == pytest.approx(scores(changing, [0, 1, 2])[SIZE], abs=2e-4)
    ranked = changing.recommend(history=["Red River", "Zoo", "Red Winter"], k=20)
    expected = scores(changing, [0, SIZE + 1, 2])
    np.testing.assert_allclose(scores_of(ranked), np.sort(np.delete(expected, [0, SIZE + 1, 2]))[::-1][:20], atol=2e-4)
    assert changing.compile_count == before


def test_the_embedding_of_a_new_item_is_nearest_to_those_of_its_genre(changing):
    genre_of = np.array([(*values, "")[0] for values in FILMS.attributes["genre"]])
    tokens = [token for (token,) in item_index("token").sequences(engine("token").vocabulary)]
    changing.replace_catalogue(with_new(new=[(genre, f"Z{genre}", genre) for genre in GENRES]))
    new = [engine("token").vocabulary.whole_tokens[f"<item_{SIZE + n}>"] for n in range(len(GENRES))]
    params = engine("token").generator.params
    tables = (params["token_embedder"]["embedding"], params["decoder"]["logits_dense"]["kernel"].T)
    for table in map(np.asarray, tables):
        center = table[tokens].mean(axis=0)
        means = np.stack([table[tokens][genre_of == genre].mean(axis=0) - center for genre in GENRES])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        likeness = (table[new] - center) @ means.T
        assert likeness.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_a_removed_item_never_comes_and_is_still_known_in_histories(changing):
    before = changing.recommend(history=["Red River"], k=20)
    changing.replace_catalogue(FILMS, removed=["f139", before.items[0].item])
    gone = {"f139", before.items[0].item}
    for exclude in ([], ["id:f139"]):
        everything = changing.recommend(history=["Red River"], k=SIZE, exclude_seen=False, exclude=exclude)
        assert {each.item for each in everything.items} == set(FILMS.ids) - gone
    assert changing.recommend(history=["Red River"], candidates=["id:f139"], exclude_seen=False).items == ()
    assert not gone & {each.item for each in changing.recommend(k=SIZE).items}
    taken = changing.recommend(history=["id:f139", "Red River"], k=20)
    left = EVERYTHING - {0} - {FILMS.number_of[id] for id in gone}
    check_ranking(taken, scores(changing, [39, 0]), left, 20)
    changing.replace_catalogue(FILMS)  # back again
    assert changing.recommend(history=["Red River"], k=20) == before


def test_codes_of_a_new_item_are_its_own_and_nothing_compiles():
    ours = recommender("codes")
    ours.recommend(history=TITLES[:3], candidates=TITLES[5:6])
    before = ours.compile_count
    ours.replace_catalogue(with_new())
    (found,) = ours.recommend(history=TITLES[:3], candidates=["Zebra"]).items
    assert found.item == "n1"
    assert found.score == pytest.approx(scores(ours, [0, 1, 2])[SIZE], abs=2e-4)
    assert ours.compile_count == before


BACKWARDS = FILMS.take(range(SIZE)[::-1])
MANY = [(f"n{number}", f"Zebra {number}", "War") for number in range(65)]


@pytest.mark.parametrize(
    ("catalogue", "removed", "says"),
    [
        (BACKWARDS, (), "the new catalogue must begin with the old one's items in their order; remove by `removed`"),
        (FILMS.take(range(39)), (), "the new catalogue must begin with the old one's items in their order"),
        (with_new(new=MANY), (), "65 new items and 64 spare tokens; train again with more to spare"),
        (with_new(), ["f1399"], "removed: no item has the id 'f1399'; nearest: 'f139'"),
        (with_new(), [*FILMS.ids, "n1"], "every item is removed; leave one that can be recommended"),
    ],
)
def test_a_bad_catalogue_is_told_and_changes_nothing(changing, catalogue, removed, says):
    before, weights = changing.recommend(user="anna"), engine("token").generator.params
    with pytest.raises(UserError, match=f"^{re.escape(says)}") as error:
        changing.replace_catalogue(catalogue, removed)
    assert "\n" not in str(error.value)
    assert changing.knowledge.catalogue is FILMS and engine("token").generator.params is weights
    assert changing.recommend(user="anna") == before
