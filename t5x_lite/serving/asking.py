"""From a checked request to its result: the queue, the deadline, the client that may leave, errors as problems."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import Request

from t5x_lite.errors import FieldError, UserError
from t5x_lite.serving.batcher import Batcher, Closed, DeadlinePassed, Program, QueueFull
from t5x_lite.serving.metrics import Metrics
from t5x_lite.serving.problems import Problem, of_field
from t5x_lite.serving.settings import MOST_REQUESTS, Settings
from t5x_lite.serving.versions import Versions

T = TypeVar("T")


class ClientLeft(Exception):
    """Nobody waits for the answer."""


@dataclasses.dataclass(frozen=True)
class Server:
    """What the routes share."""

    settings: Settings
    versions: Versions
    batcher: Batcher
    metrics: Metrics

    @property
    def most_requests(self) -> int:
        """In one body: no more than the queue has room for."""
        return min(MOST_REQUESTS, self.settings.max_queue)

    def deadline(self, milliseconds: int | None) -> float:
        """A time of `time.monotonic`: the client's, and never later than the server's own."""
        limit = self.settings.timeout
        return time.monotonic() + (limit if milliseconds is None else min(milliseconds / 1000, limit))

    async def run(self, route: str, program: Program, payload: Any, deadline: float, *, admitted: bool = False):
        """(value, timing in milliseconds) of one payload. Raises Problem."""
        try:
            ran = await self.batcher.submit(program, payload, deadline, admitted=admitted)
        except QueueFull as full:
            self.metrics.rejected.labels("queue_full").inc()
            raise Problem(429, "the queue is full", retry_after=full.retry_after) from None
        except DeadlinePassed:
            self.metrics.rejected.labels("deadline").inc()
            raise Problem(504, "the deadline passed before there was an answer; give more time, or try later") from None
        except Closed:
            raise Problem(503, "the server is being stopped", retry_after=1) from None
        except FieldError as error:
            raise of_field(error.field, str(error)) from None
        except UserError as error:
            raise Problem(422, str(error)) from None
        stages = {"queue": ran.queued, "encode": ran.value.encode, "decode": ran.value.decode}
        for stage, seconds in stages.items():
            self.metrics.stages.labels(route, stage).observe(seconds)
        return ran.value.value, {stage: round(1000 * seconds, 3) for stage, seconds in stages.items()}


async def while_there(request: Request, answer: Awaitable[T]) -> T:
    """The answer; what computes it is cancelled where the client leaves first, and ClientLeft raised."""
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise ClientLeft
    finally:
        answering.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
