"""Against Hugging Face's PyTorch T5 with the same weights: outputs, loss, every gradient, greedy tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from t5x_lite.decoding.greedy import greedy
from t5x_lite.model import T5Config, abstract_params, bind
from t5x_lite.model.layers import relative_buckets

SIZES = {"vocab_size": 60, "d_model": 24, "num_heads": 3, "d_ff": 40}
V1_1 = T5Config(**SIZES, head_dim=8, num_encoder_layers=2, num_decoder_layers=3)
V1_0 = T5Config(
    **SIZES,
    head_dim=8,
    num_encoder_layers=2,
    num_decoder_layers=3,
    activations=("relu",),
    tie_embeddings=True,
)

ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
BLOCKS = {
    "encoder": (("attention", "SelfAttention"), ("mlp", "DenseReluDense")),
    "decoder": (
        ("self_attention", "SelfAttention"),
        ("encoder_decoder_attention", "EncDecAttention"),
        ("mlp", "DenseReluDense"),
    ),
}
NORMS = {
    "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
    "decoder": ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"),
}


def names_in_torch(config):
    """Our path -> the name of the torch parameter, for every weight."""
    names = {("token_embedder", "embedding"): "shared.weight"}
    if not config.tie_embeddings:
        names["decoder", "logits_dense", "kernel"] = "lm_head.weight"
    inputs = {"wi": "wi"} if len(config.activations) == 1 else {"wi_0": "wi_0", "wi_1": "wi_1"}
    for part, layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        table = f"{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[part, "relpos_bias", "rel_embedding"] = table
        names[part, f"{part}_norm", "scale"] = f"{part}.final_layer_norm.weight"
        for n in range(layers):
            for m, ((ours, theirs), norm) in enumerate(zip(BLOCKS[part], NORMS[part], strict=True)):
                block = f"{part}.block.{n}.layer.{m}"
                names[part, f"layers_{n}", norm, "scale"] = f"{block}.layer_norm.weight"
                kernels = inputs | {"wo": "wo"} if ours == "mlp" else {ours: key for key, ours in ATTENTION.items()}
                for kernel, torch_name in kernels.items():
                    names[part, f"layers_{n}", ours, kernel, "kernel"] = f"{block}.{theirs}.{torch_name}.weight"
    return names


def from_torch(config, tensors):
    """Torch weights or gradients as a tree like ours; torch holds [out, in], and the bias table by bucket."""
    shapes, tree = abstract_params(config), {}
    for path, name in names_in_torch(config).items():
        values = tensors[name].detach().numpy()
        if path[-1] in ("kernel", "rel_embedding"):
            values = values.T
        node, shape = tree, shapes
        for part in path[:-1]:
            node, shape = node.setdefault(part, {}), shape[part]
        node[path[-1]] = jnp.asarray(values.reshape(shape[path[-1]].shape))
    assert jax.tree.structure(tree) == jax.tree.structure(shapes)
    return tree


def torch_model(config):
    torch.manual_seed(0)
    gated = len(config.activations) == 2
    theirs = transformers.T5Config(
        **SIZES,
        d_kv=config.head_dim,
        num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=config.tie_embeddings,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.T5ForConditionalGeneration(theirs)
    if not config.tie_embeddings:
        # transformers 5 takes False to mean "do not scale the head's input" and ties the head all the same.
        head = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
        model.lm_head.weight = torch.nn.Parameter(head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.uniform_(0.5, 1.5)
            if "relative_attention_bias" in name:
                parameter.normal_(0.0, 2.0)
    return model.eval()


def inputs_and_targets():
    """Three rows, two of them padded; long enough for logarithmic buckets."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(2, 60, (3, 45)), rng.integers(2, 60, (3, 21))
    inputs[1, 30:] = 0
    inputs[2, 3:] = 0
    targets[0, 11:] = 0
    return inputs, targets


@pytest.fixture(scope="module", params=[V1_1, V1_0], ids=["v1.1", "v1.0"])
def both(request):
    config = request.param
    model = torch_model(config)
    return config, from_torch(config, dict(model.named_parameters())), model


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (64, 512)])
def test_relative_buckets(bidirectional, num_buckets, max_distance):
    positions = np.arange(-2000, 2001)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        torch.tensor(positions), bidirectional, num_buckets, max_distance
    )
    ours = relative_buckets(
        jnp.asarray(positions),
        bidirectional=bidirectional,
        num_buckets=num_buckets,
        max_distance=max_distance,
    )
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_encoder_output(both):
    config, params, model = both
    inputs, _ = inputs_and_targets()
    mask = torch.tensor(inputs > 0)
    theirs = model.encoder(input_ids=torch.tensor(inputs), attention_mask=mask).last_hidden_state.detach().numpy()
    ours = jax.jit(lambda params: bind(config, params).encode(inputs))(params)
    np.testing.assert_allclose(ours[inputs > 0], theirs[inputs > 0], rtol=1e-4, atol=2e-5)


def test_logits_loss_and_every_gradient(both):
    config, params, model = both
    inputs, targets = inputs_and_targets()
    labels = torch.tensor(np.where(targets > 0, targets, -100))
    model.zero_grad()
    theirs = model(input_ids=torch.tensor(inputs), attention_mask=torch.tensor(inputs > 0), labels=labels)
    theirs.loss.backward()
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    }

    def loss(params):
        logits = bind(config, params)(batch)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(picked * (targets > 0)) / np.sum(targets > 0), logits

    (ours, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, theirs.logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours, theirs.loss.item(), rtol=1e-5)
    expected = from_torch(config, {name: parameter.grad for name, parameter in model.named_parameters()})
    for (path, a), b in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(expected), strict=True):
        largest = np.abs(b).max()
        assert largest > 0, path
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * largest, err_msg=str(path))


def test_greedy_tokens(both):
    """EOS is taken to be a token that the random model likes, so that rows end at different lengths."""
    config, params, model = both
    inputs, _ = inputs_and_targets()
    # Their cache breaks where encoder and decoder differ in depth.
    arguments = {"max_new_tokens": 12, "do_sample": False, "num_beams": 1, "use_cache": False}
    prompts = {"inputs": torch.tensor(inputs), "attention_mask": torch.tensor(inputs > 0)}
    free = model.generate(**prompts, **arguments, eos_token_id=None)[:, 1:].numpy()
    eos_id = int(free[0, 5])
    theirs = model.generate(**prompts, **arguments, eos_token_id=eos_id)[:, 1:].numpy()
    ours = jax.jit(lambda params: greedy(bind(config, params), inputs, max_length=12, eos_id=eos_id))(params)
    np.testing.assert_array_equal(ours.tokens[:, : theirs.shape[1]], theirs)
    np.testing.assert_array_equal(ours.tokens[:, theirs.shape[1] :], 0)
    np.testing.assert_array_equal(ours.ended, (theirs == eos_id).any(axis=1))
    assert ours.ended[0]
