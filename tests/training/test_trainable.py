"""Which parameters a run trains, and training with the others beside: they stay, and nothing is computed for them."""

import re

import hypothesis
import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.checkpoints import Checkpoints
from t5x_lite.errors import UserError
from t5x_lite.model import Lora, T5Config, abstract_params
from t5x_lite.model.names import named, nested
from t5x_lite.partitioning import make_partitioner
from t5x_lite.training.optimizers import adafactor, adamw, adamw_rms_scaled
from t5x_lite.training.state import abstract_frozen, abstract_state, state_of
from t5x_lite.training.step import make_train_step
from t5x_lite.training.trainable import ADAPTERS_ONLY, join, split, trained_names
from tests.training.test_step import ONE, RATE, batches

NAMES = [
    "decoder/decoder_norm/scale",
    "decoder/layers_0/mlp/wo/kernel",
    "encoder/layers_0/mlp/wo/kernel",
    "encoder/layers_1/mlp/wo/kernel",
    "token_embedder/embedding",
]

# ---------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("rules", "trained"),
    [
        ([], NAMES),
        ([(".*", True)], NAMES),
        ([("decoder/.*", True), (".*", False)], NAMES[:2]),
        ([("encoder/.*|token_embedder/.*", False)], NAMES[:2]),
        ([("encoder/layers_1/.*", True), ("encoder/.*", False)], [*NAMES[:2], *NAMES[3:]]),
        ([(".*/scale", False), ("decoder/.*", True), (".*", False)], NAMES[1:2]),
        ((("token_embedder/embedding", True), (".*", False)), NAMES[4:]),
    ],
)
def test_the_first_rule_that_matches_a_whole_name_decides_and_the_others_train(rules, trained):
    assert trained_names(NAMES, rules) == set(trained)


def test_adapters_only():
    names = ["decoder/layers/mlp/wo/kernel", "decoder/layers/mlp/wo/lora_a", "decoder/layers/mlp/wo/lora_b"]
    assert trained_names(names, ADAPTERS_ONLY) == set(names[1:])


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([("encoder/layers_2/mlp/wo/kernel", False)], "takes no parameter; nearest: 'encoder/layers_1/mlp/wo/kernel'"),
        ([("encoder", False)], "'encoder' takes no parameter.*must match a whole name of this model"),
        (
            [("encoder/.*", False), ("encoder/layers_0/.*", True)],
            "'encoder/layers_0/.*' takes no parameter.*no earlier",
        ),
        ([("encoder/.*", False), ("encoder/.*", False)], r"'encoder/\.\*' takes no parameter"),
        ([("(", False)], r"it is a list of \(regex, True or False\), like \[\('decoder/\.\*', True\)"),
        (["encoder/.*"], r"it is a list of \(regex, True or False\)"),
        ([("encoder/.*", True, False)], r"it is a list of \(regex, True or False\)"),
        ([(None, False)], r"it is a list of \(regex, True or False\)"),
        ([("encoder/.*", "False")], r"'False'.* it is a list of \(regex, True or False\)"),
        ([("encoder/.*", None)], r"None.* it is a list of \(regex, True or False\)"),
        ([(".*", False)], "leaves no parameter to train; give one rule True"),
    ],
    ids=[
        "no match",
        "part of a name",
        "taken before",
        "twice",
        "no regex",
        "no pair",
        "three",
        "no text",
        "text for a bool",
        "None for a bool",
        "nothing left",
    ],
)
def test_wrong_rules_are_told_in_one_line(rules, says):
    with pytest.raises(UserError, match=f"^TRAINABLE.*{says}") as error:
        trained_names(NAMES, rules)
    assert "\n" not in str(error.value)


words = st.sampled_from(["encoder", "decoder", "layers_0", "layers_1", "mlp", "kernel", "scale"])
branches = st.recursive(
    st.integers(), lambda inner: st.dictionaries(words, inner, min_size=1, max_size=3), max_leaves=9
)
trees = st.dictionaries(words, branches, min_size=1, max_size=4)


@given(trees, st.data())
@settings(deadline=None)
def test_a_tree_that_was_split_is_joined_again(tree, data):
    decisions = {name: data.draw(st.sampled_from([True, False, None]), label=name) for name in named(tree)}
    rules = [(re.escape(name), decision) for name, decision in decisions.items() if decision is not None]
    expected = {name for name, decision in decisions.items() if decision is not False}
    hypothesis.assume(expected)
    trained, frozen = split(tree, rules)
    assert set(named(trained)) == expected
    assert set(named(frozen)) == set(decisions) - expected
    assert join(trained, frozen) == tree


# ---------------------------------------------------------------------- training

CONFIG = T5Config(
    vocab_size=64,
    d_model=32,
    num_heads=4,
    head_dim=8,
    d_ff=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
    activations=("relu",),
    lora=Lora(rank=2, alpha=6.0, targets=(".*attention/(query|out)",)),
)
NO_ENCODER = [("encoder/.*|token_embedder/.*", False)]
FSDP = make_partitioner({"data": 1, "fsdp": 8}, [("batch", ("data", "fsdp")), ("embed", "fsdp"), ("mlp", "fsdp")])


def weights() -> dict:
    """All weights of CONFIG by name, those of both factors far from zero."""
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=leaf.shape) * 0.3 for n, leaf in named(abstract_params(CONFIG)).items()}


class Recorder:
    """Plain gradient descent, which remembers the names of what it was given."""

    def __init__(self):
        self.names: set[str] = set()

    def transformation(self) -> optax.GradientTransformation:
        def update(updates, state, params=None):
            self.names = set(named(updates))
            return jax.tree.map(lambda g: -g, updates), state

        return optax.GradientTransformation(lambda params: (), update)


def trained(rules, partitioner=ONE, microbatches=1):
    """(weights trained for one step, the others after two steps, names of the gradients)."""
    recorder = Recorder()
    tx = recorder.transformation()
    with partitioner.context():
        abstract = abstract_state(CONFIG, tx, partitioner, rules)
        frozen = abstract_frozen(CONFIG, partitioner, rules)
        placed = jax.tree.map(
            lambda values, leaf: jax.device_put(values.astype(leaf.dtype), leaf.sharding),
            nested(weights()),
            join(abstract.params, frozen),
        )
        params, frozen = split(placed, rules)
        state = state_of(params, tx, jax.random.key(0), abstract)
        step = make_train_step(CONFIG, tx, partitioner, learning_rate=RATE, microbatches=microbatches, trainable=rules)
        first, second = (partitioner.global_batch(batch) for batch in batches(2))
        state, _ = step(state, first, frozen)
        after_one = {name: np.array(leaf) for name, leaf in named(state.params).items()}
        step(state, second, frozen)
    return after_one, named(frozen), recorder.names


@pytest.fixture(scope="module")
def all_trained():
    return trained([])[0]


@pytest.mark.parametrize(
    ("rules", "way"),
    [
        (NO_ENCODER, {}),
        (ADAPTERS_ONLY, {"microbatches": 2}),
        (NO_ENCODER, {"partitioner": FSDP, "microbatches": 2}),
        (ADAPTERS_ONLY, {"partitioner": FSDP}),
    ],
    ids=["decoder", "adapters, microbatches", "decoder, mesh, microbatches", "adapters, mesh"],
)
def test_a_part_gets_the_gradients_that_it_gets_when_all_is_trained(all_trained, rules, way):
    found, frozen, gradients = trained(rules, **way)
    before = weights()
    assert gradients == found.keys() == trained_names(before, rules)
    for name, values in found.items():
        moved = np.abs(all_trained[name] - before[name]).max()
        assert moved > 1e-4, name
        np.testing.assert_allclose(values, all_trained[name], rtol=1e-4, atol=1e-3 * moved, err_msg=name)
    assert frozen.keys() == before.keys() - found.keys()
    for name, values in frozen.items():
        np.testing.assert_array_equal(values, before[name].astype(np.float32), err_msg=name)


# ---------------------------------------------------------------------- what is kept


def owners(opt_state, names) -> set[str]:
    """The parameters that an optimizer keeps something for."""
    return {name for name in names if any(leaf.endswith(name) for leaf in named(opt_state))}


@pytest.mark.parametrize("make", [adamw, adafactor, adamw_rms_scaled])
@pytest.mark.parametrize("rules", [NO_ENCODER, ADAPTERS_ONLY], ids=["decoder", "adapters"])
def test_only_what_is_trained_has_optimizer_state(rules, make):
    names = weights()
    assert owners(abstract_state(CONFIG, make(RATE), FSDP, rules).opt_state, names) == trained_names(names, rules)


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(tmp_path):
    tx = adamw(RATE)
    abstract = abstract_state(CONFIG, tx, FSDP, ADAPTERS_ONLY)
    adapters = trained_names(weights(), ADAPTERS_ONLY)
    params = nested({name: values.astype(np.float32) for name, values in weights().items() if name in adapters})
    state = state_of(
        jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), params, abstract.params),
        tx,
        jax.random.key(0),
        abstract,
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, {})
    checkpoints.close()
    saved = checkpoints.metadata()
    assert named(saved["params"]).keys() == adapters
    assert owners(saved["training"]["opt_state"], weights()) == adapters
    # Two moments a weight, in float32.
    sizes = [leaf.size for leaf in jax.tree.leaves(saved["training"]["opt_state"]) if leaf.ndim]
    assert sum(sizes) == 2 * sum(weights()[name].size for name in adapters)
    restored, _ = checkpoints.restore(abstract)
    for found, expected in zip(jax.tree.leaves(restored.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(found, expected)
