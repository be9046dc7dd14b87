import io
import sys

import pytest

from t5x_lite.training import progress
from t5x_lite.training.progress import TrainingProgress, duration
from t5x_lite.training.work import Work

WORK = Work(tokens=8, flops=600, real_flops=150)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_counts_real_tokens_and_not_padding(clock):
    bar = TrainingProgress(10, 0)
    for step in (1, 2):
        clock.now += 2.0
        bar.step(step, WORK)
    assert bar.rates() == {"tokens_per_second": 4.0, "steps_per_second": 0.5, "training_seconds": 4.0}
    clock.now += 1.0
    bar.step(3, WORK)
    assert bar.rates() == {"tokens_per_second": 8.0, "steps_per_second": 1.0, "training_seconds": 5.0}


def test_mfu_is_of_all_positions_and_of_the_tokens_that_are_real(clock, capsys):
    bar = TrainingProgress(10, 0, own_share=0.5, peak_flops=1000.0)
    clock.now += 2.0
    bar.step(1, WORK)
    rates = bar.rates()
    assert (rates["tokens_per_second"], rates["mfu"], rates["mfu_real"]) == (8.0, 0.6, 0.15)
    bar.show(1, 1.5, rates)
    assert capsys.readouterr().out == "step 1/10  loss 1.5000  8 tokens/s  MFU 60.0% (real tokens 15.0%)  0:18 left\n"
    clock.now += 4.0
    bar.step(2, WORK)
    assert bar.rates()["mfu"] == 0.3


def test_evaluation_and_compilation_are_no_training_time(clock):
    bar = TrainingProgress(10, 0)
    clock.now += 60.0
    bar.step(1, WORK)
    bar.restart()
    clock.now += 2.0
    bar.step(2, WORK)
    bar.pause()
    clock.now += 500.0
    bar.resume()
    clock.now += 2.0
    bar.step(3, WORK)
    assert bar.rates() == {"tokens_per_second": 4.0, "steps_per_second": 0.5, "training_seconds": 4.0}


def test_piped_lines_are_plain(clock, capsys):
    bar = TrainingProgress(300, 100)
    clock.now += 100.0
    bar.step(200, WORK)
    bar.show(200, 1.23456, {"tokens_per_second": 14405.4})
    bar.say("eval at step 200: [bold]unseen[/bold] 0.5")
    bar.close()
    assert capsys.readouterr().out == (
        "step 200/300  loss 1.2346  14,405 tokens/s  1:40 left\neval at step 200: [bold]unseen[/bold] 0.5\n"
    )


def test_piped_lines_come_every_ten_seconds_and_at_the_end(clock, capsys):
    bar = TrainingProgress(30, 0)
    for step in range(1, 31):
        clock.now += 1.0
        bar.step(step, WORK)
        bar.show(step, 1.0, {"tokens_per_second": 8.0})
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["1/30", "12/30", "23/30", "30/30"]


def test_other_processes_are_silent(clock, capsys):
    bar = TrainingProgress(10, 0, quiet=True)
    bar.step(10, WORK)
    bar.show(10, 1.0, {"tokens_per_second": 8.0})
    bar.say("hello")
    bar.close()
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_live_line(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    bar = TrainingProgress(10, 0)
    bar.step(4, WORK)
    bar.show(4, 1.5, {"tokens_per_second": 8.0})
    bar.say("[1/2] eval: 0.500")
    bar.close()
    written = terminal.getvalue()
    assert "\x1b[" in written
    assert "4/10" in written and "loss 1.5000" in written
    assert "[1/2] eval: 0.500" in written


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3599.7, "1:00:00"), (360000, "100:00:00")])
def test_duration(seconds, text):
    assert duration(seconds) == text
