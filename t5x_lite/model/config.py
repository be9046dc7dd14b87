"""The size and kind of a T5 model: everything that its arrays and its numbers depend on."""

import dataclasses
import re
from typing import Literal

Remat = Literal["none", "minimal", "full", "offload"]

_ACTIVATIONS = (("gelu", "linear"), ("relu",))
_DTYPES = ("float32", "bfloat16")
ARCHITECTURE_SIZES = ("d_model", "num_heads", "head_dim", "d_ff", "num_encoder_layers", "num_decoder_layers")
_REMATS = ("none", "minimal", "full", "offload")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters (arXiv:2106.09685): a kernel W acts as W + alpha / rank * A B, and only A, B are trained.

    `targets` are regexes; a kernel gets an adapter when one of them matches the whole name of its module, such as
    'decoder/layers/self_attention/query', which stands for that kernel of every layer, scanned or not.
    Raises ValueError for a rank below 1, no targets, or a target that is no regex.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = (".*attention/(query|value)",)

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"Lora.rank is {self.rank}; it must be at least 1")
        if not self.targets:
            raise ValueError("Lora.targets is empty; name at least one kernel, like '.*attention/(query|value)'")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"Lora.targets: {target!r} is no regex: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """T5 v1.1, Flan-T5, mT5 and ByT5 by default; v1.0 is `activations=("relu",), tie_embeddings=True`.

    umT5 has `relative_bias_per_layer`: a table of position biases in every layer instead of one for a stack.
    `vocab_size` 0 stands for "not known yet": a run fills in the size of its vocabulary. The tables have
    `vocab_rows` rows, that size rounded up to `vocab_multiple` so that they divide over a mesh; nothing outside
    of the model sees the rows above `vocab_size`. `remat` says what
    the backward pass computes again: nothing, all but the matrix products, or everything of a layer, whose input is
    kept on the device or, with "offload", in the host's memory.
    `scan_layers` holds all layers in one array a weight and compiles one layer, whatever the depth.

    Raises ValueError, in one line, for a value that makes no model.
    """

    vocab_size: int = 0
    d_model: int
    num_heads: int
    head_dim: int = 64
    d_ff: int
    num_encoder_layers: int
    num_decoder_layers: int
    activations: tuple[str, ...] = ("gelu", "linear")
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    relative_bias_per_layer: bool = False
    tie_embeddings: bool = False
    vocab_multiple: int = 1
    dropout_rate: float = 0.0
    layer_norm_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"
    scan_layers: bool = False
    remat: Remat = "none"
    lora: Lora | None = None

    def __post_init__(self):
        # A manifest's JSON and gin give lists; JSON gives an adapter's settings as a dict.
        object.__setattr__(self, "activations", tuple(self.activations))
        if isinstance(self.lora, dict):
            object.__setattr__(self, "lora", Lora(**self.lora))
        for name in (*ARCHITECTURE_SIZES, "vocab_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"T5Config.{name} is {getattr(self, name)}; it must be at least 1")
        if self.vocab_size < 0:
            raise ValueError(f"T5Config.vocab_size is {self.vocab_size}; it must not be negative")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"T5Config.dropout_rate is {self.dropout_rate}; it must lie in [0, 1)")
        # Half of the buckets look back, half ahead, and half of those are exact distances.
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or buckets % 4 or distance <= buckets // 2:
            raise ValueError(
                f"T5Config.relative_attention_num_buckets is {buckets} with max_distance {distance}; "
                "buckets must be a multiple of 4 and the distance more than half of them"
            )
        for name, valid in (("activations", _ACTIVATIONS), ("remat", _REMATS), ("dtype", _DTYPES)):
            if getattr(self, name) not in valid:
                raise ValueError(f"T5Config.{name} is {getattr(self, name)!r}; it must be one of {valid}")
        if self.param_dtype not in _DTYPES:
            raise ValueError(f"T5Config.param_dtype is {self.param_dtype!r}; it must be one of {_DTYPES}")

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and columns of the head, padding included."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def num_parameters(self) -> int:
        """The exact number of the model's parameters, norm scales and relative biases included.

        Without adapters, and without the rows that pad the vocabulary.
        """
        attention = 4 * self.d_model * self.num_heads * self.head_dim
        mlp = (len(self.activations) + 1) * self.d_model * self.d_ff
        encoder_layer = attention + mlp + 2 * self.d_model
        decoder_layer = 2 * attention + mlp + 3 * self.d_model
        biases = self.num_encoder_layers + self.num_decoder_layers if self.relative_bias_per_layer else 2
        outside_layers = biases * self.relative_attention_num_buckets * self.num_heads + 2 * self.d_model
        tables = (1 if self.tie_embeddings else 2) * self.vocab_size * self.d_model
        return (
            self.num_encoder_layers * encoder_layer + self.num_decoder_layers * decoder_layer + outside_layers + tables
        )
