"""Any number of token lists through a few compiled programs."""

import copy
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from t5x_lite.decoding.buckets import power_of_two, range_of_buckets
from t5x_lite.decoding.constrained import Found
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.programs import BatchLayout, Programs
from t5x_lite.decoding.sampling import PAD_ID, Decoded, Loop
from t5x_lite.decoding.trie import Trie, restrict
from t5x_lite.errors import UserError
from t5x_lite.model import T5Config

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


@dataclasses.dataclass(frozen=True)
class Stream:
    """A greedy generation as far as it has come; `loop` is the devices' side of it, good for one extension."""

    generation: Generation
    options: Decoding
    loop: Loop

    @property
    def finished(self) -> bool:
        """Whether nothing is left to write."""
        return self.generation.ended or len(self.generation.tokens) == self.options.max_tokens


class Generator:
    """A model's weights and the programs over them.

    Inputs are sorted by length, cut into batches of at most `max_batch`, and padded to a power of two of rows and of
    columns (`shortest_bucket` or more), so that the number of compilations grows with the logarithm of the sizes seen;
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
        shortest_bucket: int = 32,
    ):
        self.params = params
        self.max_batch = max_batch
        self.shortest_bucket = shortest_bucket
        self.max_scored = max_scored
        self._eos_id = eos_id
        self._programs = Programs(config, eos_id, partitioner)
        self._trie: tuple[Trie | None, Any] = None, None

    @property
    def compile_count(self) -> int:
        """Programs compiled, by all generators that share them."""
        return self._programs.compile_count

    @property
    def device_seconds(self) -> float:
        """Seconds spent in calls of the devices and in waiting for them, by all generators that share the programs."""
        return self._programs.device_seconds

    def with_params(self, params: Mapping[str, Any]) -> "Generator":
        """A generator of other weights of the same shapes, which shares the programs: nothing compiles again."""
        other = copy.copy(self)
        other.params = params
        other._trie = None, None
        return other

    def sharing(self, other: "Generator") -> "Generator":
        """These weights in the other's programs and sizes of batches; this generator where they do not fit those."""
        return other.with_params(self.params) if other._programs.fit(self._programs) else self

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
            tokens = self._padded([inputs[i] for i in batch], rows)
            prefix = self._padded([prefixes[i] for i in batch], rows, width)
            return self._call(self._programs.decode, tokens, prefix, numbers, key=key, options=options)

        found: dict[int, list[Generation]] = {}
        for batch, decoded in self._in_batches(inputs, self.max_batch, call):
            for row, i in enumerate(batch):
                sequences = (Decoded(*parts) for parts in zip(*(part[row] for part in decoded), strict=True))
                skipped, most = len(prefixes[i]), options.max_tokens
                found[i] = [self._generation(sequence, skipped, most) for sequence in sequences]
        return [found[i] for i in range(len(inputs))]

    def begin(self, tokens: Tokens, options: Decoding) -> Stream:
        """The greedy generation for one input before its first token; `extend` writes it piece by piece.

        Extended until it has finished, it has the tokens that `generate` finds. Raises UserError where `options` are
        not greedy.
        """
        for name in ("beams", "temperature"):
            if getattr(options, name) != getattr(Decoding, name):
                raise UserError(
                    f"{name} is {getattr(options, name)}: a stream takes the likeliest token each time; "
                    f"leave {name} out, or ask for the whole answer at once"
                )
        loop = self._call(self._programs.begin, self._padded([tokens], self._rows(1)), options=options)
        return Stream(Generation([], 0.0, [], not any(tokens)), options, loop)

    def extend(self, stream: Stream, steps: int) -> Stream:
        """The stream with up to `steps` more tokens; the one given cannot be extended again."""
        if not isinstance(steps, int) or steps < 1:
            raise UserError(f"steps is {steps!r}; it must be a whole number of at least 1")
        if stream.finished:
            return stream
        if stream.loop.step.is_deleted():
            raise ValueError("this stream was extended already; go on with what that call returned")
        until = min(len(stream.generation.tokens) + steps, stream.options.max_tokens)
        loop, decoded = self._call(
            self._programs.extend, loop=stream.loop, until=np.int32(until), options=stream.options
        )
        sequence = Decoded(*(part[0, 0] for part in self._programs.fetch(decoded)))
        return Stream(self._generation(sequence, 0, until), stream.options, loop)

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
        fewest_filters: int = 1,
    ) -> list[list[FoundItem]]:
        """The `options.n_best` best items of a catalogue for each input, fewer where fewer are left, in their order.

        `trie` is the host's, as `build_trie` returns it; what restricts it is as in `restrict`, but that a batch has no
        room for more filters than rows. Items go on from the prefix given for their input. Programs compile for a power
        of two of the longest prefix, `prefix_width` at least, too.
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
                fewest_filters=min(fewest_filters, rows),
            )
            tokens = self._padded([inputs[i] for i in batch], rows)
            prefix = self._padded([prefixes[i][::-1] for i in batch], rows, width)[:, ::-1]  # its zeros come first
            return self._call(
                self._programs.find, tokens, prefix, trie=on_device, restriction=restriction, options=options
            )

        found: dict[int, list[FoundItem]] = {}
        for batch, result in self._in_batches(inputs, self.max_batch, call):
            for row, i in enumerate(batch):
                pairs = zip(result.items[row].tolist(), result.scores[row].tolist(), strict=True)
                found[i] = [FoundItem(item, score) for item, score in pairs if item >= 0]
        return [found[i] for i in range(len(inputs))]

    def _on_device(self, trie: Trie) -> Trie:
        """The trie beside the weights; put there once."""
        host, placed = self._trie
        layout = self._programs.layout
        if host is not trie:
            placed = jax.device_put(trie, layout.replicated if layout else None)
            self._trie = trie, placed
        return placed

    def score(self, inputs: Sequence[Tokens], targets: Sequence[Tokens], *, width: int = 0) -> list[list[float]]:
        """The log-probability of each token of each target (give it its EOS) after the input of the same place.

        Programs compile for a power of two of the longest target, `width` at least.
        """
        width = power_of_two(max(width, *map(len, targets), 0))

        def call(batch: Sequence[int], rows: int) -> Float[Array, "B T"]:
            tokens = self._padded([inputs[i] for i in batch], rows)
            return self._call(self._programs.score, tokens, self._padded([targets[i] for i in batch], rows, width))

        found: dict[int, list[float]] = {}
        for batch, scores in self._in_batches(inputs, self.max_scored, call):
            found |= {i: scores[row, : len(targets[i])].tolist() for row, i in enumerate(batch)}
        return [found[i] for i in range(len(inputs))]

    def warm_up(self, options: Decoding, *, lengths: Iterable[int], rows: Iterable[int]) -> float:
        """Compiles ahead for inputs of up to these lengths in batches of up to these sizes; returns seconds.

        After it, no request of `options` within them compiles anything, as long as it has no prefixes: those compile
        when they first come, once for each power of two of their length, as scoring does.
        """
        began = time.perf_counter()
        columns = {self._columns(length) for length in range_of_buckets(lengths)}
        for size in sorted({self._rows(size) for size in range_of_buckets(rows)}):
            for column in sorted(columns):
                tokens = np.full((size, column), PAD_ID, np.int32)  # rows of padding have ended already
                prefix, numbers = np.zeros((size, 0), np.int32), np.zeros(size, np.uint32)
                key = jax.random.key_data(jax.random.key(0, impl="threefry2x32"))
                self._programs.fetch(
                    self._call(self._programs.decode, tokens, prefix, numbers, key=key, options=options)
                )
        return time.perf_counter() - began

    def warm_up_streams(self, options: Decoding, *, lengths: Iterable[int]) -> float:
        """As `warm_up`, of `begin` and `extend`: after it no stream for such inputs compiles anything."""
        began = time.perf_counter()
        for column in sorted({self._columns(length) for length in range_of_buckets(lengths)}):
            self.extend(self.begin([self._eos_id] * column, options), 1)
        return time.perf_counter() - began

    def warm_up_scores(self, *, lengths: Iterable[int], rows: Iterable[int], width: int) -> float:
        """As `warm_up`, of `score` with this width."""
        began = time.perf_counter()
        for size in range_of_buckets([min(max(rows), self.max_scored)]):
            for length in range_of_buckets(lengths):
                self.score([[PAD_ID] * length] * size, [[PAD_ID]] * size, width=width)
        return time.perf_counter() - began

    def _in_batches(
        self, inputs: Sequence[Tokens], most: int, call: Callable[[Sequence[int], int], Any]
    ) -> Iterable[tuple[Sequence[int], Any]]:
        """(places of the inputs, what `call` gave for them): the next batch starts before the last is fetched."""
        order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
        batches = [order[start : start + most] for start in range(0, len(order), most)]
        pending = [call(batch, self._rows(len(batch))) for batch in batches]
        for batch, result in zip(batches, pending, strict=True):
            yield batch, self._programs.fetch(result)

    def _call(self, program: Callable, *tables: np.ndarray, **arguments: Any) -> Any:
        return self._programs.call(program, self.params, *tables, **arguments)

    def _rows(self, count: int) -> int:
        shards = self._programs.layout.data_size if self._programs.layout else 1
        return -(-power_of_two(count) // shards) * shards

    def _generation(self, one: Decoded, skipped: int, most: int) -> Generation:
        """One sequence of one request: up to `most` tokens after its first `skipped`, without EOS."""
        ended = bool(one.ended)
        if ended and not np.any(one.tokens):  # a row of padding
            return Generation([], 0.0, [], True)
        tokens = one.tokens[skipped : skipped + most]
        length = int(np.argmax(tokens == self._eos_id)) if ended else len(tokens)
        scores = one.token_scores[skipped : skipped + length + ended]
        return Generation(tokens[:length].tolist(), float(one.scores), scores.tolist(), ended)

    def _columns(self, length: int) -> int:
        return max(self.shortest_bucket, power_of_two(length))

    def _padded(self, lists: Sequence[Tokens], rows: int, columns: int | None = None) -> Int[np.ndarray, "B S"]:
        columns = self._columns(max(map(len, lists))) if columns is None else columns
        table = np.full((rows, columns), PAD_ID, np.int32)
        for row, values in enumerate(lists):
            table[row, : len(values)] = values
        return table
