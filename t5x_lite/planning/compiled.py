"""The train step and the decoding program, compiled for devices that need not be there."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.programs import Programs
from t5x_lite.partitioning import Partitioner
from t5x_lite.planning.hlo import Traffic, traffic
from t5x_lite.planning.request import Request
from t5x_lite.training.state import TrainState, abstract_frozen, abstract_state
from t5x_lite.training.step import make_train_step
from t5x_lite.training.trainable import join


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device by what the compiler says; `arguments` are the state and the batch, and stay there."""

    arguments: int
    temporaries: int
    results: int
    code: int
    host: int = 0

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.results + self.code


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program; without `memory` it did not fit, and `needed` is what it asked for, where that is known."""

    seconds: float
    memory: Memory | None
    traffic: Traffic | None
    needed: int | None = None


def train_step(request: Request, partitioner: Partitioner) -> Program:
    """The very step that training runs, for a packed batch."""
    config = request.config
    state = abstract_state(request.model, config.optimizer, partitioner, request.trainable)
    frozen = abstract_frozen(request.model, partitioner, request.trainable)
    step = make_train_step(
        request.model,
        config.optimizer,
        partitioner,
        learning_rate=optax.constant_schedule(1e-3),
        microbatches=request.microbatches,
        trainable=request.trainable,
    )
    names = {"encoder": ("input_tokens", "segment_ids", "positions")}
    names["decoder"] = ("input_tokens", "target_tokens", "loss_weights", "segment_ids", "positions")
    lengths = {"encoder": request.inputs, "decoder": request.targets}
    batch = {
        f"{side}_{name}": _ids((request.batch_size, lengths[side]), partitioner)
        for side, features in names.items()
        for name in features
    }
    return _compile(lambda: step.lower(state, batch, frozen), partitioner)


def decoding(request: Request, partitioner: Partitioner) -> Program:
    """Greedy answers for the same rows, as evaluation asks for them: the encoder, then a token at a time."""
    programs = Programs(request.model, 1, partitioner)
    state: TrainState = abstract_state(request.model, request.config.optimizer, partitioner, request.trainable)
    params = join(state.params, abstract_frozen(request.model, partitioner, request.trainable))
    rows = request.batch_size // request.microbatches
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=partitioner.replicated)
    arguments = (_ids((rows, request.inputs), partitioner), _ids((rows, 0), partitioner), _ids((rows,), partitioner))
    options = Decoding(max_tokens=request.targets)
    return _compile(lambda: programs.decode.lower(params, *arguments, key=key, options=options), partitioner)


def _ids(shape: tuple[int, ...], partitioner: Partitioner) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=partitioner.batch_sharding)


def _compile(lower: Any, partitioner: Partitioner) -> Program:
    started = time.monotonic()
    try:
        with partitioner.context():
            compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return Program(time.monotonic() - started, None, None, _needed(str(error)))
    found = compiled.memory_analysis()
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        host=found.host_temp_size_in_bytes,
    )
    moved = traffic(compiled.as_text(), partitioner.mesh.size)
    return Program(time.monotonic() - started, memory, moved)


def _needed(message: str) -> int | None:
    """Of "Used 20.70G of 15.75G hbm", the first of the two, in bytes; of one array that is too large alone, its own."""
    if match := re.search(r"Allocation \(size=(\d+)\) would exceed memory", message):
        return int(match[1])
    match = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " ")) if match else None
