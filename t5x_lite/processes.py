"""What the processes of one job owe one another: to agree, to notice that one is gone, and to leave."""

import collections
import contextlib
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_lite.errors import LostProcess, UserError, first_words

_SECONDS_TO_LEAVE = 10.0  # for the others to leave by the same error
_SECONDS_TO_SPEAK = 2.0  # the others' connection to process 0 ends with it, and JAX ends them when it does
_VOTES_AHEAD = 2  # steps that may be on their way to the devices when the answer is asked for

# What the end of another process raises: JAX's collectives on CPU and GPU and its coordination, Orbax's barriers.
_OF_LOSS = (jax.errors.JaxRuntimeError, TimeoutError)
_SIGNS_OF_LOSS = ("gloo", "nccl", "connection", "socket", "heartbeat", "barrier", "unavailable", "coordination")

# A process that ends in good order tells its listener an empty line, one that is ended tells it nothing.
_LISTENER = "import sys\nif words := (sys.stdin.read() or sys.argv[1]).strip():\n    print(words, file=sys.stderr)"


def is_main() -> bool:
    """Whether this is the one process that prints and writes what is not an array."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints what all processes know, once."""
    if is_main():
        print(text, flush=True)


def agree(what: str, advice: str) -> None:
    """Returns when every process has come here. Raises UserError, with the advice, unless all say the same."""
    if jax.process_count() == 1:
        return
    said = multihost_utils.process_allgather(np.uint32(zlib.crc32(what.encode())))
    if len(set(said.tolist())) > 1:
        raise UserError(f"the processes do not agree ({what}, says process {jax.process_index()}); {advice}")


class Vote:
    """Whether any process wants to stop: all get the same answer at the same step.

    Every process calls it once a step. The wishes travel as a tiny program of the devices, behind those of the steps,
    and are read two steps late, so that nothing waits for them: JAX's own way (`reached_preemption_sync_point`) needs
    its signal handler in place of ours, which would take the second SIGTERM's meaning away.
    """

    def __init__(self):
        self._asked: collections.deque[jax.Array] = collections.deque()
        if jax.process_count() > 1:
            self._mesh = Mesh(np.array(jax.devices()), ("all",))
            self._sharding = NamedSharding(self._mesh, PartitionSpec("all"))
            self._any = jax.jit(jnp.any, out_shardings=NamedSharding(self._mesh, PartitionSpec()))

    def __call__(self, wish: bool) -> bool:
        if jax.process_count() == 1:
            return wish
        wishes = np.full(jax.local_device_count(), wish)
        # The steps' mesh may have the devices in another order (a TPU's does), and JAX lets no program mix the two.
        with jax.set_mesh(self._mesh):
            self._asked.append(self._any(jax.make_array_from_process_local_data(self._sharding, wishes)))
        return len(self._asked) > _VOTES_AHEAD and bool(self._asked.popleft())


def is_loss(error: BaseException) -> bool:
    """Whether an error is what the end of another process raises in this one."""
    signs = any(sign in str(error).lower() for sign in _SIGNS_OF_LOSS)
    return jax.process_count() > 1 and isinstance(error, _OF_LOSS) and signs


@contextlib.contextmanager
def together(go_on: str) -> Iterator[None]:
    """Within it, this process says one line when it cannot go on because another ended; `go_on` says what to do then.

    Collectives on CPU fail and barriers run out, which becomes LostProcess. Collectives on TPU hang, and JAX ends this
    process, without asking Python, when the other has given no sign of life for a while. It may do so at any moment
    after the first error, too. So a small process of ours says the line, when it is told to or when this one ends.
    """
    if jax.process_count() == 1:
        yield
        return
    me = f"process {jax.process_index()} of {jax.process_count()}"
    words = f"{me} was ended in mid-run: killed, or by JAX because another process is gone (see its output); {go_on}"
    with last_words(words) as say_instead:
        try:
            yield
        except _OF_LOSS as error:
            if not is_loss(error):
                raise
            say_instead(f"{me} stops: another process is gone ({first_words(error)}); {go_on}")
            raise LostProcess from error


@contextlib.contextmanager
def last_words(words: str) -> Iterator[Callable[[str], object]]:
    """Has `words` said on standard error if this process ends within, even if it is killed.

    Gives a function that has others said, at once.
    """
    listener = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LISTENER, words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C and a scheduler's SIGTERM are not for it
        text=True,
    )

    def say(others: str) -> None:
        listener.communicate(others)

    try:
        yield say
    finally:
        if listener.poll() is None:
            listener.communicate("\n")


def leave(status: int) -> None:
    """Ends a process that failed, where there are others; returns where there are none.

    JAX's own way out waits minutes for the others, and those may be waiting for this one. Where they leave by the same
    error, all meet within seconds; else this one goes alone, and the others notice.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(sys.exception(), LostProcess):
        time.sleep(_SECONDS_TO_SPEAK if is_main() else 0.0)
    else:
        goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        goodbye.start()
        goodbye.join(_SECONDS_TO_LEAVE)
    os._exit(status)
