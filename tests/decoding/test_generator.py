"""Many inputs through few programs: order, batches, compilations, devices."""

import contextlib
import dataclasses
import functools
import gc
import time
import weakref

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t5x_lite.decoding.generator import Generation, Generator
from t5x_lite.decoding.options import Decoding
from t5x_lite.decoding.trie import build_trie
from t5x_lite.model import axis_rules
from tests.decoding.models import CONFIG, EOS, PARAMS, counting_model, random_inputs, random_params, whole

GREEDY = Decoding(max_tokens=4)
BEAMS = Decoding(max_tokens=4, beams=3, n_best=2)
SAMPLES = Decoding(max_tokens=4, temperature=1.0, n_best=2)

OPTIONS = pytest.mark.parametrize(
    "options",
    [GREEDY, pytest.param(BEAMS, marks=pytest.mark.slow), pytest.param(SAMPLES, marks=pytest.mark.slow)],
    ids=["greedy", "beams", "samples"],
)


@dataclasses.dataclass
class EightDevices:
    """The part of a partitioner that the generator reads: 4-way data, 2-way model."""

    data_size: int = 4

    def __post_init__(self):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        self.mesh = mesh
        self.batch_sharding = NamedSharding(mesh, PartitionSpec("data"))
        self.replicated = NamedSharding(mesh, PartitionSpec())

    @contextlib.contextmanager
    def context(self):
        with jax.set_mesh(self.mesh), axis_rules((("batch", "data"), ("heads", "model"), ("vocab", "model"))):
            yield


@functools.lru_cache
def one_device():
    """Shared by the tests here, so that each `Decoding` compiles once for each shape."""
    return Generator(CONFIG, PARAMS, eos_id=EOS)


def eight_devices():
    partitioner = EightDevices()
    params = jax.device_put(PARAMS, partitioner.replicated)
    return Generator(CONFIG, params, eos_id=EOS, partitioner=partitioner)


def assert_same(found, expected):
    assert [[whole(g) for g in gs] for gs in found] == [[whole(g) for g in gs] for gs in expected]
    scores, expected_scores = ([g.score for gs in every for g in gs] for every in (found, expected))
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4)


def test_a_generation_has_neither_eos_nor_padding_nor_its_prefix():
    generator = Generator(*counting_model(), eos_id=EOS)
    found = generator.generate([[3, 1], [1], [5]], Decoding(max_tokens=3), prefixes=[[], [4, 2], [5]])
    assert [(g.tokens, g.ended, len(g.token_scores)) for (g,) in found] == [
        ([2, 3, 4], False, 3),
        ([3, 4, 5], False, 3),
        ([], True, 1),
    ]
    for (generation,) in found:
        assert generation.score == pytest.approx(sum(generation.token_scores), rel=1e-6)


@OPTIONS
def test_an_input_gets_the_same_in_any_batch(options):
    """Samples too: what they hang on is the number of their input."""
    generator, inputs = one_device(), random_inputs(lengths=(3, 7, 5, 4))
    together = generator.generate(inputs, options, seed=5, first_number=10)
    generator.max_batch = 2
    assert_same(generator.generate(inputs, options, seed=5, first_number=10), together)
    generator.max_batch = 256
    assert_same(generator.generate(inputs[1:3], options, seed=5, first_number=11), together[1:3])


def test_compiles_once_a_bucket_and_never_for_new_weights():
    generator = Generator(CONFIG, PARAMS, eos_id=EOS, max_batch=4)
    generator.generate([[2] * 5] * 3, GREEDY)
    generator.generate([[2] * 32] * 4, GREEDY)
    before = generator.generate([[3] * 7] * 9, GREEDY)[0]
    assert generator.compile_count == 2  # rows of 4, and the ninth input alone
    generator.params = random_params(seed=5)
    after = generator.generate([[3] * 7] * 9, GREEDY)[0]
    assert generator.compile_count == 2
    assert before != after
    generator.generate([[2] * 33], GREEDY)
    assert generator.compile_count == 3


def test_inputs_of_all_lengths_up_to_the_shortest_bucket_share_a_program():
    generator = Generator(CONFIG, PARAMS, eos_id=EOS, shortest_bucket=64)
    found = generator.generate([[2] * 5], GREEDY)
    generator.generate([[2] * 64], GREEDY)
    assert generator.compile_count == 1
    assert_same(found, one_device().generate([[2] * 5], GREEDY))


def test_generators_of_other_weights_share_programs_and_not_weights(compilations):
    first = Generator(CONFIG, PARAMS, eos_id=EOS, max_batch=2)
    inputs = random_inputs(lengths=(3, 5))
    before = first.generate(inputs, GREEDY), first.search(inputs, TRIE, FIVE)
    weights, alone = random_params(seed=5), Generator(CONFIG, random_params(seed=5), eos_id=EOS)
    compilations.clear()
    second = first.with_params(weights)
    third = alone.sharing(first)
    for other in (second, third):
        assert other.generate(inputs, GREEDY) != before[0]
        assert other.search(inputs, TRIE, FIVE) != before[1]
        assert other.compile_count == first.compile_count == 2 and other.max_batch == 2
    assert third.params is alone.params
    assert (first.generate(inputs, GREEDY), first.search(inputs, TRIE, FIVE)) == before
    assert compilations == []


def test_programs_hold_no_weights_that_are_replaced():
    weights = random_params(seed=5)
    first = Generator(CONFIG, weights, eos_id=EOS)
    first.generate([[3]], GREEDY)
    table = weakref.ref(weights["token_embedder"]["embedding"])
    second = first.with_params(PARAMS)
    del first, weights
    gc.collect()
    assert table() is None
    second.generate([[3]], GREEDY)
    assert second.compile_count == 1


def test_programs_of_another_model_or_end_are_not_shared():
    first = Generator(CONFIG, PARAMS, eos_id=EOS)
    other_size = Generator(dataclasses.replace(CONFIG, num_heads=4), PARAMS, eos_id=EOS)
    for other in (other_size, Generator(CONFIG, PARAMS, eos_id=2)):
        assert other.sharing(first) is other


def test_time_on_the_devices_is_counted_and_shared():
    first = Generator(CONFIG, PARAMS, eos_id=EOS)
    second = first.with_params(PARAMS)
    assert first.device_seconds == 0
    began = time.perf_counter()
    second.generate([[3]], GREEDY)
    between = time.perf_counter()
    assert 0.5 * (between - began) < first.device_seconds < between - began  # nearly all of it compiles
    before = first.device_seconds
    first.score([[3]], [[4]])
    assert first.device_seconds == second.device_seconds > before


def test_nothing_to_generate():
    generator = Generator(CONFIG, PARAMS, eos_id=EOS)
    assert generator.generate([], GREEDY) == []
    assert generator.score([], []) == []
    assert generator.compile_count == 0


@OPTIONS
def test_an_empty_input_has_ended(options):
    found = one_device().generate([[3], [], [5], [2]], options)[1]
    assert found == [Generation([], 0.0, [], True)] * options.n_best


# ---------------------------------------------------------------------- items of a catalogue


CATALOGUE = [(token, end) for token in range(2, 14) for end in (14, 15)]  # 24
TRIE = build_trie(CATALOGUE)
ALL = Decoding(max_tokens=2, beams=24, n_best=24)
FIVE = Decoding(max_tokens=2, beams=5, n_best=5)


def scored(tokens, prefix, left):
    """[(item, score)] of these items, best first, by teacher forcing."""
    items = sorted(left)
    token_scores = one_device().score([tokens] * len(items), [[*prefix, *CATALOGUE[item]] for item in items])
    scores = [sum(scores[len(prefix) :]) for scores in token_scores]
    return sorted(zip(items, scores, strict=True), key=lambda pair: -pair[1])


def assert_found(found, expected):
    assert [each.item for each in found] == [item for item, _ in expected]
    np.testing.assert_allclose([each.score for each in found], [score for _, score in expected], rtol=1e-4)


def test_each_input_gets_the_best_that_it_may_have_after_its_prefix():
    """In batches of two by length, so that no batch has the order of the inputs."""
    generator = Generator(CONFIG, PARAMS, eos_id=EOS, max_batch=2)
    inputs, prefixes = random_inputs(lengths=(3, 40, 5, 4, 33)), [[5, 6], [], [7], [9, 8, 7], [3]]
    deny = [[], [0, 5, 21], range(20), {6}, []]
    some = range(0, 24, 3)
    allow = [None, some, None, some, [3, 11]]
    found = generator.search(inputs, TRIE, ALL, prefixes=prefixes, deny=deny, allow=allow)
    for items, tokens, prefix, denied, allowed in zip(found, inputs, prefixes, deny, allow, strict=True):
        left = set(range(24) if allowed is None else allowed) - set(denied)
        assert_found(items, scored(tokens, prefix, left))
    assert list(map(len, found)) == [24, 6, 4, 7, 2]


def test_as_many_items_as_are_asked_for():
    inputs = random_inputs(lengths=(3, 5))
    found = one_device().search(inputs, TRIE, FIVE)
    assert list(map(len, found)) == [5, 5]
    whole = one_device().search(inputs, TRIE, ALL)
    # A search by few beams may miss some; what it finds has the same scores.
    for few, every in zip(found, whole, strict=True):
        scores = dict(every)
        np.testing.assert_allclose([each.score for each in few], [scores[each.item] for each in few], rtol=1e-4)
        assert few == sorted(few, key=lambda each: -each.score)


def test_nothing_to_search_and_nothing_left():
    generator = Generator(CONFIG, PARAMS, eos_id=EOS)
    assert generator.search([], TRIE, FIVE) == []
    assert generator.compile_count == 0
    assert one_device().search([[3, 1], [4, 1]], TRIE, FIVE, deny=[range(24), []])[0] == []


def test_searches_compile_for_widths_of_prefixes_and_of_denied_items_and_for_filters():
    generator = Generator(CONFIG, PARAMS, eos_id=EOS)
    trie = build_trie([(token,) for token in range(2, 20)])  # of one step: programs that compile soon

    def compiled(count, **given):
        """Programs that a search for these inputs adds."""
        before = generator.compile_count
        generator.search([[2] * 5] * count, trie, FIVE, **given)
        return generator.compile_count - before

    assert compiled(3, prefixes=[[], [3], [3, 4, 5]]) == 1
    assert compiled(4, prefixes=[[3, 4, 5, 6]] * 4) == 0  # as 3 of them, rounded up, and 3 rows too
    assert compiled(4, prefixes=[[3]] * 4, prefix_width=3) == 0
    assert compiled(4, prefix_width=4, deny=[range(n) for n in (0, 1, 9, 16)]) == 0
    assert compiled(4, prefix_width=4, deny=[range(17), [], [], []]) == 1
    assert compiled(4, prefix_width=4, fewest_denied=32) == 0
    assert compiled(4) == 1  # without any prefix
    some = [1, 2, 3]
    assert compiled(4, allow=[some] * 4) == 1
    assert compiled(3, allow=[some] * 3) == 0  # the row of padding shares the filter
    assert compiled(4, allow=[[5], [6], None, some]) == 1
    assert compiled(4, allow=[some] * 4, fewest_filters=256) == 0  # a batch has no room for more filters than rows
    assert compiled(3, allow=[None, some, None], fewest_filters=4) == 0
    assert compiled(4, fewest_filters=4) == 0  # without any


def test_another_catalogue_of_its_size_is_searched_by_the_same_program():
    generator, tokens = Generator(CONFIG, PARAMS, eos_id=EOS), [[3, 4, 1]]
    (first,) = generator.search(tokens, TRIE, ALL)
    (second,) = generator.search(tokens, build_trie(CATALOGUE[::-1]), ALL)
    assert generator.compile_count == 1
    assert [each.item for each in second] == [23 - each.item for each in first]
    assert generator.search(tokens, TRIE, ALL) == [first]


@pytest.mark.slow
def test_eight_devices_find_what_one_finds():
    inputs = random_inputs()
    given = {"prefixes": [[5, 6], [], [7], []], "deny": [[0], range(20), [], []], "allow": [None, None, range(9), None]}
    found, expected = (generator.search(inputs, TRIE, ALL, **given) for generator in (eight_devices(), one_device()))
    for items, wanted in zip(found, expected, strict=True):
        assert_found(items, wanted)


# ---------------------------------------------------------------------- several devices


@OPTIONS
def test_eight_devices_answer_as_one(options):
    inputs, prefixes = random_inputs(), [[5, 6], [], [7], []]
    found, expected = (
        generator.generate(inputs, options, prefixes=prefixes) for generator in (eight_devices(), one_device())
    )
    assert_same(found, expected)


# ---------------------------------------------------------------------- compiling ahead


@pytest.mark.parametrize(
    ("options", "devices", "longest", "rows", "programs"),
    [
        (GREEDY, 1, 32, 2, 2),
        pytest.param(BEAMS, 1, 64, 4, 6, marks=pytest.mark.slow),
        pytest.param(SAMPLES, 1, 64, 4, 6, marks=pytest.mark.slow),
        pytest.param(BEAMS, 8, 64, 4, 2, marks=pytest.mark.slow),
        pytest.param(SAMPLES, 8, 64, 4, 2, marks=pytest.mark.slow),
    ],
)
def test_after_warming_up_nothing_compiles(options, devices, longest, rows, programs, compilations):
    """1, 2 or 4 rows, on the eight devices always 4; 32 or 64 columns."""
    generator = Generator(CONFIG, PARAMS, eos_id=EOS) if devices == 1 else eight_devices()
    assert generator.warm_up(options, lengths=[5, longest - 3], rows=[1, rows]) > 0
    assert generator.compile_count == programs <= len(compilations)
    compilations.clear()
    rng = np.random.default_rng(0)
    for seed in (*range(20), 2**31, 2**40):
        lengths = rng.integers(0, longest + 1, rng.integers(1, rows + 1))
        inputs = [rng.integers(2, 20, length).tolist() for length in lengths]
        generator.generate(inputs, options, seed=seed, first_number=7 * seed % 1000)
    assert compilations == []
    assert generator.compile_count == programs
    generator.generate([[2]] * (rows + 1), options)
    assert compilations and generator.compile_count == programs + 1
