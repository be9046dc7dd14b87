"""The TFDS tasks: their rows on mocked sets, their wordings, and that registering them reads nothing."""

import importlib.util
from pathlib import Path

import pytest
import seqio
import tensorflow_datasets as tfds

from t5x_lite.data import registry
from tasks import flan

TEMPLATES = {
    "squad": flan.SQUAD,
    "bool_q": flan.BOOL_Q,
    "natural_questions_open": flan.NATURAL_QUESTIONS_OPEN,
    "trivia_qa": flan.TRIVIA_QA,
}


@pytest.mark.parametrize("task", TEMPLATES)
def test_enough_wordings_all_different(task):
    templates = TEMPLATES[task]
    assert sum(template.split == "seen" for template in templates) >= 8
    assert sum(template.split == "unseen" for template in templates) >= 3
    assert len({template.name for template in templates}) == len(templates)
    assert len({template.inputs.casefold() for template in templates}) == len(templates)


@pytest.mark.parametrize("task", TEMPLATES)
def test_registered_task_renders_a_mocked_set(task):
    """Feature names are those of the installed builder, or the mocked examples would not fit."""
    with tfds.testing.mock_data(num_examples=3, policy=tfds.testing.MockPolicy.USE_CODE):
        dataset = seqio.TaskRegistry.get(task).get_dataset(None, split="train", shuffle=False)
        examples = list(dataset.take(3).as_numpy_iterator())
    assert len(examples) == 3
    seen = {template.name for template in TEMPLATES[task] if template.split == "seen"}
    for example in examples:
        assert example["template"].decode() in seen
        target = example["targets_pretokenized"].decode()
        assert target
        answers = [answer.decode() for answer in example["answers"]]
        assert answers[0] == target
        if task == "bool_q":
            assert target in ("yes", "no")


def test_squad_row_by_hand():
    row = flan.squad_row(
        {
            "title": b"Super_Bowl_50",
            "context": b"Denver won.",
            "question": b"Who won? ",
            "answers": {"text": [b"Denver", b"Denver Broncos", b"Denver"], "answer_start": [0, 0, 0]},
        }
    )
    assert row == {
        "title": "Super Bowl 50",
        "context": "Denver won.",
        "question": "Who won?",
        "answer": "Denver",
        "answers": ["Denver", "Denver Broncos"],
    }


def test_bool_q_row_by_hand():
    example = {"title": b"Tea", "passage": b"Tea is a drink.", "question": b"is tea a drink", "answer": True}
    row = flan.bool_q_row(example)
    assert (row["question"], row["answer"]) == ("Is tea a drink?", "yes")
    assert flan.bool_q_row(example | {"answer": False})["answer"] == "no"


def test_natural_questions_open_row_by_hand():
    row = flan.natural_questions_open_row({"question": b"who wrote hamlet", "answer": [b"Will", b"WS"]})
    assert row == {"question": "Who wrote hamlet?", "answer": "Will", "answers": ["Will", "WS"]}


def test_trivia_qa_row_by_hand():
    answer = {"value": b"Paris", "aliases": [b"City of Light", b"Paris"]}
    row = flan.trivia_qa_row({"question": b"Capital of France?", "answer": answer})
    assert row == {"question": "Capital of France?", "answer": "Paris", "answers": ["Paris", "City of Light"]}


def test_importing_registers_without_reading(monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("TFDS was asked for data at import")

    names = []
    monkeypatch.setattr(tfds, "load", read)
    monkeypatch.setattr(tfds, "builder", read)
    monkeypatch.setattr(registry, "register_task", lambda name, *args, **kwargs: names.append(name))
    monkeypatch.setattr(registry, "register_mixture", lambda name, *args, **kwargs: names.append(name))
    spec = importlib.util.spec_from_file_location("flan_again", Path(flan.__file__))
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert names == [*TEMPLATES, "flan_qa"]
