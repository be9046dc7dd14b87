import jax
import numpy as np
import pytest

from t5x_lite import devices
from t5x_lite.devices import KINDS, kind_of, peak


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_drivers_names(name, kind):
    assert kind_of(name) is KINDS[kind]


def device(platform: str, kind: str, process: int = 0):
    return type("Device", (), {"platform": platform, "device_kind": kind, "process_index": process})


def test_an_unknown_device_has_no_peak():
    assert peak([device("gpu", "NVIDIA GeForce RTX 4090")]) is None


def test_the_peak_of_several_devices_is_their_sum():
    found = peak([device("tpu", "TPU v5 lite")] * 8)
    assert found.flops == 8 * 197e12
    assert str(found) == "1,576 TFLOP/s, bfloat16 by its data sheet, 8 times one device"


def test_a_cpu_is_measured_once_a_process_and_not_a_virtual_device(monkeypatch):
    monkeypatch.setattr(devices, "_sgemm_flops", lambda: 3e11)
    found = peak([device("cpu", "cpu")] * 8)
    assert str(found) == "0.3 TFLOP/s, float32 matrix products measured here"
    found = peak([device("cpu", "cpu", process) for process in (0, 0, 1, 1)])
    assert str(found) == "0.6 TFLOP/s, float32 matrix products measured here, 2 times one process"


def test_a_measured_peak_is_one_that_a_core_can_have():
    assert 1e8 < devices._sgemm_flops(size=256, rounds=2) < 1e14


def test_the_memory_of_a_cpu_is_the_process_s():
    held = np.ones(50_000_000, np.uint8)
    found = devices.memory()
    assert held.nbytes < found["memory/bytes"] <= found["memory/peak_bytes"]


def test_the_memory_of_accelerators_is_the_fullest_one_s(monkeypatch):
    def device(now, most):
        stats = {"bytes_in_use": now, "peak_bytes_in_use": most}
        return type("Device", (), {"platform": "gpu", "memory_stats": lambda self: stats})()

    monkeypatch.setattr(jax, "local_devices", lambda: [device(5, 9), device(7, 8)])
    assert devices.memory() == {"memory/bytes": 7, "memory/peak_bytes": 9}
