"""From a cache, whole commands: written by Beam, trained from without TensorFlow, killed and resumed, refused."""

import json
import re
import signal
import subprocess
import sys

import pytest

from tests.integration.conftest import GIN, TASKS, Workplace, one_device

WRITE = """
import sys
from t5x_lite import cache, config
from t5x_lite.data import cache_pipeline
from tests.data.caches import run_plainly

cache_pipeline.run = run_plainly  # so that these tests need no Beam
config.run_door(cache.main)
"""

TRAIN = """
import sys

for name in ("tensorflow", "tensorflow_datasets", "seqio", "apache_beam"):
    sys.modules[name] = None
from t5x_lite import config, train

config.run_door(train.main)
"""


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A workplace with a cache of its tasks."""
    workplace = Workplace(tmp_path_factory.mktemp("workplace"))
    script(workplace, WRITE, "--gin_file=sums.gin", "--output=cached")
    return workplace


def script(workplace, text, *arguments, status=0):
    (workplace.path / "script.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=workplace.path,
        env=one_device(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


FLAGS = ("--gin_file=sums.gin", "--gin.CACHE_DIR=cached")


@pytest.fixture(scope="module")
def without_tensorflow(cached):
    out, _ = script(cached, TRAIN, *FLAGS, "--gin.MODEL_DIR=without_tensorflow")
    return out


def test_training_without_tensorflow_says_what_is_missing(cached, without_tensorflow):
    out = without_tensorflow
    assert "cache       cached; without seqio nobody can check that the tasks have not changed since" in out
    assert "need seqio, which is not installed; validation/loss and validation/accuracy of cached rows" in out
    assert "BEST_METRIC 'unseen/exact_match' is not measured" in out
    lines = cached.metrics("without_tensorflow")
    evals = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evals] == [6, 12]
    assert evals[1]["validation/loss"] < evals[0]["validation/loss"]
    assert sum(line["kind"] == "train" for line in lines) == 12


@pytest.mark.slow
def test_with_tensorflow_training_is_the_same_and_evaluation_as_ever(cached, without_tensorflow):
    out, _ = cached.train("--gin.CACHE_DIR=cached", "--gin.MODEL_DIR=with_tensorflow")
    assert "the tasks are as they were" in out
    both = [cached.metrics(run) for run in ("with_tensorflow", "without_tensorflow")]
    train = [[line for line in lines if line["kind"] == "train"] for lines in both]
    assert train[0] == train[1]
    assert "unseen/exact_match" in [line for line in both[0] if line["kind"] == "eval"][-1]
    # The run folder is complete: it is evaluated where there is no cache.
    (cached.path / "cached").rename(cached.path / "elsewhere")
    try:
        scores, _ = cached.run("evaluate", "--model_dir=with_tensorflow")
    finally:
        (cached.path / "elsewhere").rename(cached.path / "cached")
    assert re.search(r"sums .* exact_match", scores)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 9])
def test_a_killed_run_goes_on_bit_for_bit(cached, without_tensorflow, step):
    run = f"killed_{step}"
    (cached.path / "script.py").write_text(TRAIN)
    process = subprocess.Popen(
        [sys.executable, "script.py", *FLAGS, f"--gin.MODEL_DIR={run}"],
        cwd=cached.path,
        env=one_device(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cached.signal_after_step(process, run, step, signal.SIGKILL)
    process.communicate()
    out, _ = script(cached, TRAIN, *FLAGS, f"--gin.MODEL_DIR={run}")
    assert ("resuming" in out) == (step > 8)
    assert cached.metrics(run) == cached.metrics("without_tensorflow")


def refusal(workplace, *overrides):
    out, err = workplace.train("--gin.MODEL_DIR=refused", *overrides, status=2)
    assert out == "" and "Traceback" not in err
    assert not (workplace.path / "refused").exists()
    return err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_stale_cache_is_refused_before_anything_is_written(cached):
    tasks = cached.path / "my_tasks.py"
    tasks.write_text(TASKS.replace("{a} plus {b}?", "{a} and {b} make?"))
    try:
        assert "part 'sums' is stale: the wordings of its split 'train'" in refusal(cached, "--gin.CACHE_DIR=cached")
    finally:
        tasks.write_text(TASKS)
    assert "nearest: 'cached'" in refusal(cached, "--gin.CACHE_DIR=cashed")


@pytest.mark.slow
def test_a_run_does_not_go_on_in_other_data(cached, without_tensorflow):
    _, err = cached.train("--gin.MODEL_DIR=without_tensorflow", "--gin.TRAIN_STEPS=20", status=2)
    assert "CACHE_DIR is None and the checkpoint was trained from a cache" in err


# With Beam


def shards(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_beam_writes_the_same_bytes_with_any_number_of_workers(tmp_path):
    pytest.importorskip("apache_beam")
    workplace = Workplace(tmp_path)
    workplace.run("cache", "--gin_file=sums.gin", "--output=one")
    two = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    workplace.run("cache", "--gin_file=sums.gin", "--output=two", *two)
    script(workplace, WRITE, "--gin_file=sums.gin", "--output=plain")
    one, two, plain = (shards(tmp_path / name) for name in ("one", "two", "plain"))
    assert one == two == plain
    assert any(name.endswith(".array_record") for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_what_a_worker_finds_wrong_is_one_line(tmp_path, mode):
    pytest.importorskip("apache_beam")
    workplace = Workplace(tmp_path)
    # Its last row, further on than the command itself looks for characters that the vocabulary lacks.
    broken = TASKS.replace("for b in range(10)]", 'for b in range(400)] + [{"a": 1, "answer": "one"}]')
    (tmp_path / "my_tasks.py").write_text(broken)
    (tmp_path / "sums.gin").write_text(GIN + 'VOCABULARY = "bytes"\n')
    _, err = workplace.run("cache", "--gin_file=sums.gin", "--output=one", f"--direct_running_mode={mode}", status=2)
    assert re.search(r"^python -m t5x_lite.cache: .*'plus'.*\bb\b", err.strip().splitlines()[-1]), err
    assert json.loads((tmp_path / "one" / "vocabulary" / "vocabulary.json").read_text())
    assert not (tmp_path / "one" / "manifest.json").exists()
