"""Low-rank adapters: a kernel W acts as W + alpha / rank * A B, whatever its shape and the layout of the layers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.model import Lora, T5Config, abstract_params, bind, init_params, logical_axes, unstack_layers
from t5x_lite.model.lora import is_adapter, merge_adapter
from t5x_lite.model.names import named, nested

BASE = T5Config(
    vocab_size=40,
    d_model=16,
    num_heads=2,
    head_dim=4,
    d_ff=24,
    num_encoder_layers=1,
    num_decoder_layers=2,
    activations=("relu",),
)
EVERY_KERNEL = Lora(rank=3, alpha=6.0, targets=(".*",))
SCALE = 6.0 / 3
RNG = np.random.default_rng(0)
BATCH = {"encoder_input_tokens": RNG.integers(1, 40, (2, 6)), "decoder_input_tokens": RNG.integers(1, 40, (2, 5))}
WEIGHTS = RNG.normal(size=(2, 5, 40))

both_layouts = pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])


def with_lora(lora=EVERY_KERNEL, **settings) -> T5Config:
    return dataclasses.replace(BASE, lora=lora, **settings)


def trained(config: T5Config) -> dict:
    """Weights by name as training leaves them: both factors are far from zero."""
    rng = np.random.default_rng(1)
    shapes = named(abstract_params(config))
    return {name: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, leaf.dtype) for name, leaf in shapes.items()}


def without_adapters(params: dict) -> dict:
    return {name: leaf for name, leaf in params.items() if not is_adapter(name)}


def matrices(name: str, kernel, a, b) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel and factors in float64 as stacks of matrices, [layers, inputs, outputs]; one layer where not stacked."""
    layers, rank = (len(kernel) if "/layers/" in name else 1), a.shape[-1]
    a, b = np.asarray(a, np.float64).reshape(layers, -1, rank), np.asarray(b, np.float64).reshape(layers, rank, -1)
    return np.asarray(kernel, np.float64).reshape(layers, a.shape[1], b.shape[2]), a, b


def explicit(params: dict) -> dict:
    """The weights of a model without adapters that has W + alpha / rank * A B where `params` have W, A and B."""
    weights = without_adapters(params)
    for name in weights:
        if name.endswith("/kernel"):
            factors = [params[name.replace("/kernel", f"/lora_{factor}")] for factor in "ab"]
            kernel, a, b = matrices(name, weights[name], *factors)
            weights[name] = jnp.asarray((kernel + SCALE * a @ b).reshape(weights[name].shape), jnp.float32)
    return weights


def logits_of(config: T5Config, params: dict) -> jax.Array:
    return jax.jit(lambda params: bind(config, nested(params))(BATCH))(params)


def logits_and_gradients(config: T5Config, params: dict) -> tuple[jax.Array, dict]:
    def loss(params):
        logits = bind(config, nested(params))(BATCH)
        return jnp.sum(logits * WEIGHTS), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return logits, gradients


def assert_close(found, expected, **message):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), **message)


# ---------------------------------------------------------------------- what the model computes


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def layout(request):
    """(weights, logits and gradients with adapters, the same of `explicit` weights without)."""
    config = with_lora(scan_layers=request.param, num_decoder_layers=2 if request.param else 1)
    params = trained(config)
    base = dataclasses.replace(config, lora=None)
    return params, logits_and_gradients(config, params), logits_and_gradients(base, explicit(params))


def test_adapters_act_as_the_kernels_with_their_product_added(layout):
    _, (logits, _), (expected, _) = layout
    assert_close(logits, expected)


def test_gradients_of_the_factors_are_those_that_the_product_rule_gives(layout):
    """With G the gradient of a kernel: A gets alpha / rank * G B^T, and B gets alpha / rank * A^T G."""
    params, (_, found), (_, of_kernels) = layout
    adapted = [name for name in of_kernels if name.endswith("/kernel")]
    # Attention has 4 kernels, the MLP 2: (4 + 2) in the encoder, (4 + 4 + 2) in the decoder, and the head.
    assert len(adapted) == 6 + 10 + 1
    for name in adapted:
        names = [name.replace("/kernel", f"/lora_{factor}") for factor in "ab"]
        gradient, a, b = matrices(name, of_kernels[name], *(params[factor] for factor in names))
        expected = SCALE * gradient @ b.swapaxes(1, 2), SCALE * a.swapaxes(1, 2) @ gradient
        for factor, values in zip(names, expected, strict=True):
            assert_close(found[factor], values.reshape(found[factor].shape), err_msg=factor)


@pytest.mark.parametrize("layout", [True], indirect=True, ids=["scanned"])
def test_scanned_and_unrolled_layers_are_the_same_model(layout):
    params, (logits, _), _ = layout
    unrolled = named(unstack_layers(nested(params)))
    assert unrolled.keys() == named(abstract_params(with_lora())).keys()
    assert_close(logits_of(with_lora(), unrolled), logits)


@pytest.fixture(scope="module")
def drawn():
    """(configuration, its random weights, those of the same one without adapters), from one key."""
    config = with_lora(Lora(targets=(".*attention/out", "decoder/.*/wo")), scan_layers=True, tie_embeddings=True)
    configs = config, dataclasses.replace(config, lora=None)
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles several times faster than the default
    params, base = jax.jit(lambda key: [init_params(config, key) for config in configs])(key)
    return config, named(params), named(base)


def test_adapters_leave_the_other_weights_as_they_are_drawn(drawn):
    _, params, base = drawn
    assert without_adapters(params).keys() == base.keys()
    for name, leaf in base.items():
        np.testing.assert_array_equal(params[name], leaf, err_msg=name)


def test_a_starts_random_in_its_own_way_everywhere_and_b_at_zero(drawn):
    _, params, _ = drawn
    firsts, seconds = ([np.asarray(v) for k, v in params.items() if k.endswith(f)] for f in ("lora_a", "lora_b"))
    assert len(firsts) == len(seconds) == 1 + 2 + 1 and not any(map(np.any, seconds))
    layers = [layer.ravel() for stack in firsts for layer in stack]
    assert len(layers) == 1 + 2 * 2 + 2
    assert len({tuple(layer[:8]) for layer in layers}) == len(layers)
    # Of variance 1 / inputs, so that A x is as large as x.
    assert np.std(params["decoder/layers/mlp/wo/lora_a"]) == pytest.approx(24**-0.5, rel=0.2)
    assert np.std(params["decoder/layers/self_attention/out/lora_a"]) == pytest.approx((2 * 4) ** -0.5, rel=0.2)


@pytest.mark.parametrize(("scanned", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_a_model_begins_as_the_one_without_adapters_bit_for_bit(drawn, scanned, dtype):
    config, params, _ = drawn
    params = {name: leaf if is_adapter(name) else leaf.astype(dtype) for name, leaf in params.items()}
    config = dataclasses.replace(config, scan_layers=scanned, dtype=dtype, param_dtype=dtype)
    params = params if scanned else named(unstack_layers(nested(params)))
    expected = logits_of(dataclasses.replace(config, lora=None), without_adapters(params))
    np.testing.assert_array_equal(logits_of(config, params), expected)


# ---------------------------------------------------------------------- merging

SHAPES = {  # of a kernel, and of its factors of rank 3
    "self_attention/query": ((16, 2, 4), (16, 3), (3, 2, 4)),
    "self_attention/out": ((2, 4, 16), (2, 4, 3), (3, 16)),
    "mlp/wi": ((16, 24), (16, 3), (3, 24)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("stack", [(), (5,)], ids=["one layer", "a stack"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_merging_adds_the_product_in_float32(shapes, stack, dtype):
    rng = np.random.default_rng(0)
    kernel, a, b = (jnp.asarray(rng.normal(size=(*stack, *shape)), jnp.float32) for shape in shapes)
    kernel = kernel.astype(dtype)
    found = merge_adapter(kernel, a, b, EVERY_KERNEL)
    expected = np.empty(kernel.shape)
    for layer in np.ndindex(stack):
        inputs = math.prod(shapes[1][:-1])
        product = np.asarray(a[layer], np.float64).reshape(inputs, 3) @ np.asarray(b[layer]).reshape(3, -1)
        expected[layer] = np.asarray(kernel[layer], np.float64) + SCALE * product.reshape(shapes[0])
    assert found.dtype == dtype
    if dtype == jnp.bfloat16:  # rounded once, to 8 significant bits
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8 * 1.001, atol=1e-6)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- which kernels, and how they are laid out


def test_queries_and_values_get_adapters_unless_told_otherwise():
    kinds = ("self_attention", "encoder_decoder_attention")
    modules = ["encoder/layers_0/attention", *(f"decoder/layers_{n}/{kind}" for n in range(2) for kind in kinds)]
    expected = {f"{module}/{kernel}/lora_{f}" for module in modules for kernel in ("query", "value") for f in "ab"}
    assert {name for name in named(abstract_params(with_lora(Lora()))) if is_adapter(name)} == expected


@both_layouts
def test_a_target_means_a_kernel_of_every_layer_in_either_layout(scanned):
    config = with_lora(Lora(targets=("decoder/layers/mlp/wo", "decoder/logits_dense")), scan_layers=scanned)
    layers = ["layers"] if scanned else ["layers_0", "layers_1"]
    modules = [f"decoder/{layer}/mlp/wo" for layer in layers] + ["decoder/logits_dense"]
    found = {name for name in named(abstract_params(config)) if is_adapter(name)}
    assert found == {f"{module}/lora_{factor}" for module in modules for factor in "ab"}


@pytest.mark.parametrize(("module", "shapes"), SHAPES.items(), ids=SHAPES)
def test_factors_have_the_kernels_outer_axes_and_are_float32_beside_bfloat16(module, shapes):
    config = with_lora(param_dtype="bfloat16", scan_layers=True)
    names = [f"decoder/layers/{module}/{leaf}" for leaf in ("kernel", "lora_a", "lora_b")]
    found = [named(abstract_params(config))[name] for name in names]
    assert [leaf.shape for leaf in found] == [(2, *shape) for shape in shapes]
    assert [leaf.dtype for leaf in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
    first, second = module.split("/")
    axes = logical_axes(config)["decoder"]["layers"][first][second]
    inputs, outputs = {
        "query": (("embed",), ("heads", "kv")),
        "out": (("heads", "kv"), ("embed",)),
        "wi": (("embed",), ("mlp",)),
    }[second]
    assert axes["kernel"] == ("layers", *inputs, *outputs)
    assert axes["lora_a"] == ("layers", *inputs, None) and axes["lora_b"] == ("layers", None, *outputs)


def test_adapters_of_flan_t5_small_are_a_megabyte():
    config = T5Config(
        vocab_size=32128, d_model=512, num_heads=6, d_ff=1024, num_encoder_layers=8, num_decoder_layers=8, lora=Lora()
    )
    sizes = [leaf.size for name, leaf in named(abstract_params(config)).items() if is_adapter(name)]
    # 8 + 2 * 8 attentions, 2 kernels of 512 x 384 in each, rank 8.
    assert sum(sizes) == 24 * 2 * 8 * (512 + 384) == 344_064
    assert config.num_parameters == 76_961_152  # the model's, as published


@pytest.mark.parametrize(
    ("targets", "named_one"),
    [(("attention/query",), "attention/query"), ((".*query", "encoder/layers_0/.*"), "encoder/layers_0/.*")],
    ids=["part of a name", "one layer"],
)
def test_a_target_that_names_no_kernel_is_told_in_one_line(targets, named_one):
    with pytest.raises(ValueError, match=r"Lora\.targets: ") as error:
        abstract_params(with_lora(Lora(targets=targets)))
    assert f"{named_one!r} names no kernel; the model has decoder/layers/encoder_decoder_attention/" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 0}, r"Lora\.rank is 0; it must be at least 1"),
        ({"targets": ()}, r"Lora\.targets is empty; name at least one kernel"),
        ({"targets": ("(",)}, r"Lora\.targets: '\(' is no regex"),
    ],
)
def test_impossible_adapters_are_named(settings, says):
    with pytest.raises(ValueError, match=says) as error:
        Lora(**settings)
    assert "\n" not in str(error.value)
