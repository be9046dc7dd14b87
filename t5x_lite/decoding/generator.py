"""Any number of token lists through a few compiled programs."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from t5x_lite.decoding.beam import beam_search
from t5x_lite.decoding.buckets import power_of_two, range_of_buckets
from t5x_lite.decoding.constrained import Found, search
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.sampling import PAD_ID, Decoded, sample
from t5x_lite.decoding.scoring import log_likelihood
from t5x_lite.decoding.trie import Restriction, Trie, restrict
from t5x_lite.model import T5Config, bind

_SHORTEST_BUCKET = 32

Tokens = Sequence[int]


class Generation(NamedTuple):
    """One sequence for one input, without its prefix and without EOS; `token_scores` has EOS's at its end."""

    tokens: list[int]
    score: float
    token_scores: list[float]
    ended: bool


class FoundItem(NamedTuple):
    """An item of a catalogue by its number, and its score: the log-probability of its sequence."""

    item: int
    score: float


class BatchLayout(Protocol):
    """What the generator needs of a partitioner."""

    data_size: int
    batch_sharding: jax.sharding.Sharding
    replicated: jax.sharding.Sharding

    def context(self) -> contextlib.AbstractContextManager: ...


class Generator:
    """A model's weights and the programs over them.

    Inputs are sorted by length, cut into batches of at most `max_batch`, and padded to a power of two of rows and of
    columns (32 or more), so that the number of compilations grows with the logarithm of the sizes seen;
    `compile_count` counts them. A batch is one call of the devices. `params` may be replaced by other weights of the
    same shapes, as training goes on: nothing compiles again.
    """

    def __init__(
        self,
        config: T5Config,
        params: Mapping[str, Any],
        *,
        eos_id: int,
        partitioner: BatchLayout | None = None,
        max_batch: int = 256,
        max_scored: int = 64,
    ):
        self.params = params
        self.compile_count = 0
        self._config = config
        self._eos_id = eos_id
        self._partitioner = partitioner
        self.max_batch = max_batch
        self._max_scored = max_scored
        self._trie: tuple[Trie | None, Any] = None, None
        self._decode = self._compiled(self._decode_batch, static_argnames="options")
        self._find = self._compiled(self._find_batch, static_argnames="options")
        self._score = self._compiled(self._score_batch)

    def generate(
        self,
        inputs: Sequence[Tokens],
        options: Decoding,
        *,
        prefixes: Sequence[Tokens] | None = None,
        seed: int = 0,
        first_number: int = 0,
    ) -> list[list[Generation]]:
        """`options.n_best` generations, best first, for each input, in their order.

        A generation begins with the prefix given for its input. Samples of an input depend on `seed` and its number
        alone (its place among the inputs, from `first_number` on). With several processes, every process gives the
        same inputs and gets all generations.
        """
        key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
        prefixes = prefixes or [()] * len(inputs)
        width = power_of_two(max(map(len, prefixes))) if any(prefixes) else 0

        def call(batch: Sequence[int], rows: int) -> Decoded:
            numbers = np.zeros(rows, np.uint32)
            numbers[: len(batch)] = [first_number + i for i in batch]
            tokens = _padded([inputs[i] for i in batch], rows)
            prefix = _padded([prefixes[i] for i in batch], rows, width)
            return self._call(self._decode, tokens, prefix, numbers, key=key, options=options)

        found: dict[int, list[Generation]] = {}
        for batch, decoded in self._in_batches(inputs, self.max_batch, call):
            for row, i in enumerate(batch):
                sequences = (Decoded(*parts) for parts in zip(*(part[row] for part in decoded), strict=True))
                found[i] = [self._generation(sequence, len(prefixes[i]), options) for sequence in sequences]
        return [found[i] for i in range(len(inputs))]

    def search(
        self,
        inputs: Sequence[Tokens],
        trie: Trie,
        options: Decoding,
        *,
        prefixes: Sequence[Tokens] | None = None,
        deny: Sequence[Collection[int]] | None = None,
        allow: Sequence[Collection[int] | None] | None = None,
        prefix_width: int = 0,
        fewest_denied: int = 16,
    ) -> list[list[FoundItem]]:
        """The `options.n_best` best items of a catalogue for each input, fewer where fewer are left, in their order.

        `trie` is the host's, as `build_trie` returns it; `deny`, `allow` and `fewest_denied` are those of `restrict`.
        Items go on from the prefix given for their input. Programs compile for a power of two of the longest prefix,
        `prefix_width` at least, too.
        """
        prefixes = prefixes or [()] * len(inputs)
        longest = max(prefix_width, *map(len, prefixes), 0)
        width = power_of_two(longest) if longest else 0
        deny = [()] * len(inputs) if deny is None else deny
        allow = [None] * len(inputs) if allow is None else allow
        on_device = self._on_device(trie)

        def call(batch: Sequence[int], rows: int) -> Found:
            padding = [()] * (rows - len(batch))
            first = allow[batch[0]]  # rows of padding share a filter: one more would compile another program
            restriction = restrict(
                trie,
                [*(deny[i] for i in batch), *padding],
                [*(allow[i] for i in batch), *(first for _ in padding)],
                fewest_denied=fewest_denied,
            )
            tokens = _padded([inputs[i] for i in batch], rows)
            prefix = _padded([prefixes[i][::-1] for i in batch], rows, width)[:, ::-1]  # its zeros come first
            return self._call(self._find, tokens, prefix, trie=on_device, restriction=restriction, options=options)

        found: dict[int, list[FoundItem]] = {}
        for batch, result in self._in_batches(inputs, self.max_batch, call):
            for row, i in enumerate(batch):
                pairs = zip(result.items[row].tolist(), result.scores[row].tolist(), strict=True)
                found[i] = [FoundItem(item, score) for item, score in pairs if item >= 0]
        return [found[i] for i in range(len(inputs))]

    def _on_device(self, trie: Trie) -> Trie:
        """The trie beside the weights; put there once."""
        host, placed = self._trie
        if host is not trie:
            placed = jax.device_put(trie, self._partitioner.replicated if self._partitioner else None)
            self._trie = trie, placed
        return placed

    def score(self, inputs: Sequence[Tokens], targets: Sequence[Tokens]) -> list[list[float]]:
        """The log-probability of each token of each target (give it its EOS) after the input of the same place."""
        width = power_of_two(max(map(len, targets), default=0))

        def call(batch: Sequence[int], rows: int) -> Float[Array, "B T"]:
            tokens = _padded([inputs[i] for i in batch], rows)
            return self._call(self._score, tokens, _padded([targets[i] for i in batch], rows, width))

        found: dict[int, list[float]] = {}
        for batch, scores in self._in_batches(inputs, self._max_scored, call):
            found |= {i: scores[row, : len(targets[i])].tolist() for row, i in enumerate(batch)}
        return [found[i] for i in range(len(inputs))]

    def warm_up(self, options: Decoding, *, lengths: Iterable[int], rows: Iterable[int]) -> float:
        """Compiles ahead for inputs of up to these lengths in batches of up to these sizes; returns seconds.

        After it, no request of `options` within them compiles anything, as long as it has no prefixes: those compile
        when they first come, once for each power of two of their length, as scoring does.
        """
        began = time.perf_counter()
        columns = {_bucket(length) for length in range_of_buckets(lengths)}
        for size in sorted({self._rows(size) for size in range_of_buckets(rows)}):
            for column in sorted(columns):
                tokens = np.full((size, column), PAD_ID, np.int32)  # rows of padding have ended already
                prefix, numbers = np.zeros((size, 0), np.int32), np.zeros(size, np.uint32)
                key = jax.random.key_data(jax.random.key(0, impl="threefry2x32"))
                jax.block_until_ready(self._call(self._decode, tokens, prefix, numbers, key=key, options=options))
        return time.perf_counter() - began

    def _decode_batch(
        self,
        params: Mapping[str, Any],
        tokens: Int[Array, "B S"],
        prefix: Int[Array, "B P"],
        numbers: Int[Array, "B"],
        *,
        key: Array,
        options: Decoding,
    ) -> Decoded:
        model = bind(self._config, params)
        if options.beams > 1:
            return beam_search(model, tokens, options, eos_id=self._eos_id, prefix=prefix)
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return sample(model, tokens, options, eos_id=self._eos_id, prefix=prefix, key=key, numbers=numbers)

    def _find_batch(
        self,
        params: Mapping[str, Any],
        tokens: Int[Array, "B S"],
        prefix: Int[Array, "B P"],
        *,
        trie: Trie,
        restriction: Restriction,
        options: Decoding,
    ) -> Found:
        return search(bind(self._config, params), tokens, trie, options, restriction, prefix)

    def _score_batch(self, params: Mapping[str, Any], tokens: Int[Array, "B S"], targets: Int[Array, "B T"]) -> Array:
        return log_likelihood(bind(self._config, params), tokens, targets)

    def _compiled(self, function: Callable, **arguments: Any) -> Callable:
        def counted(*args, **kwargs):
            self.compile_count += 1  # Python runs when jit traces, which is once a compilation
            return function(*args, **kwargs)

        out = self._partitioner.replicated if self._partitioner else None
        return jax.jit(counted, out_shardings=out, **arguments)

    def _in_batches(
        self, inputs: Sequence[Tokens], most: int, call: Callable[[Sequence[int], int], Any]
    ) -> Iterable[tuple[Sequence[int], Any]]:
        """(places of the inputs, what `call` gave for them): the next batch starts before the last is fetched."""
        order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
        batches = [order[start : start + most] for start in range(0, len(order), most)]
        pending = [call(batch, self._rows(len(batch))) for batch in batches]
        for batch, result in zip(batches, pending, strict=True):
            yield batch, jax.device_get(result)

    def _call(self, program: Callable, *tables: np.ndarray, **arguments: Any) -> Any:
        """Starts one batch on the devices; does not wait for it."""
        if self._partitioner is None:
            return program(self.params, *tables, **arguments)
        with self._partitioner.context():
            sharding = self._partitioner.batch_sharding
            placed = [jax.make_array_from_callback(table.shape, sharding, table.__getitem__) for table in tables]
            return program(self.params, *placed, **arguments)

    def _rows(self, count: int) -> int:
        shards = self._partitioner.data_size if self._partitioner else 1
        return -(-power_of_two(count) // shards) * shards

    def _generation(self, one: Decoded, skipped: int, options: Decoding) -> Generation:
        """One sequence of one request, without its first `skipped` tokens and without EOS."""
        ended = bool(one.ended)
        if ended and not np.any(one.tokens):  # a row of padding
            return Generation([], 0.0, [], True)
        tokens = one.tokens[skipped : skipped + options.max_tokens]
        length = int(np.argmax(tokens == self._eos_id)) if ended else len(tokens)
        scores = one.token_scores[skipped : skipped + length + ended]
        return Generation(tokens[:length].tolist(), float(one.scores), scores.tolist(), ended)


def _bucket(length: int) -> int:
    return max(_SHORTEST_BUCKET, power_of_two(length))


def _padded(lists: Sequence[Tokens], rows: int, columns: int | None = None) -> Int[np.ndarray, "B S"]:
    table = np.full((rows, _bucket(max(map(len, lists))) if columns is None else columns), PAD_ID, np.int32)
    for row, values in enumerate(lists):
        table[row, : len(values)] = values
    return table
