"""Where every array lives: the mesh, the layout of a train state and of a batch, and how processes start.

Rules are data (gin/meshes/*.gin): an ordered list of (logical axis, mesh axes). XLA's partitioner does the rest, from
the shardings of the state, of the batch and of the model's `constrain` calls.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_lite.errors import UserError
from t5x_lite.model.axes import Rule, axis_rules, logical_to_spec

MESH_AXES = ("data", "fsdp", "model")

# T5X's data parallelism: parameters whole on every device, each computes its share of the batch.
DATA_PARALLEL: tuple[Rule, ...] = (("batch", ("data", "fsdp")),)


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh and the rules that lay logical axes over it."""

    mesh: Mesh
    rules: tuple[Rule, ...]

    def sharding(self, logical_axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        return NamedSharding(self.mesh, logical_to_spec(logical_axes, self.rules, dict(self.mesh.shape), shape))

    def shardings(self, axes_tree: Any, abstract_tree: Any) -> Any:
        """A NamedSharding for each array of `abstract_tree`, from the tuple of logical axes in its place."""
        return jax.tree.map(lambda leaf, axes: self.sharding(axes, leaf.shape), abstract_tree, axes_tree)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def data_size(self) -> int:
        """The number of parts that a batch is cut into."""
        axes = next((target for name, target in self.rules if name == "batch"), None) or ()
        names = (axes,) if isinstance(axes, str) else axes
        return math.prod(self.mesh.shape.get(name, 1) for name in names)

    @property
    def batch_sharding(self) -> NamedSharding:
        return self.sharding(("batch",), (self.data_size,))

    def global_batch(self, rows_of_this_process: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """One global array for each feature, out of what every process holds of it."""
        sharding = self.batch_sharding
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in rows_of_this_process.items()
        }

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Within it, compiled functions see the mesh and the model's `constrain` follows the rules."""
        with jax.set_mesh(self.mesh), axis_rules(self.rules):
            yield


def make_partitioner(
    mesh_shape: Mapping[str, int] | None = None, rules: Sequence[Rule] = DATA_PARALLEL
) -> Partitioner:
    """A partitioner over all devices; one mesh axis may be -1, "what is left". Default: data parallel.

    Raises UserError for an unknown mesh axis and for a shape that is not the number of devices.
    """
    shape = dict(mesh_shape or {"data": -1})
    for name, size in shape.items():
        if name not in MESH_AXES or not (size == -1 or size >= 1):
            raise UserError(f"Partitioner.mesh_shape: {name!r}: {size}; axes are {MESH_AXES}, sizes 1 and up or -1")
    sizes = [shape.get(name, 1) for name in MESH_AXES]
    devices = len(jax.devices())
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or devices % known or (-1 not in sizes and known != devices):
        raise UserError(
            f"Partitioner.mesh_shape {shape} does not fit {devices} device(s); let one axis be -1, "
            f"or sizes multiply to {devices}"
        )
    sizes = [devices // known if size == -1 else size for size in sizes]
    mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    return Partitioner(mesh, tuple((name, _as_tuple(target)) for name, target in rules))


def _as_tuple(target: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    return target if target is None or isinstance(target, str) else tuple(target)


def initialize_distributed() -> None:
    """Joins the other processes of this job, where the environment says that there are any.

    JAX finds them by itself on Cloud TPU pods, Slurm and Open MPI; elsewhere JAX_COORDINATOR_ADDRESS (host:port),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are.
    """
    environment = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environment:
        jax.distributed.initialize(
            num_processes=int(environment["JAX_NUM_PROCESSES"]), process_id=int(environment["JAX_PROCESS_ID"])
        )
    elif int(environment.get("SLURM_NTASKS", 1)) > 1 or "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()


def with_shardings(abstract_tree: Any, shardings: Any) -> Any:
    """The abstract tree whose leaves also say where they are to live: what a restore wants."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_tree,
        shardings,
    )


def like_parameters(state: Any, abstract_params: Any, param_shardings: Any, replicated: NamedSharding) -> Any:
    """Shardings of an optimizer's state: each array that belongs to a parameter lies as the parameter lies.

    An array belongs to the parameter whose name its own path ends with. One of equal shape takes its sharding; one
    that lacks an axis (Adafactor's rows and columns) takes it without that axis; the rest is replicated.
    """
    named = {}
    shapes = jax.tree_util.tree_flatten_with_path(abstract_params)[0]
    for (path, leaf), sharding in zip(shapes, jax.tree.leaves(param_shardings), strict=True):
        named[_name(path)] = (leaf.shape, sharding)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        words = _name(path).split("/")
        names = ("/".join(words[start:]) for start in range(len(words)))
        found = next((named[name] for name in names if name in named), None)
        return _reduced(leaf.shape, *found) if found else replicated

    return jax.tree_util.tree_map_with_path(place, state)


def _reduced(shape: tuple[int, ...], param_shape: tuple[int, ...], sharding: NamedSharding) -> NamedSharding:
    entries = [*sharding.spec, *(None,) * (len(param_shape) - len(sharding.spec))]
    if shape == param_shape:
        return sharding
    for axis in range(len(param_shape)):
        if shape == param_shape[:axis] + param_shape[axis + 1 :]:
            return NamedSharding(sharding.mesh, PartitionSpec(*entries[:axis], *entries[axis + 1 :]))
    return NamedSharding(sharding.mesh, PartitionSpec())


def sharding_table(tree: Any) -> str:
    """Parameter, shape, dtype, spec and bytes on one device, for a tree whose leaves have shardings."""
    rows = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        shape = " ".join(map(str, leaf.shape)) or "scalar"
        spec = ", ".join(str(entry) for entry in leaf.sharding.spec) or "replicated"
        rows.append((_name(path), shape, str(leaf.dtype), spec, f"{bytes_per_device(leaf):,}"))
    rows.insert(0, ("parameter", "shape", "dtype", "spec", "bytes/device"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = [[text.ljust(width) for text, width in zip(row, widths, strict=True)][:-1] for row in rows]
    return "\n".join("  ".join([*cells, row[-1].rjust(widths[-1])]) for cells, row in zip(left, rows, strict=True))


def bytes_per_device(tree: Any) -> int:
    """What one device holds of a tree whose leaves have shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
