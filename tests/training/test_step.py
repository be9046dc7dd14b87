"""One step: microbatches, meshes and layer layouts change how it is computed, not what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import config as gin_config
from t5x_lite.model import T5Config, attention, products
from t5x_lite.partitioning import Partitioner, make_partitioner
from t5x_lite.training.optimizers import adafactor, adamw, adamw_rms_scaled
from t5x_lite.training.schedules import learning_rate
from t5x_lite.training.state import abstract_state, init_state
from t5x_lite.training.step import make_train_step

CONFIG = T5Config(
    vocab_size=64,
    d_model=32,
    num_heads=4,
    head_dim=8,
    d_ff=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.1,
)
RATE = learning_rate("constant", base_learning_rate=1e-2)
ONE = make_partitioner({"data": 1}, [("batch", "data")])


def batches(count: int, rows: int = 16) -> list[dict[str, np.ndarray]]:
    """Packed batches whose rows have very unequal numbers of target tokens."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        targets = rng.integers(3, 64, (rows, 8)).astype(np.int32)
        lengths = rng.integers(1, 9, (rows, 1))
        weights = (np.arange(8) < lengths).astype(np.int32)
        tokens = rng.integers(3, 64, (rows, 12)).astype(np.int32)
        made.append(
            {
                "encoder_input_tokens": tokens,
                "encoder_segment_ids": np.ones_like(tokens),
                "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1] * weights,
                "decoder_target_tokens": targets * weights,
                "decoder_segment_ids": weights,
                "decoder_loss_weights": weights,
            }
        )
    return made


def losses(partitioner: Partitioner, config=CONFIG, tx=None, microbatches: int = 1, steps: int = 4):
    tx = tx or adamw_rms_scaled(RATE)
    with partitioner.context():
        state = init_state(config, tx, jax.random.key(0), partitioner)
        step = make_train_step(config, tx, partitioner, learning_rate=RATE, microbatches=microbatches)
        found = []
        for batch in batches(steps):
            state, metrics = step(state, partitioner.global_batch(batch), {})
            found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found), state


@pytest.fixture(scope="module")
def on_one_device():
    return losses(ONE)


@pytest.mark.parametrize(
    "preset", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("data", "fsdp")), "fsdp_model"]
)
def test_the_same_losses_on_eight_devices(preset, on_one_device):
    gin_config.load([f"gin/meshes/{preset}.gin"])
    found, _ = losses(gin_config.build("Partitioner"))
    np.testing.assert_allclose(found, on_one_device[0], rtol=2e-4)


@pytest.mark.parametrize("layout", [{}, {"scan_layers": True, "remat": "full"}], ids=["plain", "scan and remat"])
def test_attention_in_parts_of_the_batch_leaves_losses_as_they_are(on_one_device, monkeypatch, layout):
    parts, in_parts = [], attention._attend_in_parts
    monkeypatch.setattr(attention, "_CACHED", 1)
    monkeypatch.setattr(attention, "_attend_in_parts", lambda *args: parts.append(args[-1]) or in_parts(*args))
    found, _ = losses(ONE, dataclasses.replace(CONFIG, **layout))
    assert set(parts) == {16}
    np.testing.assert_allclose(found, on_one_device[0], rtol=2e-4)


def test_fast_bfloat16_products_of_one_cpu_leave_losses_near_to_what_they_were(on_one_device, monkeypatch):
    config, narrow, fast = dataclasses.replace(CONFIG, dtype="bfloat16"), products._narrow, []
    monkeypatch.setattr(products, "_narrow", lambda *args: fast.append(args[-1]) or narrow(*args))
    found, _ = losses(ONE, config)
    assert {str(each) for each in fast} >= {"bfloat16"}
    monkeypatch.setattr(products, "on_one_cpu", lambda: False)
    widened, _ = losses(ONE, config)
    np.testing.assert_allclose(found, widened, rtol=1e-2)
    np.testing.assert_allclose(found[:, 0], on_one_device[0][:, 0], rtol=1e-2)


def test_losses_differ_from_step_to_step_and_dropout_is_on(on_one_device):
    without, _ = losses(ONE, dataclasses.replace(CONFIG, dropout_rate=0.0), steps=1)
    assert abs(without[0, 0] - on_one_device[0][0, 0]) > 1e-3
    assert len(set(on_one_device[0][:, 0])) == 4


@pytest.mark.parametrize("microbatches", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_microbatches_give_the_gradient_of_the_whole_batch(microbatches):
    config = dataclasses.replace(CONFIG, dropout_rate=0.0)
    whole, whole_state = losses(ONE, config, steps=2)
    parts, parts_state = losses(ONE, config, microbatches=microbatches, steps=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(whole_state.params), jax.tree.leaves(parts_state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.slow
def test_microbatches_on_a_mesh():
    config = dataclasses.replace(CONFIG, dropout_rate=0.0)
    gin_config.load(["gin/meshes/fsdp.gin"])
    found, _ = losses(gin_config.build("Partitioner"), config, microbatches=2, steps=2)
    np.testing.assert_allclose(found, losses(ONE, config, steps=2)[0], rtol=2e-4)


def test_the_state_is_donated_and_counts_its_steps():
    tx = adamw(RATE)
    with ONE.context():
        state = init_state(CONFIG, tx, jax.random.key(0), ONE)
        before = jax.tree.leaves(state.params)[0]
        step = make_train_step(CONFIG, tx, ONE, learning_rate=RATE)
        state, metrics = step(state, ONE.global_batch(batches(1)[0]), {})
    assert before.is_deleted()
    assert int(state.step) == 1
    assert metrics["target_tokens"] == batches(1)[0]["decoder_loss_weights"].sum()
    assert metrics["input_tokens"] == 16 * 12


def collectives(preset: str) -> set[str]:
    gin_config.load([f"gin/meshes/{preset}.gin"])
    partitioner = gin_config.build("Partitioner")
    tx = adamw(RATE)
    with partitioner.context():
        step = make_train_step(CONFIG, tx, partitioner, learning_rate=RATE)
        batch = {name: jnp.asarray(rows) for name, rows in batches(1)[0].items()}
        batch = {name: jax.device_put(rows, partitioner.batch_sharding) for name, rows in batch.items()}
        text = step.lower(abstract_state(CONFIG, tx, partitioner), batch, {}).compile().as_text()
    return {name for name in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all") if f" {name}(" in text}


@pytest.mark.slow
def test_each_preset_moves_what_it_must():
    """A constraint that is silently lost shows as a collective that is not there."""
    assert collectives("data") == {"all-reduce"}
    assert {"all-reduce", "all-gather"} <= collectives("fsdp")
    assert {"all-reduce", "all-gather"} <= collectives("fsdp_model")


@pytest.mark.parametrize("make", [adafactor, adamw])
def test_the_optimizer_lies_as_its_parameters_do(make):
    gin_config.load(["gin/meshes/fsdp_model.gin"])
    partitioner = gin_config.build("Partitioner")
    config = dataclasses.replace(CONFIG, d_model=128, d_ff=256)
    state = abstract_state(config, make(RATE), partitioner)
    wi = state.params["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
    assert tuple(wi.sharding.spec) == (("fsdp",), ("model",)) or tuple(wi.sharding.spec) == ("fsdp", "model")
    shapes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]:
        if "encoder/layers_0/mlp/wi_0/kernel" in jax.tree_util.keystr(path, simple=True, separator="/"):
            shapes[leaf.shape] = tuple(leaf.sharding.spec)
    if make is adamw:
        assert shapes == {(128, 256): tuple(wi.sharding.spec)}
    else:
        assert shapes[(128,)] == tuple(wi.sharding.spec)[:1] and shapes[(256,)] == tuple(wi.sharding.spec)[1:]
