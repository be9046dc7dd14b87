"""Where the wall time of a run went since it first began, through all its restarts.

RUN/goodput.jsonl is only ever appended to: a line is what one process, from its start until then, had spent on what.
So a kill takes away no more than the time since the last line, and that is counted as a gap.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from t5x_lite.files import is_remote, write_whole
from t5x_lite.training.progress import duration

FILE = "goodput.jsonl"

PRODUCTIVE = "productive"
KINDS = (PRODUCTIVE, "startup", "data_wait", "checkpoint", "evaluation")
NAMES = {
    PRODUCTIVE: "steps that count",
    "startup": "start and compilation",
    "data_wait": "waiting for data",
    "checkpoint": "steps blocked by saving",
    "evaluation": "evaluation",
    "lost": "steps thrown away by a kill",
    "gap": "between two processes",
}

Line = Mapping[str, Any]


class Goodput:
    """Accounts for the time of this process; the first one writes it down, the others only count.

    Seconds belong to one kind at a time: to startup, until `started`; then to what `spending` says; else to steps.
    In a bucket, where nothing can be appended, the file is written when it is `keep`t, with the checkpoints.
    """

    def __init__(self, run_dir: str, step: int, *, began: float | None = None):
        """`step` is the one that the process goes on from, `began` the time.time() at which it did."""
        self._path = epath.Path(run_dir) / FILE
        self._began = time.time() if began is None else began
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind = "startup"
        self._since = self._began
        self._writes = jax.process_index() == 0
        if self._writes:
            before = read(run_dir)
            self._text = _whole_lines(self._path)
            self._earlier = account([*before, self._line(step)])
            self.record(step)

    def seconds_of(self, kind: str) -> float:
        """What this process has spent on a kind until it last turned to another."""
        return self._seconds[kind]

    def started(self) -> None:
        """Says that the first step is done."""
        self._switch(PRODUCTIVE)

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Within it the time goes to `kind`, unless the process is still starting."""
        outer = self._kind
        if outer != "startup":
            self._switch(kind)
        try:
            yield
        finally:
            if outer != "startup":
                self._switch(outer)

    def record(self, step: int) -> dict[str, float]:
        """Appends what was spent until now, at `step`; returns the whole run's fields for the log."""
        if not self._writes:
            return {}
        self._switch(self._kind)
        self._append(json.dumps(self._line(step) | self._seconds) + "\n")
        totals = {kind: seconds + self._seconds.get(kind, 0.0) for kind, seconds in self._earlier.items()}
        return {"goodput": share(totals), **{f"goodput/{kind}_seconds": seconds for kind, seconds in totals.items()}}

    def keep(self) -> None:
        """Writes what a bucket does not have yet."""
        if self._writes and is_remote(self._path):
            write_whole(self._path, self._text.encode())

    def _append(self, line: str) -> None:
        self._text += line
        if not is_remote(self._path):
            with open(self._path, "a") as file:
                file.write(line)

    def _line(self, step: int) -> dict[str, float]:
        """Of the moment at which nothing has been spent yet, since this process began."""
        return {"began": self._began, "time": self._since, "step": step, **dict.fromkeys(KINDS, 0.0)}

    def _switch(self, kind: str) -> None:
        now = time.time()
        self._seconds[self._kind] += max(now - self._since, 0.0)
        self._kind, self._since = kind, now


def read(run_dir: str) -> list[Line]:
    """The lines of a run folder that tell something: of each process the last at each step, in order.

    None where there is no file; a line that a kill cut short is left out.
    """
    path = epath.Path(run_dir) / FILE
    if not path.exists():
        return []
    lines: dict[tuple[float, int], Line] = {}
    for text in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            lines[line["began"], line["step"]] = line
    return list(lines.values())


def _whole_lines(path: epath.Path) -> str:
    """What the file holds; what a kill cut short in it is set apart from what comes next."""
    text = path.read_text() if path.exists() else ""
    if not text or text.endswith("\n"):
        return text
    write_whole(path, f"{text}\n".encode())
    return f"{text}\n"


def account(lines: Sequence[Line]) -> dict[str, float]:
    """Seconds of each kind, "lost" and "gap" among them, since the first process began; they add up to all of it.

    What a process did after the step that a later one went on from is lost, whatever it was.
    """
    totals = dict.fromkeys([*KINDS, "lost", "gap"], 0.0)
    processes: dict[float, list[Line]] = {}
    for line in lines:
        processes.setdefault(line["began"], []).append(line)
    going_on, following = math.inf, None  # the first step that was done again, and the process that began there
    for own in reversed(processes.values()):
        # Its first line is always kept: nothing had been spent then.
        kept, last = [own[0], *(line for line in own if line["step"] <= going_on)][-1], own[-1]
        if following:
            totals["gap"] += max(following["began"] - last["time"], 0.0)
        for kind in KINDS:
            totals[kind] += kept[kind]
        totals["lost"] += last["time"] - kept["time"]
        going_on, following = min(going_on, own[0]["step"]), own[0]
    return totals


def share(totals: Mapping[str, float]) -> float:
    """The share of all time that went to steps that count."""
    return totals[PRODUCTIVE] / max(sum(totals.values()), 1e-9)


def describe(fields: Mapping[str, float]) -> str:
    """One line of what `Goodput.record` returned: the parts that were at least a hundredth of the time."""
    totals = {kind: fields[f"goodput/{kind}_seconds"] for kind in NAMES}
    whole = max(sum(totals.values()), 1e-9)
    rest = sorted(((seconds / whole, name) for name, seconds in totals.items() if name != PRODUCTIVE), reverse=True)
    parts = ", ".join(f"{NAMES[name]} {part:.0%}" for part, name in rest if part >= 0.01)
    return f"goodput: {fields['goodput']:.0%} of {duration(whole)} went to steps that count{parts and '; '}{parts}"
