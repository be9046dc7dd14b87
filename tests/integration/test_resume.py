"""A run that was killed and started again is the run that was never killed, bit for bit."""

import signal

import pytest


@pytest.fixture(scope="module")
def unbroken(workplace):
    workplace.train("--gin.MODEL_DIR=unbroken")
    return workplace.metrics("unbroken")


@pytest.mark.slow
def test_two_runs_are_equal(workplace, unbroken):
    workplace.train("--gin.MODEL_DIR=again")
    assert workplace.metrics("again") == unbroken


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (7, "resuming killed_7 at step"),
        pytest.param(2, "random parameters", marks=pytest.mark.slow),
        pytest.param(11, "resuming killed_11 at step", marks=pytest.mark.slow),
    ],
)
def test_sigkill_at_any_step(workplace, unbroken, step, said):
    name = f"killed_{step}"
    process = workplace.start("train", "--gin_file=sums.gin", f"--gin.MODEL_DIR={name}")
    workplace.signal_after_step(process, name, step, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out, _ = workplace.train(f"--gin.MODEL_DIR={name}")
    assert workplace.metrics(name) == unbroken
    assert said in out


@pytest.mark.slow
def test_sigterm_saves_and_leaves_the_status_of_a_signal(workplace, unbroken):
    process = workplace.start("train", "--gin_file=sums.gin", "--gin.MODEL_DIR=terminated")
    workplace.signal_after_step(process, "terminated", 6, signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    steps = [line["step"] for line in workplace.metrics("terminated") if line["kind"] == "train"]
    out, _ = workplace.train("--gin.MODEL_DIR=terminated")
    assert f"at step {max(steps)}" in out or "nothing to do" in out
    assert workplace.metrics("terminated") == unbroken


@pytest.mark.slow
def test_starting_from_another_runs_parameters(workplace, unbroken):
    out, _ = workplace.train("--gin.MODEL_DIR=started", "--gin.INITIAL_CHECKPOINT_PATH=unbroken", "--gin.TRAIN_STEPS=6")
    assert "parameters from unbroken, step 0" in out
    first, fresh = workplace.metrics("started")[0], unbroken[0]
    assert first["step"] == 1 and first["loss"] < fresh["loss"]
