import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.partitioning import make_partitioner
from t5x_lite.training.norms import clip_by_global_norm, global_norm

SHAPES = {"table": (300, 16), "wide": (3, 700), "heads": (2, 8, 3, 4), "scale": (16,), "scalar": ()}


def a_tree():
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("shape", [{"data": 1}, {"data": 2, "model": 2}], ids=["one device", "four"])
def test_the_norm_is_that_of_all_numbers(shape):
    with make_partitioner(shape).context():
        found = jax.jit(global_norm)(a_tree())
    everything = np.concatenate([np.ravel(leaf) for leaf in a_tree().values()])
    np.testing.assert_allclose(found, np.linalg.norm(everything), rtol=1e-5)


@pytest.mark.parametrize("most", [0.5, 1e4])
def test_clips_as_optax_does(most):
    ours, theirs = clip_by_global_norm(most), optax.clip_by_global_norm(most)
    with make_partitioner({"data": 1}).context():
        found, _ = jax.jit(ours.update)(a_tree(), ours.init(a_tree()))
    want, _ = theirs.update(a_tree(), theirs.init(a_tree()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, want)


def test_on_one_cpu_squares_are_not_written_out():
    """What the barriers are for: XLA squares and adds up a row in one loop."""
    table = jax.ShapeDtypeStruct((4096, 256), jnp.float32)
    with make_partitioner({"data": 1}).context():
        program = jax.jit(global_norm).lower({"table": table}).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4096 * 256
