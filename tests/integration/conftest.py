"""Whole commands, run as a user runs them: real processes in an empty working directory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TASKS = """
from t5x_lite.data.metrics import exact_match
from t5x_lite.data.registry import register_task
from t5x_lite.data.sources import Rows
from t5x_lite.data.templates import InstructionTemplate

WORDS = "zero one two three four five six seven eight nine".split()
ROWS = [{"a": a, "b": b, "answer": WORDS[(a + b) % 10]} for a in range(10) for b in range(10)]

register_task(
    "sums",
    Rows({"train": ROWS, "validation": ROWS[:20]}),
    [
        InstructionTemplate("plus", "{a} plus {b}?", "{answer}"),
        InstructionTemplate("sum", "What is the sum of {a} and {b}?", "{answer}"),
        InstructionTemplate("and", "{a} and {b} are", "{answer}", split="unseen"),
    ],
    metrics=[exact_match],
)
"""

GIN = """
include "base.gin"
include "meshes/data.gin"
include "optimizers/adamw_rms_scaled.gin"
MODEL_DIR = "run"
MIXTURE_OR_TASK_MODULE = "my_tasks"
MIXTURE_OR_TASK_NAME = "sums"
TASK_FEATURE_LENGTHS = {"inputs": 48, "targets": 12}
TRAIN_STEPS = 12
WARMUP_STEPS = 2
BATCH_SIZE = 4
DROPOUT_RATE = 0.1
LOG_PERIOD = 1
CHECKPOINT_PERIOD = 4
EVAL_PERIOD = 6
BEST_METRIC = "unseen/exact_match"
VOCABULARY_SIZE = 100
T5Config.d_model = 16
T5Config.num_heads = 2
T5Config.head_dim = 8
T5Config.d_ff = 32
T5Config.num_encoder_layers = 1
T5Config.num_decoder_layers = 1
"""


def one_device() -> dict[str, str]:
    """The environment as a test has set it, as a user's but for the care taken in compiling (tests/conftest.py)."""
    return os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
    }


def computed(line: dict) -> dict:
    """A line of metrics.jsonl without what depends on the clock and on the machine."""
    measured = ("second", "goodput", "mfu", "peak_flops", "memory")
    return {name: value for name, value in line.items() if not any(word in name for word in measured)}


class Workplace:
    """An empty directory with a user's own task module and configuration."""

    def __init__(self, path: Path):
        self.path = path
        (path / "my_tasks.py").write_text(TASKS)
        (path / "sums.gin").write_text(GIN)

    def start(self, door: str, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", f"t5x_lite.{door}", *arguments],
            cwd=self.path,
            env=one_device(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def run(self, door: str, *arguments: str, status: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of a command that must end with `status`."""
        process = self.start(door, *arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"status {process.returncode}\n{out}\n{err}"
        return out, err

    def train(self, *overrides: str, status: int = 0) -> tuple[str, str]:
        return self.run("train", "--gin_file=sums.gin", *overrides, status=status)

    def metrics(self, run: str) -> list[dict]:
        """What was logged, without what depends on the clock."""
        lines = [json.loads(line) for line in (self.path / run / "metrics.jsonl").read_text().splitlines()]
        return [computed(line) for line in lines]

    def signal_after_step(self, process: subprocess.Popen, run: str, step: int, signum: signal.Signals) -> None:
        """Sends a signal once the run has logged that step."""
        log = self.path / run / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and any(f'"step": {step},' in line for line in log.read_text().splitlines()):
                process.send_signal(signum)
                return
            time.sleep(0.02)
        raise AssertionError(f"the run ended or hung before step {step}: {process.communicate()}")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))
