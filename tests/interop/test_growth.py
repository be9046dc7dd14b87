"""New tokens: read from a file, appended without moving the old ones, and all the way into transformers."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import transformers

from t5x_lite import partitioning
from t5x_lite.errors import UserError
from t5x_lite.interop import NewTokens, convert, load_model, open_source
from t5x_lite.interop.growth import grown
from t5x_lite.model.names import named
from tests.interop.test_hugging_face import SHARDED, assert_same
from tests.interop.test_tokenizer import published, sentencepiece_model, warnings_of_transformers
from tests.model.reference import VARIANTS, torch_model

V1_0, V1_1 = VARIANTS[:2]
SPARE = 4  # rows above the vocabulary, as Flan-T5 has 28
# A token with one word, with several, with none, and with a text that the vocabulary cannot express.
TEXTS = {
    "<item_1>": "Tokyo",
    "<item_12>": "The capital of Peru",
    "item_1": "",
    "item_12": "日",
    "<a>": "1 2",
    "<b>": "",
}
TIE_WARNING = "You should update the config with `tie_word_embeddings=False`"


@dataclasses.dataclass(frozen=True)
class Published:
    """A model of transformers in a folder, whose vocabulary is smaller than its tables."""

    folder: str
    size: int  # of the vocabulary
    tied: bool
    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase


@pytest.fixture(scope="module", params=["tied", "untied"])
def old(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    size = published(sentencepiece_model(), folder, extra_ids=100, tokenizer_class="T5Tokenizer") + 100
    tied = request.param == "tied"
    model = torch_model(dataclasses.replace(V1_0 if tied else V1_1, vocab_size=size + SPARE))
    model.save_pretrained(folder)
    return Published(str(folder), size, tied, model, transformers.AutoTokenizer.from_pretrained(folder))


def tables(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Rows by token, of the embeddings and of the head."""
    return {"shared": model.shared.weight.detach().numpy(), "head": model.lm_head.weight.detach().numpy()}


def grow(
    old: Published, folder, texts=None, **settings
) -> tuple[torch.nn.Module, transformers.PreTrainedTokenizerBase]:
    """What transformers loads after we have added tokens."""
    source = open_source(old.folder)
    new = NewTokens(TEXTS if texts is None else texts)
    convert(source, str(folder), vocabulary=source.vocabulary(), format="hf", new_tokens=new, **settings)
    with warnings_of_transformers() as said:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # The one thing that transformers 5 says of every untied T5, whatever its config.json has.
    assert [message for message in said if old.tied or TIE_WARNING not in message] == []
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def new(old, tmp_path_factory):
    return grow(old, tmp_path_factory.mktemp("new") / "model")


def expected_rows(old: Published, table: np.ndarray) -> np.ndarray:
    """The mean of the rows of each text's tokens, else of all tokens: by hand, in float64."""
    table = table[: old.size].astype(np.float64)
    tokens = [[i for i in old.tokenizer(text).input_ids if i > 2] for text in TEXTS.values()]
    return np.stack([table[row].mean(axis=0) if row else table.mean(axis=0) for row in tokens])


# ---------------------------------------------------------------------- in transformers


def test_every_new_token_is_one_id_after_the_old_ones(old, new):
    _, tokenizer = new
    assert len(tokenizer) == old.size + len(TEXTS)
    for n, token in enumerate(TEXTS):
        assert tokenizer(token).input_ids == [old.size + n, 1]
    # Among words, beside each other, and one the beginning of the other.
    ids = old.tokenizer("Tokyo").input_ids[:-1]
    assert tokenizer("Tokyo <item_1><item_12>Tokyo").input_ids == [*ids, old.size, old.size + 1, *ids, 1]


def test_old_texts_keep_their_ids(old, new):
    for text in ("The capital of Japan is  Tokyo.", "<extra_id_0> 12 <extra_id_99>\n日"):
        assert new[1](text).input_ids == old.tokenizer(text).input_ids


def test_new_rows_are_means_and_old_rows_are_the_same(old, new):
    for name, table in tables(new[0]).items():
        before = tables(old.model)[name]
        assert table.shape == (old.size + len(TEXTS), 48)
        np.testing.assert_array_equal(table[: old.size], before[: old.size], err_msg=name)
        np.testing.assert_allclose(table[old.size :], expected_rows(old, before), rtol=0, atol=1e-6, err_msg=name)


def test_logits_of_old_tokens_do_not_change(old, new):
    ids = old.tokenizer("The capital of Peru is <extra_id_0>.", return_tensors="pt").input_ids
    arguments = {"input_ids": ids, "decoder_input_ids": torch.tensor([[0, 5, 9]])}
    with torch.no_grad():
        before, after = old.model(**arguments).logits, new[0](**arguments).logits
    torch.testing.assert_close(after[..., : old.size], before[..., : old.size], rtol=0, atol=1e-5)
    assert after.shape[-1] == old.size + len(TEXTS)


def test_rows_above_the_vocabulary_are_used_up_before_any_is_added(old, tmp_path):
    """Flan-T5 has 28 of them: its tables do not grow for the first 28 items."""
    some = dict(list(TEXTS.items())[: SPARE - 1])
    model, tokenizer = grow(old, tmp_path / "model", some)
    assert len(tokenizer) == old.size + SPARE - 1
    for name, table in tables(model).items():
        before = tables(old.model)[name]
        assert table.shape == before.shape
        np.testing.assert_allclose(table[old.size : -1], expected_rows(old, before)[: SPARE - 1], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(table[-1], before[-1])  # no token yet: as it came


def test_half_precision_rows_are_means_taken_in_float32(old, tmp_path):
    model, _ = grow(old, tmp_path / "model", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    for name, table in tables(model.float()).items():
        expected = expected_rows(old, tables(old.model)[name])
        np.testing.assert_allclose(table[old.size :], expected, rtol=2**-8, atol=1e-6, err_msg=name)


def test_a_grown_model_grows_again(old, tmp_path):
    """By way of a run folder of ours, whose tables are padded for sharding."""
    source = open_source(old.folder)
    first, second = (NewTokens(dict(pairs)) for pairs in (list(TEXTS.items())[:5], list(TEXTS.items())[5:]))
    convert(source, str(tmp_path / "run"), vocabulary=source.vocabulary(), new_tokens=first)
    run = open_source(tmp_path / "run")
    assert run.config.vocab_size == old.size + 5
    assert run.config.vocab_rows % partitioning.VOCAB_MULTIPLE == 0
    for name, leaf in named(load_model(run, run.config, partitioning.make_partitioner())).items():
        if name in ("token_embedder/embedding", "decoder/logits_dense/kernel"):
            rows = np.asarray(leaf) if "embedding" in name else np.asarray(leaf).T
            assert len(rows) == run.config.vocab_rows
            assert np.any(rows[old.size + 4]) and not np.any(rows[old.size + 5 :])
    convert(run, str(tmp_path / "hf"), vocabulary=run.vocabulary(), format="hf", new_tokens=second)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert [tokenizer(token).input_ids for token in TEXTS] == [[old.size + n, 1] for n in range(len(TEXTS))]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    for name, table in tables(model).items():
        expected = expected_rows(old, tables(old.model)[name])
        np.testing.assert_allclose(table[old.size : -1], expected[:5], rtol=0, atol=1e-6)
        np.testing.assert_allclose(table[-1], table[:-1].mean(axis=0), rtol=0, atol=1e-6)  # of all that were there


def test_tables_that_are_sharded_grow_alike(old):
    source = open_source(old.folder)
    config, vocabulary, larger = grown(source, source.config, source.vocabulary(), NewTokens(TEXTS))
    assert vocabulary.size == old.size + len(TEXTS) == config.vocab_size
    sharded = partitioning.make_partitioner({"data": 1, "fsdp": 2, "model": 4}, SHARDED)
    found = named(load_model(larger, config, sharded))
    assert len({str(shard.index) for shard in found["token_embedder/embedding"].addressable_shards}) == 8
    assert_same(found, named(load_model(larger, config, partitioning.make_partitioner())))


def test_a_model_whose_tables_are_full_grows(old, tmp_path):
    """No row above the vocabulary, and more tokens than the padding for sharding has room for."""
    full = tmp_path / "full"
    full.mkdir()
    size = published(sentencepiece_model(), full, extra_ids=100) + 100
    torch_model(dataclasses.replace(V1_0 if old.tied else V1_1, vocab_size=size)).save_pretrained(full)
    model, tokenizer = grow(
        dataclasses.replace(old, folder=str(full)), tmp_path / "model", {f"<item_{n}>": "" for n in range(200)}
    )
    assert len(tokenizer) == model.config.vocab_size == size + 200
    assert tokenizer("<item_199><item_19>").input_ids == [size + 199, size + 19, 1]
    for table in tables(model).values():
        expected = np.broadcast_to(table[:size].astype(np.float64).mean(axis=0), (200, 48))
        np.testing.assert_allclose(table[size:], expected, rtol=0, atol=1e-6)


def test_a_token_that_is_there_is_refused_before_anything_is_written(old, tmp_path):
    source = open_source(old.folder)
    for token in ("<extra_id_7>", "e", "</s>"):
        with pytest.raises(UserError, match=f"new token '{token}' is there twice, or already in the vocabulary"):
            convert(source, str(tmp_path / "x"), vocabulary=source.vocabulary(), new_tokens=NewTokens({token: ""}))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- files


def test_a_file_has_one_token_a_line_and_after_a_tab_its_text(tmp_path):
    path = tmp_path / "items.txt"
    path.write_bytes("<a>\n\n<b>\tA book, used \r\n  \nc\u00e9\tTwo\ttabs\u2028and a break\n<d>\t".encode())
    assert NewTokens.from_file(str(path)).texts == {
        "<a>": "",
        "<b>": "A book, used",
        "cé": "Two\ttabs\u2028and a break",
        "<d>": "",
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; write one token a line"),
        (b" \n\t\n", "is empty; write one token a line"),
        (b"<a>\n<b>\tx\n\n<a>\ty\n", ", line 4: token '<a>' is there twice"),
        (b"\xff\xfe", "it is a text file with one token a line"),
        (None, "it is a text file with one token a line"),
    ],
    ids=["empty", "blank", "twice", "binary", "missing"],
)
def test_a_file_that_holds_no_tokens_is_one_line(tmp_path, content, says):
    path = tmp_path / "items.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(says)) as error:
        NewTokens.from_file(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["two words", "\tonly a text", " <a>", "<a> \tits text"])
def test_a_token_with_white_space_is_told_when_it_is_added(old, tmp_path, line):
    path = tmp_path / "items.txt"
    path.write_text(line)
    source = open_source(old.folder)
    with pytest.raises(UserError, match=r"new token '.*' is empty or has white space in it; write it as one word"):
        grown(source, source.config, source.vocabulary(), NewTokens.from_file(str(path)))
