"""The mathematics of T5's layers as plain functions, and thin modules that own the weights.

Raffel et al. 2020 (arXiv:1910.10683) and the v1.1 recipe: RMS norms without mean or bias, attention scores
that are not scaled (the initial query weights are small instead), one relative position bias for all layers
of a stack.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from t5x_lite.model.attention import MASKED, attend
from t5x_lite.model.axes import constrain
from t5x_lite.model.config import T5Config
from t5x_lite.model.products import product

_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "linear": lambda x: x,
}


class KV(NamedTuple):
    """Keys and values of one attention over a whole sequence, in the compute dtype."""

    key: Float[Array, "B S H K"]
    value: Float[Array, "B S H K"]


class Memory(NamedTuple):
    """Keys and values as a decoding step reads them: in its two products no array has to be turned."""

    key: Float[Array, "B H K S"]
    value: Float[Array, "B H S K"]


# ---------------------------------------------------------------------- functions


@jax.named_scope("norm")
def rms_norm(x: Float[Array, "... D"], scale: Float[Array, "D"], epsilon: float) -> Float[Array, "... D"]:
    """Divides by the root mean square; statistics in float32 whatever the dtype of `x`."""
    wide = x.astype(jnp.float32)
    rms = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * rms * scale.astype(jnp.float32)).astype(x.dtype)


@jax.named_scope("dropout")
def dropout(
    x: Float[Array, "B S ..."], rate: float, key: Key[Array, ""] | None, *, shared_axis: int = 1
) -> Float[Array, "B S ..."]:
    """Zeroes a share `rate` of `x` and scales up the rest; off without a key.

    One draw serves all of `shared_axis`, the length by default, as in Mesh TensorFlow and T5X: random bits
    are a large share of a small model's step.
    """
    if key is None or rate == 0.0:
        return x
    shape = list(x.shape)
    shape[shared_axis] = 1
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def remember(kv: KV) -> Memory:
    """Lays keys and values out for decoding, once for all of its steps."""
    return Memory(kv.key.transpose(0, 2, 3, 1), kv.value.transpose(0, 2, 1, 3))


def recall(
    q: Float[Array, "B W H K"],
    memory: Memory,
    bias: Float[Array, "1 H #W S"] | None,
    mask: Bool[Array, "#B 1 #W S"],
) -> Float[Array, "B W H K"]:
    """`attend` of a decoding step; W queries (the beams of one request, or its positions) share a memory."""
    scores = jnp.einsum("bwhk,bhks->bhws", q, memory.key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    return jnp.einsum("bhws,bhsk->bwhk", weights.astype(memory.value.dtype), memory.value)


def relative_buckets(
    relative_position: Int[Array, "..."], *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[Array, "..."]:
    """The bucket of key position minus query position: exact when near, logarithmic up to `max_distance`.

    Bidirectional gives half of the buckets to keys ahead; else all keys ahead share bucket 0. The logarithmic
    edges are whole numbers found here in float64, so that no rounding of a device moves them.
    """
    if bidirectional:
        num_buckets //= 2
        ahead = jnp.where(relative_position > 0, num_buckets, 0)
        distance = jnp.abs(relative_position)
    else:
        ahead = 0
        distance = jnp.maximum(-relative_position, 0)
    exact = num_buckets // 2
    steps = np.arange(1, num_buckets - exact)
    edges = exact * (max_distance / exact) ** (steps / (num_buckets - exact))
    first_distances = np.concatenate([np.arange(1, exact + 1), np.ceil(edges - 1e-6)]).astype(np.int32)
    return ahead + jnp.sum(distance[..., None] >= first_distances, axis=-1)


# ---------------------------------------------------------------------- modules


class Initializer:
    """Makes the parameters of one module tree from one key, in the order in which they are asked for.

    With `num_layers` every parameter is a stack of that many layers, holding the numbers that this many
    initializers of `for_layer` would draw one by one.
    """

    def __init__(self, key: Key[Array, ""], dtype: str, num_layers: int | None = None):
        self._key = key
        self._dtype = dtype
        self._num_layers = num_layers
        self._count = 0

    def for_layer(self, layer: int) -> "Initializer":
        return Initializer(jax.random.fold_in(self._key, layer), self._dtype)

    def for_stack(self, num_layers: int) -> "Initializer":
        return Initializer(self._key, self._dtype, num_layers)

    def in_float32(self, num_layers: int | None) -> "Initializer":
        return Initializer(self._key, "float32", num_layers)

    def child(self, number: int) -> "Initializer":
        """An independent stream; two children of one parent need different numbers."""
        return Initializer(jax.random.fold_in(self._key, 2**16 + number), self._dtype)

    def normal(self, shape: Sequence[int], axes: tuple[str, ...], *, stddev: float) -> nnx.Param:
        number, self._count = self._count, self._count + 1

        def draw(key: Key[Array, ""]) -> Array:
            return stddev * jax.random.normal(jax.random.fold_in(key, number), tuple(shape), self._dtype)

        if self._num_layers is None:
            return nnx.Param(draw(self._key), axes=axes)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self._key, jnp.arange(self._num_layers))
        return nnx.Param(jax.vmap(draw)(keys), axes=("layers", *axes))

    def ones(self, shape: Sequence[int], axes: tuple[str, ...]) -> nnx.Param:
        if self._num_layers is None:
            return nnx.Param(jnp.ones(tuple(shape), self._dtype), axes=axes)
        return nnx.Param(jnp.ones((self._num_layers, *shape), self._dtype), axes=("layers", *axes))


class Dense(nnx.Module):
    """A matrix product without bias over the last `contracted` axes of its input; `lora.py` may add an adapter."""

    def __init__(self, kernel: nnx.Param, contracted: int = 1):
        self.kernel = kernel
        self.contracted = contracted
        self.lora_scale: float | None = None

    def __call__(self, x: Array, float32: bool = False) -> Array:
        kernel = self.kernel[...]
        inputs = math.prod(kernel.shape[: self.contracted])
        rows = x.reshape(*x.shape[: x.ndim - self.contracted], inputs)
        out = product(rows, kernel.reshape(inputs, -1), float32)
        if self.lora_scale is not None:
            # Through the rank, so that no gradient as large as the kernel is ever computed.
            a, b = self.lora_a[...], self.lora_b[...]
            out += self.lora_scale * product(product(rows, a.reshape(inputs, -1)), b.reshape(b.shape[0], -1))
        return out.reshape(*rows.shape[:-1], *kernel.shape[self.contracted :])


class Norm(nnx.Module):
    """RMS norm with a learned scale."""

    def __init__(self, config: T5Config, init: Initializer):
        self.epsilon = config.layer_norm_epsilon
        self.scale = init.ones((config.d_model,), ("embed",))

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return rms_norm(x, self.scale[...], self.epsilon)


class Embedding(nnx.Module):
    """One row a token; tied models also read it as the head."""

    def __init__(self, config: T5Config, init: Initializer):
        self.dtype = config.dtype
        self.embedding = init.normal((config.vocab_rows, config.d_model), ("vocab", "embed"), stddev=1.0)

    @jax.named_scope("embed")
    def __call__(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """A token outside of the table becomes NaN: a wrong vocabulary must not pass for a bad model."""
        return jnp.take(self.embedding[...], tokens, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)


class RelativeBias(nnx.Module):
    """What attention adds to its scores for the distance of key and query; the layers of a stack share it, or not."""

    def __init__(self, config: T5Config, init: Initializer, *, bidirectional: bool):
        self.bidirectional = bidirectional
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        shape = (config.num_heads, self.num_buckets)
        self.rel_embedding = init.normal(shape, ("heads", "relpos_buckets"), stddev=config.d_model**-0.5)

    @jax.named_scope("relpos_bias")
    def __call__(self, length: int) -> Float[Array, "1 H S S"]:
        """The bias of a whole sequence onto itself.

        Row i is row i-1 shifted by one, so the bias is cut from one line of 2S values laid end to end: its
        gradient is then a sum and not a scatter of S*S values.
        """
        period = 2 * length
        offsets = jnp.arange(period)
        line = self._at(jnp.where(offsets < length, offsets, offsets - period))
        heads = line.shape[0]
        rows = jnp.broadcast_to(line[:, None], (heads, length, period)).reshape(heads, length * period)
        shifted = rows[:, : length * (period - 1)].reshape(heads, length, period - 1)
        return shifted[None, :, :, :length]

    def rows(self, first: Int[Array, ""], count: int, length: int) -> Float[Array, "1 H T S"]:
        """The bias of `count` queries, from position `first` on, onto `length` keys."""
        queries = first + jnp.arange(count)
        return self._at(jnp.arange(length) - queries[:, None])[None]

    def _at(self, relative_position: Int[Array, "*N"]) -> Float[Array, "H *N"]:
        buckets = relative_buckets(
            relative_position,
            bidirectional=self.bidirectional,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        return self.rel_embedding[...].astype(jnp.float32)[:, buckets]


class Attention(nnx.Module):
    """Multi-head attention; keys and values come from `project`, so that a decoder can keep them."""

    def __init__(self, config: T5Config, init: Initializer):
        self.dropout_rate = config.dropout_rate
        d, h, k = config.d_model, config.num_heads, config.head_dim
        self.query = Dense(init.normal((d, h, k), ("embed", "heads", "kv"), stddev=(d * k) ** -0.5))
        self.key = Dense(init.normal((d, h, k), ("embed", "heads", "kv"), stddev=d**-0.5))
        self.value = Dense(init.normal((d, h, k), ("embed", "heads", "kv"), stddev=d**-0.5))
        self.out = Dense(init.normal((h, k, d), ("heads", "kv", "embed"), stddev=(h * k) ** -0.5), contracted=2)

    @jax.named_scope("attention")
    def project(self, x: Float[Array, "B S D"]) -> KV:
        return KV(_constrain_heads(self.key(x)), _constrain_heads(self.value(x)))

    @jax.named_scope("attention")
    def __call__(
        self,
        x: Float[Array, "B T D"],
        kv: KV,
        bias: Float[Array, "1 H T S"] | None,
        mask: Bool[Array, "#B 1 #T S"],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "B T D"]:
        # T5 drops attention weights by one draw for all queries: the same as dropping the value they weigh.
        value = dropout(kv.value, self.dropout_rate, key, shared_axis=-1)
        return self.out(_constrain_heads(attend(_constrain_heads(self.query(x)), kv.key, value, bias, mask)))

    def step(
        self,
        x: Float[Array, "B W D"],
        memory: Memory,
        bias: Float[Array, "1 H #W S"] | None,
        mask: Bool[Array, "#B 1 #W S"],
    ) -> Float[Array, "B W D"]:
        """One position of W beams, or W positions, from a memory; without dropout."""
        return self.out(_constrain_heads(recall(_constrain_heads(self.query(x)), memory, bias, mask)))


class Mlp(nnx.Module):
    """Gated feed-forward layer of v1.1 (wi_0, wi_1, wo), or v1.0's with one input matrix (wi, wo)."""

    def __init__(self, config: T5Config, init: Initializer):
        self.dropout_rate = config.dropout_rate
        self.activations = config.activations
        d, f = config.d_model, config.d_ff
        for name in self._input_names():
            setattr(self, name, Dense(init.normal((d, f), ("embed", "mlp"), stddev=d**-0.5)))
        self.wo = Dense(init.normal((f, d), ("mlp", "embed"), stddev=f**-0.5))

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B S D"], key: Key[Array, ""] | None) -> Float[Array, "B S D"]:
        names = zip(self._input_names(), self.activations, strict=True)
        gates = [_ACTIVATIONS[activation](getattr(self, name)(x)) for name, activation in names]
        hidden = functools.reduce(jnp.multiply, gates)
        hidden = dropout(constrain(hidden, "batch", "length", "mlp"), self.dropout_rate, key)
        return self.wo(hidden)

    def _input_names(self) -> tuple[str, ...]:
        return ("wi",) if len(self.activations) == 1 else tuple(f"wi_{n}" for n in range(len(self.activations)))


def _constrain_heads(x: Float[Array, "B S H K"]) -> Float[Array, "B S H K"]:
    return constrain(x, "batch", "length", "heads", "kv")
