"""T5: encoder, decoder and the model of both, over the layers of layers.py.

Names of modules and weights are T5X's, so that `encoder/layers_0/attention/query/kernel` means what it always
meant. With `scan_layers` one module `layers` holds the weights of all layers, stacked, and `lax.scan` goes
over them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from t5x_lite.model.axes import constrain
from t5x_lite.model.config import T5Config
from t5x_lite.model.layers import (
    Attention,
    Dense,
    Embedding,
    Initializer,
    Memory,
    Mlp,
    Norm,
    RelativeBias,
    dropout,
    remember,
)
from t5x_lite.model.lora import add_adapters
from t5x_lite.model.products import product_with_table

PAD_ID = 0

Batch = Mapping[str, Int[Array, "B S"]]

_LAYER_INPUT = "layer_input"

# By T5Config.remat, what of a layer the backward pass finds in memory; None: its input.
_KEPT = {
    "minimal": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": None,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each on a normed input and added to it."""

    def __init__(self, config: T5Config, init: Initializer):
        self.dropout_rate = config.dropout_rate
        self.relpos_bias = _bias_of_layer(config, init, bidirectional=True)
        self.pre_attention_layer_norm = Norm(config, init)
        self.attention = Attention(config, init)
        self.pre_mlp_layer_norm = Norm(config, init)
        self.mlp = Mlp(config, init)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        bias: Float[Array, "1 H S S"] | None,
        mask: Bool[Array, "B 1 #S S"],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "B S D"]:
        keys = _split(key, 4)
        if bias is None:
            bias = self.relpos_bias(x.shape[1])
        h = self.pre_attention_layer_norm(x)
        h = self.attention(h, self.attention.project(h), bias, mask, keys[0])
        x = _residual(x, dropout(h, self.dropout_rate, keys[1]))
        h = self.mlp(self.pre_mlp_layer_norm(x), keys[2])
        return _residual(x, dropout(h, self.dropout_rate, keys[3]))


class DecoderLayer(nnx.Module):
    """Self-attention, attention to the encoder's output, feed-forward."""

    def __init__(self, config: T5Config, init: Initializer):
        self.dropout_rate = config.dropout_rate
        self.relpos_bias = _bias_of_layer(config, init, bidirectional=False)
        self.pre_self_attention_layer_norm = Norm(config, init)
        self.self_attention = Attention(config, init)
        self.pre_cross_attention_layer_norm = Norm(config, init)
        self.encoder_decoder_attention = Attention(config, init)
        self.pre_mlp_layer_norm = Norm(config, init)
        self.mlp = Mlp(config, init)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B S D"] | Memory,
        view: "DecoderView",
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """All positions; of a memory in place of the encoder's output, `x` has the R sequences of each request."""
        keys = _split(key, 6)
        bias = self.relpos_bias(x.shape[1]) if view.bias is None else view.bias
        h = self.pre_self_attention_layer_norm(x)
        h = self.self_attention(h, self.self_attention.project(h), bias, view.self_mask, keys[0])
        x = _residual(x, dropout(h, self.dropout_rate, keys[1]))
        h = self.pre_cross_attention_layer_norm(x)
        if isinstance(encoded, Memory):
            h = self._look_up(h, encoded, view)
        else:
            cross_kv = self.encoder_decoder_attention.project(encoded)
            h = self.encoder_decoder_attention(h, cross_kv, None, view.cross_mask, keys[2])
        x = _residual(x, dropout(h, self.dropout_rate, keys[3]))
        h = self.mlp(self.pre_mlp_layer_norm(x), keys[4])
        return _residual(x, dropout(h, self.dropout_rate, keys[5]))

    def step(
        self, x: Float[Array, "BW P D"], past: Memory, cross: Memory, view: "DecoderView"
    ) -> tuple[Float[Array, "BW P D"], Memory]:
        """P positions, usually one, and `past` with their keys and values put in."""
        h = self.pre_self_attention_layer_norm(x)
        new = remember(self.self_attention.project(h))
        past = Memory(_put(past.key, new.key, view.step, axis=3), _put(past.value, new.value, view.step, axis=2))
        bias = view.bias
        if bias is None:
            bias = self.relpos_bias.rows(view.step, x.shape[1], past.value.shape[2])
        x = _residual(x, self.self_attention.step(h, past, bias, view.self_mask))
        x = _residual(x, self._look_up(self.pre_cross_attention_layer_norm(x), cross, view))
        return _residual(x, self.mlp(self.pre_mlp_layer_norm(x), None)), past

    def _look_up(self, h: Float[Array, "BW T D"], cross: Memory, view: "DecoderView") -> Float[Array, "BW T D"]:
        """Rows of one request are so many queries of it: they read its keys and values where those are."""
        queries = h.reshape(cross.key.shape[0], -1, h.shape[-1])
        return self.encoder_decoder_attention.step(queries, cross, None, view.cross_mask).reshape(h.shape)


class DecoderView(NamedTuple):
    """What every decoder layer may look at; `step` is the position that a cached call fills.

    Without `bias` each layer has its own.
    """

    bias: Float[Array, "1 H T S"] | None
    self_mask: Bool[Array, "#B 1 T S"]
    cross_mask: Bool[Array, "B 1 #T S"]
    step: Int[Array, ""] | int = 0


class Stack(nnx.Module):
    """What encoder and decoder share: position bias, layers, final norm."""

    def __init__(self, config: T5Config, init: Initializer, make_layer: Callable, *, encoder: bool):
        self.config = config
        self.num_layers = config.num_encoder_layers if encoder else config.num_decoder_layers
        if not config.relative_bias_per_layer:
            self.relpos_bias = RelativeBias(config, init.child(0), bidirectional=encoder)
        layers = init.child(1)
        if config.scan_layers:
            self.layers = make_layer(config, layers.for_stack(self.num_layers))
        else:
            for n in range(self.num_layers):
                setattr(self, f"layers_{n}", make_layer(config, layers.for_layer(n)))
        final_norm = Norm(config, init.child(2))
        if encoder:
            self.encoder_norm = final_norm
        else:
            self.decoder_norm = final_norm

    def shared_bias(self, length: int) -> Float[Array, "1 H S S"] | None:
        """The bias of all layers; None where each layer has its own."""
        return None if self.config.relative_bias_per_layer else self.relpos_bias(length)

    def fold(self, body: Callable, x: Array | None, per_layer: Any) -> tuple[Array | None, Any]:
        """`x, out = body(layer, x, item)` from the first layer to the last; returns `x` and every `out`.

        `per_layer` and the outs are a stack along a leading axis when layers are scanned, else a tuple.
        """
        if self.config.remat != "none":
            # A scan already keeps XLA from merging the recomputation with the forward pass.
            scanned, policy = self.config.scan_layers, _KEPT[self.config.remat]
            body = jax.checkpoint(_named_input(body), policy=policy, prevent_cse=not scanned)
        if self.config.scan_layers:
            return jax.lax.scan(
                lambda x, layer_item: body(layer_item[0], x, layer_item[1]), x, (self.layers, per_layer)
            )
        outs = []
        for n in range(self.num_layers):
            x, out = body(getattr(self, f"layers_{n}"), x, per_layer[n])
            outs.append(out)
        return x, tuple(outs)

    def layer_keys(self, key: Key[Array, ""] | None) -> Any:
        """One dropout key a layer, in the form that `fold` takes."""
        if self.config.scan_layers:
            return None if key is None else jax.random.split(key, self.num_layers)
        return tuple(_split(key, self.num_layers))


class Encoder(Stack):
    """Embedded tokens to the sequence that the decoder attends to."""

    def __init__(self, config: T5Config, init: Initializer):
        super().__init__(config, init, EncoderLayer, encoder=True)

    @jax.named_scope("encoder")
    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B 1 #S S"], key: Key[Array, ""] | None
    ) -> Float[Array, "B S D"]:
        keys = _split(key, 3)
        bias = self.shared_bias(x.shape[1])
        x = dropout(x, self.config.dropout_rate, keys[0])
        x, _ = self.fold(lambda layer, x, key: (layer(x, bias, mask, key), None), x, self.layer_keys(keys[1]))
        return dropout(self.encoder_norm(x), self.config.dropout_rate, keys[2])


class Decoder(Stack):
    """Embedded targets and the encoder's output to logits; the head is here, as in T5X."""

    def __init__(self, config: T5Config, init: Initializer):
        super().__init__(config, init, DecoderLayer, encoder=False)
        if not config.tie_embeddings:
            kernel = init.child(3).normal(
                (config.d_model, config.vocab_rows), ("embed", "vocab"), stddev=config.d_model**-0.5
            )
            self.logits_dense = Dense(kernel)

    @jax.named_scope("decoder")
    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B S D"],
        self_mask: Bool[Array, "#B 1 T T"],
        cross_mask: Bool[Array, "B 1 #T S"],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "B T D"]:
        """All positions at once; what comes back is normed and ready for the head."""
        keys = _split(key, 3)
        view = DecoderView(self.shared_bias(x.shape[1]), self_mask, cross_mask)

        x = dropout(x, self.config.dropout_rate, keys[0])
        x, _ = self.fold(lambda layer, x, key: (layer(x, encoded, view, key), None), x, self.layer_keys(keys[1]))
        return dropout(self.decoder_norm(x), self.config.dropout_rate, keys[2])

    def project_encoded(self, encoded: Float[Array, "B S D"]) -> Any:
        """Every layer's keys and values of the encoder's output, projected once for all decoding steps."""

        def body(layer: DecoderLayer, x: None, _: None) -> tuple[None, Memory]:
            return x, remember(layer.encoder_decoder_attention.project(encoded))

        return self.fold(body, None, None if self.config.scan_layers else (None,) * self.num_layers)[1]

    def from_memory(
        self, x: Float[Array, "BR T D"], begun: Bool[Array, "BR 1 1 T"], cache: "Cache"
    ) -> Float[Array, "BR T D"]:
        """As `__call__`, of R targets a request that share its part of the cache's `cross`."""
        view = DecoderView(self.shared_bias(x.shape[1]), _causal(x.shape[1]) & begun, cache.cross_mask)
        x, _ = self.fold(lambda layer, x, cross: (layer(x, cross, view), None), x, cache.cross)
        return self.decoder_norm(x)

    def step(self, x: Float[Array, "BW P D"], cache: "Cache") -> tuple[Float[Array, "BW P D"], "Cache"]:
        """P positions from the one that the cache stands at, of W beams a request."""
        count, length = x.shape[1], cache.length
        seen = jnp.arange(length) <= (cache.step + jnp.arange(count))[:, None]
        shared = not self.config.relative_bias_per_layer
        bias = self.relpos_bias.rows(cache.step, count, length) if shared else None
        view = DecoderView(bias, seen & cache.past_mask, cache.cross_mask, cache.step)

        def body(layer: DecoderLayer, x: Array, memories: tuple[Memory, Memory]) -> tuple[Array, Memory]:
            return layer.step(x, *memories, view)

        pairs = (
            (cache.past, cache.cross) if self.config.scan_layers else tuple(zip(cache.past, cache.cross, strict=True))
        )
        x, past = self.fold(body, x, pairs)
        return self.decoder_norm(x), dataclasses.replace(cache, past=past, step=cache.step + count)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """A decoder's memory of one batch: a Memory a layer (a stacked one when layers are scanned).

    `past`, of B * W rows and T positions, fills up by a position a step; `past_mask` hides what pads a prefix on its
    left. `cross`, of B rows and S positions, never changes, and the W beams of a request share it.
    """

    past: Any
    past_mask: Bool[Array, "#BW 1 1 T"]
    cross: Any
    cross_mask: Bool[Array, "B 1 1 S"]
    step: Int[Array, ""]

    @property
    def length(self) -> int:
        """T, the number of positions that fit."""
        return jax.tree.leaves(self.past)[0].shape[-1]


class T5(nnx.Module):
    """The whole model. Reads arrays only: bind weights to it inside jit (network.bind)."""

    def __init__(self, config: T5Config, key: Key[Array, ""]):
        """Draws the weights as T5X does; raises ValueError while the vocabulary's size is not known."""
        if config.vocab_size < 1:
            raise ValueError("T5Config.vocab_size is 0; set it to the vocabulary's number of rows")
        self.config = config
        init = Initializer(key, config.param_dtype)
        self.token_embedder = Embedding(config, init.child(0))
        self.encoder = Encoder(config, init.child(1))
        self.decoder = Decoder(config, init.child(2))
        if config.lora:
            add_adapters(self, config.lora, init.child(3))

    def __call__(self, batch: Batch, *, dropout_key: Key[Array, ""] | None = None) -> Float[Array, "B T V"]:
        """Teacher-forced logits in float32; dropout is on when a key is given.

        Packed batches carry `encoder_segment_ids` and `decoder_segment_ids`: attention then stays inside a
        segment. Positions are not read, since T5 only knows distances and those are equal inside a segment.
        """
        encoder_key, decoder_key = _split(dropout_key, 2)
        tokens, targets = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        segments, target_segments = batch.get("encoder_segment_ids"), batch.get("decoder_segment_ids")
        encoded = self.encode(tokens, segments, dropout_key=encoder_key)
        self_mask = _causal(targets.shape[1])
        cross_mask = _is_token(tokens)
        if segments is not None:
            self_mask = self_mask & _same(target_segments, target_segments)
            cross_mask = _same(target_segments, segments)
        x = self.decoder(self._embed(targets), encoded, self_mask, cross_mask, decoder_key)
        return self._logits(x)

    def encode(
        self,
        tokens: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"] | None = None,
        *,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S D"]:
        """The encoder's output; padding (id 0) is not attended to, nor is another segment."""
        mask = _is_token(tokens) if segment_ids is None else _same(segment_ids, segment_ids)
        return self.encoder(self._embed(tokens), mask, dropout_key)

    def start_cache(
        self, encoded: Float[Array, "B S D"], encoder_tokens: Int[Array, "B S"], max_length: int, beams: int = 1
    ) -> Cache:
        """A cache for decoding up to `max_length` tokens from the beginning, of `beams` rows for each request."""
        config = self.config
        layers = (self.decoder.num_layers,) if config.scan_layers else ()
        heads = (*layers, encoded.shape[0] * beams, config.num_heads)
        empty = Memory(
            jnp.zeros((*heads, config.head_dim, max_length), config.dtype),
            jnp.zeros((*heads, max_length, config.head_dim), config.dtype),
        )
        return Cache(
            past=empty if config.scan_layers else (empty,) * config.num_decoder_layers,
            past_mask=jnp.ones((1, 1, 1, max_length), bool),
            cross=self.decoder.project_encoded(encoded),
            cross_mask=_is_token(encoder_tokens),
            step=jnp.zeros((), jnp.int32),
        )

    def decode_step(self, tokens: Int[Array, "BW"], cache: Cache) -> tuple[Float[Array, "BW V"], Cache]:
        """Logits of the token after `tokens`, which stand at the cache's position; a row starts with id 0."""
        x, cache = self.decoder.step(self._embed(tokens[:, None]), cache)
        return self._logits(x)[:, 0], cache

    def decode_prefix(self, prefix: Int[Array, "B P"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Logits of the token after a prefix, from a cache that stands at its beginning, of one beam a request.

        Shorter prefixes are padded by zeros on the left, where the cache then hides them.
        """
        tokens = jnp.pad(prefix, ((0, 0), (1, 0)))
        begun = jnp.pad(_begun(tokens), ((0, 0),) * 3 + ((0, cache.length - tokens.shape[1]),), constant_values=True)
        x, cache = self.decoder.step(self._embed(tokens), dataclasses.replace(cache, past_mask=begun))
        return self._logits(x[:, -1:])[:, 0], cache

    def decode_all(self, tokens: Int[Array, "BR T"], cache: Cache) -> Float[Array, "BR T V"]:
        """Teacher-forced logits of R decoder inputs a request, from its keys and values; the past is not read.

        An input starts with id 0; zeros before that one are padding.
        """
        return self._logits(self.decoder.from_memory(self._embed(tokens), _begun(tokens), cache))

    def _embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return constrain(self.token_embedder(tokens), "batch", "length", "embed")

    @jax.named_scope("head")
    def _logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        if self.config.tie_embeddings:
            rows = (x * self.config.d_model**-0.5).reshape(-1, self.config.d_model)
            logits = product_with_table(rows, self.token_embedder.embedding[...]).reshape(*x.shape[:2], -1)
        else:
            logits = self.decoder.logits_dense(x, float32=True)
        # The rows that pad the table are no tokens: cut here, no softmax outside can give them weight.
        return constrain(logits, "batch", "length", "vocab")[..., : self.config.vocab_size]


def _named_input(body: Callable) -> Callable:
    return lambda layer, x, item: body(layer, x if x is None else checkpoint_name(x, _LAYER_INPUT), item)


def _bias_of_layer(config: T5Config, init: Initializer, *, bidirectional: bool) -> RelativeBias | None:
    return RelativeBias(config, init, bidirectional=bidirectional) if config.relative_bias_per_layer else None


def _is_token(tokens: Int[Array, "B S"]) -> Bool[Array, "B 1 1 S"]:
    return (tokens != PAD_ID)[:, None, None]


def _begun(tokens: Int[Array, "B T"]) -> Bool[Array, "B 1 1 T"]:
    """Where decoder inputs have begun: at the last of the zeros that they start with."""
    after = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=1)
    return (jnp.cumsum(after != PAD_ID, axis=1) > 0)[:, None, None]


def _causal(length: int) -> Bool[Array, "1 1 T T"]:
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def _same(queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def _residual(x: Float[Array, "B S D"], update: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    return constrain(x + update, "batch", "length", "embed")


def _put(old: Float[Array, "..."], new: Float[Array, "..."], step: Int[Array, ""], axis: int) -> Float[Array, "..."]:
    return jax.lax.dynamic_update_slice_in_dim(old, new, step, axis=axis)


def _split(key: Key[Array, ""] | None, count: int) -> Sequence[Key[Array, ""] | None]:
    return (None,) * count if key is None else jax.random.split(key, count)
