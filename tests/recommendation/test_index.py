"""Texts by hand; codes of random data, which held-out interactions must not change; and damaged files."""

import dataclasses
import json
import re

import numpy as np
import pytest

from t5x_lite.data import vocabularies
from t5x_lite.decoding.trie import build_trie
from t5x_lite.errors import UserError
from t5x_lite.recommendation import index
from t5x_lite.recommendation.catalogue import Catalogue
from t5x_lite.recommendation.index import ItemIndex, code_index, title_index, token_index
from t5x_lite.recommendation.interactions import Dataset, Interactions
from t5x_lite.recommendation.splits import leave_one_out

KINDS = ["title", "token", "codes"]


def catalogue(*titles):
    return Catalogue(tuple(f"id{n}" for n in range(len(titles))), titles)


def dataset(size=12, groups=3, users=40, steps=6):
    """Users take items of one group, whose titles begin with its name."""
    rng = np.random.default_rng(0)
    members = np.arange(size).reshape(groups, -1)
    item = np.concatenate([rng.choice(members[user % groups], steps, replace=False) for user in range(users)])
    titles = tuple(f"{'ABC'[n * groups // size]}-film part {n}" for n in range(size))
    return Dataset(
        "random",
        Catalogue(tuple(map(str, range(size))), titles),
        Interactions(
            users=tuple(map(str, range(users))),
            user=np.repeat(np.arange(users, dtype=np.int32), steps),
            item=item.astype(np.int32),
            time=np.tile(np.arange(steps), users),
        ),
    )


DATA = dataset(size=24)


def of_kind(kind):
    if kind == "codes":
        return code_index(DATA.catalogue, leave_one_out(DATA), levels=2, codebook=4, dimension=8)
    return {"title": title_index, "token": token_index}[kind](DATA.catalogue)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield vocabularies.train_sentencepiece(["The film: part 1 of 2, A-B-C, part 3 or 45, then 6789 or 0"], 100)


@pytest.fixture(params=["trained", "bytes"])
def vocabulary(request, trained):
    return trained if request.param == "trained" else vocabularies.byte()


def test_titles_that_are_there_twice_are_numbered():
    titles = ("Solaris", "Emma", "Solaris", "Emma", " Solaris ", "Emma #2", "Emma", "")
    expected = ("Solaris", "Emma", "Solaris #2", "Emma #3", "Solaris #3", "Emma #2", "Emma #4", "id7")
    assert title_index(catalogue(*titles)).texts == expected


def test_titles_are_pieces_that_end(vocabulary):
    titles = title_index(catalogue("A film", "part 2"))
    sequences = titles.sequences(vocabulary)
    assert titles.tokens == ()
    assert [ids[-1] for ids in sequences] == [1, 1]
    assert [vocabulary.decode(ids[:-1]) for ids in sequences] == ["A film", "part 2"]


def test_titles_that_the_vocabulary_cannot_tell_apart_are_refused(trained):
    titles = title_index(catalogue("A film", "映", "画"))
    assert len(titles.sequences(vocabularies.byte())) == 3
    message = "items 1 and 2: '映' and '画' are the same to the vocabulary; give one another title, or use an index of"
    with pytest.raises(UserError, match=f"^{message}"):
        titles.sequences(trained)


@pytest.mark.parametrize(("size", "spare", "tokens"), [(3, 0.1, 67), (1000, 0.1, 1100), (1000, 0.5, 1500)])
def test_tokens_are_of_the_items_and_some_to_spare(size, spare, tokens):
    found = token_index(catalogue(*map(str, range(size))), spare)
    assert found.texts == tuple(f"<item_{n}>" for n in range(size))
    assert found.tokens == tuple(f"<item_{n}>" for n in range(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_what_the_vocabulary_makes_of_the_texts(kind, vocabulary):
    found = of_kind(kind)
    larger = vocabulary.with_tokens(found.tokens)
    sequences = found.sequences(larger)
    length = {"title": None, "token": 1, "codes": 3}[kind]
    for text, sequence in zip(found.texts, sequences, strict=True):
        ids = larger.encode(text)
        assert sequence == (ids if length else [*ids, 1])
        assert length in (None, len(sequence))
    assert sorted(build_trie(sequences).items[: len(found)]) == list(range(24))


def test_words_are_what_is_left_without_the_tokens_of_items():
    tokens, codes, titles = map(of_kind, ("token", "codes", "title"))
    text = "History: <item_3><item_23> and <b>bold</b>? <item_999><c0_1><c1_3>"
    assert tokens.words(text) == "History:    and <b>bold</b>? <item_999><c0_1><c1_3>"
    assert codes.words(text) == "History: <item_3><item_23> and <b>bold</b>? <item_999>  "
    assert titles.words(text) == text
    assert tokens.words("Rated: <item_1>5<item_2>4.5") == "Rated:  5 4.5"


@pytest.mark.parametrize("kind", ["token", "codes"])
def test_whole_tokens_stand_among_words(kind, vocabulary):
    found = of_kind(kind)
    larger = vocabulary.with_tokens(found.tokens)
    first, second = found.sequences(larger)[:2]
    ids = larger.encode(f"film {found.texts[0]}, {found.texts[1]}")
    assert ids[-len(second) :] == second
    assert [token for token in ids[: -len(second)] if token >= vocabulary.size] == first


def test_a_vocabulary_without_the_tokens_is_refused(vocabulary):
    found = of_kind("token")
    with pytest.raises(UserError, match=r"^the vocabulary has no token '<item_5>'; add all tokens"):
        found.sequences(vocabulary.with_tokens(found.tokens[:5]))


def test_items_that_the_same_users_take_share_the_first_code():
    codes = code_index(DATA.catalogue, leave_one_out(DATA), levels=1, codebook=3, dimension=3).codes
    groups = codes[:, 0].reshape(3, 8)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0])) == 3


def test_the_tokens_are_those_of_all_codes():
    found = of_kind("codes")
    assert found.tokens == tuple(f"<c{level}_{code}>" for level in range(3) for code in range(4))
    assert len(set(found.texts)) == 24
    assert found.codes.tolist() == [[int(n) for n in re.findall(r"_(\d)", text)] for text in found.texts]


def with_items(data, item):
    return dataclasses.replace(data, interactions=dataclasses.replace(data.interactions, item=item))


def codes_of(data):
    return code_index(data.catalogue, leave_one_out(data), levels=2, codebook=4, dimension=8).texts


def test_held_out_items_do_not_change_the_codes():
    original = codes_of(DATA)
    held_out = DATA.interactions.time >= 4  # of each user the last two: validation and test
    items = DATA.interactions.item.copy()
    items[held_out] = np.random.default_rng(1).permutation(items[held_out])
    assert (items != DATA.interactions.item).sum() > 40
    assert codes_of(with_items(DATA, items)) == original
    items[held_out] = 0
    assert codes_of(with_items(DATA, items)) == original
    items[:4] = items[-6:-2]  # what training sees does
    assert codes_of(with_items(DATA, items)) != original


def test_without_the_held_out_items_codes_are_the_same():
    split = leave_one_out(DATA)
    nothing = dataclasses.replace(split.test, user=[], histories=[], target=[])
    without = dataclasses.replace(split, validation=nothing, test=nothing)
    sizes = {"levels": 2, "codebook": 4, "dimension": 8}
    assert code_index(DATA.catalogue, without, **sizes).texts == code_index(DATA.catalogue, split, **sizes).texts


def test_cold_items_crowd_no_other_out():
    """Eight items without users, all nearest to one centroid, which has room for eight; some users' items are there."""
    known = leave_one_out(dataset(size=12, steps=4))
    ids = tuple(map(str, range(20)))
    cold_first = dataclasses.replace(known, num_items=20, train=[items + 8 for items in known.train])
    cold_last = dataclasses.replace(known, num_items=20)
    sizes = {"levels": 1, "codebook": 5, "dimension": 3}
    first = code_index(Catalogue(ids, ("",) * 20), cold_first, **sizes).texts
    last = code_index(Catalogue(ids, ("",) * 20), cold_last, **sizes).texts
    assert first[8:] == last[:12]
    assert len({*first}) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "levels is 0; it must be at least 1"),
        ({"codebook": -1}, "codebook is -1; it must be at least 1"),
        ({"text_weight": 1.5}, "text_weight is 1.5; it is a share, from 0 to 1"),
    ],
)
def test_settings_that_make_no_codes(settings, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        code_index(DATA.catalogue, leave_one_out(DATA), **settings)


def test_data_that_make_no_codes():
    split = leave_one_out(DATA)
    with pytest.raises(UserError, match=r"^training has seen no item, so there is nothing to make codes of"):
        code_index(DATA.catalogue, dataclasses.replace(split, train=[]))
    with pytest.raises(UserError, match=r"^a catalogue of 2 items and a split of 24: they must be of one set$"):
        code_index(catalogue("A", "B"), split)


def grown(*titles):
    old = DATA.catalogue
    ids = (*old.ids, *(f"new{n}" for n in range(len(titles))))
    return Catalogue(ids, ("A-film retitled", *old.titles[1:], *titles))


@pytest.mark.parametrize("kind", KINDS)
def test_old_items_keep_their_tokens_and_new_ones_need_no_others(kind):
    found = of_kind(kind)
    more = found.extended(grown("C-film", "C-film"))
    assert (more.kind, more.tokens) == (found.kind, found.tokens)
    assert more.texts[1:24] == found.texts[1:]
    assert more.texts[0] == (found.texts[0] if kind != "title" else "A-film retitled")
    sequences = more.sequences(vocabularies.byte().with_tokens(found.tokens))
    assert len(build_trie(sequences).items) >= 26


def test_new_items_have_the_codes_of_what_they_are_like():
    found = code_index(DATA.catalogue, leave_one_out(DATA), levels=1, codebook=3, dimension=3)
    group = {title[0]: found.codes[n, 0] for n, title in enumerate(DATA.catalogue.titles)}
    more = found.extended(grown("Another C-film", "One more A-film", "B-film again"))
    assert [code for code, _ in more.codes[24:]] == [group["C"], group["A"], group["B"]]
    given = found.codebooks.centroids[0, found.codes[[5, 20], 0]]
    more = found.extended(grown("B-film", "B-film"), embeddings=given)
    np.testing.assert_array_equal(more.codes[24:, 0], found.codes[[5, 20], 0])


def test_an_index_is_extended_as_far_as_it_has_room():
    many = [f"film {n}" for n in range(65)]
    with pytest.raises(UserError, match=r"^65 new items and 64 spare tokens; train again with more to spare$"):
        token_index(DATA.catalogue).extended(grown(*many))
    with pytest.raises(UserError, match=r"^all 64 codes of the item index are taken"):
        of_kind("codes").extended(grown(*many))
    with pytest.raises(UserError, match=r"^a catalogue of 1 items cannot replace one of 24: keep the removed ones"):
        token_index(DATA.catalogue).extended(catalogue("A"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_saved_and_loaded(kind, tmp_path):
    found = of_kind(kind)
    found.save(tmp_path)
    loaded = ItemIndex.load(tmp_path)
    assert (loaded.kind, loaded.texts, loaded.tokens) == (found.kind, found.texts, found.tokens)
    assert loaded.sha256 == found.sha256
    larger = grown("C-film", "Älter")
    assert loaded.extended(larger).texts == found.extended(larger).texts
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", *([".npz"] if kind == "codes" else [])]


def test_the_hash_is_of_texts_tokens_and_codebooks():
    codes = of_kind("codes")
    others = [
        dataclasses.replace(codes, texts=codes.texts[::-1]),
        dataclasses.replace(codes, tokens=codes.tokens[::-1]),
        dataclasses.replace(codes, codebooks=dataclasses.replace(codes.codebooks, room=5)),
    ]
    assert len({each.sha256 for each in (codes, *others)}) == 4
    assert of_kind("codes").sha256 == codes.sha256


def test_a_save_that_is_cut_off_leaves_the_old_index(tmp_path, monkeypatch):
    old = of_kind("codes")
    old.save(tmp_path)
    write = index.write_whole

    def cut_off(path, content):
        if path.name == "index.json":
            raise OSError("disk full")
        write(path, content)

    monkeypatch.setattr(index, "write_whole", cut_off)
    with pytest.raises(OSError, match="disk full"):
        code_index(DATA.catalogue, leave_one_out(DATA), levels=1, codebook=5).save(tmp_path)
    assert ItemIndex.load(tmp_path).sha256 == old.sha256


def change(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_a_damaged_index_is_refused(tmp_path):
    found = of_kind("codes")

    def refused(message):
        with pytest.raises(UserError, match=message):
            ItemIndex.load(tmp_path)
        found.save(tmp_path)

    path = tmp_path / "index.json"
    refused(r"index\.json: no readable item index \(.*No such file.*\); restore it from a copy of the run$")
    change(path, b"<c0_1>", b"<c0_2>")
    refused(r"index\.json has sha256 [0-9a-f]{64}, not [0-9a-f]{64} as saved; restore it from a copy of the run$")
    codebooks = next(tmp_path.glob("*.npz"))
    change(codebooks, found.codebooks.centroids.tobytes()[:8], b"12345678")
    refused(r"index\.json has sha256 [0-9a-f]{64}, not")
    codebooks.unlink()
    refused(r"no readable item index \(.*No such file.*codebooks-")
    path.write_text(path.read_text()[:-9])
    refused(r"no readable item index \(")
    path.write_text("[]")
    refused(r"no readable item index \(")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    refused(r"index\.json has format 2; this version of t5x_lite reads format 1$")
    assert ItemIndex.load(tmp_path).sha256 == found.sha256
