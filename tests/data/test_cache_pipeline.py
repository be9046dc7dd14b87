import sys

import pytest

from t5x_lite.data import cache_pipeline, registry, vocabularies
from t5x_lite.data.cache_format import Part, read_part
from t5x_lite.data.cache_pipeline import make_recipe, read, tokenize
from t5x_lite.data.packed_cache import CacheIterator, open_cache
from t5x_lite.data.token_store import materialize
from t5x_lite.errors import UserError
from tests.data.caches import LENGTHS, config_of, examples_of, run_plainly, write_cache


@pytest.fixture
def recipe(tmp_path):
    """Of tasks and the numbers of their examples."""

    def make(sizes, seed=0):
        vocabularies.byte().save(_made(tmp_path / f"cache_{seed}") / "vocabulary")
        made_from = {task: {"seed": seed} for task in sizes}
        splits = {(task, "train"): size for task, size in sizes.items()}
        settings = {"module": None, "pack": True, "seed": seed}
        return make_recipe(str(tmp_path / f"cache_{seed}"), made_from, splits, vocabularies.byte(), LENGTHS, **settings)

    return make


def _made(folder):
    (folder / "vocabulary").mkdir(parents=True)
    return folder


def content(part: Part):
    return {split: [shard.sha256 for shard in shards] for split, shards in part.splits.items()}


def rows(count):
    return [{"country": f"c{n}", "capital": str(n % 7), "right": ["x"]} for n in range(count)]


def test_the_bytes_do_not_depend_on_how_work_was_divided(recipe, new_task, monkeypatch):
    monkeypatch.setattr(cache_pipeline, "_EXAMPLES_A_SHARD", 40)
    task = new_task(rows=rows(100)).name
    found = []
    for block in (7, 100):
        monkeypatch.setattr(cache_pipeline, "_ROWS_A_BLOCK", block)
        made = recipe({task: 100}, seed=0) if not found else made
        run_plainly(made)
        found.append(read_part(made.output, task))
    assert found[0] == found[1]
    assert len(found[0].splits["train"]) == 3
    other = recipe({task: 100}, seed=1)
    run_plainly(other)
    assert content(read_part(other.output, task)) != content(found[0])


def test_every_example_is_dealt_to_one_shard(recipe, new_task, monkeypatch):
    monkeypatch.setattr(cache_pipeline, "_EXAMPLES_A_SHARD", 100)
    task = new_task(rows=rows(1000)).name
    made = recipe({task: 1000})
    dealt = [pair for block in read(made, (task, "train")) for pair in tokenize(made, block)]
    sizes = [sum(len(examples) for key, examples in dealt if key[2] == shard) for shard in range(10)]
    assert sum(sizes) == 1000
    assert 60 < min(sizes) <= max(sizes) < 140
    places = [place for _, examples in dealt for place, _, _ in examples]
    assert len(set(places)) == 1000


def test_other_peoples_tasks(new_native_task, tmp_path, monkeypatch):
    task = new_native_task(50)
    cache = open_cache(write_cache(monkeypatch, config_of(task.name, tmp_path), tmp_path / "cached"))
    store = materialize(task, "train", vocabularies.byte(), LENGTHS)
    total = cache.parts[0].total("train", "rows")
    found = [example for batch in _take(cache, total) for example in examples_of(batch)]
    assert sorted(found) == sorted(tuple(tuple(ids.tolist()) for ids in store.example(i)) for i in range(50))


def _take(cache, count):
    iterator = CacheIterator(cache, batch_size=1, seed=0)
    return [next(iterator) for _ in range(count)]


def test_examples_before_each_are_those_of_training_without_a_cache(new_task, tmp_path, monkeypatch):
    """Exemplars are chosen by the number of the row in its split, whichever worker renders it."""
    monkeypatch.setattr(cache_pipeline, "_ROWS_A_BLOCK", 3)
    task = new_task(rows=rows(20), few_shot=1)
    lengths = {"inputs": 80, "targets": 12}
    config = config_of(task.name, tmp_path, task_feature_lengths=lengths)
    cache = open_cache(write_cache(monkeypatch, config, tmp_path / "cached"))
    store = materialize(registry.get_mixture_or_task(task.name), "train", vocabularies.byte(), lengths)
    found = [example for batch in _take(cache, cache.parts[0].total("train", "rows")) for example in examples_of(batch)]
    assert sorted(found) == sorted(tuple(tuple(ids.tolist()) for ids in store.example(i)) for i in range(20))


def test_without_beam_one_line_says_how_to_get_it(recipe, new_task, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"Apache Beam, which is not installed: pip install 't5x_lite\[cache\]'"):
        cache_pipeline.run(recipe({new_task().name: 2}), [])
