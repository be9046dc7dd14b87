"""How processes find one another, and which rows of a batch are whose."""

import importlib.util
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from t5x_lite import partitioning
from t5x_lite.errors import UserError
from t5x_lite.partitioning import initialize_distributed, make_partitioner

SET = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
OURS = {
    "heartbeat_timeout_seconds": partitioning.HEARTBEAT_TIMEOUT_SECONDS,
    "initialization_timeout": partitioning.JOIN_TIMEOUT_SECONDS,
}
BY_HAND = {"coordinator_address": "10.0.0.1:8476", "num_processes": 4, "process_id": 3}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.fixture
def joined(monkeypatch):
    """Asks with an environment, and packages that are installed; returns what JAX was started with, if it was."""

    def join(environment, packages=()):
        asked = []
        monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
        monkeypatch.setattr(jax.config, "update", lambda *_: None)
        monkeypatch.setattr(partitioning, "find_spec", lambda name: name if name in packages else None)
        # Where there is no TPU, importing jax has set this.
        monkeypatch.setattr(partitioning.os, "environ", {"TPU_SKIP_MDS_QUERY": "1", **environment})
        initialize_distributed()
        return asked

    return join


@pytest.mark.parametrize(
    "environment, packages, wanted",
    [
        ({}, (), None),
        (SET, (), BY_HAND),
        (SET | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, (), None),
        ({"SLURM_NTASKS": "4"}, (), None),  # the shell of an allocation
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, (), {}),
        ({"SLURM_STEP_NUM_TASKS": "1"}, (), None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ("libtpu",), None),
        ({"TPU_WORKER_HOSTNAMES": "t-0.job,t-1.job"}, ("libtpu",), {}),
        ({"TPU_PROCESS_ADDRESSES": "local"}, ("libtpu",), None),
        ({"TPU_WORKER_HOSTNAMES": "t-0.job", "MEGASCALE_NUM_SLICES": "2"}, ("libtpu",), {}),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, (), {}),
        (KUBERNETES, (), None),
        (KUBERNETES, ("kubernetes",), {}),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ("kubernetes",), None),  # a pod that belongs to no indexed job
    ],
)
def test_who_is_there(joined, environment, packages, wanted):
    assert joined(environment, packages) == ([] if wanted is None else [wanted | OURS])


def test_a_cloud_tpu_vm_asks_for_the_others(joined, monkeypatch):
    monkeypatch.setattr(partitioning, "_scheduled", lambda _, scheduled=partitioning._scheduled: scheduled({}))
    assert joined({}, ("libtpu",)) == [OURS]
    assert joined({}) == []


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "(--coordinator) is '10.0.0.1'; it is HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:port"}, "it is HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": ":80"}, "it is HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "a:70000"}, "it is HOST:PORT"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; set all of"),
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is ''"),
        (
            {"JAX_PROCESS_ID": "4"},
            "(--process_id) is 4 and JAX_NUM_PROCESSES (--num_processes) is 4; the processes are",
        ),
    ],
)
def test_a_job_that_is_none_is_refused(joined, changes, says):
    with pytest.raises(UserError) as caught:
        joined(SET | changes)
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_jax_has_the_detectors_that_are_relied_on():
    """Which ones a version of JAX has is nowhere documented."""
    from jax._src import clusters

    known = {cluster.__name__ for cluster in clusters.ClusterEnv._cluster_types}
    assert {"GceTpuCluster", "GkeTpuCluster", "SlurmCluster", "OmpiCluster", "K8sCluster"} <= known
    assert importlib.util.find_spec("jax") is not None


@pytest.mark.parametrize(
    "mesh, rules",
    [
        ({"data": 8}, [("batch", "data")]),
        ({"data": 2, "fsdp": -1}, [("batch", ("data", "fsdp"))]),
        ({"fsdp": 4, "model": 2}, [("batch", ("data", "fsdp"))]),
        ({"model": 8}, [("batch", "data")]),
    ],
)
def test_a_global_batch_is_put_together_from_own_rows(mesh, rules):
    partitioner = make_partitioner(mesh, rules)
    rows = np.arange(48).reshape(16, 3)
    own = partitioner.own_rows(16)
    assert own.tolist() == list(range(16))  # one process has all
    batch = partitioner.global_batch({"tokens": rows[own]})["tokens"]
    assert batch.sharding.is_equivalent_to(partitioner.batch_sharding, 2)
    np.testing.assert_array_equal(batch, rows)


@pytest.mark.parametrize(
    "mesh, owned, wanted",
    [
        ({"data": 8}, [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
        # A TPU's hosts own squares of the grid of chips: their devices need not follow one another in the mesh.
        ({"data": 8}, [0, 1, 4, 5], [0, 1, 2, 3, 8, 9, 10, 11]),
        ({"fsdp": 4, "model": 2}, [2, 3], [4, 5, 6, 7]),
        ({"fsdp": 2, "model": 4}, [0, 1], [0, 1, 2, 3, 4, 5, 6, 7]),  # shared with the owner of devices 2 and 3
    ],
)
def test_the_rows_of_a_process_are_those_of_its_devices(monkeypatch, mesh, owned, wanted):
    partitioner = make_partitioner(mesh, [("batch", ("data", "fsdp"))])
    devices = [partitioner.mesh.devices.ravel()[i] for i in owned]
    every = jax.sharding.NamedSharding.devices_indices_map
    monkeypatch.setattr(
        jax.sharding.NamedSharding,
        "addressable_devices_indices_map",
        lambda self, shape: {device: every(self, shape)[device] for device in devices},
    )
    assert partitioner.own_rows(16).tolist() == wanted
    placed = []
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, _, part: placed.append((shape, part)))
    partitioner.global_batch({"x": np.array(wanted)})
    (shape, part) = placed[0]
    assert shape == (16,)
    for device in devices:
        index = every(partitioner.batch_sharding, (16,))[device]
        assert part(index).tolist() == np.arange(16)[index].tolist()


def test_processes_that_do_not_come_are_told_of():
    """JAX ends the one that waits for them."""
    program = "from t5x_lite import partitioning as p; p.JOIN_TIMEOUT_SECONDS = 2; p.initialize_distributed()"
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
    job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    environment = {**os.environ, "XLA_FLAGS": "", **job}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert found.returncode != 0
    assert f"did not all meet at localhost:{port} within 2 s; start all of them" in found.stderr.splitlines()[-1]
