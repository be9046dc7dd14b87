"""Starting a model from weights that are there: renamed, kept, resharded, and what users do wrong."""

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.errors import UserError
from t5x_lite.interop import open_source, restore_partial
from tests.test_checkpoints import EMBEDDING, KERNEL, SCALE, assert_same_bits, make_state, on_mesh, save


@pytest.fixture
def run(tmp_path):
    """A run folder with step 1 of make_state()."""
    save(tmp_path, make_state())
    return tmp_path


def renamed(tree, old, new):
    """A copy of a one-leaf-a-branch tree with a top-level name changed."""
    return {new if name == old else name: branch for name, branch in tree.items()}


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def test_the_same_model_starts_from_the_weights(run):
    for path in (run, str(run), run / "checkpoints", run / "checkpoints" / "1"):
        assert_same_bits(restore_partial(zeros(make_state().params), open_source(path)), make_state().params)


def test_parameters_keep_their_shardings(run):
    initial = on_mesh(zeros(make_state().params), (2, 4))
    found = restore_partial(initial, open_source(run))
    assert_same_bits(found, make_state().params)
    for leaf, before in zip(jax.tree.leaves(found), jax.tree.leaves(initial), strict=True):
        assert leaf.sharding == before.sharding


def test_rules_rename_and_keep(run):
    source = make_state().params
    initial = zeros(renamed(source, "encoder", "tower") | {"head": {"kernel": jnp.ones((3, 5))}})
    initial["decoder"]["decoder_norm"]["scale"] = jnp.full(99, 7.0)  # a size of its own, kept
    rules = [(r"tower/(.*)", r"encoder/\1"), (r"head/.*|.*/scale", None)]
    found = restore_partial(initial, open_source(run), rules)
    assert_same_bits(found["tower"], source["encoder"])
    assert_same_bits(found["token_embedder"], source["token_embedder"])
    assert found["head"]["kernel"] is initial["head"]["kernel"]
    assert found["decoder"]["decoder_norm"]["scale"] is initial["decoder"]["decoder_norm"]["scale"]


def test_the_first_rule_that_matches_wins(run):
    initial = zeros({"decoder": make_state().params["decoder"]})
    found = restore_partial(initial, open_source(run), [(".*", "decoder/decoder_norm/scale")])
    assert_same_bits(found, {"decoder": make_state().params["decoder"]})
    with pytest.raises(UserError, match=r"'decoder/\.\*' takes no parameter"):
        restore_partial(initial, open_source(run), [(".*", None), ("decoder/.*", None)])


def test_two_parameters_of_one_source_can_both_be_donated(run):
    scale = make_state().params["decoder"]["decoder_norm"]["scale"]
    initial = zeros({"a": scale, "b": scale})
    found = restore_partial(initial, open_source(run), [("a|b", SCALE)])
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    assert_same_bits(advance(found), {"a": scale + 1, "b": scale + 1})


def test_more_parameters_in_the_checkpoint_are_left_there(run):
    initial = zeros({"decoder": make_state().params["decoder"]})
    assert_same_bits(restore_partial(initial, open_source(run)), {"decoder": make_state().params["decoder"]})


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([("encoder/layer_0/.*", None)], r"takes no parameter; nearest: .*; a regex must match a whole name"),
        ([("encoder", None)], r"'encoder' takes no parameter.*whole name"),
        ([("(", None)], r"assignment_map: .*it is a list of \(regex, replacement or None\)"),
        ([("encoder/(.*)", r"\2")], r"assignment_map: invalid group reference"),
        (["encoder"], r"assignment_map: too many values"),
        ([("encoder/(.*)", r"encodr/\1")], rf"no parameter 'encodr/.*' \(for '{KERNEL}'\).*nearest: '{KERNEL}'"),
        ([(KERNEL, EMBEDDING)], rf"'{KERNEL}' has shape \(32, 16\) in the checkpoint and \(16, 8\) in this run"),
    ],
    ids=["no match", "part of a name", "no regex", "no group", "no pair", "not there", "shape"],
)
def test_wrong_rules_are_told_in_one_line(run, rules, says):
    with pytest.raises(UserError, match=says) as error:
        restore_partial(zeros(make_state().params), open_source(run), rules)
    assert "\n" not in str(error.value)
