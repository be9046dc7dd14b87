import re
import subprocess
import sys
import timeit
import unicodedata

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data import vocabularies
from t5x_lite.data.vocabularies import Vocabulary
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
def test_normalisation_is_nfkc_for_what_the_texts_do_not_have(trained, text):
    """What comes back is the compatibility form of what went in, wherever all of it is covered."""
    normal = unicodedata.normalize("NFKC", text)
    if normal.isascii() and normal.isprintable() and text == text.strip():
        assert trained.decode(trained.encode(text)) == normal


MARKED = "1\u202f234\u00a0€ 「日本：（東京）～２」 \u200f05/03\u061c ٣٤٪ km² é がﾃẛ"


def test_characters_of_the_texts_come_back_as_they_are(trained, cache):
    """Kinds of space, full width, direction marks, raised digits: a translation is not right without them."""
    kept = vocabularies.train_sentencepiece([MARKED], 200)
    assert kept.decode(kept.encode(MARKED)) == MARKED
    assert trained.decode(trained.encode("1\u202f234\u00a0（km²）：\u200f５")) == "1 234 (km2): 5"  # T5's folding


def test_composed_and_decomposed_are_one(cache):
    composed, decomposed = (unicodedata.normalize(form, "Côte d'Ivoire é が ệ") for form in ("NFC", "NFD"))
    assert composed != decomposed
    for written in (composed, decomposed):
        vocabulary = vocabularies.train_sentencepiece([written], 150)
        assert vocabulary.encode(decomposed) == vocabulary.encode(composed)
        assert vocabulary.decode(vocabulary.encode(decomposed)) == composed


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


# ---------------------------------------------------------------------- whole tokens

SENTINELS = ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
ITEMS = ("item_1", "item_12", "<item_1>", "<item_12>")


@pytest.fixture(scope="module", params=["trained", "bytes"])
def plain(request, trained):
    return trained if request.param == "trained" else vocabularies.byte()


@pytest.fixture(scope="module")
def whole(plain):
    """The same with three sentinels and four items."""
    return Vocabulary(plain.kind, plain.model, extra_ids=3).with_tokens(ITEMS)


def test_ids_of_whole_tokens_follow_those_of_the_text(plain, whole):
    """T5's first sentinel is the last of them; ByT5's is the first."""
    sentinels = SENTINELS if plain.model is None else SENTINELS[::-1]
    for n, token in enumerate((*sentinels, *ITEMS)):
        assert whole.encode(token) == [plain.size + n], token
    assert whole.size == plain.size + 3 + 4


def test_the_longest_token_is_taken(whole):
    item_1, item_12, tagged_1, tagged_12 = range(whole.size - 4, whole.size)
    assert whole.encode("item_12item_1<item_12><item_1>item_1") == [item_12, item_1, tagged_12, tagged_1, item_1]


MARKS = st.text("ab<_1.(|日", min_size=1, max_size=5)  # some of them mean something in a pattern


@given(st.lists(MARKS, min_size=1, max_size=12, unique=True), st.lists(MARKS, max_size=12).map("".join))
def test_text_is_split_as_by_trying_the_longest_token_first(tokens, text):
    longest_first = sorted(tokens, key=len, reverse=True)
    expected = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    assert vocabularies._splitter(tokens).split(text) == expected


def test_a_token_that_begins_as_a_longer_one_is_found_where_that_one_breaks_off():
    split = vocabularies._splitter(["<i>", "<i><j><k>", "<j>", "abc", "a"]).split
    assert [part for part in split("<i><j><x>abab") if part] == ["<i>", "<j>", "<x>", "a", "b", "a", "b"]


def test_many_tokens_cost_no_more_than_a_few():
    """As a list of alternatives, the last of 20,000 items costs a thousand times what it costs among 20."""
    times = []
    for count in (20, 20_000):
        splitter = vocabularies._splitter([f"<item_{n}>" for n in range(count)])
        text = f"<item_{count - 1}>" * 300
        assert [part for part in splitter.split(text) if part] == [f"<item_{count - 1}>"] * 300
        times.append(min(timeit.repeat(lambda: splitter.split(text), number=3, repeat=5)))  # noqa: B023
    assert times[1] < 30 * times[0]


@pytest.mark.parametrize("text", ["<extra_id_3>", "Tokyo<extra_id_01>Lima", "<extra_id_>a", "item_2", "<item_>"])
def test_what_only_looks_like_a_token_is_text(plain, whole, text):
    assert whole.encode(text) == plain.encode(text)


def test_text_between_tokens_is_tokenised_for_itself_without_the_blanks_at_its_ends(trained):
    whole = trained.with_tokens(["<a>"])
    assert whole.encode(" Tokyo  <a><a> Lima\n<a>\nPeru ") == [
        *trained.encode("Tokyo"),
        trained.size,
        trained.size,
        *trained.encode("Lima\n"),
        trained.size,
        *trained.encode("\nPeru"),
    ]
    assert whole.encode(" Tokyo ") == trained.encode("Tokyo")


@given(
    st.lists(st.sampled_from(["Tokyo", "Lima?", "12", *ITEMS]), min_size=1, max_size=6),
    st.lists(st.sampled_from([" ", "\n", "\n\n"]), min_size=6, max_size=6),
)
def test_tokens_come_back_among_words_and_line_breaks(whole, words, between):
    text = words[0] + "".join(blank + word for blank, word in zip(between, words[1:], strict=False))
    assert whole.decode(whole.encode(text)) == text
    assert whole.decode([*whole.encode(text), 0, 0, 1, *whole.encode("item_1")]) == text


@given(st.lists(st.one_of(st.text(max_size=3), st.sampled_from(ITEMS))).map("".join))
def test_bytes_with_tokens_express_every_text(text):
    encodable = text.encode("utf-8", "ignore").decode()
    whole = vocabularies.byte().with_tokens(ITEMS)
    assert whole.decode(whole.encode(encodable)) == encodable


def test_sentinels_are_not_shown(whole):
    assert whole.decode(whole.encode("Tokyo <extra_id_0> item_1 <extra_id_2>")).split() == ["Tokyo", "item_1"]


def test_the_name_of_a_special_token_in_a_text_is_text(whole):
    """Unlike in transformers, where a text can end itself."""
    ids = whole.encode("</s> Lima <pad> item_1 <unk>")
    assert not {0, 1, 2} & set(ids)
    assert whole.decode(ids) == "</s> Lima <pad> item_1 <unk>"


def test_sentinels_are_seqios(trained, cache):
    """SeqIO has a sentinel as a word, so it stands between blanks here."""
    vocabulary = Vocabulary("file", trained.model, extra_ids=100)
    text = "Tokyo <extra_id_0> Lima <extra_id_99>"
    assert vocabulary.to_seqio().encode(text) == vocabulary.encode(text)
    assert trained.with_tokens(ITEMS).to_seqio().vocab_size == trained.size + 4


def test_new_tokens_leave_the_old_ids(whole):
    larger = whole.with_tokens(["<b>", "日"]).with_tokens(["<c>"])
    assert larger.encode("Lima item_12<extra_id_1>") == whole.encode("Lima item_12<extra_id_1>")
    assert larger.encode("<c>日<b>") == [whole.size + 2, whole.size + 1, whole.size]
    assert larger.sha256 != whole.sha256
    assert larger.size == whole.size + 3


@pytest.mark.parametrize("token", ["", " ", "two words", " <a>", "<a>\n"])
def test_a_new_token_is_one_word(whole, token):
    with pytest.raises(UserError, match=r"new token .* is empty or has white space in it; write it as one word"):
        whole.with_tokens([token])


@pytest.mark.parametrize("tokens", [["<a>", "<a>"], ["item_1"], ["<extra_id_0>"], ["<extra_id_7>"], ["</s>"]], ids=str)
def test_a_new_token_is_new(whole, tokens):
    with pytest.raises(UserError, match=f"new token '{tokens[-1]}' is there twice, or already in the vocabulary"):
        whole.with_tokens(tokens)


def test_a_piece_is_no_new_token(whole):
    """Transformers would take the one for the other; a byte's name is its character in Latin-1."""
    token = "é" if whole.model is None else "T"
    with pytest.raises(UserError, match=f"new token '{token}' is there twice, or already in the vocabulary"):
        whole.with_tokens([token])


def test_whole_tokens_are_saved_and_loaded(whole, tmp_path):
    whole.save(tmp_path)
    loaded = vocabularies.load(tmp_path)
    assert (loaded.size, loaded.added, loaded.sha256) == (whole.size, ITEMS, whole.sha256)
    assert loaded.encode("Lima <extra_id_1>item_12") == whole.encode("Lima <extra_id_1>item_12")
