"""What is cached, kept, cached again, and refused."""

import json

import pytest

from t5x_lite.data import cache_pipeline
from t5x_lite.data.metrics import exact_match
from t5x_lite.data.packed_cache import open_cache
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Files, Rows
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.errors import UserError
from t5x_lite.training import caching
from tests.data.caches import config_of, run_plainly, write_cache

CHANGING = [{"q": f"w{n}", "a": "v"} for n in range(9)]
WORDING = InstructionTemplate("plain", "{q}", "{a}")
register_task(
    "stays_of_caching",
    Rows({"train": [{"q": "a", "a": "b"}] * 5, "validation": [{"q": "c", "a": "d"}] * 3}),
    [WORDING],
    metrics=[exact_match],
)
register_task("changes_of_caching", Rows({"train": lambda: CHANGING}), [WORDING], metrics=[exact_match])
register_mixture("mixture_of_caching", ["stays_of_caching", "changes_of_caching"], rates="equal")


@pytest.fixture
def written(monkeypatch):
    """The tasks that the last call cached."""
    found = []

    def run(recipe, beam_flags):
        found[:] = sorted({task for task, _ in recipe.shards})
        run_plainly(recipe)

    monkeypatch.setattr(cache_pipeline, "run", run)
    return found


@pytest.fixture
def config(tmp_path):
    return config_of("mixture_of_caching", tmp_path)


def test_a_folder_by_hand(config, written, tmp_path, capsys):
    caching.write_cache(config, str(tmp_path / "cached"), [])
    assert written == ["changes_of_caching", "stays_of_caching"]
    manifest = json.loads((tmp_path / "cached" / "manifest.json").read_text())
    assert (manifest["mixture"], manifest["rates"]) == ("mixture_of_caching", [0.5, 0.5])
    assert sorted(path.name for path in (tmp_path / "cached" / "stays_of_caching").iterdir()) == [
        "manifest.json",
        "train-00000-of-00001.array_record",
        "validation-00000-of-00001.array_record",
    ]
    cache = open_cache(tmp_path / "cached")
    (stays,) = [part for part in cache.parts if part.task == "stays_of_caching"]
    # "a" and its end are two tokens, and so are "b" and its: six pairs fill the 12 target positions.
    assert {split: shards[0].examples for split, shards in stays.splits.items()} == {"train": 5, "validation": 3}
    assert [stays.total("train", count) for count in ("rows", "input_tokens", "target_tokens")] == [1, 10, 10]
    assert "stays_of_caching" in capsys.readouterr().out


def test_only_what_has_changed_is_cached_again(config, written, tmp_path, monkeypatch):
    folder = tmp_path / "cached"
    caching.write_cache(config, str(folder), [])
    first = open_cache(folder)
    caching.write_cache(config, str(folder), [])
    assert open_cache(folder).number == first.number
    monkeypatch.setitem(CHANGING[4], "q", "new")
    (folder / "changes_of_caching" / "train-00000-of-00001.array_record.7.tmp").write_text("of a killed worker")
    written.clear()
    caching.write_cache(config, str(folder), [])
    assert written == ["changes_of_caching"]
    assert open_cache(folder).number != first.number
    assert not list(folder.glob("*/*.tmp"))
    (folder / "stays_of_caching" / "manifest.json").unlink()
    caching.write_cache(config, str(folder), [])
    assert written == ["stays_of_caching"]


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"pack": False}, {"task_feature_lengths": {"inputs": 9, "targets": 9}}]
)
def test_other_settings_make_other_parts(config, written, tmp_path, changes):
    caching.write_cache(config, str(tmp_path / "cached"), [])
    written.clear()
    caching.write_cache(config_of("mixture_of_caching", tmp_path, **changes), str(tmp_path / "cached"), [])
    assert len(written) == 2


def test_a_cache_that_was_not_finished_is_none(config, tmp_path, monkeypatch):
    write_cache(monkeypatch, config, tmp_path / "cached")
    monkeypatch.setattr(cache_pipeline, "run", lambda recipe, flags: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        caching.write_cache(config_of("mixture_of_caching", tmp_path, seed=1), str(tmp_path / "cached"), [])
    with pytest.raises(UserError, match="is no packed cache"):
        open_cache(tmp_path / "cached")


def test_folders_of_something_else_are_refused(config, written, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and no packed cache"):
        caching.write_cache(config, str(tmp_path / "papers"), [])
    with pytest.raises(UserError, match="is a file"):
        caching.write_cache(config, str(tmp_path / "papers" / "a.txt"), [])


def test_a_task_without_examples_is_named(tmp_path, written):
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "one.jsonl").write_text('{"q": "a", "a": "b"}\n')
    source = Files({"train": tmp_path / "one.jsonl"})
    register_task("empty_of_caching", source, [WORDING], metrics=[exact_match])
    (tmp_path / "one.jsonl").write_text("")
    with pytest.raises(UserError, match="task 'empty_of_caching' has no examples to cache"):
        caching.write_cache(config_of("empty_of_caching", tmp_path), str(tmp_path / "cached"), [])
