"""How this process's memory is allocated: what training on a CPU frees is kept for its next step."""

import ctypes
import os
import sys
from pathlib import Path

# mallopt(3) of glibc
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_DEVICES = Path("/dev")
_ACCELERATORS = ("nvidia0", "kfd", "accel0", "vfio/0")  # NVIDIA's and AMD's GPUs, TPUs


def keep_freed_memory() -> None:
    """Where JAX will run on CPU, with glibc: what is freed is not given back to the system.

    XLA asks for all temporaries of a step at once and frees them after it. glibc gets such blocks from the system and
    returns them, so that each step begins with a page fault for every 4 KiB of them: a sixth to a quarter of a step's
    CPU time. One arena, since the others cannot hold blocks of that size. Settings in the environment (MALLOC_ARENA_MAX
    and so on, GLIBC_TUNABLES) go before. To be called before threads are started, so before JAX's first device.
    """
    if not sys.platform.startswith("linux") or not _will_run_on_cpu():
        return
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for setting, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            mallopt(setting, value)


def _will_run_on_cpu() -> bool:
    """Without asking JAX, which would start its threads."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any((_DEVICES / name).exists() for name in _ACCELERATORS)
