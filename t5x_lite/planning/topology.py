"""The devices that a plan is made for, by name: a TPU slice (`v5p:4x4x4`), GPUs (`h100:8`), CPU devices (`cpu:8`)."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from t5x_lite.devices import KINDS, Kind
from t5x_lite.doors import first_line
from t5x_lite.errors import UserError, nearest

# libtpu would ask the network which TPU it is on, let no second process load it, and complain on the terminal.
_ONLY_COMPILE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_EXAMPLES = "v5p:4x4x4, v5e:16x16, 2*v5e:16x16 (two slices), h100:8, cpu:8"
_GPUS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """`shape` is a slice's; `kind` is None for CPU devices, of which no peak is known beforehand."""

    name: str
    shape: tuple[int, ...]
    slices: int
    kind: Kind | None

    @property
    def size(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        return self.kind is not None and self.kind.dimensions > 1

    @property
    def compiles(self) -> bool:
        """Whether XLA compiles for it here; for GPUs it does only where one is."""
        return self.kind is None or self.is_tpu

    def axis_rate(self, extent: int) -> float:
        """Bytes a second of one device along one dimension of the torus: both ways where that is a ring."""
        return self.kind.link * (2 if extent % self.kind.wraps == 0 else 1)

    def rate(self, members: Sequence[int]) -> float:
        """Bytes a second that each of a group of devices sends to the others, by their numbers.

        At the network's rate where they are of several slices, or hosts of GPUs; in a slice as if the group were laid
        out as compactly as it goes.
        """
        joined = math.prod(self.shape) if self.is_tpu else _GPUS_A_HOST
        if len({member // joined for member in members}) > 1:
            return self.kind.network
        if not self.is_tpu:
            return self.kind.link
        rate, left = 0.0, len(members)
        for extent in sorted(self.shape):
            if left > 1 and extent > 1:
                rate += self.axis_rate(min(extent, left))
                left = -(-left // extent)
        return rate

    def devices(self) -> list[Any]:
        """JAX's devices: of a TPU's topology without a TPU, or virtual ones.

        Raises UserError where libtpu is not installed, or knows no such slice.
        """
        import jax
        from jax.experimental import topologies

        if self.kind is None:
            return jax.devices()[: self.size]
        os.environ.update(_ONLY_COMPILE)
        slices = {"num_slices": self.slices} if self.slices > 1 else {}
        try:
            one = f"{self.kind.name}:{'x'.join(map(str, self.shape))}"
            return topologies.get_topology_desc(one, platform="tpu", **slices).devices
        except Exception as error:  # libtpu's own kinds
            raise UserError(
                f"--topology {self.name!r}: the compiler knows no such slice ({first_line(error)[:200]})"
            ) from None


def parse(text: str) -> Topology:
    """Reads a name like those above. Raises UserError for what is none, and where libtpu is missing."""
    match = re.fullmatch(r"(?:(\d+)\*)?([a-z0-9]+):(\d+(?:x\d+)*)", text.lower())
    if not match:
        raise UserError(f"--topology {text!r} is no topology; write one like {_EXAMPLES}")
    slices, name, shape = int(match[1] or 1), match[2], tuple(map(int, match[3].split("x")))
    if name != "cpu" and name not in KINDS:
        raise UserError(
            f"--topology {text!r}: no device {name!r}{nearest(name, [*KINDS, 'cpu'])}; write one like {_EXAMPLES}"
        )
    kind = KINDS.get(name)
    if min(*shape, slices) < 1:
        raise UserError(f"--topology {text!r}: every number must be at least 1")
    if kind is None or kind.dimensions == 1:
        if len(shape) != 1 or slices != 1:
            raise UserError(f"--topology {text!r}: {name} takes a number of devices, like {name}:8")
    elif len(shape) != kind.dimensions:
        chips = math.prod(shape)
        sides = " x ".join("?" * kind.dimensions)
        raise UserError(f"--topology {text!r}: a slice of {name} is {sides} chips, like {_like(kind, chips)}")
    elif importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {text!r} is compiled by libtpu, which is not installed: pip install 't5x_lite[tpu]'"
        )
    return Topology(text.lower(), shape, slices, kind)


def slice_shape(kind: Kind, chips: int) -> str:
    """The slice of so many chips, as cubic as it goes: v5p and 64 give 4x4x4."""
    sides = [1] * kind.dimensions
    left = chips
    while left > 1:
        sides[sides.index(min(sides))] *= 2
        left //= 2
    return "x".join(map(str, sorted(sides)))


def _like(kind: Kind, chips: int) -> str:
    return f"{kind.name}:{slice_shape(kind, 2 ** max(chips - 1, 1).bit_length())}"
