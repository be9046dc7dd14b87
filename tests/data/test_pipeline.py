import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data import pipeline, vocabularies
from t5x_lite.data.pipeline import TrainIterator, load_eval, prefetch
from t5x_lite.data.token_store import TokenStore

LENGTHS = {"inputs": 12, "targets": 6}


def store(task, count):
    """Examples of 1 to 6 input tokens, every token of which is 1000 * task + number of the example + 2."""
    lengths = np.arange(count) % 6 + 1
    ids = np.repeat(1000 * task + np.arange(count) + 2, lengths).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.arange(count + 1)
    return TokenStore(f"task_{task}", ids, offsets, (1000 * task + ends[:-1] + 2).astype(np.int32), ends)


STORES = [store(0, 50), store(1, 7), store(2, 200)]
RATES = [0.5, 0.2, 0.3]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(pipeline, "_EXAMPLES_A_WINDOW", 60)


def make(stores=STORES, rates=RATES, **changes):
    return TrainIterator(stores, rates, **({"lengths": LENGTHS, "batch_size": 4, "seed": 3} | changes))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


def targets(batches):
    """The examples of batches: each has one target token, which names it."""
    return [int(i) for batch in batches for i in batch["decoder_target_tokens"].ravel() if i]


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_a_restored_iterator_goes_on_bit_for_bit(before, batch_size, pack, seed):
    changes = {"batch_size": batch_size, "pack": pack, "seed": seed}
    iterator = make(**changes)
    take(iterator, before)
    state = iterator.state()
    assert set(map(type, state.values())) == {int}
    restored = make(**changes)
    restored.restore(state)
    assert same(take(iterator, 6), take(restored, 6))
    assert restored.state() == iterator.state()


@pytest.mark.parametrize("owners", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 1, 2], [3], [1, 2]]])
def test_processes_share_one_global_batch(owners):
    whole = take(make(), 20)
    for own in owners:
        part = take(make(own_rows=own), 20)
        assert same(part, [{name: rows[own] for name, rows in batch.items()} for batch in whole])


@settings(max_examples=20)
@given(st.lists(st.integers(1, 100), min_size=3, max_size=3), st.integers(1, 12))
def test_rates_are_met_to_less_than_one_example(rates, windows):
    iterator = make(rates=rates)
    drawn = [sum(len(iterator._drawn(task, window)) for window in range(windows)) for task in range(3)]
    for count, rate in zip(drawn, rates, strict=True):
        assert 0 <= 60 * windows * rate / sum(rates) - count < 1 + 1e-6


def test_each_epoch_has_each_example_once():
    iterator = make(stores=STORES[:1], rates=[1.0], pack=False, batch_size=10)
    # A window's order is shuffled again, so whole epochs end where whole windows do: 6 x 50 = 5 x 60.
    drawn = targets(take(iterator, 30))
    assert Counter(drawn) == {number + 2: 6 for number in range(50)}


def test_no_example_is_lost_or_cut_by_packing():
    iterator = make(stores=STORES[2:], rates=[1.0], batch_size=1)
    rows = []
    while iterator.state() != {"window": 9, "row": len(iterator._rows)}:  # 10 x 60 are three epochs of 200
        rows.append(next(iterator))
    counts = Counter(int(i) for row in rows for i in row["encoder_input_tokens"].ravel() if i)
    assert counts == {2000 + number + 2: 3 * (number % 6 + 1) for number in range(200)}
    assert all((row["encoder_segment_ids"] > 0).sum() <= 12 for row in rows)


def test_seeds_and_epochs_differ():
    orders = [targets(take(make(stores=STORES[:1], rates=[1.0], seed=seed), 9)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    iterator = make(stores=STORES[:1], rates=[1.0])
    assert not np.array_equal(iterator._epoch_order(0, 0), iterator._epoch_order(0, 1))


def test_a_task_smaller_than_its_share_of_a_window():
    iterator = make(stores=[store(0, 3)], rates=[1.0])
    assert sorted(Counter(iterator._drawn(0, 0)).values()) == [20, 20, 20]


def test_fill_by_hand():
    # Every row holds two examples of 6 tokens: full of inputs, 2 of 6 target positions.
    same_lengths = TokenStore(
        "six", np.full(60, 5, np.int32), np.arange(0, 61, 6), np.full(10, 7, np.int32), np.arange(11)
    )
    assert make(stores=[same_lengths], rates=[1.0]).fill() == {
        "inputs": 1.0,
        "targets": pytest.approx(2 / 6),
        "examples_per_row": 2.0,
    }


def test_prefetched_state_is_of_the_batches_handed_out():
    plain = make()
    with prefetch(make(), 3) as batches:
        assert batches.state() == plain.state()
        for _ in range(30):
            assert same([next(batches)], [next(plain)])
            assert batches.state() == plain.state()
    assert "batches" not in [thread.name for thread in threading.enumerate()]


def test_a_prefetchers_error_is_raised_where_batches_are_taken(monkeypatch):
    iterator = make()
    next(iterator)

    def broken(window):
        raise OSError("gone")

    monkeypatch.setattr(iterator, "_window_rows", broken)
    with prefetch(iterator, 2) as batches, pytest.raises(OSError, match="gone"):
        take(batches, 100)


EVAL_LENGTHS = {"inputs": 40, "targets": 8}


def test_an_evaluation_set_by_hand(new_task):
    examples = load_eval(new_task(answers_field="right"), "validation", vocabularies.byte(), EVAL_LENGTHS)
    assert examples.texts[:2] == ["Capital of Japan?", "What is the capital of Japan?"]
    assert examples.answers[0] == ["Tokyo", "Tōkyō"]
    assert examples.templates == ["plain", "ask"] * 2
    assert examples.template_splits == ["seen", "unseen"] * 2
    assert examples.inputs[0] == [*vocabularies.byte().encode("Capital of Japan?"), 1]
    assert examples.targets[0] == [*vocabularies.byte().encode("Tokyo"), 1]


def test_an_evaluation_set_of_other_peoples_task(new_native_task):
    task = new_native_task(3)
    examples = load_eval(task, "train", vocabularies.byte(), EVAL_LENGTHS)
    assert examples.texts == ["0", "1", "2"]
    assert examples.answers == ["N", "N", "N"]  # as their postprocessor makes of the target
    assert (examples.templates, examples.template_splits) == ([task.name] * 3, ["seen"] * 3)


@pytest.mark.parametrize("kind", ["ours", "native"])
def test_a_cap_draws_the_same_examples_from_all_over(kind, new_native_task, new_task):
    rows = [{"country": str(n), "capital": "x"} for n in range(100)]
    task, split = (new_task(rows=rows), "validation") if kind == "ours" else (new_native_task(200), "train")
    drawn = [load_eval(task, split, vocabularies.byte(), EVAL_LENGTHS, 20).texts for _ in range(2)]
    whole = load_eval(task, split, vocabularies.byte(), EVAL_LENGTHS).texts
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 20
    positions = [whole.index(text) for text in drawn[0]]
    assert positions == sorted(positions)
    assert min(positions) < 50 < 150 < max(positions)
