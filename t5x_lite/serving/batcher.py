"""Between HTTP and the device: a bounded queue, and one thread that takes batches from it.

The event loop only puts jobs in and waits for their futures; the thread alone computes.
"""

import asyncio
import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger(__name__)

# What computes a batch: one result for each payload, in their order; an Exception in a place is that payload's.
Program = Callable[[Sequence[Any]], Sequence[Any]]


class QueueFull(Exception):
    """No place is left; `retry_after` seconds from now there should be."""

    def __init__(self, retry_after: float):
        super().__init__(f"the queue is full; try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class DeadlinePassed(Exception):
    """The time that a request had is over."""


class Closed(Exception):
    """The server ends."""


@dataclasses.dataclass(frozen=True)
class Ran:
    """A result, and the seconds that its payload had waited for its batch to begin."""

    value: Any
    queued: float


@dataclasses.dataclass(eq=False)
class _Job:
    program: Program
    payload: Any
    arrived: float
    deadline: float
    future: asyncio.Future
    loop: asyncio.AbstractEventLoop

    def settle(self, result: Any) -> None:
        """Gives the future its result, from the thread; a loop that is closed wants none."""

        def settle() -> None:
            if self.future.done():
                return
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

        try:
            self.loop.call_soon_threadsafe(settle)
        except RuntimeError:
            log.info("a result came after the server had ended")


class Batcher:
    """Runs the payloads of equal programs together, the oldest first.

    A program is a hashable callable; `max_batch` payloads of one at most run at once, and none waits longer than
    `max_wait` seconds for others while the thread is idle. At most `max_queue` wait. Who stops waiting (a cancelled
    future) or whose deadline is over is dropped before its batch begins.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe_batch: Callable[[int], None] = lambda size: None,
    ):
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._observe_batch = observe_batch
        self._jobs: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds_a_job = 0.01  # a moving mean, for Retry-After
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        return len(self._jobs)

    @property
    def full(self) -> bool:
        return len(self._jobs) >= self._max_queue

    @property
    def retry_after(self) -> float:
        """Seconds after which the queue should be empty."""
        return max(1.0, len(self._jobs) * self._seconds_a_job)

    async def submit(self, program: Program, payload: Any, deadline: float, *, admitted: bool = False) -> Ran:
        """The payload's result; `deadline` is a time of `time.monotonic`.

        What was `admitted` before, and goes on, is not refused for a full queue.

        Raises QueueFull, DeadlinePassed, Closed, or what the program gave for this payload.
        """
        loop = asyncio.get_running_loop()
        job = _Job(program, payload, time.monotonic(), deadline, loop.create_future(), loop)
        with self._changed:
            if self._closed:
                raise Closed
            if self.full and not admitted:
                raise QueueFull(self.retry_after)
            self._jobs.append(job)
            self._changed.notify()
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                return await job.future
        except TimeoutError:
            raise DeadlinePassed from None
        finally:
            with self._changed:  # who waits no longer takes no place in the queue
                if job in self._jobs:
                    self._jobs.remove(job)

    def close(self) -> None:
        """Ends the thread after what is queued; new jobs are refused at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._run(batch)
            except Exception as error:  # the only thread: without it every request would wait for its deadline
                log.exception("a batch failed")
                for job in batch:
                    job.settle(error)
            del batch  # and with it the version that it ran on, which may have been replaced

    def _next_batch(self) -> list[_Job]:
        """The oldest job and those of its program; [] at the end."""
        with self._changed:
            while True:
                self._drop_dead()
                if self._jobs:
                    oldest = self._jobs[0]
                    alike = [job for job in self._jobs if job.program == oldest.program][: self._max_batch]
                    left = oldest.arrived + self._max_wait - time.monotonic()
                    if left <= 0 or len(alike) == self._max_batch or self._closed:
                        taken = set(map(id, alike))
                        self._jobs = collections.deque(job for job in self._jobs if id(job) not in taken)
                        return alike
                    self._changed.wait(left)
                elif self._closed:
                    return []
                else:
                    self._changed.wait()

    def _drop_dead(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs if job.future.done() or job.deadline < now]:
            self._jobs.remove(job)
            job.settle(DeadlinePassed())

    def _run(self, batch: list[_Job]) -> None:
        began = time.monotonic()
        self._observe_batch(len(batch))
        program = batch[0].program
        for job, result in zip(batch, self._results(program, [job.payload for job in batch]), strict=True):
            failed = isinstance(result, Exception)
            job.settle(result if failed else Ran(result, began - job.arrived))
        self._seconds_a_job += 0.1 * ((time.monotonic() - began) / len(batch) - self._seconds_a_job)

    def _results(self, program: Program, payloads: Sequence[Any]) -> Sequence[Any]:
        """The program's; where it fails, each payload runs alone, so that it fails for the one that is at fault."""
        try:
            return program(payloads)
        except Exception as error:
            if len(payloads) == 1:
                log.exception("a request failed")
                return [error]
            return [result for payload in payloads for result in self._results(program, [payload])]
