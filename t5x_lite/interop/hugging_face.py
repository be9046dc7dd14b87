"""Hugging Face's T5 family, read and written: names and layouts of the weights, config.json, the hub's cache."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data import vocabularies
from t5x_lite.errors import UserError, first_words, nearest
from t5x_lite.interop.json_files import read_json
from t5x_lite.interop.source import Index, TensorSource
from t5x_lite.interop.tensor_files import WEIGHT_FILES, open_tensor_files
from t5x_lite.interop.tokenizer import read_tokenizer
from t5x_lite.model import T5Config
from t5x_lite.partitioning import VOCAB_MULTIPLE

MODEL_TYPES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}
JSON_FILES = ("config", "generation_config", "tokenizer_config")

_ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear")}
# Ours -> theirs; both have the kernels of one layer in this order.
_SUBLAYERS = {
    "encoder": (("attention", "SelfAttention"), ("mlp", "DenseReluDense")),
    "decoder": (
        ("self_attention", "SelfAttention"),
        ("encoder_decoder_attention", "EncDecAttention"),
        ("mlp", "DenseReluDense"),
    ),
}
_NORMS = {
    "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
    "decoder": ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"),
}
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


# ---------------------------------------------------------------------- configuration and names


def their_names(config: T5Config) -> dict[str, str]:
    """{our name: theirs} of every parameter of an unrolled model."""
    names = {"token_embedder/embedding": _EMBEDDINGS[0]}
    if not config.tie_embeddings:
        names["decoder/logits_dense/kernel"] = "lm_head.weight"
    inputs = ("wi",) if len(config.activations) == 1 else ("wi_0", "wi_1")
    mlp = {name: name for name in (*inputs, "wo")}
    for part, layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        names[f"{part}/{part}_norm/scale"] = f"{part}.final_layer_norm.weight"
        for n in range(layers):
            if config.relative_bias_per_layer or n == 0:
                ours = f"{part}/layers_{n}" if config.relative_bias_per_layer else part
                bias = f"{part}.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight"
                names[f"{ours}/relpos_bias/rel_embedding"] = bias
            for place, ((sublayer, theirs), norm) in enumerate(zip(_SUBLAYERS[part], _NORMS[part], strict=True)):
                block = f"{part}.block.{n}.layer.{place}"
                names[f"{part}/layers_{n}/{norm}/scale"] = f"{block}.layer_norm.weight"
                for kernel, name in (mlp if sublayer == "mlp" else _ATTENTION).items():
                    names[f"{part}/layers_{n}/{sublayer}/{kernel}/kernel"] = f"{block}.{theirs}.{name}.weight"
    return names


def read_config(settings: dict[str, Any], where: str, *, has_head: bool) -> T5Config:
    """T5Config of a config.json. UserError for a model that is not of T5's family, or a setting that we lack.

    A tied head is scaled, except mT5's. `tie_word_embeddings` is True by default; transformers 5 writes True for every
    model, says in T5's `scale_decoder_outputs` what is meant, and leaves it open for umT5, whose head tells.
    """
    kind = settings.get("model_type")
    if kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise UserError(
            f"{where}: model_type {kind!r} is not of T5's family{nearest(str(kind), MODEL_TYPES)}; {known} are"
        )
    activation = settings.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UserError(f"{where}: feed_forward_proj {activation!r} is not supported; {known} are")
    tied = settings.get("tie_word_embeddings", True) is not False
    scaled = {"t5": settings.get("scale_decoder_outputs", tied), "mt5": False, "umt5": tied and not has_head}[kind]
    try:
        return T5Config(
            vocab_size=settings["vocab_size"],
            d_model=settings["d_model"],
            num_heads=settings["num_heads"],
            head_dim=settings["d_kv"],
            d_ff=settings["d_ff"],
            num_encoder_layers=settings["num_layers"],
            num_decoder_layers=settings.get("num_decoder_layers") or settings["num_layers"],
            activations=_ACTIVATIONS[activation],
            relative_attention_num_buckets=settings.get("relative_attention_num_buckets", 32),
            relative_attention_max_distance=settings.get("relative_attention_max_distance", 128),
            relative_bias_per_layer=kind == "umt5",
            tie_embeddings=scaled,
            vocab_multiple=VOCAB_MULTIPLE,
            layer_norm_epsilon=settings.get("layer_norm_epsilon", 1e-6),
        )
    except KeyError as error:
        raise UserError(f"{where}: config.json has no {error}; get it again, or write it in") from None
    except ValueError as error:
        raise UserError(f"{where}: config.json describes no model: {error}") from None


def write_config(config: T5Config, dtype: str, original: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model; `original` is the one that its weights came with, if any."""
    kind = original.get("model_type") or ("umt5" if config.relative_bias_per_layer else "t5")
    activation = next(name for name, activations in _ACTIVATIONS.items() if activations == config.activations)
    defaults = {
        "pad_token_id": vocabularies.PAD_ID,
        "eos_token_id": vocabularies.EOS_ID,
        "decoder_start_token_id": vocabularies.PAD_ID,
        "is_encoder_decoder": True,
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "use_cache": True,
    }
    ours = {
        "architectures": [MODEL_TYPES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": activation,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": dtype,
    }
    kept = {name: value for name, value in original.items() if name not in ("torch_dtype", "scale_decoder_outputs")}
    return defaults | kept | ours


# ---------------------------------------------------------------------- reading


class HuggingFaceSource(TensorSource):
    """A folder with config.json and safetensors or pytorch_model.bin, one file or several with an index."""

    def __init__(self, folder: Path):
        self.where = str(folder)
        self._folder = folder
        self.hugging_face = {name: read_json(folder / f"{name}.json") for name in JSON_FILES}
        self.hugging_face = {name: content for name, content in self.hugging_face.items() if content is not None}
        self._files = open_tensor_files(folder)
        self._stored = set(self._files.names())
        self._check()

    @functools.cached_property
    def config(self) -> T5Config:
        return read_config(self.hugging_face["config"], self.where, has_head="lm_head.weight" in self._stored)

    def vocabulary(self) -> vocabularies.Vocabulary:
        return read_tokenizer(self._folder)

    @property
    def dtype(self) -> str:
        return str(self._files.dtype(self._their_name("token_embedder/embedding")))

    def read_matrix(self, name: str, index: Index) -> np.ndarray:
        theirs = self._their_name(name)
        if not _is_transposed(name):
            return self._files.read(theirs, index)
        return self._files.read(theirs, index[::-1]).T

    def _their_name(self, name: str) -> str:
        """The tensor to read: the embeddings have three names, and stand for a tied head that is not scaled."""
        theirs = self._names[name]
        if theirs == _EMBEDDINGS[0] or (theirs == "lm_head.weight" and theirs not in self._stored):
            return next((alias for alias in _EMBEDDINGS if alias in self._stored), theirs)
        return theirs

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        return their_names(self.config)

    def _check(self) -> None:
        """Every tensor is there in its shape, before minutes of loading; UserError names the first that is not."""
        for name, shape in self.stored_shapes.items():
            theirs = self._their_name(name)
            if theirs not in self._stored:
                raise UserError(
                    f"{self.where}: no tensor {theirs!r} in its weights{nearest(theirs, self._stored)}; the files are "
                    "not those of its config.json"
                )
            expected = matrix_shape(name, shape)
            expected = expected[::-1] if _is_transposed(name) else expected
            found = self._files.shape(theirs)
            if found != expected:
                raise UserError(f"{self.where}: {theirs!r} has shape {found}, and its config.json means {expected}")
        if self.config.tie_embeddings and "lm_head.weight" in self._stored:
            self._check_head_is_tied()

    def _check_head_is_tied(self) -> None:
        rows = (slice(0, min(256, self.config.vocab_size)), slice(None))
        if not np.array_equal(
            self._files.read("lm_head.weight", rows), self.read_matrix("token_embedder/embedding", rows)
        ):
            raise UserError(
                f"{self.where}: config.json ties the head to the embeddings and lm_head.weight differs from them; set "
                "tie_word_embeddings to false in its config.json if the head is to be used"
            )


def matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a parameter with attention's heads and head size as one axis."""
    if len(shape) < 3:
        return shape
    first, second, third = shape
    return (first * second, third) if name.endswith("out/kernel") else (first, second * third)


def _is_transposed(name: str) -> bool:
    """PyTorch's linear layers are [out, in]; its table of biases is [buckets, heads]."""
    return name.endswith(("/kernel", "/rel_embedding"))


def find_folder(name: str, what: str) -> Path:
    """The local folder of a model on the Hugging Face hub: from its cache, else downloaded into it.

    Raises UserError, with what was looked for and where, when neither has it. `what` is the user's setting.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    small = ["*.json", "spiece.model"]
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if any((folder / file).exists() for file in WEIGHT_FILES):
            return folder
    except (OSError, HFValidationError):
        pass  # not in the cache
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*small, "*.safetensors"]))
        if not any((folder / file).exists() for file in WEIGHT_FILES[:2]):
            folder = Path(snapshot_download(name, allow_patterns=[*small, "pytorch_model*"]))
        return folder
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = first_words(str(error).split(". ")[0])
        raise UserError(
            f"{what} {name!r}: no local folder of that name, not in the Hugging Face cache ({constants.HF_HUB_CACHE}), "
            f"and the hub did not give it ({type(error).__name__}: {reason}); set {what} to a local folder with "
            "config.json and model.safetensors"
        ) from None
