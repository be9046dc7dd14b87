"""Hugging Face's tokenizers of the T5 family, read as a Vocabulary and written from one."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from t5x_lite.data import vocabularies
from t5x_lite.data.vocabularies import EOS_ID, PAD_ID, SENTINEL, UNK_ID, Vocabulary, read_model
from t5x_lite.errors import UserError
from t5x_lite.interop.json_files import read_json

_MODEL_FILE = "spiece.model"
_TOKENIZER_FILES = [_MODEL_FILE, "tokenizer.json", "tokenizer_config.json", "added_tokens.json"]
_T5_EXTRA_IDS = 100
_BYT5_EXTRA_IDS = 125


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
    settings = read_json(folder / "tokenizer_config.json") or {}
    tokenizer = read_json(folder / "tokenizer.json")
    ids = read_json(folder / "added_tokens.json") or {}
    ids |= {entry["content"]: entry["id"] for entry in (tokenizer or {}).get("added_tokens", [])}
    ids |= {entry["content"]: int(i) for i, entry in settings.get("added_tokens_decoder", {}).items()}
    if settings.get("tokenizer_class", "").startswith("ByT5"):
        sentinels = sum(re.fullmatch(SENTINEL, token) is not None for token in ids)
        base = Vocabulary("bytes", extra_ids=sentinels or _BYT5_EXTRA_IDS)
    else:
        extra_ids = settings.get("extra_ids", _T5_EXTRA_IDS)
        if tokenizer and tokenizer.get("model", {}).get("type") == "Unigram":
            extra_ids = sum(re.fullmatch(SENTINEL, piece) is not None for piece, _ in tokenizer["model"]["vocab"])
        if (folder / _MODEL_FILE).exists():
            model = read_model(folder / _MODEL_FILE)
        elif tokenizer:
            model = _model_of_tokenizer(tokenizer, extra_ids, folder / "tokenizer.json")
        else:
            raise UserError(
                f"{str(folder)!r} has no tokenizer: no {_MODEL_FILE}, tokenizer.json, or tokenizer_config.json"
            )
        base = Vocabulary("hugging_face", model, extra_ids)
    added = sorted((i, token) for token, i in ids.items() if i >= base.size and not re.fullmatch(SENTINEL, token))
    if [i for i, _ in added] != list(range(base.size, base.size + len(added))):
        raise UserError(
            f"{str(folder)!r}: added token {added[0][1]!r} has id {added[0][0]}; the first should be {base.size}"
        )
    return base.with_tokens([token for _, token in added])


def _model_of_tokenizer(tokenizer: dict, extra_ids: int, path: Path) -> bytes:
    """The SentencePiece model that a tokenizer.json was made from; transformers 5 saves no other file."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = tokenizer.get("model", {})
    if model.get("type") != "Unigram":
        raise UserError(f"{str(path)!r} is a {model.get('type')} tokenizer; T5's are Unigram")
    kinds = {entry["id"]: pb.ModelProto.SentencePiece.USER_DEFINED for entry in tokenizer.get("added_tokens", [])}
    kinds |= {PAD_ID: pb.ModelProto.SentencePiece.CONTROL, EOS_ID: pb.ModelProto.SentencePiece.CONTROL}
    kinds[UNK_ID] = pb.ModelProto.SentencePiece.UNKNOWN
    proto = pb.ModelProto()
    for i, (piece, score) in enumerate(model["vocab"]):
        if re.fullmatch(SENTINEL, piece) and i >= len(model["vocab"]) - extra_ids:
            continue
        proto.pieces.add(piece=piece, score=score, type=kinds.get(i, pb.ModelProto.SentencePiece.NORMAL))
    proto.trainer_spec.model_type = pb.TrainerSpec.UNIGRAM
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id, proto.trainer_spec.unk_id = PAD_ID, EOS_ID, UNK_ID
    proto.trainer_spec.bos_id = -1
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.escape_whitespaces = True
    # T5's own tokenizers split at white space first, so that no blank reaches the model twice.
    proto.normalizer_spec.remove_extra_whitespaces = "WhitespaceSplit" in json.dumps(tokenizer.get("pre_tokenizer"))
    for step in _steps(tokenizer.get("normalizer")):
        if step.get("type") == "Precompiled":
            proto.normalizer_spec.precompiled_charsmap = base64.b64decode(step["precompiled_charsmap"])
    return proto.SerializeToString()


def _steps(normalizer: dict | None) -> list[dict]:
    """The normalizers of a tokenizer.json, which may be one, or a sequence."""
    if normalizer is None:
        return []
    return normalizer.get("normalizers", [normalizer])


# ---------------------------------------------------------------------- writing


def write_tokenizer(vocabulary: Vocabulary, folder: Path, original: dict[str, Any] | None = None) -> None:
    """Writes the files from which transformers' AutoTokenizer makes the same ids; `original` settings are kept."""
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    added = [
        {"id": vocabulary.size - len(vocabulary.added) + n, "content": token, "special": False}
        for n, token in enumerate(vocabulary.added)
    ]
    settings = special | {"extra_ids": vocabulary.extra_ids} | (original or {})
    if vocabulary.model is None:
        settings["tokenizer_class"] = "ByT5Tokenizer"
        first = vocabulary.size - len(added) - vocabulary.extra_ids
        names = [f"<extra_id_{n}>" for n in range(vocabulary.extra_ids)]
        added = [{"id": first + n, "content": name, "special": True} for n, name in enumerate(names)] + added
    else:
        (folder / _MODEL_FILE).write_bytes(vocabulary.model)
        if _keeps_white_space(vocabulary.model):
            # T5Tokenizer splits at white space first; these models have pieces for it.
            settings = special | {"tokenizer_class": "PreTrainedTokenizerFast"}
            tokenizer = _tokenizer_of_model(vocabulary.model, vocabulary.extra_ids, added)
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        else:
            settings.setdefault("tokenizer_class", "T5Tokenizer")
    if added:
        settings["added_tokens_decoder"] = {str(entry["id"]): _added(entry) for entry in added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _keeps_white_space(model: bytes) -> bool:
    from sentencepiece import sentencepiece_model_pb2 as pb

    return not pb.ModelProto.FromString(model).normalizer_spec.remove_extra_whitespaces


def _tokenizer_of_model(model: bytes, extra_ids: int, added: list[dict]) -> dict[str, Any]:
    """The tokenizer.json of a SentencePiece model that keeps white space as it is."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto.FromString(model)
    pieces = [[piece.piece, piece.score] for piece in proto.pieces]
    sentinels = [[f"<extra_id_{n}>", 0.0] for n in reversed(range(extra_ids))]
    whole = [
        {"id": i, "content": piece.piece, "special": piece.type != pb.ModelProto.SentencePiece.USER_DEFINED}
        for i, piece in enumerate(proto.pieces)
        if piece.type not in (pb.ModelProto.SentencePiece.NORMAL, pb.ModelProto.SentencePiece.UNUSED)
    ]
    whole += [{"id": len(pieces) + n, "content": name, "special": True} for n, (name, _) in enumerate(sentinels)]
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": [{"id": entry["id"]} | _added(entry) for entry in (*whole, *added)],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else None,
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [EOS_ID], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": UNK_ID, "vocab": pieces + sentinels, "byte_fallback": False},
    }


def _added(entry: dict) -> dict[str, Any]:
    exact = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": entry["content"], "special": entry["special"]} | exact
