"""A run that trains from a cache: what it takes from there, what it refuses, and that it trains as without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.data import registry
from t5x_lite.data.metrics import exact_match
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.data.token_store import materialize
from t5x_lite.errors import UserError
from t5x_lite.training import from_cache, loop
from t5x_lite.training.held_out import HeldOut
from t5x_lite.training.run import prepare
from t5x_lite.training.state import init_state
from tests.data.caches import config_of, write_cache
from tests.training.test_run import config as items_config  # noqa: F401 - a fixture
from tests.training.test_run import items, write

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SUMS = [{"q": f"{a}+{b}", "a": WORDS[(a + b) % 10]} for a in range(10) for b in range(10)]
ECHO = [{"q": word, "a": word[::-1]} for word in WORDS]
WORDING = InstructionTemplate("plain", "{q}", "{a}")
register_task("sums_of_cache", Rows({"train": SUMS, "validation": SUMS[:30]}), [WORDING], metrics=[exact_match])
register_task("echo_of_cache", Rows({"train": lambda: ECHO}), [WORDING], metrics=[exact_match])
register_mixture("both_of_cache", ["sums_of_cache", "echo_of_cache"], rates={"sums_of_cache": 3, "echo_of_cache": 1})
# More than a short training sees: of few examples the two orders differ in how soon one comes again.
MANY = [{"q": f"{a}+{b}", "a": WORDS[(a + b) % 10]} for a in range(60) for b in range(60)]
BACK = [{"q": f"{n} back", "a": str(n)[::-1]} for n in range(1000, 3000)]
register_task("many_of_cache", Rows({"train": MANY}), [WORDING], metrics=[exact_match])
register_task("back_of_cache", Rows({"train": BACK}), [WORDING], metrics=[exact_match])
register_mixture("large_of_cache", ["many_of_cache", "back_of_cache"], rates={"many_of_cache": 3, "back_of_cache": 1})


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The configuration of a mixture, to train from a cache of it."""

    def make(mixture):
        config = config_of(mixture, tmp_path)
        write_cache(monkeypatch, config, tmp_path / "cached")
        return dataclasses.replace(config, cache_dir=str(tmp_path / "cached"))

    return make


@pytest.fixture
def config(cached):
    return cached("both_of_cache")


def refused(config, **changes):
    with pytest.raises(UserError) as caught:
        prepare(dataclasses.replace(config, **changes))
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


def test_a_run_takes_tasks_rates_and_vocabulary_from_the_cache(config):
    run, without = prepare(config), prepare(dataclasses.replace(config, cache_dir=None))
    assert run.manifest() == without.manifest()
    assert (run.tasks, run.rates, run.vocabulary.sha256) == (without.tasks, without.rates, without.vocabulary.sha256)
    assert run.data.checked.startswith("the tasks are as they were")


def test_other_settings_are_named(config):
    assert "written with TASK_FEATURE_LENGTHS {'inputs': 40, 'targets': 12}" in refused(
        config, task_feature_lengths={"inputs": 48, "targets": 12}
    )
    assert "written with PACK True and this configuration has False" in refused(config, pack=False)
    assert "MIXTURE_OR_TASK_NAME 'both_of_cache'" in refused(config, mixture_or_task_name="sums_of_cache")
    assert "VOCABULARY 'bytes'" in refused(config, vocabulary="train")


def test_a_vocabulary_that_was_trained_is_the_caches(config, tmp_path, monkeypatch):
    trained = {"vocabulary": "train", "vocabulary_size": 110}
    folder = write_cache(monkeypatch, config_of("both_of_cache", tmp_path, **trained), tmp_path / "trained")
    changes = trained | {"cache_dir": str(folder)}
    run = prepare(dataclasses.replace(config, **changes))
    assert (run.vocabulary.kind, run.model.vocab_size) == ("trained", run.vocabulary.size)
    assert "(VOCABULARY_SIZE 110)" in refused(config, **(changes | {"vocabulary_size": 120}))
    assert "VOCABULARY 'train'" in refused(config, **(changes | {"vocabulary": "bytes"}))


def test_a_part_whose_rows_have_changed_is_stale(config, monkeypatch):
    monkeypatch.setitem(ECHO[3], "a", "eerht!")
    said = refused(config)
    assert "part 'echo_of_cache' is stale: the rows of its split 'train' have changed" in said
    assert "python -m t5x_lite.cache" in said


def test_a_part_whose_wordings_have_changed_is_stale(config, monkeypatch):
    instructions = registry._INSTRUCTIONS["sums_of_cache"]
    other = (dataclasses.replace(WORDING, inputs="{q}?"),)
    monkeypatch.setitem(registry._INSTRUCTIONS, "sums_of_cache", dataclasses.replace(instructions, templates=other))
    assert "part 'sums_of_cache' is stale: the wordings of its split 'train'" in refused(config)


def test_a_task_that_came_or_went_since_is_named(config, monkeypatch):
    sums, echo = (registry.get_mixture_or_task(name) for name in ("sums_of_cache", "echo_of_cache"))
    third = dataclasses.make_dataclass("Third", ["name"])("third_of_cache")
    monkeypatch.setattr(registry, "tasks_of", lambda mixture: (sums, echo, third))
    assert "has no part 'third_of_cache'" in refused(config)
    monkeypatch.setattr(registry, "tasks_of", lambda mixture: (sums,))
    assert "has a part 'echo_of_cache', no task of 'both_of_cache'" in refused(config)


def test_items_are_the_caches(items_config, tmp_path, monkeypatch):  # noqa: F811
    folder = write_cache(monkeypatch, items_config, tmp_path / "cached")
    config = dataclasses.replace(items_config, cache_dir=str(folder))
    run, without = prepare(config), prepare(items_config)
    assert run.manifest() == without.manifest()
    assert run.knowledge.prompts == without.knowledge.prompts
    # A machine without the data set has them from the cache.
    alone = prepare(dataclasses.replace(config, items=None))
    assert alone.manifest() == without.manifest()
    other = items(write(tmp_path / "other", taken={"ann": [0, 1, 2, 3], "ben": [4, 5, 0, 2]}))
    assert "its items are not those of ITEMS" in refused(config, items=other)


# Without TensorFlow


@pytest.fixture
def no_seqio(monkeypatch):
    def missing(config, cache):
        return tuple(from_cache.CachedTask(part.task) for part in cache.parts), "without seqio"

    monkeypatch.setattr(from_cache, "_tasks", missing)


def test_held_out_rows_are_scored_once_however_they_are_batched(config, no_seqio):
    run = prepare(config)
    params = init_state(run.model, config.optimizer, jax.random.key(0), config.partitioner).params
    scores = []
    for batch_size in (8, 3, 1):
        run = prepare(dataclasses.replace(config, batch_size=batch_size))
        scores.append(HeldOut(run).scores(params))
    assert scores[0].keys() == {"validation/loss", "validation/accuracy"}
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], rel=1e-5)
    assert 3 < scores[0]["validation/loss"] < 9


def test_what_is_measured_without_seqio_is_said(config, no_seqio):
    held_out = HeldOut(prepare(dataclasses.replace(config, best_metric="unseen/exact_match")))
    assert held_out.best_metric is None
    assert "need seqio" in held_out.notice and "'unseen/exact_match' is not measured" in held_out.notice
    assert HeldOut(prepare(dataclasses.replace(config, best_metric="validation/accuracy"))).best_metric
    nothing = HeldOut(prepare(dataclasses.replace(config, eval_split="test")))
    assert "nothing measured" in nothing.notice
    assert nothing.scores({}) == {}


# As without a cache


def losses(config, steps, seed, step, start):
    """The loss of each step in the data's order of this seed."""
    run = prepare(dataclasses.replace(config, seed=seed))
    stores = [] if run.data.cache else [materialize(task, "train", run.vocabulary, run.lengths) for task in run.tasks]
    iterator = loop.make_iterator(run, stores)
    found, state = [], jax.tree.map(jnp.copy, start)  # which a step donates
    for _ in range(steps):
        state, metrics = step(state, config.partitioner.global_batch(next(iterator)), {})
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.slow
def test_training_from_the_cache_ends_at_the_loss_of_training_without(cached):
    """Means of the last 30 of 100 steps; 4 orders of the data each way give the noise."""
    config, seeds = cached("large_of_cache"), range(4)
    without = dataclasses.replace(config, cache_dir=None)
    run = prepare(config)
    with config.partitioner.context():
        start = init_state(run.model, config.optimizer, jax.random.key(0), config.partitioner)
        step = loop.train_step_of(run)
        runs = [[losses(way, 100, seed, step, start) for seed in seeds] for way in (config, without)]
    ends = np.array(runs)[:, :, -30:].mean(axis=2)
    from_it, plain = ends.mean(axis=1)
    noise = np.sqrt(ends.var(axis=1, ddof=1).sum() / len(seeds))
    print(f"\nfrom the cache {from_it:.4f}, without {plain:.4f}, standard error of the difference {noise:.4f}")
    assert np.array(runs)[:, :, :5].mean() > 1.3 * ends.mean()  # there was something to learn
    assert abs(from_it - plain) < 3 * noise
    assert noise < 0.05 * plain
