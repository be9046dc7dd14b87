import json

import pytest

from t5x_lite.data import preview, registry, vocabularies


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_listing_has_a_line_for_each_task(new_task):
    task = new_task()
    header, *lines = preview.listing().splitlines()
    assert header.split() == ["name", "kind", "splits", "seen", "unseen", "registered", "by"]
    (line,) = (line for line in lines if line.startswith(task.name + " "))
    assert line.split()[:6] == [task.name, "task", "train", "validation", "1", "1"]
    assert line.endswith("conftest.py")


def test_examples_are_shown_rendered_tokenised_and_packed(tmp_path, new_task):
    task = new_task(rows=[{"country": "Japan", "capital": "東京"}, {"country": "Peru", "capital": "Lima"}])
    run = tmp_path / "run"
    vocabulary = vocabularies.train_sentencepiece(["What is the Capital of Japan Peru? Lima"], 130)
    vocabulary.save(run / "vocabulary")
    (run / "manifest.json").write_text(json.dumps({"format": 1, "lengths": {"inputs": 48, "targets": 12}}))
    text = preview.examples(task.name, "train", str(run))
    ids = [*vocabulary.encode("Capital of Peru?"), 1]
    assert "[plain, seen]\n    Capital of Peru?\n    -> Lima" in text
    assert f"tokens {ids} -> {[*vocabulary.encode('Lima'), 1]}" in text
    assert "characters lost: 5.13% (東 京)" in text or "characters lost: 5.13% (京 東)" in text
    assert "packed: " in text
    assert "encoder_segment_ids   [1, 1" in text


def test_a_mixture_shows_each_of_its_tasks(new_task):
    tasks = [new_task(), new_task()]
    mixture = registry.register_mixture(tasks[0].name + "_mixture", [task.name for task in tasks])
    text = preview.examples(mixture.name, "train", None)
    for task in tasks:
        assert f"{task.name} (50.0% of the mixture, 2 examples)" in text
