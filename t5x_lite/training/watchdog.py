"""Says when a run does nothing for too long, and where every thread of this process then was."""

import datetime
import faulthandler
import os
import sys
import tempfile
import threading
import time

import jax

from t5x_lite.files import is_remote


class Watchdog:
    """Looks after a loop that calls `alive` at every step; enter it for as long as the loop runs.

    After `timeout` seconds without a call it appends the stacks of all threads to `stacks_process_N.txt` in the folder
    and says so on standard error, once for each time that nothing happens. It ends nothing: what is slow may go on, and
    where another process is gone JAX ends this one. A timeout of 0 turns it off.
    """

    def __init__(self, folder: str, timeout: float):
        folder = tempfile.gettempdir() if is_remote(folder) else folder  # it appends, and must not wait for a network
        self._path = os.path.join(folder, f"stacks_process_{jax.process_index()}.txt")
        self._timeout = timeout
        self._last = time.monotonic(), "the start"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def alive(self, doing: str) -> None:
        """Says that the loop has come to something new: what it does from now on."""
        self._last = time.monotonic(), doing

    def __enter__(self) -> "Watchdog":
        if self._timeout:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._timeout:
            self._thread.join()

    def _watch(self) -> None:
        told = None
        while not self._ended.wait(min(self._timeout / 4, 10.0)):
            since, doing = last = self._last
            if last is not told and time.monotonic() - since > self._timeout:
                told = last
                self._tell(doing)

    def _tell(self, doing: str) -> None:
        said = f"process {jax.process_index()}: nothing has happened for {self._timeout:g} s, since {doing} began"
        with open(self._path, "a") as file:
            print(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {said}", file=file, flush=True)
            faulthandler.dump_traceback(file=file, all_threads=True)
        print(
            f"WARNING {said}; the stacks of all threads are in {self._path}; still waiting (STEP_TIMEOUT)",
            file=sys.stderr,
            flush=True,
        )
