"""Greedy decoding: a model made by hand whose answer can be read off, then against teacher forcing."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t5x_lite.decoding.generator import Generation, Generator
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.sampling import sample
from t5x_lite.model import T5Config, abstract_params, axis_rules, bind, stack_layers

EOS = 1
CONFIG = T5Config(
    vocab_size=20, d_model=16, num_heads=2, head_dim=8, d_ff=24, num_encoder_layers=1, num_decoder_layers=2
)


def random_params(config, seed):
    """Cheaper than init_params, which would be compiled for every config here."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), leaf.dtype), abstract_params(config))


PARAMS = random_params(CONFIG, 0)


def counting_model():
    """After token i comes i + 1, after 5 comes EOS: the head reads the last token off its unit vector.

    All sublayers write zeros, so the residual stream is the embedding alone.
    """
    config = dataclasses.replace(CONFIG, vocab_size=8, d_model=8)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(config))
    params["token_embedder"]["embedding"] = jnp.eye(8)
    params["decoder"]["decoder_norm"]["scale"] = jnp.ones(8)
    successors = jnp.array([2, 0, 3, 4, 5, EOS, 0, 0])
    params["decoder"]["logits_dense"]["kernel"] = jax.nn.one_hot(successors, 8)
    return config, params


def counting_score(steps):
    """Each step has one logit of sqrt(8) (a unit vector, normed) among seven of 0."""
    top = np.sqrt(8)
    return steps * (top - np.log(np.exp(top) + 7))


def test_counts_to_the_end_by_hand():
    config, params = counting_model()
    inputs = jnp.array([[3, 1], [0, 0]])
    decoded = jax.jit(lambda params: greedy(config, params, inputs, 8))(params)
    np.testing.assert_array_equal(decoded.tokens, [[2, 3, 4, 5, EOS, 0, 0, 0], [0] * 8])
    np.testing.assert_array_equal(decoded.ended, [True, True])
    np.testing.assert_allclose(decoded.scores, [counting_score(5), 0.0], rtol=1e-4)


def test_length_runs_out_by_hand():
    config, params = counting_model()
    (generation,) = Generator(config, params, eos_id=EOS).generate([[3, 1]], 3)
    assert generation.tokens == [2, 3, 4]
    assert not generation.ended


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_every_token_is_the_likeliest_given_those_before(scan_layers):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    params = random_params(CONFIG, 7)
    params = stack_layers(params) if scan_layers else params
    inputs = np.random.default_rng(0).integers(2, 20, (6, 7))
    eos_id = 7  # a token that this model likes, so that some rows end and some do not
    decoded = jax.jit(lambda params: greedy(bind(config, params), inputs, max_length=9, eos_id=eos_id))(params)
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(decoded.tokens, ((0, 0), (1, 0)))[:, :-1],
    }
    log_probs = jax.nn.log_softmax(jax.jit(lambda params: bind(config, params)(batch))(params))
    assert 0 < decoded.ended.sum() < 6
    for row in range(6):
        tokens = np.asarray(decoded.tokens[row])
        length = int(np.argmax(tokens == eos_id)) + 1 if decoded.ended[row] else 9
        np.testing.assert_array_equal(tokens[:length], np.argmax(log_probs[row, :length], axis=-1))
        np.testing.assert_array_equal(tokens[length:], 0)
        np.testing.assert_allclose(decoded.scores[row], log_probs[row, :length].max(axis=-1).sum(), rtol=1e-4)


def random_inputs():
    rng = np.random.default_rng(0)
    return [rng.integers(2, 20, length).tolist() for length in (3, 40, 5, 3)]


def test_generator_keeps_the_order_and_the_answers_of_one_at_a_time():
    generator = Generator(CONFIG, PARAMS, eos_id=EOS, max_batch=2)
    one_by_one = jax.jit(lambda params, tokens: greedy(bind(CONFIG, params), tokens, max_length=6, eos_id=EOS))
    together = generator.generate(random_inputs(), 6)
    for tokens, found in zip(random_inputs(), together, strict=True):
        alone = one_by_one(PARAMS, jnp.array([tokens]))
        assert found.ended == bool(alone.ended[0])
        assert [*found.tokens, *([EOS] if found.ended else [])] == np.trim_zeros(alone.tokens[0], "b").tolist()
        np.testing.assert_allclose(found.score, alone.scores[0], rtol=1e-4)


def test_compiles_once_a_bucket_and_never_for_new_weights():
    generator = Generator(CONFIG, PARAMS, eos_id=EOS, max_batch=4)
    generator.generate([[2] * 5] * 3, 4)
    generator.generate([[2] * 32] * 4, 4)
    before = generator.generate([[3] * 7] * 9, 4)[0]
    assert generator.compile_count == 2  # rows of 4, and the ninth input alone
    generator.params = random_params(CONFIG, 5)
    after = generator.generate([[3] * 7] * 9, 4)[0]
    assert generator.compile_count == 2
    assert before != after
    generator.generate([[2] * 33], 4)
    assert generator.compile_count == 3


def test_nothing_to_generate():
    generator = Generator(CONFIG, PARAMS, eos_id=EOS)
    assert generator.generate([], 4) == []
    assert generator.compile_count == 0
    assert generator.generate([[]], 4) == [Generation([], 0.0, True)]


@dataclasses.dataclass
class EightDevices:
    """The part of a partitioner that the generator reads: 4-way data, 2-way model."""

    data_size: int = 4

    def __post_init__(self):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        self.mesh = mesh
        self.batch_sharding = NamedSharding(mesh, PartitionSpec("data"))
        self.replicated = NamedSharding(mesh, PartitionSpec())

    @contextlib.contextmanager
    def context(self):
        with jax.set_mesh(self.mesh), axis_rules((("batch", "data"), ("heads", "model"), ("vocab", "model"))):
            yield


def test_eight_devices_answer_as_one():
    partitioner = EightDevices()
    params = jax.device_put(PARAMS, partitioner.replicated)
    spread = Generator(CONFIG, params, eos_id=EOS, partitioner=partitioner).generate(random_inputs(), 6)
    single = Generator(CONFIG, PARAMS, eos_id=EOS).generate(random_inputs(), 6)
    assert [(g.tokens, g.ended) for g in spread] == [(g.tokens, g.ended) for g in single]
    np.testing.assert_allclose([g.score for g in spread], [g.score for g in single], rtol=1e-4)
