"""The TPU's own compiler, without a TPU: what fits, what does not, and that a step is sharded as asked."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest

from t5x_lite import config as gin_config
from t5x_lite.partitioning import make_partitioner
from t5x_lite.planning import compiled, plan, report
from t5x_lite.planning.request import make_request
from t5x_lite.planning.topology import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]
ONE_LAYER = ["--gin.T5Config.num_encoder_layers=1", "--gin.T5Config.num_decoder_layers=1"]


def planned(topology: str, lengths, **changes) -> plan.Plan:
    gin_config.load(["gin/plan.gin", "gin/models/tiny.gin"], ONE_LAYER)
    mesh = changes.pop("mesh", {"fsdp": -1})
    request = make_request(gin_config.build("plan"), parse(topology), mesh_shape=mesh, **changes)
    request = dataclasses.replace(request, config=dataclasses.replace(request.config, task_feature_lengths=lengths))
    return plan.make_plan(request, search=False, say=print)


def test_a_step_compiles_for_a_slice():
    made = planned("v5e:2x2", {"inputs": 128, "targets": 64}, batch=16)
    assert made.fits
    assert 0 < made.train.memory.total < made.request.topology.kind.memory
    assert any(each.members == (0, 1, 2, 3) for each in made.train.traffic.collectives)
    assert 0 < made.time.mfu < 1
    assert report.text(made).splitlines()[-1].startswith("fits v5e:2x2 by the compiler")


def test_too_much_is_an_answer():
    """The compiler's own refusal, of a result that is larger than the memory."""
    topology = parse("v5e:2x2")
    one = make_partitioner({"data": 1}, devices=topology.devices()[:1])
    x = jax.ShapeDtypeStruct((70_000,), jnp.float32, sharding=one.replicated)
    program = compiled._compile(lambda: jax.jit(jnp.outer).lower(x, x), one)
    assert program.memory is None
    assert program.needed > topology.kind.memory
