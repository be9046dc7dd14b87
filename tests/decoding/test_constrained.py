"""Search in a catalogue against scoring every sequence that is left, one after the other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.decoding.constrained import constrained_search, score_all, scores_all, search
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.trie import build_trie, restrict
from t5x_lite.errors import UserError
from t5x_lite.model import bind, stack_layers
from t5x_lite.partitioning import make_partitioner
from tests.decoding.models import CONFIG, counting_model, penalty, random_params

ROWS, DEPTH, MOST, LONGEST = 3, 3, 16, 4  # LONGEST of the prefixes
WIDE = Decoding(max_tokens=DEPTH, beams=MOST, n_best=MOST, length_alpha=0.7)  # as many beams as sequences
NARROW = Decoding(max_tokens=DEPTH, beams=3, n_best=3)

# Room for any catalogue that is drawn here, and always a filter for each request: a few programs run them all.
LARGEST = dataclasses.replace(
    build_trie([[i + 1] * DEPTH for i in range(MOST)]), branching=(MOST,) * DEPTH, ending=(True,) * DEPTH
)

exhaustive = functools.partial(score_all, chunk=5)
both_ways = pytest.mark.parametrize("way", [constrained_search, exhaustive], ids=["search", "exact"])


@functools.partial(jax.jit, static_argnames=("way", "config", "options"))
def found_by(way, config, params, tokens, trie, options, restriction=None, prefix=None):
    return way(bind(config, params), tokens, trie, options, restriction, prefix)


def found(way, params, tokens, trie, options, restriction=None, prefix=None, config=CONFIG):
    return jax.device_get(found_by(way, config, params, tokens, trie, options, restriction, prefix))


def padded_inputs(seed=0):
    tokens = np.random.default_rng(seed).integers(2, CONFIG.vocab_size, (ROWS, 8), dtype=np.int32)
    tokens[0, 3:] = tokens[2, 5:] = 0
    return tokens


@functools.partial(jax.jit, static_argnums=0)
def log_probs(config, params, tokens, inputs):
    batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": inputs}
    return jax.nn.log_softmax(bind(config, params)(batch))


def token_scores(params, prompt, sequences, prefix=()):
    """The log-probabilities of each sequence's tokens after a prefix, by the model's own teacher forcing."""
    targets = np.zeros((96, LONGEST + DEPTH), np.int32)  # one program for all
    for row, sequence in enumerate(sequences):
        targets[row, : len(prefix) + len(sequence)] = [*prefix, *sequence]
    scores = log_probs(CONFIG, params, np.tile(prompt, (96, 1)), np.pad(targets[:, :-1], ((0, 0), (1, 0))))
    chosen = np.take_along_axis(np.asarray(scores), targets[..., None], axis=-1)[..., 0]
    return [chosen[row, len(prefix) :][: len(sequence)].tolist() for row, sequence in enumerate(sequences)]


def padded_prefixes(prefixes, width=LONGEST):
    return np.array([[0] * (width - len(prefix)) + list(prefix) for prefix in prefixes], np.int32)


def assert_valid(result, row, sequences, remaining, expected_tokens, options):
    """As many as can be, each of them once, allowed, best first, with the scores that it has by teacher forcing."""
    items = result.items[row]
    count = min(options.n_best, len(remaining))
    assert len(set(items[:count])) == count
    assert set(items[:count]) <= remaining
    assert (items[count:] == -1).all()
    assert not result.tokens[row, count:].any()
    for place, item in enumerate(items[:count]):
        length = len(sequences[item])
        assert result.tokens[row, place].tolist() == [*sequences[item], *[0] * (DEPTH - length)]
        np.testing.assert_allclose(result.token_scores[row, place, :length], expected_tokens[item], rtol=1e-4)
        assert not result.token_scores[row, place, length:].any()
        score = sum(expected_tokens[item]) / penalty(length, options.length_alpha)
        np.testing.assert_allclose(result.scores[row, place], score, rtol=1e-4)
    assert (np.diff(result.scores[row, :count]) <= 0).all()


def assert_best(result, row, sequences, remaining, expected_tokens, options):
    assert_valid(result, row, sequences, remaining, expected_tokens, options)
    scores = sorted(
        (-sum(expected_tokens[i]) / penalty(len(sequences[i]), options.length_alpha) for i in remaining),
    )[: options.n_best]
    np.testing.assert_allclose(result.scores[row, : len(scores)], np.negative(scores), rtol=1e-4)


def everything(sequences):
    return set(range(len(sequences)))


@st.composite
def cases(draw):
    """(sequences, deny, allow): of variable length, prefixes of one another; all denied, none, all but three, some."""
    one = st.lists(st.integers(1, 4), min_size=1, max_size=DEPTH).map(tuple)
    sequences = draw(st.lists(one, min_size=1, max_size=MOST, unique=True))
    items = everything(sequences)
    some = st.sets(st.sampled_from(sorted(items)))
    all_but_three = some.map(lambda kept: items - set(sorted(kept)[:3]))
    deny = st.one_of(st.just(items), st.just(set()), all_but_three, some)
    allow = st.one_of(st.just(items).map(set), some)
    return sequences, *(draw(st.lists(sets, min_size=ROWS, max_size=ROWS)) for sets in (deny, allow))


@pytest.mark.slow
@given(
    cases(), st.lists(st.lists(st.integers(1, 19), max_size=LONGEST), min_size=ROWS, max_size=ROWS), st.integers(0, 5)
)
@settings(max_examples=60, deadline=None)
def test_finds_what_scoring_all_that_is_left_finds(case, prefixes, seed):
    sequences, deny, allow = case
    prefix = padded_prefixes(prefixes)
    params, tokens = random_params(seed=seed), padded_inputs(seed)
    trie = build_trie(sequences, like=LARGEST)
    restriction = restrict(trie, deny, allow)
    wide = found(constrained_search, params, tokens, trie, WIDE, restriction, prefix)
    narrow = found(constrained_search, params, tokens, trie, NARROW, restriction, prefix)
    scored = found(exhaustive, params, tokens, trie, NARROW, restriction, prefix)
    assert (wide.exact, narrow.exact, scored.exact) == (True, False, True)
    for row in range(ROWS):
        remaining = allow[row] - deny[row]
        expected = token_scores(params, tokens[row], sequences, prefixes[row])
        assert_best(wide, row, sequences, remaining, expected, WIDE)
        assert_valid(narrow, row, sequences, remaining, expected, NARROW)
        assert_best(scored, row, sequences, remaining, expected, NARROW)


def random_catalogue(size, seed=0, depth=DEPTH):
    """Distinct sequences, none of which is a prefix of another: they end with EOS, 1."""
    rng = np.random.default_rng(seed)
    drawn = {(*rng.integers(2, 16, rng.integers(1, depth)).tolist(), 1) for _ in range(9 * size)}
    return [sorted(drawn)[i] for i in rng.permutation(len(drawn))[:size]]


TEN = Decoding(max_tokens=DEPTH, beams=10, n_best=10)


def test_all_but_three_excluded_and_ten_asked_for():
    """The three are those that the model likes least: a search that looked at them last would have lost them."""
    sequences, tokens, params = random_catalogue(80), padded_inputs(), random_params()
    trie = build_trie(sequences)
    expected = [token_scores(params, prompt, sequences) for prompt in tokens]
    kept = [set(np.argsort([sum(scores) for scores in of_row])[:3].tolist()) for of_row in expected]
    restriction = restrict(trie, [everything(sequences) - items for items in kept])
    result = found(constrained_search, params, tokens, trie, TEN, restriction)
    for row in range(ROWS):
        assert_best(result, row, sequences, kept[row], expected[row], TEN)


def test_by_hand():
    """After the start the model expects 2, after it 3: logits of sqrt(8) among seven of 0."""
    config, params = counting_model()
    trie = build_trie([[2, 4], [5], [2, 3]])
    top, normaliser = np.sqrt(8), np.log(np.exp(np.sqrt(8)) + 7)
    options = Decoding(max_tokens=2, beams=3, n_best=3)
    result = found(constrained_search, params, np.array([[3], [0]]), trie, options, config=config)
    assert result.items.tolist() == [[2, 1, 0], [-1, -1, -1]]  # a row of padding gets none
    assert result.tokens[0].tolist() == [[2, 3], [5, 0], [2, 4]]
    scores = [2 * (top - normaliser), -normaliser, top - 2 * normaliser]
    np.testing.assert_allclose(result.scores[0], scores, rtol=1e-4)


@both_ways
def test_equal_scores_go_to_the_lower_tokens(way):
    config, params = counting_model()
    trie = build_trie([[7], [6], [3], [4]])
    options = Decoding(max_tokens=1, beams=2, n_best=2)
    result = found(way, params, np.array([[3], [0]]), trie, options, config=config)
    assert result.items.tolist() == [[2, 3], [-1, -1]]


@both_ways
def test_requests_of_a_batch_do_not_know_of_each_other(way):
    """Each with rows of padding in place of the others."""
    sequences, tokens, params = random_catalogue(MOST), padded_inputs(), random_params()
    trie = build_trie(sequences, like=LARGEST)
    restriction = restrict(trie, [[0, 3], range(12), []], [range(1, 16), range(10, 16), range(5)])
    together = found(way, params, tokens, trie, NARROW, restriction)
    for row in range(ROWS):
        alone = np.zeros_like(tokens)
        alone[row] = tokens[row]
        result = found(way, params, alone, trie, NARROW, restriction)
        np.testing.assert_array_equal(result.items[row], together.items[row])
        np.testing.assert_allclose(result.scores[row], together.scores[row], rtol=1e-4)
        assert (np.delete(result.items, row, axis=0) == -1).all()


PREFIXES = [[5, 6, 7], [], [9]]


@both_ways
def test_sequences_go_on_from_prefixes_of_different_lengths(way):
    sequences, tokens, params = random_catalogue(MOST), padded_inputs(), random_params()
    trie = build_trie(sequences, like=LARGEST)
    restriction = restrict(trie, [[0, 3], range(12), []])
    result = found(way, params, tokens, trie, WIDE, restriction, padded_prefixes(PREFIXES))
    for row, denied in enumerate(({0, 3}, set(range(12)), set())):
        expected = token_scores(params, tokens[row], sequences, PREFIXES[row])
        assert_best(result, row, sequences, everything(sequences) - denied, expected, WIDE)


@both_ways
def test_who_has_no_prefix_finds_beside_others_what_a_search_without_finds(way):
    trie, tokens, params = build_trie(random_catalogue(MOST), like=LARGEST), padded_inputs(), random_params()
    together = found(way, params, tokens, trie, WIDE, None, padded_prefixes(PREFIXES))
    without = found(way, params, tokens, trie, WIDE)
    np.testing.assert_array_equal(together.items[1], without.items[1])
    np.testing.assert_allclose(together.scores[1], without.scores[1], rtol=1e-4)
    assert (together.items[0] != without.items[0]).any() and (together.items[2] != without.items[2]).any()


@pytest.mark.parametrize("prefix", [None, padded_prefixes(PREFIXES)], ids=["no prefix", "prefixes"])
def test_of_single_tokens_few_beams_find_the_best(prefix):
    """The first step of a search looks at all of them."""
    sequences, tokens, params = [(token,) for token in range(19, 1, -1)], padded_inputs(), random_params()
    trie = build_trie(sequences)
    restriction = restrict(trie, [[0, 3], range(16), []])
    result = found(search, params, tokens, trie, NARROW, restriction, prefix)
    assert result.exact and not scores_all(trie, NARROW)
    for row, denied in enumerate(({0, 3}, set(range(16)), set())):
        expected = token_scores(params, tokens[row], sequences, () if prefix is None else PREFIXES[row])
        scores = sorted((sum(expected[i]) for i in everything(sequences) - denied), reverse=True)[:3]
        np.testing.assert_allclose(result.scores[row, : len(scores)], scores, rtol=1e-4)
        for item, score in zip(result.items[row, : len(scores)], scores, strict=True):
            np.testing.assert_allclose(sum(expected[item]), score, rtol=1e-4)
        assert (result.items[row, len(scores) :] == -1).all()


def test_what_is_scored_whole():
    """Up to two sequences a beam, and none of single tokens."""
    pairs = build_trie([(token, 1) for token in range(2, 18)])  # 16
    singles = build_trie([(token,) for token in range(2, 18)])
    ways = {
        (trie is pairs, beams): scores_all(trie, Decoding(max_tokens=2, beams=beams))
        for trie in (pairs, singles)
        for beams in (7, 8)
    }
    assert ways == {(True, 7): False, (True, 8): True, (False, 7): False, (False, 8): False}


@pytest.mark.slow
@both_ways
def test_scanned_layers_find_the_same(way):
    trie, tokens, params = build_trie(random_catalogue(40)), padded_inputs(), random_params()
    scanned, prefix = dataclasses.replace(CONFIG, scan_layers=True), padded_prefixes(PREFIXES)
    expected = found(way, params, tokens, trie, TEN, None, prefix)
    result = found(way, stack_layers(params), tokens, trie, TEN, None, prefix, config=scanned)
    np.testing.assert_array_equal(result.items, expected.items)
    np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-4)


@pytest.mark.slow
@both_ways
def test_eight_devices_find_the_same(way):
    partitioner = make_partitioner({"data": 8})
    trie, params = build_trie(random_catalogue(40)), random_params()
    tokens = np.concatenate([padded_inputs(seed) for seed in range(3)])[:8]
    restriction = restrict(trie, [range(row) for row in range(8)])
    prefix = padded_prefixes([[5] * (row % 4) for row in range(8)])
    expected = found(way, params, tokens, trie, TEN, restriction, prefix)
    with partitioner.context():
        whole = jax.device_put((params, trie), partitioner.replicated)
        parts = jax.device_put((tokens, restriction, prefix), partitioner.batch_sharding)
        spread = found_by(way, CONFIG, whole[0], parts[0], whole[1], TEN, *parts[1:])
    np.testing.assert_array_equal(spread.items, expected.items)
    np.testing.assert_allclose(spread.scores, expected.scores, rtol=1e-4)


def test_another_catalogue_of_its_size_compiles_nothing():
    traced = []
    options = Decoding(max_tokens=2, beams=2)

    @jax.jit
    def run(params, tokens, trie, restriction):
        traced.append(trie.capacity)
        return search(bind(CONFIG, params), tokens, trie, options, restriction)

    # All fifteen beginnings, and some of their ends.
    beginnings = [(token, 1) for token in range(2, 17)]
    tries = [build_trie([*beginnings, *((2, end) for end in ends)]) for ends in (range(2, 14), range(4, 17))]
    tries.append(build_trie([(7, 8)], like=tries[0]))
    for trie in tries:
        for denied in range(16):
            result = run(random_params(), padded_inputs(), trie, restrict(trie, [range(min(denied, trie.size))] * ROWS))
            assert not result.exact
            # Beams are two of many, so the items alone say that this catalogue was searched.
            assert ((denied <= result.items) & (result.items < trie.size) | (result.items == -1)).all()
    assert traced == [32]


def test_a_small_catalogue_is_scored_whole():
    sequences, tokens, params = random_catalogue(MOST), padded_inputs(), random_params()
    options = Decoding(max_tokens=DEPTH, beams=8, n_best=5)
    result = found(search, params, tokens, build_trie(sequences), options)
    assert result.exact
    for row in range(ROWS):
        expected = token_scores(params, tokens[row], sequences)
        assert_best(result, row, sequences, everything(sequences), expected, options)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_targets_that_share_a_request_get_the_logits_of_teacher_forcing(scan_layers):
    """Two for each of three requests."""
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    params = stack_layers(random_params()) if scan_layers else random_params()
    tokens = padded_inputs()
    inputs = np.pad(np.random.default_rng(0).integers(1, 20, (ROWS * 2, 4)), ((0, 0), (1, 0)))

    @jax.jit
    def both(params):
        model = bind(config, params)
        cache = model.start_cache(model.encode(tokens), tokens, 1)
        repeated = {"encoder_input_tokens": jnp.repeat(tokens, 2, axis=0), "decoder_input_tokens": inputs}
        return model.decode_all(inputs, cache), model(repeated)

    np.testing.assert_allclose(*both(params), rtol=1e-4, atol=1e-5)


@both_ways
@pytest.mark.parametrize(("name", "value"), [("temperature", 0.5), ("repetition_penalty", 1.2), ("no_repeat_ngram", 2)])
def test_options_that_would_bend_the_scores(way, name, value):
    options = Decoding(max_tokens=2, **{name: value})
    with pytest.raises(UserError) as error:
        found(way, random_params(), padded_inputs(), build_trie([[2]]), options)
    assert str(error.value) == f"{name} is {value}: sequences of a catalogue are searched without it"
