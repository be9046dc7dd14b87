"""Text to token ids and back, without TensorFlow: pad 0, end of sequence 1, unknown 2, as all of T5's vocabularies."""

import dataclasses
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from t5x_lite.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
LOST_SHARE_WARNED = 0.01  # of the characters; more than this is said aloud

_MODEL_FILE, _DESCRIPTION_FILE = "spiece.model", "vocabulary.json"
_BYTE_OFFSET = 3
_T5_EXTRA_IDS = 100  # sentinels above the pieces of T5's own vocabularies


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How much of a text a vocabulary can express."""

    characters: int
    lost: int
    examples: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share of characters that become <unk>."""
        return self.lost / self.characters if self.characters else 0.0


class Vocabulary:
    """A SentencePiece model with `extra_ids` ids above it, or, without a model, the bytes of UTF-8 (ByT5)."""

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID

    def __init__(self, kind: str, model: bytes | None = None, extra_ids: int = 0):
        self.kind = kind
        self.extra_ids = extra_ids
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        self._known: set[str] = set()
        self._unknown: set[str] = set()

    @property
    def size(self) -> int:
        pieces = self._pieces.get_piece_size() if self._pieces else _BYTE_OFFSET + 256
        return pieces + self.extra_ids

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self._model if self._model else b"bytes").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids without an end of sequence."""
        if self._pieces is None:
            return [byte + _BYTE_OFFSET for byte in text.encode()]
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first end of sequence; padding and ids of no piece are left out."""
        ids = [int(token) for token in ids]
        if EOS_ID in ids:
            ids = ids[: ids.index(EOS_ID)]
        if self._pieces is None:
            return bytes(i - _BYTE_OFFSET for i in ids if 0 <= i - _BYTE_OFFSET < 256).decode(errors="ignore")
        return self._pieces.decode([i for i in ids if 0 < i < self._pieces.get_piece_size()])

    def coverage(self, texts: Iterable[str]) -> Coverage:
        """Counts the characters of `texts` that reach the model as <unk>; white space counts as expressible."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        lost = Counter({character: n for character, n in counts.items() if self._is_lost(character)})
        return Coverage(counts.total(), lost.total(), tuple(character for character, _ in lost.most_common(20)))

    def _is_lost(self, character: str) -> bool:
        if self._pieces is None or character.isspace():
            return False
        if character not in self._known and character not in self._unknown:
            found = self._unknown if UNK_ID in self._pieces.encode(character) else self._known
            found.add(character)
        return character in self._unknown

    def save(self, folder: str | Path) -> None:
        """Writes vocabulary/ of a run folder; its description last, since that is what `load` looks for."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._model:
            _write_whole(folder / _MODEL_FILE, self._model)
        description = {"kind": self.kind, "extra_ids": self.extra_ids, "sha256": self.sha256}
        _write_whole(folder / _DESCRIPTION_FILE, json.dumps(description).encode())

    def to_seqio(self):
        """The same vocabulary as SeqIO's tasks want it; imports TensorFlow."""
        import seqio

        if self._model is None:
            return seqio.ByteVocabulary(extra_ids=self.extra_ids)
        path = _cache_folder() / f"{self.sha256}.model"
        if not path.exists():
            _write_whole(path, self._model)
        return seqio.SentencePieceVocabulary(str(path), extra_ids=self.extra_ids)


def load(folder: str | Path) -> Vocabulary:
    """Reads vocabulary/ of a run folder. UserError where it is missing or not what was saved."""
    folder = Path(folder)
    try:
        description = json.loads((folder / _DESCRIPTION_FILE).read_text())
        model = (folder / _MODEL_FILE).read_bytes() if description["kind"] != "bytes" else None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no readable vocabulary ({error}); restore it from a copy of the run") from None
    vocabulary = Vocabulary(description["kind"], model, description["extra_ids"])
    if vocabulary.sha256 != description["sha256"]:
        raise UserError(
            f"{folder / _MODEL_FILE} has sha256 {vocabulary.sha256}, not {description['sha256']} as saved; "
            "restore it from a copy of the run"
        )
    return vocabulary


def train_sentencepiece(texts: Iterable[str], size: int) -> Vocabulary:
    """A unigram SentencePiece model of at most `size` pieces (Kudo 2018), the same for the same set of texts.

    Order and repetition of texts do not matter; all their characters and printable ASCII are covered. Kept by content
    hash in the user's cache folder, so a second run does not train again. Raises UserError where `size` is too small.
    """
    lines = sorted({line for text in texts for line in text.splitlines() if line.strip()})
    if not lines:
        raise UserError("the tasks' train split has no text to make a vocabulary of; set VOCABULARY to a .model file")
    settings = {
        "vocab_size": size,
        "model_type": "unigram",
        "pad_id": PAD_ID,
        "eos_id": EOS_ID,
        "unk_id": UNK_ID,
        "bos_id": -1,
        "character_coverage": 1.0,
        "required_chars": "".join(map(chr, range(33, 127))),
        "split_digits": True,
        "hard_vocab_limit": False,
        "num_threads": 1,
        # Line breaks are part of instructions; SentencePiece's own normalisation would turn them into blanks.
        "normalization_rule_name": "nmt_nfkc",
        "user_defined_symbols": ["\n"],
        "remove_extra_whitespaces": False,
        "max_sentence_length": 100_000,
    }
    digest = hashlib.sha256(json.dumps([settings, sentencepiece.__version__, lines]).encode()).hexdigest()
    cached = _cache_folder() / f"trained-{digest}.model"
    if not cached.exists():
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **settings
            )
        except (RuntimeError, OSError) as error:
            reason = re.sub(r"\s+", " ", str(error))
            raise UserError(f"VOCABULARY_SIZE {size}: SentencePiece cannot make it: {reason}") from None
        _write_whole(cached, model.getvalue())
    return Vocabulary("trained", cached.read_bytes())


def byte() -> Vocabulary:
    """UTF-8 bytes, as ByT5 (arXiv:2105.13626)."""
    return Vocabulary("bytes")


def from_file(path: str | Path) -> Vocabulary:
    """A SentencePiece .model file. UserError where there is none, or not with T5's special ids."""
    try:
        model = Path(path).read_bytes()
        vocabulary = Vocabulary("file", model)
    except (OSError, RuntimeError) as error:
        raise UserError(f"VOCABULARY {str(path)!r} is no SentencePiece model: {error}") from None
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    found = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
    if found != (PAD_ID, EOS_ID, UNK_ID):
        raise UserError(f"VOCABULARY {str(path)!r} has pad, eos, unk ids {found}; T5's are {(PAD_ID, EOS_ID, UNK_ID)}")
    return vocabulary


def from_hugging_face(name: str) -> Vocabulary:
    """The SentencePiece model of a T5 on the Hugging Face hub or in its cache, with its sentinels above it.

    T5 has 100 of them, mT5 none; UserError where hub and cache have no such model.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        model = Path(hf_hub_download(name, _MODEL_FILE)).read_bytes()
        settings = json.loads(Path(hf_hub_download(name, "tokenizer_config.json")).read_text())
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"VOCABULARY {name!r}: no {_MODEL_FILE} of that name on the Hugging Face hub or in its cache "
            f"({type(error).__name__}); use 'train', 'bytes', or the path of a .model file"
        ) from None
    return Vocabulary("hugging_face", model, extra_ids=settings.get("extra_ids", _T5_EXTRA_IDS))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "t5x_lite" / "vocabularies"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)
