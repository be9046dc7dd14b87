import json
import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from t5x_lite.training import metrics_log
from t5x_lite.training.metrics_log import MetricsLog


def write_lines(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def scalars(folder):
    """{(tag, step): value} of every TensorBoard event in the folder; a record is length, crc, event, crc."""
    found = {}
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + size :]
    return found


def test_writes_one_object_a_line(tmp_path):
    log = MetricsLog(str(tmp_path))
    log.write(50, {"loss": jnp.float32(2.5)}, {"tokens_per_second": 100.0})
    log.write_eval(50, {"unseen/exact_match": 0.25})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 50, "kind": "train", "loss": 2.5, "tokens_per_second": 100.0}\n'
        '{"step": 50, "kind": "eval", "unseen/exact_match": 0.25}\n'
    )


def test_metrics_are_read_only_when_the_next_ones_come(tmp_path):
    read = []

    class OnDevice:
        def __init__(self, step):
            self.step = step

        def __array__(self, dtype=None, copy=None):
            read.append(self.step)
            return np.float32(self.step)

    log = MetricsLog(str(tmp_path))
    log.write(1, {"loss": OnDevice(1)}, {})
    assert read == []
    assert metrics_log.read(str(tmp_path)) == []
    log.write(2, {"loss": OnDevice(2)}, {})
    assert set(read) == {1}
    assert [line["step"] for line in metrics_log.read(str(tmp_path))] == [1]
    log.close()
    assert set(read) == {1, 2}
    assert [line["step"] for line in metrics_log.read(str(tmp_path))] == [1, 2]


def test_resume_forgets_what_came_after_the_checkpoint(tmp_path):
    lines = [
        {"step": 50, "kind": "train", "loss": 3.0},
        {"step": 100, "kind": "train", "loss": 2.0},
        {"step": 100, "kind": "eval", "seen/f1": 0.5},
        {"step": 150, "kind": "train", "loss": 1.0},
    ]
    write_lines(tmp_path, *lines)
    log = MetricsLog(str(tmp_path), resume_step=100)
    log.write(150, {"loss": jnp.float32(1.5)}, {})
    log.close()
    assert metrics_log.read(str(tmp_path)) == [*lines[:3], {"step": 150, "kind": "train", "loss": 1.5}]
    assert not (tmp_path / "metrics.jsonl.tmp").exists()


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    write_lines(tmp_path, {"step": 50, "kind": "train", "loss": 3.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 100, "kind": "train", "lo')
    assert [line["step"] for line in metrics_log.read(str(tmp_path))] == [50]
    log = MetricsLog(str(tmp_path), resume_step=50)
    log.write(100, {"loss": jnp.float32(2.0)}, {})
    log.close()
    assert [line["loss"] for line in metrics_log.read(str(tmp_path))] == [3.0, 2.0]


def test_rewriting_at_resume_keeps_lines_to_the_byte(tmp_path):
    log = MetricsLog(str(tmp_path))
    log.write(1, {"loss": jnp.float32(1 / 3), "z_loss": jnp.float32(1e-30)}, {"tokens_per_second": 1e5 / 3})
    log.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    MetricsLog(str(tmp_path), resume_step=1).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@settings(deadline=None, max_examples=20)
@given(values=st.lists(st.floats(width=32), min_size=1))
def test_floats_read_back_to_the_same_bits(tmp_path_factory, values):
    folder = str(tmp_path_factory.mktemp("run"))
    log = MetricsLog(folder)
    for step, value in enumerate(values):
        log.write(step, {"loss": np.float32(value)}, {"third": value / 3})
    log.close()
    for line, value in zip(metrics_log.read(folder), values, strict=True):
        assert np.array_equal(np.float32(line["loss"]), np.float32(value), equal_nan=True)
        assert np.signbit(line["loss"]) == np.signbit(value) or math.isnan(value)
        assert line["third"] == value / 3 or math.isnan(value)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    log = MetricsLog(str(tmp_path))
    log.write(1, {"loss": jnp.float32(2.5)}, {"tokens_per_second": 8.0})
    log.write_eval(1, {"seen/f1": 0.5})
    log.close()
    assert scalars(tmp_path / "train") == {("loss", 1): 2.5, ("tokens_per_second", 1): 8.0}
    assert scalars(tmp_path / "eval") == {("seen/f1", 1): 0.5}
