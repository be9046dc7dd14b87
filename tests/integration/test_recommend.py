"""A recommender of a user's own interactions by whole commands: trained, evaluated, asked."""

import csv
import json
import random

import pytest

USERS, ITEMS, TAKEN = 200, 40, 12
GENRES = ("Comedy", "War")  # of the even and of the odd items
SETTINGS = {
    "DATASET": "data",
    "MODEL_DIR": "recommender",
    "MIXTURE_OR_TASK_NAME": "recommend_implicit",
    "TASK_FEATURE_LENGTHS": "{'inputs': 96, 'targets': 24}",
    "TRAIN_STEPS": 220,
    "WARMUP_STEPS": 20,
    "BATCH_SIZE": 16,
    "DROPOUT_RATE": 0.0,
    "VOCABULARY_SIZE": 400,
    "EVAL_PERIOD": 220,
    "EVAL_EXAMPLES": 40,
    "LOG_PERIOD": 50,
    "recommendation_data.recent": 3,
    "recommendation_data.longest": 5,
    "T5Config.d_model": 32,
    "T5Config.num_heads": 2,
    "T5Config.head_dim": 16,
    "T5Config.d_ff": 64,
    "T5Config.num_encoder_layers": 1,
}


def write(folder):
    """Everybody takes items in a circle, from where they began: after 39 comes 0. Some begin where many do."""
    folder.mkdir()
    with (folder / "items.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["item", "title", "genre"])
        lines.writerows([f"i{item}", f"Tale {item}", GENRES[item % 2]] for item in range(ITEMS))
    rng = random.Random(0)
    with (folder / "interactions.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["user", "item", "timestamp"])
        for user in range(USERS):
            first = rng.choice((0, rng.randrange(ITEMS)))
            lines.writerows([f"u{user}", f"i{(first + place) % ITEMS}", place] for place in range(TAKEN))


def last_item(folder, user):
    with (folder / "interactions.csv").open() as file:
        return [row["item"] for row in csv.DictReader(file) if row["user"] == user][-1]


def following(item):
    return f"i{(int(item[1:]) + 1) % ITEMS}"


@pytest.fixture(scope="module")
def recommending(workplace):
    write(workplace.path / "data")
    settings = [f"--gin.{name}={value}" for name, value in SETTINGS.items()]
    workplace.run("train", "--gin_file=gin/recommend.gin", *settings)
    return workplace


def ask(workplace, *words):
    out, _ = workplace.run("recommend", "--model_dir=recommender", "--json", *words)
    return json.loads(out)


@pytest.mark.slow
def test_the_next_item_of_a_circle_is_learnt_and_popularity_beaten(recommending):
    out, _ = recommending.run("evaluate", "--model_dir=recommender", "--split=test", "--recs_out=lists.jsonl")
    results = json.loads((recommending.path / "recommender" / "eval" / "results.json").read_text())
    rows = results["recommendation"]
    assert {"popularity", "Markov-1", "this run"} <= set(rows) and all(name in out for name in rows)
    assert rows["this run"]["hit@1"] > 0.8
    assert rows["this run"]["ndcg@10"] > 2 * rows["popularity"]["ndcg@10"]
    assert [rows["this run"][fault] for fault in ("invalid", "seen", "repeated")] == [0, 0, 0]
    assert results["tasks"]["recommend_next"]["metrics"]["hit@1"] > 0.7  # in all wordings
    lists = [json.loads(line) for line in (recommending.path / "lists.jsonl").read_text().splitlines()]
    assert [each["user"] for each in lists] == [f"u{user}" for user in range(USERS)]
    right = [each["items"][0] == last_item(recommending.path / "data", each["user"]) for each in lists]
    assert sum(right) / USERS == pytest.approx(rows["this run"]["hit@1"])


@pytest.mark.slow
def test_a_user_gets_what_comes_after_all_that_they_took(recommending):
    """What was held out is part of a user's history now."""
    right = 0
    for user in ("u0", "u7", "u42"):
        found = ask(recommending, f"--user={user}", "--k=5")
        assert (found["source"], len(found["items"])) == ("model", 5)
        right += found["items"][0]["item"] == following(last_item(recommending.path / "data", user))
    assert right >= 2


@pytest.mark.slow
def test_a_history_may_be_titles_or_ids(recommending):
    history = [word for item in ("Tale 20", "tale 21", "id:i22", "Tale 23") for word in ("--history", item)]
    found = ask(recommending, *history, "--k=3", "--evidence")
    assert found["items"][0] | {"evidence": [], "score": 0} == {
        "rank": 1,
        "item": "i24",
        "title": "Tale 24",
        "score": 0,
        "evidence": [],
    }
    assert found["items"][0]["evidence"][0]["title"] == "Tale 23"
    (allowed,) = ask(recommending, *history, "--k=1", "--exclude", "Tale 24", "--filter", "genre=War")["items"]
    assert int(allowed["item"][1:]) % 2 == 1


@pytest.mark.slow
def test_interests_are_answered_by_items_that_pass_the_filter(recommending):
    """So few steps teach what comes next, not yet what a comedy is."""
    found = ask(recommending, "--interests", "a comedy", "--filter", "genre=comedy", "--k=10")
    assert (found["source"], found["warnings"]) == ("model", [])
    numbers = {int(each["item"][1:]) for each in found["items"]}
    assert len(numbers) == 10 and not any(number % 2 for number in numbers)


@pytest.mark.slow
def test_who_is_not_known_is_one_line(recommending):
    _, err = recommending.run("recommend", "--model_dir=recommender", "--user=u420", status=2)
    (line,) = [line for line in err.splitlines() if line.startswith("python -m t5x_lite.recommend: ")]
    assert "user 'u420' is not among the 200 of this run; nearest: 'u42'" in line
