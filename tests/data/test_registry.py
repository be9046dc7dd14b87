import pytest
import seqio
import tensorflow as tf

from t5x_lite.data import registry, vocabularies
from t5x_lite.data.instructions import BestItems, Labels
from t5x_lite.data.metrics import classification, exact_match
from t5x_lite.data.sources import Rows, Tfds
from t5x_lite.errors import UserError


def test_a_registered_task_is_a_seqio_task(new_task):
    task = new_task(answers_field="right")
    assert seqio.get_mixture_or_task(task.name) is task
    examples = list(task.get_dataset(None, split="validation", shuffle=False).as_numpy_iterator())
    assert [e["template"].decode() for e in examples] == ["plain", "ask"] * 2
    assert [e["template_split"].decode() for e in examples] == ["seen", "unseen"] * 2
    assert examples[0]["inputs_pretokenized"].decode() == "Capital of Japan?"
    assert [answer.decode() for answer in examples[0]["answers"]] == ["Tokyo", "Tōkyō"]
    assert examples[0]["targets"].tolist() == [*vocabularies.byte().encode("Tokyo"), 1]
    assert len(list(task.get_dataset(None, split="train", shuffle=False))) == 2


def test_seqios_evaluator_takes_the_task(new_task):
    """People's own scripts run SeqIO's Evaluator on the tasks they find here."""
    task = new_task(metrics=[lambda targets, predictions: {"same": float(targets == predictions)}])
    evaluator = seqio.Evaluator(
        mixture_or_task_name=task.name,
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        eval_split="validation",
    )
    assert len(list(evaluator.cached_task_datasets[task.name])) == 4


def test_a_vocabulary_is_swapped_in_a_copy(tmp_path, monkeypatch, new_task):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = new_task()
    vocabulary = vocabularies.train_sentencepiece(registry.texts(task, "train"), 120)
    copy = registry.with_vocabulary(task, vocabulary)
    ids = next(copy.get_dataset(None, split="train", shuffle=False).as_numpy_iterator())["inputs"].tolist()
    assert ids == [*vocabulary.encode("Capital of Japan?"), 1]
    assert isinstance(task.output_features["inputs"].vocabulary, seqio.ByteVocabulary)


def test_texts_are_before_tokenising(new_native_task, new_task):
    assert list(registry.texts(new_task(), "train")) == [
        "Capital of Japan?",
        "Tokyo",
        "Capital of Peru?",
        "Lima",
    ]
    assert list(registry.texts(new_native_task(2), "train")) == ["0", "n", "1", "n"]


def test_metrics_are_told_apart_by_their_parameters(new_task):
    def by_score(targets, scores):
        return {}

    task = new_task(metrics=[exact_match, classification(("yes", "no")), by_score])
    assert (len(task.predict_metric_fns), task.score_metric_fns) == (2, [by_score])
    with pytest.raises(UserError, match="task 'task_"):
        new_task(metrics=[lambda truth, guess: {}])


def test_bad_registrations_are_said(new_task, rows, capitals):
    taken = new_task().name
    with pytest.raises(UserError, match=rf"task '{taken}' is registered already, by .*conftest.py"):
        registry.register_task(taken, Rows({"train": rows}), capitals, metrics=[])
    with pytest.raises(UserError, match="task 'two words': "):
        registry.register_task("two words", Rows({"train": rows}), capitals, metrics=[])
    with pytest.raises(UserError, match="no field 'capital' in the row; nearest: 'capitol'"):
        new_task(rows=[{"country": "Japan", "capitol": "Tokyo"}])


def test_registering_a_tfds_set_reads_nothing(new_name, capitals):
    source = Tfds("no_such_set", splits={"train": "train"}, fields=dict)
    task = registry.register_task(new_name(), source, capitals, metrics=[])
    assert task.splits == ("train",)


def test_registering_a_costly_source_reads_nothing(new_name, capitals, rows):
    read = []

    def download():
        read.append(True)
        return rows

    source = Rows({"train": download, "validation": rows}, costly=True)
    task = registry.register_task(new_name(), source, capitals, metrics=[])
    mixture = registry.register_mixture(new_name("mixture"), [task.name], rates={task.name: 2.0})
    assert registry.tasks_and_rates(mixture)[1] == (1.0,)
    assert read == []
    assert list(registry.texts(task, "train"))[:2] == ["Capital of Japan?", "Tokyo"]
    assert read == [True]


@pytest.mark.parametrize("way", [None, Labels(("Tokyo", "Lima")), BestItems(3)], ids=str)
def test_a_task_says_how_it_is_answered(new_task, rows, way):
    """What its questions are asked with is ours; SeqIO's datasets are as ever."""
    task = new_task(rows=[row | {"prefix": "", "denied": [1]} for row in rows], answer_with=way)
    assert registry.instructions_of(task).answer_with == way
    (example, *_) = task.get_dataset(None, split="train", shuffle=False).as_numpy_iterator()
    assert set(example) == {
        *("inputs", "targets", "inputs_pretokenized", "targets_pretokenized"),
        *("template", "template_split", "answers"),
    }


def test_rates_of_mixtures(new_task, new_name):
    small, large = new_task(), new_task(rows=[{"country": f"c{i}", "capital": "x"} for i in range(8)])
    for settings, rates in [
        ({"rates": "equal"}, (1 / 2, 1 / 2)),
        ({"rates": "proportional"}, (2 / 10, 8 / 10)),
        ({"rates": "proportional", "cap": 4}, (2 / 6, 4 / 6)),
        ({"rates": "temperature", "temperature": 2.0}, (1 / 3, 2 / 3)),
        ({"rates": {small.name: 3.0, large.name: 1.0}}, (3 / 4, 1 / 4)),
    ]:
        mixture = registry.register_mixture(new_name("mixture"), [small.name, large.name], **settings)
        tasks, found = registry.tasks_and_rates(mixture)
        assert dict(zip(tasks, found, strict=True)) == pytest.approx({small: rates[0], large: rates[1]})
    assert registry.tasks_and_rates(small) == ((small,), (1.0,))


def test_a_mixture_in_a_mixture_has_one_rate(new_task, new_name):
    """Its tasks share it by their own rates."""
    first, second, third = new_task(), new_task(), new_task()
    inner = registry.register_mixture(new_name("mixture"), [first.name, second.name], rates="equal")
    rates = {inner.name: 6.0, third.name: 2.0}
    outer = registry.register_mixture(new_name("mixture"), list(rates), rates=rates)
    tasks, found = registry.tasks_and_rates(outer)
    assert dict(zip(tasks, found, strict=True)) == pytest.approx({first: 3 / 8, second: 3 / 8, third: 2 / 8})


def test_mixtures_of_mixtures_and_of_other_peoples_tasks(new_native_task, new_task, new_name):
    ours, native = new_task(), new_native_task(6)
    inner = registry.register_mixture(new_name("mixture"), [ours.name], rates="equal")
    outer = registry.register_mixture(new_name("mixture"), [inner.name, native.name], rates="proportional")
    tasks, rates = registry.tasks_and_rates(outer)
    assert dict(zip(tasks, rates, strict=True)) == pytest.approx({ours: 2 / 8, native: 6 / 8})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": "propotional"}, "nearest: 'proportional'"),
        ({"temperature": 0}, "must be positive"),
        ({"tasks": ["no_such_task"]}, "no task or mixture 'no_such_task'"),
        ({"rates": {"another_task": 1.0}}, "has no rate for 'task_"),
    ],
)
def test_bad_mixtures_are_said(settings, message, new_task, new_name):
    with pytest.raises(UserError, match=message):
        registry.register_mixture(new_name("mixture"), **({"tasks": [new_task().name]} | settings))


def test_an_unknown_name_gets_the_nearest_and_where_it_is_from(new_task):
    name = new_task().name
    with pytest.raises(UserError) as error:
        registry.get_mixture_or_task(name + "x")
    message = str(error.value)
    assert f"nearest: '{name}'" in message
    assert "conftest.py" in message
    assert f"{len(seqio.TaskRegistry.names()) + len(seqio.MixtureRegistry.names())} are registered" in message


def test_registered_lists_tasks_then_mixtures(new_native_task, new_task, new_name):
    task, native = new_task(), new_native_task()
    mixture = registry.register_mixture(new_name("mixture"), [task.name])
    found = {each.name: each for each in registry.registered()}
    assert (found[task.name].seen, found[task.name].unseen) == (1, 1)
    assert found[task.name].splits == ("train", "validation")
    assert found[task.name].module.endswith("conftest.py")
    assert (found[native.name].seen, found[native.name].module) == (0, "plain SeqIO")
    assert found[mixture.name].kind == "mixture of 1"


def test_a_users_module_is_found_in_the_working_directory(tmp_path, monkeypatch, new_name):
    module = new_name("my_tasks")
    (tmp_path / f"{module}.py").write_text("LOADED = True\n")
    (tmp_path / f"{module}_broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    registry.import_module(module)
    with pytest.raises(UserError, match="MIXTURE_OR_TASK_MODULE 'no_tasks': no module 'no_tasks'"):
        registry.import_module("no_tasks")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):  # the user's own bug, as it is
        registry.import_module(f"{module}_broken")


def test_sampled_tasks_hold_the_same_few_examples(new_native_task):
    task = new_native_task(50)
    inputs = [
        [
            bytes(e["inputs_pretokenized"])
            for e in registry.sampled(task, "train", 10)
            .get_dataset(None, split="train", shuffle=False)
            .as_numpy_iterator()
        ]
        for _ in range(2)
    ]
    assert inputs[0] == inputs[1]
    assert len(set(inputs[0])) == 10
    assert registry.sampled(task, "train", 50) is task


def test_no_accelerator_for_tensorflow():
    assert tf.config.get_visible_devices("GPU") == []
