import numpy as np
import pytest
import seqio

from t5x_lite.data import registry, vocabularies
from t5x_lite.data.token_store import materialize
from t5x_lite.errors import UserError

LENGTHS = {"inputs": 12, "targets": 4}


def tokens(store):
    return [[ids.tolist() for ids in store.example(i)] for i in range(len(store))]


@pytest.mark.parametrize("kind", ["bytes", "trained"])
@pytest.mark.parametrize("settings", [{}, {"few_shot": 1}])
def test_the_same_tokens_as_seqios_pipeline(tmp_path, monkeypatch, kind, settings, new_task, rows):
    """Our tasks are tokenised without TensorFlow; SeqIO's own run of the registered task is the reference."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = new_task(rows=[*rows, {"country": "Côte  d'Ivoire", "capital": "東京 ", "right": ["x"]}], **settings)
    vocabulary = vocabularies.byte()
    if kind == "trained":
        vocabulary = vocabularies.train_sentencepiece(registry.texts(task, "train"), 120)
    for lengths in (LENGTHS, {"inputs": 100, "targets": 100}):
        dataset = registry.with_vocabulary(task, vocabulary).get_dataset(lengths, "validation", shuffle=False)
        expected = [[e["inputs"].tolist(), e["targets"].tolist()] for e in dataset.as_numpy_iterator()]
        assert tokens(materialize(task, "validation", vocabulary, lengths)) == expected


def test_other_peoples_tasks(new_native_task):
    store = materialize(new_native_task(3), "train", vocabularies.byte(), LENGTHS)
    assert tokens(store) == [[[ord(str(n)) + 3, 1], [ord("n") + 3, 1]] for n in range(3)]


def test_an_altered_copy_of_our_task_runs_as_altered(new_task):
    task = new_task()
    shout = seqio.map_over_dataset(lambda e: e | {"inputs": e["targets"]})
    altered = task.replace(preprocessors=[shout, *task.preprocessors])
    inputs, targets = materialize(altered, "train", vocabularies.byte(), LENGTHS).example(0)
    assert inputs.tolist() == [*vocabularies.byte().encode("Tokyo"), 1]
    assert targets.tolist() == [*vocabularies.byte().encode("Tok"), 1]


def test_lengths_and_types(new_task):
    store = materialize(new_task(), "train", vocabularies.byte(), LENGTHS)
    assert store.inputs.dtype == store.targets.dtype == np.int32
    assert store.input_lengths.tolist() == [12, 12]
    assert store.target_lengths.tolist() == [4, 4]
    assert all(ids[-1] == 1 for pair in tokens(store) for ids in pair)


def test_what_cannot_be_trained_on_is_said(new_native_task, new_task):
    task = new_task()
    with pytest.raises(UserError, match="has no split 'tests'; it has train, validation"):
        materialize(task, "tests", vocabularies.byte(), LENGTHS)
    targets_only = task.replace(output_features={"targets": task.output_features["targets"]})
    with pytest.raises(UserError, match="has no feature 'inputs'"):
        materialize(targets_only, "train", vocabularies.byte(), LENGTHS)
    with pytest.raises(UserError, match="its split 'train' has no examples"):
        materialize(new_native_task(0), "train", vocabularies.byte(), LENGTHS)
