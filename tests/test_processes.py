"""What one process says of the others; tests/integration/test_processes.py starts several."""

import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from t5x_lite import processes
from t5x_lite.errors import LostProcess, UserError


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)


def test_alone_nothing_is_asked_of_anybody():
    processes.agree("anything", "nothing to do")
    vote = processes.Vote()
    assert [vote(wish) for wish in (False, True, False)] == [False, True, False]
    with pytest.raises(jax.errors.JaxRuntimeError), processes.together("unused"):
        raise jax.errors.JaxRuntimeError("Gloo all-reduce failed")
    processes.leave(1)  # the process goes on


def test_a_vote_beside_steps_whose_mesh_has_another_order(monkeypatch):
    """As that of a TPU has: within the context of a mesh JAX runs no program of other devices, nor of another order."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    devices = np.array(jax.devices())[[0, 1, 3, 2, 7, 6, 5, 4]]
    vote = processes.Vote()
    with jax.set_mesh(jax.sharding.Mesh(devices, ("data",))):
        assert [vote(wish) for wish in (False, True, False, False, False)] == [False, False, False, True, False]


@pytest.mark.parametrize(
    "error, lost",
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [10.0.0.2]:1\nmore", True),
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes", False),
    ],
)
def test_errors_that_another_process_causes_are_told_from_others(second_of_two, capfd, error, lost):
    with pytest.raises(LostProcess if lost else jax.errors.JaxRuntimeError), processes.together("do this"):
        raise jax.errors.JaxRuntimeError(error)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == lost
    assert all(line.startswith("process 1 of 2 stops: another process is gone (") for line in said)
    assert all(line.endswith("); do this") for line in said)


def test_who_ends_in_good_order_says_nothing(second_of_two, capfd):
    with processes.together("do this"):
        pass
    with pytest.raises(UserError), processes.together("do this"):
        raise UserError("said by the door")
    assert capfd.readouterr() == ("", "")


KILLED = """
import os, signal, jax
jax.process_count, jax.process_index = lambda: 2, lambda: 1
from t5x_lite import processes
with processes.together("do this"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_last_words():
    environment = {**os.environ, "XLA_FLAGS": ""}
    found = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, env=environment)
    assert found.returncode == -9 and found.stdout == ""
    assert found.stderr.splitlines()[-1] == (
        "process 1 of 2 was ended in mid-run: killed, or by JAX because another process is gone (see its output); "
        "do this"
    )


@pytest.mark.parametrize("theirs, agreed", [("ours", True), ("others", False)])
def test_all_must_say_the_same(second_of_two, monkeypatch, theirs, agreed):
    codes = {"ours": processes.zlib.crc32(b"ours"), "others": 7}
    monkeypatch.setattr(
        processes, "multihost_utils", types.SimpleNamespace(process_allgather=lambda x: np.array([codes[theirs], x]))
    )
    if agreed:
        processes.agree("ours", "do this")
    else:
        with pytest.raises(UserError, match=r"do not agree \(ours, says process 1\); do this"):
            processes.agree("ours", "do this")
