"""The item index: what text an item is for the model that reads and writes it, and which tokens that text is."""

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import Float32, Int32

from t5x_lite.data.vocabularies import EOS_ID, Vocabulary
from t5x_lite.errors import UserError, first_words
from t5x_lite.files import write_whole
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.codes import (
    Codebooks,
    collaborative_embeddings,
    default_size,
    fit_codebooks,
    with_features,
)
from t5x_lite.recommendation.splits import Split

INDEX_FILE = "index.json"

_FORMAT = 1
_FEWEST_SPARE = 64
_TOKEN = re.compile(r"<[^<>]+>")
_NUMBER = re.compile(r"_(\d+)>")


@dataclasses.dataclass(frozen=True, eq=False)
class ItemIndex:
    """A text for each item, by its number, no two the same.

    Texts are titles; or one whole token each, `<item_12>`; or codes, which are several, `<c0_17><c1_3><c2_250>`.
    `tokens` must be added to the vocabulary (`Vocabulary.with_tokens`): those of all items, and those that only items
    added later will have. An item that is removed keeps its text, so that no other gets what the model knows of it:
    leave its sequence out of the trie.
    """

    kind: Literal["title", "token", "codes"]
    texts: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    codebooks: Codebooks | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def sequences(self, vocabulary: Vocabulary) -> list[list[int]]:
        """The ids of each item's text, for `build_trie`; those of titles end with an end of sequence.

        UserError where the vocabulary lacks the tokens, or makes the same ids of two titles.
        """
        if self.kind == "title":
            sequences = [[*vocabulary.encode(text), EOS_ID] for text in self.texts]
            self._check_distinct(sequences)
            return sequences
        ids = vocabulary.whole_tokens
        missing = next((token for token in self.tokens if token not in ids), None)
        if missing is not None:
            raise UserError(f"the vocabulary has no token {missing!r}; add all tokens of the item index to it")
        return [[ids[token] for token in _TOKEN.findall(text)] for text in self.texts]

    def words(self, text: str) -> str:
        """A text without the tokens of items, which a vocabulary of words has no use for."""
        return _TOKEN.sub(lambda found: " " if found[0] in self._tokens else found[0], text) if self.tokens else text

    @functools.cached_property
    def _tokens(self) -> frozenset[str]:
        return frozenset(self.tokens)

    def _check_distinct(self, sequences: list[list[int]]) -> None:
        seen: dict[tuple[int, ...], int] = {}
        for number, sequence in enumerate(map(tuple, sequences)):
            other = seen.setdefault(sequence, number)
            if other != number:
                raise UserError(
                    f"items {other} and {number}: {self.texts[other]!r} and {self.texts[number]!r} are the same to the "
                    "vocabulary; give one another title, or use an index of tokens or codes"
                )

    def extended(self, catalogue: Catalogue, embeddings: Float32[np.ndarray, "M D"] | None = None) -> "ItemIndex":
        """The index of a catalogue that begins with this one's items, perhaps with other titles, and has M more.

        Old items keep tokens and codes. New ones get spare tokens, or the codes of the nearest centroids to
        `embeddings`, by default what their words and attributes say: nothing is trained, and no token is new.
        UserError where fewer items are there than before, or no token or code is left.
        """
        old, size = len(self), len(catalogue)
        if size < old:
            raise UserError(f"a catalogue of {size} items cannot replace one of {old}: keep the removed ones in it")
        if self.kind == "title":
            return title_index(catalogue)
        if self.kind == "token":
            if size > len(self.tokens):
                raise UserError(
                    f"{size - old} new items and {len(self.tokens) - old} spare tokens; train again with more to spare"
                )
            return dataclasses.replace(self, texts=self.tokens[:size])
        taken = self.codes
        if embeddings is None:
            known = np.arange(size) < old
            of_old = self.codebooks.reconstruct(taken)
            padded = np.concatenate([of_old, np.zeros((size - old, of_old.shape[1]), np.float32)])
            embeddings = with_features(padded, known, catalogue)[old:]
        new = self.codebooks.assign(embeddings, taken)
        return dataclasses.replace(self, texts=(*self.texts, *_texts(new)))

    @functools.cached_property
    def codes(self) -> Int32[np.ndarray, "N C"]:
        """The numbers in the texts of an index of codes."""
        numbers = [_NUMBER.findall(text) for text in self.texts]
        return np.array(numbers, np.int32)

    @property
    def sha256(self) -> str:
        """Of all that is saved."""
        return self._written()[0]["sha256"]

    def save(self, folder: str | Path) -> None:
        """Writes index.json, whole or not at all, and before it the codebooks that it names, if there are any."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content, arrays = self._written()
        if arrays:
            write_whole(folder / content["codebooks"], arrays)
        write_whole(folder / INDEX_FILE, json.dumps(content, ensure_ascii=False, indent=0).encode())

    def _written(self) -> tuple[dict[str, Any], bytes]:
        """What index.json says, and the bytes of the codebooks' file."""
        file = io.BytesIO()
        if self.codebooks:
            np.savez(file, centroids=self.codebooks.centroids, room=self.codebooks.room)
        arrays = file.getvalue()
        # Named by what is in it, so that an index which is saved over another never goes with the other's.
        name = f"codebooks-{hashlib.sha256(arrays).hexdigest()[:16]}.npz" if arrays else None
        content = {
            "format": _FORMAT,
            "kind": self.kind,
            "codebooks": name,
            "tokens": list(self.tokens),
            "texts": list(self.texts),
        }
        return {"sha256": _digest(content, arrays), **content}, arrays

    @classmethod
    def load(cls, folder: str | Path) -> "ItemIndex":
        """Reads what `save` wrote. UserError where it is missing, or is not what was saved."""
        path = Path(folder) / INDEX_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            saved, name = content.pop("sha256"), content["codebooks"]
            arrays = (path.parent / name).read_bytes() if name else b""
            version, found = content["format"], _digest(content, arrays)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}: no readable item index ({first_words(error)}); restore it from a copy of the run"
            ) from None
        if version != _FORMAT:
            raise UserError(f"{path} has format {version}; this version of t5x_lite reads format {_FORMAT}")
        if found != saved:
            raise UserError(f"{path} has sha256 {found}, not {saved} as saved; restore it from a copy of the run")
        codebooks = None
        if arrays:
            with np.load(io.BytesIO(arrays), allow_pickle=False) as file:
                codebooks = Codebooks(file["centroids"], int(file["room"]))
        return cls(content["kind"], tuple(content["texts"]), tuple(content["tokens"]), codebooks)


def title_index(catalogue: Catalogue) -> ItemIndex:
    """Titles as they are; the second of one name is `name #2`. An item without a title has its id."""
    titles = [title.strip() or id for title, id in zip(catalogue.titles, catalogue.ids, strict=True)]
    others = set(titles)  # an item whose title is `name #2` keeps it
    texts: dict[str, None] = {}
    for title in titles:
        text, copy = title, 1
        while text in texts or (copy > 1 and text in others):
            copy += 1
            text = f"{title} #{copy}"
        texts[text] = None
    return ItemIndex("title", tuple(texts))


def token_index(catalogue: Catalogue, spare: float = 0.1) -> ItemIndex:
    """One token an item, `<item_12>`, and `spare` of their number, 64 at least, for items that come later."""
    size = len(catalogue)
    tokens = tuple(f"<item_{number}>" for number in range(size + max(round(spare * size), _FEWEST_SPARE)))
    return ItemIndex("token", tokens[:size], tokens)


def code_index(
    catalogue: Catalogue,
    split: Split,
    *,
    levels: int | None = None,
    codebook: int | None = None,
    dimension: int = 64,
    text_weight: float = 0.0,
    seed: int = 0,
) -> ItemIndex:
    """Hierarchical codes, learnt from the train part of a split and nothing else of it.

    `levels` codebooks of `codebook` centroids (None: by the number of items), and a last token that tells items with
    the same centroids apart. Items that training has not seen get the codes that their words and attributes point to;
    the others mix those in by `text_weight`. UserError where training has seen no item.
    """
    if len(catalogue) != split.num_items:
        raise UserError(
            f"a catalogue of {len(catalogue)} items and a split of {split.num_items}: they must be of one set"
        )
    if split.cold.all():
        raise UserError("training has seen no item, so there is nothing to make codes of; use an index of tokens")
    for name, value in (("levels", levels), ("codebook", codebook), ("dimension", dimension)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if not 0 <= text_weight <= 1:
        raise UserError(f"text_weight is {text_weight}; it is a share, from 0 to 1")
    usual = default_size(len(catalogue))
    levels, codebook = levels or usual[0], codebook or usual[1]
    embeddings = collaborative_embeddings(split.train, len(catalogue), dimension, seed)
    embeddings = with_features(embeddings, ~split.cold, catalogue, text_weight)
    known = embeddings[~split.cold]
    # Few or small codebooks must have places for all items, and for as many again that come later.
    room = max(codebook, -(-2 * len(catalogue) // min(codebook, len(known)) ** levels))
    codebooks = fit_codebooks(known, levels, codebook, room, seed)
    cold_last = np.argsort(split.cold, kind="stable")  # whatever crowds there, takes no place from what is known
    found = np.empty((len(catalogue), len(codebooks.centroids) + 1), np.int32)
    found[cold_last] = codebooks.assign(embeddings[cold_last])
    sizes = [*[len(centroids) for centroids in codebooks.centroids], codebooks.room]
    tokens = tuple(f"<c{level}_{code}>" for level, size in enumerate(sizes) for code in range(size))
    return ItemIndex("codes", tuple(_texts(found)), tokens, codebooks)


def _texts(rows: Iterable[np.ndarray]) -> Iterator[str]:
    for row in rows:
        yield "".join(f"<c{level}_{code}>" for level, code in enumerate(row))


def _digest(content: dict[str, Any], arrays: bytes) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode() + arrays).hexdigest()
