"""Rows of items that came after training, in tables where the items of a genre lie together."""

import jax
import numpy as np
import pytest

from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.newcomers import with_rows_of_new_items

ROWS, WIDTH, KNOWN = 20, 4, 8
TOKENS = [(token,) for token in (5, 7, 6, 9, 8, 10, 12, 11, 13, 14)]  # of eight items and of two more
FILMS = Catalogue(
    ids=tuple("abcdefghij"),
    titles=tuple(f"t{n}" for n in range(10)),
    attributes={"genre": (*[("Comedy",)] * 4, *[("War",)] * 4, ("Comedy",), ("War",))},
)


def weights(tied):
    """Comedies lie about (3, 1, 0, 0) and films of war about (-1, 1, 0, 0); the head has twice of it."""
    table = np.random.default_rng(0).normal(0, 0.1, (ROWS, WIDTH)).astype(np.float32)
    for number, (token,) in enumerate(TOKENS[:KNOWN]):
        table[token] += [3 if number < 4 else -1, 1, 0, 0]
    decoder = {"other": np.ones(3, np.float32)} | ({} if tied else {"logits_dense": {"kernel": 2 * table.T}})
    return jax.tree.map(jax.numpy.asarray, {"token_embedder": {"embedding": table}, "decoder": decoder})


def tables(params):
    yield np.asarray(params["token_embedder"]["embedding"])
    if "logits_dense" in params["decoder"]:
        yield np.asarray(params["decoder"]["logits_dense"]["kernel"]).T / 2


both = pytest.mark.parametrize("tied", [True, False], ids=["tied", "with a head"])


@both
def test_a_new_item_lies_with_those_of_its_genre(tied):
    comedies, wars = [token for (token,) in TOKENS[:4]], [token for (token,) in TOKENS[4:8]]
    found = list(tables(with_rows_of_new_items(weights(tied), TOKENS, KNOWN, FILMS)))
    assert len(found) == (1 if tied else 2)
    for table in found:
        of_comedy, of_war = table[comedies].mean(axis=0), table[wars].mean(axis=0)
        np.testing.assert_allclose(table[13], of_comedy, atol=0.15)
        np.testing.assert_allclose(table[14], of_war, atol=0.15)


@both
def test_it_is_as_far_from_the_middle_as_others_are(tied):
    for table in tables(with_rows_of_new_items(weights(tied), TOKENS, KNOWN, FILMS)):
        trained = table[[token for (token,) in TOKENS[:KNOWN]]]
        center = trained.mean(axis=0)
        usual = np.median(np.linalg.norm(trained - center, axis=1))
        np.testing.assert_allclose(np.linalg.norm(table[[13, 14]] - center, axis=1), usual, rtol=1e-4)


@both
def test_nothing_else_changes(tied):
    before = weights(tied)
    after = with_rows_of_new_items(before, TOKENS, KNOWN, FILMS)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    kept = np.delete(np.arange(ROWS), [13, 14])
    for old, new in zip(tables(before), tables(after), strict=True):
        np.testing.assert_array_equal(old[kept], new[kept])
        assert (old[[13, 14]] != new[[13, 14]]).all()
    np.testing.assert_array_equal(after["decoder"]["other"], np.ones(3))
    of_same_kind = jax.tree.map(lambda old, new: old.dtype == new.dtype and old.sharding == new.sharding, before, after)
    assert jax.tree.all(of_same_kind)


def test_an_item_like_no_other_lies_in_the_middle():
    films = Catalogue(FILMS.ids[:9], FILMS.titles[:9], {"genre": (*FILMS.attributes["genre"][:8], ("Western",))})
    (table,) = tables(with_rows_of_new_items(weights(True), TOKENS[:9], KNOWN, films))
    center = table[[token for (token,) in TOKENS[:KNOWN]]].mean(axis=0)
    np.testing.assert_allclose(table[13], center, atol=1e-4)


def test_weights_in_half_precision_stay_so():
    halves = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), weights(False))
    after = with_rows_of_new_items(halves, TOKENS, KNOWN, FILMS)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after)} == {"bfloat16"}
    for half, whole in zip(
        tables(after), tables(with_rows_of_new_items(weights(False), TOKENS, KNOWN, FILMS)), strict=True
    ):
        np.testing.assert_allclose(half.astype(np.float32), whole, atol=0.05)


def test_without_new_items_nothing_is_done():
    params = weights(False)
    same = with_rows_of_new_items(params, TOKENS[:KNOWN], KNOWN, FILMS.take(range(KNOWN)))
    assert jax.tree.all(jax.tree.map(lambda old, new: old is new, params, same))
