import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.training.schedules import learning_rate


def values(schedule, steps):
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_constant():
    assert values(learning_rate("constant", base_learning_rate=0.5), [0, 10**6]) == [0.5, 0.5]


def test_the_string_of_t5_pretraining():
    schedule = learning_rate("constant * linear_warmup * rsqrt_decay", base_learning_rate=1.0, warmup_steps=100)
    # Rises to 1/sqrt(100), then falls with the root of the step.
    assert values(schedule, [0, 49, 99, 100, 400, 10_000]) == pytest.approx([0.001, 0.05, 0.1, 0.1, 0.05, 0.01])


def test_linear_decay_begins_after_the_warmup():
    schedule = learning_rate("linear_decay", base_learning_rate=0, warmup_steps=10, total_steps=110)
    assert values(schedule, [0, 10, 60, 110, 500]) == pytest.approx([1, 1, 0.5, 0, 0])


def test_cosine_decay():
    schedule = learning_rate("cosine_decay", base_learning_rate=0, warmup_steps=0, total_steps=100)
    assert values(schedule, [0, 25, 50, 100]) == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0], abs=1e-6)


def test_no_warmup_is_full_speed_at_once():
    schedule = learning_rate("constant * linear_warmup", base_learning_rate=2.0, warmup_steps=0)
    assert values(schedule, [0]) == [2.0]


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(["constant", "linear_warmup", "linear_decay"]),
    st.integers(0, 50),
    st.integers(51, 200),
    st.integers(0, 300),
)
def test_factors_multiply_in_any_order(names, warmup, total, step):
    settings = {"base_learning_rate": 0.3, "warmup_steps": warmup, "total_steps": total}
    product = np.prod([values(learning_rate(name, **settings), [step])[0] for name in names])
    together = jax.jit(learning_rate(" * ".join(names), **settings))(jnp.int32(step))
    assert together == pytest.approx(product, abs=1e-6)
    assert together.dtype == jnp.float32


def test_unknown_factor_names_the_nearest():
    with pytest.raises(UserError, match=r"no 'rsqrt_decai'; nearest: 'rsqrt_decay'.*there are constant"):
        learning_rate("constant * rsqrt_decai", base_learning_rate=1.0)


@pytest.mark.parametrize("name", ["linear_decay", "cosine_decay"])
def test_a_decay_needs_an_end_after_the_warmup(name):
    with pytest.raises(UserError, match=f"{name} ends at total_steps, which is 100"):
        learning_rate(name, base_learning_rate=1.0, warmup_steps=100, total_steps=100)
