"""Rules to layouts: cases a person can check, then what holds for any rules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t5x_lite.model import axis_rules, constrain, logical_to_spec

MESH = {"data": 2, "fsdp": 2, "model": 2}
RULES = (
    ("batch", ("data", "fsdp")),
    ("heads", "model"),
    ("mlp", "model"),
    ("vocab", "model"),
    ("embed", "fsdp"),
    ("kv", None),
)


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("embed", "mlp"), (8, 16), PartitionSpec("fsdp", "model")),
        (("mlp", "embed"), (16, 8), PartitionSpec("model", "fsdp")),
        (("embed", "heads", "kv"), (8, 4, 4), PartitionSpec("fsdp", "model")),
        (("batch", "length", "embed"), (4, 7, 8), PartitionSpec(("data", "fsdp"))),
        (("batch", "length", "mlp"), (4, 7, 8), PartitionSpec(("data", "fsdp"), None, "model")),
        (("embed",), (8,), PartitionSpec("fsdp")),
        (("embed",), (7,), PartitionSpec()),
        (("heads", "relpos_buckets"), (3, 32), PartitionSpec()),
        ((None, "mlp"), (4, 4), PartitionSpec(None, "model")),
        ((), (), PartitionSpec()),
    ],
)
def test_layout_of_an_array(axes, shape, expected):
    assert logical_to_spec(axes, RULES, MESH, shape) == expected


def test_rules_come_before_dimensions():
    """The first rule takes the mesh axis even where its dimension comes last."""
    rules = (("heads", "model"), ("embed", "model"))
    assert logical_to_spec(("embed", "heads"), rules, MESH, (4, 4)) == PartitionSpec(None, "model")


def test_later_rule_is_the_fallback_of_one_that_does_not_divide():
    rules = (("embed", ("data", "model")), ("embed", "model"))
    assert logical_to_spec(("embed",), rules, MESH, (6,)) == PartitionSpec("model")


def test_rule_to_none_ends_the_search():
    assert logical_to_spec(("embed",), (("embed", None), ("embed", "model")), MESH, (4,)) == PartitionSpec()


def test_mesh_axes_of_size_one_or_absent_are_left_out():
    one = {"data": 4, "fsdp": 1}
    assert logical_to_spec(("batch", "mlp"), RULES, one, (8, 8)) == PartitionSpec("data")


def test_wrong_number_of_axes_is_named():
    with pytest.raises(ValueError, match=r"1 logical axes \('embed',\) for an array of shape \(4, 4\)"):
        logical_to_spec(("embed",), RULES, MESH, (4, 4))


NAMES = st.sampled_from(["a", "b", "c"])
TARGETS = st.one_of(st.none(), st.sampled_from(list(MESH)), st.permutations(list(MESH)).map(lambda names: names[:2]))


@given(
    rules=st.lists(st.tuples(NAMES, TARGETS), max_size=6),
    dims=st.lists(st.tuples(NAMES, st.integers(1, 8)), max_size=4),
)
def test_every_layout_is_valid(rules, dims):
    """No mesh axis twice, every dimension divided evenly, no trailing None."""
    spec = logical_to_spec([name for name, _ in dims], rules, MESH, [size for _, size in dims])
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    used = [name for entry in entries for name in entry]
    assert len(used) == len(set(used))
    for (_, size), entry in zip(dims, entries, strict=False):
        assert size % math.prod(MESH[name] for name in entry) == 0
    assert not spec or spec[-1] is not None


def mesh():
    return jax.make_mesh((2, 2, 2), tuple(MESH), axis_types=(AxisType.Auto,) * 3)


def test_constrain_lays_out_inside_jit():
    x = jnp.ones((4, 3, 8))
    with jax.set_mesh(mesh()), axis_rules(RULES):
        y = jax.jit(lambda x: constrain(2 * x, "batch", "length", "mlp"))(x)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh(), PartitionSpec(("data", "fsdp"), None, "model")), 3)
    np.testing.assert_array_equal(y, 2 * x)


def test_constrain_without_rules_or_mesh_is_the_identity():
    x = jnp.ones((4, 3, 8))
    assert constrain(x, "batch", "length", "mlp") is x
    with axis_rules(RULES):
        assert constrain(x, "batch", "length", "mlp") is x


def test_innermost_rules_win_and_end_with_their_block():
    x = jnp.ones((8, 8))

    def layout(x):
        return jax.jit(lambda x: constrain(2 * x, "embed", "mlp"))(x).sharding.spec

    with jax.set_mesh(mesh()), axis_rules(RULES):
        with axis_rules((("mlp", "data"),)):
            assert layout(x) == PartitionSpec(None, "data")
        assert layout(x) == PartitionSpec("fsdp", "model")
