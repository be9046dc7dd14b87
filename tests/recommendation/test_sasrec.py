"""The transformer against plain NumPy, the windows of an epoch, and what training must learn."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.recommendation import metrics, sasrec
from t5x_lite.recommendation.sasrec import Sasrec, SasrecConfig, batches, fit_sasrec, hidden, initial
from t5x_lite.recommendation.splits import Cases, Split

SMALL = SasrecConfig(dim=8, blocks=2, heads=2, max_length=5)

jitted = jax.jit(hidden, static_argnames="config")


def items(*numbers):
    return np.array(numbers, np.int32)


def random_params(config=SMALL, num_items=6):
    """Larger than at the start, so that every part matters."""
    params = initial(jax.random.key(0), num_items, config)
    keys = jax.random.split(jax.random.key(1), len(params))
    return {name: 0.5 * jax.random.normal(key, params[name].shape) for name, key in zip(params, keys, strict=True)}


def normed(x, scale):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * scale


def by_hand(params, row):
    """One row, position after position, head after head."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    real = [place for place in range(5) if row[place] > 0]
    x = {n: p["items"][row[n]] * np.sqrt(8) + p["positions"][n] for n in real}
    for block in range(2):
        parts = {n: np.split(normed(x[n], p["norms"][block, 0]) @ p["query_key_value"][block], 3) for n in real}
        for n in real:
            heads = []
            for head in (slice(0, 4), slice(4, 8)):
                before = [m for m in real if m <= n]
                weights = np.exp([parts[n][0][head] @ parts[m][1][head] / 2 for m in before])
                heads.append(sum(w * parts[m][2][head] for w, m in zip(weights / weights.sum(), before, strict=True)))
            x[n] = x[n] + np.concatenate(heads) @ p["out"][block]
        for n in real:
            x[n] = x[n] + np.maximum(normed(x[n], p["norms"][block, 1]) @ p["up"][block], 0) @ p["down"][block]
    return {n: normed(x[n], p["last_norm"]) for n in real}


@pytest.mark.parametrize("row", [[1, 2, 3, 4, 5], [0, 0, 6, 2, 6]])
def test_hidden_states_are_those_of_plain_numpy(row):
    params = random_params()
    found = jitted(params, jnp.array([row]), SMALL)[0]
    for place, expected in by_hand(params, row).items():
        np.testing.assert_allclose(found[place], expected, atol=1e-4)


def test_scores_are_of_the_last_items_and_not_of_padding():
    model = Sasrec(random_params(), SMALL)
    scores = model.scores([items(5, 1, 2), items(0, 3, 5, 1, 2, 4, 0)])
    expected = [
        by_hand(model.params, row)[4] @ model.params["items"][1:].T for row in ([0, 0, 6, 2, 3], [6, 2, 3, 5, 1])
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_many_histories_are_scored_in_parts(monkeypatch):
    model = Sasrec(random_params(), SMALL)
    histories = [items(n % 6, n % 5) for n in range(5)]
    whole = model.scores(histories)
    monkeypatch.setattr(sasrec, "_SCORED_AT_ONCE", 2)
    np.testing.assert_allclose(model.scores(histories), whole, atol=1e-5)
    assert whole.shape == (5, 6)


@pytest.mark.parametrize("seed", range(5))
def test_in_an_epoch_every_item_but_a_users_first_is_a_target_once(seed):
    lengths = [0, 1, 2, 5, 6, 7, 11, 12, 23]
    starts = 100 * np.arange(len(lengths))
    sequences = [start + np.arange(length) for start, length in zip(starts, lengths, strict=True)]
    config = SasrecConfig(max_length=5, batch_size=4)
    found = []
    for inputs, targets in batches(sequences, config, np.random.default_rng(seed)):
        assert inputs.shape == targets.shape == (4, 5)
        counted = (inputs > 0) & (targets > 0)
        np.testing.assert_array_equal(targets[counted], inputs[counted] + 1)  # items are consecutive numbers here
        found += (targets[counted] - 1).tolist()
    assert sorted(found) == sorted(item for row in sequences for item in row[1:].tolist())


def test_windows_lie_elsewhere_in_each_epoch():
    epochs = [
        {tuple(row) for inputs, _ in batches([np.arange(60)], SMALL, np.random.default_rng(seed)) for row in inputs}
        for seed in (0, 1, 0)
    ]
    assert epochs[0] == epochs[2] != epochs[1]


def walks(users=200, num_items=20, steps=9):
    """Each user goes round a circle of items by steps of 1 or 2: the last item does not tell which."""
    generator = np.random.default_rng(0)
    start, step = generator.integers(num_items, size=(users, 1)), generator.integers(1, 3, size=(users, 1))
    paths = ((start + step * np.arange(steps)) % num_items).astype(np.int32)

    def cases(place):
        return Cases(np.arange(users), list(paths[:, :place]), paths[:, place])

    return Split(num_items, list(paths[:, :-2]), cases(-2), cases(-1))


FAST = SasrecConfig(dim=16, max_length=6, dropout=0.0, learning_rate=1e-2, batch_size=16, max_epochs=25, patience=5)


@pytest.fixture(scope="module")
def trained():
    lines = []
    return fit_sasrec(walks(), FAST, seed=0, log=lines.append), lines


@pytest.mark.slow
def test_it_learns_what_only_earlier_items_tell(trained):
    test = walks().test
    ranks = metrics.ranks(trained[0].scores(test.histories), test.histories, test.target)
    assert metrics.hit(ranks, 1).mean() > 0.95  # by the last item alone 1/2


@pytest.mark.slow
def test_it_keeps_the_best_epoch_and_stops_when_that_is_long_ago(trained):
    model, lines = trained
    values = [
        float(re.fullmatch(r"epoch \d+: loss \d\.\d{4}, validation NDCG@10 (\d\.\d{4})", line)[1]) for line in lines
    ]
    cases = walks().validation
    ranks = metrics.ranks(model.scores(cases.histories), cases.histories, cases.target)
    assert metrics.ndcg(ranks, 10).mean() == pytest.approx(max(values), abs=1e-4)
    assert len(lines) in (values.index(max(values)) + 1 + FAST.patience, FAST.max_epochs)


def test_one_seed_gives_one_model():
    histories = [items(0, 1, 2), items(3)]
    config = dataclasses.replace(FAST, dropout=0.5, max_epochs=2)
    first, again, other = (fit_sasrec(walks(), config, seed=seed).scores(histories) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_dropout_is_in_training_only():
    params, row = random_params(), jnp.array([[1, 2, 3, 4, 5]])
    config = dataclasses.replace(SMALL, dropout=0.5)
    without = jitted(params, row, config)
    np.testing.assert_allclose(without, jitted(params, row, SMALL), atol=1e-6)
    assert not np.allclose(without, jitted(params, row, config, jax.random.key(0)))


def test_single_items_teach_nothing():
    split = Split(3, [items(1), items()], Cases(items(), [], items()), Cases(items(), [], items()))
    with pytest.raises(UserError, match=r"^SASRec learns what follows an item, and no user has two items to train on$"):
        fit_sasrec(split)
