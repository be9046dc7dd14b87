"""slurm.sbatch with srun, scancel and scontrol that are not Slurm's."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path("launch/slurm.sbatch")
# srun: runs until it is told to end; then as $FAKE/status says. scancel: tells it, as Slurm tells the tasks.
FAKES = {
    "srun": 'trap "exit $(cat "$FAKE/status")" TERM; echo "$$" > "$FAKE/srun"; echo "srun $*" >> "$FAKE/calls"; '
    'echo "${SRUN_CPUS_PER_TASK-none}" > "$FAKE/cpus"; '
    'while [ ! -f "$FAKE/end" ]; do sleep 0.05; done; exit "$(cat "$FAKE/end")"',
    "scancel": 'echo "scancel $*" >> "$FAKE/calls"; kill "$(cat "$FAKE/srun")"',
    "scontrol": 'echo "scontrol $*" >> "$FAKE/calls"',
}


@pytest.fixture
def slurm(tmp_path):
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "FAKE": str(tmp_path),
        "SLURM_JOB_ID": "12",
        "SLURM_CPUS_PER_TASK": "8",
    }

    def start(*arguments: str, status: str = "143") -> subprocess.Popen:
        (tmp_path / "status").write_text(status)
        command = ["bash", str(SCRIPT), *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_directives_give_every_process_one_device_and_time_to_save():
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert re.fullmatch(r"B:USR1@\d+", asked["signal"]) and int(asked["signal"].split("@")[1]) >= 120
    assert asked["requeue"] == "" and asked["open-mode"] == "append"


@pytest.mark.parametrize("status", [0, 3])
def test_a_training_that_ends_gives_the_job_its_status(slurm, tmp_path, status):
    job = slurm("--gin_file=gin/qa.gin", "--gin.X='a b'")
    wait_for(tmp_path / "calls")
    (tmp_path / "end").write_text(str(status))
    job.communicate(timeout=30)
    assert job.returncode == status
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert (tmp_path / "cpus").read_text() == "8\n"
    assert call.startswith("srun ") and call.endswith("-m t5x_lite.train --gin_file=gin/qa.gin --gin.X='a b'")


def test_a_job_whose_time_is_over_saves_and_queues_again(slurm, tmp_path):
    job = slurm("--gin_file=gin/qa.gin")
    wait_for(tmp_path / "calls")
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=30)
    assert job.returncode == 0
    assert (tmp_path / "calls").read_text().splitlines()[1:] == ["scancel --signal=TERM 12", "scontrol requeue 12"]


def test_a_job_that_could_not_save_does_not_queue_again(slurm, tmp_path):
    job = slurm("--gin_file=gin/qa.gin", status="9")
    wait_for(tmp_path / "calls")
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=30)
    assert job.returncode == 9 and "scontrol" not in (tmp_path / "calls").read_text()


def test_a_dry_run_prints_the_command_alone(slurm, tmp_path):
    out, _ = slurm("--dry_run", "--gin_file=gin/qa.gin").communicate(timeout=30)
    assert out.split()[0] == "srun" and out.split()[-1] == "--gin_file=gin/qa.gin"
    assert not (tmp_path / "calls").exists()
