"""What is planned: a training run's model, layout and batch on some devices."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

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
        sizes = ", ".join(f'"{axis}": {size}' for axis, size in zip(MESH_AXES, self.mesh, strict=True))
        return "\n".join(
            [
                'include "meshes/fsdp_model.gin"',
                f"Partitioner.mesh_shape = {{{sizes}}}",
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
    mesh_shape: Mapping[str, int],
    batch: int | None = None,
    remat: str | None = None,
    microbatches: int | None = None,
) -> Request:
    """What the command line asks for, the gin files' settings where it does not say.

    Raises UserError for a mesh that the devices do not fill and a batch that does not divide over it.
    """
    model = dataclasses.replace(
        config.model,
        vocab_size=config.model.vocab_size or config.vocabulary_size,
        vocab_multiple=VOCAB_MULTIPLE,
        remat=remat or config.model.remat,
    )
    mesh = _filled(mesh_shape, topology)
    shards = mesh[0] * mesh[1]
    microbatches = microbatches or config.microbatches
    batch = batch or config.batch_size or ROWS_A_DEVICE * topology.size
    if batch % (shards * microbatches):
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
        if name.strip() not in MESH_AXES or not size.strip().lstrip("-").isdecimal():
            raise UserError(f"--mesh {text!r}: write it like data=1,fsdp=-1,model=4 (-1: what is left)")
        shape[name.strip()] = int(size)
    return shape


def _filled(shape: Mapping[str, int], topology: Topology) -> tuple[int, int, int]:
    sizes = [shape.get(name, 1) for name in MESH_AXES]
    if topology.slices > 1 and shape.get("data", 1) == 1:
        sizes[0] = topology.slices  # nothing else may cross slices
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and topology.size % known == 0:
        sizes[sizes.index(-1)] = topology.size // known
    if math.prod(sizes) != topology.size or min(sizes) < 1:
        raise UserError(
            f"the mesh {dict(shape)} does not fill the {topology.size} devices of {topology.name}; give --mesh with "
            f"axes that multiply to {topology.size}, or one of them -1"
        )
    return tuple(sizes)
