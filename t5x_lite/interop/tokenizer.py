"""Hugging Face's tokenizers of the T5 family, read as a Vocabulary and written from one."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from t5x_lite.data import vocabularies
from t5x_lite.data.vocabularies import EOS_ID, PAD_ID, SENTINEL, UNK_ID, Vocabulary, read_model
from t5x_lite.errors import UserError, first_words
from t5x_lite.interop.json_files import read_json

_MODEL_FILE = "spiece.model"
_TOKENIZER_FILES = [_MODEL_FILE, "tokenizer.json", "tokenizer_config.json", "added_tokens.json"]
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # ids 0, 1, 2
_T5_EXTRA_IDS = 100
_BYT5_EXTRA_IDS = 125
_SEVERAL_BLANKS = {"Regex": " {2,}"}
_BYTE_PIECES = {f"<0x{byte:02X}>" for byte in range(256)}
_HIDDEN = 0x100000  # the first character of a plane for private use, which texts do not hold
# Of a tokenizer_config.json: what follows from the vocabulary, so that an older one does not contradict it.
_DERIVED = (
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
    "add_prefix_space",
    "backend",
)


def open_vocabulary(spec: str, what: str = "VOCABULARY") -> Vocabulary:
    """'bytes', a SentencePiece .model file, a local folder (Hugging Face's or a run's), or a name on the hub.

    Raises UserError, which names `what` the user has set, where it is none of these.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if spec == "bytes":
        return vocabularies.byte()
    if spec.endswith(".model"):
        return vocabularies.from_file(spec)
    if (Path(spec) / "vocabulary").is_dir():
        return vocabularies.load(Path(spec) / "vocabulary")
    if Path(spec).is_dir():
        return read_tokenizer(Path(spec))
    try:
        return read_tokenizer(Path(snapshot_download(spec, allow_patterns=_TOKENIZER_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{what} {spec!r}: no local folder of that name, and no {_MODEL_FILE} of it on the Hugging Face hub or in "
            f"its cache ({type(error).__name__}); use 'bytes', a local folder, or the path of a .model file"
        ) from None


def read_tokenizer(folder: Path) -> Vocabulary:
    """The vocabulary of a Hugging Face folder: bytes for ByT5, else its spiece.model, else what tokenizer.json holds.

    T5 has 100 sentinels above its pieces, ByT5 125, mT5 none. Raises UserError for a folder without tokenizer, and
    for one that is not T5's.
    """
    try:
        return _read_tokenizer(folder)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{str(folder)!r}: its tokenizer's files are not as transformers writes them "
            f"({first_words(repr(error))}); get them again"
        ) from None


def _read_tokenizer(folder: Path) -> Vocabulary:
    settings = read_json(folder / "tokenizer_config.json") or {}
    tokenizer = read_json(folder / "tokenizer.json")
    ids = read_json(folder / "added_tokens.json") or {}
    ids |= {entry["content"]: int(i) for i, entry in settings.get("added_tokens_decoder", {}).items()}
    if tokenizer:
        ids |= {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
        if tokenizer["model"].get("type") == "Unigram":
            ids |= {piece: i for i, (piece, _) in enumerate(tokenizer["model"]["vocab"]) if _is_sentinel(piece)}
    is_bytes = settings.get("tokenizer_class", "").startswith("ByT5")
    default = _BYT5_EXTRA_IDS if is_bytes else _T5_EXTRA_IDS
    # A tokenizer.json names all sentinels; ByT5's extra_ids is 0 where added_tokens_decoder does.
    extra_ids = sum(map(_is_sentinel, ids)) or (0 if tokenizer else settings.get("extra_ids", default))
    if is_bytes:
        kind, model = "bytes", None
    elif (folder / _MODEL_FILE).exists():
        kind, model = "hugging_face", read_model(folder / _MODEL_FILE)
    elif tokenizer:
        kind, model = "hugging_face", _model_of_tokenizer(tokenizer, folder / "tokenizer.json")
    else:
        raise UserError(f"{str(folder)!r} has no tokenizer: no {_MODEL_FILE}, tokenizer.json or ByT5's settings")
    pieces = Vocabulary(kind, model).size
    above = sorted((i, token) for token, i in ids.items() if i >= pieces)
    vocabulary = Vocabulary(kind, model, extra_ids, [token for _, token in above if not _is_sentinel(token)])
    for i, token in above:
        if i != vocabulary.whole_tokens[token]:
            raise UserError(
                f"{str(folder)!r}: its token {token!r} has id {i}, and should have {vocabulary.whole_tokens[token]}: "
                f"{pieces} pieces, {extra_ids} sentinels in T5's order, then all others, without a gap"
            )
    return vocabulary


def _is_sentinel(token: str) -> bool:
    return re.fullmatch(SENTINEL, token) is not None


def _model_of_tokenizer(tokenizer: dict, path: Path) -> bytes:
    """The SentencePiece model that a tokenizer.json was made from; transformers 5 saves no other file."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model, piece_type = tokenizer["model"], pb.ModelProto.SentencePiece
    if model.get("type") != "Unigram":
        raise UserError(f"{str(path)!r} is a {model.get('type')} tokenizer; T5's are Unigram")
    pieces = {piece: score for piece, score in model["vocab"] if not _is_sentinel(piece)}
    first = list(pieces)[: len(_SPECIAL)]
    if first != list(_SPECIAL.values()):
        raise UserError(f"{str(path)!r} begins with the pieces {first}; T5's begin with {list(_SPECIAL.values())}")
    steps = _steps(tokenizer.get("normalizer")) + _steps(tokenizer.get("pre_tokenizer"))
    proto = pb.ModelProto()
    kinds = {step["content"]: piece_type.USER_DEFINED for step in steps if _is_shown(step)}
    for entry in tokenizer["added_tokens"]:
        kinds[entry["content"]] = piece_type.CONTROL if entry["special"] else piece_type.USER_DEFINED
    if pieces.keys() >= _BYTE_PIECES:
        kinds |= dict.fromkeys(_BYTE_PIECES, piece_type.BYTE)
        proto.trainer_spec.byte_fallback = True
    kinds |= dict.fromkeys(first, piece_type.CONTROL) | {first[UNK_ID]: piece_type.UNKNOWN}
    for piece, score in pieces.items():
        proto.pieces.add(piece=piece, score=score, type=kinds.get(piece, piece_type.NORMAL))
    proto.trainer_spec.model_type = pb.TrainerSpec.UNIGRAM
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id, proto.trainer_spec.unk_id = PAD_ID, EOS_ID, UNK_ID
    proto.trainer_spec.bos_id = -1
    types = {step["type"] for step in steps}
    proto.normalizer_spec.add_dummy_prefix = not types.isdisjoint({"Metaspace", "Prepend"})
    proto.normalizer_spec.escape_whitespaces = True
    # Tokenizers of different ages keep double blanks from the model in different ways.
    collapses = "WhitespaceSplit" in types or any(step.get("pattern") == _SEVERAL_BLANKS for step in steps)
    proto.normalizer_spec.remove_extra_whitespaces = collapses
    for step in steps:
        if step["type"] == "Precompiled":
            proto.normalizer_spec.precompiled_charsmap = base64.b64decode(step["precompiled_charsmap"])
    return proto.SerializeToString()


def _steps(steps: dict | None) -> list[dict]:
    """Normalizers or pre-tokenizers of a tokenizer.json, which may be one, or a sequence."""
    if steps is None:
        return []
    return steps.get("normalizers") or steps.get("pretokenizers") or [steps]


# ---------------------------------------------------------------------- writing


def write_tokenizer(vocabulary: Vocabulary, folder: Path, original: dict[str, Any] | None = None) -> None:
    """Writes the files from which transformers' AutoTokenizer makes the same ids; `original` settings are kept.

    Raises UserError for a SentencePiece model that is not a unigram one.
    """
    kept = {name: value for name, value in (original or {}).items() if name not in _DERIVED}
    settings = kept | _SPECIAL | {"extra_ids": vocabulary.extra_ids}
    above = [_added(i, token, special=_is_sentinel(token)) for token, i in vocabulary.whole_tokens.items()]
    if vocabulary.model is None:
        settings["tokenizer_class"] = "ByT5Tokenizer"
        settings["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in above}
    else:
        proto = _unigram_model(vocabulary.model)
        (folder / _MODEL_FILE).write_bytes(vocabulary.model)
        tokenizer = _tokenizer_of_model(proto, above)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        # T5Tokenizer would rebuild all but the pieces: without character map (5.0), bytes, or a model's own symbols.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings |= zip(_SPECIAL, (piece.piece for piece in proto.pieces), strict=False)
        settings["model_input_names"] = ["input_ids", "attention_mask"]  # before 5, token_type_ids too unless told
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _unigram_model(model: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto.FromString(model)
    if proto.trainer_spec.model_type != pb.TrainerSpec.UNIGRAM:
        kind = pb.TrainerSpec.ModelType.Name(proto.trainer_spec.model_type)
        raise UserError(f"the vocabulary is a {kind} model of SentencePiece; transformers' T5 tokenizers are UNIGRAM")
    return proto


def _tokenizer_of_model(proto: Any, above: list[dict]) -> dict[str, Any]:
    """The tokenizer.json of a SentencePiece model: its steps one by one, without pre-tokenizer, as it has none."""
    piece_type = proto.pieces[0]
    special = [
        _added(i, piece.piece, special=True)
        for i, piece in enumerate(proto.pieces)
        if piece.type in (piece_type.CONTROL, piece_type.UNKNOWN)
    ]
    pieces = [[piece.piece, piece.score] for piece in proto.pieces]
    pieces += [[entry["content"], 0.0] for entry in above if entry["special"]]
    decoders = [_replace({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if proto.normalizer_spec.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    eos = proto.pieces[EOS_ID].piece
    end = {"SpecialToken": {"id": eos, "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": special + above,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(proto, strips=bool(above))},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {eos: {"id": eos, "ids": [EOS_ID], "tokens": [eos]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "Unigram",
            "unk_id": UNK_ID,
            "vocab": pieces,
            "byte_fallback": proto.trainer_spec.byte_fallback,
        },
    }


def _normalizers(proto: Any, *, strips: bool) -> list[dict]:
    """What happens to a text, or to its parts between whole tokens, before it is cut into pieces.

    `strips` is whether a part loses the blanks at its ends. A model's own symbols that hold white space, such as our
    line break, are hidden from the character map, which would make blanks of them.
    """
    spec = proto.normalizer_spec
    own = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    symbols = sorted((symbol for symbol in own if symbol.split() != [symbol]), key=len, reverse=True)
    hidden = {symbol: chr(_HIDDEN + n) for n, symbol in enumerate(symbols)}
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
    mapped = [_replace({"String": symbol}, stand_in) for symbol, stand_in in hidden.items()]
    mapped += [{"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []
    mapped += [_replace({"String": stand_in}, symbol) for symbol, stand_in in hidden.items()]
    prefix = [{"type": "Prepend", "prepend": "▁"}] if spec.add_dummy_prefix else []
    escape = _replace({"String": " "}, "▁")
    if spec.remove_extra_whitespaces:
        leading, trailing = _replace({"Regex": r"\A +"}, ""), _replace({"Regex": r"▁+\z"}, "")
        return [*mapped, leading, _replace(_SEVERAL_BLANKS, " "), *prefix, escape, trailing]
    ends = [_replace({"Regex": r"\A +| +\z"}, "")] if strips else []
    return [*ends, *prefix, *mapped, escape]


def _is_shown(step: dict) -> bool:
    """Whether a normalizer gives a hidden symbol back."""
    pattern = step.get("pattern", {}).get("String", "") if step["type"] == "Replace" else ""
    return pattern != "" and ord(pattern[0]) >= _HIDDEN


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _added(i: int, content: str, *, special: bool) -> dict[str, Any]:
    exact = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": content, "special": special} | exact
