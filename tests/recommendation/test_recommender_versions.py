"""Recommenders that take another's place: with another catalogue, and with other weights."""

import dataclasses
import re

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.recommender import Recommender
from tests.recommendation.films import (
    EVERYTHING,
    FILMS,
    GENRES,
    SIZE,
    TITLES,
    check_ranking,
    engine,
    item_index,
    knowledge,
    new_engine,
    numbers,
    recommender,
    scores,
    scores_of,
)

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
