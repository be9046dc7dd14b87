"""What a run that recommends has beside others: tokens for its items, and what it knows of items and users."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.data import registry, vocabularies
from t5x_lite.data.instructions import BestItems, Labels
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate
from t5x_lite.errors import UserError
from t5x_lite.interop import load_model
from t5x_lite.model.names import named
from t5x_lite.recommendation.data import recommendation_data
from t5x_lite.recommendation.knowledge import Knowledge
from t5x_lite.run_folder import read_manifest
from t5x_lite.training.loop import write_run_folder
from t5x_lite.training.optimizers import adamw
from t5x_lite.training.run import TrainConfig, prepare
from tests.interop.test_run import BASE, ONE, one_line, random_params, write_run
from tests.training.test_step import RATE

TITLES = ("Red River", "Blue Letter", "Grey Garden", "Gold Winter", "Pink Harbour", "White Letter")
SPARE = 64  # tokens for items that come later
TAKEN = {"ann": [0, 1, 2, 3], "ben": [4, 5, 0, 1], "cleo": [2, 4, 3, 5, 1]}
ROW = {"history": "<item_0><item_1>", "interests": "rivers", "item": "<item_2>", "answer": "<item_3>"}


def write(folder, titles=TITLES, taken=TAKEN):
    folder.mkdir()
    (folder / "items.csv").write_text("item,title\n" + "".join(f"f{n},{title}\n" for n, title in enumerate(titles)))
    lines = [
        f"{user},f{item},{time},{1 + item % 5}\n" for user, items in taken.items() for time, item in enumerate(items)
    ]
    (folder / "interactions.csv").write_text("user,item,timestamp,rating\n" + "".join(lines))
    return folder


def register(name, *wordings, **settings):
    templates = [InstructionTemplate(f"{n}", text, "{answer}", split) for n, (text, split) in enumerate(wordings)]
    register_task(f"{name}_of_run", Rows({"train": [ROW], "validation": [ROW]}), templates, metrics=[], **settings)
    return f"{name}_of_run"


MIXTURE = register_mixture(
    "items_of_run",
    [
        register("say", ("{history} Say:", "seen")),
        register("guess", ("{history} Which?", "seen"), answer_with=Labels(("<item_3>", "<item_4>"))),
        register("choose", ("{history} or {item}?", "seen"), answer_with=BestItems()),
        register("any", ("Something.", "seen"), answer_with=BestItems()),
        register(
            "next",
            ("So far {history}, then", "unseen"),
            ("{history} Next?", "seen"),
            ("After {history}:", "seen"),
            answer_with=BestItems(),
        ),
        register("other", ("Behind {history}?", "seen"), ("{history} Next?", "seen"), answer_with=BestItems()),
        register("wish", ("I want {interests}.", "seen"), answer_with=BestItems()),
        register("both", ("{interests} after {history}?", "seen"), answer_with=BestItems()),
    ],
    rates="equal",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def items(folder, **settings):
    return recommendation_data(
        **({"dataset": str(folder), "min_interactions": 0, "recent": 2, "longest": 3} | settings)
    )


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        model_dir=str(tmp_path / "run"),
        mixture_or_task_name="items_of_run",
        task_feature_lengths={"inputs": 48, "targets": 12},
        train_steps=4,
        batch_size=8,
        model=dataclasses.replace(BASE, vocab_size=0),
        partitioner=ONE,
        optimizer=adamw(RATE),
        learning_rate=RATE,
        vocabulary="bytes",
        items=items(write(tmp_path / "data")),
    )


# Tokens


def test_tokens_of_items_stand_above_the_vocabulary(config):
    run = prepare(config)
    assert run.model.vocab_size == run.vocabulary.size == 259 + len(TITLES) + SPARE
    assert run.vocabulary.encode("a<item_0>b<item_5>") == [100, 259, 101, 264]
    assert int(run.trie.size) == len(TITLES)
    assert run.trie.levels[0].token[: len(TITLES)].tolist() == list(range(259, 265))


def test_a_vocabulary_that_is_trained_knows_words_and_no_parts_of_items(config):
    run = prepare(dataclasses.replace(config, vocabulary="train", vocabulary_size=100))
    pieces = run.vocabulary.size - len(TITLES) - SPARE
    assert run.model.vocab_size == run.vocabulary.size
    assert run.vocabulary.encode("<item_0><item_5>") == [pieces, pieces + 5]
    assert 2 not in run.vocabulary.encode("Something after rivers")
    texts = (text for task in run.tasks for text in registry.texts(task, "train"))
    words = vocabularies.train_sentencepiece((re.sub("<item_.>", " ", text) for text in texts), 100)
    assert (run.vocabulary.model, pieces) == (words.model, words.size)


def test_titles_need_no_tokens(config, tmp_path):
    run = prepare(dataclasses.replace(config, items=items(tmp_path / "data", index="title")))
    assert run.vocabulary.size == 259


def test_a_token_of_a_model_that_lacks_it_starts_as_the_mean_of_its_title(config, tmp_path):
    weights = random_params(BASE)
    base = write_run(tmp_path / "base", BASE, weights)
    run = prepare(dataclasses.replace(config, initial_checkpoint_path=str(base), vocabulary=str(base)))
    assert run.vocabulary.encode("<item_5>") == [264]
    table = np.asarray(named(load_model(run.source, run.model, ONE))["token_embedder/embedding"])
    old = np.asarray(weights["token_embedder/embedding"])[:259]
    np.testing.assert_array_equal(table[:259], old)
    for number, title in enumerate(TITLES):
        letters = [byte + 3 for byte in title.encode()]
        np.testing.assert_allclose(table[259 + number], old[letters].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table[259 + len(TITLES)], old.mean(axis=0), rtol=1e-4, atol=1e-6)


# What is saved


def test_the_folder_has_items_users_and_the_prompts_that_ask_for_items(config):
    """All wordings of each kind, seen ones first: neither of tasks that are answered otherwise, nor that need more."""
    run = prepare(config)
    write_run_folder(run)
    saved = Knowledge.load_run(config.model_dir)
    assert saved.prompts == {
        "history": ("{history} Next?", "After {history}:", "Behind {history}?", "So far {history}, then"),
        "interests": ("I want {interests}.",),
        "history+interests": ("{interests} after {history}?",),
    }
    assert saved.catalogue.titles == TITLES
    assert saved.users == tuple(TAKEN)
    assert [history.tolist() for history in saved.histories] == list(TAKEN.values())  # with what is held out
    assert saved.ratings[2].tolist() == [3, 5, 4, 1, 2]
    assert (saved.recent, saved.longest) == (2, 3)
    assert read_manifest(config.model_dir)["items_sha256"] == saved.sha256 == run.knowledge.sha256


def test_a_run_killed_while_its_folder_was_written_begins_again(config):
    write_run_folder(prepare(config))
    folder = Path(config.model_dir)
    (folder / "manifest.json").unlink()
    (folder / "items" / "catalogue.json.77.tmp").write_text("cut sh")
    (folder / "config.json.tmp").write_text("cut sh")
    again = prepare(config)
    assert not again.resuming
    write_run_folder(again)
    assert prepare(config).resuming
    assert not list(folder.rglob("*.tmp"))
    (folder / "manifest.json").unlink()
    (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="not empty and not a run folder"):
        prepare(config)


def test_a_run_that_does_not_recommend_knows_nothing_of_items(config):
    run = prepare(dataclasses.replace(config, items=None))
    assert run.vocabulary.size == 259
    assert "items_sha256" not in run.manifest()
    with pytest.raises(UserError) as error:
        _ = run.trie
    assert one_line(error) == "'items_of_run' recommends items, and ITEMS is None: set it to @recommendation_data()"


def test_a_run_goes_on_with_the_same_data_wherever_it_is(config, tmp_path):
    write_run_folder(prepare(config))
    run = prepare(dataclasses.replace(config, items=items(write(tmp_path / "copy"))))
    assert run.resuming
    assert run.vocabulary.encode("<item_5>") == [264]


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"taken": TAKEN | {"ben": [4, 5, 1, 0]}}, {}),
        ({"taken": TAKEN | {"dan": [2, 3, 4]}}, {}),
        ({"titles": (*TITLES[:-1], "Black Letter")}, {}),
        ({"titles": (*TITLES, "Black Letter")}, {}),
        ({}, {"recent": 1}),
        ({}, {"index": "codes"}),
    ],
    ids=["order", "user", "title", "item", "setting", "index"],
)
def test_a_run_does_not_go_on_with_other_data(config, tmp_path, change, settings):
    write_run_folder(prepare(config))
    other = dataclasses.replace(config, items=items(write(tmp_path / "other", **change), **settings))
    with pytest.raises(UserError, match=r"holds another run: items_sha256 is '[0-9a-f]{64}' there and '") as error:
        prepare(other)
    one_line(error)
