"""Scores by task and wording, on an evaluation set small enough to score by hand."""

import dataclasses
import types

import numpy as np
import pytest

from t5x_lite.data import vocabularies
from t5x_lite.data.instructions import BestItems, Labels
from t5x_lite.data.metrics import exact_match
from t5x_lite.data.pipeline import EvalSet, load_eval
from t5x_lite.data.registry import register_task
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.decoding.generator import FoundItem, Generator
from t5x_lite.decoding.trie import build_trie
from t5x_lite.errors import UserError
from t5x_lite.recommendation.task_metrics import ranking
from t5x_lite.training import evaluation
from tests.decoding.models import CONFIG, random_params
from tests.recommendation import films


def with_scores(targets, scores):
    return {"mean_score": sum(scores) / len(targets)}


def with_aux(targets, predictions, aux_values):
    return {"first_score": aux_values["scores"][0]}


def eval_set():
    """Two wordings of two questions; `ask` is seen, `beg` is not."""
    task = types.SimpleNamespace(
        name="toy",
        predict_metric_fns=[exact_match],
        predict_with_aux_metric_fns=[with_aux],
        score_metric_fns=[with_scores],
    )
    return EvalSet(
        task=task,
        inputs=[[3], [4], [3], [4]],
        targets=[[5], [6], [5], [6]],
        texts=["ask a", "ask b", "beg a", "beg b"],
        answers=[["A"], ["B", "bee"], ["A"], ["B", "bee"]],
        templates=["ask", "ask", "beg", "beg"],
        template_splits=["seen", "seen", "unseen", "unseen"],
        examples=[{}, {}, {}, {}],
    )


PREDICTIONS = ["a", "bee", "A", "c"]
SCORES = [-1.0, -2.0, -3.0, -6.0]
LIKELIHOODS = [-2.0, -2.0, -4.0, -4.0]


def test_scores_of_a_task_and_of_its_wordings():
    found = evaluation.score_task(eval_set(), PREDICTIONS, SCORES, LIKELIHOODS)
    assert found["metrics"] == {"exact_match": 0.75, "first_score": -1.0, "mean_score": -3.0}
    assert found["examples"] == 4
    assert found["templates"]["ask"] == {
        "split": "seen",
        "metrics": {"exact_match": 1.0, "first_score": -1.0, "mean_score": -2.0},
        "examples": 2,
    }
    assert found["templates"]["beg"]["metrics"]["exact_match"] == 0.5
    assert found["summary"]["unseen"]["exact_match"] == {"mean": 0.5, "min": 0.5, "max": 0.5}


def test_overall_is_the_mean_over_tasks_of_the_mean_over_wordings():
    tasks = {
        "one": {"summary": {"seen": evaluation.summarize([{"f1": 1.0}, {"f1": 0.0}])}},
        "two": {
            "summary": {"seen": evaluation.summarize([{"f1": 0.9}]), "unseen": evaluation.summarize([{"em": 0.2}])}
        },
    }
    assert evaluation.overall(tasks) == pytest.approx({"seen/f1": 0.7, "unseen/em": 0.2})


def test_samples_show_wrong_predictions_and_unseen_wordings_first():
    samples = evaluation.pick_samples(eval_set(), PREDICTIONS)
    assert [(s["inputs"], s["correct"]) for s in samples] == [
        ("beg b", False),
        ("beg a", True),
        ("ask a", True),
        ("ask b", True),
    ]


def test_the_table_has_every_task_and_the_spread_over_unseen_wordings():
    tasks = {"toy": evaluation.score_task(eval_set(), PREDICTIONS, SCORES, LIKELIHOODS)}
    text = evaluation.table({"tasks": tasks, "overall": evaluation.overall(tasks)})
    assert "toy" in text and "0.500..0.500" in text and "overall unseen/exact_match" in text


# ---------------------------------------------------------------------- answers that are labels


def probabilities(targets, predictions, aux_values):
    return {"first": aux_values["scores"][0][0], "last": aux_values["scores"][-1][-1]}


TEXTS = ("yes", "no", "not at all")


def opinions(name, rows):
    task = register_task(
        f"{name}_of_evaluation",
        Rows({"train": rows}),
        [InstructionTemplate("like", "Like {item}?", "{answer}")],
        metrics=[exact_match, probabilities],
        answer_with=Labels(TEXTS),
    )
    return load_eval(task, "train", vocabularies.byte(), {"inputs": 32, "targets": 16})


BYTES = types.SimpleNamespace(vocabulary=vocabularies.byte())
SHORT = opinions("short", [{"item": "tea", "answer": "yes"}, {"item": "mud", "answer": "no"}])
LONGER = opinions(
    "longer",
    [{"item": "tea", "answer": "yes", "prefix": ""}, {"item": "mud", "answer": "no", "prefix": "yes, and ink "}],
)


class Opinions:
    """In place of a generator: log-probabilities by hand of each label, best first, of what may come after an input."""

    def __init__(self, scores):
        self.scores = scores

    def search(self, inputs, trie, options, *, prefixes):
        assert options.beams == options.n_best == 3
        found = [self.scores[vocabularies.byte().decode(tokens)] for tokens in inputs]
        return [sorted(map(FoundItem, range(3), scores), key=lambda item: -item.score) for scores in found]


# 'tea' makes each label e^-1 likely, and 'mud' e^-1000, e^-1000 / 3 and e^-1000.
ENDED = {"Like tea?": [-1.0, -1.0, -1.0], "Like mud?": [-1000.0, -1000.0 - np.log(3), -1000.0]}


def test_of_labels_the_likeliest_is_the_answer_and_their_probabilities_are_its_score():
    """However unlikely all are: e^-1000 is no number."""
    predictions, scores = evaluation.answer(BYTES, Opinions(ENDED), SHORT)
    assert predictions == ["yes", "yes"]  # the first of equal ones
    np.testing.assert_allclose(scores, [[1 / 3, 1 / 3, 1 / 3], [3 / 7, 1 / 7, 3 / 7]], rtol=1e-6)


@pytest.mark.parametrize(("examples", "end"), [(SHORT, [vocabularies.byte().eos_id]), (LONGER, [])], ids=["", "prefix"])
def test_labels_have_the_probability_that_the_model_gives_them(examples, end):
    """With its end, without which 'no' begins 'not at all'; but after prefixes alone, what comes next left open."""
    encode, eos = vocabularies.byte().encode, vocabularies.byte().eos_id
    config = dataclasses.replace(CONFIG, vocab_size=512)
    generator = Generator(config, random_params(config), eos_id=eos)
    predictions, found = evaluation.answer(BYTES, generator, examples)
    for tokens, example, probabilities, predicted in zip(
        examples.inputs, examples.examples, found, predictions, strict=True
    ):
        prefix, labels = encode(example.get("prefix", "")), [[*encode(text), *end] for text in TEXTS]
        scores = generator.score([tokens] * 3, [[*prefix, *label] for label in labels])
        weights = np.exp([sum(each[len(prefix) :]) for each in scores])
        np.testing.assert_allclose(probabilities, weights / weights.sum(), rtol=1e-4)
        assert predicted == TEXTS[int(np.argmax(weights))]


def test_nothing_asked_is_nothing_answered():
    nobody = dataclasses.replace(SHORT, inputs=[], examples=[])
    assert evaluation.answer(BYTES, Opinions({}), nobody) == ([], [])


def test_probabilities_of_labels_reach_the_metrics():
    found = evaluation.evaluate(BYTES, Opinions(ENDED), [SHORT], step=3, split="train")
    expected = {"exact_match": 0.5, "first": 1 / 3, "last": 3 / 7}
    assert found["tasks"]["short_of_evaluation"]["metrics"] == pytest.approx(expected)
    assert [(sample["prediction"], sample["correct"]) for sample in found["samples"]] == [("yes", False), ("yes", True)]


# ---------------------------------------------------------------------- answers that are items


INDEX = films.item_index("token")
HISTORIES = [[4, 9, 1, 30, 22, 7, 8], [5], [3, 2, 1, 0]]
ALLOWED = [None, None, [39, 2, 11]]  # 2 of them was taken


def film_row(history, allowed):
    prompt, prefix = films.question(INDEX, history)
    row = {"prompt": prompt, "answer": INDEX.texts[0], "prefix": prefix, "denied": history}
    return row | ({} if allowed is None else {"allowed": allowed})


NEXT_FILM = register_task(
    "next_film_of_evaluation",
    Rows({"train": list(map(film_row, HISTORIES, ALLOWED))}),
    [InstructionTemplate("next", "{prompt}", "{answer}")],
    metrics=[ranking],
    answer_with=BestItems(4),
)


@pytest.fixture(scope="module")
def film_run():
    vocabulary = films.engine("token").vocabulary
    return types.SimpleNamespace(
        vocabulary=vocabulary,
        knowledge=films.knowledge(),
        trie=build_trie(INDEX.sequences(vocabulary)),
        lengths={"inputs": 64, "targets": 8},
    )


def test_of_items_the_answer_is_a_list_of_the_best_that_are_not_denied(film_run):
    """After the prefix, among those allowed; as many as asked for, or as there are."""
    examples = load_eval(NEXT_FILM, "train", film_run.vocabulary, film_run.lengths)
    predictions, scores = evaluation.answer(film_run, films.engine("token").generator, examples)
    for number, (history, allowed) in enumerate(zip(HISTORIES, ALLOWED, strict=True)):
        expected = films.scores(films.recommender(), history)
        left = set(range(films.SIZE) if allowed is None else allowed) - set(history)
        best = sorted(left, key=lambda item: -expected[item])[:4]
        assert predictions[number] == [INDEX.texts[item] for item in best]
        np.testing.assert_allclose(scores[number], expected[best], rtol=1e-4)
    assert list(map(len, predictions)) == [4, 4, 2]


def test_a_list_of_items_is_a_sample_and_right_where_it_has_the_answer(film_run):
    examples = load_eval(NEXT_FILM, "train", film_run.vocabulary, film_run.lengths)
    lists = [["<item_9>", "<item_0>"], ["<item_1>"], []]
    samples = evaluation.pick_samples(examples, lists)
    assert [(sample["prediction"], sample["correct"]) for sample in samples] == [
        ("<item_1>", False),
        ("", False),
        ("<item_9> | <item_0>", True),
    ]


def test_other_tasks_are_answered_by_generation(film_run, monkeypatch):
    monkeypatch.setattr(evaluation, "predict", lambda *arguments: arguments)
    examples = eval_set()
    examples.task.name = "somebody elses task"
    monkeypatch.setattr("t5x_lite.data.registry.instructions_of", lambda task: None)
    assert evaluation.answer(film_run, None, examples) == (film_run, None, examples)


@pytest.mark.parametrize(
    ("items", "split", "lists_file", "message"),
    [
        (None, None, None, "--sasrec and --recs_out are for runs that recommend; this one has ITEMS = None"),
        ("any", "tset", None, "--split 'tset'; nearest: 'test'; users' held-out items are in validation, test"),
        ("any", "train", None, "--split 'train'; users' held-out items are in validation, test"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(items, split, lists_file, message):
    config = types.SimpleNamespace(items=items, eval_split="validation")
    with pytest.raises(UserError) as error:
        evaluation.check_comparison(config, split, lists_file)
    assert str(error.value) == message


def test_a_file_of_lists_that_cannot_be_written_is_refused_before_anything_is_evaluated(tmp_path):
    config = types.SimpleNamespace(items="any", eval_split="validation")
    (tmp_path / "lists").mkdir()
    evaluation.check_comparison(config, None, str(tmp_path / "lists" / "recs.jsonl"))
    with pytest.raises(UserError, match=r"^--recs_out: no folder '.*/list'; nearest: 'lists'$"):
        evaluation.check_comparison(config, None, str(tmp_path / "list" / "recs.jsonl"))
