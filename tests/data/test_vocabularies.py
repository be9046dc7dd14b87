import subprocess
import sys
import unicodedata

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data import vocabularies
from t5x_lite.errors import UserError

TEXTS = [
    f"What is the capital of {country}?\n{capital}"
    for country, capital in [("Japan", "Tokyo"), ("Peru", "Lima"), ("Côte d'Ivoire", "Yamoussoukro")] * 3
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield vocabularies.train_sentencepiece(TEXTS, 200)


def test_special_ids_are_t5s(trained):
    assert (trained.pad_id, trained.eos_id, trained.unk_id) == (0, 1, 2)
    assert trained.encode("日")[-1] == 2
    assert trained.size <= 200


def test_trained_twice_is_the_same_model_whatever_the_order(tmp_path, monkeypatch):
    models = []
    for number, texts in enumerate((TEXTS, TEXTS[::-1] + TEXTS)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(number)))
        models.append(vocabularies.train_sentencepiece(texts, 200).sha256)
    assert models[0] == models[1]


def test_a_second_run_takes_the_cached_model(cache, monkeypatch):
    first = vocabularies.train_sentencepiece(TEXTS, 150)

    def train(**settings):
        raise AssertionError("trained again")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", train)
    assert vocabularies.train_sentencepiece(TEXTS, 150).sha256 == first.sha256
    with pytest.raises(AssertionError, match="trained again"):
        vocabularies.train_sentencepiece([*TEXTS, "More."], 150)


ASCII = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=6)


@given(st.lists(ASCII, min_size=1, max_size=5), st.sampled_from([" ", "\n", "  "]))
def test_text_comes_back_with_its_line_breaks(trained, words, between):
    text = between.join(words)
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert trained.decode([*ids, 1, 5, 6]) == text  # nothing after the end of sequence
    assert trained.decode([*ids, 0, 0]) == text


@given(st.text(max_size=12))
def test_bytes_express_every_text(text):
    vocabulary = vocabularies.byte()
    encodable = text.encode("utf-8", "ignore").decode()
    assert vocabulary.decode([*vocabulary.encode(encodable), 1]) == encodable
    assert vocabulary.coverage([encodable]).lost == 0


def test_bytes_by_hand():
    assert vocabularies.byte().encode("a!") == [100, 36]
    assert vocabularies.byte().size == 259


def test_coverage_counts_lost_characters(trained):
    coverage = trained.coverage(["Tokyo 東京", "東 \n"])
    assert (coverage.characters, coverage.lost) == (11, 3)
    assert coverage.share == pytest.approx(3 / 11)
    assert coverage.examples == ("東", "京")
    assert trained.coverage(TEXTS).lost == 0
    assert trained.coverage([]).share == 0.0


@pytest.mark.parametrize("kind", ["trained", "bytes"])
def test_saved_and_loaded_is_the_same(trained, tmp_path, kind):
    vocabulary = trained if kind == "trained" else vocabularies.byte()
    vocabulary.save(tmp_path / "vocabulary")
    loaded = vocabularies.load(tmp_path / "vocabulary")
    assert (loaded.kind, loaded.sha256, loaded.size) == (kind, vocabulary.sha256, vocabulary.size)
    assert loaded.encode(TEXTS[0]) == vocabulary.encode(TEXTS[0])


def test_a_changed_or_missing_vocabulary_is_refused(trained, tmp_path):
    trained.save(tmp_path)
    changed = vocabularies.train_sentencepiece(TEXTS[:1], 130)
    changed.save(tmp_path / "other")
    (tmp_path / "other" / "spiece.model").replace(tmp_path / "spiece.model")
    with pytest.raises(UserError, match=f"has sha256 {changed.sha256}, not {trained.sha256}"):
        vocabularies.load(tmp_path)
    with pytest.raises(UserError, match="no readable vocabulary"):
        vocabularies.load(tmp_path / "nowhere")


def test_a_model_file(trained, tmp_path):
    trained.save(tmp_path)
    vocabulary = vocabularies.from_file(tmp_path / "spiece.model")
    assert vocabulary.encode(TEXTS[0]) == trained.encode(TEXTS[0])
    (tmp_path / "broken.model").write_bytes(b"nothing")
    for name in ("broken.model", "nowhere.model"):
        with pytest.raises(UserError, match="is no SentencePiece model"):
            vocabularies.from_file(tmp_path / name)


def test_a_model_file_with_other_special_ids_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "m"), vocab_size=36, minloglevel=2
    )
    with pytest.raises(UserError, match=r"ids \(-1, 2, 0\); T5's are \(0, 1, 2\)"):
        vocabularies.from_file(tmp_path / "m.model")


def test_too_small_a_size_is_said(cache):
    with pytest.raises(UserError, match="VOCABULARY_SIZE 20: SentencePiece cannot make it"):
        vocabularies.train_sentencepiece(TEXTS, 20)
    with pytest.raises(UserError, match="no text"):
        vocabularies.train_sentencepiece(["  ", "\n"], 100)


@given(st.text(max_size=30))
def test_normalisation_is_nfkc_for_what_is_covered(trained, text):
    """What comes back is the compatibility form of what went in, wherever all of it is covered."""
    normal = unicodedata.normalize("NFKC", text)
    if normal.isascii() and normal.isprintable() and text == text.strip():
        assert trained.decode(trained.encode(text)) == normal


def test_seqio_gets_the_same_vocabulary(trained, cache):
    for vocabulary in (trained, vocabularies.byte()):
        seqio = vocabulary.to_seqio()
        text = "What is the capital of Peru?\nLima"
        assert seqio.encode(text) == list(seqio.encode_tf(text).numpy()) == vocabulary.encode(text)
        assert (seqio.eos_id, seqio.vocab_size) == (1, vocabulary.size)


def test_no_tensorflow_for_text(tmp_path):
    code = (
        "import sys; from t5x_lite.data import vocabularies as v, packing, features, pipeline, token_store,"
        "instructions, metrics;"
        "x = v.byte(); x.save(sys.argv[1]); assert v.load(sys.argv[1]).decode(x.encode('a')) == 'a';"
        "assert not {'tensorflow', 'seqio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
