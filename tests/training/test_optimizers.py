import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.model import stack_layers
from t5x_lite.training.optimizers import adafactor, adamw, adamw_rms_scaled

RATE = 0.01


def constant(step):
    return jnp.float32(RATE)


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def run(tx, params, grads):
    """The parameters after each gradient of the list."""
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def random(seed, *shape, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def some_grads(params, count):
    leaves, tree = jax.tree.flatten(params)
    return [
        tree.unflatten([random(100 * n + i, *x.shape, scale=2.0**n) for i, x in enumerate(leaves)])
        for n in range(count)
    ]


# ---------------------------------------------------------------------- Adafactor


def test_adafactors_first_step_is_a_share_of_the_weights_rms():
    """At step 1 the decay is 0: the mean square is the gradient's own, so every weight moves by its sign."""
    [after] = run(adafactor(constant), {"w": jnp.array([3.0, 4.0])}, [{"w": jnp.array([0.2, -7.0])}])
    step = RATE * np.sqrt(12.5)
    np.testing.assert_allclose(after["w"], [3.0 - step, 4.0 + step], rtol=1e-6)


def test_adafactors_second_step():
    """Gradients 1, 3: v = 1, then (1 - 0.5743) 9 + 0.5743 1 with 0.5743 = 2^-0.8 weighing the new one."""
    after = run(
        adafactor(constant, multiply_by_parameter_scale=False, clipping_threshold=100.0),
        {"w": jnp.array([0.0])},
        [{"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}],
    )
    new_share = 2**-0.8
    v = (1 - new_share) * 1 + new_share * 9
    assert after[1]["w"][0] == pytest.approx(-RATE * (1 + 3 / np.sqrt(v)), rel=1e-5)


def test_adafactor_clips_an_update_whose_rms_is_above_the_threshold():
    after = run(
        adafactor(constant, multiply_by_parameter_scale=False, clipping_threshold=1.0),
        {"w": jnp.array([0.0])},
        [{"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}],
    )
    assert after[1]["w"][0] == pytest.approx(-2 * RATE, rel=1e-5)


def adafactor_of_the_paper(weight, grads):
    """Algorithm 5 of arXiv:1804.04235 in float64, for a matrix."""
    weight = np.asarray(weight, np.float64)
    row, column = np.zeros(weight.shape[0]), np.zeros(weight.shape[1])
    for t, grad in enumerate(grads, start=1):
        grad = np.asarray(grad, np.float64)
        decay = 1 - t**-0.8
        square = grad**2 + 1e-30
        row = decay * row + (1 - decay) * square.sum(1)
        column = decay * column + (1 - decay) * square.sum(0)
        update = grad / np.sqrt(np.outer(row, column) / row.sum())
        update /= max(1.0, rms(update))
        weight = weight - RATE * max(1e-3, rms(weight)) * update
    return weight


def test_adafactor_factors_matrices_as_the_paper_does():
    weight, grads = random(0, 128, 130), [random(n, 128, 130, scale=n) for n in (1, 2, 3)]
    tx = adafactor(constant)
    after = run(tx, {"kernel": weight}, [{"kernel": grad} for grad in grads])
    np.testing.assert_allclose(after[-1]["kernel"], adafactor_of_the_paper(weight, grads), rtol=1e-5, atol=1e-6)
    numbers = sum(x.size for x in jax.tree.leaves(tx.init({"kernel": weight})))
    assert numbers < 128 + 130 + 10


def test_hugging_faces_adafactor_agrees():
    import torch
    from transformers.optimization import Adafactor

    weight, grads = random(0, 128, 130), [random(n, 128, 130, scale=n) for n in (1, 2, 3)]
    theirs = torch.nn.Parameter(torch.from_numpy(np.array(weight)))
    optimizer = Adafactor([theirs], lr=RATE, scale_parameter=True, relative_step=False, warmup_init=False)
    for grad in grads:
        theirs.grad = torch.from_numpy(np.array(grad))
        optimizer.step()
    ours = run(adafactor(constant), {"kernel": weight}, [{"kernel": grad} for grad in grads])[-1]["kernel"]
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "matrix"),
    [("query", (128, 4, 32), (128, 128)), ("out", (8, 16, 130), (128, 130))],
)
def test_adafactor_sees_attention_kernels_as_matrices(name, shape, matrix):
    weight, grad = random(0, *shape), random(1, *shape)
    split = {"encoder": {"layers_0": {"attention": {name: {"kernel": weight}}}}}
    [after] = run(adafactor(constant), split, [jax.tree.map(lambda _: grad, split)])
    want = adafactor_of_the_paper(weight.reshape(matrix), [grad.reshape(matrix)]).reshape(shape)
    got = after["encoder"]["layers_0"]["attention"][name]["kernel"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- AdamW


def test_adamws_first_step_is_the_sign():
    [after] = run(adamw(constant), {"w": jnp.array([3.0, 4.0])}, [{"w": jnp.array([0.2, -0.7])}])
    np.testing.assert_allclose(after["w"], [3.0 - RATE, 4.0 + RATE], rtol=1e-6)


def test_torchs_adamw_agrees():
    import torch

    weight, grads = random(0, 5, 7), [random(n, 5, 7, scale=n) for n in (1, 2, 3)]
    theirs = torch.nn.Parameter(torch.from_numpy(np.array(weight)))
    optimizer = torch.optim.AdamW([theirs], lr=RATE, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    for grad in grads:
        theirs.grad = torch.from_numpy(np.array(grad))
        optimizer.step()
    tx = adamw(constant, clip_norm=None, weight_decay=0.1)
    ours = run(tx, {"kernel": weight}, [{"kernel": grad} for grad in grads])[-1]["kernel"]
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_rms_scaled_moves_each_weight_by_its_own_size():
    params = {"large": jnp.array([30.0, 40.0]), "small": jnp.array([0.3, -0.4]), "zero": jnp.zeros(2)}
    grad = jax.tree.map(jnp.ones_like, params)
    [after] = run(adamw_rms_scaled(constant), params, [grad])
    for name, size in (("large", np.sqrt(1250)), ("small", np.sqrt(0.125)), ("zero", 1e-3)):
        np.testing.assert_allclose(after[name], params[name] - RATE * size, rtol=1e-5)


# ---------------------------------------------------------------------- all of them

ALL = pytest.mark.parametrize("make", [adafactor, adamw, adamw_rms_scaled])


@ALL
def test_clipping_is_by_the_norm_of_all_gradients_together(make):
    params = {"a": random(0, 3), "b": random(1, 2, 2)}
    grads = some_grads(params, 3)
    shrink = [min(1.0, 1.0 / float(optax.global_norm(grad))) for grad in grads]
    by_hand = [optax.tree_utils.tree_scale(scale, grad) for scale, grad in zip(shrink, grads, strict=True)]
    clipped = run(make(constant, clip_norm=1.0), params, grads)[-1]
    want = run(make(constant, clip_norm=None), params, by_hand)[-1]
    unclipped = run(make(constant, clip_norm=None), params, grads)[-1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), clipped, want)
    assert not np.allclose(clipped["a"], unclipped["a"], rtol=1e-4)


@ALL
def test_only_kernels_and_embeddings_decay(make):
    names = ("kernel", "embedding", "scale", "rel_embedding")
    params = {"module": {name: jnp.full((2, 2), 2.0) for name in names}}
    grads = jax.tree.map(jnp.zeros_like, params)
    [after] = run(make(constant, weight_decay=0.1), params, [grads])
    sizes = {name: float(after["module"][name][0, 0]) for name in names}
    kept = 2.0 * (1 - RATE * 0.1)
    assert sizes == pytest.approx({"kernel": kept, "embedding": kept, "scale": 2.0, "rel_embedding": 2.0})


@ALL
def test_scanned_layers_train_as_unrolled_ones(make):
    def layer(seed, size):
        return {
            "attention": {"query": {"kernel": random(seed, 128, 4, 32, scale=size)}},
            "mlp": {"wi": {"kernel": random(seed + 1, 128, 128, scale=size)}},
            "norm": {"scale": random(seed + 2, 128)},
        }

    # Layers of very different sizes: one statistic for the whole stack would move the small one far too much.
    params = {
        "token_embedder": {"embedding": random(9, 130, 128)},
        "encoder": {"layers_0": layer(0, 1.0), "layers_1": layer(3, 0.01)},
        "decoder": {"layers_0": layer(6, 0.1)},
    }
    grads = some_grads(params, 2)
    unrolled = stack_layers(run(make(constant), params, grads)[-1])
    scanned = run(make(constant), stack_layers(params), [stack_layers(grad) for grad in grads])[-1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), scanned, unrolled)
