"""A trace of a few training steps, for XProf or Perfetto, and what it says at once: the operations that cost most."""

import collections
import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.profiler import ProfileData

from t5x_lite.errors import UserError

FOLDER = "profile"
_MOST = 10
_INSTRUCTION = re.compile(r'^ *(?:ROOT )?%(\S+) = .*?(?: (while|conditional|call)\(.*)?(?:op_name="([^"]*)".*)?$', re.M)


class Cost(NamedTuple):
    """Of one operation of a compiled program: its milliseconds a step, all threads and devices added up, its share of
    those of all operations, and where in the model it is from."""

    operation: str
    milliseconds: float
    share: float
    source: str


def parse_steps(text: str | None) -> range | None:
    """`10:13`, the steps after the 10th and up to the 13th, as range(10, 13). Raises UserError for what is none."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--profile {text!r} is no range of steps; write 10:13 for the three steps after the 10th")
    return range(int(match[1]), int(match[2]))


class Profiler:
    """Traces the steps `between` into the run folder, and `say`s what cost most; with None, nothing.

    The trace is written to a disk of this machine first: its writer knows no buckets.
    """

    def __init__(self, run_dir: str, between: range | None, say: Callable[[str], None]):
        self._to = epath.Path(run_dir) / FOLDER
        self._between = between
        self._say = say
        self._program = ""
        self._began = 0
        self._local: tempfile.TemporaryDirectory | None = None

    def before(self, step: int, train_step: Callable, arguments: tuple[Any, ...]) -> None:
        """Told before each step how many are done, and what the next one is called with."""
        if self._between is None or self._local or step not in self._between:
            return
        # Compiled already, unless this is the first step, whose compilation is then no part of the trace.
        self._program = train_step.lower(*arguments).compile().as_text()
        jax.block_until_ready(arguments)
        self._began, self._local = step, tempfile.TemporaryDirectory()
        jax.profiler.start_trace(self._local.name)

    def after(self, step: int, arrays: Any) -> None:
        """Told after each step how many have been sent to the devices, and what the last one makes."""
        if self._local and step >= self._between.stop:
            self.finish(step, arrays)

    def finish(self, step: int, arrays: Any) -> None:
        """Ends the trace, where one is being made, with the step that makes `arrays`."""
        if self._local:
            jax.block_until_ready(arrays)
            with self._stopped() as folder:
                for path in (path for path in Path(folder).rglob("*") if path.is_file()):
                    copy = self._to / path.relative_to(folder).as_posix()
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())
                self._say(describe(costs(folder, self._program, step - self._began), range(self._began, step)))
            self._say(f"trace: {self._to}, for `xprof --logdir` or, of its trace.json.gz, https://ui.perfetto.dev")
        elif self._between is not None:
            first, last = self._between.start + 1, self._between.stop
            self._say(f"--profile: nothing was traced, since none of the steps {first} to {last} was run")
        self._between = None

    def _stopped(self) -> tempfile.TemporaryDirectory:
        jax.profiler.stop_trace()
        local, self._local = self._local, None
        return local

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Whatever ends the run ends the trace."""
        try:
            yield
        finally:
            if self._local:
                self._stopped().cleanup()


def costs(folder: str, program: str, steps: int) -> list[Cost]:
    """The costliest operations of the trace in `folder`, of so many steps; `program` is the compiled text."""
    (path,) = Path(folder).rglob("*.xplane.pb")
    module = program.partition(",")[0].removeprefix("HloModule ")
    instructions = {name: (calls, source) for name, calls, source in _INSTRUCTION.findall(program)}
    spent: collections.Counter[str] = collections.Counter()
    for operation, nanoseconds in _operations(ProfileData.from_file(str(path)), module):
        calls, _ = instructions.get(operation, ("", ""))
        if not calls:  # it lasts as long as what it calls, which is there itself
            spent[operation] += nanoseconds
    total = sum(spent.values())
    return [
        Cost(name, nanoseconds / 1e6 / steps, nanoseconds / total, _where(instructions.get(name, ("", ""))[1]))
        for name, nanoseconds in spent.most_common(_MOST)
    ]


def _operations(trace: ProfileData, module: str) -> Iterator[tuple[str, float]]:
    """Every run of an operation of the compiled program of that name, and the nanoseconds that it took."""
    for plane in trace.planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module", module) != module:
                    continue
                operation = stats.get("hlo_op")
                if line.name == "XLA Ops":  # a TPU's, named by the whole instruction
                    operation = event.name.partition(" = ")[0].lstrip("%")
                if operation:
                    yield operation, event.duration_ns


def _where(op_name: str) -> str:
    """`jit(step)/transpose(jvp(encoder))/mlp/dot_general` as `backward encoder/mlp/dot_general`."""
    inside = op_name.partition("/")[2]
    names = re.sub(r"\b(?:jvp|transpose|jit|checkpoint|rematted_computation|while|body|closed_call)\b|[()]", "", inside)
    way = "backward " if "transpose(" in inside else ""
    return way + "/".join(filter(None, names.split("/")))


def describe(found: list[Cost], steps: range) -> str:
    width = max((len(cost.operation) for cost in found), default=0)
    return "\n".join(
        [
            f"steps {steps.start + 1} to {steps.stop}: the operations that cost most, all threads and devices added up",
            *(
                f"{cost.share:6.1%} {cost.milliseconds:10,.2f} ms a step  {cost.operation:{width}}  {cost.source}"
                for cost in found
            ),
        ]
    )
