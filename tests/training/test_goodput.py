"""Where a run's time went, on a clock that only moves when told to."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.training import goodput
from t5x_lite.training.goodput import KINDS, Goodput, account, describe, read, share


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(goodput, "time", clock)
    return clock


def seconds(fields):
    return {
        name.removeprefix("goodput/").removesuffix("_seconds"): value
        for name, value in fields.items()
        if name != "goodput" and value
    }


def test_time_belongs_to_what_the_loop_does(clock, tmp_path):
    spent = Goodput(str(tmp_path), 0)
    clock.now += 5
    with spent.spending("data_wait"):  # of the first batch: still the start
        clock.now += 2
    spent.started()
    clock.now += 30
    with spent.spending("evaluation"):
        clock.now += 4
    with spent.spending("checkpoint"):
        clock.now += 1
    clock.now += 10
    with spent.spending("data_wait"):
        clock.now += 0.5
    fields = spent.record(8)
    wanted = {"startup": 7, "productive": 40, "evaluation": 4, "checkpoint": 1, "data_wait": 0.5}
    assert seconds(fields) == wanted
    assert fields["goodput"] == 40 / 52.5
    assert describe(fields) == (
        "goodput: 76% of 0:52 went to steps that count; start and compilation 13%, evaluation 8%, "
        "steps blocked by saving 2%"
    )


def test_a_killed_process_loses_its_last_steps_and_nothing_else(clock, tmp_path):
    first = Goodput(str(tmp_path), 0)
    clock.now += 10
    first.started()
    for step in (4, 8, 9):  # a checkpoint at 4 and at 8; that of 8 does not become whole
        clock.now += 20
        with first.spending("checkpoint"):
            clock.now += 1
        first.record(step)
    with open(tmp_path / "goodput.jsonl", "a") as file:
        file.write('{"began": 1000.0, "ti')  # killed in the middle of a line
    clock.now += 100
    second = Goodput(str(tmp_path), 4)
    clock.now += 3
    second.started()
    clock.now += 20
    fields = second.record(8)
    assert seconds(fields) == {"startup": 13, "productive": 40, "checkpoint": 1, "lost": 42, "gap": 100}
    assert sum(seconds(fields).values()) == clock.now - 1000

    clock.now += 7
    third = Goodput(str(tmp_path), 0)  # the checkpoints were deleted
    assert seconds(third.record(0)) == {"lost": 73 + 23, "gap": 107}


def test_a_process_that_never_came_to_a_step_counts_as_start(clock, tmp_path):
    Goodput(str(tmp_path), 0, began=clock.now - 5)
    clock.now += 10
    assert seconds(Goodput(str(tmp_path), 0).record(0)) == {"startup": 5, "gap": 10}


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(1, 4), max_size=5)), min_size=1, max_size=5))
def test_the_parts_add_up_to_all_of_the_time(processes):
    """Whatever the processes did and from whichever step the next one went on."""
    lines, now = [], 0.0
    for step, advances in processes:
        began, spent = now, dict.fromkeys(KINDS, 0.0)
        lines.append({"began": began, "time": now, "step": step, **spent})
        for number, advance in enumerate(advances):
            now += advance
            spent[KINDS[number % len(KINDS)]] += advance
            step += advance
            lines.append({"began": began, "time": now, "step": step, **spent})
        now += 1.0
    totals = account(lines)
    assert all(value >= 0 for value in totals.values())
    assert sum(totals.values()) == now - 1.0
    assert 0 <= share(totals) <= 1


def test_other_processes_write_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(goodput.jax, "process_index", lambda: 1)
    assert Goodput(str(tmp_path), 0).record(3) == {}
    assert read(str(tmp_path)) == [] and not list(tmp_path.iterdir())


def test_the_file_keeps_every_line(clock, tmp_path):
    spent = Goodput(str(tmp_path), 0)
    spent.record(1)
    spent.record(1)
    assert len((tmp_path / "goodput.jsonl").read_text().splitlines()) == 3
    assert [line["step"] for line in read(str(tmp_path))] == [0, 1]
    assert json.loads((tmp_path / "goodput.jsonl").read_text().splitlines()[0])["began"] == 1000.0
