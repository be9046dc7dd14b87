"""Checkpoints: bitwise equal on any mesh, whole or not there, kept by the rules, and one-line errors."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from t5x_lite.checkpoints import Checkpoints, PreemptionGuard, describe
from t5x_lite.errors import UserError
from t5x_lite.interop import open_source, restore_partial
from t5x_lite.run_folder import write_manifest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    key_data: jax.Array


TX = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(optax.add_decayed_weights(0.1), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    optax.adafactor(1e-3, min_dim_size_to_factor=8, momentum=0.9),
)
PLACE = {"window": 3, "row": 2**60 + 1}
EMBEDDING, KERNEL, SCALE = "token_embedder/embedding", "encoder/layers_0/mlp/wi_0/kernel", "decoder/decoder_norm/scale"


def make_state(seed=0, tx=TX):
    """Random parameters after one update, so that no leaf of the optimizer is trivially zero."""
    values = np.random.default_rng(seed)

    def normal(shape, dtype):
        return jnp.asarray(values.normal(size=shape), dtype)

    params = {
        "token_embedder": {"embedding": normal((32, 16), jnp.float32)},
        "encoder": {"layers_0": {"mlp": {"wi_0": {"kernel": normal((16, 8), jnp.bfloat16)}}}},
        "decoder": {"decoder_norm": {"scale": normal((16,), jnp.float32)}},
    }
    return State(jnp.int32(seed), params, updated(params, tx), jax.random.key_data(jax.random.key(seed)))


@partial(jax.jit, static_argnums=1)
def updated(params, tx):
    return tx.update(jax.tree.map(jnp.cos, params), tx.init(params), params)[1]


def on_mesh(tree, shape):
    """Arrays or their shapes sharded on the first axes that divide; () is a single device."""
    names = ("data", "model")[: len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape)) if shape else None

    def sharding(leaf):
        if mesh is None:
            return SingleDeviceSharding(jax.devices()[0])
        divides = leaf.ndim == len(shape) and all(n % m == 0 for n, m in zip(leaf.shape, shape, strict=True))
        return NamedSharding(mesh, PartitionSpec(*names) if divides else PartitionSpec())

    def place(leaf):
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, sharding(leaf))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf))

    return jax.tree.map(place, tree)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same_bits(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def save(run_dir, state, step=1, metrics=None, **options):
    checkpoints = Checkpoints(run_dir, **options)
    checkpoints.save(step, state, PLACE, metrics)
    checkpoints.close()
    return checkpoints


def weights(run_dir, like):
    return restore_partial(like, open_source(run_dir))


@pytest.fixture
def run(tmp_path):
    """A run folder with step 1 of make_state()."""
    save(tmp_path, make_state())
    return tmp_path


# ---------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("mesh", [(8,), (2, 4), ()], ids=str)
def test_saved_on_eight_devices_restored_on_any_mesh(tmp_path, mesh):
    state = on_mesh(make_state(), (8,))
    save(tmp_path, state)
    wanted = on_mesh(abstract(state), mesh)
    found, place = Checkpoints(tmp_path).restore(wanted)
    assert place == PLACE
    assert all(type(value) is int for value in place.values())
    assert_same_bits(found, state)
    for leaf, spec in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding == spec.sharding


def test_saved_on_one_device_restored_sharded(run):
    found, _ = Checkpoints(run).restore(on_mesh(abstract(make_state()), (2, 4)))
    assert_same_bits(found, make_state())
    assert len(found.params["token_embedder"]["embedding"].sharding.device_set) == 8


def test_unusual_bits_survive(tmp_path):
    state = make_state()
    odd = jnp.asarray([np.nan, np.inf, -np.inf, -0.0, 1e-45, np.finfo(np.float32).max] + [0.0] * 10, jnp.float32)
    state.params["decoder"]["decoder_norm"]["scale"] = odd
    save(tmp_path, state)
    assert_same_bits(Checkpoints(tmp_path).restore(abstract(state))[0], state)


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    @partial(jax.jit, donate_argnums=0)
    def advance(state):
        return jax.tree.map(lambda x: x + jnp.ones_like(x), state)

    big = {"w": jnp.zeros((1024, 512))}
    state = on_mesh(State(jnp.int32(0), big, (jnp.zeros((64, 8)),), jnp.zeros(2, jnp.uint32)), (8,))
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 4):
        state = advance(state)
        checkpoints.save(step, state, PLACE)
        state = advance(state)
    checkpoints.close()
    for step in range(1, 4):
        found, _ = checkpoints.restore(abstract(state), step)
        for leaf in jax.tree.leaves(found):
            assert np.unique(np.asarray(leaf)).tolist() == [2 * step - 1]


def test_training_resumed_is_training_uninterrupted(tmp_path):
    @jax.jit
    def train(state):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key_data), state.step)
        gradient = jax.tree.map(lambda p: p * jax.random.normal(key, p.shape, p.dtype), state.params)
        updates, opt_state = TX.update(gradient, state.opt_state, state.params)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state, state.key_data)

    half = train(train(make_state()))
    save(tmp_path, half)
    resumed, _ = Checkpoints(tmp_path).restore(abstract(half))
    assert_same_bits(train(train(resumed)), train(train(half)))


def test_weights_alone_need_no_optimizer(run):
    shutil.rmtree(run / "checkpoints" / "1" / "training")
    params = weights(run, on_mesh(abstract(make_state().params), (2, 4)))
    assert_same_bits(params, make_state().params)


def test_weights_come_in_the_type_asked_for(run):
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), make_state().params)
    found = weights(run, wanted)
    assert_same_bits(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state().params))


def test_a_damaged_step_is_a_users_error(run):
    (run / "checkpoints" / "1" / "params" / "_METADATA").unlink()
    with pytest.raises(UserError, match="no readable 'params' in it"):
        weights(run, abstract(make_state().params))


def test_metadata_gives_shapes_and_types(run):
    found = Checkpoints(run).metadata()
    assert found["params"] == abstract(make_state().params)
    assert found["training"]["step"] == jax.ShapeDtypeStruct((), jnp.int32)


# ---------------------------------------------------------------------- which steps stay


@pytest.mark.parametrize(
    ("mode", "scores", "left", "best"),
    [
        ("max", [0.1, 0.9, 0.3, 0.4, 0.5], [2, 4, 5], 2),
        ("min", [0.1, 0.9, 0.3, 0.4, 0.5], [1, 4, 5], 1),
        ("max", [0.9, 0.9, 0.1, 0.1, 0.1], [2, 4, 5], 2),
        ("max", [0.1, float("nan"), None, 0.05, 0.05], [1, 4, 5], 1),
        ("max", [None, None, None, None, None], [4, 5], None),
        ("max", [0.1, 0.2, 0.3, 0.4, 0.5], [4, 5], 5),
    ],
    ids=["max", "min", "later of equals", "nan and unmeasured", "never measured", "best is last"],
)
def test_the_last_two_and_the_best_stay(tmp_path, mode, scores, left, best):
    state = State(jnp.int32(0), {"w": jnp.ones(2)}, (), jnp.zeros(2, jnp.uint32))
    for half in (range(1, 4), range(4, 6)):  # two processes: the second reads the first one's scores from disk
        checkpoints = Checkpoints(tmp_path, keep_last=2, best_metric="em", best_mode=mode)
        for step in half:
            score = scores[step - 1]
            checkpoints.save(step, state, PLACE, None if score is None else {"em": score, "f1": 0.0})
        checkpoints.close()
    for reader in (checkpoints, Checkpoints(tmp_path, best_metric="em", best_mode=mode)):
        assert (reader.steps(), reader.latest_step(), reader.best_step()) == (left, 5, best)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [str(step) for step in left]


def test_an_empty_folder_has_no_steps_and_is_not_made(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert (checkpoints.steps(), checkpoints.latest_step(), checkpoints.best_step()) == ([], None, None)
    checkpoints.close()
    assert not (tmp_path / "run").exists()


def test_a_step_is_not_saved_twice(run):
    save(run, make_state(seed=7), step=1)
    assert_same_bits(weights(run, abstract(make_state().params)), make_state().params)


def test_only_a_writer_clears_what_a_killed_process_left(run):
    leftovers = [run / "checkpoints" / name for name in ("2.orbax-checkpoint-tmp", "0.orbax-checkpoint-tmp-old")]
    for path in leftovers:
        (path / "params").mkdir(parents=True)
    assert Checkpoints(run).steps() == [1]
    assert all(path.exists() for path in leftovers)
    save(run, make_state(), step=2)
    assert not any(path.exists() for path in leftovers)
    assert Checkpoints(run).steps() == [1, 2]


# ---------------------------------------------------------------------- processes that are killed

SAVING = """
import sys, numpy as np, jax, jax.numpy as jnp
sys.path.insert(0, {tests!r})
from test_checkpoints import State
from t5x_lite.checkpoints import Checkpoints
checkpoints = Checkpoints({run!r}, keep_last=1)
noise = np.random.default_rng(0).normal(size=(4 << 20)).astype(np.float32)
for step in range(1, 100):
    state = State(jnp.int32(step), {{"w": jnp.asarray(noise + step)}}, (), jnp.zeros(2, jnp.uint32))
    checkpoints.save(step, state, {{"row": step}})
    if step == 1:
        checkpoints.wait()
        print("saved 1", flush=True)
"""


@pytest.fixture
def python():
    """Starts a program in a process of its own, which ends with the test."""
    started = []

    def start(code):
        command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONWARNINGS": "ignore"}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def stop_during_a_save(process, folder):
    """Stops the process while some step is half written and returns that step."""
    for _ in range(10**6):
        for path in folder.glob("*.orbax-checkpoint-tmp"):
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            if path.exists():
                return int(path.name.split(".")[0])
            process.send_signal(signal.SIGCONT)
        assert process.poll() is None
        time.sleep(0.001)
    raise AssertionError("no save was seen under way")


def test_sigkill_during_a_save_leaves_the_step_before_whole(tmp_path, python):
    process = python(SAVING.format(tests=os.path.dirname(__file__), run=str(tmp_path)))
    assert process.stdout.readline() == "saved 1\n"
    half_written = stop_during_a_save(process, tmp_path / "checkpoints")
    process.kill()
    assert process.wait() == -signal.SIGKILL

    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == half_written - 1
    noise = np.random.default_rng(0).normal(size=(4 << 20)).astype(np.float32)
    like = State(jnp.int32(0), {"w": jnp.asarray(noise)}, (), jnp.zeros(2, jnp.uint32))
    for step in checkpoints.steps():
        found, place = checkpoints.restore(abstract(like), step)
        assert place == {"row": step}
        assert int(found.step) == step
        np.testing.assert_array_equal(found.params["w"], noise + step)


def test_a_step_half_deleted_is_no_step(run, monkeypatch):
    """What a kill in the middle of clearing an old step leaves: nothing under a step's name."""
    path_class = type(Checkpoints(run)._path(1))
    monkeypatch.setattr(path_class, "rmtree", lambda path: None)
    save(run, make_state(seed=2), step=2, keep_last=1)
    assert Checkpoints(run).steps() == [2]
    monkeypatch.undo()
    save(run, make_state(seed=3), step=3)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]


GUARD = """
import hashlib, time
from t5x_lite.checkpoints import PreemptionGuard
with PreemptionGuard() as guard:
    print("ready", flush=True)
    while not guard.requested:
        time.sleep(0.01)
    print("flagged", flush=True)
    {then}
print("left", flush=True)
"""
# A call of some minutes into C that no signal interrupts, as a compilation or a save is.
BLOCKED = 'hashlib.pbkdf2_hmac("sha512", b"", b"", 2**31 - 1)'


def test_the_first_sigterm_is_a_flag(python):
    process = python(GUARD.format(then="pass"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120)[0] == "flagged\nleft\n"
    assert process.returncode == 0


def test_the_second_sigterm_exits_at_once(python):
    process = python(GUARD.format(then=BLOCKED))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "flagged\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 10


def test_the_guard_counts_while_an_event_loop_has_the_wakeup_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with PreemptionGuard() as guard:
        ours = signal.set_wakeup_fd(writer)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.set_wakeup_fd(ours)
        assert guard.requested
    os.close(reader)
    os.close(writer)


def test_the_guard_gives_signals_back():
    handler, wakeup = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with PreemptionGuard():
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.set_wakeup_fd(wakeup) == wakeup


def test_tensorflow_is_not_imported(python):
    process = python("import sys, t5x_lite.checkpoints; print('tensorflow' in sys.modules)")
    assert process.communicate(timeout=120)[0] == "False\n"


# ---------------------------------------------------------------------- what users do wrong


def test_no_checkpoint_there(tmp_path):
    save(tmp_path / "translate", make_state())
    for attempt in (
        lambda path: Checkpoints(path).restore(abstract(make_state())),
        lambda path: weights(path, make_state().params),
    ):
        with pytest.raises(UserError, match=r"no checkpoint in '.*/translat/checkpoints'; nearest: 'translate'"):
            attempt(tmp_path / "translat")
        assert not (tmp_path / "translat").exists()


def test_a_step_that_is_not_there(run):
    save(run, make_state(), step=20)
    for attempt in (
        lambda: Checkpoints(run).restore(abstract(make_state()), step=7),
        lambda: weights(run / "checkpoints" / "7", make_state().params),
    ):
        with pytest.raises(UserError, match=r"no step 7 in '.*'; there are 1, 20$"):
            attempt()


def test_a_shape_that_differs_names_the_parameter_and_both_shapes(run):
    wanted = abstract(make_state())
    wanted.params["token_embedder"]["embedding"] = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    says = rf"'{EMBEDDING}' has shape \(32, 16\) in the checkpoint and \(64, 16\) in this run"
    with pytest.raises(UserError, match=says):
        Checkpoints(run).restore(wanted)
    with pytest.raises(UserError, match=says):
        weights(run, wanted.params)


def test_a_parameter_that_only_one_side_has_is_named(run):
    state = abstract(make_state())
    head = {"logits_dense": {"kernel": state.params["token_embedder"]["embedding"]}}
    more = state.params | {"decoder": state.params["decoder"] | head}
    with pytest.raises(UserError, match=r"only this run has parameter 'decoder/logits_dense/kernel'"):
        Checkpoints(run).restore(dataclasses.replace(state, params=more))
    fewer = {name: state.params[name] for name in ("encoder", "decoder")}
    with pytest.raises(UserError, match=rf"only the checkpoint has parameter '{EMBEDDING}'"):
        Checkpoints(run).restore(dataclasses.replace(state, params=fewer))


def test_another_optimizer_is_named(run):
    with pytest.raises(UserError, match=r"training state 'opt_state/0/.*INITIAL_CHECKPOINT_PATH"):
        Checkpoints(run).restore(abstract(make_state(tx=optax.adam(1e-3))))


def test_a_best_metric_that_is_not_measured_costs_no_step(run):
    checkpoints = Checkpoints(run, best_metric="qa/exact_mach")
    with pytest.raises(UserError, match=r"'qa/exact_mach' is not measured; nearest: 'qa/exact_match'; measured are:"):
        checkpoints.save(2, make_state(), PLACE, {"qa/exact_match": 1.0, "loss": 0.1})
    checkpoints.close()
    assert Checkpoints(run).steps() == [1, 2]


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"best_mode": "maximum"}])
def test_options_that_cannot_be(tmp_path, options):
    with pytest.raises(UserError, match=r"KEEP_CHECKPOINTS is 0|best_mode is"):
        Checkpoints(tmp_path, **options)


# ---------------------------------------------------------------------- inspect checkpoint


def test_describe_says_what_is_there_and_where_it_came_from(tmp_path):
    manifest = {
        "format": 1,
        "model": {"d_model": 16},
        "lengths": {"inputs": 64},
        "vocabulary": {"kind": "bytes", "sha256": "aa11"},
        "mixture_or_task": "qa",
        "best_metric": "em",
        "versions": {"jax": "0.10.1"},
        "git": "abc123",
    }
    write_manifest(tmp_path, manifest)
    for step, score in ((0, 0.9), (5, 0.25)):
        save(tmp_path, make_state(), step=step, metrics={"em": score}, best_metric="em")
    text = describe(tmp_path)
    for part in (
        str(tmp_path),
        "qa; lengths inputs 64",
        "kind bytes, sha256 aa11",
        "d_model 16",
        "jax 0.10.1; git abc123",
        "0 (best em), 5",
        "metrics      em 0.25",
        "data         window 3, row 1152921504606846977",
        "params       3 arrays, 656 parameters, 2.37 KB",
    ):
        assert part in text, (part, text)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows[EMBEDDING] == ["32", "16", "float32", "2.05", "KB"]
    assert rows[KERNEL] == ["16", "8", "bfloat16", "256", "B"]
    assert rows["opt_state"][1] == "arrays,"
    assert "metrics      em 0.9" in describe(tmp_path, step=0)


def test_describe_of_no_run(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        describe(tmp_path)
