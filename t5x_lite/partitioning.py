"""Where every array lives: the mesh, the layout of a train state and of a batch, and how processes start.

Rules are data (gin/meshes/*.gin): an ordered list of (logical axis, mesh axes). XLA's partitioner does the
rest, from the shardings of the state, of the batch and of the model's `constrain` calls.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_lite import processes
from t5x_lite.errors import UserError, nearest
from t5x_lite.model.axes import Rule, axis_rules, logical_to_spec
from t5x_lite.model.names import name_of

MESH_AXES = ("data", "fsdp", "model")
LOGICAL_AXES = ("batch", "length", "embed", "heads", "kv", "mlp", "vocab", "layers", "relpos_buckets")

# Rows of the vocabulary's tables are padded to a multiple of this, so that they divide over a mesh; T5's own rounding
# (32100 tokens, 32128 rows).
VOCAB_MULTIPLE = 128

# A process that is not heard of for so long is taken for dead, and JAX ends the others (its own default is 100). They
# send signs of life from threads of their own, so that no computation or compilation delays them.
HEARTBEAT_TIMEOUT_SECONDS = 60
JOIN_TIMEOUT_SECONDS = 300  # machines of a pod start at different times

# T5X's data parallelism: parameters whole on every device, each computes its share of the batch.
DATA_PARALLEL: tuple[Rule, ...] = (("batch", ("data", "fsdp")),)


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh and the rules that lay logical axes over it."""

    mesh: Mesh
    rules: tuple[Rule, ...]

    def sharding(self, logical_axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        spec = logical_to_spec(logical_axes, self.rules, dict(self.mesh.shape), shape)
        return NamedSharding(self.mesh, spec)

    def shardings(self, axes_tree: Any, abstract_tree: Any) -> Any:
        """A NamedSharding for each array of `abstract_tree`, from the tuple of logical axes in its place."""
        return jax.tree.map(lambda leaf, axes: self.sharding(axes, leaf.shape), abstract_tree, axes_tree)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def data_size(self) -> int:
        """The number of parts that a batch is cut into."""
        axes = next((target for name, target in self.rules if name == "batch"), None)
        return math.prod(self.mesh.shape[name] for name in _mesh_axes(axes) or ())

    @property
    def batch_sharding(self) -> NamedSharding:
        return self.sharding(("batch",), (self.data_size,))

    def own_rows(self, batch_size: int) -> np.ndarray:
        """The rows of a global batch that this process's devices hold, ascending.

        A TPU's processes own blocks of a grid of chips, so that they need not follow one another; and where the mesh's
        model axis spans processes, those share their rows.
        """
        indices = self.batch_sharding.addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))

    def global_batch(self, rows_of_this_process: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """One global array for each feature, out of what every process holds of it: its `own_rows`, in their order."""
        sharding, parts = self.batch_sharding, self.data_size
        own_parts = self.own_rows(parts)

        def assemble(rows: np.ndarray) -> jax.Array:
            size = len(rows) // len(own_parts)  # rows a part

            def part(index: tuple[slice, ...]) -> np.ndarray:
                number = (index[0].start or 0) // size
                first = int(np.searchsorted(own_parts, number)) * size
                return rows[first : first + size]

            return jax.make_array_from_callback((size * parts, *rows.shape[1:]), sharding, part)

        return {name: assemble(rows) for name, rows in rows_of_this_process.items()}

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Within it, compiled functions see the mesh and the model's `constrain` follows the rules."""
        with jax.set_mesh(self.mesh), axis_rules(self.rules):
            yield


def make_partitioner(
    mesh_shape: Mapping[str, int] | None = None,
    rules: Sequence[Rule] = DATA_PARALLEL,
    devices: Sequence[jax.Device] | None = None,
) -> Partitioner:
    """A partitioner over the devices, data parallel by default.

    Without `devices` it is over all of them, after joining the job's other processes. One mesh axis may be -1, "what
    is left". Without a -1 the mesh takes the first devices and may leave some out, unless there are several processes.
    Where the devices are of several slices, `data` crosses them and the other axes stay within one.

    Raises UserError for an unknown axis and for a shape that the devices do not fill.
    """
    if devices is None:
        initialize_distributed()
        devices = jax.devices()
    shape = dict(mesh_shape or {"data": -1})
    for name, size in shape.items():
        _check_name("Partitioner.mesh_shape", "mesh axis", name, MESH_AXES)
        if size != -1 and size < 1:
            raise UserError(f"Partitioner.mesh_shape: {name!r} is {size}; it must be 1 or more, or -1 for the rest")
    for name, target in rules:
        _check_name("Partitioner.rules", "logical axis", name, LOGICAL_AXES)
        for mesh_axis in _mesh_axes(target) or ():
            _check_name(f"Partitioner.rules, {name!r}", "mesh axis", mesh_axis, MESH_AXES)
    sizes = _mesh_sizes(shape, len(devices))
    return _over(devices[: math.prod(sizes)], sizes, rules)


def local_partitioner() -> Partitioner:
    """Data parallel over the devices of this process alone, which works for itself, after joining the others."""
    initialize_distributed()
    devices = jax.local_devices()
    return _over(devices, _mesh_sizes({"data": -1}, len(devices)), DATA_PARALLEL)


def _over(devices: Sequence[jax.Device], sizes: tuple[int, ...], rules: Sequence[Rule]) -> Partitioner:
    slices = len({getattr(device, "slice_index", None) for device in devices})
    auto = (AxisType.Auto,) * len(MESH_AXES)
    if slices > 1:
        data, *others = sizes
        if data % slices:
            raise UserError(
                f"Partitioner.mesh_shape: the data axis is {data} and the devices are of {slices} slices, which only "
                f"data crosses; make it a multiple of {slices}"
            )
        within = (data // slices, *others)
        mesh = Mesh(mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices), MESH_AXES, axis_types=auto)
    else:
        mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=auto, devices=devices)
    return Partitioner(mesh, tuple((name, _mesh_axes(target)) for name, target in rules))


def _mesh_sizes(shape: Mapping[str, int], devices: int) -> tuple[int, ...]:
    sizes = [shape.get(name, 1) for name in MESH_AXES]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        fits = sizes.count(-1) == 1 and devices % known == 0
    else:
        fits = known == devices or (known < devices and jax.process_count() == 1)
    if not fits:
        raise UserError(
            f"Partitioner.mesh_shape {dict(shape)} does not fit {devices} device(s); "
            f"let one axis be -1 and the others multiply to a divisor of {devices}"
        )
    return tuple(devices // known if size == -1 else size for size in sizes)


def _check_name(where: str, kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        names = ", ".join(known)
        raise UserError(f"{where}: no {kind} {name!r}{nearest(name, known)}; there are {names}")


def _mesh_axes(target: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return (target,) if isinstance(target, str) else None if target is None else tuple(target)


def initialize_distributed() -> None:
    """Joins the other processes of this job, where there are any; once is enough.

    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are; where they are not set
    JAX finds it out by itself on Cloud TPU (GKE too), under Slurm's srun, under Open MPI's mpirun, and, where the
    package kubernetes is installed, in an indexed Kubernetes Job or JobSet. Must come before anything asks for devices.
    Raises UserError for settings that name no job.
    """
    if jax.distributed.is_initialized():
        return
    who: dict[str, Any] | None = None
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        who = _named_job(os.environ)
    elif _scheduled(os.environ):
        who = {}
    if who is None or who.get("num_processes") == 1:
        return
    # SIGTERM is the training loop's to answer; JAX's service would take the signal and leave the process deaf to it.
    jax.config.update("jax_enable_preemption_service", False)
    # Where they do not all come JAX ends this process, without asking Python.
    at = f" at {who['coordinator_address']}" if who else ""
    with processes.last_words(
        f"the processes of this job did not all meet{at} within {JOIN_TIMEOUT_SECONDS} s; start all of them, each with "
        "its own number, where that address can be reached"
    ):
        jax.distributed.initialize(
            **who,
            initialization_timeout=JOIN_TIMEOUT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        )


def _named_job(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the environment, or a door's flags, say of a job that no scheduler started.

    Raises UserError where that is no job.
    """
    address = environment["JAX_COORDINATOR_ADDRESS"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS (--coordinator) is {address!r}; it is HOST:PORT, the machine of process 0 and a "
            "free port of it, like 10.0.0.1:8476"
        )
    numbers = []
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        if not environment.get(name, "").isdecimal():
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set and {name} is {environment.get(name)!r}; set all of "
                "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID (or --coordinator, --num_processes, "
                "--process_id), or none for one process"
            )
        numbers.append(int(environment[name]))
    count, index = numbers
    if index >= count:
        raise UserError(
            f"JAX_PROCESS_ID (--process_id) is {index} and JAX_NUM_PROCESSES (--num_processes) is {count}; "
            "the processes are numbered from 0"
        )
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _scheduled(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler that JAX knows started this process as one of several."""
    # Where there is no TPU, importing jax sets TPU_SKIP_MDS_QUERY; where there is one, JAX asks Google's metadata
    # server for the others unless the environment names them.
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    asks_metadata = hosts is None and "TPU_SKIP_MDS_QUERY" not in environment and find_spec("libtpu") is not None
    return (
        "," in (hosts or "")
        or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
        or asks_metadata
        # SLURM_NTASKS would also be there in an allocation's shell, where this is the only process.
        or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or ("OMPI_MCA_orte_hnp_uri" in environment and int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1)
        or (
            {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
            and find_spec("kubernetes") is not None
        )
    )


def with_shardings(abstract_tree: Any, shardings: Any) -> Any:
    """The abstract tree whose leaves also say where they are to live: what a restore wants."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_tree,
        shardings,
    )


def like_parameters(state: Any, abstract_params: Any, param_shardings: Any, replicated: NamedSharding) -> Any:
    """Shardings of an optimizer's state: each array that belongs to a parameter lies as that one does.

    An array belongs to the parameter whose name its own path ends with. One of equal shape takes its
    sharding; one that lacks an axis (Adafactor's rows and columns), or has two neighbouring axes made one,
    takes what remains of it; the rest is replicated.
    """
    named = {}
    shapes = jax.tree_util.tree_flatten_with_path(abstract_params)[0]
    for (path, leaf), sharding in zip(shapes, jax.tree.leaves(param_shardings), strict=True):
        entries = (*sharding.spec, *(None,) * (len(leaf.shape) - len(sharding.spec)))
        named[name_of(path)] = (leaf.shape, entries)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        words = name_of(path).split("/")
        names = ("/".join(words[start:]) for start in range(len(words)))
        found = next((named[name] for name in names if name in named), None)
        spec = _spec_of_part(leaf.shape, *found) if found else None
        return replicated if spec is None else NamedSharding(replicated.mesh, spec)

    return jax.tree_util.tree_map_with_path(place, state)


def _spec_of_part(shape: tuple[int, ...], whole: tuple[int, ...], entries: tuple) -> PartitionSpec | None:
    """The layout of an array of `shape` that was made from one of shape `whole`; None where it was not."""
    views = [(whole, entries)]
    for axis in range(len(whole) - 1):
        # Two axes made one keep the layout of the outer: the inner one's blocks are not contiguous in it.
        merged = whole[axis] * whole[axis + 1]
        views.append(
            (
                (*whole[:axis], merged, *whole[axis + 2 :]),
                (*entries[: axis + 1], *entries[axis + 2 :]),
            )
        )
    for view, spec in views:
        if shape == view:
            return PartitionSpec(*spec)
    for view, spec in views:
        for axis in range(len(view)):
            if shape == (*view[:axis], *view[axis + 1 :]):
                return PartitionSpec(*spec[:axis], *spec[axis + 1 :])
    return None


def sharding_table(tree: Any) -> str:
    """Parameter, shape, dtype, spec and bytes on one device, for a tree whose leaves have shardings."""
    rows = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        shape = " ".join(map(str, leaf.shape)) or "scalar"
        spec = ", ".join(str(entry) for entry in leaf.sharding.spec) or "replicated"
        rows.append((name_of(path), shape, str(leaf.dtype), spec, f"{bytes_per_device(leaf):,}"))
    rows.insert(0, ("parameter", "shape", "dtype", "spec", "bytes/device"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for *words, size in rows:
        cells = [word.ljust(width) for word, width in zip(words, widths, strict=False)]
        lines.append("  ".join([*cells, size.rjust(widths[-1])]))
    return "\n".join(lines)


def bytes_per_device(tree: Any) -> int:
    """What one device holds of a tree whose leaves have shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
