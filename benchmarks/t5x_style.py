"""A peer that trains and decodes T5 v1.1 as T5X does, written plainly in JAX by us, since T5X is on no package index.

Read off google-research/t5x: network and layers of examples/t5, losses, decoding. Attention scores of a layer are one
array, mask and position bias are added to them; tokens are embedded and beams gathered by products with one-hot
arrays; every decoding step projects the encoder's output for every beam, which XLA takes out of the loop. It computes
in float32 without dropout, and reads our parameters of layers that are not scanned.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.model import T5Config
from t5x_lite.model.layers import relative_buckets

Weights = Mapping[str, Any]
Batch = Mapping[str, Int[Array, "B S"]]
Past = tuple[Float[Array, "R H K T"], Float[Array, "R H K T"]]  # keys and values of one layer

_MASKED = -1e10
_IMPOSSIBLE = -1e7
_Z_LOSS = 1e-4
_LENGTH_ALPHA = 0.6
_LANES = 128  # of a TPU


# ---------------------------------------------------------------------- network


def logits_of(config: T5Config, params: Weights, batch: Batch) -> Float[Array, "B T V"]:
    """Teacher-forced; packed batches carry segment ids."""
    tokens, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    segments, target_segments = batch.get("encoder_segment_ids"), batch.get("decoder_segment_ids")
    encoded = _encode(config, params, tokens, segments)
    positions = jnp.broadcast_to(jnp.arange(targets.shape[1]), targets.shape)
    causal = _pairs(positions, positions, jnp.greater_equal)
    self_mask = _all_of(causal, _pairs(targets > 0, targets > 0), _same(target_segments, target_segments))
    cross_mask = _all_of(_pairs(targets > 0, tokens > 0), _same(target_segments, segments))

    def attend(_: int, weights: Weights, x: Array, bias: Array) -> Array:
        return _attention(weights, x, x, self_mask, bias)

    return _decode(config, params, batch["decoder_input_tokens"], encoded, cross_mask, targets.shape[1], attend)


def _encode(
    config: T5Config, params: Weights, tokens: Int[Array, "B S"], segments: Int[Array, "B S"] | None = None
) -> Float[Array, "B S D"]:
    encoder, norm = params["encoder"], functools.partial(_norm, config)
    mask = _all_of(_pairs(tokens > 0, tokens > 0), _same(segments, segments))
    x = _embed(params, tokens)
    for n in range(config.num_encoder_layers):
        layer = encoder[f"layers_{n}"]
        bias = _position_bias(config, encoder, tokens.shape[1], bidirectional=True)
        h = norm(layer["pre_attention_layer_norm"], x)
        x = _attention(layer["attention"], h, h, mask, bias) + x
        x = _mlp(layer["mlp"], norm(layer["pre_mlp_layer_norm"], x)) + x
    return norm(encoder["encoder_norm"], x)


def _decode(
    config: T5Config,
    params: Weights,
    tokens: Int[Array, "R T"],
    encoded: Float[Array, "R S D"],
    cross_mask: Float[Array, "R 1 T S"],
    length: int,
    attend: Callable[[int, Weights, Array, Array], Array],
) -> Float[Array, "R T V"]:
    """`attend` is the self-attention of a layer, given its number; `length` is that of the whole sequence."""
    decoder, norm = params["decoder"], functools.partial(_norm, config)
    x = _embed(params, tokens)
    for n in range(config.num_decoder_layers):
        layer = decoder[f"layers_{n}"]
        bias = _position_bias(config, decoder, length, bidirectional=False)
        x = attend(n, layer["self_attention"], norm(layer["pre_self_attention_layer_norm"], x), bias) + x
        h = norm(layer["pre_cross_attention_layer_norm"], x)
        x = _attention(layer["encoder_decoder_attention"], h, encoded, cross_mask, None) + x
        x = _mlp(layer["mlp"], norm(layer["pre_mlp_layer_norm"], x)) + x
    x = norm(decoder["decoder_norm"], x)
    if config.tie_embeddings:
        return jnp.dot(x, params["token_embedder"]["embedding"].T) / jnp.sqrt(config.d_model)
    return _dense(decoder["logits_dense"], x)


def _attention(
    weights: Weights,
    x: Float[Array, "B T D"],
    memory: Float[Array, "B S D"],
    mask: Float[Array, "B 1 T S"],
    bias: Float[Array, "1 H T S"] | None,
) -> Float[Array, "B T D"]:
    query, key, value = (_dense(weights[name], of) for name, of in (("query", x), ("key", memory), ("value", memory)))
    return _weigh(weights, query, key, value, mask, bias)


def _weigh(weights: Weights, query: Array, key: Array, value: Array, mask: Array, bias: Array | None) -> Array:
    added = jax.lax.select(mask > 0, jnp.full(mask.shape, 0.0), jnp.full(mask.shape, _MASKED))
    added = added if bias is None else added + bias
    shares = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) + added)
    return _dense(weights["out"], jnp.einsum("bhqk,bkhd->bqhd", shares, value), contracted=2)


def _mlp(weights: Weights, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    gate = jax.nn.gelu(_dense(weights["wi_0"], x), approximate=True)
    return _dense(weights["wo"], gate * _dense(weights["wi_1"], x))


def _dense(weights: Weights, x: Array, contracted: int = 1) -> Array:
    axes = tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))
    return jax.lax.dot_general(x, weights["kernel"], (axes, ((), ())))


def _norm(config: T5Config, weights: Weights, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    mean = jnp.mean(jax.lax.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean + config.layer_norm_epsilon) * weights["scale"]


def _embed(params: Weights, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    table = params["token_embedder"]["embedding"]
    return jnp.dot((tokens[..., None] == jnp.arange(table.shape[0])).astype(table.dtype), table)


def _position_bias(config: T5Config, stack: Weights, length: int, *, bidirectional: bool) -> Float[Array, "1 H T T"]:
    """By a product too, in each layer anew."""
    table = stack["relpos_bias"]["rel_embedding"]
    with jax.ensure_compile_time_eval():  # the buckets are constants of the program
        buckets = relative_buckets(
            jnp.arange(length) - jnp.arange(length)[:, None],
            bidirectional=bidirectional,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
    numbers = jax.lax.broadcasted_iota(jnp.int32, (table.shape[1], 1, 1), 0)
    return jax.lax.dot_general(table, (buckets == numbers).astype(table.dtype), (((1,), (0,)), ((), ())))[None]


def _pairs(queries: Array, keys: Array, agree: Callable = jnp.multiply) -> Float[Array, "B 1 T S"]:
    return agree(queries[:, None, :, None], keys[:, None, None, :]).astype(jnp.float32)


def _same(queries: Array | None, keys: Array | None) -> Float[Array, "B 1 T S"] | None:
    return None if queries is None else _pairs(queries, keys, jnp.equal)


def _all_of(*masks: Array | None) -> Float[Array, "B 1 T S"]:
    return functools.reduce(jnp.logical_and, [mask for mask in masks if mask is not None]).astype(jnp.float32)


# ---------------------------------------------------------------------- training


def _forward(logits: Array, targets: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    """Loss and the z-loss in it, [B, T] each, of logits and one-hot targets, [B, T, V]; and what `_backward` reads."""
    highest = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - highest)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    log_softmax = logits - highest - jnp.log(total)
    log_z = jnp.squeeze(jnp.log(total) + highest, axis=-1)
    z_loss = _Z_LOSS * jax.lax.square(log_z)
    loss = z_loss - jnp.sum(targets * log_softmax, axis=-1)
    return (loss, z_loss), (targets, exponentials, total, log_softmax, log_z)


def _backward(kept: tuple[Array, ...], d_losses: tuple[Array, Array]) -> tuple[Array, Array]:
    targets, exponentials, total, log_softmax, log_z = kept
    d_loss = d_losses[0][..., None]
    d_logits = (1 + 2 * _Z_LOSS * log_z)[..., None] * exponentials / total - targets
    return d_loss * d_logits, -d_loss * log_softmax


_cross_entropy = jax.custom_vjp(lambda logits, targets: _forward(logits, targets)[0])
_cross_entropy.defvjp(_forward, _backward)


def loss_of(config: T5Config, params: Weights, batch: Batch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean over the weighted target tokens, z-loss included, and what T5X logs of a step."""
    logits = logits_of(config, params, batch)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    one_hot = (targets[..., None] == jnp.arange(logits.shape[-1])).astype(jnp.float32)
    loss, z_loss = (jnp.sum(part * weights) / jnp.sum(weights) for part in _cross_entropy(logits, one_hot))
    correct = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights) / jnp.sum(weights)
    return loss, {"loss": loss, "z_loss": z_loss, "cross_entropy": loss - z_loss, "accuracy": correct}


def make_train_step(config: T5Config, tx: optax.GradientTransformation) -> Callable:
    """The compiled step of ((parameters, optimizer's state), batch); the state given is donated."""

    def step(state: tuple[Weights, Any], batch: Batch) -> tuple[tuple[Weights, Any], dict[str, Array]]:
        params, opt_state = state
        (_, metrics), grads = jax.value_and_grad(functools.partial(loss_of, config), has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics

    return jax.jit(step, donate_argnums=0)


# ---------------------------------------------------------------------- decoding


class Cache(NamedTuple):
    """Keys and values of each layer, of R rows or [B, W]; `index` is the position that the next step fills."""

    index: Int[Array, ""]
    layers: list[Past]


Step = Callable[[Int[Array, "R"], Cache], tuple[Float[Array, "R V"], Cache]]


@functools.partial(jax.jit, static_argnames=("config", "max_tokens", "beams", "eos_id"))
def generate(
    config: T5Config, params: Weights, tokens: Int[Array, "B S"], *, max_tokens: int, beams: int, eos_id: int
) -> Int[Array, "B W T"]:
    """The likeliest token at each step for one beam, else the beams of each request, the best last."""
    encoded = jnp.repeat(_encode(config, params, tokens), beams, axis=0)
    read = jnp.repeat(tokens, beams, axis=0) > 0
    shape = (tokens.shape[0], beams, config.num_heads, config.head_dim, max_tokens)

    def step(ids: Int[Array, "R"], cache: Cache) -> tuple[Float[Array, "R V"], Cache]:
        layers = list(cache.layers)

        def attend(n: int, weights: Weights, x: Array, bias: Array) -> Array:
            h, layers[n] = _attend_to_past(weights, x, layers[n], bias, cache.index)
            return h

        cross_mask = _pairs(jnp.ones((ids.shape[0], 1)), read)
        logits = _decode(config, params, ids[:, None], encoded, cross_mask, max_tokens, attend)
        return jnp.squeeze(logits, axis=1), Cache(cache.index + 1, layers)

    empty = [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.num_decoder_layers)]
    cache = Cache(jnp.zeros((), jnp.int32), empty)
    if beams == 1:
        return _greedy(step, _flat(cache), max_tokens, eos_id)[:, None]
    return _beam_search(step, cache, max_tokens, eos_id)


def _attend_to_past(
    weights: Weights, x: Float[Array, "R 1 D"], past: Past, bias: Float[Array, "1 H T T"], index: Int[Array, ""]
) -> tuple[Float[Array, "R 1 D"], Past]:
    """Puts the position's key and value in by adding them times a one-hot array of positions."""
    query, key, value = (_dense(weights[name], x) for name in ("query", "key", "value"))
    here = jax.nn.one_hot(index, past[0].shape[-1])
    past = past[0] + jnp.moveaxis(key, -3, -1) * here, past[1] + jnp.moveaxis(value, -3, -1) * here
    key, value = (jnp.moveaxis(part, -1, -3) for part in past)
    mask = jnp.broadcast_to(jnp.arange(here.size) <= index, (x.shape[0], 1, 1, here.size)).astype(jnp.float32)
    row = jax.lax.dynamic_slice_in_dim(bias, index, 1, axis=-2)
    return _weigh(weights, query, key, value, mask, row), past


class _Greedy(NamedTuple):
    last: Int[Array, "R"]
    tokens: Int[Array, "R T"]
    ended: Bool[Array, "R"]
    cache: Cache


def _greedy(next_logits: Step, cache: Cache, max_tokens: int, eos_id: int) -> Int[Array, "R T"]:
    rows = cache.layers[0][0].shape[0]

    def advance(loop: _Greedy) -> _Greedy:
        index = loop.cache.index
        logits, cache = next_logits(loop.last, loop.cache)
        last = jnp.argmax(logits, axis=-1).astype(jnp.int32) * ~loop.ended
        here = jax.nn.one_hot(index, max_tokens, dtype=jnp.int32)
        tokens = loop.tokens * (1 - here) + last[:, None] * here
        ended = loop.ended | (tokens == eos_id).any(axis=1) | (index >= max_tokens - 1)
        return _Greedy(last, tokens, ended, cache)

    nothing = jnp.zeros((rows, max_tokens), jnp.int32)
    start = _Greedy(nothing[:, 0], nothing, jnp.zeros(rows, bool), cache)
    return jax.lax.while_loop(lambda loop: ~loop.ended.all(), advance, start).tokens


class _Beams(NamedTuple):
    """W sequences that go on and W that have ended, the best last; tokens begin with the start's 0."""

    live_scores: Float[Array, "B W"]
    live: Int[Array, "B W T+1"]
    done_scores: Float[Array, "B W"]
    done: Int[Array, "B W T+1"]
    is_done: Bool[Array, "B W"]
    cache: Cache  # of [B, W, H, K, T]


def _beam_search(next_logits: Step, cache: Cache, max_tokens: int, eos_id: int) -> Int[Array, "B W T"]:
    rows, beams = cache.layers[0][0].shape[:2]

    def going(loop: _Beams) -> Bool[Array, ""]:
        bound = loop.live_scores[:, -1:] / _penalty(max_tokens + 1)
        worst = jnp.where(loop.is_done, loop.done_scores.min(axis=1, keepdims=True), _IMPOSSIBLE)
        return (loop.cache.index < max_tokens) & ~(worst > bound).all()

    def advance(loop: _Beams) -> _Beams:
        index = loop.cache.index
        logits, cache = next_logits(loop.live[:, :, index].reshape(-1), _flat(loop.cache))
        totals = jax.nn.log_softmax(logits).reshape(rows, beams, -1) + loop.live_scores[:, :, None]
        scores, places = top_k_in_two_stages(totals.reshape(rows, -1), 2 * beams)
        parents, ids = places // totals.shape[-1], places % totals.shape[-1]
        grown = _gathered(loop.live, parents)
        grown = jax.lax.dynamic_update_slice_in_dim(grown, ids[:, :, None], index + 1, axis=2)
        ends = ids == eos_id

        open_scores = scores + ends * _IMPOSSIBLE
        kept = _best_last(open_scores, beams)
        live, live_scores, parents = (_gathered(x, kept) for x in (grown, open_scores, parents))

        end_scores = scores / _penalty(index + 1) + ~ends * _IMPOSSIBLE
        done = (loop.done_scores, end_scores), (loop.done, grown), (loop.is_done, ends)
        done_scores, done, is_done = (jnp.concatenate(pair, axis=1) for pair in done)
        best = _best_last(done_scores, beams)
        done_scores, done, is_done = (_gathered(x, best) for x in (done_scores, done, is_done))

        layers = jax.tree.map(lambda x: _gathered(x.reshape(rows, beams, *x.shape[1:]), parents), cache.layers)
        return _Beams(live_scores, live, done_scores, done, is_done, Cache(cache.index, layers))

    nothing = jnp.zeros((rows, beams, max_tokens + 1), jnp.int32)
    unlikely = jnp.full((rows, beams), _IMPOSSIBLE)
    first = unlikely.at[:, 0].set(0.0)  # all beams start alike: only one may branch
    start = _Beams(first, nothing, unlikely, nothing, jnp.zeros((rows, beams), bool), cache)
    loop = jax.lax.while_loop(going, advance, start)
    return jnp.where(loop.is_done.any(axis=1)[:, None, None], loop.done, loop.live)[:, :, 1:]


def _penalty(length: Int[Array, ""] | int) -> Float[Array, ""]:
    return jnp.power((5.0 + length) / 6.0, _LENGTH_ALPHA)


def _best_last(scores: Float[Array, "B N"], count: int) -> Int[Array, "B W"]:
    return jnp.flip(jax.lax.top_k(scores, count)[1], axis=1)


def _gathered(x: Array, index: Int[Array, "B N"]) -> Array:
    """x[b, index[b, n]] for every n, as a product."""
    one_hot = jax.nn.one_hot(index, x.shape[1], dtype=jnp.int32)
    return jnp.einsum("beo,bo...->be...", one_hot, x).astype(x.dtype)


def top_k_in_two_stages(x: Float[Array, "B N"], k: int) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """As lax.top_k; long rows of a small batch in parts first."""
    rows, size = x.shape
    if rows > 8 or size <= 8 * _LANES * k:
        return jax.lax.top_k(x, k)
    x = jnp.pad(x, ((0, 0), (0, -size % _LANES)), constant_values=-jnp.inf)
    width = x.shape[1] // _LANES
    values, index = jax.lax.top_k(x.reshape(rows, _LANES, width), k)
    index = (index + width * jnp.arange(_LANES)[:, None]).reshape(rows, -1)
    values, chosen = jax.lax.top_k(values.reshape(rows, -1), k)
    return values, jnp.take_along_axis(index, chosen, axis=1)


def _flat(cache: Cache) -> Cache:
    return cache._replace(layers=jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), cache.layers))
