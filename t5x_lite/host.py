"""What a command sets up on its host before JAX is imported: the allocator, and where compiled programs are kept."""

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path

from t5x_lite.files import cache_folder

# mallopt(3) of glibc
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_DEVICES = Path("/dev")
_ACCELERATORS = ("nvidiactl", "dxg", "kfd", "accel0", "vfio/0")  # GPUs of NVIDIA, on Windows, of AMD; TPUs
_CPU_INFO = Path("/proc/cpuinfo")


def keep_freed_memory() -> None:
    """Where JAX will run on CPU, with glibc: what is freed is not given back to the system.

    XLA asks for all temporaries of a step at once and frees them after it. glibc gets such blocks from the system and
    returns them, so that each step begins with a page fault for every 4 KiB of them: an eighth to a quarter of its
    time. One arena, since the others cannot hold blocks of that size. Settings in the environment (MALLOC_ARENA_MAX
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


def keep_compiled_programs(*, on_accelerators: bool = False) -> None:
    """What one command compiles, the next one reads: where JAX_COMPILATION_CACHE_DIR says, else in the user's cache.

    The latter on CPU, a folder for each kind of it, where it can be made; with accelerators, whose jobs may have many
    hosts with a disk each, only if asked. To be called before JAX is imported, which reads these settings as it is.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not named:
        if not (on_accelerators or _will_run_on_cpu()):
            return
        try:
            named = str(cache_folder(f"compiled/{_kind_of_cpu()}"))
        except (OSError, RuntimeError):  # no home, or none that this user may write to
            return
        if not os.access(named, os.W_OK):
            return
    settings = {
        "JAX_COMPILATION_CACHE_DIR": named,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # Or a program could tell --profile where in the model its operations were before that was edited.
        "JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY": "true",
    }
    if "://" in named:  # XLA's own caches, beside JAX's, know no buckets
        settings["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
    if _will_run_on_cpu():
        # Of each kept program XLA says in two thousand characters that this machine lacks "prefer-no-gather", which is
        # a choice of its compiler and nothing of a machine.
        settings["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _will_run_on_cpu() -> bool:
    """Without asking JAX, which would start its threads."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any((_DEVICES / name).exists() for name in _ACCELERATORS)


def _kind_of_cpu() -> str:
    """The same for CPUs with the same instructions."""
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []
    instructions = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    instructions = instructions or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(instructions.encode()).hexdigest()[:8]}"
