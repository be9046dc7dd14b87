"""The kinds of devices that are known: what their makers say of them, and what a CPU is measured at."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Kind:
    """One device as its maker describes it; rates a second, bfloat16 dense.

    `link` is what one device sends over one link in one direction: an ICI link of a TPU, all of NVLink of a GPU. A
    TPU's torus closes in a dimension that has a multiple of `wraps` chips. `network` is a device's share of what its
    host sends to other slices or hosts.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float
    link: float
    network: float
    dimensions: int = 1
    wraps: int = 1


_GIB = 2**30

# TPUs: cloud.google.com/tpu/docs and jax-ml.github.io/scaling-book/tpus; memory as the compiler leaves it to a program,
# a part of the 16, 32 and 96 GB being its own. GPUs: NVIDIA's data sheets of the SXM boards, NVLink one way, a network
# card of 400 Gb/s each (A100: 200).
KINDS = {
    kind.name: kind
    for kind in (
        Kind("v4", 275e12, int(30.75 * _GIB), 1.2e12, 4.5e10, 3.1e9, 3, 4),
        Kind("v5e", 197e12, int(15.75 * _GIB), 8.1e11, 4.5e10, 3.1e9, 2, 16),
        Kind("v5p", 459e12, int(95.74 * _GIB), 2.8e12, 9e10, 6.25e9, 3, 4),
        Kind("v6e", 918e12, int(31.25 * _GIB), 1.6e12, 9e10, 1.25e10, 2, 16),
        Kind("a100", 312e12, 80 * 10**9, 2.0e12, 3e11, 2.5e10),
        Kind("h100", 989e12, 80 * 10**9, 3.35e12, 4.5e11, 5e10),
        Kind("h200", 989e12, 141 * 10**9, 4.8e12, 4.5e11, 5e10),
        Kind("b200", 2250e12, 180 * 10**9, 8.0e12, 9e11, 5e10),
    )
}

# What the drivers call them.
_BEGINS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}


@dataclasses.dataclass(frozen=True)
class Peak:
    """Floating-point operations a second of all devices together, and where that number is from."""

    flops: float
    source: str

    def __str__(self) -> str:
        return f"{self.flops / 1e12:,.4g} TFLOP/s, {self.source}"


def kind_of(device_kind: str) -> Kind | None:
    """The kind that a driver's name begins with; None for others."""
    name = next((name for begin, name in _BEGINS.items() if device_kind.startswith(begin)), None)
    return KINDS[name] if name else None


def peak(mesh_devices: Iterable[jax.Device]) -> Peak | None:
    """What the devices of a mesh could do at most, as MFU is counted: dense bfloat16 of accelerators by their data
    sheets; float32 of a CPU by a matrix product that is timed here, in about a second. None where neither is known.
    """
    devices = list(mesh_devices)
    if devices[0].platform == "cpu":  # its virtual devices share its cores
        processes = len({device.process_index for device in devices})
        source = f"float32 matrix products measured here{_of_each(processes, 'process')}"
        return Peak(_sgemm_flops() * processes, source)
    kind = kind_of(devices[0].device_kind)
    if kind is None:
        return None
    return Peak(kind.flops * len(devices), f"bfloat16 by its data sheet{_of_each(len(devices), 'device')}")


def memory() -> dict[str, int]:
    """Bytes in use now, and the most so far, on the fullest device of this process; of a CPU, this process's own.

    Empty where the system does not tell.
    """
    if jax.local_devices()[0].platform == "cpu":
        status = Path("/proc/self/status")
        lines = (line.split() for line in status.read_text().splitlines()) if status.exists() else ()
        found = {line[0]: int(line[1]) * 1024 for line in lines if line[0] in ("VmRSS:", "VmHWM:")}
        return {"memory/bytes": found["VmRSS:"], "memory/peak_bytes": found["VmHWM:"]} if found else {}
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"memory/bytes": "bytes_in_use", "memory/peak_bytes": "peak_bytes_in_use"}
    return {name: max(stats[key] for stats in told) for name, key in names.items()} if told else {}


def _of_each(count: int, unit: str) -> str:
    return f", {count} times one {unit}" if count > 1 else ""


def _sgemm_flops(size: int = 2048, rounds: int = 5) -> float:
    """The best of several products of square matrices; one device of a CPU has all of its cores."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.dot)
    best = float("inf")
    for _ in range(rounds + 1):  # the first one compiles
        began = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
