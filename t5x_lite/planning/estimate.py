"""Memory, traffic and time by formula: for the search, for GPUs, and beside what the compiler says.

What is counted is what the compiler was seen to do with this model: layers gathered for the forward and again for the
backward pass, as all-reduces on TPUs, and the inputs of layers, or the results of products, kept by `remat`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_lite.model import T5Config
from t5x_lite.model.flops import recomputed_flops, train_flops
from t5x_lite.partitioning import MESH_AXES, Partitioner, bytes_per_device
from t5x_lite.planning.hlo import Collective, Traffic
from t5x_lite.planning.request import Request
from t5x_lite.planning.topology import Topology
from t5x_lite.training.state import TrainState, abstract_frozen, abstract_state
from t5x_lite.training.trainable import Rules


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one device, and what one step moves."""

    state: int
    gradients: int
    activations: int
    working: int
    traffic: Traffic

    @property
    def total(self) -> int:
        return self.state + self.gradients + self.activations + self.working


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of one step, and what share of the devices' peak the model's own operations are.

    No traffic between devices is taken to be hidden behind computation.
    """

    compute: float
    memory: float
    communication: float
    mfu: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory) + self.communication


def roofline(request: Request, moved: Traffic) -> Time | None:
    """Of one train step; None where the devices' peaks are not known."""
    topology = request.topology
    if topology.kind is None:
        return None
    per_row = train_flops(request.model, request.inputs, request.targets)
    again = recomputed_flops(request.model, request.inputs, request.targets)
    peak = topology.size * topology.kind.flops
    useful = request.batch_size * per_row / peak
    compute = request.batch_size * (per_row + again) / peak
    memory = moved.memory / topology.kind.bandwidth
    communication = sum(seconds(each, topology) for each in moved.collectives)
    step = max(compute, memory) + communication
    return Time(compute, memory, communication, useful / step)


def seconds(collective: Collective, topology: Topology) -> float:
    """On the links of one device, by rings: an all-reduce goes around twice."""
    size = len(collective.members)
    if size == 1:
        return 0.0
    times = {"all-reduce": 2, "collective-permute": size / (size - 1)}.get(collective.kind, 1)
    rate = topology.rate(collective.members)
    if collective.kind == "collective-permute":
        rate = min(rate, topology.kind.link)
    return times * collective.bytes * (size - 1) / size / rate


def estimate(request: Request) -> Estimate:
    """Of one train step."""
    model = request.model
    _, fsdp, shards = request.mesh
    width = jnp.dtype(model.dtype).itemsize
    state, frozen = abstract_arrays(request)
    gradients = bytes_per_device(state.params) * 4 // jnp.dtype(model.param_dtype).itemsize  # float32 sums
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    rows = request.rows
    kept = rows * _kept(model, request.inputs, request.targets, shards) * width
    layer = _layer_values(model, request.inputs, request.targets, shards) * width
    scores = model.num_heads / shards * _pairs(request.inputs, request.targets) * (4 + 4 + width)
    logits = request.targets * model.vocab_rows / shards * (4 + 4 + width)
    tables = model.vocab_rows * model.d_model * width / shards * (2 if fsdp > 1 else 0)
    gathered = 2 * _largest_layer(model) * width / shards if fsdp > 1 else 0
    working = rows * (2 * layer + max(scores, logits)) + tables + gathered
    held = bytes_per_device(state) + bytes_per_device(frozen)
    return Estimate(held, gradients, int(kept), int(working), _traffic(request, gradients, trained))


def abstract_arrays(request: Request) -> tuple[TrainState, Any]:
    """(the state, the parameters that are not trained), laid out over the mesh without any device."""
    # Remat changes none of it, and a search asks for every mesh many times.
    model = dataclasses.replace(request.model, remat="none")
    config = request.config
    return _abstract_arrays(config.partitioner, config.optimizer, model, request.mesh, request.trainable)


@functools.lru_cache(maxsize=256)
def _abstract_arrays(
    partitioner: Callable,
    optimizer: optax.GradientTransformation,
    model: T5Config,
    mesh: tuple[int, ...],
    trainable: Rules,
) -> tuple[TrainState, Any]:
    rules = partitioner(mesh_shape={"data": 1}, devices=jax.devices("cpu")[:1]).rules
    layout = Partitioner(jax.sharding.AbstractMesh(mesh, MESH_AXES), rules)
    return abstract_state(model, optimizer, layout, trainable), abstract_frozen(model, layout, trainable)


def _layer_values(model: T5Config, inputs: int, targets: int, shards: int) -> float:
    """Values that one layer computes of one row, on one of `shards` of the model axis; of the larger stack."""
    inner = model.num_heads * model.head_dim
    of_token = (4 * inner + 3 * model.d_model + (len(model.activations) + 1) * model.d_ff) / shards
    return of_token * max(inputs, 2 * targets)


def _kept(model: T5Config, inputs: int, targets: int, shards: int) -> float:
    """Values that the backward pass finds in a device's memory, of one row."""
    inner, d, f = model.num_heads * model.head_dim, model.d_model, model.d_ff
    gates = len(model.activations)
    encoder, decoder = model.num_encoder_layers * inputs, model.num_decoder_layers * targets
    carried = (encoder + decoder) * d / shards
    if model.remat == "offload":
        return 0
    if model.remat == "full":
        return carried
    products = encoder * (4 * inner + 2 * d + gates * f) + decoder * (6 * inner + 3 * d + gates * f)
    products += model.num_decoder_layers * inputs * 2 * inner
    if model.remat == "minimal":
        return carried + products / shards
    scores = encoder * inputs + decoder * (inputs + targets)
    # Softmax's weights twice, once in float32, and what norms and gates keep of every product.
    return carried + (2 * products + 3 * model.num_heads * scores) / shards


def _pairs(inputs: int, targets: int) -> int:
    """Pairs of positions that a layer scores of one row; as of values, of the larger stack."""
    return max(inputs**2, targets**2 + targets * inputs)


def _largest_layer(model: T5Config) -> int:
    """Weights of a decoder layer."""
    inner = model.num_heads * model.head_dim
    return 8 * model.d_model * inner + (len(model.activations) + 1) * model.d_model * model.d_ff


def _traffic(request: Request, gradients: int, trained: int) -> Traffic:
    """Of one step with so many bytes of gradients on one device, those of `trained` parameters in all."""
    model = request.model
    data, fsdp, shards = request.mesh
    width = jnp.dtype(model.dtype).itemsize
    weights = model.num_parameters * width // shards
    found = []
    topology = request.topology
    ring, scatter = ("all-reduce", "all-reduce") if topology.is_tpu else ("all-gather", "reduce-scatter")
    cut = range(0, fsdp * shards, shards)  # the mesh's last axis is of neighbours
    if fsdp > 1:
        found.append(_over(ring, cut, 2 * request.microbatches * weights))
        found.append(_over(scatter, cut, request.microbatches * trained * width // shards))
    if data > 1:
        found.append(_over("all-reduce", range(0, topology.size, fsdp * shards), gradients))
    if shards > 1:
        passes = 2 if model.remat == "none" else 3
        tokens = 2 * model.num_encoder_layers * request.inputs + 3 * model.num_decoder_layers * request.targets
        moved = request.microbatches * request.rows * tokens * model.d_model * width
        near = range(shards)
        found += [_over("all-gather", near, passes * moved), _over("reduce-scatter", near, passes * moved)]
    state = 3 * gradients + 2 * request.microbatches * weights
    values = _layer_values(model, request.inputs, request.targets, shards) * width * request.rows * request.microbatches
    layers = model.num_encoder_layers + model.num_decoder_layers
    pairs = request.microbatches * request.rows * _pairs(request.inputs, request.targets)
    scores = pairs * model.num_heads / shards * 4
    return Traffic(tuple(found), int(state + 4 * layers * values + 8 * layers * scores))


def _over(kind: str, members: range, count: float) -> Collective:
    return Collective(kind, tuple(members), 1, int(count))
