"""Text to token ids and back, without TensorFlow: pad 0, end of sequence 1, unknown 2, as all of T5's vocabularies."""

import dataclasses
import hashlib
import io
import json
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.files import cache_folder, write_whole

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
LOST_SHARE_WARNED = 0.01  # of the characters; more than this is said aloud

_MODEL_FILE, _DESCRIPTION_FILE = "spiece.model", "vocabulary.json"
_BYTE_OFFSET = 3
_FOLDED = 0x30000  # planes above hold nothing that nmt_nfkc folds
SENTINEL = r"<extra_id_\d+>"


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
    """A SentencePiece model, or, without a model, the bytes of UTF-8 (ByT5); above it ids of whole tokens.

    First `extra_ids` sentinels, <extra_id_0> being the last of them (of bytes: the first), then the tokens `added`,
    such as a catalogue's items. A vocabulary that has such tokens tokenises the text between them for itself, and its
    pieces lose the blanks at the text's ends. `whole_tokens` has the ids of all of them.
    """

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID

    def __init__(self, kind: str, model: bytes | None = None, extra_ids: int = 0, added: Sequence[str] = ()):
        self.kind = kind
        self.extra_ids = extra_ids
        self.added = tuple(added)
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        self._known: set[str] = set()
        self._unknown: set[str] = set()
        sentinels = [f"<extra_id_{n}>" for n in range(extra_ids)]
        whole = [*(reversed(sentinels) if model else sentinels), *self.added]
        self.whole_tokens = {token: self._num_pieces + n for n, token in enumerate(whole)}
        self._splitter = _splitter(whole) if whole else None

    @property
    def _num_pieces(self) -> int:
        return self._pieces.get_piece_size() if self._pieces else _BYTE_OFFSET + 256

    @property
    def size(self) -> int:
        return self._num_pieces + self.extra_ids + len(self.added)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(self.model if self.model else b"bytes")
        digest.update("".join(f"\n{token}" for token in self.added).encode())
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids without an end of sequence."""
        if self._splitter is None:
            return self._encode_text(text)
        ids = []
        for place, part in enumerate(self._splitter.split(text)):  # text and token take turns
            if place % 2:
                ids.append(self.whole_tokens[part])
            elif part := part.strip(" ") if self._pieces else part:  # between items there is none, and a call costs
                ids += self._encode_text(part)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        if self._pieces is None:
            return [byte + _BYTE_OFFSET for byte in text.encode()]
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first end of sequence; padding, sentinels and ids of no piece are left out."""
        ids = [int(token) for token in ids]
        if EOS_ID in ids:
            ids = ids[: ids.index(EOS_ID)]
        first_added = self.size - len(self.added)
        if not any(first_added <= i < self.size for i in ids):
            return self._decode_text(ids)
        words, text = [], []
        for i in [*ids, first_added]:  # the last one only ends the text before it
            if first_added <= i < self.size:
                words += [self._decode_text(text), self.added[i - first_added]]
                text = []
            else:
                text.append(i)
        joined = ""
        for word in filter(None, words[:-1]):
            lost_blank = self._pieces and joined and not joined[-1].isspace() and not word[0].isspace()
            joined += f" {word}" if lost_blank else word
        return joined

    def _decode_text(self, ids: Sequence[int]) -> str:
        if self._pieces is None:
            return bytes(i - _BYTE_OFFSET for i in ids if 0 <= i - _BYTE_OFFSET < 256).decode(errors="ignore")
        return self._pieces.decode([i for i in ids if 0 < i < self._num_pieces])

    def with_tokens(self, tokens: Sequence[str]) -> "Vocabulary":
        """This vocabulary with whole tokens appended; ids of the old ones stay.

        Raises UserError for an empty token, one with white space, and one that is there already.
        """
        seen = {"<pad>", "</s>", "<unk>", *self.added}
        for token in tokens:
            if not token or token.split() != [token]:
                raise UserError(f"new token {token!r} is empty or has white space in it; write it as one word")
            if token in seen or re.fullmatch(SENTINEL, token) or self._is_piece(token):
                raise UserError(f"new token {token!r} is there twice, or already in the vocabulary")
            seen.add(token)
        return Vocabulary(self.kind, self.model, self.extra_ids, (*self.added, *tokens))

    def _is_piece(self, token: str) -> bool:
        """Whether transformers would take the token for a piece; it names bytes by their characters in Latin-1."""
        if self._pieces is None:
            return len(token) == 1 and ord(token) < 256
        return self._pieces.piece_to_id(token) != UNK_ID

    def coverage(self, texts: Iterable[str]) -> Coverage:
        """Counts the characters of `texts` that reach the model as <unk>; white space counts as expressible."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        lost = Counter({character: n for character, n in counts.items() if self._is_lost(character)})
        return Coverage(counts.total(), lost.total(), tuple(character for character, _ in lost.most_common(20)))

    def _is_lost(self, character: str) -> bool:
        if not self.loses_characters or character.isspace():
            return False
        if character not in self._known and character not in self._unknown:
            found = self._unknown if UNK_ID in self._pieces.encode(character) else self._known
            found.add(character)
        return character in self._unknown

    @property
    def loses_characters(self) -> bool:
        """Whether there are characters that it cannot express; bytes express all."""
        return self._pieces is not None

    def save(self, folder: str | Path) -> None:
        """Writes vocabulary/ of a run folder; its description last, since that is what `load` looks for."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.model:
            write_whole(folder / _MODEL_FILE, self.model)
        description = {
            "kind": self.kind,
            "extra_ids": self.extra_ids,
            "added": self.added,
            "bytes": self.model is None,
            "sha256": self.sha256,
        }
        write_whole(folder / _DESCRIPTION_FILE, json.dumps(description).encode())

    def to_seqio(self):
        """The same vocabulary as SeqIO's tasks want it, added tokens as so many ids more; imports TensorFlow."""
        import seqio

        extra_ids = self.extra_ids + len(self.added)
        if self.model is None:
            return seqio.ByteVocabulary(extra_ids=extra_ids)
        path = cache_folder("vocabularies") / f"{hashlib.sha256(self.model).hexdigest()}.model"
        if not path.exists():
            write_whole(path, self.model)
        return seqio.SentencePieceVocabulary(str(path), extra_ids=extra_ids)


def _splitter(tokens: Sequence[str]) -> re.Pattern:
    """Finds the longest of `tokens` at a place, by one step a character, however many they are."""
    tree: dict = {}
    for token in tokens:
        node = tree
        for character in token:
            node = node.setdefault(character, {})
        node[""] = {}

    def pattern(node: dict) -> str:
        ends = "" in node
        branches = []
        for character, below in node.items():
            if character:
                text, rest = character, below
                while len(rest) == 1 and "" not in rest:  # a chain needs no group
                    ((more, rest),) = rest.items()
                    text += more
                branches.append(re.escape(text) + (pattern(rest) if rest != {"": {}} else ""))
        if not branches:
            return ""
        return f"(?:{'|'.join(branches)}){'?' if ends else ''}"

    return re.compile(f"({pattern(tree)})")


def load(folder: str | Path) -> Vocabulary:
    """Reads vocabulary/ of a run folder. UserError where it is missing or not what was saved."""
    folder = epath.Path(folder)
    try:
        description = json.loads((folder / _DESCRIPTION_FILE).read_text())
        model = None if description["bytes"] else (folder / _MODEL_FILE).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no readable vocabulary ({error}); restore it from a copy of the run") from None
    vocabulary = Vocabulary(description["kind"], model, description["extra_ids"], description["added"])
    if vocabulary.sha256 != description["sha256"]:
        raise UserError(
            f"{folder / _MODEL_FILE} has sha256 {vocabulary.sha256}, not {description['sha256']} as saved; "
            "restore it from a copy of the run"
        )
    return vocabulary


def train_sentencepiece(texts: Iterable[str], size: int) -> Vocabulary:
    """A unigram SentencePiece model of at most `size` pieces (Kudo 2018), the same for the same set of texts.

    Order and repetition of texts do not matter; all their characters and printable ASCII are covered. Characters of the
    texts come back as they are, in NFC; others are folded as T5 folds them. Kept by content hash in the user's cache
    folder, so a second run does not train again. Raises UserError where `size` is too small.
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
        "user_defined_symbols": ["\n"],
        "remove_extra_whitespaces": False,
        "max_sentence_length": 100_000,
    }
    versions = [sentencepiece.__version__, unicodedata.unidata_version, "folds what the texts do not have"]
    digest = hashlib.sha256(json.dumps([settings, versions, lines]).encode()).hexdigest()
    cached = cache_folder("vocabularies") / f"trained-{digest}.model"
    if not cached.exists():
        model = io.BytesIO()
        try:
            with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as rules:
                rules.write(_normalisation("".join(lines)))
                rules.flush()
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(lines),
                    model_writer=model,
                    minloglevel=2,
                    normalization_rule_tsv=rules.name,
                    **settings,
                )
        except (RuntimeError, OSError) as error:
            reason = re.sub(r"\s+", " ", str(error))
            raise UserError(f"VOCABULARY_SIZE {size}: SentencePiece cannot make it: {reason}") from None
        write_whole(cached, _without_path(model.getvalue()))
    return Vocabulary("trained", cached.read_bytes())


def _without_path(model: bytes) -> bytes:
    """The model without the name of its file of rules, which it holds compiled: the same on every machine."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto.FromString(model)
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    return proto.SerializeToString()


def _normalisation(text: str) -> str:
    """SentencePiece's rules (code points, a tab, code points): NFC for characters of `text`, T5's nmt_nfkc for others.

    nmt_nfkc alone makes ： a colon and every kind of space a blank, so that no model could write French numbers or
    Chinese and Arabic punctuation. A user may still type in full width where a text has none.
    """
    kept = {each for each in unicodedata.normalize("NFC", text) if unicodedata.category(each) != "Cc"}
    t5 = sentencepiece.SentencePieceNormalizer(
        rule_name="nmt_nfkc", add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
    )
    characters = (chr(code) for code in range(1, _FOLDED) if not 0xD800 <= code < 0xE000)  # without surrogates
    folded = {each: t5.normalize(each) for each in characters if each not in kept}
    composed = {unicodedata.normalize("NFD", each): each for each in kept}
    return "".join(
        f"{_code_points(source)}\t{_code_points(target)}\n"
        for source, target in sorted((folded | composed).items())
        if source != target
    )


def _code_points(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def byte() -> Vocabulary:
    """UTF-8 bytes, as ByT5 (arXiv:2105.13626)."""
    return Vocabulary("bytes")


def from_file(path: str | Path) -> Vocabulary:
    """A SentencePiece .model file. UserError where there is none, or not with T5's special ids."""
    return Vocabulary("file", read_model(Path(path)))


def read_model(path: Path) -> bytes:
    """The bytes of a SentencePiece model that has T5's special ids; else UserError."""
    try:
        model = path.read_bytes()
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (OSError, RuntimeError) as error:
        raise UserError(f"VOCABULARY {str(path)!r} is no SentencePiece model: {error}") from None
    found = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
    if found != (PAD_ID, EOS_ID, UNK_ID):
        raise UserError(f"VOCABULARY {str(path)!r} has pad, eos, unk ids {found}; T5's are {(PAD_ID, EOS_ID, UNK_ID)}")
    return model
