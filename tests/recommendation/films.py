"""Forty made-up films, twelve people who took some, and models of random weights that recommend them."""

import functools
import itertools
import os
import tempfile
from unittest import mock

import jax
import numpy as np

from t5x_lite.data import vocabularies
from t5x_lite.decoding.engine import Engine
from t5x_lite.decoding.generator import Generator
from t5x_lite.model import T5Config, bind
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.index import code_index, title_index, token_index
from t5x_lite.recommendation.interactions import Dataset, Interactions
from t5x_lite.recommendation.knowledge import Knowledge
from t5x_lite.recommendation.recommender import Recommender
from t5x_lite.recommendation.splits import leave_one_out
from tests.decoding.models import random_params

SIZE = 40
EVERYTHING = set(range(SIZE))
RECENT, LONGEST = 3, 5  # so the last eight of a history are read; of titles, the last five
GENRES = ("Comedy", "Drama", "Horror", "War")
USERS = ("anna", "ben", "cleo", "dan", "eve", "finn", "gail", "hugo", "iris", "jan", "kim", "lou")
PROMPTS = {
    "history": ("{history} What comes next?", "What comes after {history}?", "{history}, and then?"),
    "interests": ("Someone likes {interests}. Which?", "Which for {interests}?"),
    "history+interests": ("After {history} they want {interests}.",),
}
INTERESTS = ("a comedy", "a war of the nineties", "horror")

_FIRST = ("Red", "Blue", "Green", "Black", "White", "Grey", "Pink", "Gold")
_SECOND = ("River", "Harbour", "Winter", "Letter", "Garden")
TITLES = tuple(f"{first} {second}" for first, second in itertools.product(_FIRST, _SECOND))
FILMS = Catalogue(
    ids=tuple(f"f{100 + number}" for number in range(SIZE)),
    titles=TITLES,
    attributes={
        "genre": tuple((GENRES[number % 4],) if number % 5 else () for number in range(SIZE)),
        "year": tuple((str(1980 + number),) for number in range(SIZE)),
    },
)


@functools.cache
def dataset(ratings=True):
    """Each of the users took ten films or more, no two at one time."""
    rng = np.random.default_rng(3)
    taken = [rng.choice(SIZE, 10 + user, replace=False) for user in range(len(USERS))]
    item = np.concatenate(taken).astype(np.int32)
    interactions = Interactions(
        users=USERS,
        user=np.repeat(np.arange(len(USERS)), [len(items) for items in taken]).astype(np.int32),
        item=item,
        time=np.arange(len(item)),
        rating=rng.integers(1, 6, len(item)).astype(np.float32) if ratings else None,
    )
    return Dataset("films", FILMS, interactions)


@functools.cache
def item_index(kind):
    if kind == "codes":
        return code_index(FILMS, leave_one_out(dataset()), levels=2, codebook=4, dimension=8)
    return {"title": title_index, "token": token_index}[kind](FILMS)


def knowledge(kind="token", ratings=True, **changed):
    data = dataset(ratings)
    parts = {"catalogue": FILMS, "index": item_index(kind), "users": USERS, "histories": data.sequences()}
    parts |= {
        "ratings": data.ratings_in_order(),
        "recent": 0 if kind == "title" else RECENT,
        "longest": LONGEST,
        "prompts": PROMPTS,
    }
    return Knowledge(**(parts | changed))


@functools.cache
def words():
    """A vocabulary trained on titles and wordings; not one of the user's cache."""
    texts = [*TITLES, *(text for texts in PROMPTS.values() for text in texts), *INTERESTS, "nothing; 0123456789"]
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, XDG_CACHE_HOME=cache):
        return vocabularies.train_sentencepiece(texts, 160)


@functools.cache
def config(kind):
    size = words().size + len(item_index(kind).tokens)
    return T5Config(
        vocab_size=size, d_model=16, num_heads=2, head_dim=8, d_ff=24, num_encoder_layers=1, num_decoder_layers=1
    )


def new_engine(kind="token", inputs=32, seed=0, **arguments):
    """One that has compiled nothing."""
    vocabulary = words().with_tokens(item_index(kind).tokens)
    # On a device of their own, as weights are that were loaded.
    params = jax.device_put(random_params(config(kind), seed), jax.devices()[0])
    generator = Generator(config(kind), params, eos_id=vocabulary.eos_id, **arguments)
    return Engine(vocabulary, generator, {"inputs": inputs, "targets": 8})


@functools.cache
def engine(kind):
    """One for all tests of a kind of index, so that each program compiles once."""
    return new_engine(kind, inputs=64 if kind == "title" else 32)


def recommender(kind="token", **changed):
    return Recommender(engine(kind), knowledge(kind, **changed))


# ---------------------------------------------------------------------- what must come, the slow way


def question(index, history, interests="", wording=None):
    """(prompt, prefix) as PROMPTS say: the last three films of a bare history are the decoder's, five more are read."""

    def text(items):
        return ("; " if index.kind == "title" else "").join(index.texts[item] for item in items) or "nothing"

    history = list(history)
    kind = ("history+interests" if history else "interests") if interests else "history"
    older, prefix = history, ""
    if kind == "history" and index.kind != "title" and history:
        older, prefix = history[:-3], text(history[-3:])
    return (wording or PROMPTS[kind][0]).format(history=text(older[-5:]), interests=interests), prefix


@functools.partial(jax.jit, static_argnames="config")
def _log_probabilities(config, params, inputs, targets):
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": targets}
    return jax.nn.log_softmax(bind(config, params)(batch))


def scores(recommender, history, interests="", wording=None):
    """The log-probability of each item's tokens after a question, by the model's own logits, each item on a row."""
    index, of_kind = recommender.knowledge.index, recommender.engine
    prompt, prefix = question(index, history, interests, wording)
    sequences = index.sequences(of_kind.vocabulary)
    before = [0, *of_kind.vocabulary.encode(prefix)]
    asked = [*of_kind.vocabulary.encode(prompt), of_kind.vocabulary.eos_id]
    inputs, targets = np.zeros((48, 64), np.int32), np.zeros((48, 48), np.int32)
    inputs[:, : len(asked)] = asked
    for row, sequence in zip(targets, sequences, strict=False):
        row[: len(before) + len(sequence) - 1] = [*before, *sequence[:-1]]
    found = np.asarray(_log_probabilities(config(index.kind), of_kind.generator.params, inputs, targets), np.float64)
    first = len(before) - 1
    return np.array([row[first + np.arange(len(one)), one].sum() for row, one in zip(found, sequences, strict=False)])


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
