"""New tokens for a model that is already trained: rows of its embeddings and columns of its head.

A catalogue's items become single tokens this way. Ids of old tokens do not move: the new ones follow the last.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from t5x_lite import checkpoints
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.interop.source import Source, Wanted
from t5x_lite.model import T5Config
from t5x_lite.partitioning import VOCAB_MULTIPLE

TABLES = {"token_embedder/embedding": 0, "decoder/logits_dense/kernel": 1}  # name: the axis of the vocabulary


@dataclasses.dataclass(frozen=True)
class NewTokens:
    """Tokens to append, each with the text whose tokens' mean it starts as; '' means the mean of all tokens."""

    texts: Mapping[str, str]

    @classmethod
    def from_file(cls, path: str) -> "NewTokens":
        """One token a line, and after a tab, if at all, its text. UserError for a file that has none."""
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")  # a text may hold what else breaks lines
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--new_tokens {path!r}: {error}; it is a text file with one token a line") from None
        texts: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            token, _, text = line.partition("\t")
            if token in texts:
                raise UserError(f"{path}, line {number}: token {token!r} is there twice")
            texts[token] = text.strip()
        if not texts:
            raise UserError(f"--new_tokens {path!r} is empty; write one token a line")
        return cls(texts)


def grown(
    source: Source, config: T5Config, vocabulary: Vocabulary, new: NewTokens
) -> tuple[T5Config, Vocabulary, Source]:
    """Model, vocabulary and weights with the new tokens; no array is read before its time.

    Rows that a model has above its vocabulary (Flan-T5 has 28) become the first of the new tokens.
    """
    larger = vocabulary.with_tokens(list(new.texts))
    grown_config = dataclasses.replace(
        config, vocab_size=max(config.vocab_size, larger.size), vocab_multiple=VOCAB_MULTIPLE
    )
    texts = [[token for token in vocabulary.encode(text) if token > 2] for text in new.texts.values()]
    return grown_config, larger, GrownSource(source, grown_config, vocabulary.size, texts)


class GrownSource(Source):
    """A source whose vocabulary tables have more rows."""

    def __init__(self, source: Source, config: T5Config, old_size: int, texts: Sequence[Sequence[int]]):
        self.where = source.where
        self.hugging_face = source.hugging_face
        self._source = source
        self._config = config
        self._old_size = old_size
        self._texts = texts

    @property
    def config(self) -> T5Config:
        return self._config

    @property
    def dtype(self) -> str:
        return self._source.dtype

    @property
    def lengths(self) -> dict[str, int]:
        return self._source.lengths

    def vocabulary(self) -> Vocabulary:
        return self._source.vocabulary()

    def load(self, wanted: Wanted) -> dict[str, Array]:
        tables = {target: pair for target, pair in wanted.items() if pair[0] in TABLES}
        loaded = self._source.load({target: pair for target, pair in wanted.items() if target not in tables})
        return loaded | {target: self._grow(name, leaf) for target, (name, leaf) in tables.items()}

    def _grow(self, name: str, leaf: jax.ShapeDtypeStruct) -> Array:
        axis = TABLES[name]
        stored = self._source.parameters(scanned=False)[name]
        loaded = self._source.load({name: (name, checkpoints.placed(stored))})[name]
        old = np.moveaxis(np.asarray(loaded), axis, 0)
        rows = np.zeros((leaf.shape[axis], old.shape[1]), leaf.dtype)
        rows[: self._old_size] = old[: self._old_size]
        known = old[: self._old_size].astype(np.float32)
        mean = known.mean(axis=0)
        for place, tokens in enumerate(self._texts, start=self._old_size):
            rows[place] = known[list(tokens)].mean(axis=0) if tokens else mean
        # What was above the vocabulary and is still no token stays as it came.
        end = self._old_size + len(self._texts)
        rows[end : len(old)] = old[end : len(rows)]
        return jax.device_put(jnp.asarray(np.moveaxis(rows, 0, axis)), leaf.sharding)
