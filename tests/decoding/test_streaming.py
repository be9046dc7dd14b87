"""A greedy answer in pieces: what `generate` writes, no character broken, nothing compiled once it is warm."""

import dataclasses
import functools
import io
import itertools

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.decoding.engine import Engine
from t5x_lite.decoding.generator import Generation, Generator, Stream
from t5x_lite.decoding.options import Decoding
from t5x_lite.errors import UserError
from tests.decoding import test_engine
from tests.decoding.models import CONFIG, EOS, PARAMS, counting_model, random_inputs, random_params
from tests.decoding.test_generator import eight_devices

GREEDY = Decoding(max_tokens=12)
VARIED = Decoding(max_tokens=12, repetition_penalty=1.3, no_repeat_ngram=2)
LENGTHS = {"inputs": 64, "targets": 20}
PROMPTS = ["", "a", "Who?", "What is the capital of Norway?"]


@functools.lru_cache
def small_generator():
    return Generator(CONFIG, PARAMS, eos_id=EOS)


@functools.lru_cache
def random_engine():
    """Writes bytes at random, some of them UTF-8."""
    config = dataclasses.replace(CONFIG, vocab_size=test_engine.BYTES.size)
    return Engine(test_engine.BYTES, Generator(config, random_params(config, seed=2), eos_id=EOS), LENGTHS)


def written(generator, tokens, options, steps):
    """Every stream from the beginning to the end."""
    streams = [generator.begin(tokens, options)]
    while not streams[-1].finished:
        streams.append(generator.extend(streams[-1], steps))
        assert len(streams) <= options.max_tokens + 1
    return streams


def assert_same(found, expected):
    assert (found.tokens, found.ended) == (expected.tokens, expected.ended)
    assert found.score == pytest.approx(expected.score, rel=1e-5)
    np.testing.assert_allclose(found.token_scores, expected.token_scores, rtol=1e-5)


def pieces_of(engine, prompt, **options):
    """The pieces, and the answer that the stream returns."""
    stream, pieces = engine.stream(prompt, **options), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


# ---------------------------------------------------------------------- tokens


def test_counts_in_pieces_by_hand():
    streams = written(Generator(*counting_model(), eos_id=EOS), [3, 1], GREEDY, 2)
    assert [(s.generation.tokens, s.generation.ended, s.finished) for s in streams] == [
        ([], False, False),
        ([2, 3], False, False),
        ([2, 3, 4, 5], False, False),
        ([2, 3, 4, 5], True, True),
    ]


def test_a_stream_is_what_generate_gives_and_its_parts_are_the_beginnings_of_that():
    generator, inputs, ended = small_generator(), [*random_inputs(lengths=(3, 40, 5, 7)), []], set()
    for tokens, options in itertools.product(inputs, (GREEDY, VARIED)):
        ((whole,),) = generator.generate([tokens], options)
        for steps in (1, 3, 100):
            streams = written(generator, tokens, options, steps)
            assert_same(streams[-1].generation, whole)
            for number, stream in enumerate(streams[:-1]):
                length = number * steps
                part = stream.generation
                assert (part.tokens, part.ended) == (whole.tokens[:length], False)
                assert part.score == pytest.approx(sum(whole.token_scores[:length]), rel=1e-5)
        ended.add((whole.ended, bool(whole.tokens)))
    assert ended == {(True, False), (True, True), (False, True)}


def test_two_streams_at_a_time_do_not_disturb_each_other():
    generator, inputs = small_generator(), random_inputs(lengths=(3, 5))
    expected = [generator.generate([tokens], VARIED)[0][0] for tokens in inputs]
    assert expected[0].tokens != expected[1].tokens
    first, second = (generator.begin(tokens, VARIED) for tokens in inputs)
    while not (first.finished and second.finished):
        first = generator.extend(first, 2)
        second = generator.extend(second, 1)
    assert_same(first.generation, expected[0])
    assert_same(second.generation, expected[1])


def test_a_stream_is_extended_once():
    begun = small_generator().begin([3, 1], GREEDY)
    small_generator().extend(begun, 1)
    with pytest.raises(ValueError, match="was extended already"):
        small_generator().extend(begun, 1)
    finished = written(small_generator(), [3, 1], GREEDY, 100)[-1]
    assert small_generator().extend(finished, 1) is finished


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_after_warming_up_a_stream_compiles_nothing(devices, compilations):
    """Two programs for each of 32 and 64 columns."""
    generator = Generator(CONFIG, PARAMS, eos_id=EOS) if devices == 1 else eight_devices()
    inputs = random_inputs(lengths=(1, 32, 33, 64))
    expected = [small_generator().generate([tokens], VARIED)[0][0] for tokens in inputs]
    assert generator.warm_up_streams(VARIED, lengths=[50]) > 0
    assert generator.compile_count == 4 <= len(compilations)
    compilations.clear()
    for tokens, whole in zip(inputs, expected, strict=True):
        for steps in (1, 2, 5, 100):
            found = written(generator, tokens, VARIED, steps)[-1].generation
            assert found.tokens == whole.tokens
            assert found.score == pytest.approx(whole.score, rel=1e-4)
    assert compilations == []
    assert generator.compile_count == 4


# ---------------------------------------------------------------------- text


def test_the_pieces_are_the_text_of_generate():
    engine = random_engine()
    answers = engine.generate(PROMPTS, repetition_penalty=1.5)
    assert {answer.ended for answer in answers} == {True, False}
    assert any(not answer.text.isascii() for answer in answers)
    for (prompt, expected), steps in itertools.product(zip(PROMPTS, answers, strict=True), (1, 4, 7, 100)):
        pieces, answer = pieces_of(engine, prompt, steps=steps, repetition_penalty=1.5)
        assert "".join(pieces) == answer.text == expected.text
        assert all(pieces)
        assert (answer.ended, answer.others) == (expected.ended, ())
        assert answer.score == pytest.approx(expected.score, rel=1e-5)


def test_a_character_comes_when_its_last_byte_does():
    generator = Generator(test_engine.CONFIG, test_engine.writes("é€ 😀!"), eos_id=EOS)
    engine = Engine(test_engine.BYTES, generator, {"inputs": 24, "targets": 20})
    state, texts = engine.begin_stream("?"), []
    while state.answer is None:
        state = engine.extend_stream(state, 1)
        texts.append(state.text)
    assert texts == ["", *["é"] * 3, *["é€"] * 5, "é€ 😀", "é€ 😀!", "é€ 😀!"]
    assert (state.answer.text, state.answer.ended) == ("é€ 😀!", True)
    assert pieces_of(engine, "?", max_tokens=8)[0] == ["é", "€ "]  # cut off inside of 😀


@functools.lru_cache
def vocabularies():
    """{name: (vocabulary, ids of all bytes)}"""
    texts = ["São Tomé is a capital.", "12 people  in Zürich €5", "a b c d e f"]
    special = {"pad_id": 0, "eos_id": EOS, "unk_id": 2, "bos_id": -1, "byte_fallback": True}
    size = {"vocab_size": 400, "hard_vocab_limit": False}
    added = ("item_1", "<b>")
    found = {"bytes": (Vocabulary("bytes", None, 3, added), range(3, 259))}
    for name, keeps in (("T5", {}), ("blanks kept", {"remove_extra_whitespaces": False})):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, minloglevel=2, num_threads=1, **special, **size, **keeps
        )
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        ids = [pieces.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        found[name] = Vocabulary("file", model.getvalue(), 3, added), ids
    return found


class Writer:
    """In place of a generator: writes given tokens."""

    def __init__(self, tokens):
        self._tokens = tokens

    def begin(self, tokens, options):
        return self._so_far(0, options)

    def extend(self, stream, steps):
        return self._so_far(len(stream.generation.tokens) + steps, stream.options)

    def _so_far(self, count, options):
        return Stream(Generation(self._tokens[:count], 0.0, [], count > len(self._tokens)), options, None)


@st.composite
def sequences(draw):
    """A vocabulary, and ids among which are characters in bytes, stray bytes, blanks and added tokens."""
    vocabulary, of_bytes = vocabularies()[draw(st.sampled_from(["bytes", "T5", "blanks kept"]))]
    characters = [[of_bytes[byte] for byte in c.encode()] for c in "€😀日é\u3000\xa0 A"]
    blank = vocabulary._pieces.piece_to_id("▁") if vocabulary._pieces else of_bytes[32]
    part = st.one_of(
        st.sampled_from(characters),
        st.sampled_from(of_bytes).map(lambda i: [i]),
        st.sampled_from([[blank], [vocabulary.size - 1], [vocabulary.size - 2]]),
        st.integers(2, vocabulary.size - 1).map(lambda i: [i]),
    )
    return vocabulary, list(itertools.chain.from_iterable(draw(st.lists(part, max_size=8))))


@given(sequences(), st.integers(1, 3))
@settings(max_examples=1000, deadline=None)
def test_text_only_grows_whatever_is_written(sequence, steps):
    vocabulary, tokens = sequence
    engine = Engine(vocabulary, Writer(tokens), {"inputs": 8, "targets": 100})
    state = engine.begin_stream("a")
    while state.answer is None:
        before = state.text
        state = engine.extend_stream(state, steps)
        assert state.text.startswith(before)
    assert state.text == state.answer.text == vocabulary.decode(tokens)


def test_after_warming_up_a_stream_of_text_compiles_nothing():
    engine = random_engine()
    engine.warm_up_streams(longest_prompt=40, max_tokens=5)
    before = engine.generator.compile_count
    for prompt in PROMPTS:
        pieces_of(engine, prompt, max_tokens=5)
    assert engine.generator.compile_count == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beams": 4}, "beams is 4: a stream takes the likeliest token each time; leave beams out"),
        ({"temperature": 0.5}, "temperature is 0.5: a stream takes the likeliest token each time"),
        ({"beam": 4}, "no option 'beam' of decoding; nearest: 'beams'"),
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(options, says):
    with pytest.raises(UserError) as error:
        pieces_of(random_engine(), "?", **options)
    assert str(error.value).startswith(says) and "\n" not in str(error.value)
