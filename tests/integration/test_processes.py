"""Several real processes of one run, on this machine: the same numbers, one end, and a start with another count."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import computed

PROGRAM = Path(__file__).with_name("small_run.py")
ROOT = PROGRAM.parents[2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """So many devices a process; compiling is most of what such small runs do, so it is done with less care."""
    flags = (
        f"force_host_platform_device_count={devices}",
        "backend_optimization_level=0",
        "llvm_disable_expensive_passes=true",
    )
    return {
        **os.environ,
        "XLA_FLAGS": " ".join(f"--xla_{flag}" for flag in flags),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
    }


def start(command: list[str], count: int, devices: int, cwd: Path) -> list[subprocess.Popen]:
    """`count` processes that have so many devices together."""
    port, started = free_port(), []
    for index in range(count):
        flags = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"]
        started.append(
            subprocess.Popen(
                [sys.executable, *command, *(flags if count > 1 else [])],
                cwd=cwd,
                env=environment(devices // count),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        )
    return started


def ends(started: list[subprocess.Popen], timeout: float = 1200) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of each."""
    deadline = time.monotonic() + timeout
    try:
        said = [process.communicate(timeout=max(deadline - time.monotonic(), 0.1)) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, out, err) for process, (out, err) in zip(started, said, strict=True)]


def small(run: Path, count: int, *settings: str, devices: int = 2, mesh: str = "data") -> list[subprocess.Popen]:
    return start([str(PROGRAM), str(run), mesh, *settings], count, devices, ROOT)


def finish(run: Path, count: int, *settings: str, **layout) -> str:
    """Runs to the end; returns what the first process printed, which is all that any did."""
    found = ends(small(run, count, *settings, **layout))
    assert [status for status, _, _ in found] == [0] * count, found
    assert all("step" not in out for _, out, _ in found[1:])
    return found[0][1]


def metrics(run: Path) -> list[dict]:
    return [computed(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit())


def wait_for_step(run: Path, step: int, started: list[subprocess.Popen]) -> None:
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 1200
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert time.monotonic() < deadline and all(process.poll() is None for process in started), ends(started, 1)
        time.sleep(0.02)


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """What one run compiles the next need not: it is most of the time of so small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def unbroken(runs) -> list[dict]:
    """One process, two devices."""
    finish(runs / "one", 1)
    found = metrics(runs / "one")
    assert [line["step"] for line in found if line["kind"] == "train"] == [*range(1, 9)]
    assert all({"length", "log_likelihood"} <= {n.split("/")[-1] for n in line} for line in found if "loss" not in line)
    return found


# ---------------------------------------------------------------------- the same run


def test_two_processes_are_one_process_bit_for_bit(runs, unbroken):
    """Over as many devices: losses, gradients, parameters, and the answers and likelihoods of evaluation."""
    out = finish(runs / "two", 2)
    assert "2 process(es)" in out
    assert metrics(runs / "two") == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp", "model"])
def test_so_are_they_where_parameters_are_cut_over_processes(runs, mesh):
    """Over "model" both processes compute the same rows of a batch."""
    for count in (1, 2):
        finish(runs / f"{mesh}_{count}", count, mesh=mesh)
    assert metrics(runs / f"{mesh}_2") == metrics(runs / f"{mesh}_1")


@pytest.fixture(scope="module")
def over_four(runs) -> list[dict]:
    finish(runs / "four_1", 1, devices=4)
    return metrics(runs / "four_1")


def close(found: list[dict], wanted: list[dict]) -> None:
    assert [(line.keys(), line["kind"]) for line in found] == [(line.keys(), line["kind"]) for line in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours | {"kind": 0} == pytest.approx(theirs | {"kind": 0}, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_four_devices_add_up_in_another_order(runs, over_four, count):
    """Two numbers add up to the same either way; four do not, and those of other processes come in another order."""
    finish(runs / f"four_{count}", count, devices=4)
    close(metrics(runs / f"four_{count}"), over_four)


# ---------------------------------------------------------------------- stopped, killed, and started again


@pytest.mark.slow
def test_sigterm_to_one_makes_both_save_the_same_step(runs, unbroken):
    run = runs / "terminated"
    started = small(run, 2)
    wait_for_step(run, 3, started)  # an evaluation comes after step 4
    started[1].send_signal(signal.SIGTERM)
    found = ends(started)
    assert [status for status, _, _ in found] == [128 + signal.SIGTERM] * 2, found
    last = steps(run)[-1]
    assert last < 8 and f"SIGTERM: saved step {last}" in found[0][1]
    assert f"resuming {run} at step {last}" in finish(run, 1)
    assert metrics(run) == unbroken


def one_line_each(run: Path, found: list[tuple[int, str, str]]) -> None:
    """Of a killed process its listener says it."""
    for index, (_, _, err) in enumerate(found):
        lines = [line for line in err.splitlines() if line.startswith(f"process {index} of 2")]
        assert len(lines) == 1, err
        assert lines[0].endswith(f"start all of them again with the same command: {run} goes on"), err


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_end_of_one_ends_the_other(runs, victim):
    run = runs / f"cut_{victim}"
    started = small(run, 2, *(f"{name}=100000" for name in ("train_steps", "eval_period", "checkpoint_period")))
    wait_for_step(run, 3, started)
    started[victim].kill()
    began = time.monotonic()
    found = ends(started)
    assert time.monotonic() - began < 30
    assert found[victim][0] == -signal.SIGKILL and found[1 - victim][0] in (1, -signal.SIGABRT)
    one_line_each(run, found)


@pytest.mark.slow
@pytest.mark.parametrize("victim, again", [(1, 2), (0, 1)])
def test_killed_before_a_save_and_started_again(runs, unbroken, victim, again):
    """In a barrier of Orbax only JAX's heartbeat tells that the other is gone."""
    run = runs / f"killed_{victim}"
    started = small(run, 2)
    wait_for_step(run, 3, started)
    started[victim].kill()
    began = time.monotonic()
    found = ends(started)
    assert time.monotonic() - began < 120
    assert found[1 - victim][0] in (1, -signal.SIGABRT)
    one_line_each(run, found)
    kept = max(steps(run), default=0)
    assert kept <= 4
    out = finish(run, again)
    assert (f"resuming {run} at step {kept}" if kept else "random parameters") in out
    assert metrics(run) == unbroken
    spent = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-2]
    assert spent["goodput/gap_seconds"] > 0


@pytest.mark.slow
def test_one_that_hangs_ends_the_others(runs):
    run = runs / "hanging"
    started = small(run, 2, "step_timeout=5.0")
    wait_for_step(run, 3, started)
    started[1].send_signal(signal.SIGSTOP)
    try:
        err = started[0].communicate(timeout=200)[1]
    finally:
        started[1].kill()
        started[1].communicate()
    assert started[0].returncode != 0
    assert "WARNING process 0: nothing has happened for 5 s, since" in err
    assert "small_run.py" in (run / "stacks_process_0.txt").read_text()
    assert err.splitlines()[-1].startswith("process 0 of 2 was ended in mid-run")


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [(2, 4), (4, 2), (2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_exactly(runs, over_four, first, then):
    """With as many devices; a checkpoint is the same whoever writes it, and so is the order of the data."""
    run = runs / f"from_{first}_to_{then}"
    finish(run, first, "train_steps=4", devices=4)
    finish(run, then, devices=4)
    close(metrics(run), over_four)


# ---------------------------------------------------------------------- the commands themselves


@pytest.mark.slow
def test_the_doors_in_two_processes(workplace):
    """What several processes write is what one writes, and only one of them speaks."""
    for name, count in (("one", 1), ("two", 2)):
        command = ["-m", "t5x_lite.train", "--gin_file=sums.gin", f"--gin.MODEL_DIR={name}"]
        found = ends(start(command, count, 2, workplace.path))
        assert [status for status, _, _ in found] == [0] * count, found
        assert "goodput:" in found[0][1] and all("step" not in out for _, out, _ in found[1:])
    assert workplace.metrics("two") == workplace.metrics("one")
    tables = [
        [out for _, out, _ in ends(start(["-m", "t5x_lite.evaluate", "--model_dir=two"], count, 2, workplace.path))]
        for count in (1, 2)
    ]
    assert "sums" in tables[0][0] and tables[1][0].endswith(tables[0][0])
    assert "sums" not in tables[1][1]


@pytest.mark.slow
def test_folders_that_are_not_shared_are_refused(tmp_path):
    port, started = free_port(), []
    for index in (0, 1):
        (tmp_path / str(index)).mkdir()
        job = [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={index}"]
        started += start([str(PROGRAM), "run", "data", *job], 1, 1, tmp_path / str(index))
    found = ends(started)
    assert [status for status, _, _ in found] == [2, 2]
    assert all("run has " in err and "a disk that all of them see" in err for _, _, err in found)
