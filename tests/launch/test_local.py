"""local.py: several processes of this machine as one job."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local

ROOT = Path.cwd()


def start(*arguments: str, cwd: Path | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch/local.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, status: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=600)
    assert process.returncode == status, out + err
    return out, err


def shell(script: str) -> list[str]:
    return ["--", "bash", "-c", script]


def test_each_process_knows_itself_and_the_same_first_one():
    script = "echo $JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $XLA_FLAGS"
    out, _ = run("--processes=3", "--devices_per_process=4", *shell(script))
    said = dict(line.split(" ", 1) for line in out.splitlines())
    assert said.keys() == {"[0]", "[1]", "[2]"}
    words = {number: line.split() for number, line in said.items()}
    assert len({line[0] for line in words.values()}) == 1 and words["[0]"][0].startswith("127.0.0.1:")
    assert [line[1:] for line in words.values()] == [
        ["3", word[1], "--xla_force_host_platform_device_count=4"] for word in words
    ]


def test_the_first_that_fails_ends_the_others_and_gives_its_status():
    began = time.monotonic()
    # One fails; one ignores what it is asked to do; one would go on for long.
    script = 'trap "" TERM; case $JAX_PROCESS_ID in 1) exit 7 ;; *) for i in $(seq 300); do sleep 0.1; done ;; esac'
    status = local.run(["bash", "-c", script], [{"JAX_PROCESS_ID": str(number)} for number in range(3)], grace=0.3)
    assert status == 7 and time.monotonic() - began < 10


def test_a_signal_that_ends_one_is_told_as_a_shell_does():
    assert local.run(["bash", "-c", "kill -SEGV $$"], [{}]) == 128 + signal.SIGSEGV


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process_once(signum):
    # Not in bash, which sometimes loses a SIGINT that comes as it starts a command.
    script = """if True:
        import signal, time
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda number, _: print("got", signal.Signals(number).name, flush=True))
        print("up", flush=True)
        time.sleep(2)"""
    process = start("--processes=2", "--", sys.executable, "-c", script)
    up = [process.stdout.readline() for _ in range(2)]
    assert sorted(up) == ["[0] up\n", "[1] up\n"]
    process.send_signal(signum)
    out, _ = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == [f"[0] got {signum.name}", f"[1] got {signum.name}"] and process.returncode == 0


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--procesess=2", "--", "true"], "no flag '--procesess'; nearest: '--processes'"),
        (["--processes=0", "--", "true"], "nothing to run; give --processes and --devices_per_process of 1 or more"),
        (["--processes=2"], "nothing to run"),
        (["--processes=1", "--", "pyhton", "x"], "local.py: 'pyhton' cannot be started (No such file or directory)"),
        (["--processes=2", "--", "./README.md"], "local.py: './README.md' cannot be started (Permission denied)"),
    ],
)
def test_a_mistake_is_one_line(arguments, says):
    _, err = run(*arguments, status=2)
    assert says in err and len(err.splitlines()) == 1


def test_a_dry_run_prints_commands_and_starts_nothing(tmp_path):
    out, _ = run("--processes=2", "--dry_run", "--", "touch", "here", cwd=tmp_path)
    assert [line.split()[-2:] for line in out.splitlines()] == [["touch", "here"]] * 2
    assert "JAX_PROCESS_ID=0" in out and "JAX_PROCESS_ID=1" in out and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """A few steps of gin/qa.gin, each process with two devices; one of them writes the run."""
    out, _ = run(
        "--processes=2",
        "--devices_per_process=2",
        "--",
        *(sys.executable, "-m", "t5x_lite.train", f"--gin_file={ROOT}/gin/qa.gin", f"--gin.MODEL_DIR={tmp_path}/run"),
        *("--gin.TRAIN_STEPS=3", "--gin.WARMUP_STEPS=1", "--gin.BATCH_SIZE=4", "--gin.LOG_PERIOD=1"),
        *("--gin.EVAL_EXAMPLES=2", "--gin.T5Config.num_encoder_layers=1", "--gin.T5Config.num_decoder_layers=1"),
    )
    assert "[0] devices     4 x cpu (cpu), 2 process(es), mesh data 4" in out
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert (tmp_path / "run/checkpoints/3").is_dir()
