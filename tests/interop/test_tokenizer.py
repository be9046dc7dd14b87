"""Hugging Face's tokenizers: what we write and what we read makes the ids that transformers makes, text by text."""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import re
import unicodedata
import warnings
from pathlib import Path

import huggingface_hub.constants
import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t5x_lite.data import vocabularies
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.interop import open_vocabulary
from t5x_lite.interop.tokenizer import read_tokenizer, write_tokenizer

FACTS = Path(__file__).parents[2] / "tasks" / "data" / "world_facts.jsonl"
# No character twice in a row: of 33|3 and 3|33, equally likely, libraries would choose by their rounding.
TEXTS = [
    re.sub(r"(.)\1+", r"\1", f"The capital of {fact['phrase']} is {fact['capital']}, of {fact['population']} people.")
    for fact in map(json.loads, FACTS.read_text(encoding="utf-8").splitlines())
]
TEXTS += ["São Tomé is a capital."]
ITEMS = ("<item_1>", "<item_12>", "item_1", "item_12", "B07é", "<b|b>")

# What the tokenizers library does otherwise than SentencePiece is left out. It drops what joins a character that is not
# its own normal form, such as marks and these; to T5Tokenizer, U+0085 is a blank, and a text's own "▁" may be one.
JOINING = "\u0e33\u0eb3\uff9e\uff9f🏻🏼🏽🏾🏿"
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn", "Co", "Cf", "M"], exclude_characters="\x85▁" + JOINING)
PARTS = [" ", "  ", "\n", "\t", "\r\n", "\u3000", "\x01"]
PARTS += ["Tokyo", "The capital of", "12", "a\u0303", "ﬁ", "™", "①", "日"]
PARTS += [*ITEMS, "<item_123>", "<extra_id_0>", "<extra_id_5>", "<extra_id_99>", "<extra_id_100>", "<extra_id_05>"]
# Half of the parts come from a list, since chance alone would not write a token, nor blanks on its sides.
texts = st.lists(st.one_of(st.sampled_from(PARTS), CHARACTERS), max_size=8).map("".join)


def sentencepiece_model(**settings) -> bytes:
    """A model with T5's settings, unless told otherwise: blanks are stripped and never doubled, breaks are blanks."""
    model = io.BytesIO()
    t5s = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "normalization_rule_name": "nmt_nfkc"}
    size = {"vocab_size": 600, "hard_vocab_limit": False, "character_coverage": 1.0, "required_chars": "<>_|"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=2, num_threads=1, **t5s | size | settings
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        ours = vocabularies.train_sentencepiece(TEXTS, 400).model
    sentinels = ["▁<extra_id_1>", "▁<extra_id_0>"]  # mT5's are pieces of its model
    return {
        "T5": sentencepiece_model(),
        "mT5": sentencepiece_model(byte_fallback=True, user_defined_symbols=sentinels),
        "ours": ours,
        "bytes": None,
    }


@contextlib.contextmanager
def warnings_of_transformers():
    """A list that fills with what transformers warns of; Python's own warnings are errors."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield said
    finally:
        logger.removeHandler(handler)


def auto_tokenizer(folder: Path, model_type: str = "t5") -> transformers.PreTrainedTokenizerBase:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with warnings_of_transformers() as said:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert said == []
    return tokenizer


# ---------------------------------------------------------------------- writing


@dataclasses.dataclass(frozen=True)
class Exported:
    vocabulary: Vocabulary
    folder: Path
    theirs: transformers.PreTrainedTokenizerBase
    read_back: Vocabulary
    saved_by_them: Vocabulary  # read from a folder that transformers wrote in turn


# name: (transformers' model_type, our model, sentinels, added tokens)
EXPORTS = {
    "T5": ("t5", "T5", 100, ()),
    "T5 with items": ("t5", "T5", 100, ITEMS),
    "mT5": ("mt5", "mT5", 0, ()),
    "mT5 with items": ("mt5", "mT5", 0, ITEMS),
    "umT5 with items": ("umt5", "T5", 300, ITEMS),
    "ours": ("t5", "ours", 0, ()),
    "ours with items": ("t5", "ours", 100, ITEMS),
    "bytes": ("t5", "bytes", 0, ()),
    "ByT5 with items": ("t5", "bytes", 125, ITEMS),
}


@pytest.fixture(scope="module", params=EXPORTS)
def exported(request, models, tmp_path_factory):
    model_type, name, extra_ids, items = EXPORTS[request.param]
    vocabulary = Vocabulary(name, models[name], extra_ids).with_tokens(items)
    ours, again = (tmp_path_factory.mktemp("folder") for _ in range(2))
    write_tokenizer(vocabulary, ours)
    theirs = auto_tokenizer(ours, model_type)
    theirs.save_pretrained(again)
    assert not (again / "spiece.model").exists()
    return Exported(vocabulary, ours, theirs, read_tokenizer(ours), read_tokenizer(again))


@settings(deadline=None)  # the first call takes longer
@given(text=texts)
@example(text="\n".join(TEXTS))
@example(text=" Tokyo \n  <item_12> \n\n <extra_id_5>\t<item_1>2\r\nTokyo  ")
def test_every_text_has_the_same_ids_in_transformers_and_read_back(exported, text):
    ids = exported.vocabulary.encode(text)
    assert exported.theirs(text).input_ids == [*ids, 1]
    assert exported.read_back.encode(text) == ids
    assert exported.saved_by_them.encode(text) == ids


@settings(deadline=None)  # the first call takes longer
@given(parts=st.lists(st.sampled_from([part for part in PARTS if part != "日" and not re.search("item|B07|b>", part)])))
def test_ids_have_the_same_text_in_transformers(exported, parts):
    """Apart from <unk>, which T5 shows and transformers skips, and from items, to which transformers sets no blank."""
    ids = [*exported.vocabulary.encode("".join(parts)), 1]
    assert exported.vocabulary.decode(ids) == exported.theirs.decode(ids, skip_special_tokens=True)


def test_a_written_vocabulary_is_read_as_the_same_and_written_as_the_same(exported, tmp_path):
    for read in (exported.read_back, exported.saved_by_them):
        assert (read.size, read.extra_ids, read.added) == (
            exported.vocabulary.size,
            exported.vocabulary.extra_ids,
            exported.vocabulary.added,
        )
    assert len(exported.theirs) == exported.vocabulary.size
    assert exported.read_back.sha256 == exported.vocabulary.sha256
    write_tokenizer(exported.read_back, tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (exported.folder / file.name).read_bytes(), file.name


def test_a_batch_has_what_the_model_takes(exported):
    names = {"input_ids", "attention_mask"}
    assert set(exported.theirs(["Tokyo", "Lima is"], padding=True)) == names
    written = json.loads((exported.folder / "tokenizer_config.json").read_text())
    assert exported.vocabulary.model is None or set(written["model_input_names"]) == names  # transformers 4 asks


def test_items_are_shown_and_sentinels_are_not(exported):
    sentinel, item = "<extra_id_0>" * bool(exported.vocabulary.extra_ids), "".join(exported.vocabulary.added[1:2])
    ids = exported.theirs(sentinel + item).input_ids
    assert exported.theirs.decode(ids, skip_special_tokens=True) == exported.vocabulary.decode(ids) == item


def test_settings_of_the_original_are_kept_and_its_tokens_are_not(models, tmp_path):
    original = {
        "tokenizer_class": "T5TokenizerFast",
        "model_max_length": 77,
        "extra_ids": 100,
        "legacy": True,
        "sp_model_kwargs": {},
        "add_prefix_space": True,
        "eos_token": "<end>",
        "additional_special_tokens": ["<extra_id_0>"],
        "extra_special_tokens": ["<old>"],
        "added_tokens_decoder": {"500": {"content": "<old>", "special": False}},
    }
    write_tokenizer(Vocabulary("T5", models["T5"], 10).with_tokens(ITEMS), tmp_path, original)
    theirs = auto_tokenizer(tmp_path)
    assert theirs.model_max_length == 77
    assert not {"<old>", "<end>"} & theirs.get_vocab().keys()
    assert len(theirs) == read_tokenizer(tmp_path).size


SYMBOLS = ["<sep>", "\n", "\n\n"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"byte_fallback": True},
        {"user_defined_symbols": SYMBOLS},
        {"user_defined_symbols": SYMBOLS, "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity"},
        {"split_by_whitespace": False},
        {"pad_piece": "[PAD]", "eos_piece": "[END]", "unk_piece": "[?]"},
    ],
    ids=str,
)
def test_a_model_of_any_settings_is_written_as_it_is(tmp_path, settings):
    vocabulary = Vocabulary("file", sentencepiece_model(**settings))
    write_tokenizer(vocabulary, tmp_path)
    tokenizer = auto_tokenizer(tmp_path)
    for text in ("The capital  of\tJapan\n\n\nis Tokyo ", " a<sep>b<sep>\nﬁ", "\n", " ", "", "日 日", "a\x85▁▁b"):
        assert tokenizer(text).input_ids == [*vocabulary.encode(text), 1], text


def test_the_tokenizer_of_t5_reads_it_too(models, tmp_path):
    vocabulary = Vocabulary("T5", models["T5"], 100).with_tokens(ITEMS)
    write_tokenizer(vocabulary, tmp_path)
    theirs = transformers.T5TokenizerFast.from_pretrained(tmp_path)
    text = "The capital  of <item_12> is <extra_id_5>Tokyo"
    assert theirs(text).input_ids == [*vocabulary.encode(text), 1]


def test_a_model_that_is_not_unigram_is_not_written(tmp_path):
    vocabulary = Vocabulary("file", sentencepiece_model(model_type="bpe", vocab_size=100))
    with pytest.raises(UserError, match=r"a BPE model of SentencePiece; transformers' T5 tokenizers are UNIGRAM"):
        write_tokenizer(vocabulary, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- folders that others wrote


def published(model: bytes | None, folder: Path, **settings) -> int:
    """A folder as the hub has it: a model, and settings if any. The number of pieces comes back."""
    if model:
        (folder / "spiece.model").write_bytes(model)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size() if model else 259


def saved_by_transformers(tokenizer, folder: Path) -> None:
    tokenizer.add_tokens(list(ITEMS))
    tokenizer.save_pretrained(folder)


def t5_saved(model: bytes, folder: Path, extra_ids: int = 100) -> None:
    published(model, folder, extra_ids=extra_ids)
    tokenizer = transformers.T5TokenizerFast.from_pretrained(folder)
    for file in folder.iterdir():
        file.unlink()
    saved_by_transformers(tokenizer, folder)


def added_tokens_file(model: bytes, folder: Path) -> None:
    pieces = published(model, folder, extra_ids=100)
    (folder / "added_tokens.json").write_text(json.dumps({item: pieces + 100 + n for n, item in enumerate(ITEMS)}))


def added_tokens_setting(model: bytes, folder: Path) -> None:
    pieces = published(model, folder)
    exact = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    decoder = {str(pieces + n): {"content": item} | exact for n, item in enumerate(ITEMS)}
    published(model, folder, extra_ids=0, added_tokens_decoder=decoder)


def transformers_4(model: bytes, folder: Path, extra_ids: int) -> None:
    """A tokenizer.json as releases before 5 converted a spiece.model."""
    t5_saved(model, folder, extra_ids)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    strip = [tokenizers.normalizers.Strip(left=False), tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), "▁")]
    tokenizer.normalizer = tokenizers.normalizers.Sequence([tokenizer.normalizer, *strip])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


# name: (our model, how the folder is made, sentinels, added tokens)
FOLDERS = {
    "spiece.model": ("T5", published, 100, ()),
    "extra_ids": ("T5", lambda model, folder: published(model, folder, extra_ids=7), 7, ()),
    "no sentinels": ("T5", lambda model, folder: published(model, folder, extra_ids=0), 0, ()),
    "added_tokens.json": ("T5", added_tokens_file, 100, ITEMS),
    "added_tokens_decoder": ("T5", added_tokens_setting, 0, ITEMS),
    "transformers 5": ("T5", lambda model, folder: t5_saved(model, folder), 100, ITEMS),
    "transformers 5, no sentinels": ("T5", lambda model, folder: t5_saved(model, folder, 0), 0, ITEMS),
    "ByT5": ("bytes", lambda model, folder: published(model, folder, tokenizer_class="ByT5Tokenizer"), 125, ()),
    "ByT5, extra_ids": (
        "bytes",
        lambda model, folder: published(model, folder, tokenizer_class="ByT5Tokenizer", extra_ids=7),
        7,
        (),
    ),
    "ByT5, saved": ("bytes", lambda model, f: saved_by_transformers(transformers.ByT5Tokenizer(), f), 125, ITEMS),
    "ByT5, no sentinels": (
        "bytes",
        lambda model, folder: saved_by_transformers(transformers.ByT5Tokenizer(extra_ids=0), folder),
        0,
        ITEMS,
    ),
}


@pytest.fixture(scope="module", params=FOLDERS)
def found(request, models, tmp_path_factory):
    """(our reading of a folder, transformers')"""
    name, make, extra_ids, items = FOLDERS[request.param]
    folder = tmp_path_factory.mktemp("found")
    make(models[name], folder)
    vocabulary = read_tokenizer(folder)
    assert (vocabulary.extra_ids, set(vocabulary.added)) == (extra_ids, set(items))
    return vocabulary, auto_tokenizer(folder)


# Transformers looks for tokens that were added to it without more in the text's normal form.
@settings(deadline=None)  # the first call takes longer
@given(text=texts.map(functools.partial(unicodedata.normalize, "NFKC")))
def test_a_folder_that_others_wrote_is_read_as_transformers_reads_it(found, text):
    vocabulary, theirs = found
    assert [*vocabulary.encode(text), 1] == theirs(text).input_ids


def test_a_folder_that_others_wrote_has_the_size_that_transformers_gives_it(found):
    assert found[0].size == len(found[1])


@pytest.fixture(scope="module", params=["T5, 5", "mT5, 5", "T5, 4"])
def kept(request, models, tmp_path_factory):
    """(a vocabulary, what we read from the tokenizer.json that transformers made of it)"""
    name, release = request.param.split(", ")
    extra_ids = {"T5": 100, "mT5": 0}[name]
    folder = tmp_path_factory.mktemp("kept")
    (t5_saved if release == "5" else transformers_4)(models[name], folder, extra_ids)
    assert not (folder / "spiece.model").exists()
    return Vocabulary(name, models[name], extra_ids).with_tokens(ITEMS), read_tokenizer(folder)


@settings(deadline=None)  # the first call takes longer
@given(text=texts)
def test_the_model_that_a_tokenizer_json_was_made_from_is_found_again(kept, text):
    """Their own reading of it is not: of 5, bytes become <unk>; of 4, a blank between two sentinels is a piece."""
    vocabulary, read = kept
    assert read.encode(text) == vocabulary.encode(text)
    assert read.decode(vocabulary.encode(text)) == vocabulary.decode(vocabulary.encode(text))


# ---------------------------------------------------------------------- mistakes


def settings_file(**settings):
    return lambda folder: (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tokenizer_file(folder: Path, change) -> None:
    """What transformers saved, changed."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def last_id(by: int):
    def change(content):
        content["added_tokens"][-1]["id"] += by

    return change


def swapped_sentinels(content):
    vocab = content["model"]["vocab"]
    vocab[-1], vocab[-2] = vocab[-2], vocab[-1]


def other_pieces(content):
    content["model"]["vocab"][:3] = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["model"].update(type="BPE"), "tokenizer.json' is a BPE tokenizer; T5's are Unigram"),
        (other_pieces, "begins with the pieces ['<s>', '<pad>', '</s>']; T5's begin with ['<pad>', '</s>', '<unk>']"),
        (last_id(+1), "its token '<b|b>' has id"),
        (swapped_sentinels, "its token '<extra_id_0>' has id"),
        (lambda c: c.pop("model"), "are not as transformers writes them (KeyError('model')); get them again"),
        (lambda c: c["model"].pop("vocab"), "are not as transformers writes them (KeyError('vocab'))"),
        (lambda c: c["model"]["vocab"][4].pop(), "are not as transformers writes them (ValueError("),
        (lambda c: c.update(added_tokens=[3]), "are not as transformers writes them (TypeError("),
        (lambda c: c["normalizer"].update(precompiled_charsmap="AAAA"), "are not as transformers writes them"),
    ],
    ids=["BPE", "XLM", "gap", "order", "no model", "no pieces", "no score", "no tokens", "charsmap"],
)
def test_a_tokenizer_json_that_is_not_t5s_is_one_line(models, tmp_path, change, says):
    t5_saved(models["T5"], tmp_path)
    read_tokenizer(tmp_path)
    tokenizer_file(tmp_path, change)
    with pytest.raises(UserError, match=re.escape(says)) as error:
        read_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_gap_in_the_ids_names_the_token_and_the_id_it_should_have(models, tmp_path):
    pieces = published(models["T5"], tmp_path, extra_ids=5)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": pieces + 5, "<b>": pieces + 6, "<c>": pieces + 8}))
    says = f"its token '<c>' has id {pieces + 8}, and should have {pieces + 7}: {pieces} pieces, 5 sentinels"
    with pytest.raises(UserError, match=says):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{}", "has no tokenizer: no spiece.model, tokenizer.json or ByT5's settings"),
        ("tokenizer_config.json", "{", "tokenizer_config.json' is no JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json' holds no JSON object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "are not as transformers writes them"),
        ("tokenizer.json", '{"model": ', "tokenizer.json' is no JSON"),
        ("added_tokens.json", '"<a>"', "added_tokens.json' holds no JSON object"),
        ("spiece.model", "nothing", "spiece.model' is no SentencePiece model"),
    ],
)
def test_a_folder_without_a_readable_tokenizer_is_one_line(tmp_path, file, content, says):
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(says)) as error:
        read_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- names


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, empty, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_name_is_found_in_the_cache(models, cache):
    snapshot = cache / "models--someone--small" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "models--someone--small" / "refs").mkdir()
    (cache / "models--someone--small" / "refs" / "main").write_text("0" * 40)
    published(models["T5"], snapshot, extra_ids=7)
    assert open_vocabulary("someone/small").size == read_tokenizer(snapshot).size


@pytest.mark.parametrize("name", ["someone/other", "no such folder/at all"])
def test_a_name_that_is_nowhere_is_one_line(cache, name):
    says = f"--vocabulary '{name}': no local folder of that name, and no spiece.model of it on the Hugging Face hub"
    with pytest.raises(UserError, match=says) as error:
        open_vocabulary(name, "--vocabulary")
    assert "\n" not in str(error.value)


def test_every_kind_of_place_is_opened(models, tmp_path):
    vocabulary = Vocabulary("hugging_face", models["T5"], 100).with_tokens(ITEMS)
    vocabulary.save(tmp_path / "run" / "vocabulary")
    (tmp_path / "folder").mkdir()
    write_tokenizer(vocabulary, tmp_path / "folder")
    for place in ("run", "folder"):
        assert open_vocabulary(str(tmp_path / place)).encode("<item_1> Tokyo") == vocabulary.encode("<item_1> Tokyo")
    assert open_vocabulary(str(tmp_path / "folder" / "spiece.model")).size == vocabulary.size - 100 - len(ITEMS)
    assert open_vocabulary("bytes").size == 259
