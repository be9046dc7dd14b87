"""metrics.jsonl, one JSON object a line, and the same numbers as TensorBoard events."""

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from tensorboardX import SummaryWriter

from t5x_lite.files import is_remote, write_whole

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """The metrics of one run folder; opened at `resume_step`, it forgets what was logged after that step.

    Training metrics are read from the device when the next ones come, so that logging never waits for a step.
    Floats are written so that they read back to the same bits (NaN and Infinity as Python's json writes them).
    Object storage cannot append: of a run folder there, the files grow on this machine and are copied by `keep`.
    """

    def __init__(self, run_dir: str, resume_step: int = 0):
        self._run_dir = epath.Path(run_dir)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._pending: tuple[int, Mapping[str, jax.Array], dict[str, float]] | None = None
        _forget_after(run_dir, resume_step)
        self._copied = tempfile.TemporaryDirectory(prefix="t5x_lite") if is_remote(run_dir) else None
        self._folder = epath.Path(self._copied.name) if self._copied else self._run_dir
        if self._copied:
            (self._folder / METRICS_FILE).write_bytes((self._run_dir / METRICS_FILE).read_bytes())
        self._file = open(self._folder / METRICS_FILE, "a")  # noqa: SIM115 - open for the whole run
        # TensorBoard hides the events of the steps that are about to be taken again.
        purge = resume_step + 1 if resume_step else None
        self._writers = {kind: SummaryWriter(str(self._folder / kind), purge_step=purge) for kind in ("train", "eval")}

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

    def keep(self) -> None:
        """Writes what is pending; call it before a checkpoint, which a resumed log must reach."""
        self.flush()
        if self._copied:
            for writer in self._writers.values():
                writer.flush()
            for root, _, names in os.walk(self._folder):
                folder = self._run_dir / os.path.relpath(root, self._folder)
                folder.mkdir(parents=True, exist_ok=True)
                for name in names:
                    write_whole(folder / name, epath.Path(root, name).read_bytes())

    def close(self) -> None:
        self.keep()
        self._file.close()
        for writer in self._writers.values():
            writer.close()
        if self._copied:
            self._copied.cleanup()

    def _line(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "kind": kind} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writers[kind].add_scalar(name, value, step)


def read(run_dir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, none where there is no file; a line that a kill cut short is left out."""
    path = epath.Path(run_dir) / METRICS_FILE
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _forget_after(run_dir: str, step: int) -> None:
    """Rewrites metrics.jsonl, whole or not at all, without the lines after the step."""
    kept = (json.dumps(line) + "\n" for line in read(run_dir) if line["step"] <= step)
    write_whole(epath.Path(run_dir) / METRICS_FILE, "".join(kept).encode())
