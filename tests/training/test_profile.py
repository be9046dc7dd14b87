import jax
import jax.numpy as jnp
import pytest

from t5x_lite.errors import UserError
from t5x_lite.training import profile
from t5x_lite.training.profile import Cost, Profiler, parse_steps


@jax.jit
def step(x, w):
    with jax.named_scope("mlp"):
        x = jnp.tanh(x @ w)
    with jax.named_scope("recurrence"):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x)


@jax.jit
def evaluate(x, w):
    """Another program, of which nothing is to be told."""
    for _ in range(9):
        x = jnp.sin(x @ w)
    return x


def test_the_steps_of_a_flag():
    assert parse_steps(None) is None
    assert list(parse_steps("10:13")) == [10, 11, 12]


@pytest.mark.parametrize("text", ["10", "13:10", "10:10", "a:b", "-1:2"])
def test_what_is_no_range(text):
    with pytest.raises(UserError, match=f"--profile '{text}' is no range of steps; write 10:13"):
        parse_steps(text)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of six steps of which three are traced: its folder, and what was said."""
    folder, said = tmp_path_factory.mktemp("run"), []
    profiler = Profiler(str(folder), range(2, 5), said.append)
    x, w = jnp.ones((300, 300)), jnp.full((300, 300), 1e-3)
    with profiler.closing():
        for number in range(6):
            evaluate(x, w).block_until_ready()
            profiler.before(number, step, (x, w))
            assert bool(said) == (number >= 5)
            x = step(x, w)
            profiler.after(number + 1, x)
        profiler.finish(6, x)
    return folder, said


def test_the_costliest_operations_are_named_with_their_place_in_the_model(traced):
    _, (table, trace) = traced
    lines = table.splitlines()
    assert lines[0].startswith("steps 3 to 5: the operations that cost most")
    assert "dot_general" in lines[1] and float(lines[1].split("%")[0]) > 20
    assert any(line.endswith("mlp/dot_general") for line in lines)
    assert any("recurrence" in line and "dot_general" in line for line in lines)
    assert not any(" while" in line for line in lines)
    assert "sin" not in table
    assert trace.startswith("trace: ")


def test_the_trace_is_in_the_run_folder(traced):
    folder, _ = traced
    kinds = {path.suffix for path in (folder / "profile" / "plugins" / "profile").rglob("*") if path.is_file()}
    assert kinds == {".pb", ".gz"}


def test_a_run_that_ends_inside_of_the_range_has_its_trace(tmp_path):
    said = []
    profiler = Profiler(str(tmp_path), range(1, 100), said.append)
    x = jnp.ones((100, 100))
    with profiler.closing():
        for number in range(3):
            profiler.before(number, step, (x, x))
            step(x, x)
            profiler.after(number + 1, x)
        profiler.finish(3, x)
    assert said[0].startswith("steps 2 to 3: ")


def test_an_error_ends_the_trace(tmp_path):
    profiler = Profiler(str(tmp_path), range(0, 100), print)
    x = jnp.ones((10, 10))
    with pytest.raises(ZeroDivisionError), profiler.closing():
        profiler.before(0, step, (x, x))
        raise ZeroDivisionError
    jax.profiler.start_trace(str(tmp_path))  # which one that was running would refuse
    jax.profiler.stop_trace()


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path):
    (tmp_path / "profile").write_text("a file")
    profiler = Profiler(str(tmp_path), range(0, 1), print)
    x = jnp.ones((10, 10))
    with pytest.raises(OSError, match="profile"), profiler.closing():
        profiler.before(0, step, (x, x))
        profiler.after(1, step(x, x))


def test_a_range_that_is_not_met(tmp_path):
    said = []
    profiler = Profiler(str(tmp_path), range(10, 13), said.append)
    profiler.before(20, step, ())
    profiler.after(21, ())
    profiler.finish(21, ())
    assert said == ["--profile: nothing was traced, since none of the steps 11 to 13 was run"]


def test_without_the_flag_nothing_is_traced(tmp_path):
    profiler = Profiler(str(tmp_path), None, print)
    profiler.before(0, step, ())
    profiler.after(1, ())
    profiler.finish(1, ())
    assert not list(tmp_path.iterdir())


def test_where_an_operation_is_from():
    where = profile._where
    assert where("jit(step)/jvp(encoder)/attention/dot_general") == "encoder/attention/dot_general"
    assert where("jit(step)/transpose(jvp(encoder))/mlp/mul") == "backward encoder/mlp/mul"
    assert where("") == ""


def test_the_table_is_lined_up():
    table = profile.describe([Cost("a", 1.5, 0.5, "mlp"), Cost("long.1", 0.25, 0.05, "")], range(10, 13))
    assert table.splitlines()[1:] == [
        " 50.0%       1.50 ms a step  a       mlp",
        "  5.0%       0.25 ms a step  long.1  ",
    ]
