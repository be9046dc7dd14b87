"""What is planned: a training run's model, layout and batch on some devices."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from t5x_lite.errors import UserError
from t5x_lite.model import T5Config
from t5x_lite.partitioning import MESH_AXES, VOCAB_MULTIPLE, Partitioner
from t5x_lite.planning.topology import Topology
from t5x_lite.training.trainable import ADAPTERS_ONLY, Rules

ROWS_A_DEVICE = 16


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """As gin binds it (configurable `plan`); gin/plan.gin says what each macro means."""

    model: T5Config
    partitioner: Callable
    optimizer: optax.GradientTransformation
    task_feature_lengths: Mapping[str, int]
    batch_size: int | None = None
    microbatches: int = 1
    trainable: list | None = None
    vocabulary_size: int = 32128


@dataclasses.dataclass(frozen=True)
class Request:
    """One training step to be planned; `mesh` has a size for each of MESH_AXES."""

    config: PlanConfig
    topology: Topology
    model: T5Config
    mesh: tuple[int, int, int]
    batch_size: int
    microbatches: int

    @property
    def inputs(self) -> int:
        return self.config.task_feature_lengths["inputs"]

    @property
    def targets(self) -> int:
        return self.config.task_feature_lengths["targets"]

    @property
    def trainable(self) -> Rules:
        return tuple(map(tuple, self.config.trainable or ())) or (ADAPTERS_ONLY if self.model.lora else ())

    @property
    def rows(self) -> int:
        """Of one microbatch on one device."""
        data, fsdp, _ = self.mesh
        return self.batch_size // self.microbatches // (data * fsdp)

    def partitioner(self, devices: list[Any]) -> Partitioner:
        return self.config.partitioner(mesh_shape=dict(zip(MESH_AXES, self.mesh, strict=True)), devices=devices)

    def gin(self) -> str:
        """The settings as lines of a run's gin file."""
        rules = list(self.config.partitioner(mesh_shape={"data": 1}, devices=jax.devices("cpu")[:1]).rules)
        sizes = ", ".join(f'"{axis}": {size}' for axis, size in zip(MESH_AXES, self.mesh, strict=True))
        return "\n".join(
            [
                f"Partitioner.mesh_shape = {{{sizes}}}",
                f"Partitioner.rules = {rules}",
                f'T5Config.dtype = "{self.model.dtype}"',
                f"T5Config.scan_layers = {self.model.scan_layers}",
                f'T5Config.remat = "{self.model.remat}"',
                f"BATCH_SIZE = {self.batch_size}",
                f"MICROBATCHES = {self.microbatches}",
            ]
        )


def make_request(
    config: PlanConfig,
    topology: Topology,
    *,
    mesh_shape: Mapping[str, int] | None,
    batch: int | None = None,
    remat: str | None = None,
    microbatches: int | None = None,
) -> Request:
    """What the command line asks for, the gin files' settings where it does not say; without a mesh, for a search.

    Raises UserError for a mesh that the devices do not fill, and for a batch that is none or does not divide over it.
    """
    model = dataclasses.replace(
        config.model,
        vocab_size=config.model.vocab_size or config.vocabulary_size,
        vocab_multiple=VOCAB_MULTIPLE,
        remat=remat or config.model.remat,
    )
    mesh = _filled({"fsdp": -1} if mesh_shape is None else mesh_shape, topology)
    shards = mesh[0] * mesh[1]
    microbatches = config.microbatches if microbatches is None else microbatches
    batch = config.batch_size if batch is None else batch
    batch = ROWS_A_DEVICE * topology.size if batch is None else batch
    for name, number in (("--batch (BATCH_SIZE)", batch), ("--microbatches (MICROBATCHES)", microbatches)):
        if number < 1:
            raise UserError(f"{name} is {number}; it must be 1 or more")
    if mesh_shape is not None and batch % (shards * microbatches):
        whole = shards * microbatches
        near = max(whole, round(batch / whole) * whole)
        raise UserError(
            f"--batch {batch} does not divide over {shards} data shards in {microbatches} microbatch(es); take {near}"
        )
    return Request(config, topology, model, mesh, batch, microbatches)


def parse_mesh(text: str) -> dict[str, int]:
    """Reads `data=1,fsdp=-1,model=4`. Raises UserError."""
    shape = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name.strip() not in MESH_AXES or not re.fullmatch(r"-1|[1-9]\d*", size.strip()):
            raise UserError(f"--mesh {text!r}: write it like data=1,fsdp=-1,model=4 (-1: what is left)")
        shape[name.strip()] = int(size)
    return shape


def _filled(shape: Mapping[str, int], topology: Topology) -> tuple[int, int, int]:
    sizes = [shape.get(name, 1) for name in MESH_AXES]
    if topology.slices > 1 and sizes[0] == 1:
        sizes[0] = topology.slices  # nothing else may cross slices
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and known > 0 and topology.size % known == 0:
        sizes[sizes.index(-1)] = topology.size // known
    if math.prod(sizes) != topology.size or min(sizes) < 1 or sizes[0] % topology.slices:
        across = f", and data a multiple of {topology.slices}: nothing else crosses slices"
        raise UserError(
            f"the mesh {dict(shape)} does not fit the {topology.size} devices of {topology.name}; give --mesh with "
            f"axes that multiply to {topology.size}, or one of them -1{across if topology.slices > 1 else ''}"
        )
    return tuple(sizes)
