"""`python -m t5x_lite.recommend`: on a saved run of random weights, and with its recommender in memory."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import pytest

import t5x_lite
from t5x_lite import recommend
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.errors import UserError
from t5x_lite.recommendation.printing import as_json, as_table
from t5x_lite.recommendation.recommender import Recommender
from t5x_lite.run_folder import describe_model, write_manifest
from tests.recommendation.films import TITLES, config, engine, knowledge, recommender


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    params: dict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose model is that of films.py."""
    folder, of_run = tmp_path_factory.mktemp("run"), engine("token")
    checkpoints = Checkpoints(folder, keep_last=1)
    checkpoints.save(7, Weights(of_run.generator.params), {}, {})
    checkpoints.close()
    of_run.vocabulary.save(folder / "vocabulary")
    write_manifest(folder, describe_model(config("token"), of_run.vocabulary, of_run.lengths))
    knowledge().save(folder / "items")
    return str(folder)


@pytest.fixture
def in_memory(monkeypatch):
    """In place of a run its recommender, whose programs are compiled; (model_dir, step) of what was opened."""
    opened = []
    monkeypatch.setattr(Recommender, "load", lambda *asked: opened.append(asked) or recommender())
    return opened


def said(capsys, *words):
    recommend.main(list(words))
    return capsys.readouterr().out


def items(found):
    return [each.item for each in found.items]


def test_a_saved_run_recommends_as_the_one_that_was_saved(run):
    ours, theirs = t5x_lite.load(run, 7).recommender(), recommender()
    for asked in ({"user": "cleo", "k": 5}, {"interests": "horror"}, {}):
        found, expected = ours.recommend(**asked), theirs.recommend(**asked)
        assert (items(found), found.source, found.warnings) == (items(expected), expected.source, expected.warnings)
        scores = [each.score for each in expected.items]
        assert [each.score for each in found.items] == pytest.approx(scores, abs=1e-3)


def test_a_table_for_a_user(in_memory, capsys):
    text = said(capsys, "--model_dir=some/run", "--user=anna", "--k=3", "--evidence")
    assert text == as_table(recommender().recommend(user="anna", k=3, evidence=True)) + "\n"
    assert "since " in text
    assert in_memory == [("some/run", None)]


def test_json_after_a_history_and_interests(in_memory, capsys):
    words = [
        "--model_dir=r",
        "--step=7",
        "--history",
        "red river",
        "--history=id:f105",
        "--interests=a comedy",
        "--json",
    ]
    expected = recommender().recommend(history=["Red River", "id:f105"], interests="a comedy")
    assert said(capsys, *words) == as_json(expected) + "\n"
    assert in_memory == [("r", 7)]


def test_filters_exclusions_and_what_was_taken(in_memory, capsys):
    words = ["--model_dir=r", "--json", "--k=40", "--history=Gold River", "--filter=genre=war", "--filter=year>=2005"]
    wars = {"f127", "f131", "f139"}  # of 2007, 2011 and 2019
    expected = [
        (words, wars),
        ([*words, "--exclude", "id:f139"], wars - {"f139"}),
        ([*words[:-2], "--filter=year>=2014"], {f"f{number}" for number in range(134, 140)} - {"f135"}),
        ([*words[:-2], "--filter=year>=2014", "--include_seen"], {f"f{number}" for number in range(134, 140)}),
    ]
    for asked, left in expected:
        found = json.loads(said(capsys, *asked))
        assert {each["item"] for each in found["items"]} == left


def test_nothing_known_is_answered_by_what_is_popular(in_memory, capsys):
    text = said(capsys, "--model_dir=r")
    assert text.splitlines()[-1] == ("note: no user, history or interests are given: these are the most popular items")
    assert len(text.splitlines()) == 12


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--user=ana"], "user 'ana' is not among the 12 of this run; nearest: 'anna'"),
        (["--user=anna", "--history=Red River"], "user and history: give the one or the other"),
        (["--history=Red Rivver"], "no title is like 'Red Rivver'; nearest: 'Red River (1980)' (id:f100)"),
        (["--exclude=Red Rivver"], "no title is like 'Red Rivver'"),
        (["--user=anna", "--filter=year"], "filter 'year': no operator; write it as genre=Comedy or year>=1990"),
        (["--user=anna", "--k=0"], "k is 0; ask for at least 1 item"),
        (["--users=anna"], "command line: no flag '--users'; nearest: '--user'"),
    ],
)
def test_mistakes_are_told_in_a_line(in_memory, words, says):
    with pytest.raises(UserError, match=f"^{re.escape(says)}") as error:
        recommend.main(["--model_dir=r", *words])
    assert "\n" not in str(error.value)


def test_a_folder_that_does_not_recommend_is_told(tmp_path, run):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        recommend.main([f"--model_dir={tmp_path}", "--user=anna"])
    with pytest.raises(UserError, match="command line: the following arguments are required: --model_dir"):
        recommend.main(["--user=anna"])


LOADING = """
import json, sys
from t5x_lite.recommendation.recommender import Recommender
from t5x_lite import recommend
ours = Recommender.load(sys.argv[1])
heavy = {"tensorflow", "seqio", "tensorflow_text", "t5", "torch", "transformers", "gin"} & set(sys.modules)
print(json.dumps([ours.knowledge.catalogue.titles[0], sorted(heavy)]))
"""


def test_recommending_needs_neither_tensorflow_nor_tasks(run):
    process = subprocess.run([sys.executable, "-c", LOADING, run], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [TITLES[0], []]
