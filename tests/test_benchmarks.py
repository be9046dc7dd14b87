"""The tables that benchmarks print of plans and of steps."""

import itertools
import json
import re

import numpy as np
import pytest

from benchmarks import plan_table, results, train_step
from t5x_lite.data.features import encdec_batch
from t5x_lite.errors import UserError
from t5x_lite.planning import search, topology


def test_a_compilers_word_stands_only_beside_the_settings_that_it_is_about():
    eight = topology.parse("h100:8")
    first = search.ranked(plan_table._asked("small", eight))[0].request
    said = {"gib": 1.5, "ms": 2.0, "mfu": 0.5, "settings": search.describe(first)}
    assert "| 1.5 GiB, 2.0 ms, MFU 50% |" in plan_table._row("small", eight, {"small@h100:8": said})
    other = said | {"settings": "those that another formula ranked first"}
    assert plan_table._row("small", eight, {"small@h100:8": other}) == plan_table._row("small", eight, {})


class NoProcess:
    def __init__(self, *_):
        pass

    def peak_bytes(self):
        return 10**9

    def close(self):
        pass


@pytest.fixture
def a_second_each(monkeypatch):
    """Every engine takes one second for whatever it is asked."""
    monkeypatch.setattr(train_step, "Engine", NoProcess)
    monkeypatch.setattr(train_step, "in_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(train_step, "in_turns", lambda engines, *_: {name: [1.0] for name in engines})


@pytest.mark.parametrize("engine", train_step.ENGINES)
def test_a_step_of_one_engine_has_a_bound(engine, a_second_each, capsys):
    train_step.main([f"--engine={engine}", "--rows=1"])
    told = capsys.readouterr().out
    assert "small: 1 x (512 + 128) tokens with 1 examples" in told
    assert re.search(r"real tokens/s +640\nfill +100%\npeak memory, GB +1.00\n", told)
    assert "float32 matrix product 137 GFLOP/s: bound" in told


def test_transformers_is_given_the_examples_of_the_packed_rows_each_in_a_row(tmp_path):
    rows = [[([5, 6, 1], [7, 1]), ([8, 1], [9, 9, 1])], [([4, 1], [3, 1])]]
    batch = encdec_batch(
        [[tuple(map(np.array, each)) for each in row] for row in rows], {"inputs": 8, "targets": 6}, True
    )
    examples = train_step._examples(batch)
    assert [tuple(part.tolist() for part in each) for each in examples] == list(itertools.chain(*rows))
    assert train_step._padded([each[1] for each in examples]).tolist() == [[7, 1, 0], [9, 9, 1], [3, 1, 0]]


# Tables of RESULTS.md


FOUND = {
    "date": "2026-11-29",
    "command": "python -m benchmarks.nothing",
    "machine": {"cpu": "A CPU", "cores": 2, "python": "3.11"},
    "versions": {"jax": "0.10.1"},
    "columns": ["ours", "theirs"],
    "rows": {"step, s": ["1.0", "2.0"]},
    "raw": {},
}
TABLE = """`python -m benchmarks.nothing`, 2026-11-29, 2 cores of A CPU,
Python 3.11, jax 0.10.1.

|  | ours | theirs |
| --- | --- | --- |
| step, s | 1.0 | 2.0 |
"""


def test_the_tables_of_the_results_are_those_that_were_recorded():
    text = results._PAGE.read_text()
    assert results.page(text) == text


def test_a_table_of_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_FOLDER", tmp_path)
    (tmp_path / "nothing.json").write_text(json.dumps(FOUND))
    page = "Before\n<!-- results: nothing -->\n{}<!-- end -->\nAfter\n"
    assert results.page(page.format("old\n")) == page.format(TABLE)
    with pytest.raises(UserError, match=r"^nothing: stands in only one of RESULTS\.md and"):
        results.page("Before\n")


def test_a_benchmark_records_what_it_prints(a_second_each, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "_FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "_PAGE", tmp_path / "RESULTS.md")
    (tmp_path / "RESULTS.md").write_text("<!-- results: train_step_small -->\n<!-- end -->\n")
    train_step.main(["--engine=t5x_lite", "--rows=1", "--record"])
    page = (tmp_path / "RESULTS.md").read_text()
    assert "`python -m benchmarks.train_step --engine=t5x_lite --rows=1 --record`" in page
    assert "| real tokens/s | 640 |" in page
    found = json.loads((tmp_path / "results" / "train_step_small.json").read_text())
    assert found["raw"]["step"] == {"t5x_lite": [1.0]} and found["versions"]["jax"]
