"""The tables that benchmarks print of plans and of steps."""

import pytest

from benchmarks import plan_table, train_step
from t5x_lite.planning import search, topology


def test_a_compilers_word_stands_only_beside_the_settings_that_it_is_about():
    eight = topology.parse("h100:8")
    first = search.ranked(plan_table._asked("small", eight))[0].request
    said = {"gib": 1.5, "ms": 2.0, "mfu": 0.5, "settings": search.describe(first)}
    assert "| 1.5 GiB, 2.0 ms, MFU 50% |" in plan_table._row("small", eight, {"small@h100:8": said})
    other = said | {"settings": "those that another formula ranked first"}
    assert plan_table._row("small", eight, {"small@h100:8": other}) == plan_table._row("small", eight, {})


@pytest.mark.parametrize("engine", train_step.ENGINES)
def test_a_step_of_one_engine_has_a_bound(engine, monkeypatch, capsys):
    class NoProcess:
        def __init__(self, *_):
            pass

        def peak_bytes(self):
            return 10**9

        def close(self):
            pass

    monkeypatch.setattr(train_step, "Engine", NoProcess)
    monkeypatch.setattr(train_step, "in_turns", lambda engines, *_: {name: [1.0] for name in engines})
    train_step.main([f"--engine={engine}"])
    assert "float32 matrix product 137 GFLOP/s: bound" in capsys.readouterr().out
