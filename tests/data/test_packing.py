from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data import packing
from t5x_lite.data.packing import first_fit


def next_fit(lengths, sizes):
    """Bins when only the last one is open."""
    bins, room = 0, (0, 0)
    for inputs, targets in lengths:
        if room[0] < inputs or room[1] < targets:
            bins, room = bins + 1, sizes
        room = room[0] - inputs, room[1] - targets
    return bins


def test_by_hand():
    # 6 and 4 fill a row of 10; the 5 before the 4 opened the second row, which the last 3 joins.
    assert sorted(first_fit([6, 5, 4, 3], [1, 1, 1, 1], 10, 10)) == [[0, 2], [1, 3]]


def test_both_parts_must_fit():
    assert sorted(first_fit([1, 1, 1], [3, 2, 2], 10, 4)) == [[0], [1, 2]]


def test_the_oldest_row_closes(monkeypatch):
    monkeypatch.setattr(packing, "OPEN_ROWS", 1)
    # With one open row, the 2 cannot go back to the first row.
    assert first_fit([7, 9, 2], [1, 1, 1], 10, 10) == [[0], [1], [2]]


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), max_size=150), st.integers(1, 70))
def test_each_example_once_no_row_over_and_no_more_rows_than_next_fit(lengths, open_rows):
    inputs, targets = ([pair[part] for pair in lengths] for part in (0, 1))
    before, packing.OPEN_ROWS = packing.OPEN_ROWS, open_rows
    try:
        bins = first_fit(inputs, targets, 12, 5)
    finally:
        packing.OPEN_ROWS = before
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(inputs[i] for i in members) <= 12 for members in bins)
    assert all(sum(targets[i] for i in members) <= 5 for members in bins)
    assert len(bins) <= next_fit(lengths, (12, 5))
