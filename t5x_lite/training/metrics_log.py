"""metrics.jsonl, one JSON object a line, and the same numbers as TensorBoard events."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """The metrics of one run folder; opened at `resume_step`, it forgets what was logged after that step.

    Training metrics are read from the device when the next ones come, so that logging never waits for a step.
    Floats are written so that they read back to the same bits (NaN and Infinity as Python's json writes them).
    """

    def __init__(self, run_dir: str, resume_step: int = 0):
        os.makedirs(run_dir, exist_ok=True)
        path = os.path.join(run_dir, METRICS_FILE)
        self._pending: tuple[int, Mapping[str, jax.Array], dict[str, float]] | None = None
        _forget_after(run_dir, resume_step)
        self._file = open(path, "a")  # noqa: SIM115 - open for the whole run
        # TensorBoard hides the events of the steps that are about to be taken again.
        purge = resume_step + 1 if resume_step else None
        self._writers = {
            kind: SummaryWriter(os.path.join(run_dir, kind), purge_step=purge) for kind in ("train", "eval")
        }

    def write(self, step: int, metrics: Mapping[str, jax.Array], more: Mapping[str, float]) -> None:
        """Takes a step's metrics, scalars still on the device, and writes those it was given before."""
        self.flush()
        self._pending = step, metrics, dict(more)

    def flush(self) -> None:
        """Writes what is pending; waits for the device."""
        if self._pending is None:
            return
        step, metrics, more = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        self._line("train", step, values | more)

    def write_eval(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes the scores of an evaluation at once, after the training metrics that are pending."""
        self.flush()
        self._line("eval", step, dict(scores))

    def close(self) -> None:
        self.flush()
        self._file.close()
        for writer in self._writers.values():
            writer.close()

    def _line(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "kind": kind} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writers[kind].add_scalar(name, value, step)


def read(run_dir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, none where there is no file; a line that a kill cut short is left out."""
    path = os.path.join(run_dir, METRICS_FILE)
    if not os.path.exists(path):
        return []
    lines = []
    with open(path) as file:
        for line in file:
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


def _forget_after(run_dir: str, step: int) -> None:
    """Rewrites metrics.jsonl, whole or not at all, without the lines after the step."""
    path = os.path.join(run_dir, METRICS_FILE)
    kept = [line for line in read(run_dir) if line["step"] <= step]
    with open(path + ".tmp", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
    os.replace(path + ".tmp", path)
