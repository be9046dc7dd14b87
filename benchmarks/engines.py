"""Peers of one benchmark: a process each on the same cores, that take turns, so that a change of the machine's speed
meets all of them."""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


class Engine:
    """A process of `make(*arguments)`, which returns what is timed: a function of the case."""

    def __init__(self, make: Callable, *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, arguments, theirs), daemon=True)
        self._process.start()

    def seconds(self, *case: Any) -> float:
        self._pipe.send(case)
        return self._pipe.recv()[0]

    def peak_bytes(self) -> int:
        """The most memory that the process ever had."""
        with open(f"/proc/{self._process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(make: Callable, arguments: Sequence[Any], pipe) -> None:
    run = make(*arguments)
    with contextlib.suppress(EOFError):  # the benchmark itself has ended, by another engine's error
        while (case := pipe.recv()) is not None:
            began = time.perf_counter()
            run(*case)
            pipe.send((time.perf_counter() - began,))


def in_turns(engines: dict[str, Engine], rounds: int, *case: Any) -> dict[str, list[float]]:
    """Seconds of each engine in each of the rounds, after one that compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, engine in engines.items():
            took = engine.seconds(*case)
            if number:
                seconds[name].append(took)
    return seconds


def table_cells(seconds: dict[str, list[float]]) -> list[str]:
    """Medians, the least in brackets, and how many times as long as the first engine's."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    return [f"{medians[name]:.3f} ({min(seconds[name]):.3f}) {medians[name] / first:5.2f}x" for name in seconds]


def in_process(function: Callable, *arguments: Any) -> None:
    """Runs it in a process of its own. Raises SystemExit with its status where that is not 0."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)
