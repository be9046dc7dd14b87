import json
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data import cache_pipeline, packed_cache, vocabularies
from t5x_lite.data.cache_format import MANIFEST, decode_rows, dtype_of, encode_row
from t5x_lite.data.features import encdec_batch, features
from t5x_lite.data.metrics import exact_match
from t5x_lite.data.packed_cache import CacheIterator, held_out_batches, open_cache
from t5x_lite.data.pipeline import TrainIterator
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.data.token_store import materialize
from t5x_lite.errors import UserError
from tests.data.caches import LENGTHS, config_of, examples_of, same, write_cache

COUNTS = {"few_of_cache": 7, "short_of_cache": 400, "long_of_cache": 150}
RATES = {"few_of_cache": 0.2, "short_of_cache": 0.5, "long_of_cache": 0.3}


def register(name, count):
    pad = "x" * (20 if "long" in name else 2)
    rows = [{"q": f"{name[0]}{n}{pad}", "a": str(n)} for n in range(count)]
    source = Rows({"train": rows, **({"validation": rows[: count // 2]} if "few" not in name else {})})
    register_task(name, source, [InstructionTemplate("plain", "{q}", "{a}")], metrics=[exact_match])


for _name, _count in COUNTS.items():
    register(_name, _count)
register_mixture("mixture_of_cache", list(COUNTS), rates=RATES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_pipeline, "_EXAMPLES_A_SHARD", 60)
        return open_cache(write_cache(patch, config_of("mixture_of_cache", folder), folder / "cached"))


def make(cache, **changes):
    return CacheIterator(cache, **({"batch_size": 4, "seed": 3} | changes))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


# The bytes of a row


EXAMPLES = st.lists(
    st.tuples(*(st.lists(st.integers(1, 30_000), min_size=1, max_size=6) for _ in range(2))), min_size=1, max_size=4
)


@settings(max_examples=60)
@given(st.lists(EXAMPLES, min_size=1, max_size=5), st.sampled_from(["<u2", "<i4"]), st.booleans())
def test_rows_come_back_as_they_were_written(rows, dtype, pack):
    rows = [row if pack else row[:1] for row in rows]
    arrays = [[tuple(np.array(part, np.int32) for part in example) for example in row] for row in rows]
    lengths = {"inputs": 24, "targets": 24}
    decoded = features(*decode_rows([encode_row(row, dtype) for row in arrays], dtype), lengths, pack)
    assert same([decoded], [encdec_batch(arrays, lengths, pack)])


def test_a_row_by_hand():
    row = encode_row([(np.array([5, 1]), np.array([7, 8, 1])), (np.array([6]), np.array([1]))], "<u2")
    assert np.frombuffer(row, "<u2").tolist() == [2, 3, 2, 1, 3, 1, 5, 1, 6, 7, 8, 1, 1]


def test_only_large_vocabularies_take_four_bytes():
    assert dtype_of(65_535, LENGTHS) == "<u2"
    assert dtype_of(250_112, LENGTHS) == "<i4"


# The same data as on the fly


@pytest.mark.parametrize("task", COUNTS)
def test_an_epoch_is_exactly_the_token_store(task, tmp_path, monkeypatch):
    from t5x_lite.data import registry

    monkeypatch.setattr(cache_pipeline, "_EXAMPLES_A_SHARD", 60)
    cache = open_cache(write_cache(monkeypatch, config_of(task, tmp_path), tmp_path / "cached"))
    (part,) = cache.parts
    assert len(part.splits["train"]) == -(-COUNTS[task] // 60)
    store = materialize(registry.get_mixture_or_task(task), "train", vocabularies.byte(), LENGTHS)
    wanted = Counter(tuple(tuple(ids.tolist()) for ids in store.example(i)) for i in range(len(store)))
    rows = part.total("train", "rows")
    iterator = make(cache, batch_size=1)
    epochs = [[examples_of(batch) for batch in take(iterator, rows)] for _ in range(2)]
    for epoch in epochs:
        assert Counter(example for row in epoch for example in row) == wanted
    assert rows == 1 or epochs[0] != epochs[1]


def test_examples_come_at_the_rates_of_the_mixture(cache):
    names = {name[0]: name for name in COUNTS}
    batches = take(make(cache, batch_size=10), 300)
    found = Counter()
    for batch in batches:
        found.update(names[chr(inputs[0] - 3)] for inputs, _ in examples_of(batch))
    for name, rate in RATES.items():
        assert found[name] / found.total() == pytest.approx(rate, abs=0.005)


def test_rates_are_those_of_training_without_a_cache(cache):
    assert dict(zip([part.task for part in cache.parts], cache.rates, strict=True)) == pytest.approx(RATES)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=9), st.integers(0, 10**12))
def test_turns_skip_no_row_and_meet_every_share(weights, late):
    turns = packed_cache._Turns(weights)
    taken = Counter()
    for index in range(200):
        part, own = turns[index]
        assert own == taken[part]
        taken[part] += 1
        for each, weight in enumerate(weights):
            assert abs(taken[each] - (index + 1) * weight / sum(weights)) < 1 + len(weights).bit_length()
    part, own = turns[late]
    assert abs(own - late * weights[part] / sum(weights)) < 1 + len(weights).bit_length()


# Places in the data


@settings(max_examples=15)
@given(st.integers(0, 300), st.integers(1, 9), st.integers(0, 3))
def test_a_restored_iterator_goes_on_bit_for_bit(cache, before, batch_size, seed):
    iterator = make(cache, batch_size=batch_size, seed=seed)
    take(iterator, before)
    state = json.loads(json.dumps(iterator.state()))
    assert set(map(type, state.values())) == {int}
    restored = make(cache, batch_size=batch_size, seed=seed)
    restored.restore(state)
    assert same(take(iterator, 5), take(restored, 5))
    assert restored.state() == iterator.state()


def test_a_step_is_found_without_those_before_it(cache):
    iterator = make(cache)
    began = time.process_time()
    iterator.restore(iterator.state() | {"row": 4 * 1_000_000})
    late = next(iterator)
    assert time.process_time() - began < 1
    before = make(cache)
    before.restore(iterator.state() | {"row": 4 * 999_990})
    assert same(take(before, 11)[-1:], [late])


def test_another_batch_size_goes_on_with_the_next_row(cache):
    before = make(cache, batch_size=4)
    take(before, 3)
    after = make(cache, batch_size=2)
    after.restore(before.state())
    halves, (whole,) = take(after, 2), take(before, 1)
    assert same([{name: np.concatenate([half[name] for half in halves]) for name in whole}], [whole])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_one_global_batch(cache, count):
    whole = take(make(cache), 300)
    share = 4 // count
    parts = [take(make(cache, own_rows=range(i * share, (i + 1) * share)), 300) for i in range(count)]
    joined = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]} for step in range(300)
    ]
    assert same(joined, whole)


def test_a_process_may_own_rows_that_do_not_follow_one_another(cache):
    whole, own = take(make(cache), 300), take(make(cache, own_rows=np.array([0, 3])), 300)
    assert same(own, [{name: array[[0, 3]] for name, array in batch.items()} for batch in whole])


@pytest.mark.parametrize("small", [0, 1 << 16])
def test_seeds_parts_and_epochs_have_orders_of_their_own(small, monkeypatch):
    monkeypatch.setattr(packed_cache, "_SMALL", small)
    streams = {(seed, part): packed_cache._Epochs(range(100, 150), (seed, part)) for seed in (3, 4) for part in (0, 1)}
    orders = [tuple(rows[50 * epoch + place] for place in range(50)) for rows in streams.values() for epoch in range(3)]
    assert all(sorted(order) == list(range(100, 150)) for order in orders)
    assert len(set(orders)) == 12


def test_large_and_small_parts_are_found_anywhere(monkeypatch):
    large = packed_cache._Epochs(range(10, 10 + (1 << 17)), (0, 0))
    numbers = [large[place] for place in range(1 << 12)]
    assert len(set(numbers)) == 1 << 12
    assert min(numbers) < 200 and max(numbers) > (1 << 17) - 200
    assert large[5] == numbers[5]


def test_places_in_other_data_are_refused(cache, tmp_path, monkeypatch):
    other = open_cache(write_cache(monkeypatch, config_of("few_of_cache", tmp_path), tmp_path / "cached"))
    with pytest.raises(UserError, match="the checkpoint was trained from another cache"):
        make(cache).restore(make(other).state())
    with pytest.raises(UserError, match="the checkpoint was trained from no cache"):
        make(cache).restore({"window": 0, "row": 4})
    from t5x_lite.data import registry

    store = materialize(registry.get_mixture_or_task("few_of_cache"), "train", vocabularies.byte(), LENGTHS)
    on_the_fly = TrainIterator([store], [1.0], lengths=LENGTHS, batch_size=4, seed=3)
    with pytest.raises(UserError, match="CACHE_DIR is None and the checkpoint was trained from a cache"):
        on_the_fly.restore(make(cache).state())


def test_fill_is_what_batches_show(cache):
    batches = take(make(cache, batch_size=10), 300)
    fill = make(cache).fill()
    for name, feature in (("inputs", "encoder_input_tokens"), ("targets", "decoder_target_tokens")):
        assert np.mean([(batch[feature] > 0).mean() for batch in batches]) == pytest.approx(fill[name], abs=0.01)
    shown = np.mean([batch["encoder_segment_ids"].max(axis=1).mean() for batch in batches])
    assert shown == pytest.approx(fill["examples_per_row"], abs=0.05)


# Held-out rows


@pytest.mark.parametrize("count", [1, 2])
def test_held_out_rows_come_once(cache, count):
    from t5x_lite.data import registry

    wanted = Counter()
    for name in ("short_of_cache", "long_of_cache"):
        store = materialize(registry.get_mixture_or_task(name), "validation", vocabularies.byte(), LENGTHS)
        wanted.update(tuple(tuple(ids.tolist()) for ids in store.example(i)) for i in range(len(store)))
    found = Counter()
    for index in range(count):
        for batch in held_out_batches(
            cache, "validation", 10_000, 16, range(16 * index // count, 16 * (index + 1) // count)
        ):
            assert len(batch["encoder_input_tokens"]) == 16 // count
            counted = batch["decoder_loss_weights"].any(axis=1)
            found.update(examples_of({name: array[counted] for name, array in batch.items()}) if counted.any() else ())
    assert found == wanted


def test_a_cap_on_held_out_examples_is_met_by_whole_rows(cache):
    few = list(held_out_batches(cache, "validation", 20, 4))
    counted = sum(
        (batch["decoder_loss_weights"].any(axis=1)[:, None] * batch["encoder_segment_ids"]).max(axis=1).sum()
        for batch in few
    )
    assert 40 <= counted <= 60
    assert same(few, held_out_batches(cache, "validation", 20, 4))


# What is not whole


@pytest.fixture
def copy(cache, tmp_path):
    import shutil

    return shutil.copytree(cache.folder, tmp_path / "copy")


def shard_of(folder, task="long_of_cache"):
    return sorted((folder / task).glob("train-00001*"))[0]


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda folder: remove(folder / MANIFEST), "is no packed cache \\(no manifest.json in it\\)"),
        (lambda folder: remove(folder / "few_of_cache" / MANIFEST), "has no whole part 'few_of_cache'"),
        (lambda folder: remove(shard_of(folder)), "part 'long_of_cache' lacks its shard .*train-00001-of-00003"),
        (lambda folder: cut(shard_of(folder)), "train-00001-of-00003.array_record' has .* bytes of"),
        (lambda folder: cut(folder / "few_of_cache" / MANIFEST), None),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "is damaged"),
        (lambda folder: remove(folder / "vocabulary" / "vocabulary.json"), "no readable vocabulary"),
    ],
)
def test_what_is_missing_is_named_before_any_step(copy, harm, message):
    harm(copy)
    if message is None:  # the newline at its end means nothing
        assert open_cache(copy)
        return
    with pytest.raises(UserError, match=message) as caught:
        open_cache(copy)
    assert len(str(caught.value).splitlines()) == 1
    assert "python -m t5x_lite.cache" in str(caught.value)


def test_a_part_of_another_cache_is_refused(copy):
    path = copy / "few_of_cache" / MANIFEST
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match=r"part 'few_of_cache' is not the one that .* was written with"):
        open_cache(copy)


def test_a_folder_that_is_not_there_names_the_nearest(cache):
    with pytest.raises(UserError, match="nearest: 'cached'"):
        open_cache(cache.folder.replace("cached", "cashed"))


def test_damage_inside_of_a_shard_is_found_where_it_is_read(copy):
    for path in (copy / "long_of_cache").glob("train-*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 8 : -len(content) // 8] = bytes(len(content[len(content) // 8 : -len(content) // 8]))
        path.write_bytes(content)
    with pytest.raises(UserError, match="a shard cannot be read"):
        take(make(open_cache(copy)), 100)


def test_rows_that_are_not_packed(tmp_path, monkeypatch):
    config = config_of("few_of_cache", tmp_path, pack=False)
    cache = open_cache(write_cache(monkeypatch, config, tmp_path / "cached"))
    batch = next(make(cache, batch_size=7))
    assert "encoder_segment_ids" not in batch
    assert sorted(map(tuple, batch["decoder_target_tokens"][:, :2].tolist())) == [
        (ord(str(n)) + 3, 1) for n in range(7)
    ]
