"""From a file to the shards of an array: every part right, nothing read that is not needed, one copy in memory."""

import dataclasses
import functools
import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from t5x_lite import partitioning
from t5x_lite.interop import load_model, open_source, source
from t5x_lite.interop.hugging_face import HuggingFaceSource, matrix_shape, their_names, write_config
from t5x_lite.interop.source import TensorSource, transposed
from t5x_lite.model import T5Config, abstract_params
from t5x_lite.model.names import named

# Machines that test are busy; a slow example is no failure.
patient = settings(deadline=None)

SIZES = {"d_model": 8, "num_heads": 6, "head_dim": 4, "d_ff": 12, "num_encoder_layers": 4, "num_decoder_layers": 2}
CONFIGS = (
    T5Config(vocab_size=11, **SIZES),
    T5Config(vocab_size=11, vocab_multiple=8, **SIZES),
    T5Config(vocab_size=3, vocab_multiple=8, activations=("relu",), relative_bias_per_layer=True, **SIZES),
)


class Memory(TensorSource):
    """Matrices as a file has them, heads and head size as one axis; no number is twice in one."""

    where, hugging_face, config, dtype = "memory", {}, None, "float32"

    def __init__(self, config: T5Config, stored: str):
        self.config = config
        draw = np.random.default_rng(0)
        shapes = {name: matrix_shape(name, shape) for name, shape in self.stored_shapes.items()}
        self.matrices = {
            name: np.asarray(draw.permutation(np.prod(shape)).reshape(shape), np.float32, order=stored)
            for name, shape in shapes.items()
        }
        self.read = []

    def vocabulary(self):
        raise NotImplementedError

    def read_matrix(self, name, index):
        self.read.append(self.matrices[name][index])
        return self.read[-1]

    def whole(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A parameter as NumPy makes it, the vocabulary's padding included."""
        if "/layers/" in name:
            return np.stack([self.whole(name.replace("layers", f"layers_{n}"), shape[1:]) for n in range(shape[0])])
        values = self.matrices[name].reshape(self.stored_shapes[name])
        return np.pad(values, [(0, size - found) for size, found in zip(shape, values.shape, strict=True)])


@functools.cache
def sources() -> list[tuple[Memory, dict[str, tuple[int, ...]]]]:
    """Every configuration, stored in rows and in columns: (source, shapes of its parameters, scanned and not)."""
    made = [Memory(config, stored) for config in CONFIGS for stored in "CF"]
    return [
        (of, {name: leaf.shape for scanned in (False, True) for name, leaf in of.parameters(scanned=scanned).items()})
        for of in made
    ]


@st.composite
def layouts(draw):
    """(source, a parameter's name, its shape, how three axes of two devices cut it); half of them may be padded."""
    memory, shapes = draw(st.sampled_from(sources()))
    tables = [name for name in shapes if name.endswith(("embedding", "logits_dense/kernel"))]
    name = draw(st.sampled_from(sorted(shapes)) | st.sampled_from(tables))
    cuts = [[] for _ in shapes[name]]
    for axis in "xyz":
        fitting = [cut for cut, size in zip(cuts, shapes[name], strict=True) if size % 2 ** (len(cut) + 1) == 0]
        draw(st.sampled_from([[], *fitting])).append(axis)  # [] is thrown away: the axis holds copies
    return memory, name, shapes[name], PartitionSpec(*(tuple(cut) or None for cut in cuts))


@patient
@given(layouts(), st.sampled_from([np.float32, ml_dtypes.bfloat16]))
def test_any_parameter_is_cut_in_any_way(layout, dtype):
    memory, name, shape, spec = layout
    mesh = jax.make_mesh((2, 2, 2), tuple("xyz"), axis_types=(AxisType.Auto,) * 3)
    leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    memory.read.clear()
    found = memory.load({"it": (name, leaf)})["it"]
    expected = memory.whole(name, shape).astype(dtype)
    assert (found.dtype, found.sharding, len(found.addressable_shards)) == (dtype, leaf.sharding, 8)
    for shard in found.addressable_shards:
        np.testing.assert_array_equal(np.float32(shard.data), np.float32(expected[shard.index]))
    # A file has the head sizes of one head side by side: they are read whole. Nothing else is, and nothing twice.
    of_size = {"query": -1, "key": -1, "value": -1, "out": -2}.get(name.split("/")[-2])
    parts = 1 if of_size is None else shape[of_size] // found.addressable_shards[0].data.shape[of_size]
    assert sum(read.size for read in memory.read) <= parts * expected.size


# Above and below the number of rows that is copied at once.
matrices = st.tuples(st.integers(0, 200), st.integers(0, 200))


@patient
@given(matrices, st.sampled_from(["C", "F"]), st.sampled_from([np.float32, ml_dtypes.bfloat16]))
def test_a_transposed_matrix_is_laid_out_anew(shape, order, dtype):
    matrix = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype, order=order)
    found = transposed(matrix)
    assert found.dtype == dtype and found.flags.c_contiguous and not np.shares_memory(found, matrix)
    np.testing.assert_array_equal(found.astype(np.float32), matrix.T.astype(np.float32))


@patient
@given(
    st.integers(0, 5),
    st.integers(1, 5),
    st.integers(0, 150),
    st.booleans(),
    st.sampled_from([(a, b) for a in (np.float16, np.float32, ml_dtypes.bfloat16) for b in (np.float32, jnp.bfloat16)]),
)
def test_a_copy_splits_the_axis_of_heads_and_rounds(heads, size, width, last, dtypes):
    """As NumPy, from rows and from columns; to bfloat16 it rounds to the nearest, ties to even."""
    joined, split = (
        ((width, heads * size), (width, heads, size)) if last else ((heads * size, width), (heads, size, width))
    )
    values = np.random.default_rng(0).standard_normal(joined).astype(dtypes[0])
    expected = values.astype(dtypes[1]).reshape(split)
    for order in "CF":
        out = np.full(split, np.nan, dtypes[1])
        source._copy(np.asarray(values, order=order), out)
        np.testing.assert_array_equal(out.astype(np.float32), expected.astype(np.float32))


# ---------------------------------------------------------------------- from files to devices

EMBED_SHARDED = (("embed", "fsdp"),)
SMALL = T5Config(vocab_size=300, d_model=64, num_heads=3, d_ff=96, num_encoder_layers=2, num_decoder_layers=2)


def write_checkpoint(folder, config: T5Config):
    """A Hugging Face folder with random weights."""
    draw = np.random.default_rng(0)
    tensors = {}
    for name, leaf in named(abstract_params(config)).items():
        shape = matrix_shape(name, leaf.shape)
        shape = shape[::-1] if name.endswith(("/kernel", "/rel_embedding")) else shape
        tensors[their_names(config)[name]] = draw.standard_normal(shape, np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(write_config(config, "float32", {})))
    return folder


def load(folder, mesh, rules, **changes):
    opened = open_source(folder)
    config = dataclasses.replace(opened.config, **changes)
    return load_model(opened, config, partitioning.make_partitioner(mesh, rules))


def python(program: str, *arguments: str, devices: int = 8, **environment: str) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> int:
    """The number that a process prints last."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return int(out.split()[-1])


@pytest.fixture
def reads(monkeypatch):
    """Sizes of what is read from now on."""
    sizes = []
    read_matrix = HuggingFaceSource.read_matrix

    def recorded(self, name, index):
        matrix = read_matrix(self, name, index)
        sizes.append(matrix.size)
        return matrix

    monkeypatch.setattr(HuggingFaceSource, "read_matrix", recorded)
    return sizes


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 4, "fsdp": 2}], ids=str)
@pytest.mark.parametrize("scanned", [False, True])
def test_every_number_is_read_once_and_in_parts_as_small_as_the_shards(tmp_path, reads, mesh, scanned):
    """Devices that hold the same share one read; padding is no part of the file."""
    load(write_checkpoint(tmp_path, SMALL), mesh, EMBED_SHARDED, scan_layers=scanned)
    assert sum(reads) == SMALL.num_parameters
    assert max(reads) == 300 * 64 // mesh["fsdp"]  # of the embeddings


def align(file) -> None:
    """Moves the tensors to where a view of the file is memory that JAX would take over as it is."""
    tensors = load_file(file)
    for blanks in range(64):
        save_file(tensors, file, metadata={"blanks": " " * blanks})
        if (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 64 == 0:
            return
    raise AssertionError


@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8}, {"data": 1}], ids=str)
def test_what_is_loaded_is_its_own(tmp_path, mesh):
    """Not a view of the file, and no two devices' arrays are one: both file and arrays may be overwritten."""
    file = write_checkpoint(tmp_path, SMALL) / "model.safetensors"
    align(file)
    params = load(tmp_path, mesh, EMBED_SHARDED)
    before = jax.tree.map(np.array, params)
    with open(file, "r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    after = advance(advance(params))
    for found, expected in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        for shard in found.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index] + 1 + 1)


HOST = """
import sys
import jax, numpy as np
from t5x_lite import interop, partitioning
from t5x_lite.interop.hugging_face import HuggingFaceSource
from t5x_lite.model.names import named

reads = []
read_matrix = HuggingFaceSource.read_matrix
def recorded(*arguments):
    reads.append(read_matrix(*arguments))
    return reads[-1]
HuggingFaceSource.read_matrix = recorded

partitioner = partitioning.make_partitioner({"fsdp": 8}, [("embed", "fsdp")])
source = interop.open_source(sys.argv[1])
params = named(interop.load_model(source, source.config, partitioner))
size = sum(read.size for read in reads)
here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
for name, leaf in params.items():
    assert len(leaf.addressable_shards) == 4 and len(leaf.sharding.device_set) == 8
    like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    whole = source.load({name: (name, like)})[name]
    for shard in leaf.addressable_shards:
        assert np.array_equal(shard.data, whole[shard.index]), name
print(size)
"""


@pytest.mark.slow
def test_each_of_two_hosts_reads_its_half(tmp_path):
    write_checkpoint(tmp_path, SMALL)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [
        python(
            HOST,
            str(tmp_path),
            devices=4,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]
    biases = 2 * 32 * SMALL.num_heads  # they have no axis to be cut along
    assert [result(host) for host in hosts] == [(SMALL.num_parameters - biases) // 2 + biases] * 2


MEASURE = """
import dataclasses, re, sys
import jax
from t5x_lite import interop, partitioning

def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

partitioner = partitioning.make_partitioner({"fsdp": 8}, [("embed", "fsdp")])
jax.block_until_ready(jax.device_put(0, partitioner.replicated))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
source = interop.open_source(sys.argv[1])
config = dataclasses.replace(source.config, scan_layers=sys.argv[2] == "scanned")
params = interop.load_model(source, config, partitioner)
print(memory("VmHWM") - before)
"""
LARGE = T5Config(vocab_size=8192, d_model=512, num_heads=8, d_ff=4096, num_encoder_layers=6, num_decoder_layers=6)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("large"), LARGE)
    yield folder
    shutil.rmtree(folder)  # pytest would keep it for days


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["scanned", "unrolled"])
def test_the_weights_are_in_memory_once(large, layout):
    """As the kernel counts it, pages of the file included; found is 1.01 to 1.06.

    Four readers with the largest tensor each would make it 1.16, the file's pages kept or a copy at the end 2.
    """
    size = 4 * LARGE.num_parameters
    assert size > 400e6
    assert result(python(MEASURE, str(large), layout)) < 1.25 * size
