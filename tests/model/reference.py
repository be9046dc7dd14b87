"""The reference: transformers' PyTorch T5 with random float32 weights, and how far our model is from it.

`python -m benchmarks.parity` writes docs/parity.md from `measure`; test_hugging_face.py holds it to float32 rounding.
"""

import dataclasses
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from t5x_lite.decoding.beam import beam_search
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.sampling import sample
from t5x_lite.interop import open_source, restore_partial
from t5x_lite.model import T5Config, abstract_params, bind
from t5x_lite.model.names import named
from t5x_lite.training.losses import cross_entropy

BEAMS, DECODED = 4, 16


@dataclasses.dataclass(frozen=True)
class Variant:
    """One kind of T5, as transformers builds it. Each has another depth, so that none is mistaken for another."""

    name: str
    kind: str  # of transformers: T5, MT5, UMT5
    vocab_size: int
    layers: tuple[int, int]
    gated: bool = True
    tied: bool = False


VARIANTS = (
    Variant("T5 v1.0", "T5", 512, (3, 3), gated=False, tied=True),
    Variant("T5 v1.1, Flan-T5", "T5", 512, (3, 3)),
    Variant("mT5", "MT5", 1024, (2, 2)),
    Variant("ByT5", "T5", 384, (4, 2)),
    Variant("umT5", "UMT5", 1024, (3, 3)),
    Variant("vocabulary of 301", "T5", 301, (2, 2)),  # padded to 384 rows for sharding
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference of two arrays, and the same relative to the largest value of the reference."""

    absolute: float
    relative: float


def torch_model(variant: Variant, seed: int = 0) -> torch.nn.Module:
    """Random weights; norms and biases too, which start as ones and small numbers."""
    torch.manual_seed(seed)
    settings = getattr(transformers, f"{variant.kind}Config")(
        vocab_size=variant.vocab_size,
        d_model=48,
        num_heads=3,
        d_kv=16,
        d_ff=96,
        num_layers=variant.layers[0],
        num_decoder_layers=variant.layers[1],
        feed_forward_proj="gated-gelu" if variant.gated else "relu",
        tie_word_embeddings=variant.tied,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    model = getattr(transformers, f"{variant.kind}ForConditionalGeneration")(settings)
    if not variant.tied:
        # transformers 5 ties every T5; weights that come with a head of their own are the exception that it makes.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(variant.vocab_size, 48) * 48**-0.5)
        if variant.kind == "UMT5":
            model.config.tie_word_embeddings = False  # it would scale the head's input, which umT5 was not trained with
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.uniform_(0.5, 1.5)
            if "relative_attention_bias" in name:
                parameter.normal_(0.0, 2.0)
    return model.eval()


def ours(model: torch.nn.Module, tensors: dict[str, torch.Tensor] | None = None) -> tuple[T5Config, dict]:
    """The model in our layout, by way of files; `tensors` (gradients, say) may stand for its weights."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        if tensors is not None:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, f"{folder}/model.safetensors")
        source = open_source(folder)
        return source.config, restore_partial(abstract_params(source.config), source)


def examples(variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Four rows, three of them padded; long enough for logarithmic buckets of distance."""
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(2, variant.vocab_size, (4, length)) for length in (150, 40))
    for row, (length, target_length) in enumerate([(150, 40), (100, 11), (33, 40), (3, 1)]):
        inputs[row, length:] = 0
        targets[row, target_length:] = 0
    return inputs, targets


def shifted(targets: np.ndarray) -> np.ndarray:
    return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


def packed(inputs: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """All rows in one, as the input pipeline packs them."""
    lengths = [((row > 0).sum(), (target > 0).sum()) for row, target in zip(inputs, targets, strict=True)]
    rows = range(len(lengths))
    return {
        "encoder_input_tokens": np.concatenate([inputs[r, : lengths[r][0]] for r in rows])[None],
        "encoder_segment_ids": np.concatenate([np.full(lengths[r][0], r + 1) for r in rows])[None],
        "decoder_input_tokens": np.concatenate([shifted(targets)[r, : lengths[r][1]] for r in rows])[None],
        "decoder_segment_ids": np.concatenate([np.full(lengths[r][1], r + 1) for r in rows])[None],
        "targets": np.concatenate([targets[r, : lengths[r][1]] for r in rows])[None],
    }


def difference(found, expected) -> Difference:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    largest = float(np.abs(found - expected).max())
    return Difference(largest, largest / float(np.abs(expected).max()))


def measure(variant: Variant) -> dict[str, Difference | float]:
    """{"encoder", "logits", "loss", "gradients", "packed ...": Difference, "greedy", "beam": share of equal rows}."""
    model = torch_model(variant)
    config, params = ours(model)
    inputs, targets = examples(variant)
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": shifted(targets)}
    one_row = packed(inputs, targets)

    mask = torch.tensor(inputs > 0)
    labels = torch.tensor(np.where(targets > 0, targets, -100))
    theirs = model(input_ids=torch.tensor(inputs), attention_mask=mask, labels=labels)
    theirs.loss.backward()
    encoded = model.encoder(input_ids=torch.tensor(inputs), attention_mask=mask).last_hidden_state.detach().numpy()
    logits = theirs.logits.detach().numpy()
    _, expected_gradients = ours(model, {name: p.grad for name, p in model.named_parameters()})

    def loss(params, batch, targets):
        logits = bind(config, params)(batch)
        losses = cross_entropy(logits, targets, targets > 0, z_loss=0.0)
        return losses.total / losses.weight, logits

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (found_loss, found_logits), gradients = gradient(params, batch, targets)
        (packed_loss, packed_logits), packed_gradients = gradient(params, one_row, one_row["targets"])
        found_encoded = jax.jit(lambda params: bind(config, params).encode(inputs))(params)
    real = targets > 0
    return {
        "encoder": difference(found_encoded[inputs > 0], encoded[inputs > 0]),
        "logits": difference(found_logits[real], logits[real]),
        "loss": difference(found_loss, theirs.loss.item()),
        "gradients": _largest(gradients, expected_gradients),
        "packed logits": difference(packed_logits[0], logits[real]),
        "packed loss": difference(packed_loss, theirs.loss.item()),
        "packed gradients": _largest(packed_gradients, expected_gradients),
    } | _decoding(model, config, params, inputs)


def _largest(found: dict, expected: dict) -> Difference:
    """The parameter that differs most, each relative to its own largest gradient."""
    found = named(found)
    every = [difference(found[name], gradient) for name, gradient in named(expected).items() if np.any(gradient)]
    return Difference(max(d.absolute for d in every), max(d.relative for d in every))


def _decoding(model: torch.nn.Module, config: T5Config, params: dict, inputs: np.ndarray) -> dict[str, float]:
    # Their cache breaks where encoder and decoder differ in depth.
    arguments = {"max_new_tokens": DECODED, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    prompts = {"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(inputs > 0)}
    free = model.generate(**prompts, **arguments, num_beams=1, eos_token_id=None)[:, 1:].numpy()
    eos_id = int(free[0, DECODED // 2])  # a token that the model likes: rows end, and end apart
    theirs = model.generate(**prompts, **arguments, num_beams=1, eos_token_id=eos_id)[:, 1:].numpy()
    theirs = np.pad(theirs, ((0, 0), (0, DECODED - theirs.shape[1])))
    prompt = jnp.asarray(inputs)
    greedy = Decoding(max_tokens=DECODED)
    found = jax.jit(lambda params: sample(bind(config, params), prompt, greedy, eos_id=eos_id))(params).tokens[:, 0]

    # Without EOS, since theirs drops an ending that ranks below the beams and so finds less likely sequences.
    of_beams = {"num_beams": BEAMS, "num_return_sequences": BEAMS, "length_penalty": 0.0, "eos_token_id": None}
    their_beams = model.generate(**prompts, **arguments, **of_beams)[:, 1:].numpy().reshape(len(inputs), BEAMS, -1)

    search = Decoding(max_tokens=DECODED, beams=BEAMS, n_best=BEAMS)
    beams = jax.jit(lambda params: beam_search(bind(config, params), prompt, search, eos_id=-1))(params).tokens
    return {
        "greedy": float((np.asarray(found) == theirs).all(axis=-1).mean()),
        "beam": float((np.asarray(beams) == their_beams).all(axis=-1).mean()),
    }
