"""A run folder in object storage, gs://: what a run writes there is whole or not there, and a run goes on from it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import config, train
from t5x_lite.checkpoints import Checkpoints
from t5x_lite.data import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.training import metrics_log
from t5x_lite.training.metrics_log import MetricsLog
from tests.fake_bucket import serving
from tests.integration.conftest import Workplace

RUN = "gs://bucket/run"


@pytest.fixture
def bucket(monkeypatch):
    with serving(monkeypatch) as bucket:
        yield bucket


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict


def state_of(step: int) -> State:
    return State(jnp.int32(step), {"mlp": {"kernel": jnp.full((8, 4), step / 3, jnp.float32)}})


def save(*steps: int) -> None:
    checkpoints = Checkpoints(RUN, keep_last=2)
    for step in steps:
        checkpoints.save(step, state_of(step), {"row": step})
    checkpoints.close()


def test_checkpoints_are_saved_kept_by_the_rules_and_restored_to_the_bit(bucket):
    save(1, 2, 3)
    assert Checkpoints(RUN).steps() == [2, 3]
    assert bucket.names("run/checkpoints/1/") == []
    state, place = Checkpoints(RUN).restore(jax.eval_shape(lambda: state_of(0)))
    assert int(state.step) == 3 and place == {"row": 3}
    np.testing.assert_array_equal(state.params["mlp"]["kernel"], state_of(3).params["mlp"]["kernel"])


def test_a_step_whose_writer_was_killed_is_none_and_is_written_again(bucket):
    save(1, 2)
    del bucket.objects["run/checkpoints/2/commit_success.txt"]  # the last that a save writes
    del bucket.objects["run/checkpoints/2/params/manifest.ocdbt"]
    assert Checkpoints(RUN).latest_step() == 1
    save(2)
    assert Checkpoints(RUN).steps() == [1, 2]
    state, _ = Checkpoints(RUN).restore(jax.eval_shape(lambda: state_of(0)))
    assert int(state.step) == 2


def test_the_log_is_kept_with_each_checkpoint_and_forgets_what_came_after(bucket):
    log = MetricsLog(RUN)
    log.write(1, {"loss": jnp.float32(3)}, {})
    log.write(2, {"loss": jnp.float32(2)}, {})
    log.keep()
    log.write(3, {"loss": jnp.float32(1)}, {})
    # The machine is gone: nothing is closed.
    assert [line["step"] for line in metrics_log.read(RUN)] == [1, 2]
    assert any(name.startswith("run/train/events.out") for name in bucket.names())
    log = MetricsLog(RUN, resume_step=1)
    log.write(2, {"loss": jnp.float32(5)}, {})
    log.close()
    assert [line["loss"] for line in metrics_log.read(RUN)] == [3.0, 5.0]


def test_a_vocabulary_comes_back(bucket):
    vocabulary = vocabularies.byte().with_tokens(["<item_1>"])
    vocabulary.save(f"{RUN}/vocabulary")
    assert vocabularies.load(f"{RUN}/vocabulary").sha256 == vocabulary.sha256


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """Trains the sums of tests/integration in the bucket."""
    Workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(*more: str) -> None:
        train.main(["--gin_file=sums.gin", f"--gin.MODEL_DIR={RUN}", "--gin.BATCH_SIZE=8", *more])

    return run


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_from_it_and_leaves_a_whole_folder(bucket, sums, capsys):
    sums("--gin.TRAIN_STEPS=6")
    sums("--gin.TRAIN_STEPS=12")
    assert f"state: resuming {RUN} at step 6" in capsys.readouterr().out
    steps = [line["step"] for line in metrics_log.read(RUN) if line["kind"] == "train"]
    assert steps == list(range(1, 13))
    assert Checkpoints(RUN).latest_step() == 12
    names = bucket.names()
    for file in ("config.gin", "config.json", "manifest.json", "report.html", "eval/results.json"):
        assert f"run/{file}" in names
    assert not [name for name in names if ".tmp" in name]
    assert json.loads(bucket.objects["run/manifest.json"][0])["mixture_or_task"] == "sums"
    with pytest.raises(UserError, match=r"MODEL_DIR 'gs://bucket/run' holds another run: lengths.targets"):
        sums("--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}")


def test_a_folder_of_something_else_is_refused(bucket, sums):
    bucket.put("run/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"'gs://bucket/run' is not empty and not a run folder"):
        sums("--dry_run")
    assert bucket.names() == ["run/notes.txt"]


def test_the_configuration_is_written(bucket):
    config.write_config(RUN)
    assert {"run/config.gin", "run/config.json"} <= set(bucket.names())
