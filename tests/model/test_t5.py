"""The whole model: what it must not see, and the same numbers by every way of computing them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.model import T5Config, abstract_params, bind, stack_layers

CONFIG = T5Config(
    vocab_size=40,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.1,
)
KEY = jax.random.key(7)


def random_params(config, seed):
    """Cheaper than init_params, which would be compiled for every config here."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), leaf.dtype), abstract_params(config))


PARAMS = random_params(CONFIG, 0)


@functools.lru_cache
def jitted(config):
    return jax.jit(lambda params, batch, key: bind(config, params)(batch, dropout_key=key))


def forward(batch, config=CONFIG, params=PARAMS, key=None):
    return jitted(config)(params, batch, key)


def loss_and_gradient(config, params, batch, key):
    def loss(params):
        logits = bind(config, params)(batch, dropout_key=key)
        log_probs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
        return -jnp.sum(picked * batch["decoder_loss_weights"])

    return jax.jit(jax.value_and_grad(loss))(params)


def random_batch(rows=3, inputs=9, targets=6):
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 40, (rows, inputs))
    tokens[0, 5:] = 0
    targets = rng.integers(2, 40, (rows, targets))
    targets[1, 4:] = 0
    return {
        "encoder_input_tokens": tokens,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.float32),
    }


def packed_row():
    """Three examples of lengths (4, 3), (2, 1), (3, 4) in one row of (10, 9), and each alone, padded."""
    rng = np.random.default_rng(1)
    lengths = [(4, 3), (2, 1), (3, 4)]
    pairs = [(rng.integers(2, 40, s), rng.integers(2, 40, t)) for s, t in lengths]

    def shifted(target):
        return np.concatenate([[0], target[:-1]])

    def laid(parts, size):
        row = np.concatenate(parts)
        return np.pad(row, (0, size - len(row)))[None]

    def segments(column, size):
        return laid([np.full(pair[column], n + 1) for n, pair in enumerate(lengths)], size)

    packed = {
        "encoder_input_tokens": laid([s for s, _ in pairs], 10),
        "decoder_input_tokens": laid([shifted(t) for _, t in pairs], 9),
        "encoder_segment_ids": segments(0, 10),
        "decoder_segment_ids": segments(1, 9),
        "encoder_positions": laid([np.arange(s) for s, _ in lengths], 10),
        "decoder_positions": laid([np.arange(t) for _, t in lengths], 9),
    }
    alone = {
        "encoder_input_tokens": np.concatenate([laid([s], 6) for s, _ in pairs]),
        "decoder_input_tokens": np.concatenate([laid([shifted(t)], 5) for _, t in pairs]),
    }
    return packed, alone, lengths


def test_packed_equals_unpacked():
    packed, alone, lengths = packed_row()
    together, apart = forward(packed)[0], forward(alone)
    start = 0
    for row, (_, length) in enumerate(lengths):
        np.testing.assert_allclose(together[start : start + length], apart[row, :length], rtol=1e-5, atol=1e-5)
        start += length


def test_packed_examples_do_not_see_each_other():
    """The gradient of the second example's logits by the first example's embedded tokens is exactly zero."""
    packed, _, _ = packed_row()
    other = dict(packed, encoder_input_tokens=packed["encoder_input_tokens"].copy())
    other["encoder_input_tokens"][0, 4:6] = [38, 39]
    before, after = forward(packed)[0], forward(other)[0]
    np.testing.assert_array_equal(before[:3], after[:3])
    np.testing.assert_array_equal(before[4:8], after[4:8])
    assert (before[3] != after[3]).any()


def test_padding_changes_nothing():
    batch = random_batch()
    longer = {name: np.pad(values, ((0, 0), (0, 3))) for name, values in batch.items()}
    np.testing.assert_allclose(forward(longer)[:, :6], forward(batch), rtol=1e-5, atol=1e-5)


def test_decoder_does_not_see_ahead_and_encoder_does():
    batch = random_batch()
    changed = dict(batch, decoder_input_tokens=batch["decoder_input_tokens"].copy())
    changed["decoder_input_tokens"][:, 3] = 39
    before, after = forward(batch), forward(changed)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3] != after[:, 3]).any()
    tokens = batch["encoder_input_tokens"].copy()
    tokens[2, -1] = 39
    encode = jax.jit(lambda tokens: bind(CONFIG, PARAMS).encode(tokens))
    assert (encode(tokens)[2, 0] != encode(batch["encoder_input_tokens"])[2, 0]).any()


def test_token_outside_of_the_vocabulary_is_not_a_number():
    batch = random_batch()
    batch["encoder_input_tokens"][1, 0] = 40
    finite = np.isfinite(forward(batch)).all(axis=(1, 2))
    np.testing.assert_array_equal(finite, [True, False, True])


@pytest.fixture(scope="module")
def unrolled_without_remat():
    return loss_and_gradient(CONFIG, PARAMS, random_batch(), KEY)


@pytest.mark.parametrize(
    ("remat", "scan_layers"),
    [("minimal", False), ("full", False), ("none", True), ("minimal", True), ("full", True), ("offload", True)],
)
def test_scan_and_remat_change_no_number(unrolled_without_remat, remat, scan_layers):
    """Dropout is on, so the masks are the same too."""
    expected_loss, expected = unrolled_without_remat
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers, remat=remat)
    params = stack_layers(PARAMS) if scan_layers else PARAMS
    loss, gradient = loss_and_gradient(config, params, random_batch(), KEY)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    expected = stack_layers(expected) if scan_layers else expected
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, expected)


def test_remat_keeps_less_for_the_backward_pass():
    """What the three policies are for: bytes kept from forward to backward, none > minimal > full."""
    batch = random_batch()

    def kept(remat):
        config = dataclasses.replace(CONFIG, remat=remat)
        _, backward = jax.eval_shape(lambda params: jax.vjp(lambda p: bind(config, p)(batch), params), PARAMS)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept("none") > kept("minimal") > kept("full")


def test_dropout_follows_its_key():
    batch = random_batch()
    with_key = forward(batch, key=KEY)
    np.testing.assert_array_equal(with_key, forward(batch, key=KEY))
    assert (with_key != forward(batch)).any()
    assert (with_key != forward(batch, key=jax.random.key(8))).any()
    no_rate = dataclasses.replace(CONFIG, dropout_rate=0.0)
    np.testing.assert_array_equal(forward(batch, config=no_rate, key=KEY), forward(batch))


def test_bfloat16_computes_near_float32_and_gives_float32_logits():
    batch = random_batch()
    narrow = forward(batch, config=dataclasses.replace(CONFIG, dtype="bfloat16"))
    wide = forward(batch)
    assert narrow.dtype == jnp.float32
    difference = np.abs(narrow - wide).max()
    assert 0 < difference < 0.05 * np.abs(wide).max()


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("tied", [False, True], ids=["v1.1", "v1.0"])
def test_decoding_by_steps_equals_decoding_at_once(scan_layers, tied):
    old = {"activations": ("relu",), "tie_embeddings": True} if tied else {}
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers, **old)
    params = random_params(config, 2)
    batch = random_batch(targets=7)

    @jax.jit
    def by_steps(params):
        model = bind(config, params)
        tokens = batch["encoder_input_tokens"]
        cache = model.start_cache(model.encode(tokens), tokens, 7)

        def step(cache, tokens):
            logits, cache = model.decode_step(tokens, cache)
            return cache, logits

        cache, logits = jax.lax.scan(step, cache, batch["decoder_input_tokens"].T)
        return cache.step, logits.swapaxes(0, 1)

    position, logits = by_steps(params)
    assert position == 7
    np.testing.assert_allclose(logits, forward(batch, config, params), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- from a prefix


PREFIXES = [[5, 6, 7, 8], [], [9, 4]]  # of the three rows of random_batch


def padded_on_the_left(lists, width):
    return np.array([[0] * (width - len(tokens)) + tokens for tokens in lists], np.int32)


def logits_alone(config, params, row, tokens):
    """Of decoder inputs 0, *tokens after one row of random_batch, with no padding in them."""
    batch = {
        "encoder_input_tokens": random_batch()["encoder_input_tokens"][row : row + 1],
        "decoder_input_tokens": np.array([[0, *tokens]]),
    }
    return forward(batch, config, params)[0]


@pytest.mark.parametrize(
    ("settings", "width"),
    [({}, 4), ({}, 7), ({"scan_layers": True}, 4), ({"relative_bias_per_layer": True}, 4)],
    ids=["unrolled", "padded further", "scanned", "bias of each layer"],
)
def test_steps_after_prefixes_of_different_lengths_are_those_of_each_prefix_alone(settings, width):
    """Three tokens follow each prefix, which is padded on its left: to the longest, or further."""
    config = dataclasses.replace(CONFIG, **settings)
    params = random_params(config, 3)
    tokens = random_batch()["encoder_input_tokens"]
    following = np.random.default_rng(5).integers(2, 40, (3, 3))

    @jax.jit
    def decode(params, prefix):
        model = bind(config, params)
        cache = model.start_cache(model.encode(tokens), tokens, width + 4)
        logits, cache = model.decode_prefix(prefix, cache)
        found = [logits]
        for t in range(3):
            logits, cache = model.decode_step(following[:, t], cache)
            found.append(logits)
        return cache.step, jnp.stack(found, axis=1)

    position, found = decode(params, padded_on_the_left(PREFIXES, width))
    assert position == width + 4
    for row, prefix in enumerate(PREFIXES):
        expected = logits_alone(config, params, row, [*prefix, *following[row]])[-4:]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)


def test_no_prefix_is_the_first_step():
    tokens = random_batch()["encoder_input_tokens"]

    @jax.jit
    def both(params):
        model = bind(CONFIG, params)
        cache = model.start_cache(model.encode(tokens), tokens, 2)
        return model.decode_prefix(jnp.zeros((3, 0), jnp.int32), cache)[0], model.decode_step(np.zeros(3, int), cache)[
            0
        ]

    np.testing.assert_allclose(*both(PARAMS), rtol=1e-5, atol=1e-5)


def test_the_cache_hides_what_pads_a_prefix_and_nothing_after_it():
    tokens = random_batch()["encoder_input_tokens"]

    @jax.jit
    def mask(params, prefix):
        model = bind(CONFIG, params)
        cache = model.start_cache(model.encode(tokens), tokens, 7)
        return model.decode_prefix(prefix, cache)[1].past_mask[:, 0, 0]

    found = mask(PARAMS, padded_on_the_left(PREFIXES, 4))
    # The four of the padded prefix and before them its beginning; two more places.
    assert found.astype(int).tolist() == [[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("settings", [{}, {"scan_layers": True}], ids=["unrolled", "scanned"])
def test_targets_with_zeros_on_their_left_get_the_logits_of_those_without(settings):
    """Two for each request; the last are zeros only, and begin at the last of these."""
    config = dataclasses.replace(CONFIG, **settings)
    params = random_params(config, 3)
    tokens = random_batch()["encoder_input_tokens"]
    targets = [[5, 6, 7, 8], [9], [], [4, 4, 4], [30, 31], [7, 0, 0]]  # the last has zeros after it too
    inputs = padded_on_the_left([[0, *target] for target in targets], 6)

    @jax.jit
    def decode(params):
        model = bind(config, params)
        return model.decode_all(inputs, model.start_cache(model.encode(tokens), tokens, 1))

    found = decode(params)
    for row, target in enumerate(targets):
        expected = logits_alone(config, params, row // 2, target)
        np.testing.assert_allclose(found[row, -len(expected) :], expected, rtol=1e-4, atol=1e-4)
