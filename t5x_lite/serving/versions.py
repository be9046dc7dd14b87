"""Which version is served, and how another takes its place: prepared beside it, swapped as one."""

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from t5x_lite.errors import UserError
from t5x_lite.serving.metrics import Metrics
from t5x_lite.serving.problems import Problem
from t5x_lite.serving.served import Served, signature
from t5x_lite.serving.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")


class Versions:
    """The version that is served, None before the first is ready.

    A request keeps the one that it began with. One is prepared at a time, in a thread of its own.
    """

    def __init__(self, settings: Settings, metrics: Metrics, current: Served | None = None):
        self._settings = settings
        self._metrics = metrics
        self._preparing = asyncio.Lock()
        self._signature: tuple | None = None
        self.draining = False
        self.current: Served | None = None
        if current:
            self._take(current)

    @property
    def ready(self) -> bool:
        return self.current is not None and not self.draining

    def served(self) -> Served:
        """Problem 503 before the first version is ready."""
        if self.current is None:
            raise Problem(503, "the model is being loaded and compiled", retry_after=5)
        return self.current

    async def load(self) -> bool:
        """Prepares what the folder holds now, and serves it; whether that is another version than before.

        Raises UserError where it is refused; then what was served stays.
        """
        async with self._preparing:
            try:
                self._signature = await asyncio.to_thread(signature, self._settings)
                found = await _in_a_thread_of_its_own(self._prepare)
            except Exception as error:
                self._metrics.reloads.labels("refused").inc()
                if isinstance(error, UserError):
                    if self.current:  # else the process ends with this line
                        log.warning("refused, %s stays: %s", self.current.model_version, error)
                    raise
                log.exception("%s cannot be loaded", self._settings.model_dir)
                raise UserError(f"{self._settings.model_dir!r} cannot be loaded ({type(error).__name__})") from error
            if self.current and _names(found) == _names(self.current):
                return False
            self._take(found)
            self._metrics.reloads.labels("served").inc()
            return True

    async def watch(self) -> None:
        """Loads what changes in the folder, for ever. What is refused is tried again when it changes again."""
        while True:
            await asyncio.sleep(self._settings.watch)
            try:
                if await asyncio.to_thread(signature, self._settings) != self._signature:
                    await self.load()
            except (UserError, OSError) as error:
                log.warning("%s is looked at again in %g s: %s", self._settings.model_dir, self._settings.watch, error)

    def _prepare(self) -> Served:
        found = Served.prepare(self._settings, self.current)
        # What lives as long as the server is looked through no more: that took a third of a second now and then.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return found

    def _take(self, served: Served) -> None:
        self.current = served
        self._metrics.version.clear()
        self._metrics.version.labels(*_names(served)).set(1)


async def _in_a_thread_of_its_own(function: Callable[[], T]) -> T:
    """As asyncio.to_thread, but that a process which ends does not wait for it: compiling takes long."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="prepare", daemon=True).start()
    return await future


def _names(served: Served) -> tuple[str, str]:
    return served.model_version, served.catalogue_version
