"""The compiled programs over a model of one architecture, whatever its weights."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from t5x_lite.decoding.beam import beam_search
from t5x_lite.decoding.constrained import Found, search
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.sampling import Decoded, Loop, extend, finish, sample, start
from t5x_lite.decoding.scoring import log_likelihood
from t5x_lite.decoding.trie import Restriction, Trie
from t5x_lite.model import T5Config, bind


class BatchLayout(Protocol):
    """What decoding needs of a partitioner."""

    data_size: int
    batch_sharding: jax.sharding.Sharding
    replicated: jax.sharding.Sharding

    def context(self) -> contextlib.AbstractContextManager: ...


class Programs:
    """Functions of weights and batches; each compiles once for each of their shapes.

    `compile_count` counts that, and `device_seconds` adds up the time spent in calls of the devices and in waiting for
    their results. They hold no weights, so that those of a model which is replaced are let go.
    """

    def __init__(self, config: T5Config, eos_id: int, layout: BatchLayout | None):
        self.compile_count = 0
        self.device_seconds = 0.0
        self.layout = layout
        self._config = config
        self._eos_id = eos_id
        self.decode = self._compiled(self._decode, static_argnames="options")
        self.find = self._compiled(self._find, static_argnames="options")
        self.score = self._compiled(self._score)
        self.begin = self._compiled(self._begin, static_argnames="options")
        self.extend = self._compiled(self._extend, static_argnames="options", donate_argnames="loop")

    def fit(self, other: "Programs") -> bool:
        """Whether the other's weights can be given to these."""
        return (self._config, self._eos_id, self.layout) == (other._config, other._eos_id, other.layout)

    def call(self, program: Callable, params: Mapping[str, Any], *tables: np.ndarray, **arguments: Any) -> Any:
        """Starts one batch on the devices; does not wait for it."""
        with self._on_devices():
            if self.layout is None:
                return program(params, *tables, **arguments)
            with self.layout.context():
                sharding = self.layout.batch_sharding
                placed = [jax.make_array_from_callback(table.shape, sharding, table.__getitem__) for table in tables]
                return program(params, *placed, **arguments)

    def fetch(self, result: Any) -> Any:
        """A batch's result on the host; waits for it."""
        with self._on_devices():
            return jax.device_get(result)

    @contextlib.contextmanager
    def _on_devices(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.device_seconds += time.perf_counter() - began

    def _compiled(self, function: Callable, **arguments: Any) -> Callable:
        def counted(*args, **kwargs):
            self.compile_count += 1  # Python runs when jit traces, which is once a compilation
            return function(*args, **kwargs)

        out = self.layout.replicated if self.layout else None
        return jax.jit(counted, out_shardings=out, **arguments)

    def _decode(
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

    def _find(
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

    def _score(
        self, params: Mapping[str, Any], tokens: Int[Array, "B S"], targets: Int[Array, "B T"]
    ) -> Float[Array, "B T"]:
        return log_likelihood(bind(self._config, params), tokens, targets)

    def _begin(self, params: Mapping[str, Any], tokens: Int[Array, "B S"], *, options: Decoding) -> Loop:
        return start(bind(self._config, params), tokens, options, options.max_tokens)

    def _extend(
        self, params: Mapping[str, Any], *, loop: Loop, until: Int[Array, ""], options: Decoding
    ) -> tuple[Loop, Decoded]:
        loop = extend(bind(self._config, params), loop, until, options, eos_id=self._eos_id)
        return loop, finish(loop, options)  # apart from the loop, whose arrays the next call takes
