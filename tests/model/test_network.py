"""The tree of weights: its names, sizes, axes, initial numbers, and the two layouts of its layers."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.model import (
    T5,
    T5Config,
    abstract_params,
    bind,
    init_params,
    logical_axes,
    stack_layers,
    unstack_layers,
)

TINY = T5Config(vocab_size=11, d_model=8, num_heads=2, head_dim=4, d_ff=12, num_encoder_layers=2, num_decoder_layers=3)
SCANNED = dataclasses.replace(TINY, scan_layers=True)

NAMES_OF_ONE_LAYER = """
decoder/decoder_norm/scale                                      8       embed
decoder/layers_0/encoder_decoder_attention/key/kernel           8,2,4   embed,heads,kv
decoder/layers_0/encoder_decoder_attention/out/kernel           2,4,8   heads,kv,embed
decoder/layers_0/encoder_decoder_attention/query/kernel         8,2,4   embed,heads,kv
decoder/layers_0/encoder_decoder_attention/value/kernel         8,2,4   embed,heads,kv
decoder/layers_0/mlp/wi_0/kernel                                8,12    embed,mlp
decoder/layers_0/mlp/wi_1/kernel                                8,12    embed,mlp
decoder/layers_0/mlp/wo/kernel                                  12,8    mlp,embed
decoder/layers_0/pre_cross_attention_layer_norm/scale           8       embed
decoder/layers_0/pre_mlp_layer_norm/scale                       8       embed
decoder/layers_0/pre_self_attention_layer_norm/scale            8       embed
decoder/layers_0/self_attention/key/kernel                      8,2,4   embed,heads,kv
decoder/layers_0/self_attention/out/kernel                      2,4,8   heads,kv,embed
decoder/layers_0/self_attention/query/kernel                    8,2,4   embed,heads,kv
decoder/layers_0/self_attention/value/kernel                    8,2,4   embed,heads,kv
decoder/logits_dense/kernel                                     8,11    embed,vocab
decoder/relpos_bias/rel_embedding                               2,32    heads,relpos_buckets
encoder/encoder_norm/scale                                      8       embed
encoder/layers_0/attention/key/kernel                           8,2,4   embed,heads,kv
encoder/layers_0/attention/out/kernel                           2,4,8   heads,kv,embed
encoder/layers_0/attention/query/kernel                         8,2,4   embed,heads,kv
encoder/layers_0/attention/value/kernel                         8,2,4   embed,heads,kv
encoder/layers_0/mlp/wi_0/kernel                                8,12    embed,mlp
encoder/layers_0/mlp/wi_1/kernel                                8,12    embed,mlp
encoder/layers_0/mlp/wo/kernel                                  12,8    mlp,embed
encoder/layers_0/pre_attention_layer_norm/scale                 8       embed
encoder/layers_0/pre_mlp_layer_norm/scale                       8       embed
encoder/relpos_bias/rel_embedding                               2,32    heads,relpos_buckets
token_embedder/embedding                                        11,8    vocab,embed
"""


def flat(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, tuple))
    return {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}


def table(config):
    shapes, axes = flat(abstract_params(config)), flat(logical_axes(config))
    assert shapes.keys() == axes.keys()
    return {name: (shapes[name].shape, axes[name]) for name in shapes}


def expected_table():
    rows = (line.split() for line in NAMES_OF_ONE_LAYER.strip().splitlines())
    return {name: (tuple(map(int, shape.split(","))), tuple(axes.split(","))) for name, shape, axes in rows}


def test_names_shapes_and_axes_of_an_unrolled_model():
    one_layer = dataclasses.replace(TINY, num_encoder_layers=1, num_decoder_layers=1)
    assert table(one_layer) == expected_table()


def test_names_shapes_and_axes_of_a_scanned_model():
    layers = {"encoder": 2, "decoder": 3}
    expected = {}
    for name, (shape, axes) in expected_table().items():
        if "layers_0" in name:
            shape, axes = (layers[name.split("/")[0]], *shape), ("layers", *axes)
        expected[name.replace("layers_0", "layers")] = (shape, axes)
    assert table(SCANNED) == expected


def test_version_1_0_has_one_input_matrix_and_no_head():
    names = table(dataclasses.replace(TINY, activations=("relu",), tie_embeddings=True))
    assert names["encoder/layers_1/mlp/wi/kernel"] == ((8, 12), ("embed", "mlp"))
    assert not any("wi_" in name or "logits_dense" in name for name in names)


@pytest.mark.parametrize(
    ("d_model", "num_heads", "layers", "d_ff", "count"),
    [
        (512, 6, 8, 1024, 76_961_152),
        (768, 12, 12, 2048, 247_577_856),
        (1024, 16, 24, 2816, 783_150_080),
        (2048, 32, 24, 5120, 2_849_757_184),
        (4096, 64, 24, 10240, 11_135_332_352),
    ],
    ids=["small", "base", "large", "xl", "xxl"],
)
def test_published_sizes(d_model, num_heads, layers, d_ff, count):
    config = T5Config(
        vocab_size=32128,
        d_model=d_model,
        num_heads=num_heads,
        d_ff=d_ff,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        scan_layers=True,
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config))) == count
    assert config.num_parameters == count


def test_vocabulary_must_be_known():
    with pytest.raises(ValueError, match="vocab_size is 0"):
        abstract_params(dataclasses.replace(TINY, vocab_size=0))


def test_init_fits_the_abstract_tree_in_either_dtype():
    for config in (TINY, SCANNED, dataclasses.replace(TINY, param_dtype="bfloat16")):
        drawn = jax.eval_shape(lambda key, config=config: init_params(config, key), jax.random.key(0))
        assert drawn == abstract_params(config)


def test_init_has_the_published_spread():
    config = T5Config(
        vocab_size=400,
        d_model=64,
        num_heads=8,
        head_dim=32,
        d_ff=300,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    params = flat(init_params(config, jax.random.key(1)))
    expected = {
        "token_embedder/embedding": 1.0,
        "encoder/layers_0/attention/query/kernel": (64 * 32) ** -0.5,
        "encoder/layers_0/attention/key/kernel": 64**-0.5,
        "encoder/layers_0/attention/value/kernel": 64**-0.5,
        "encoder/layers_0/attention/out/kernel": (8 * 32) ** -0.5,
        "encoder/layers_0/mlp/wi_1/kernel": 64**-0.5,
        "decoder/layers_0/mlp/wo/kernel": 300**-0.5,
        "decoder/logits_dense/kernel": 64**-0.5,
    }
    for name, stddev in expected.items():
        np.testing.assert_allclose(np.std(params[name]), stddev, rtol=0.05, err_msg=name)
    np.testing.assert_allclose(np.std(params["encoder/relpos_bias/rel_embedding"]), 64**-0.5, rtol=0.2)
    np.testing.assert_array_equal(params["decoder/decoder_norm/scale"], np.ones(64))


def test_no_two_weights_share_their_numbers():
    params = flat(init_params(TINY, jax.random.key(0)))
    first = [float(leaf.ravel()[0]) / float(np.std(leaf)) for name, leaf in params.items() if "scale" not in name]
    assert len({round(value, 4) for value in first}) == len(first)


def test_scanned_and_unrolled_models_start_with_the_same_numbers():
    """init_params draws stacks; a module built directly, layer by layer, agrees."""
    direct = nnx.to_pure_dict(nnx.split(T5(TINY, jax.random.key(3)))[1])
    unrolled, scanned = init_params(TINY, jax.random.key(3)), init_params(SCANNED, jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), direct, unrolled)
    assert_same(stack_layers(unrolled), scanned)


def test_stack_and_unstack_are_exact_inverses():
    params = numbered_params(TINY)
    assert_same(unstack_layers(stack_layers(params)), params)
    scanned = numbered_params(SCANNED)
    assert_same(stack_layers(unstack_layers(scanned)), scanned)


def test_stack_keeps_the_order_of_more_than_ten_layers():
    """layers_10 sorts before layers_2 as text."""
    config = dataclasses.replace(TINY, num_encoder_layers=12)
    params = numbered_params(config)
    for n in range(12):
        params["encoder"][f"layers_{n}"]["mlp"]["wo"]["kernel"] = jnp.full((12, 8), float(n))
    stacked = stack_layers(params)["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(stacked[:, 0, 0], np.arange(12.0))


def test_bound_model_reads_the_given_weights():
    params = numbered_params(TINY)
    tokens = jnp.array([[3, 4, 0]])
    doubled = params | {"token_embedder": {"embedding": 2 * params["token_embedder"]["embedding"]}}
    encode = jax.jit(lambda params: bind(TINY, params)._embed(tokens))
    np.testing.assert_array_equal(encode(doubled), 2 * encode(params))


@pytest.mark.parametrize("module", ["t5x_lite.model", "t5x_lite.decoding", "t5x_lite.decoding.generator"])
def test_import_needs_no_tensorflow(module):
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def numbered_params(config):
    """Every weight of the model holds numbers of its own."""
    numbers = itertools.count()
    return jax.tree.map(
        lambda leaf: jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape) + 1000.0 * next(numbers),
        abstract_params(config),
    )


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
